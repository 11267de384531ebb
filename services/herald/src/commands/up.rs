//! `herald up`: runs all services in one process.

use std::{
    ffi::OsString,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
};

use console::style;
use herald_cli::{
    caller::{CallerTls, Credential},
    context::Context,
    failure::Failure,
    output::Show,
};
use herald_runtime::{
    config::Flags,
    http::CheckState,
    shutdown,
    telemetry::{self, LogFormat, error_chain},
    tls::{ClientFiles, ClientTls, Protocols, ServerTls, TlsConfig},
};
use serde::Serialize;

use super::{ready, run_server};
use crate::{
    demo,
    server::{Addresses, Claim, Config, Roles, Server, root_key},
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
  Over TLS, with a private authority in the data directory:
    herald up --tls
  With PostgreSQL and Redis:
    herald up --store postgres://localhost/herald --timelines redis://localhost:6379
  In a script: free ports, one JSON line when ready:
    herald up --data-dir \"$(mktemp -d)\" --output json \\
        --grpc 127.0.0.1:0 --operator-grpc 127.0.0.1:0 --http 127.0.0.1:0 --nats-port 0

Configuration:
  Set all other keys in a file (--config) or the environment; `herald config print` shows them.";

/// Run all services in one process
#[derive(Debug, clap::Args)]
#[command(long_about = LONG, after_long_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    settings: Settings,

    /// Refuse calls without an API key, the root key or a token
    ///
    /// The root key allows everything, also `herald key create`. It is made at the first start, in the file `root-key` of
    /// the data directory; clients get it with --token-file. Same as the setting `auth.enabled`.
    #[arg(long)]
    auth: bool,

    /// Import a social graph of 4,039 users, submit 10 posts per second and show the pushes to one user
    ///
    /// The receiver of the pushes has a plain-http loopback address. On a loopback --grpc address the server therefore
    /// accepts such devices, as with --allow-private-endpoints.
    #[arg(long)]
    demo: bool,

    /// Serve gRPC over TLS, with a certificate of a private authority in the data directory
    ///
    /// Both are made at the first start, for localhost, 127.0.0.1, ::1 and the name of this machine. The certificate is made
    /// again at a start within 30 days of its end. For a certificate of your own set `tls.cert_file` and `tls.key_file`.
    #[arg(long)]
    tls: bool,
}

/// The output when the server is ready.
#[derive(Debug, Serialize)]
struct Ready {
    event: &'static str,
    grpc: SocketAddr,
    operator_grpc: Option<SocketAddr>,
    http: SocketAddr,
    nats: String,
    herald_pid: u32,
    nats_pid: Option<u32>,
    data_dir: PathBuf,
    /// With authentication: the file with the root key, unless the key is in the configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    root_key_file: Option<PathBuf>,
    /// Whether gRPC is over TLS.
    tls: bool,
    /// The authority of `--tls`.
    #[serde(skip_serializing_if = "Option::is_none")]
    ca_file: Option<PathBuf>,
    #[serde(skip)]
    demo: bool,
}

impl Ready {
    /// The options by which commands find the ports, and what to type before them.
    fn way(&self) -> Way {
        let default = Config::default();
        if self.tls {
            let variable = |name: &str, value: String| format!(" HERALD_{name}={value}");
            let operators = self.operator_grpc.map(|address| server_url(address, true));
            let authority = self.ca_file.as_ref().map(|file| quoted(&file.to_string_lossy()));
            let variables = [
                Some(variable("SERVER", server_url(self.grpc, true))),
                operators.map(|url| variable("OPERATOR_SERVER", url)),
                authority.map(|file| variable("CA_FILE", file)),
            ];
            let variables: String = variables.into_iter().flatten().collect();
            return Way {
                before: format!("  export{variables}\n"),
                ..Way::default()
            };
        }
        let option = |name: &str, address: SocketAddr, default: SocketAddr| {
            let address = on_this_machine(address);
            if address == default {
                String::new()
            } else {
                format!(" --{name} {address}")
            }
        };
        Way {
            server: option("server", self.grpc, default.grpc),
            operators: self.operator_grpc.map_or_else(String::new, |address| {
                option("operator-server", address, default.operator_grpc)
            }),
            before: String::new(),
        }
    }
}

/// How commands find the ports.
#[derive(Default)]
struct Way {
    server: String,
    operators: String,
    before: String,
}

/// Where a command on this machine reaches a port: an address of all interfaces is none to call.
fn on_this_machine(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

/// The URL of a port for a command on this machine.
fn server_url(address: SocketAddr, tls: bool) -> String {
    let scheme = if tls { "https" } else { "http" };
    if address.ip().is_unspecified() {
        format!("{scheme}://localhost:{}", address.port())
    } else {
        format!("{scheme}://{address}")
    }
}

impl Show for Ready {
    fn text(&self) -> String {
        let Way {
            server,
            operators,
            before,
        } = self.way();
        let herald = program(std::env::args_os().next());
        let (root_key, token) = match &self.root_key_file {
            Some(file) => (
                format!("\n  root key   {}", file.display()),
                format!("  export HERALD_TOKEN_FILE={}\n", quoted(&file.to_string_lossy())),
            ),
            None => <_>::default(),
        };
        let next = if self.demo {
            format!(
                "  {herald} watch 107{server}\n  {herald} lag --watch{operators}\n  {herald} stats{server}"
            )
        } else {
            format!(
                "  {herald} follow 1 107 --notify{server}\n  {herald} post --author 107 --text 'hello, followers'{server}\n  \
                 {herald} timeline 1{server}\n  {herald} delivery 1{server}"
            )
        };
        format!(
            "{}\n  gRPC       {}\n  operators  {}\n  metrics    http://{}/metrics\n  NATS       {}\n  data       {}{root_key}\n\nTry, in another terminal:\n{before}{token}{next}\n\nCtrl-C \
             drains and stops the server.",
            style("Herald is ready").green().bold(),
            self.grpc,
            self.operator_grpc
                .map_or_else(String::new, |address| address.to_string()),
            self.http,
            self.nats,
            self.data_dir.display(),
        )
    }
}

/// How the user has called this program, for the shell: `herald` can be missing on the PATH.
fn program(called: Option<OsString>) -> String {
    let called = called.and_then(|called| called.into_string().ok());
    quoted(&called.unwrap_or_else(|| "herald".into()))
}

/// A word for the shell.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+~".contains(c);
    if word.chars().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
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
    let logs_json = config.telemetry.log_format == LogFormat::Json;
    // A reader of JSON lines gets no other ones.
    let note = |text: &str| {
        if logs_json {
            tracing::info!("{text}");
        } else {
            context.output.note(text);
        }
    };
    let data_dir = config.data_dir.clone();
    let is_open = config.is_open_to_local_programs(&Roles::whole());
    let has_own_certificate = config.tls.cert_file.is_some();
    let root_key_file = (config.auth.enabled && config.auth.root_key.is_empty()).then(|| {
        let file = root_key::path(&data_dir);
        // For a terminal in another directory.
        std::path::absolute(&file).unwrap_or(file)
    });
    let start = async {
        let mut claim = Claim::new(config, Roles::whole(), false).await?;
        let root_key = claim.root_key().clone();
        note(&format!("starting with data in {}", data_dir.display()));
        if is_open {
            note(
                "calls need no credentials: every program of this machine can read and change everything (--auth or \
                 auth.enabled asks for keys)",
            );
        }
        let issued = if args.tls {
            Some(claim.use_private_certificate()?)
        } else {
            None
        };
        let tls = claim.tls().clone();
        anyhow::Ok((Box::pin(Server::start(claim)).await?, root_key, issued, tls))
    };
    // Ctrl-C aborts the start at once, for example during a download of nats-server.
    let Some(started) = shutdown.run_until_cancelled(Box::pin(start)).await else {
        return Ok(());
    };
    let (server, root_key, issued, tls) =
        started.map_err(|error| Failure::failed(error_chain(error.as_ref())))?;
    let ca_file = issued.map(|issued| issued.authority);
    let Addresses {
        grpc,
        operator_grpc,
        http,
        nats,
        nats_pid,
        ..
    } = server.addresses.clone();
    let ready = Ready {
        event: "ready",
        grpc,
        operator_grpc,
        http,
        nats,
        herald_pid: std::process::id(),
        nats_pid,
        data_dir,
        root_key_file,
        tls: args.tls || has_own_certificate,
        ca_file,
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
            let url = server_url(grpc, ready.tls);
            let demo = async {
                let credential = if root_key.is_empty() {
                    Credential::default()
                } else {
                    Credential::new(root_key.expose())?
                };
                demo::run(
                    url,
                    credential,
                    to_own_port(&tls)?,
                    context.output,
                    demo_pushes,
                    shutdown.clone(),
                )
                .await
            };
            if let Err(failure) = demo.await {
                tracing::error!(error = failure.message(), "demo failed");
            }
        }
    };
    run_server::until_shutdown(server, telemetry, &shutdown, meanwhile).await
}

/// TLS of the demo's calls to the gRPC port of this process: accepts the certificate of that port, whatever its
/// authority is. If clients must have a certificate, it shows the certificate of the port as its own.
fn to_own_port(config: &TlsConfig) -> Result<CallerTls, Failure> {
    let Some(files) = config.server() else {
        return Ok(CallerTls::Files(ClientFiles::default()));
    };
    let identity = config
        .requires_client_certificates()
        .then(|| (files.certificate.clone(), files.key.clone()));
    ServerTls::open(&files, Protocols::Http2)
        .and_then(|port| ClientTls::to_self(&port, identity))
        .map(CallerTls::Made)
        .map_err(|error| Failure::failed(format!("tls.{error}")))
}

/// Loads the configuration, and decides whether the demo receives pushes: its receiver has a plain-http loopback
/// address, which only a server on loopback accepts for it.
async fn load_config(args: &Args, context: &Context) -> Result<(Config, bool), Failure> {
    let (file, global) = (context.global.config.as_deref(), &context.global);
    let with_auth = |flags: Flags| flags.set("auth.enabled", args.auth.then_some(true));
    let flags = with_auth(args.settings.flags(global)?);
    let config = Config::load_for_start(file, flags, &Roles::whole(), false)
        .await
        .map_err(Failure::usage)?;
    if args.tls && config.tls.cert_file.is_some() {
        return Err(Failure::usage(
            "--tls makes a certificate of its own: leave it out, or unset tls.cert_file and tls.key_file",
        ));
    }
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
    let flags = with_auth(args.settings.flags_allowing_private(global, true)?);
    let config = Config::load(file, flags).map_err(|error| Failure::usage(error.to_string()))?;
    Ok((config, true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_called_as_the_user_did() {
        assert_eq!(program(Some("herald".into())), "herald");
        assert_eq!(
            program(Some("target/release/herald".into())),
            "target/release/herald"
        );
        assert_eq!(program(Some("/my tools/herald".into())), "'/my tools/herald'");
        assert_eq!(program(None), "herald");
    }

    fn ready(grpc: &str, operator_grpc: &str) -> Ready {
        Ready {
            event: "ready",
            grpc: grpc.parse().unwrap(),
            operator_grpc: operator_grpc.parse().ok(),
            http: "127.0.0.1:7701".parse().unwrap(),
            nats: "nats://127.0.0.1:4222".into(),
            herald_pid: 1,
            nats_pid: None,
            data_dir: "my data".into(),
            root_key_file: Some("/my data/root-key".into()),
            tls: false,
            ca_file: None,
            demo: false,
        }
    }

    #[test]
    fn the_printed_address_can_be_called() {
        for (grpc, operators, way) in [
            ("127.0.0.1:7700", "127.0.0.1:7702", ["", ""]),
            ("0.0.0.0:7700", "0.0.0.0:7702", ["", ""]),
            (
                "0.0.0.0:7800",
                "[::]:7802",
                [" --server 127.0.0.1:7800", " --operator-server [::1]:7802"],
            ),
            (
                "10.0.0.4:7700",
                "10.0.0.4:7702",
                [" --server 10.0.0.4:7700", " --operator-server 10.0.0.4:7702"],
            ),
        ] {
            let found = ready(grpc, operators).way();
            assert_eq!([found.server, found.operators], way);
        }
    }

    #[test]
    fn the_printed_file_of_the_root_key_is_a_word_of_the_shell() {
        let text = ready("127.0.0.1:7700", "127.0.0.1:7702").text();
        assert!(
            text.contains("export HERALD_TOKEN_FILE='/my data/root-key'\n"),
            "{text}"
        );
    }
}
