//! Configuration of the timelines.

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{Error, ErrorKind, Result, cluster::SecretUrl};

/// Configuration of the timelines in Valkey or Redis.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TimelinesConfig {
    /// URL of the server, or of any node of a cluster: `redis://USER:PASSWORD@HOST:PORT`, `rediss://` for TLS.
    pub url: SecretUrl,
    /// File with the certificates (PEM) of the authorities that the server's certificate is verified with. Without it
    /// the system's authorities are used.
    pub tls_ca_file: Option<PathBuf>,
    /// Time-out of connecting, milliseconds; at least 1.
    pub connect_timeout_ms: u64,
    /// Time-out of a command, milliseconds; at least 1.
    pub response_timeout_ms: u64,
    /// Number of replicas that must have a write before it counts as durable; 0: none. With more than 0 a message is
    /// acknowledged only after `WAIT`.
    pub replicas_min: u32,
    /// Maximum number of entries in a timeline, 1 to 10,000; older entries are dropped.
    pub entries_max: usize,
    /// Maximum time that deliveries are collected before they are written, milliseconds; at most 1,000. They are written
    /// at once while there are few.
    pub flush_delay_ms: u64,
    /// Number of deliveries that are written without waiting for more; at least 1.
    pub flush_pairs: usize,
    /// Maximum number of deliveries that are not written yet, at 8 to 16 bytes each; at least `flush_pairs`. Further
    /// deliveries wait.
    pub pending_pairs_max: usize,
    /// Number of blocks at which the tail of a bucket is merged into its body; 2 to 4,096.
    pub merge_blocks: usize,
    /// Estimated size at which the tail of a bucket is merged into its body, bytes; at least 1.
    pub merge_bytes: usize,
    /// Maximum number of merges of this process at a time; at least 1.
    pub merges_in_flight_max: usize,
    /// Maximum time that a reader waits for the rebuild of the timeline, milliseconds. After it the reader gets the
    /// entries that are there, marked as `rebuilding`.
    pub rebuild_wait_ms: u64,
    /// Days without a read after which a user's timeline is not written, but rebuilt when the user reads it; 0: never.
    pub active_days: u32,
    /// Number of followed authors above which a timeline gets only a part of their posts; 0: no limit.
    pub following_max: u32,
    /// Interval at which each process samples the inactive and the drowning users, seconds; at least 1.
    pub sample_interval_s: u64,
}

impl Default for TimelinesConfig {
    fn default() -> Self {
        Self {
            url: SecretUrl::default(),
            tls_ca_file: None,
            connect_timeout_ms: 3_000,
            response_timeout_ms: 5_000,
            replicas_min: 0,
            entries_max: 800,
            flush_delay_ms: 100,
            flush_pairs: 500_000,
            pending_pairs_max: 4_000_000,
            merge_blocks: 512,
            merge_bytes: 32 * 1024,
            merges_in_flight_max: 8,
            rebuild_wait_ms: 200,
            active_days: 30,
            following_max: 4_000,
            sample_interval_s: 60,
        }
    }
}

impl TimelinesConfig {
    /// Checks the values.
    ///
    /// [`Invalid`](ErrorKind::Invalid) for a value out of bounds; the message names the setting.
    pub(crate) fn validate(&self) -> Result<()> {
        let refuse = |what: &str| Err(Error::new(ErrorKind::Invalid, what));
        if self.url.is_empty() {
            return refuse("timelines.url is missing: give the URL of Valkey or Redis, redis://HOST:PORT");
        }
        if !(1..=10_000).contains(&self.entries_max) {
            return refuse("timelines.entries_max must be between 1 and 10,000");
        }
        if self.flush_delay_ms > 1_000 {
            return refuse("timelines.flush_delay_ms must be at most 1,000");
        }
        if self.flush_pairs == 0 || self.pending_pairs_max < self.flush_pairs {
            return refuse(
                "timelines.pending_pairs_max must be at least timelines.flush_pairs, which must be at least 1",
            );
        }
        if !(2..=4_096).contains(&self.merge_blocks)
            || self.merge_bytes == 0
            || self.merges_in_flight_max == 0
        {
            return refuse(
                "timelines.merge_blocks must be between 2 and 4,096, and merge_bytes and merges_in_flight_max at least 1",
            );
        }
        if self.connect_timeout_ms == 0 || self.response_timeout_ms == 0 || self.sample_interval_s == 0 {
            return refuse(
                "the time-outs of the timelines and timelines.sample_interval_s must be at least 1",
            );
        }
        Ok(())
    }

    /// Checks that the client can read the URL.
    ///
    /// # Errors
    /// Says what is expected. It has no part of the URL.
    pub fn check_url(&self) -> std::result::Result<(), &'static str> {
        const EXPECTED: &str = "must be redis://USER:PASSWORD@HOST:PORT, or rediss:// for TLS";
        let connection = redis::IntoConnectionInfo::into_connection_info(self.url.expose());
        connection.map(drop).map_err(|_| EXPECTED)
    }

    pub(super) fn sample_interval(&self) -> Duration {
        Duration::from_secs(self.sample_interval_s)
    }
}
