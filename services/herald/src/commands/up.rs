//! `herald up`: runs all services in one process.

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
Runs all services in one process, with nats-server as a child process and all data in one directory. Prints `Herald is \
ready` when it accepts calls. Ctrl-C drains the work in flight and stops the server. After a restart or a crash, the \
server continues with the data in the directory.

With --nats-url Herald uses a running NATS server. Otherwise it starts nats-server from $NATS_SERVER (a path), the \
PATH, or from the user's cache, into which it downloads it once.";

const EXAMPLES: &str = "\
Examples:
  Start a server with data in ./herald-data:
    herald up
  With a social graph and 10 posts per second:
    herald up --demo
  In a script: free ports, one JSON line when ready:
    herald up --data-dir \"$(mktemp -d)\" --grpc 127.0.0.1:0 --http 127.0.0.1:0 --nats-port 0 --output json

Configuration:
  Set all other keys in a file (--config) or the environment; `herald config print` shows them.";

/// Run all services in one process
#[derive(Debug, clap::Args)]
#[command(long_about = LONG, after_long_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    settings: Settings,

    /// Import a social graph of 4,039 users and submit 10 posts per second
    #[arg(long)]
    demo: bool,
}

/// The output when the server is ready.
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
             drains and stops the server.",
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
        shutdown::on_signal().map_err(|error| Failure::io("can't install the signal handlers", &error))?;
    let data_dir = config.data_dir.clone();
    context
        .output
        .note(&format!("starting with data in {}", data_dir.display()));
    // Ctrl-C aborts the start at once, for example during a download of nats-server.
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
                tracing::error!(error = failure.message(), "demo failed");
            }
        }));
    }
    let result = server
        .run(shutdown)
        .await
        .map_err(|error| Failure::failed(format!("{error:#}")));
    telemetry.shutdown().await;
    result
}
