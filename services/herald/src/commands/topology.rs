//! `herald topology`: the streams and consumers.

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
  herald topology apply --nats-url nats://localhost:4222
  HERALD_NATS__CREDENTIALS_FILE=herald.creds herald topology apply --config herald.toml";

/// Create or update the streams and consumers
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Create the missing streams and consumers, and update those that differ from the configuration
    ///
    /// Every `herald serve` does so at its start. Use this command where another account may create streams than the one
    /// of the services, or to see that it works before a deployment. Messages are kept.
    #[command(after_long_help = EXAMPLES)]
    Apply(Apply),
}

#[derive(Debug, clap::Args)]
struct Apply {
    /// The NATS server, nats://HOST:PORT; separate the servers of a cluster by commas
    #[arg(long, value_name = "URL")]
    nats_url: Option<String>,
}

/// The result.
#[derive(Debug, Serialize)]
struct Applied {
    stream_count: u64,
    consumer_count: u64,
}

impl Show for Applied {
    fn text(&self) -> String {
        format!(
            "{} and {} are up to date",
            counted(self.stream_count, "stream", "streams"),
            counted(self.consumer_count, "consumer", "consumers")
        )
    }
}

pub(crate) async fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let Action::Apply(apply) = &args.action;
    refuse_password("--nats-url", "HERALD_NATS__URL", apply.nats_url.as_deref())?;
    let flags = Flags::new().set("nats.url", apply.nats_url.as_ref());
    let config = Config::load(context.global.config.as_deref(), flags)
        .map_err(|error| Failure::usage(error.to_string()))?;
    if config.nats.url.is_empty() {
        return Err(Failure::usage(
            "nats.url must be set: the NATS server, nats://HOST:PORT (--nats-url, HERALD_NATS__URL, or \
             HERALD_NATS__URL_FILE if it has a password)",
        ));
    }
    let topology = config
        .apply_topology()
        .await
        .map_err(|error| Failure::failed(error_chain(error.as_ref())))?;
    context.output.show(&Applied {
        stream_count: topology.streams.len() as u64,
        consumer_count: topology.consumers.len() as u64,
    })
}
