//! Configuration of the cluster engine.

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use super::{SecretUrl, TimelinesConfig};
use crate::encryption::Encryption;

/// Configuration of the cluster engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// URL of the PostgreSQL database: `postgres://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=verify-full`. The database
    /// must exist; Herald makes the schema `herald` in it. Parts that the URL lacks are taken from libpq's environment
    /// variables (`PGPASSWORD`, …) and password file.
    pub url: SecretUrl,
    /// Connections to PostgreSQL.
    pub postgres: PostgresConfig,
    /// Retention of the follow history, hours. Must exceed the time from the first slice of a post to its last one,
    /// because all slices read the followers of the version that the first one pinned.
    pub follow_history_keep_hours: u64,
    /// Retention of request ids, hours. A request that is repeated within this time creates no second post.
    pub request_keep_hours: u64,
    /// Retention of timelines, days from the acceptance of a post. Ended follows are kept as long, so that timelines can
    /// be rebuilt.
    pub timeline_keep_days: u64,
    /// Retention of the ledger, days from the acceptance of a post, and of dead letters, days from their arrival.
    pub ledger_keep_days: u64,
    /// Retention of the audit log of operations on dead letters, days. Dead letters are retained as long as the ledger.
    pub dead_letter_operation_keep_days: u64,
    /// Retention of the texts of deleted posts, hours from the deletion.
    pub deleted_text_keep_hours: u64,
    /// Retention of posts, days from their acceptance; at least `ledger_keep_days`. `None`: without end.
    pub post_keep_days: Option<u64>,
    /// Cache of users, MiB for each direction (id to key, key to id).
    pub users_cache_mb: u64,
    /// Encryption of devices.
    pub encryption: Encryption,
    /// Timelines, in Valkey or Redis.
    pub timelines: TimelinesConfig,
}

/// Configuration of the connections to PostgreSQL.
///
/// A connection is a session: it sets its time-outs with the startup parameter `options`, and it prepares a statement and
/// executes it in two round trips. So PgBouncer (1.20 or newer, which knows `options`) and other poolers can be used in
/// session mode only: in transaction mode the two round trips can reach different connections of the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PostgresConfig {
    /// Maximum number of connections of a process; 1 to 10,000. All processes together must stay below
    /// `max_connections` of the server.
    pub connections_max: u32,
    /// Time-out of getting a connection, milliseconds; 10 to 600,000.
    pub acquire_timeout_ms: u64,
    /// Time-out of a statement, milliseconds; 10 to 600,000. A call to the store, with all its statements, times out
    /// after twice this value.
    pub statement_timeout_ms: u64,
    /// Time-out of waiting for a lock, milliseconds; at least 1, less than `statement_timeout_ms`.
    pub lock_timeout_ms: u64,
    /// Maximum age of a connection, seconds; 1 to 2,592,000. New connections follow a changed address of the server.
    pub connection_age_max_s: u64,
    /// Number of prepared statements that each connection keeps; 1 to 10,000.
    pub statement_cache_capacity: usize,
    /// File with the certificates (PEM) of the authorities that the server's certificate is verified with, when
    /// `sslmode` is `verify-ca` or `verify-full`. Without it the system's authorities are used.
    pub tls_ca_file: Option<PathBuf>,
    /// Size of the database from which no new posts are accepted, MiB; 0: no limit. PostgreSQL does not tell how much
    /// room its disk has.
    pub database_mb_max: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            url: SecretUrl::default(),
            postgres: PostgresConfig::default(),
            follow_history_keep_hours: 7 * 24,
            request_keep_hours: 24,
            timeline_keep_days: 30,
            ledger_keep_days: 30,
            dead_letter_operation_keep_days: 365,
            deleted_text_keep_hours: 7 * 24,
            post_keep_days: None,
            users_cache_mb: 32,
            encryption: Encryption::default(),
            timelines: TimelinesConfig::default(),
        }
    }
}

impl Default for PostgresConfig {
    fn default() -> Self {
        Self {
            connections_max: 16,
            acquire_timeout_ms: 5_000,
            statement_timeout_ms: 10_000,
            lock_timeout_ms: 5_000,
            connection_age_max_s: 1_800,
            statement_cache_capacity: 256,
            tls_ca_file: None,
            database_mb_max: 0,
        }
    }
}

impl PostgresConfig {
    /// Checks the values.
    ///
    /// # Errors
    /// Begins with the name of the first value that is out of bounds.
    pub fn validate(&self) -> Result<(), String> {
        const TIMEOUT_MS_MAX: u64 = 600_000;
        // Without its cache, sqlx would leave each statement prepared on the server.
        let statements = u64::try_from(self.statement_cache_capacity).unwrap_or(u64::MAX);
        for (name, value, min, max) in [
            ("connections_max", self.connections_max.into(), 1, 10_000),
            ("acquire_timeout_ms", self.acquire_timeout_ms, 10, TIMEOUT_MS_MAX),
            (
                "statement_timeout_ms",
                self.statement_timeout_ms,
                10,
                TIMEOUT_MS_MAX,
            ),
            (
                "lock_timeout_ms",
                self.lock_timeout_ms,
                1,
                self.statement_timeout_ms.saturating_sub(1),
            ),
            ("connection_age_max_s", self.connection_age_max_s, 1, 30 * 86_400),
            ("statement_cache_capacity", statements, 1, 10_000),
            ("database_mb_max", self.database_mb_max, 0, 1 << 34),
        ] {
            if value < min || value > max {
                return Err(format!("{name} must be {min} to {max}, is {value}"));
            }
        }
        Ok(())
    }

    pub(super) fn acquire_timeout(&self) -> Duration {
        Duration::from_millis(self.acquire_timeout_ms)
    }

    /// Time-out of a call. Longer than the server's time-out of a statement, so that the server ends a slow statement
    /// first; this one ends calls to a server that does not respond at all.
    pub(super) fn call_timeout(&self) -> Duration {
        Duration::from_millis(self.statement_timeout_ms.saturating_mul(2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_out_of_bounds_is_named() {
        type Change = fn(&mut PostgresConfig);
        assert_eq!(PostgresConfig::default().validate(), Ok(()));
        let changes: [(&str, Change); 5] = [
            ("connections_max must be 1 to 10000, is 0", |config| {
                config.connections_max = 0;
            }),
            ("acquire_timeout_ms must be", |config| {
                config.acquire_timeout_ms = 0;
            }),
            ("statement_timeout_ms must be", |config| {
                config.statement_timeout_ms = u64::MAX;
            }),
            ("lock_timeout_ms must be 1 to 9999, is 10000", |config| {
                config.lock_timeout_ms = 10_000;
            }),
            ("statement_cache_capacity must be", |config| {
                config.statement_cache_capacity = 0;
            }),
        ];
        for (expected, change) in changes {
            let mut config = PostgresConfig::default();
            change(&mut config);
            let error = config.validate().unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
