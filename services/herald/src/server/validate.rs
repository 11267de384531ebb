//! Checks of the configuration. `herald up` and `herald config check` share them.

use std::path::Path;

use herald_local_nats as local;
use herald_runtime::{bounds, telemetry};
use rustix::fs::{Access, access};

use super::{Config, broker};

/// Maximum of all caches, MiB: 1 TiB.
const CACHE_MB_MAX: u64 = 1 << 20;
/// Maximum of all retentions: 100 years.
const KEEP_DAYS_MAX: u64 = 36_500;

impl Config {
    /// Checks the values, and reads no file. The error starts with the key of the invalid setting.
    pub(super) fn validate(&self) -> Result<(), String> {
        self.validate_addresses()?;
        self.topology
            .validate()
            .map_err(|error| format!("topology.{error}"))?;
        self.validate_broker()?;
        self.validate_store()?;
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
        self.analytics.validate()?;
        self.deadletter.validate()
    }

    /// Checks the files and directories that a start reads or writes. Changes nothing. The error starts with the key of
    /// the invalid setting. Must be called within a tokio runtime.
    pub(super) fn validate_files(&self) -> Result<(), String> {
        telemetry::check(&self.telemetry).map_err(|error| match error {
            telemetry::Error::Filter { origin, .. } if origin.starts_with("log") => {
                format!("telemetry.{error}")
            }
            telemetry::Error::Exporter { endpoint, .. } if self.telemetry.otlp.is_some() => {
                format!("telemetry.otlp must be the URL of a collector, is {endpoint:?}")
            }
            error => error.to_string(),
        })?;
        check_directory("data_dir", &self.data_dir)?;
        check_directory("analytics.dir", &self.analytics.dir)?;
        self.push.check_files(&self.data_dir)
    }

    /// Checks that `nats.program` is a nats-server that can be used.
    pub(super) async fn validate_program(&self) -> Result<(), String> {
        let Some(program) = self.nats.program.as_ref().filter(|_| self.nats.url.is_none()) else {
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
        let taken = |address: &std::net::SocketAddr| {
            (address.ip().is_loopback() || address.ip().is_unspecified())
                && address.port() == self.nats.port
                && self.nats.port != 0
        };
        if self.nats.url.is_none() && (taken(&self.grpc) || taken(&self.http)) {
            return Err(format!(
                "nats.port must not be the port of grpc or http, is {}",
                self.nats.port
            ));
        }
        Ok(())
    }

    fn validate_broker(&self) -> Result<(), String> {
        if let Some(url) = &self.nats.url {
            return broker::mesh_config(url, &self.topology)
                .validate()
                .map_err(|error| format!("nats.url must be nats://HOST:PORT: {error}"));
        }
        if self.topology.replicas != 1 {
            return Err(format!(
                "topology.replicas must be 1 with the one nats-server that Herald starts (set nats.url for a cluster), \
                 is {}",
                self.topology.replicas
            ));
        }
        let bytes = self.topology.bytes_max();
        if i64::try_from(broker::file_bytes_max(bytes)).is_err() {
            return Err(format!(
                "the sum of all topology.*.bytes_max must be at most {}, is {bytes}",
                i64::MAX / 5 * 4
            ));
        }
        Ok(())
    }

    fn validate_store(&self) -> Result<(), String> {
        bounds!("store", self.store, {
            disk_free_mb_min: 0..=1 << 34,
            records_cache_mb: 0..=CACHE_MB_MAX,
            dead_letters_cache_mb: 0..=CACHE_MB_MAX,
            totals_cache_mb: 0..=CACHE_MB_MAX,
            follow_history_keep_hours: 1..=24 * KEEP_DAYS_MAX,
            request_keep_hours: 1..=24 * KEEP_DAYS_MAX,
            users_cache_mb: 0..=CACHE_MB_MAX,
            follows_cache_mb: 0..=CACHE_MB_MAX,
            posts_cache_mb: 0..=CACHE_MB_MAX,
            devices_cache_mb: 0..=CACHE_MB_MAX,
            preferences_cache_mb: 0..=CACHE_MB_MAX,
            timeline_keep_days: 1..=KEEP_DAYS_MAX,
            ledger_keep_days: 1..=KEEP_DAYS_MAX,
            dead_letter_operation_keep_days: 1..=KEEP_DAYS_MAX,
            timelines.flush_interval_ms: 1..=1_000,
            timelines.flush_chunks: 1..=1_000_000,
            timelines.run_pairs_max: 1..=1_000_000_000,
            timelines.small_run_pairs_max: 0..=1_000_000_000,
            timelines.entries_max: 1..=1_000_000,
            timelines.cache_mb: 0..=CACHE_MB_MAX,
            timelines.merge_blocks_min: 1..,
            timelines.merge_busy_percent: 1..=100,
        });
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
                error(|c| c.topology.replicas = 2),
                "topology.replicas must be 1, 3 or 5, is 2",
            ),
            (
                error(|c| c.nats.url = Some(String::new())),
                "nats.url must be nats://HOST:PORT",
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
                error(|c| c.gateway.archive_in_flight_max = 40_000),
                "gateway.archive_in_flight_max must be 1 to 32768",
            ),
        ] {
            assert!(message.starts_with(start), "{message}");
        }
        let mut cluster = Config::default();
        cluster.nats.url = Some("nats://a:4222,nats://b:4222".into());
        cluster.topology.replicas = 3;
        assert_eq!(cluster.validate(), Ok(()));
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
        let error = |change: &dyn Fn(&mut Config)| config(change).validate_files().unwrap_err();
        assert_eq!(config(&|_| ()).validate_files(), Ok(()));
        assert!(!dir.path().join("new").exists(), "a check creates no directory");
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
