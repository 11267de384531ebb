//! `herald up`: a whole mesh in one process.

use std::{net::SocketAddr, path::PathBuf};

use console::style;
use herald_cli::{context::Context, failure::Failure, output::Show};
use herald_runtime::{shutdown, telemetry};
use serde::Serialize;

use crate::{
    demo,
    server::{Addresses, Config, Server},
    settings::Settings,
};

const LONG: &str = "\
Runs every service in one process, with a real nats-server as its child and everything stored in one directory. It is \
ready when it says so; Ctrl-C drains what is under way and ends it. Started again on the same directory it goes on where it \
was, also after a crash.

The nats-server comes from --nats-url (one that runs already), else $NATS_SERVER (a path), else the PATH, else it is \
fetched once into the user's cache.";

const EXAMPLES: &str = "\
Examples:
  A mesh to try things on, with data in ./herald-data:
    herald up
  The same with a real social graph in it and ten posts a second:
    herald up --demo
  For a script: any free ports, one JSON line when it is ready:
    herald up --data-dir \"$(mktemp -d)\" --grpc 127.0.0.1:0 --http 127.0.0.1:0 --nats-port 0 --output json

Configuration:
  Everything else is set in a file (--config) or the environment; `herald config print` shows all of it.";

/// Runs a whole mesh in one process, for a laptop or a first look
#[derive(Debug, clap::Args)]
#[command(long_about = LONG, after_long_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    settings: Settings,

    /// Load a real social graph and keep posting, ten posts a second
    #[arg(long)]
    demo: bool,
}

/// What is said when everything runs.
#[derive(Debug, Serialize)]
struct Ready {
    event: &'static str,
    grpc: SocketAddr,
    http: SocketAddr,
    nats: String,
    herald_pid: u32,
    nats_pid: Option<u32>,
    data_dir: PathBuf,
    #[serde(skip)]
    demo: bool,
}

impl Show for Ready {
    fn text(&self) -> String {
        let server = if self.grpc == Config::default().grpc {
            String::new()
        } else {
            format!(" --server {}", self.grpc)
        };
        let next = if self.demo {
            format!("  herald watch 107{server}\n  herald lag --watch{server}\n  herald stats{server}")
        } else {
            format!(
                "  herald follow 1 107 --notify{server}\n  herald post --author 107 --text 'hello, followers'{server}\n  \
                 herald timeline 1{server}\n  herald delivery 1{server}"
            )
        };
        format!(
            "{}\n  gRPC     {}\n  metrics  http://{}/metrics\n  NATS     {}\n  data     {}\n\nTry, in another terminal:\n{next}\n\nCtrl-C \
             drains and ends it.",
            style("Herald is ready").green().bold(),
            self.grpc,
            self.http,
            self.nats,
            self.data_dir.display(),
        )
    }
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let config = Config::load(
        context.global.config.as_deref(),
        args.settings.flags(&context.global),
    )
    .map_err(|error| Failure::usage(error.to_string()))?;
    let telemetry = telemetry::init(&config.telemetry).map_err(|error| Failure::usage(error.to_string()))?;
    let shutdown =
        shutdown::on_signal().map_err(|error| Failure::io("signals can't be listened for", &error))?;
    let data_dir = config.data_dir.clone();
    context
        .output
        .note(&format!("starting in {}", data_dir.display()));
    // A Ctrl-C while it starts (nats-server may be on its way over the network) ends it at once.
    let Some(started) = shutdown
        .run_until_cancelled(Box::pin(Server::start(config)))
        .await
    else {
        return Ok(());
    };
    let server = started.map_err(|error| Failure::failed(format!("{error:#}")))?;
    let Addresses {
        grpc,
        http,
        nats,
        nats_pid,
    } = server.addresses.clone();
    let herald_pid = std::process::id();
    context.output.show(&Ready {
        event: "ready",
        grpc,
        http,
        nats,
        herald_pid,
        nats_pid,
        data_dir,
        demo: args.demo,
    })?;
    if args.demo {
        let demo = demo::run(format!("http://{grpc}"), context.output);
        tokio::spawn(shutdown.clone().run_until_cancelled_owned(async move {
            if let Err(failure) = demo.await {
                tracing::error!(error = failure.message(), "the demo ended");
            }
        }));
    }
    let ended = server
        .run(shutdown)
        .await
        .map_err(|error| Failure::failed(format!("{error:#}")));
    telemetry.shutdown().await;
    ended
}
