//! `herald restore`: makes a working installation of a backup.

use std::path::PathBuf;

use clap::ValueHint;
use herald_cli::{
    context::Context,
    failure::Failure,
    output::{Show, counted},
};
use herald_runtime::telemetry::error_chain;
use serde::Serialize;

use super::{installation::Installation, recover::RecoverResult};
use crate::server::{read_backup, read_storage_key, restore, verify_files};

const LONG: &str = "\
Makes a working installation of a backup of `herald backup`: a new data directory for `herald up`, or the streams of \
`herald serve` on a NATS server without them, after PostgreSQL was restored.

Then it does what `herald recover` does, for all streams, because they are a little older than the store. Empty Valkey \
(`FLUSHALL`) if it has timelines of another time. Start Herald, run `herald \
audit --repair` to deliver what was on its way when the backup was made, and `herald audit` to see that nothing is missing. \
What was accepted after the backup is lost.

A backup of `herald up` with devices needs their storage key, which it does not have: --storage-key.";

const EXAMPLES: &str = "\
Examples:
  herald restore /backups/herald-monday --data-dir herald-data --storage-key /keys/herald-storage.key
  Whether a backup is as it was when it was made:
    herald restore /backups/herald-monday --check
  On many machines:
    pg_restore --create --dbname postgres /backups/herald-monday/store.dump
    herald restore /backups/herald-monday --nats-url nats://localhost:4222 \\
        --store postgres://localhost/herald";

/// Make a working installation of a backup
#[derive(Debug, clap::Args)]
#[command(long_about = LONG, after_long_help = EXAMPLES)]
pub(crate) struct Args {
    /// The directory of the backup
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    dir: PathBuf,

    /// Only compare the files of the backup with their checksums, and change nothing
    #[arg(long)]
    check: bool,

    /// The file with the storage key of the backup, which the data directory gets: the copy that you keep of storage.key
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    storage_key: Option<PathBuf>,

    #[command(flatten)]
    installation: Installation,
}

/// The result.
#[derive(Debug, Serialize)]
struct RestoreResult {
    stream_count: u64,
    message_count: u64,
    row_count: Option<u64>,
    /// What did not fit together, and was recovered.
    recovered: RecoverResult,
}

impl Show for RestoreResult {
    fn text(&self) -> String {
        let rows = self
            .row_count
            .map(|rows| format!(" and {} of the store", counted(rows, "row", "rows")));
        format!(
            "{} with {}{} restored\n{}",
            counted(self.stream_count, "stream", "streams"),
            counted(self.message_count, "message", "messages"),
            rows.unwrap_or_default(),
            self.recovered.text()
        )
    }
}

/// The result of `--check`.
#[derive(Debug, Serialize)]
struct CheckResult {
    file_count: u64,
    bytes: u64,
}

impl Show for CheckResult {
    fn text(&self) -> String {
        format!(
            "{} with {} are as they were when the backup was made",
            counted(self.file_count, "file", "files"),
            counted(self.bytes, "byte", "bytes")
        )
    }
}

/// Damaged files that are named.
const DAMAGE_SHOWN: usize = 10;

fn damaged(damage: &[String]) -> Failure {
    let mut shown = damage[..damage.len().min(DAMAGE_SHOWN)].join("; ");
    if damage.len() > DAMAGE_SHOWN {
        let more = (damage.len() - DAMAGE_SHOWN) as u64;
        shown = format!("{shown}; and {} more", counted(more, "file", "files"));
    }
    Failure::failed(format!("the backup is damaged: {shown}"))
        .hint("nothing was restored: use another copy of this backup, or another backup")
}

pub(crate) async fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let config = args.installation.config(context.global.config.as_deref())?;
    let failed = |error: anyhow::Error| Failure::failed(error_chain(error.as_ref()));
    let manifest = read_backup(&args.dir).map_err(failed)?;
    match (config.store.is_cluster(), manifest.store_rows) {
        _ if args.check => {}
        (true, Some(_)) => {
            return Err(Failure::usage(
                "this is a backup of `herald up`, with its store: restore it into a data directory, without store.url, and \
                 move it with `herald migrate` if PostgreSQL shall have the store",
            ));
        }
        (false, None) => {
            return Err(Failure::usage(
                "this backup has no store, because PostgreSQL has it: restore PostgreSQL first, and name the database \
                 (--store, HERALD_STORE__URL, or HERALD_STORE__URL_FILE)",
            ));
        }
        _ => {}
    }
    let damage = verify_files(&args.dir, &manifest.files).map_err(failed)?;
    if !damage.is_empty() {
        return Err(damaged(&damage));
    }
    if args.check {
        return context.output.show(&CheckResult {
            file_count: manifest.files.len() as u64,
            bytes: manifest.files.iter().map(|file| file.bytes).sum(),
        });
    }
    let key = match &args.storage_key {
        Some(_) if config.store.is_cluster() => {
            return Err(Failure::usage(
                "--storage-key is for a data directory: processes that share a store have their key in store.encryption.key",
            ));
        }
        Some(path) => {
            let key = read_storage_key(path).map_err(failed)?;
            Some(key.ok_or_else(|| Failure::usage(format!("there is no file {}", path.display())))?)
        }
        None => None,
    };
    let restored = restore(&config, &args.dir, &manifest, key.as_ref()).await;
    let recovered = restored.map_err(failed)?;
    context.output.show(&RestoreResult {
        stream_count: manifest.streams.len() as u64,
        message_count: manifest.message_count(),
        row_count: manifest.store_rows,
        recovered: RecoverResult::done(&recovered),
    })
}
