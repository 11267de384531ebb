//! `herald backup`: copies streams and store while they are in use.

use std::path::{Path, PathBuf};

use clap::ValueHint;
use herald_cli::{
    context::Context,
    failure::{Failure, Kind},
    output::{Show, count, counted},
};
use herald_proto::mesh_v1::{BackupRequest, BackupResponse, control_service_client::ControlServiceClient};
use herald_runtime::telemetry::error_chain;
use indicatif::ProgressBar;
use serde::Serialize;
use tonic::transport::Endpoint;

use super::installation::Installation;
use crate::server::{BackupProgress, Config, Recovering, control_socket};

const LONG: &str = "\
Copies the streams and the store into a directory, while posts and deliveries go on. `herald restore` makes a working \
installation of it, whose audit is clean or tells exactly what is missing.

Of `herald up`, the backup has everything. The command finds the process by the socket `control.sock` in its data \
directory, so it runs on the same machine, as the same user; the data directory of a stopped process is copied, too.

Of `herald serve` on many machines, the backup has the streams. Back up PostgreSQL right after it, with `pg_dump` or as you \
back up your other databases; timelines in Valkey are made again from PostgreSQL.

The backup has posts, devices and secrets: its directory is readable by the user of the process alone.";

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
            Some(rows) => format!(
                "{streams} and {} of the store copied to {dir}",
                counted(rows, "row", "rows")
            ),
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
        match connect(&control_socket(&config.data_dir)).await? {
            Some(client) => ask(client, &directory, &bar).await,
            None => copy(&config, &directory, &bar).await,
        }
    };
    bar.finish_and_clear();
    context.output.show(&result?)
}

/// Connects to the process of a data directory; `None` if none runs.
async fn connect(socket: &Path) -> Result<Option<ControlServiceClient<tonic::transport::Channel>>, Failure> {
    if !socket.exists() {
        return Ok(None);
    }
    let url = format!(
        "unix://{}",
        std::path::absolute(socket)
            .unwrap_or_else(|_| socket.into())
            .display()
    );
    let endpoint = Endpoint::from_shared(url).map_err(|error| Failure::failed(error_chain(&error)))?;
    // A process that was killed leaves its socket; the lock of the store tells whether one runs.
    Ok(endpoint.connect().await.ok().map(ControlServiceClient::new))
}

/// Lets a running process write the backup.
async fn ask(
    mut client: ControlServiceClient<tonic::transport::Channel>,
    directory: &Path,
    bar: &ProgressBar,
) -> Result<BackupResult, Failure> {
    let request = BackupRequest {
        directory: directory.display().to_string(),
    };
    let mut answers = client.backup(request).await?.into_inner();
    while let Some(now) = answers.message().await? {
        report(bar, &now);
        if now.done {
            return Ok(BackupResult {
                directory: directory.into(),
                stream_count: now.stream_count,
                message_count: now.message_count,
                row_count: Some(now.row_count),
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
