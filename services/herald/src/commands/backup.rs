//! `herald backup`: copies streams and store while they are in use.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
};

use clap::ValueHint;
use herald_cli::{
    context::Context,
    failure::{Failure, Kind},
    output::{Show, count, counted},
};
use herald_proto::mesh_v1::{BackupRequest, BackupResponse};
use herald_runtime::telemetry::error_chain;
use indicatif::ProgressBar;
use serde::Serialize;
use tonic::Status;

use super::installation::Installation;
use crate::server::{
    BackupProgress, Config, ControlClient, Recovering, control_socket, is_socket_too_long, read_backup,
};

const LONG: &str = "\
Copies the streams and the store into a directory, while posts and deliveries go on. `herald restore` makes a working \
installation of it, whose audit is clean or tells exactly what is missing.

Of `herald up`, the backup has everything but the storage key. The command finds the process by the socket `control.sock` in its data \
directory, so it runs on the same machine, as the same user; the data directory of a stopped process is copied, too.

Of `herald serve` on many machines, the backup has the streams. Back up PostgreSQL right after it, with `pg_dump` or as you \
back up your other databases; timelines in Valkey are made again from PostgreSQL.

The backup has posts, devices and secrets: its directory is readable by the user of the process alone. Devices stay \
encrypted with the storage key, which no backup has: keep a copy of that key elsewhere, because nothing can read them \
without it.";

const EXAMPLES: &str = "\
Examples:
  herald backup /backups/herald-monday --data-dir herald-data
  Of many machines:
    herald backup /backups/herald-monday --nats-url nats://localhost:4222 \\
        --store postgres://localhost/herald
    pg_dump --format custom --file /backups/herald-monday/store.dump herald";

/// Copy the streams and the store while they are in use
#[derive(Debug, clap::Args)]
#[command(long_about = LONG, after_long_help = EXAMPLES)]
pub(crate) struct Args {
    /// The directory of the backup; created, and refused if it is not empty
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    dir: PathBuf,

    #[command(flatten)]
    installation: Installation,
}

/// The result.
#[derive(Debug, Serialize)]
struct BackupResult {
    directory: PathBuf,
    stream_count: u32,
    message_count: u64,
    /// Rows of the embedded store; `None` if PostgreSQL has the store.
    row_count: Option<u64>,
    /// The storage keys that the devices in the backup are encrypted with, which it does not have.
    storage_key_ids: Vec<String>,
}

impl Show for BackupResult {
    fn text(&self) -> String {
        let streams = format!(
            "{} with {}",
            counted(self.stream_count.into(), "stream", "streams"),
            counted(self.message_count, "message", "messages")
        );
        let dir = self.directory.display();
        match self.row_count {
            Some(rows) => {
                let keys = if self.storage_key_ids.is_empty() {
                    String::new()
                } else {
                    format!(
                        "\nIts devices are encrypted with the storage key {}, which it does not have: keep a copy of that key \
                         (the file storage.key of the data directory, unless store.encryption.key is set) apart from it",
                        self.storage_key_ids.join(" and ")
                    )
                };
                format!(
                    "{streams} and {} of the store copied to {dir}{keys}",
                    counted(rows, "row", "rows")
                )
            }
            None => {
                format!("{streams} copied to {dir}; now back up PostgreSQL, which has the store: `pg_dump`")
            }
        }
    }
}

pub(crate) async fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let config = args.installation.config(context.global.config.as_deref())?;
    let directory = std::path::absolute(&args.dir)
        .map_err(|error| Failure::io(format!("can't use {}", args.dir.display()), &error))?;
    let bar = context
        .output
        .progress_bar(Some(0), "{bar:40} {pos}/{len} streams  {msg}  {elapsed}");
    let result = if config.store.is_cluster() {
        copy(&config, &directory, &bar).await
    } else {
        let socket = control_socket(&config.data_dir);
        match connect(&socket).await? {
            Some(process) => ask(process, &directory, &bar).await,
            None => copy(&config, &directory, &bar)
                .await
                .map_err(|failure| with_hint(failure, &socket)),
        }
    };
    bar.finish_and_clear();
    let mut result = result?;
    let manifest = read_backup(&directory);
    result.storage_key_ids = manifest
        .map_err(|error| Failure::failed(error_chain(error.as_ref())))?
        .storage_keys;
    context.output.show(&result)
}

/// A running process can't be reached through a socket whose path is too long.
fn with_hint(failure: Failure, socket: &Path) -> Failure {
    if !is_socket_too_long(socket) {
        return failure;
    }
    failure.hint(format!(
        "a running process can't be reached, because the path of its control socket is too long ({}): run both commands with a \
         shorter --data-dir, such as one relative to the working directory, or stop it for the backup",
        socket.display()
    ))
}

/// Connects to the process of a data directory; `None` if none runs.
pub(super) async fn connect(socket: &Path) -> Result<Option<ControlClient>, Failure> {
    ControlClient::connect(socket).await.map_err(|error| {
        let message = format!(
            "can't reach the process of the data directory by {}",
            socket.display()
        );
        let failure = Failure::io(message, &error);
        if error.kind() == ErrorKind::PermissionDenied {
            return failure
                .hint("run the command as the user of that process, who alone can read the data directory");
        }
        failure
    })
}

/// A call of the process of a data directory that failed.
pub(super) fn refused(process: &ControlClient, status: Status) -> Failure {
    if !process.is_silent(&status) {
        return status.into();
    }
    Failure::new(Kind::Unreachable, format!("{} doesn't answer", process.name())).hint(
        "it is stopped or hangs: let it go on (`kill -CONT PID`), or end it (`kill -KILL PID`) and start it again; \
         nothing that was accepted is lost",
    )
}

/// Lets a running process write the backup.
async fn ask(
    mut process: ControlClient,
    directory: &Path,
    bar: &ProgressBar,
) -> Result<BackupResult, Failure> {
    let request = BackupRequest {
        directory: directory.display().to_string(),
    };
    let answers = process.calls.backup(request).await;
    let mut answers = answers.map_err(|status| refused(&process, status))?.into_inner();
    while let Some(now) = answers
        .message()
        .await
        .map_err(|status| refused(&process, status))?
    {
        report(bar, &now);
        if now.done {
            return Ok(BackupResult {
                directory: directory.into(),
                stream_count: now.stream_count,
                message_count: now.message_count,
                row_count: Some(now.row_count),
                storage_key_ids: Vec::new(),
            });
        }
    }
    Err(
        Failure::new(Kind::Interrupted, "the process stopped during the backup").hint(format!(
            "the directory {} has no complete backup: remove it and try again",
            directory.display()
        )),
    )
}

/// Writes a backup of streams that processes share, or of a stopped `herald up`.
async fn copy(config: &Config, directory: &Path, bar: &ProgressBar) -> Result<BackupResult, Failure> {
    let failed = |error: anyhow::Error| Failure::failed(error_chain(error.as_ref()));
    config.check_store().map_err(failed)?;
    let source = Recovering::start(config).await.map_err(failed)?;
    let shown = bar.clone();
    let progress = move |now: BackupProgress| {
        report(
            &shown,
            &BackupResponse {
                stream_count: now.streams,
                stream_count_total: now.streams_total,
                message_count: now.messages,
                ..BackupResponse::default()
            },
        );
    };
    let written = source.backup(config, directory, progress).await.map_err(failed);
    source.stop().await.map_err(failed)?;
    let written = written?;
    Ok(BackupResult {
        directory: directory.into(),
        stream_count: written.streams.len() as u32,
        message_count: written.message_count(),
        row_count: written.store_rows,
        storage_key_ids: Vec::new(),
    })
}

fn report(bar: &ProgressBar, now: &BackupResponse) {
    bar.set_length(now.stream_count_total.into());
    bar.set_position(now.stream_count.into());
    let store = if now.stream_count == now.stream_count_total {
        ", then the store"
    } else {
        ""
    };
    bar.set_message(format!("{} messages{store}", count(now.message_count)));
}
