//! `herald topology`: the streams and consumers.

mod permissions;

use std::path::PathBuf;

use clap::{Subcommand, ValueHint};
use herald_cli::{
    context::Context,
    failure::Failure,
    output::{Show, counted},
};
use herald_mesh::Difference;
use herald_runtime::{config::Flags, telemetry::error_chain};
use serde::Serialize;

use crate::{server::Config, settings::refuse_password};

const EXAMPLES: &str = "\
Examples:
  Of `herald up`:
    herald topology apply --data-dir herald-data
  herald topology apply --nats-url nats://localhost:4222
  HERALD_NATS__CREDENTIALS_FILE=herald.creds herald topology apply --config herald.toml";

const VERIFY_EXAMPLES: &str = "\
Examples:
  Of `herald up`:
    herald topology verify --data-dir herald-data
  herald topology verify --nats-url nats://localhost:4222
  herald topology verify --config herald.toml --output json";

const PERMISSIONS_EXAMPLES: &str = "\
Examples:
  herald topology permissions > nats-authorization.conf
  herald topology permissions --output json";

/// Create, update or compare the streams and consumers, and print who may use them
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
    /// Every `herald serve` does so at its start, unless `nats.topology` is `verify`. Use this command where another
    /// account may create streams than the one of the services, or to see that it works before a deployment. Messages
    /// are kept.
    #[command(after_long_help = EXAMPLES)]
    Apply(Server),
    /// Compare the streams and consumers with the configuration, and change nothing
    ///
    /// Prints what is missing or differs, with exit code 1, where other tools than `herald topology apply` make the
    /// streams and consumers. Settings that Herald leaves to you, such as placement and description, are not compared.
    #[command(after_long_help = VERIFY_EXAMPLES)]
    Verify(Server),
    /// Print the users of nats-server, each with the right to do what its role does and nothing else
    ///
    /// Include the text in the configuration of nats-server. Each user is known by its NKey, whose public part is in a
    /// variable of nats-server's environment, such as NATS_NKEY_GATEWAY. The processes have the seeds and the setting
    /// `nats.topology = \"verify\"`; `herald topology apply` has that of `topology`.
    #[command(after_long_help = PERMISSIONS_EXAMPLES)]
    Permissions,
}

#[derive(Debug, clap::Args)]
struct Server {
    /// The data directory of a running `herald up`, whose NATS server is found in it [default: ./herald-data]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    data_dir: Option<PathBuf>,

    /// The NATS server, nats://HOST:PORT; separate the servers of a cluster by commas
    #[arg(long, value_name = "URL")]
    nats_url: Option<String>,
}

/// The result of `apply`.
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

/// The result of `verify`.
#[derive(Debug, Serialize)]
struct Verified {
    stream_count: u64,
    consumer_count: u64,
    differences: Vec<Difference>,
}

impl Show for Verified {
    fn text(&self) -> String {
        if self.differences.is_empty() {
            return format!(
                "{} and {} are as configured",
                counted(self.stream_count, "stream", "streams"),
                counted(self.consumer_count, "consumer", "consumers")
            );
        }
        let lines: Vec<_> = self.differences.iter().map(ToString::to_string).collect();
        lines.join("\n")
    }
}

pub(crate) async fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    match &args.action {
        Action::Apply(server) => apply(server, context).await,
        Action::Verify(server) => verify(server, context).await,
        Action::Permissions => permissions::run(context),
    }
}

async fn apply(server: &Server, context: &Context) -> Result<(), Failure> {
    let topology = server
        .config(context)?
        .apply_topology()
        .await
        .map_err(|error| Failure::failed(error_chain(error.as_ref())))?;
    context.output.show(&Applied {
        stream_count: topology.streams.len() as u64,
        consumer_count: topology.consumers.len() as u64,
    })
}

async fn verify(server: &Server, context: &Context) -> Result<(), Failure> {
    let (topology, differences) = server
        .config(context)?
        .verify_topology()
        .await
        .map_err(|error| Failure::failed(error_chain(error.as_ref())))?;
    let count = differences.len() as u64;
    context.output.show(&Verified {
        stream_count: topology.streams.len() as u64,
        consumer_count: topology.consumers.len() as u64,
        differences,
    })?;
    if count > 0 {
        return Err(Failure::failed(format!(
            "{} or differ from the configuration: run `herald topology apply`, or change them or the configuration",
            counted(
                count,
                "stream or consumer is missing",
                "streams or consumers are missing"
            ),
        )));
    }
    Ok(())
}

impl Server {
    fn config(&self, context: &Context) -> Result<Config, Failure> {
        refuse_password("--nats-url", "HERALD_NATS__URL", self.nats_url.as_deref())?;
        let flags = Flags::new()
            .set("data_dir", self.data_dir.as_ref())
            .set("nats.url", self.nats_url.as_ref());
        let config = Config::load(context.global.config.as_deref(), flags)
            .map_err(|error| Failure::usage(error.to_string()))?;
        if config.nats.is_child() && self.data_dir.is_none() && !config.data_dir.exists() {
            return Err(Failure::usage(
                "nats.url must be set: the NATS server, nats://HOST:PORT (--nats-url, HERALD_NATS__URL, or \
                 HERALD_NATS__URL_FILE if it has a password); or name the data directory of `herald up` with --data-dir",
            ));
        }
        Ok(config)
    }
}
