//! The server settings that have a flag, for `herald up`, `herald serve` and `herald config`.

use std::{net::SocketAddr, path::PathBuf, str::FromStr};

use clap::ValueHint;
use herald_cli::{context::Global, failure::Failure};
use herald_runtime::config::{Flags, SecretUrl};

/// Server settings that have a flag. A flag that is not given leaves its key to the other layers.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Settings {
    /// The data directory of the embedded store and of the nats-server that `up` starts, created if missing [default:
    /// ./herald-data]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    data_dir: Option<PathBuf>,

    /// The PostgreSQL database of the store, postgres://HOST:PORT/DATABASE [default of `up`: a store in the
    /// data directory]
    ///
    /// Several processes and machines can share it. A URL with a password must come from HERALD_STORE__URL, from the
    /// file that HERALD_STORE__URL_FILE names, or from the configuration file.
    #[arg(long, value_name = "URL")]
    store: Option<String>,

    /// Valkey or Redis, for the timelines of a --store, redis://HOST:PORT
    ///
    /// A URL with a password must come from HERALD_TIMELINES__URL, from the file that HERALD_TIMELINES__URL_FILE names,
    /// or from the configuration file.
    #[arg(long, value_name = "URL")]
    timelines: Option<String>,

    /// The listen address of gRPC, IP:PORT; port 0 picks a free port [default: 127.0.0.1:7700]
    #[arg(long, value_name = "ADDRESS")]
    grpc: Option<SocketAddr>,

    /// The listen address of operators' calls (dead letters, audits, lag), IP:PORT; of processes with the gateway; port
    /// 0 picks a free port [default: 127.0.0.1:7702]
    #[arg(long, value_name = "ADDRESS")]
    operator_grpc: Option<SocketAddr>,

    /// The listen address of /healthz, /readyz and /metrics, IP:PORT; port 0 picks a free port [default:
    /// 127.0.0.1:7701]
    #[arg(long, value_name = "ADDRESS")]
    http: Option<SocketAddr>,

    /// Accept that other machines can call the gRPC ports without credentials, if these don't listen on loopback
    ///
    /// For networks whose machines are all trusted, or whose firewall lets nobody else in. Without it such a start is
    /// refused.
    #[arg(long)]
    insecure_no_auth: bool,

    /// The port of the nats-server that `up` starts; 0 picks a free port [default: 4222]
    #[arg(long, value_name = "PORT", conflicts_with = "nats_url")]
    nats_port: Option<u16>,

    /// A running NATS server with JetStream, nats://HOST:PORT; separate the servers of a cluster by commas
    ///
    /// Credentials must come from the environment or the configuration file: HERALD_NATS__URL, or the keys `nats.user`,
    /// `nats.password`, `nats.token`, `nats.nkey_seed` and `nats.credentials`, each with a variant for a file, such as
    /// HERALD_NATS__CREDENTIALS_FILE.
    #[arg(long, value_name = "URL")]
    nats_url: Option<String>,

    /// Accept devices with plain-http and private addresses; for tests only: callers can then reach your network
    #[arg(long)]
    allow_private_endpoints: bool,
}

/// Settings of a process beside others, for `herald serve` and `herald config`.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct ServeSettings {
    /// The lanes of fanout, timeline and push, so that lanes scale apart [default: high,normal,low]
    #[arg(long, value_name = "LANE", value_delimiter = ',')]
    lanes: Option<Vec<String>>,

    /// Where a role of other processes is, ROLE=http://HOST:PORT; repeat it for each role
    ///
    /// The roles are graph (called by gateway and fanout), analytics and deadletter (called by gateway). The name is
    /// resolved again every few seconds, and calls are balanced over all its healthy addresses. Commas separate several
    /// URLs of one role.
    #[arg(long, value_name = "ROLE=URL")]
    peer: Vec<PeerUrl>,

    /// The listen address of graph, analytics and deadletter in a process that has the gateway too, if other processes
    /// call them [default: a loopback port, for this process alone]
    #[arg(long, value_name = "ADDRESS")]
    internal_grpc: Option<SocketAddr>,
}

/// A value of `--peer`.
#[derive(Debug, Clone)]
struct PeerUrl {
    role: String,
    url: String,
}

impl FromStr for PeerUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (role, url) = text
            .split_once('=')
            .ok_or("expected ROLE=URL, such as graph=http://10.0.0.1:7700")?;
        if !["graph", "analytics", "deadletter"].contains(&role) {
            return Err(format!("{role:?} is not one of graph, analytics, deadletter"));
        }
        Ok(Self {
            role: role.to_owned(),
            url: url.to_owned(),
        })
    }
}

impl ServeSettings {
    /// Whether the lanes are given.
    pub(crate) fn names_lanes(&self) -> bool {
        self.lanes.is_some()
    }

    /// Adds the flags to the topmost configuration layer.
    pub(crate) fn add_to(&self, mut flags: Flags) -> Flags {
        for peer in &self.peer {
            flags = flags.set(&format!("peers.{}", peer.role), Some(&peer.url));
        }
        flags
            .set("lanes", self.lanes.as_ref())
            .set("internal_grpc", self.internal_grpc)
    }
}

impl Settings {
    /// The flags as the topmost configuration layer, including the global options that a server uses.
    ///
    /// # Errors
    /// A URL on the command line has a password, which other users of the machine could read.
    pub(crate) fn flags(&self, global: &Global) -> Result<Flags, Failure> {
        self.flags_allowing_private(global, self.allow_private_endpoints)
    }

    /// As [`Settings::flags`]; `allow_private` accepts devices with plain-http and private addresses.
    pub(crate) fn flags_allowing_private(
        &self,
        global: &Global,
        allow_private: bool,
    ) -> Result<Flags, Failure> {
        for (flag, variable, url) in [
            ("--nats-url", "HERALD_NATS__URL", &self.nats_url),
            ("--store", "HERALD_STORE__URL", &self.store),
            ("--timelines", "HERALD_TIMELINES__URL", &self.timelines),
        ] {
            refuse_password(flag, variable, url.as_deref())?;
        }
        let allow = allow_private.then_some(true);
        Ok(Flags::new()
            .set("data_dir", self.data_dir.as_ref())
            .set("grpc", self.grpc)
            .set("operator_grpc", self.operator_grpc)
            .set("http", self.http)
            .set("insecure_no_auth", self.insecure_no_auth.then_some(true))
            .set("nats.port", self.nats_port)
            .set("nats.url", self.nats_url.as_ref())
            .set("store.url", self.store.as_ref())
            .set("timelines.url", self.timelines.as_ref())
            .set("gateway.endpoints.allow_http", allow)
            .set("gateway.endpoints.allow_private", allow)
            .set("push.endpoints.allow_http", allow)
            .set("push.endpoints.allow_private", allow)
            .set("telemetry.log", global.log.as_ref())
            .set("telemetry.otlp", global.otlp.as_ref()))
    }
}

/// Refuses a URL with a password on the command line.
pub(crate) fn refuse_password(flag: &str, variable: &str, url: Option<&str>) -> Result<(), Failure> {
    if url.is_some_and(|url| SecretUrl::new(url).has_password()) {
        return Err(Failure::usage(format!(
            "{flag} must not have a password, because other users of this machine can read the command line: set \
             {variable}, or {variable}_FILE to a file with the URL, or the key in the file of --config"
        )));
    }
    Ok(())
}
