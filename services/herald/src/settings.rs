//! The settings of a server that have a flag: what `herald up` and `herald config` take.

use std::{net::SocketAddr, path::PathBuf};

use clap::ValueHint;
use herald_cli::context::Global;
use herald_runtime::config::Flags;

/// Settings of a server that have a flag. Those not given come from the other layers.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Settings {
    /// Where everything is kept [default: ./herald-data]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    data_dir: Option<PathBuf>,

    /// Where to serve gRPC, port 0 for any free one [default: 127.0.0.1:7700]
    #[arg(long, value_name = "ADDRESS")]
    grpc: Option<SocketAddr>,

    /// Where to serve /healthz, /readyz and /metrics, port 0 for any free one [default: 127.0.0.1:7701]
    #[arg(long, value_name = "ADDRESS")]
    http: Option<SocketAddr>,

    /// The port of the nats-server that is started, 0 for any free one [default: 4222]
    #[arg(long, value_name = "PORT", conflicts_with = "nats_url")]
    nats_port: Option<u16>,

    /// A NATS server that runs already, with JetStream, or several of one cluster with commas between
    #[arg(long, value_name = "URL")]
    nats_url: Option<String>,

    /// Let devices be at plain-http and private addresses; for tests, since it lets callers reach your network
    #[arg(long)]
    allow_private_endpoints: bool,
}

impl Settings {
    /// As the topmost layer, with the global options that a server has too.
    pub(crate) fn flags(&self, global: &Global) -> Flags {
        let allow = self.allow_private_endpoints.then_some(true);
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
