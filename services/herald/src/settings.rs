//! The server settings that have a flag, for `herald up` and `herald config`.

use std::{net::SocketAddr, path::PathBuf};

use clap::ValueHint;
use herald_cli::context::Global;
use herald_runtime::config::Flags;

/// Server settings that have a flag. A flag that is not given leaves its key to the other layers.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Settings {
    /// The data directory of the store and of nats-server, created if missing [default: ./herald-data]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    data_dir: Option<PathBuf>,

    /// The listen address of gRPC, IP:PORT; port 0 picks a free port [default: 127.0.0.1:7700]
    #[arg(long, value_name = "ADDRESS")]
    grpc: Option<SocketAddr>,

    /// The listen address of /healthz, /readyz and /metrics, IP:PORT; port 0 picks a free port [default:
    /// 127.0.0.1:7701]
    #[arg(long, value_name = "ADDRESS")]
    http: Option<SocketAddr>,

    /// The port of the nats-server that Herald starts; 0 picks a free port [default: 4222]
    #[arg(long, value_name = "PORT", conflicts_with = "nats_url")]
    nats_port: Option<u16>,

    /// A running NATS server with JetStream, nats://HOST:PORT; separate the servers of a cluster by commas
    #[arg(long, value_name = "URL")]
    nats_url: Option<String>,

    /// Accept devices with plain-http and private addresses; for tests only: callers can then reach your network
    #[arg(long)]
    allow_private_endpoints: bool,
}

impl Settings {
    /// The flags as the topmost configuration layer, including the global options that a server uses.
    pub(crate) fn flags(&self, global: &Global) -> Flags {
        self.flags_allowing_private(global, self.allow_private_endpoints)
    }

    /// As [`Settings::flags`]; `allow_private` accepts devices with plain-http and private addresses.
    pub(crate) fn flags_allowing_private(&self, global: &Global, allow_private: bool) -> Flags {
        let allow = allow_private.then_some(true);
        Flags::new()
            .set("data_dir", self.data_dir.as_ref())
            .set("grpc", self.grpc)
            .set("http", self.http)
            .set("nats.port", self.nats_port)
            .set("nats.url", self.nats_url.as_ref())
            .set("gateway.endpoints.allow_http", allow)
            .set("gateway.endpoints.allow_private", allow)
            .set("push.endpoints.allow_http", allow)
            .set("push.endpoints.allow_private", allow)
            .set("telemetry.log", global.log.as_ref())
            .set("telemetry.otlp", global.otlp.as_ref())
    }
}
