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
use crate::server::{Recovering, read_backup, restore_files};

const LONG: &str = "\
Makes a working installation of a backup of `herald backup`: a new data directory for `herald up`, or the streams of \
`herald serve` on a NATS server without them, after PostgreSQL was restored.

Then it does what `herald recover` does, for all streams, because they are a little older than the store. Empty Valkey \
(`FLUSHALL`) if it has timelines of another time. Start Herald, run `herald \
audit --repair` to deliver what was on its way when the backup was made, and `herald audit` to see that nothing is missing. \
What was accepted after the backup is lost.";

const EXAMPLES: &str = "\
Examples:
  herald restore /backups/herald-monday --data-dir herald-data
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

pub(crate) async fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let config = args.installation.config(context.global.config.as_deref())?;
    let failed = |error: anyhow::Error| Failure::failed(error_chain(error.as_ref()));
    let manifest = read_backup(&args.dir).map_err(failed)?;
    match (config.store.is_cluster(), manifest.store_rows) {
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
    if !config.store.is_cluster() {
        restore_files(&args.dir, &config.data_dir).map_err(failed)?;
    }
    let restoring = Recovering::start(&config).await.map_err(failed)?;
    let restored = restoring.restore(&args.dir, &manifest).await.map_err(failed);
    let stopped = restoring.stop().await.map_err(failed);
    let recovered = restored?;
    stopped?;
    context.output.show(&RestoreResult {
        stream_count: manifest.streams.len() as u64,
        message_count: manifest.message_count(),
        row_count: manifest.store_rows,
        recovered: RecoverResult::done(&recovered),
    })
}
