//! The configuration of the server.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use herald_mesh::TopologyConfig;
use herald_model::Lane;
use herald_runtime::{
    config::{self, SecretUrl},
    telemetry,
    tls::{InternalTlsConfig, TlsConfig},
};
use herald_store::cluster::TimelinesConfig;
use serde::{Deserialize, Serialize};

use super::{
    nats_config::Nats,
    roles::{Role, Roles},
    store_config::Store,
};

/// `HERALD_` variables that are not server settings.
const OTHER_VARIABLES: [&str; 2] = ["HERALD_CACHE", "HERALD_RPC_TIMEOUT"];

/// The file and the environment.
fn loader(file: Option<&Path>) -> config::Loader {
    let loader = config::Loader::new().file(file);
    OTHER_VARIABLES
        .iter()
        .fold(loader, |loader, name| loader.reserve(*name))
}

/// The configuration of the server: one section per crate.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// The data directory of the store and of nats-server; created if missing.
    pub(crate) data_dir: PathBuf,
    /// Listen address of gRPC; port 0 picks a free port. With the gateway this is the public API, otherwise the internal
    /// services of the process and its health.
    pub(crate) grpc: SocketAddr,
    /// Listen address of operators' calls (dead letters, audits, the state of the mesh) of a process with the gateway;
    /// port 0 picks a free port.
    pub(crate) operator_grpc: SocketAddr,
    /// Listen address of the internal services (graph, analytics, deadletter) of a process that has the gateway too, if
    /// other processes call them. Unset: only this process calls them, without a port.
    pub(crate) internal_grpc: Option<SocketAddr>,
    /// Whether a port may listen where other machines reach it although calls there need no credentials. Without it such a
    /// start is refused.
    pub(crate) insecure_no_auth: bool,
    /// Listen address of `/healthz`, `/readyz` and `/metrics`; port 0 picks a free port.
    pub(crate) http: SocketAddr,
    /// Lanes of fanout, timeline and push: `high`, `normal`, `low`. Several processes can have one lane.
    pub(crate) lanes: Vec<String>,
    /// Time to drain after SIGTERM, seconds; 1 to 3,600. Must be less than the grace period of a pod (30 s by default).
    pub(crate) shutdown_seconds: u64,
    /// Time between the end of readiness and the end of serving calls of `herald serve`, seconds; at most a quarter of
    /// `shutdown_seconds`. In this time other processes notice that they must call another one.
    pub(crate) shutdown_delay_seconds: u64,
    /// Time for which a start waits for NATS, PostgreSQL and the timelines while they don't answer, seconds; at most
    /// 3,600. 0: an unanswered connection ends the process.
    pub(crate) start_wait_seconds: u64,
    /// Where roles of other processes are.
    pub(crate) peers: Peers,
    /// TLS of the public API and of the calls of operators. Unset: plain text.
    pub(crate) tls: TlsConfig,
    /// TLS of the calls between roles. Unset: plain text.
    pub(crate) internal_tls: InternalTlsConfig,
    /// Who may call the gateway.
    pub(crate) auth: herald_auth::Config,
    /// The NATS server.
    pub(crate) nats: Nats,
    /// Logs and traces.
    pub(crate) telemetry: telemetry::Config,
    /// Streams and consumers.
    pub(crate) topology: TopologyConfig,
    /// The store.
    pub(crate) store: Store,
    /// The timelines of the cluster engine.
    pub(crate) timelines: TimelinesConfig,
    /// The archive service.
    pub(crate) archive: herald_archive::Config,
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
    /// The scaler.
    pub(crate) scaler: herald_scaler::Config,
}

/// The addresses of roles that run in other processes, `http://HOST:PORT`, or `https://HOST:PORT` with `internal_tls`; commas
/// separate several. Each name is resolved again every few seconds, and calls are balanced over all addresses.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Peers {
    /// The graph service, for gateway and fanout.
    pub(crate) graph: Option<SecretUrl>,
    /// The analytics service, for gateway.
    pub(crate) analytics: Option<SecretUrl>,
    /// The deadletter service, for gateway.
    pub(crate) deadletter: Option<SecretUrl>,
}

impl Peers {
    /// The address of a role, if it is set.
    pub(super) fn of(&self, role: Role) -> Option<&str> {
        let url = match role {
            Role::Graph => &self.graph,
            Role::Analytics => &self.analytics,
            Role::Deadletter => &self.deadletter,
            _ => &None,
        };
        url.as_ref().filter(|url| !url.is_empty()).map(SecretUrl::expose)
    }
}

impl Default for Config {
    fn default() -> Self {
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Self {
            data_dir: PathBuf::from("herald-data"),
            grpc: local(7700),
            operator_grpc: local(7702),
            internal_grpc: None,
            insecure_no_auth: false,
            http: local(7701),
            lanes: Lane::ALL.map(|lane| lane.as_str().to_owned()).into(),
            shutdown_seconds: 25,
            shutdown_delay_seconds: 2,
            start_wait_seconds: 0,
            peers: Peers::default(),
            tls: TlsConfig::default(),
            internal_tls: InternalTlsConfig::default(),
            auth: herald_auth::Config::default(),
            nats: Nats::default(),
            telemetry: telemetry::Config::default(),
            topology: TopologyConfig::default(),
            store: Store::default(),
            timelines: TimelinesConfig::default(),
            archive: herald_archive::Config::default(),
            gateway: herald_gateway::Config::default(),
            graph: herald_graph::Config::default(),
            fanout: herald_fanout::Config::default(),
            timeline: herald_timeline::Config::default(),
            push: herald_push::Config::default(),
            analytics: herald_analytics::Config::default(),
            deadletter: herald_deadletter::Config::default(),
            scaler: herald_scaler::Config::default(),
        }
    }
}

impl Config {
    /// Loads the layers in ascending priority: defaults, file, environment, flags. Checks the values.
    pub(crate) fn load(file: Option<&Path>, flags: config::Flags) -> Result<Self, config::Error> {
        Self::load_valid(file, flags, Self::validate)
    }

    /// Loads the layers as [`Config::load`] does, and checks all that the start of a process with these roles checks,
    /// files included; with `shared`, of a process of many. Must be called within a tokio runtime.
    pub(crate) async fn load_for_start(
        file: Option<&Path>,
        flags: config::Flags,
        roles: &Roles,
        shared: bool,
    ) -> Result<Self, String> {
        let check = |config: &Self| {
            config.validate()?;
            if shared {
                config.validate_shared(roles)?;
            }
            config.validate_roles(roles)?;
            config.validate_files(roles, shared)
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
        let loader = loader(file).flags(flags);
        let config = loader.load_valid(|config: &Self| validate(&config.clone().resolved()))?;
        Ok(config.resolved())
    }

    /// The configuration of the cluster engine.
    pub(super) fn cluster(&self) -> herald_store::cluster::Config {
        self.store.cluster(&self.timelines)
    }

    /// What is not wrong, and should be done otherwise. `file`: the configuration file.
    pub(crate) fn advice(&self, file: Option<&Path>) -> Vec<String> {
        let keys = [
            ("tls.key_file", self.tls.open_key()),
            ("internal_tls.key_file", self.internal_tls.open_key()),
        ];
        keys.into_iter()
            .filter_map(|(setting, file)| Some((setting, file?)))
            .map(|(setting, file)| {
                format!(
                    "{setting} can be read by every user of this machine: {}; let only the user of Herald read it",
                    file.display()
                )
            })
            .chain(
                loader(file)
                    .open_value_files::<Self>()
                    .iter()
                    .map(ToString::to_string),
            )
            .collect()
    }

    /// The lanes of this process. Unknown names are refused by [`Config::validate`].
    pub(super) fn lanes(&self) -> Vec<Lane> {
        let lanes = Lane::ALL.into_iter();
        lanes
            .filter(|lane| self.lanes.iter().any(|name| name == lane.as_str()))
            .collect()
    }

    /// The limit of a shutdown.
    pub(super) fn shutdown_limit(&self) -> Duration {
        Duration::from_secs(self.shutdown_seconds)
    }

    /// How long a start waits for servers that are away.
    pub(super) fn start_wait(&self) -> Duration {
        Duration::from_secs(self.start_wait_seconds)
    }

    /// Derives the directories that depend on `data_dir`.
    fn resolved(mut self) -> Self {
        if self.analytics.dir == herald_analytics::Config::default().dir {
            self.analytics.dir = self.data_dir.join("analytics");
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// The settings, `section__name`.
    fn settings(prefix: &str, value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    let name = format!("{prefix}{}{name}", if prefix.is_empty() { "" } else { "__" });
                    settings(&name, value, found);
                }
            }
            _ => found.push(prefix.to_owned()),
        }
    }

    /// An error of the layers is read by people: it names the setting and what it must be, and no type of the program.
    #[test]
    fn the_error_of_a_value_of_another_type_is_in_words() {
        const PROGRAM: [&str; 17] = [
            "u8", "u16", "u32", "u64", "usize", "i64", "f32", "f64", "struct", "enum", "sequence", "boolean",
            "string", "map", "syntax", "variant", "expected",
        ];
        let mut found = Vec::new();
        settings("", &serde_json::to_value(Config::default()).unwrap(), &mut found);
        assert!(found.len() > 100, "{found:?}");
        let mut refused = 0;
        for setting in &found {
            let name = format!("HERALD_{}", setting.to_uppercase());
            for value in ["some text", "true", "-1", "1.5", "[{}]"] {
                let loader = config::Loader::defaults().env([(&name, value)]);
                let Err(error) = loader.load::<Config>() else {
                    continue;
                };
                let error = error.to_string();
                let start = format!("{name} in the environment: ");
                let reason = error.strip_prefix(&start).unwrap_or_else(|| panic!("{error}"));
                let reason = reason.strip_prefix("element 1 ").unwrap_or(reason);
                assert!(
                    reason.starts_with("must be ") || reason.starts_with("unknown setting"),
                    "{error}"
                );
                let words: Vec<&str> = reason.split(|c: char| !c.is_ascii_alphanumeric()).collect();
                assert!(!PROGRAM.iter().any(|term| words.contains(term)), "{error}");
                assert!(!reason.contains("another type"), "{error}");
                refused += 1;
            }
        }
        assert!(refused > 500, "{refused}");
    }
}
