//! `herald up`: runs all services in one process.

use std::{net::SocketAddr, path::PathBuf};

use console::style;
use herald_cli::{context::Context, failure::Failure, output::Show};
use herald_runtime::{
    http::CheckState,
    shutdown,
    telemetry::{self, error_chain},
};
use serde::Serialize;

use super::{ready, run_server};
use crate::{
    demo,
    server::{Addresses, Claim, Config, Roles, Server},
    settings::Settings,
};

const LONG: &str = "\
Runs all services in one process, with nats-server as a child process and all data in one directory. Prints `Herald is \
ready` when it accepts posts; while posts are refused, for example because the disk is full, it prints the reason. \
Ctrl-C drains the work in flight and stops the server. After a restart or a crash, the server continues with the data \
in the directory.

With --nats-url Herald uses a running NATS server. Otherwise it starts nats-server from $NATS_SERVER (a path), the \
PATH, or from the user's cache, into which it downloads it once. With --store and --timelines the data is in PostgreSQL \
and in Valkey or Redis, which `herald serve` processes can share.";

const EXAMPLES: &str = "\
Examples:
  Start a server with data in ./herald-data:
    herald up
  With a social graph and 10 posts per second:
    herald up --demo
  With PostgreSQL and Redis:
    herald up --store postgres://localhost/herald --timelines redis://localhost:6379
  In a script: free ports, one JSON line when ready:
    herald up --data-dir \"$(mktemp -d)\" --output json \\
        --grpc 127.0.0.1:0 --http 127.0.0.1:0 --nats-port 0

Configuration:
  Set all other keys in a file (--config) or the environment; `herald config print` shows them.";

/// Run all services in one process
#[derive(Debug, clap::Args)]
#[command(long_about = LONG, after_long_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    settings: Settings,

    /// Import a social graph of 4,039 users, submit 10 posts per second and show the pushes to one user
    ///
    /// The receiver of the pushes has a plain-http loopback address. On a loopback --grpc address the server therefore
    /// accepts such devices, as with --allow-private-endpoints.
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

/// The output when the server serves calls and refuses posts.
#[derive(Debug, Serialize)]
struct NotReady {
    event: &'static str,
    grpc: SocketAddr,
    http: SocketAddr,
    /// The failing readiness checks.
    checks: Vec<CheckState>,
}

impl Show for NotReady {
    fn text(&self) -> String {
        format!(
            "{} (gRPC {}, http://{}/readyz){}\nHerald becomes ready as soon as the cause is gone.",
            style("Herald is not ready: posts are refused").yellow().bold(),
            self.grpc,
            self.http,
            ready::reasons(&self.checks),
        )
    }
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let (config, demo_pushes) = load_config(&args, context).await?;
    let telemetry = telemetry::init(&config.telemetry).map_err(|error| Failure::usage(error.to_string()))?;
    let shutdown =
        shutdown::on_signal().map_err(|error| Failure::io("can't install the signal handlers", &error))?;
    let data_dir = config.data_dir.clone();
    let start = async {
        let claim = Claim::new(config, Roles::whole(), false).await?;
        let note = format!("starting with data in {}", data_dir.display());
        context.output.note(&note);
        Box::pin(Server::start(claim)).await
    };
    // Ctrl-C aborts the start at once, for example during a download of nats-server.
    let Some(started) = shutdown.run_until_cancelled(Box::pin(start)).await else {
        return Ok(());
    };
    let server = started.map_err(|error| Failure::failed(error_chain(error.as_ref())))?;
    let Addresses {
        grpc,
        http,
        nats,
        nats_pid,
        ..
    } = server.addresses.clone();
    let ready = Ready {
        event: "ready",
        grpc,
        http,
        nats,
        herald_pid: std::process::id(),
        nats_pid,
        data_dir,
        demo: args.demo,
    };
    let readiness = server.readiness();
    let meanwhile = async {
        let not_ready = |checks| NotReady {
            event: "not_ready",
            grpc,
            http,
            checks,
        };
        let reported = ready::report(&readiness, &ready, not_ready, context.output);
        let reported = shutdown.run_until_cancelled(reported);
        if reported.await.is_some() && args.demo {
            let url = format!("http://{grpc}");
            if let Err(failure) = demo::run(url, context.output, demo_pushes, shutdown.clone()).await {
                tracing::error!(error = failure.message(), "demo failed");
            }
        }
    };
    run_server::until_shutdown(server, telemetry, &shutdown, meanwhile).await
}

/// Loads the configuration, and decides whether the demo receives pushes: its receiver has a plain-http loopback
/// address, which only a server on loopback accepts for it.
async fn load_config(args: &Args, context: &Context) -> Result<(Config, bool), Failure> {
    let (file, global) = (context.global.config.as_deref(), &context.global);
    let flags = args.settings.flags(global)?;
    let config = Config::load_for_start(file, flags, &Roles::whole(), false)
        .await
        .map_err(Failure::usage)?;
    let accepts = config.gateway.endpoints.allow_http && config.gateway.endpoints.allow_private;
    if !args.demo || accepts {
        return Ok((config, args.demo));
    }
    if !config.grpc.ip().is_loopback() {
        context.output.note(
            "demo: shows no pushes, because the gRPC port is reachable from other machines; \
             add --allow-private-endpoints to show them",
        );
        return Ok((config, false));
    }
    let flags = args.settings.flags_allowing_private(global, true)?;
    let config = Config::load(file, flags).map_err(|error| Failure::usage(error.to_string()))?;
    Ok((config, true))
}
