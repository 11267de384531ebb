//! Checks of the configuration. `herald up` and `herald config check` share them.

use std::path::Path;

use herald_local_nats as local;
use herald_mesh::TopologyMode;
use herald_model::Lane;
use herald_runtime::{
    config::{SecretUrl, check_bounds},
    peer::Urls,
    telemetry,
};
use rustix::fs::{Access, access};

use super::{
    Config, broker,
    roles::{Role, Roles},
};

impl Config {
    /// Checks the values, and reads no file. The error starts with the key of the invalid setting.
    pub(super) fn validate(&self) -> Result<(), String> {
        self.validate_addresses()?;
        self.topology
            .validate()
            .map_err(|error| format!("topology.{error}"))?;
        self.validate_process()?;
        self.tls.validate().map_err(|error| format!("tls.{error}"))?;
        self.internal_tls
            .validate()
            .map_err(|error| format!("internal_tls.{error}"))?;
        self.auth.validate()?;
        self.validate_broker()?;
        self.store.validate(&self.timelines)?;
        self.archive.validate()?;
        self.gateway.validate()?;
        self.graph.validate()?;
        self.fanout.validate()?;
        self.timeline.validate()?;
        self.push.validate()?;
        if self.gateway.endpoints != self.push.endpoints {
            return Err(
                "gateway.endpoints must equal push.endpoints: push sends to the endpoints that gateway accepts".into(),
            );
        }
        if self.gateway.request_keep_hours < self.store.request_keep_hours {
            return Err(format!(
                "gateway.request_keep_hours must be at least store.request_keep_hours ({}), is {}: otherwise a request \
                 that is repeated while the store is away could make a second post",
                self.store.request_keep_hours, self.gateway.request_keep_hours
            ));
        }
        self.analytics.validate()?;
        self.deadletter.validate()?;
        self.scaler.validate()
    }

    /// Checks the files and directories that the start of a process with these roles reads or writes. Changes nothing.
    /// The error starts with the key of the invalid setting. Must be called within a tokio runtime.
    pub(super) fn validate_files(&self, roles: &Roles, shared: bool) -> Result<(), String> {
        telemetry::check(&self.telemetry).map_err(|error| match error {
            telemetry::Error::Filter { origin, .. } if origin.starts_with("log") => {
                format!("telemetry.{error}")
            }
            telemetry::Error::Exporter { endpoint, .. } if self.telemetry.otlp.is_some() => {
                format!("telemetry.otlp must be the URL of a collector, is {endpoint:?}")
            }
            error => error.to_string(),
        })?;
        if !shared {
            check_directory("data_dir", &self.data_dir)?;
            if !self.store.is_cluster() {
                self.embedded().map_err(|error| format!("data_dir: {error:#}"))?;
            }
        }
        if roles.has(Role::Analytics) {
            check_directory("analytics.dir", &self.analytics.dir)?;
        }
        self.nats.validate_files()?;
        if roles.has(Role::Gateway) {
            self.tls.check_files().map_err(|error| format!("tls.{error}"))?;
        }
        self.internal_tls
            .check_files()
            .map_err(|error| format!("internal_tls.{error}"))?;
        if roles.has(Role::Gateway) && self.auth.enabled {
            self.auth.check_files()?;
        }
        if roles.has(Role::Push) || roles.has(Role::Gateway) {
            self.push.check_files(&self.data_dir)?;
        }
        Ok(())
    }

    /// Checks that `nats.program` is a nats-server that can be used.
    pub(super) async fn validate_program(&self) -> Result<(), String> {
        let Some(program) = self.nats.program.as_ref().filter(|_| self.nats.is_child()) else {
            return Ok(());
        };
        match local::Binary::locate(local::Locate::exactly(program)).await {
            Ok(_) => Ok(()),
            Err(error) => Err(format!("nats.program: {error}")),
        }
    }

    fn validate_addresses(&self) -> Result<(), String> {
        if self.grpc == self.http && self.grpc.port() != 0 {
            return Err(format!("http must not be the address of grpc, is {}", self.http));
        }
        if self.nats_has_port_of(&self.grpc) || self.nats_has_port_of(&self.http) {
            return Err(format!(
                "nats.port must not be the port of grpc or http, is {}",
                self.nats.port
            ));
        }
        Ok(())
    }

    /// Whether the nats-server that Herald starts would need the port of this address.
    fn nats_has_port_of(&self, address: &std::net::SocketAddr) -> bool {
        self.nats.is_child()
            && (address.ip().is_loopback() || address.ip().is_unspecified())
            && address.port() == self.nats.port
            && self.nats.port != 0
    }

    /// Checks the address of operators' calls, which only a process with the gateway uses.
    fn validate_operator_address(&self) -> Result<(), String> {
        let address = self.operator_grpc;
        let others = [
            ("grpc", Some(self.grpc)),
            ("http", Some(self.http)),
            ("internal_grpc", self.internal_grpc),
        ];
        for (key, other) in others {
            if other == Some(address) && address.port() != 0 {
                return Err(format!(
                    "operator_grpc must not be the address of {key}, is {address}"
                ));
            }
        }
        if self.nats_has_port_of(&address) {
            return Err(format!(
                "nats.port must not be the port of operator_grpc, is {}",
                self.nats.port
            ));
        }
        Ok(())
    }

    fn validate_broker(&self) -> Result<(), String> {
        let url = if self.nats.is_child() {
            "nats://127.0.0.1:4222"
        } else {
            self.nats.url.expose()
        };
        self.nats.mesh_config(url, &self.topology, &[])?;
        if !self.nats.is_child() {
            return Ok(());
        }
        self.nats.validate_child()?;
        if self.nats.topology != TopologyMode::Apply {
            return Err(
                "nats.topology must be apply with the nats-server that Herald starts (set nats.url for another \
                 one), is verify"
                    .into(),
            );
        }
        if self.topology.replicas != 1 {
            return Err(format!(
                "topology.replicas must be 1 with the one nats-server that Herald starts (set nats.url for a cluster), \
                 is {}",
                self.topology.replicas
            ));
        }
        let bytes = self.topology.bytes_max();
        if bytes > broker::STREAM_BYTES_MAX {
            return Err(format!(
                "the sum of all topology.*.bytes_max must be at most {}, is {bytes}",
                broker::STREAM_BYTES_MAX
            ));
        }
        Ok(())
    }

    fn validate_process(&self) -> Result<(), String> {
        check_bounds("shutdown_seconds", &self.shutdown_seconds, &(1..=3_600))?;
        if 4 * self.shutdown_delay_seconds > self.shutdown_seconds {
            return Err(format!(
                "shutdown_delay_seconds must be at most a quarter of shutdown_seconds ({}), is {}",
                self.shutdown_seconds, self.shutdown_delay_seconds
            ));
        }
        check_bounds("start_wait_seconds", &self.start_wait_seconds, &(0..=3_600))?;
        if self.lanes.is_empty() {
            return Err("lanes must name at least one of high, normal, low".into());
        }
        if let Some(error) = self.lanes.iter().find_map(|name| name.parse::<Lane>().err()) {
            return Err(format!("lanes must be high, normal, low: {error}"));
        }
        for role in [Role::Graph, Role::Analytics, Role::Deadletter] {
            let Some(url) = self.peers.of(role) else { continue };
            let urls = Urls::parse(url).map_err(|error| format!("peers.{role} {error}"))?;
            if self.internal_tls.ca_file.is_some() && !urls.all_use_tls() {
                return Err(format!(
                    "peers.{role} must be https://HOST:PORT, because internal_tls.ca_file is set, is {}",
                    SecretUrl::new(url).redacted()
                ));
            }
        }
        Ok(())
    }

    /// Checks what a process of these roles needs from its configuration. The error starts with the key of the setting.
    pub(super) fn validate_roles(&self, roles: &Roles) -> Result<(), String> {
        if roles.has(Role::Gateway) {
            self.validate_operator_address()?;
        }
        self.validate_exposure(roles)?;
        if roles.use_timelines() && self.store.is_cluster() && self.timelines.url.is_empty() {
            return Err(
                "timelines.url must be set beside store.url: the URL of Valkey or Redis, redis://HOST:PORT \
                 (--timelines, HERALD_TIMELINES__URL, or HERALD_TIMELINES__URL_FILE if it has a password)"
                    .into(),
            );
        }
        for role in roles.peers() {
            if self.peers.of(role).is_none() {
                let callers: Vec<&str> = roles
                    .iter()
                    .filter(|caller| caller.calls().contains(&role))
                    .map(Role::as_str)
                    .collect();
                return Err(format!(
                    "peers.{role} must be set, because {} calls {role} and this process does not have it: the address \
                     of the processes with {role}, http://HOST:PORT or https://HOST:PORT (--peer {role}=URL, HERALD_PEERS__{})",
                    callers.join(" and "),
                    role.as_str().to_uppercase(),
                ));
            }
        }
        Ok(())
    }

    /// Checks what a process needs that shares its work with others. The error starts with the key of the setting.
    pub(super) fn validate_shared(&self, roles: &Roles) -> Result<(), String> {
        if self.nats.is_child() {
            return Err(
                "nats.url must be set: the NATS server that all processes share, nats://HOST:PORT (--nats-url, \
                 HERALD_NATS__URL, or HERALD_NATS__URL_FILE if it has a password)"
                    .into(),
            );
        }
        if roles.use_store() && !self.store.is_cluster() {
            return Err(
                "store.url must be set: the PostgreSQL database that all processes share, postgres://HOST:PORT/DATABASE \
                 (--store, HERALD_STORE__URL, or HERALD_STORE__URL_FILE if it has a password). The embedded store \
                 belongs to one process: `herald up` runs all roles on it"
                    .into(),
            );
        }
        Ok(())
    }
}

/// Checks that a directory exists or can be created, and can be written.
fn check_directory(key: &str, path: &Path) -> Result<(), String> {
    let invalid = |why: &str| {
        Err(format!(
            "{key} must be a directory that can be written, is {}: {why}",
            path.display()
        ))
    };
    let existing = path.ancestors().find(|parent| parent.exists());
    // A relative path with no existing parent is created in the working directory.
    let existing = existing.unwrap_or(Path::new("."));
    if !existing.is_dir() {
        return invalid(&format!("{} is not a directory", existing.display()));
    }
    match access(existing, Access::WRITE_OK | Access::EXEC_OK) {
        Ok(()) => Ok(()),
        Err(error) => invalid(&format!(
            "{} can't be written: {}",
            existing.display(),
            std::io::Error::from(error)
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(change: impl FnOnce(&mut Config)) -> String {
        let mut config = Config::default();
        change(&mut config);
        config.validate().unwrap_err()
    }

    #[test]
    fn values_that_can_not_start_are_named() {
        assert_eq!(Config::default().validate(), Ok(()));
        for (message, start) in [
            (
                error(|c| c.topology.posts.bytes_max = i64::MAX as u64),
                "the sum of all topology.*.bytes_max",
            ),
            (error(|c| c.topology.replicas = 3), "topology.replicas must be 1 "),
            (
                error(|c| c.nats.topology = TopologyMode::Verify),
                "nats.topology must be apply with the nats-server that Herald starts",
            ),
            (
                error(|c| c.topology.replicas = 2),
                "topology.replicas must be 1, 3 or 5, is 2",
            ),
            (
                error(|c| c.nats.url = SecretUrl::new("nats://")),
                "nats.url must be nats://HOST:PORT",
            ),
            (
                error(|c| c.lanes = vec!["urgent".into()]),
                "lanes must be high, normal, low",
            ),
            (error(|c| c.lanes.clear()), "lanes must name at least one"),
            (
                error(|c| c.shutdown_delay_seconds = 20),
                "shutdown_delay_seconds must be at most a quarter of shutdown_seconds (25), is 20",
            ),
            (
                error(|c| c.peers.graph = Some("graph:7700".into())),
                "peers.graph must be http://HOST:PORT or https://HOST:PORT",
            ),
            (
                error(|c| {
                    c.peers.graph = Some("https://a:7700,http://b:7700".into());
                    c.internal_tls.ca_file = Some("ca.crt".into());
                }),
                "peers.graph must be https://HOST:PORT, because internal_tls.ca_file is set, is https://a:7700,http://b",
            ),
            (
                error(|c| c.tls.cert_file = Some("server.crt".into())),
                "tls.key_file must be set, because cert_file is",
            ),
            (
                error(|c| c.internal_tls.client_ca_file = Some("ca.crt".into())),
                "internal_tls.client_ca_file must not be set without cert_file and key_file",
            ),
            (
                error(|c| c.store.url = SecretUrl::new("mysql://host/db")),
                "store.url must be postgres://",
            ),
            (
                error(|c| c.nats.port = 7700),
                "nats.port must not be the port of grpc or http, is 7700",
            ),
            (
                error(|c| c.http = c.grpc),
                "http must not be the address of grpc, is 127.0.0.1:7700",
            ),
            (
                error(|c| c.store.timelines.entries_max = 0),
                "store.timelines.entries_max must be 1 to ",
            ),
            (
                error(|c| c.store.ledger_keep_days = 0),
                "store.ledger_keep_days must be 1 to ",
            ),
            (
                error(|c| c.store.ledger_keep_days = 29),
                "store.ledger_keep_days must be at least store.timeline_keep_days (30), is 29",
            ),
            (
                error(|c| c.store.deleted_text_keep_hours = 0),
                "store.deleted_text_keep_hours must be 1 to ",
            ),
            (
                error(|c| c.store.deleted_text_keep_hours = 23),
                "store.deleted_text_keep_hours must be at least store.request_keep_hours (24), is 23",
            ),
            (
                error(|c| c.store.post_keep_days = Some(29)),
                "store.post_keep_days must be at least store.ledger_keep_days (30) and at most 36500, is 29",
            ),
            (
                error(|c| c.store.post_keep_days = Some(36_501)),
                "store.post_keep_days must be at least store.ledger_keep_days (30) and at most 36500, is 36501",
            ),
            (
                error(|c| c.archive.in_flight_max = 40_000),
                "archive.in_flight_max must be 1 to 32768",
            ),
        ] {
            assert!(message.starts_with(start), "{message}");
        }
        let mut cluster = Config::default();
        cluster.nats.url = SecretUrl::new("nats://a:4222,nats://b:4222");
        cluster.topology.replicas = 3;
        assert_eq!(cluster.validate(), Ok(()));
    }

    #[test]
    fn a_process_that_lacks_what_its_roles_need_is_refused() {
        let mut config = Config::default();
        let refused = |checked: Result<(), String>, start: &str| {
            let error = checked.unwrap_err();
            assert!(error.starts_with(start), "{error}");
        };
        let scaler: Roles = [Role::Scaler].into_iter().collect();
        refused(config.validate_shared(&scaler), "nats.url must be set");
        config.nats.url = SecretUrl::new("nats://host:4222");
        assert_eq!(config.validate_shared(&scaler), Ok(()));
        let push: Roles = [Role::Push, Role::Scaler].into_iter().collect();
        refused(config.validate_shared(&push), "store.url must be set");
        config.store.url = SecretUrl::new("postgres://host/herald");
        assert_eq!(config.validate_shared(&push), Ok(()));
        assert_eq!(config.validate_roles(&scaler), Ok(()));

        let fanout: Roles = [Role::Fanout].into_iter().collect();
        refused(
            config.validate_roles(&fanout),
            "peers.graph must be set, because fanout calls graph",
        );
        config.peers.graph = Some("http://graph:7700".into());
        assert_eq!(config.validate_roles(&fanout), Ok(()));
        let timeline: Roles = [Role::Fanout, Role::Timeline].into_iter().collect();
        refused(config.validate_roles(&timeline), "timelines.url must be set");
        config.timelines.url = "redis://host".into();
        assert_eq!(config.validate_roles(&timeline), Ok(()));
        let gateway: Roles = [Role::Gateway, Role::Analytics].into_iter().collect();
        refused(config.validate_roles(&gateway), "peers.deadletter must be set");
        assert_eq!(config.validate_roles(&Roles::whole()), Ok(()));

        config.internal_grpc = Some(config.operator_grpc);
        refused(
            config.validate_roles(&Roles::whole()),
            "operator_grpc must not be the address of internal_grpc, is 127.0.0.1:7702",
        );
        // Without the gateway nothing listens there.
        config.grpc = config.operator_grpc;
        assert_eq!(config.validate_roles(&timeline), Ok(()));
        config = Config::default();
        config.nats.port = 7702;
        refused(
            config.validate_roles(&Roles::whole()),
            "nats.port must not be the port of operator_grpc, is 7702",
        );
    }

    #[tokio::test]
    async fn files_that_a_start_needs_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "#!/bin/sh\necho no\n").unwrap();
        let config = |change: &dyn Fn(&mut Config)| {
            let mut config = Config {
                data_dir: dir.path().join("new/data"),
                ..Config::default()
            };
            config.analytics.dir = config.data_dir.join("analytics");
            change(&mut config);
            config
        };
        let error =
            |change: &dyn Fn(&mut Config)| config(change).validate_files(&Roles::whole(), false).unwrap_err();
        assert_eq!(config(&|_| ()).validate_files(&Roles::whole(), false), Ok(()));
        assert!(!dir.path().join("new").exists(), "a check creates no directory");
        let message = error(&|c| {
            c.tls.cert_file = Some(file.clone());
            c.tls.key_file = Some(file.clone());
        });
        assert!(
            message.starts_with("tls.cert_file has no certificate"),
            "{message}"
        );
        let message = error(&|c| c.internal_tls.ca_file = Some(dir.path().join("ca.pem")));
        assert!(
            message.starts_with("internal_tls.ca_file can't be read"),
            "{message}"
        );
        let message = error(&|c| c.data_dir = file.join("data"));
        assert!(
            message.starts_with("data_dir must be a directory") && message.ends_with("is not a directory")
        );
        assert!(
            error(&|c| c.analytics.dir.clone_from(&file)).starts_with("analytics.dir must be a directory")
        );
        assert!(error(&|c| c.telemetry.log = Some("=x=".into())).starts_with("telemetry.log is not a valid"));
        assert!(error(&|c| c.push.ca_file = Some(dir.path().join("ca.pem"))).starts_with("push.ca_file "));
        let program = config(&|c| c.nats.program = Some(dir.path().join("nats-server")));
        let message = program.validate_program().await.unwrap_err();
        assert!(
            message.starts_with("nats.program: ") && message.contains("does not exist"),
            "{message}"
        );
    }
}
