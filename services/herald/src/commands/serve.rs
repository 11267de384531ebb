//! `herald serve`: runs the services of some roles, beside other processes.

use std::net::SocketAddr;

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
    server::{Claim, Config, Role, Roles, Server},
    settings::{ServeSettings, Settings},
};

const LONG: &str = "\
Runs the services of the named roles. Any number of processes, on any number of machines, can have each role; they share \
one NATS server or cluster (--nats-url), one PostgreSQL database (--store) and one Valkey or Redis (--timelines), and \
keep no state of their own. Whichever process starts first makes the streams, the consumers and the schema.

The gateway calls graph, analytics and deadletter, and fanout calls graph: name them with --peer unless the process has \
these roles too. The scaler, for KEDA, needs NATS alone, and is the one role that `herald up` does not have.

Every process answers /healthz (it runs), /readyz (what its roles need is there) and /metrics on --http. On --grpc the \
gateway serves the public API, and on --operator-grpc operators' calls; a process without the gateway serves its internal services and grpc.health.v1, which knows \
each role by its name. SIGTERM drains the work in flight for at most `shutdown_seconds` (25); a second one ends the \
process at once.";

const EXAMPLES: &str = "\
Examples:
  Two processes, one for calls and one for work:
    export HERALD_NATS__URL=nats://10.0.0.1:4222 HERALD_STORE__URL_FILE=/run/secrets/postgres-url
    export HERALD_TIMELINES__URL=redis://10.0.0.3:6379
    export HERALD_PUSH__VAPID_PRIVATE_KEY_FILE=/run/secrets/vapid
    herald serve gateway,archive,graph,analytics,deadletter \\
        --grpc 10.0.0.4:7700 --internal-grpc 10.0.0.4:7703 --insecure-no-auth
    herald serve fanout,timeline,push --peer graph=http://10.0.0.4:7703 \\
        --grpc 127.0.0.1:7710 --http 0.0.0.0:7711
  A worker for urgent posts alone:
    herald serve timeline --lanes high --grpc 127.0.0.1:0 --http 127.0.0.1:0 --output json

Configuration:
  Set all other keys in a file (--config) or the environment; `herald config print` shows them.";

/// Run the services of some roles, beside other processes
#[derive(Debug, clap::Args)]
#[command(long_about = LONG, after_long_help = EXAMPLES)]
pub(crate) struct Args {
    /// The roles of this process, separated by commas or spaces
    #[arg(value_name = "ROLE", value_enum, value_delimiter = ',', required = true, num_args = 1..)]
    roles: Vec<Role>,

    #[command(flatten)]
    settings: Settings,

    #[command(flatten)]
    serve: ServeSettings,
}

/// The output when the process is ready.
#[derive(Debug, Serialize)]
struct Ready {
    event: &'static str,
    roles: Roles,
    grpc: SocketAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    operator_grpc: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    internal_grpc: Option<SocketAddr>,
    http: SocketAddr,
    nats: String,
    herald_pid: u32,
}

impl Show for Ready {
    fn text(&self) -> String {
        let internal = self
            .internal_grpc
            .map_or(String::new(), |internal| format!(", internal {internal}"));
        let operators = self
            .operator_grpc
            .map_or(String::new(), |operators| format!("\n  operators  {operators}"));
        format!(
            "{}: {}\n  gRPC       {}{internal}{operators}\n  metrics    http://{}/metrics\n  NATS       {}\n\nCtrl-C drains and stops the process.",
            style("Herald is ready").green().bold(),
            self.roles,
            self.grpc,
            self.http,
            self.nats
        )
    }
}

/// The output when the process runs and is not ready.
#[derive(Debug, Serialize)]
struct NotReady {
    event: &'static str,
    roles: Roles,
    grpc: SocketAddr,
    http: SocketAddr,
    /// The failing readiness checks.
    checks: Vec<CheckState>,
}

impl Show for NotReady {
    fn text(&self) -> String {
        format!(
            "{}: {} (http://{}/readyz){}\nHerald becomes ready as soon as the cause is gone.",
            style("Herald is not ready").yellow().bold(),
            self.roles,
            self.http,
            ready::reasons(&self.checks),
        )
    }
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let roles: Roles = args.roles.iter().copied().collect();
    if args.serve.names_lanes() && !roles.iter().any(Role::has_lanes) {
        return Err(Failure::usage(format!(
            "--lanes has no effect: {roles} has no lanes; fanout, timeline and push have them"
        )));
    }
    let flags = args.serve.add_to(args.settings.flags(&context.global)?);
    let config = Config::load_for_start(context.global.config.as_deref(), flags, &roles, true)
        .await
        .map_err(Failure::usage)?;
    let telemetry = telemetry::init(&config.telemetry).map_err(|error| Failure::usage(error.to_string()))?;
    let shutdown =
        shutdown::on_signal().map_err(|error| Failure::io("can't install the signal handlers", &error))?;
    let start = async {
        let claim = Claim::new(config, roles.clone(), true).await?;
        Box::pin(Server::start(claim)).await
    };
    // A signal aborts the start at once.
    let Some(started) = shutdown.run_until_cancelled(Box::pin(start)).await else {
        return Ok(());
    };
    let server = started.map_err(|error| Failure::failed(error_chain(error.as_ref())))?;
    let addresses = server.addresses.clone();
    let ready = Ready {
        event: "ready",
        roles,
        grpc: addresses.grpc,
        operator_grpc: addresses.operator_grpc,
        internal_grpc: addresses.internal_grpc,
        http: addresses.http,
        nats: addresses.nats,
        herald_pid: std::process::id(),
    };
    let readiness = server.readiness();
    let meanwhile = async {
        let not_ready = |checks| NotReady {
            event: "not_ready",
            roles: ready.roles.clone(),
            grpc: ready.grpc,
            http: ready.http,
            checks,
        };
        let reported = ready::report(&readiness, &ready, not_ready, context.output);
        shutdown.run_until_cancelled(reported).await;
    };
    run_server::until_shutdown(server, telemetry, &shutdown, meanwhile).await
}
