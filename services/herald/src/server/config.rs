//! What a server can be set to.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use herald_mesh::TopologyConfig;
use herald_runtime::{config, telemetry};
use herald_store::embedded;
use serde::{Deserialize, Serialize};

/// Variables that start with `HERALD_` and are no settings of the server.
const OTHER_VARIABLES: [&str; 2] = ["HERALD_CACHE", "HERALD_RPC_TIMEOUT"];

/// The configuration of a server: one part a crate.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// Where everything is kept; made when it isn't there.
    pub(crate) data_dir: PathBuf,
    /// Where to serve gRPC; port 0 is any free one.
    pub(crate) grpc: SocketAddr,
    /// Where to serve `/healthz`, `/readyz` and `/metrics`; port 0 is any free one.
    pub(crate) http: SocketAddr,
    /// The NATS server.
    pub(crate) nats: Nats,
    /// Logs and traces.
    pub(crate) telemetry: telemetry::Config,
    /// Streams and consumers.
    pub(crate) topology: TopologyConfig,
    /// The embedded store; its directory is always `data_dir`.
    pub(crate) store: embedded::Config,
    /// The gateway service.
    pub(crate) gateway: herald_gateway::Config,
    /// The graph service.
    pub(crate) graph: herald_graph::Config,
    /// The fanout service.
    pub(crate) fanout: herald_fanout::Config,
    /// The timeline service.
    pub(crate) timeline: herald_timeline::Config,
    /// The push service.
    pub(crate) push: herald_push::Config,
    /// The analytics service.
    pub(crate) analytics: herald_analytics::Config,
    /// The deadletter service.
    pub(crate) deadletter: herald_deadletter::Config,
}

/// The NATS server: one that runs already, or one to run as a child.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Nats {
    /// A server that runs already, with JetStream: `nats://HOST:PORT`; several servers of one cluster with commas between.
    /// Unset: one is started.
    pub(crate) url: Option<String>,
    /// The port of the one that is started; 0 is any free one.
    pub(crate) port: u16,
    /// The nats-server program. Unset: `$NATS_SERVER`, the PATH, the cache, else it is fetched.
    pub(crate) program: Option<PathBuf>,
    /// Whether the one that is started writes each message to the disk before it answers. Without it, a machine that loses
    /// power can lose what was accepted in the last two minutes; a process that dies loses nothing.
    pub(crate) sync_always: bool,
}

impl Default for Nats {
    fn default() -> Self {
        Self {
            url: None,
            port: 4222,
            program: None,
            sync_always: false,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Self {
            data_dir: PathBuf::from("herald-data"),
            grpc: local(7700),
            http: local(7701),
            nats: Nats::default(),
            telemetry: telemetry::Config::default(),
            topology: TopologyConfig::default(),
            store: embedded::Config::default(),
            gateway: herald_gateway::Config::default(),
            graph: herald_graph::Config::default(),
            fanout: herald_fanout::Config::default(),
            timeline: herald_timeline::Config::default(),
            push: herald_push::Config::default(),
            analytics: herald_analytics::Config::default(),
            deadletter: herald_deadletter::Config::default(),
        }
    }
}

impl Config {
    /// Reads the layers: defaults, the file, the environment, and then the flags.
    pub(crate) fn load(file: Option<&std::path::Path>, flags: config::Flags) -> Result<Self, config::Error> {
        let loader = OTHER_VARIABLES
            .iter()
            .fold(config::Loader::new(), |loader, name| loader.reserve(*name));
        let mut config: Self = loader.file(file).flags(flags).load_valid(Self::validate)?;
        config.store.data_dir.clone_from(&config.data_dir);
        if config.analytics.dir == herald_analytics::Config::default().dir {
            config.analytics.dir = config.data_dir.join("analytics");
        }
        Ok(config)
    }

    fn validate(&self) -> Result<(), String> {
        self.topology
            .validate()
            .map_err(|error| format!("topology.{error}"))?;
        self.gateway.validate()?;
        self.graph.validate()?;
        self.fanout.validate()?;
        self.timeline.validate()?;
        self.push.validate()?;
        if self.gateway.endpoints != self.push.endpoints {
            return Err(
                "gateway.endpoints and push.endpoints must be the same: what is registered is what is called"
                    .into(),
            );
        }
        self.analytics.validate()?;
        self.deadletter.validate()
    }
}
