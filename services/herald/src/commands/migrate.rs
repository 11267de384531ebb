//! `herald migrate`: moves the data of `herald up` to PostgreSQL and Valkey or Redis.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::ValueHint;
use herald_cli::{
    context::Context,
    failure::{Failure, Kind},
    output::{Show, count, counted},
    time,
};
use herald_runtime::{config::Flags, shutdown, telemetry::error_chain};
use herald_store::{
    ErrorKind,
    migrate::{BATCH_ROWS, Moved, Progress, Stage},
};
use parking_lot::Mutex;
use serde::Serialize;

use crate::{server::Config, settings::refuse_password};

const LONG: &str = "\
Moves the data of a stopped `herald up` from its data directory to PostgreSQL, and its timelines to Valkey or Redis, so \
that `herald serve` on many machines continues with it. Ids stay as they are. The database must be empty.

An interrupted move continues where it stopped when the same command runs again. In the end it reads all rows once more \
and compares them with the database. Until it is finished Herald does not start on the database, and from its begin \
`herald up` does not start on the data directory.

The streams are not moved: continue with the same JetStream data, or with a copy of it. See docs/OPERATIONS.md, \"Move from \
one machine to many\".";

const EXAMPLES: &str = "\
Examples:
  export HERALD_STORE__ENCRYPTION__KEY_FILE=$PWD/herald-data/storage.key
  herald migrate --data-dir herald-data \\
      --store postgres://localhost/herald --timelines redis://localhost:6379
  With passwords, from files:
    export HERALD_STORE__URL_FILE=/run/secrets/postgres-url
    export HERALD_TIMELINES__URL_FILE=/run/secrets/redis-url
    herald migrate --data-dir herald-data --output json";

/// Move the data of `herald up` to PostgreSQL and Valkey or Redis
#[derive(Debug, clap::Args)]
#[command(long_about = LONG, after_long_help = EXAMPLES)]
pub(crate) struct Args {
    /// The data directory of the stopped installation [default: ./herald-data]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    data_dir: Option<PathBuf>,

    /// The PostgreSQL database, postgres://HOST:PORT/DATABASE
    ///
    /// A URL with a password must come from HERALD_STORE__URL, from the file that HERALD_STORE__URL_FILE names, or from
    /// the configuration file.
    #[arg(long, value_name = "URL")]
    store: Option<String>,

    /// Valkey or Redis, redis://HOST:PORT
    ///
    /// A URL with a password must come from HERALD_TIMELINES__URL, from the file that HERALD_TIMELINES__URL_FILE names,
    /// or from the configuration file.
    #[arg(long, value_name = "URL")]
    timelines: Option<String>,

    /// Store the endpoints and secrets of encrypted devices in plain text
    ///
    /// Without it, the command refuses to move encrypted devices to a database for which no storage key
    /// (store.encryption.key) is set.
    #[arg(long)]
    plain_devices: bool,
}

/// The result.
#[derive(Debug, Serialize)]
struct MoveResult {
    parts: Vec<PartResult>,
    rows_compared: u64,
    users_compared: u64,
    posts_compared: u64,
    dead_letters_compared: u64,
    operations_compared: u64,
    /// Whether an earlier run had finished the move: nothing was compared now.
    was_finished: bool,
    seconds: f64,
}

/// A part of the data.
#[derive(Debug, Serialize)]
struct PartResult {
    name: &'static str,
    #[serde(rename = "row_count")]
    rows: u64,
}

impl MoveResult {
    fn new(moved: &Moved, took: Duration) -> Self {
        Self {
            parts: moved
                .parts
                .iter()
                .map(|part| PartResult {
                    name: part.name,
                    rows: part.rows,
                })
                .collect(),
            rows_compared: moved.rows_compared,
            users_compared: moved.compared.users,
            posts_compared: moved.compared.posts,
            dead_letters_compared: moved.compared.dead_letters,
            operations_compared: moved.compared.operations,
            was_finished: moved.was_finished,
            seconds: took.as_secs_f64(),
        }
    }
}

impl Show for MoveResult {
    fn text(&self) -> String {
        if self.was_finished {
            return "the move is finished already: nothing to do".into();
        }
        let width = self.parts.iter().map(|part| part.name.len()).max().unwrap_or(0);
        let parts: Vec<String> = self
            .parts
            .iter()
            .map(|part| format!("  {:width$}  {:>13}\n", part.name, count(part.rows)))
            .collect();
        format!(
            "moved in {}\n{}compared, without a difference: {} of PostgreSQL, all timelines; through the API of both stores {}, {}, {} and {}\n\
             The data directory is marked as moved. Start Herald with --store and --timelines on the same JetStream data.",
            time::approximate(Duration::from_secs_f64(self.seconds.max(0.0))),
            parts.concat(),
            counted(self.rows_compared, "row", "rows"),
            counted(self.users_compared, "user", "users"),
            counted(self.posts_compared, "post", "posts"),
            counted(self.dead_letters_compared, "dead letter", "dead letters"),
            counted(self.operations_compared, "operation", "operations"),
        )
    }
}

pub(crate) async fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    refuse_password("--store", "HERALD_STORE__URL", args.store.as_deref())?;
    refuse_password("--timelines", "HERALD_TIMELINES__URL", args.timelines.as_deref())?;
    let flags = Flags::new()
        .set("data_dir", args.data_dir.as_ref())
        .set("store.url", args.store.as_ref())
        .set("timelines.url", args.timelines.as_ref());
    let config = Config::load(context.global.config.as_deref(), flags)
        .map_err(|error| Failure::usage(error.to_string()))?;
    if !config.store.is_cluster() || config.timelines.url.is_empty() {
        return Err(Failure::usage(
            "store.url and timelines.url must be set: the PostgreSQL database (--store, HERALD_STORE__URL, or \
             HERALD_STORE__URL_FILE if it has a password) and Valkey or Redis (--timelines, HERALD_TIMELINES__URL, or \
             HERALD_TIMELINES__URL_FILE)",
        ));
    }
    config
        .check_moved_data_dir()
        .map_err(|error| Failure::failed(error_chain(error.as_ref())))?;
    if !args.plain_devices {
        config
            .check_moved_key()
            .map_err(|error| Failure::usage(error_chain(error.as_ref())))?;
    }
    let shutdown =
        shutdown::on_signal().map_err(|error| Failure::io("can't install the signal handlers", &error))?;
    let started = Instant::now();
    let bar = context.output.progress_bar(
        Some(0),
        "{bar:40} {human_pos}/{human_len} {msg}  {per_sec}  {elapsed}",
    );
    let last = Mutex::new(None);
    let report = |progress: Progress| {
        let now = Some((progress.stage, progress.part));
        if std::mem::replace(&mut *last.lock(), now) != now {
            bar.reset();
            let verb = match progress.stage {
                Stage::Moving => "moved",
                Stage::Comparing => "compared",
            };
            bar.set_message(format!("{} {verb}", progress.part));
        }
        bar.set_length(progress.rows_estimated);
        bar.set_position(progress.rows);
    };
    let moving = Box::pin(config.migrate(BATCH_ROWS, &report));
    let moved = shutdown.run_until_cancelled(moving).await;
    bar.finish_and_clear();
    match moved {
        Some(Ok(moved)) => context.output.show(&MoveResult::new(&moved, started.elapsed())),
        Some(Err(error)) => {
            let kind = match error.kind() {
                ErrorKind::Unavailable => Kind::Unreachable,
                _ => Kind::Failed,
            };
            let failure = Failure::new(kind, error.to_string());
            Err(match error.kind() {
                ErrorKind::Unavailable | ErrorKind::Full => {
                    failure.hint("run the same command again: the move continues where it stopped")
                }
                _ => failure,
            })
        }
        None => Err(Failure::new(Kind::Interrupted, "the move was interrupted")
            .hint("run the same command again: the move continues where it stopped")),
    }
}
