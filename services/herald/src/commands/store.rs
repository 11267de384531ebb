//! `herald store`: the schema of the cluster engine.

use clap::Subcommand;
use herald_cli::{
    context::Context,
    failure::Failure,
    output::{Show, counted},
};
use herald_runtime::{config::Flags, telemetry::error_chain};
use serde::Serialize;

use crate::{server::Config, settings::refuse_password};

const EXAMPLES: &str = "\
Examples:
  herald store migrate --store postgres://herald@localhost/herald
  HERALD_STORE__URL_FILE=/run/secrets/postgres-url herald store migrate";

/// Prepare the PostgreSQL database of the store
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Bring the schema of the database up to date
    ///
    /// Every `herald serve` does so at its start, and any number of processes can at once. Use this command where another
    /// database user may change the schema than the one of the services. Migrations don't stop running services.
    #[command(after_long_help = EXAMPLES)]
    Migrate(Migrate),
}

#[derive(Debug, clap::Args)]
struct Migrate {
    /// The PostgreSQL database, postgres://HOST:PORT/DATABASE
    #[arg(long, value_name = "URL")]
    store: Option<String>,
}

/// The result.
#[derive(Debug, Serialize)]
struct Migrated {
    version: i32,
    /// The migrations that were applied now.
    applied: Vec<&'static str>,
}

impl Show for Migrated {
    fn text(&self) -> String {
        if self.applied.is_empty() {
            return format!("the schema has version {}: nothing to do", self.version);
        }
        format!(
            "the schema has version {} now: applied {} ({})",
            self.version,
            counted(self.applied.len() as u64, "migration", "migrations"),
            self.applied.join(", ")
        )
    }
}

pub(crate) async fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let Action::Migrate(migrate) = &args.action;
    refuse_password("--store", "HERALD_STORE__URL", migrate.store.as_deref())?;
    let flags = Flags::new().set("store.url", migrate.store.as_ref());
    let config = Config::load(context.global.config.as_deref(), flags)
        .map_err(|error| Failure::usage(error.to_string()))?;
    if !config.store.is_cluster() {
        return Err(Failure::usage(
            "store.url must be set: the PostgreSQL database, postgres://HOST:PORT/DATABASE (--store, HERALD_STORE__URL, \
             or HERALD_STORE__URL_FILE if it has a password); the embedded store needs no migration",
        ));
    }
    let migrated = config
        .migrate_store()
        .await
        .map_err(|error| Failure::failed(error_chain(error.as_ref())))?;
    context.output.show(&Migrated {
        version: migrated.version,
        applied: migrated.applied,
    })
}
