//! The configuration of the server.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use herald_mesh::TopologyConfig;
use herald_runtime::{config, telemetry};
use herald_store::embedded;
use serde::{Deserialize, Serialize};

/// `HERALD_` variables that are not server settings.
const OTHER_VARIABLES: [&str; 2] = ["HERALD_CACHE", "HERALD_RPC_TIMEOUT"];

/// The configuration of the server: one section per crate.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// The data directory of the store and of nats-server; created if missing.
    pub(crate) data_dir: PathBuf,
    /// Listen address of gRPC; port 0 picks a free port.
    pub(crate) grpc: SocketAddr,
    /// Listen address of `/healthz`, `/readyz` and `/metrics`; port 0 picks a free port.
    pub(crate) http: SocketAddr,
    /// The NATS server.
    pub(crate) nats: Nats,
    /// Logs and traces.
    pub(crate) telemetry: telemetry::Config,
    /// Streams and consumers.
    pub(crate) topology: TopologyConfig,
    /// The embedded store; `data_dir` sets its directory.
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

/// The NATS server: an external one, or a child process.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Nats {
    /// URL of an external server with JetStream, `nats://HOST:PORT`; commas separate the servers of a cluster. Unset:
    /// Herald starts nats-server as a child process.
    pub(crate) url: Option<String>,
    /// Port of the child process; 0 picks a free port.
    pub(crate) port: u16,
    /// Path of the nats-server program. Unset: `$NATS_SERVER`, the PATH, the cache; else Herald downloads it.
    pub(crate) program: Option<PathBuf>,
    /// Whether the child process syncs each message to disk (fsync) before it acknowledges the message. If `false`, a
    /// power failure can lose messages of the last two minutes; a crash of the process loses nothing.
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
    /// Loads the layers in ascending priority: defaults, file, environment, flags. Checks the values.
    pub(crate) fn load(file: Option<&Path>, flags: config::Flags) -> Result<Self, config::Error> {
        Self::load_valid(file, flags, Self::validate)
    }

    /// Loads the layers as [`Config::load`] does, and checks all that a start checks, files included. Must be called
    /// within a tokio runtime.
    pub(crate) async fn load_for_start(file: Option<&Path>, flags: config::Flags) -> Result<Self, String> {
        let check = |config: &Self| {
            config.validate()?;
            config.validate_files()
        };
        let config = Self::load_valid(file, flags, check).map_err(|error| error.to_string())?;
        config.validate_program().await?;
        Ok(config)
    }

    fn load_valid(
        file: Option<&Path>,
        flags: config::Flags,
        validate: impl Fn(&Self) -> Result<(), String>,
    ) -> Result<Self, config::Error> {
        let loader = OTHER_VARIABLES
            .iter()
            .fold(config::Loader::new(), |loader, name| loader.reserve(*name));
        let loader = loader.file(file).flags(flags);
        let config = loader.load_valid(|config: &Self| validate(&config.clone().resolved()))?;
        Ok(config.resolved())
    }

    /// Derives the directories that depend on `data_dir`.
    fn resolved(mut self) -> Self {
        self.store.data_dir.clone_from(&self.data_dir);
        if self.analytics.dir == herald_analytics::Config::default().dir {
            self.analytics.dir = self.data_dir.join("analytics");
        }
        self
    }
}
