//! The configuration of the store, of both engines.

use std::path::Path;

use herald_runtime::{bounds, config::SecretUrl};
use herald_store::{
    cluster::{self, PostgresConfig, TimelinesConfig},
    embedded,
    encryption::Encryption,
};
use serde::{Deserialize, Serialize};

/// Maximum of all caches, MiB: 1 TiB.
const CACHE_MB_MAX: u64 = 1 << 20;
/// Maximum of all retentions: 100 years.
const KEEP_DAYS_MAX: u64 = 36_500;

/// The store: the embedded engine, or with `url` the cluster engine. Settings of the other engine have no effect.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Store {
    /// Cluster engine: the URL of the PostgreSQL database, `postgres://USER@HOST:PORT/DATABASE`. With a password it must
    /// come from a file or the environment. Empty: the embedded engine, in `data_dir`.
    pub(crate) url: SecretUrl,
    /// Cluster engine: the connections to PostgreSQL.
    pub(crate) postgres: PostgresConfig,
    /// Retention of the follow history, hours. Must exceed the time from the first slice of a post to its last one.
    pub(crate) follow_history_keep_hours: u64,
    /// Retention of request ids, hours. A request that is repeated within this time creates no second post.
    pub(crate) request_keep_hours: u64,
    /// Retention of timelines, days from the acceptance of a post.
    pub(crate) timeline_keep_days: u64,
    /// Retention of the ledger, days from the acceptance of a post, and of dead letters, days from their arrival.
    pub(crate) ledger_keep_days: u64,
    /// Retention of the audit log of operations on dead letters, days.
    pub(crate) dead_letter_operation_keep_days: u64,
    /// Retention of the texts of deleted posts, hours from the deletion.
    pub(crate) deleted_text_keep_hours: u64,
    /// Retention of posts, days from their acceptance. Without it they are kept without end.
    pub(crate) post_keep_days: Option<u64>,
    /// Cache of users, MiB for each direction (id to key, key to id).
    pub(crate) users_cache_mb: u64,
    /// Encryption at rest of what devices hold: endpoints, Web Push keys and webhook secrets.
    pub(crate) encryption: Encryption,
    /// Embedded engine: free disk space below which writes are refused, MiB. Below twice this value no new posts are
    /// accepted.
    pub(crate) disk_free_mb_min: u64,
    /// Embedded engine: block cache of `records/`, MiB.
    pub(crate) records_cache_mb: u64,
    /// Embedded engine: block cache of `dead_letters/`, MiB.
    pub(crate) dead_letters_cache_mb: u64,
    /// Embedded engine: block cache of `totals/`, MiB.
    pub(crate) totals_cache_mb: u64,
    /// Embedded engine: cache of differences between follow versions, MiB.
    pub(crate) follows_cache_mb: u64,
    /// Embedded engine: cache of posts, MiB.
    pub(crate) posts_cache_mb: u64,
    /// Embedded engine: cache of devices, MiB.
    pub(crate) devices_cache_mb: u64,
    /// Embedded engine: cache of preferences, MiB.
    pub(crate) preferences_cache_mb: u64,
    /// Embedded engine: timelines. Those of the cluster engine have the section `timelines`.
    pub(crate) timelines: embedded::timelines::Config,
}

impl Default for Store {
    fn default() -> Self {
        let embedded::Config {
            data_dir: _,
            disk_free_mb_min,
            records_cache_mb,
            dead_letters_cache_mb,
            totals_cache_mb,
            follow_history_keep_hours,
            request_keep_hours,
            users_cache_mb,
            follows_cache_mb,
            posts_cache_mb,
            devices_cache_mb,
            preferences_cache_mb,
            timeline_keep_days,
            ledger_keep_days,
            dead_letter_operation_keep_days,
            deleted_text_keep_hours,
            post_keep_days,
            encryption,
            timelines,
        } = embedded::Config::default();
        Self {
            url: SecretUrl::default(),
            postgres: PostgresConfig::default(),
            follow_history_keep_hours,
            request_keep_hours,
            timeline_keep_days,
            ledger_keep_days,
            dead_letter_operation_keep_days,
            deleted_text_keep_hours,
            post_keep_days,
            users_cache_mb,
            encryption,
            disk_free_mb_min,
            records_cache_mb,
            dead_letters_cache_mb,
            totals_cache_mb,
            follows_cache_mb,
            posts_cache_mb,
            devices_cache_mb,
            preferences_cache_mb,
            timelines,
        }
    }
}

impl Store {
    /// Whether the cluster engine is used.
    pub(crate) fn is_cluster(&self) -> bool {
        !self.url.is_empty()
    }

    /// The configuration of the embedded engine.
    pub(super) fn embedded(&self, data_dir: &Path) -> embedded::Config {
        embedded::Config {
            data_dir: data_dir.to_owned(),
            disk_free_mb_min: self.disk_free_mb_min,
            records_cache_mb: self.records_cache_mb,
            dead_letters_cache_mb: self.dead_letters_cache_mb,
            totals_cache_mb: self.totals_cache_mb,
            follow_history_keep_hours: self.follow_history_keep_hours,
            request_keep_hours: self.request_keep_hours,
            users_cache_mb: self.users_cache_mb,
            follows_cache_mb: self.follows_cache_mb,
            posts_cache_mb: self.posts_cache_mb,
            devices_cache_mb: self.devices_cache_mb,
            preferences_cache_mb: self.preferences_cache_mb,
            timeline_keep_days: self.timeline_keep_days,
            ledger_keep_days: self.ledger_keep_days,
            dead_letter_operation_keep_days: self.dead_letter_operation_keep_days,
            deleted_text_keep_hours: self.deleted_text_keep_hours,
            post_keep_days: self.post_keep_days,
            encryption: self.encryption.clone(),
            timelines: self.timelines.clone(),
        }
    }

    /// The configuration of the cluster engine.
    pub(super) fn cluster(&self, timelines: &TimelinesConfig) -> cluster::Config {
        cluster::Config {
            url: self.url.clone(),
            postgres: self.postgres.clone(),
            follow_history_keep_hours: self.follow_history_keep_hours,
            request_keep_hours: self.request_keep_hours,
            timeline_keep_days: self.timeline_keep_days,
            ledger_keep_days: self.ledger_keep_days,
            dead_letter_operation_keep_days: self.dead_letter_operation_keep_days,
            deleted_text_keep_hours: self.deleted_text_keep_hours,
            post_keep_days: self.post_keep_days,
            users_cache_mb: self.users_cache_mb,
            encryption: self.encryption.clone(),
            timelines: timelines.clone(),
        }
    }

    /// Checks the values; the error starts with the key of the first invalid one.
    pub(super) fn validate(&self, timelines: &TimelinesConfig) -> Result<(), String> {
        bounds!("store", self, {
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
            deleted_text_keep_hours: 1..=24 * KEEP_DAYS_MAX,
            timelines.flush_interval_ms: 1..=1_000,
            timelines.flush_chunks: 1..=1_000_000,
            timelines.run_pairs_max: 1..=1_000_000_000,
            timelines.small_run_pairs_max: 0..=1_000_000_000,
            timelines.entries_max: 1..=1_000_000,
            timelines.cache_mb: 0..=CACHE_MB_MAX,
            timelines.merge_blocks_min: 1..,
            timelines.merge_busy_percent: 1..=100,
        });
        if self.ledger_keep_days < self.timeline_keep_days {
            return Err(format!(
                "store.ledger_keep_days must be at least store.timeline_keep_days ({}), is {}: timelines are rebuilt and \
                 audited from the plans in the ledger",
                self.timeline_keep_days, self.ledger_keep_days
            ));
        }
        if self.deleted_text_keep_hours < self.request_keep_hours {
            return Err(format!(
                "store.deleted_text_keep_hours must be at least store.request_keep_hours ({}), is {}: the request id of a \
                 deleted post is removed with its text, and a retry would make the post again",
                self.request_keep_hours, self.deleted_text_keep_hours
            ));
        }
        if let Some(days) = self.post_keep_days
            && !(self.ledger_keep_days..=KEEP_DAYS_MAX).contains(&days)
        {
            return Err(format!(
                "store.post_keep_days must be at least store.ledger_keep_days ({}) and at most {KEEP_DAYS_MAX}, is {days}: the \
                 posts of the ledger are read by retries, redrives and audits",
                self.ledger_keep_days
            ));
        }
        self.encryption
            .validate()
            .map_err(|reason| format!("store.encryption.{reason}"))?;
        self.postgres
            .validate()
            .map_err(|reason| format!("store.postgres.{reason}"))?;
        let scheme = self.url.expose().split_once("://").map(|(scheme, _)| scheme);
        if self.is_cluster() && !matches!(scheme, Some("postgres" | "postgresql")) {
            return Err("store.url must be postgres://USER@HOST:PORT/DATABASE".into());
        }
        self.url.check().map_err(|reason| format!("store.url {reason}"))?;
        timelines
            .url
            .check()
            .map_err(|reason| format!("timelines.url {reason}"))?;
        if !timelines.url.is_empty() {
            timelines
                .check_url()
                .map_err(|reason| format!("timelines.url {reason}"))?;
        }
        self.validate_authorities(timelines)
    }

    /// Refuses files of authorities that nothing would be verified with, and a `store.url` that no connection can be made
    /// with.
    fn validate_authorities(&self, timelines: &TimelinesConfig) -> Result<(), String> {
        let is_verified = !self.is_cluster()
            || self
                .postgres
                .verifies_server(&self.url)
                .map_err(|error| format!("store.url can't be used: {error}"))?;
        if self.postgres.tls_ca_file.is_some() && !is_verified {
            return Err(
                "store.postgres.tls_ca_file must not be set without sslmode=verify-full or verify-ca in store.url: the \
                 certificate of PostgreSQL would not be verified"
                    .into(),
            );
        }
        let url = timelines.url.expose();
        if timelines.tls_ca_file.is_some() && !url.is_empty() && !url.starts_with("rediss:") {
            return Err(
                "timelines.tls_ca_file must not be set without rediss://HOST:PORT in timelines.url: redis:// is without TLS"
                    .into(),
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(store: &str, timelines: &str) -> Result<(), String> {
        let mut config = Store {
            url: SecretUrl::new(store),
            ..Store::default()
        };
        config.postgres.tls_ca_file = Some("ca.pem".into());
        let timelines = TimelinesConfig {
            url: SecretUrl::new(timelines),
            tls_ca_file: Some("ca.pem".into()),
            ..TimelinesConfig::default()
        };
        config.validate(&timelines)
    }

    #[test]
    fn a_url_whose_password_is_not_percent_encoded_is_refused_without_it() {
        for (store, timelines, key) in [
            (
                "postgres://u:p@ss#hunter2@127.0.0.1:1/x",
                "",
                "store.url has an @ ",
            ),
            ("postgres://u:p#hunter2@h/x", "", "store.url has an @ "),
            (
                "postgres://u:hunter2/x",
                "",
                "store.url has a port that is no number",
            ),
            ("", "redis://:p/hunter2@h:6379", "timelines.url has an @ "),
        ] {
            let error = check(store, timelines).unwrap_err();
            assert!(error.starts_with(key) && error.contains("%40"), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_url_that_no_connection_can_be_made_with_is_refused() {
        for (store, timelines, start) in [
            ("postgres://one,two/db", "", "store.url can't be used: "),
            (
                "postgres://host/db?pasword=hunter2",
                "",
                "store.url can't be used: ",
            ),
            ("", "http://me:hunter2@host", "timelines.url must be redis://"),
            ("", "redis://", "timelines.url must be redis://"),
            ("", "redis://me:hunter2@host/x", "timelines.url must be redis://"),
        ] {
            let error = check(store, timelines).unwrap_err();
            assert!(error.starts_with(start) && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_file_of_authorities_is_refused_for_a_connection_that_does_not_use_it() {
        for url in [
            "postgres://host/db?sslmode=verify-full",
            "postgres://host/db?application_name=a&ssl-mode=verify-ca",
            "postgres://host/db?sslmode=Verify%2DFull",
        ] {
            assert_eq!(check(url, "rediss://host:6379"), Ok(()));
        }
        for url in [
            "postgres://host/db",
            "postgres://host/db?sslmode=require",
            "postgres://host/db?sslmode=verify-full&sslmode=disable",
            "postgres://host/db?application_name=a%26sslmode=verify-full",
        ] {
            let error = check(url, "").unwrap_err();
            assert!(
                error.starts_with("store.postgres.tls_ca_file must not be set"),
                "{error}"
            );
        }
        let error = check("postgres://host/db?sslmode=verify-full", "redis://host:6379").unwrap_err();
        assert!(
            error.starts_with("timelines.tls_ca_file must not be set"),
            "{error}"
        );
        // The embedded store has neither.
        assert_eq!(check("", ""), Ok(()));
    }
}
