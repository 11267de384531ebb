//! Configuration of the service.

use std::{path::PathBuf, time::Duration};

use herald_push_endpoint::Policy;
use herald_runtime::config::Secret;
use serde::{Deserialize, Serialize};

use crate::{adapters::vapid_subject, domain::Backoff};

/// Chunks of a lane that only wait for slow devices, for each of `chunks_in_flight_max`.
const SLOW_CHUNKS_FACTOR: usize = 8;

/// The configuration of the push service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Timeout of one request, from the connection to the end of the response; milliseconds, 100 to 60,000. Default:
    /// 10,000.
    pub request_timeout_ms: u64,
    /// Timeout of the connection, TLS included; milliseconds, at least 100. Default: 5,000.
    pub connect_timeout_ms: u64,
    /// Requests in flight, all lanes together; 1 to 16,384. The normal lane gets up to three quarters, the low lane a
    /// quarter. Default: 512.
    pub sends_max: usize,
    /// Requests in flight to one host (scheme, name and port); 1 to 16,384. The lanes share them as they share
    /// `sends_max`. Default: 128.
    pub sends_per_host_max: usize,
    /// Requests in flight to one host that is slow or has not responded yet; 1 to 16,384. The lanes share them in the
    /// same way, and all such hosts together get at most half of `sends_max`. Default: 16.
    pub sends_per_slow_host_max: usize,
    /// Time without a response after which a request counts as slow: 16 slow ones make a host slow; milliseconds, 100 to
    /// 60,000. Default: 2,000.
    pub slow_response_ms_min: u64,
    /// Longest time that a push waits for a request to its host to end, once the host, which isn't fast, has its share of
    /// the requests in flight. Then it leaves its chunk and is tried again later; milliseconds, 0 to 10,000. Default:
    /// 2,000.
    pub host_wait_ms_max: u64,
    /// Sends of one chunk in flight or queued; 1 to 16,384. Default: 1,024.
    pub sends_per_chunk_max: usize,
    /// Chunks in flight per lane; 1 to 1,024. Up to 8 times as many more only wait for the responses of slow devices.
    /// Default: 32.
    pub chunks_in_flight_max: usize,
    /// Redriven chunks in flight, all lanes together; 1 to 1,024. Default: 8.
    pub redrive_chunks_in_flight_max: usize,
    /// The first attempt that isolates recipients that can't be read because of a permanent error, marks them dead, and
    /// sends to the others; 1 to 1,000. Above the consumer's `fault_attempts_max`, recipients are never isolated.
    /// Default: 3.
    pub isolate_attempts_min: u64,
    /// Accepted sends after which the progress of a chunk is recorded; at least 1. Limits the pushes that are sent
    /// twice after a crash, not counting those in flight. Default: 128.
    pub settle_sends_max: u32,
    /// Interval at which the progress of a chunk is recorded and its post is checked for deletion; milliseconds, 10 to
    /// 10,000. Default: 500.
    pub settle_interval_ms: u64,
    /// Lease of a worker's claim of a chunk. While it lasts no other worker sends the chunk; the worker extends it each
    /// third, and sends nothing after its end. While the store is so slow that claims end too early, the lease doubles,
    /// up to 16 times. When a worker dies, its chunks wait for the rest of it; milliseconds, 500 to 60,000. Default:
    /// 3,000.
    pub claim_lease_ms: u64,
    /// Maximum delay before the first retry of a device; each further retry doubles it. The delay is random, at least
    /// half of the maximum; milliseconds, 1,000 to 60,000. Default: 2,000.
    pub retry_delay_ms_base: u64,
    /// Maximum delay before every retry of a device; at least `retry_delay_ms_base`; milliseconds, up to 3,600,000.
    /// Default: 300,000.
    pub retry_delay_ms_max: u64,
    /// Limit of `Retry-After`; a longer value is reduced to it; seconds, 1 to 3,600. Default: 300.
    pub retry_after_seconds_max: u64,
    /// A webhook to which no push succeeded on this many days is disabled at the next failure; a day without a push
    /// doesn't count; 1 to 365. Default: 3.
    pub disable_failing_days: u32,
    /// File with the VAPID private key (RFC 8292), 32 bytes in base64url. Created with mode 0600 if missing. Keep the
    /// file: subscriptions are bound to its key. Default: `vapid.key` in the data directory.
    pub vapid_key_file: Option<PathBuf>,
    /// The VAPID private key, 32 bytes in base64url; replaces the key file. Default: empty.
    pub vapid_private_key: Secret,
    /// Whether a VAPID key that differs from the one that Web Push devices were registered with is accepted. Then the
    /// Web Push devices are unregistered at the start, and browsers have to subscribe again. Default: false, such a key
    /// is refused.
    pub vapid_key_replace: bool,
    /// Contact of the operator for push services: `mailto:` and a mail address, or an `https:` URL, at a public host.
    /// Apple's push service requires it: without it, its endpoints can't be registered. Default: empty.
    pub vapid_subject: String,
    /// PEM file of certificate authorities that are trusted in addition to the system's. Default: none.
    pub ca_file: Option<PathBuf>,
    /// Policy of allowed endpoints. Must equal the policy of the gateway. Default: https on the public internet.
    pub endpoints: Policy,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            request_timeout_ms: 10_000,
            connect_timeout_ms: 5_000,
            sends_max: 512,
            sends_per_host_max: 128,
            sends_per_slow_host_max: 16,
            slow_response_ms_min: 2_000,
            host_wait_ms_max: 2_000,
            sends_per_chunk_max: 1_024,
            chunks_in_flight_max: 32,
            redrive_chunks_in_flight_max: 8,
            isolate_attempts_min: 3,
            settle_sends_max: 128,
            settle_interval_ms: 500,
            claim_lease_ms: 3_000,
            retry_delay_ms_base: 2_000,
            retry_delay_ms_max: 300_000,
            retry_after_seconds_max: 300,
            disable_failing_days: 3,
            vapid_key_file: None,
            vapid_private_key: Secret::default(),
            vapid_key_replace: false,
            vapid_subject: String::new(),
            ca_file: None,
            endpoints: Policy::default(),
        }
    }
}

impl Config {
    /// Chunks of a lane that only wait for slow devices. They hold no place of another chunk.
    pub(crate) const fn slow_chunks_max(&self) -> usize {
        self.chunks_in_flight_max * SLOW_CHUNKS_FACTOR
    }

    /// Chunks of a lane that a process holds at most: those in flight, and those that only wait for slow devices.
    pub const fn chunks_held_max(&self) -> usize {
        self.chunks_in_flight_max + self.slow_chunks_max()
    }

    /// Checks the settings; the error names the first invalid one.
    pub fn validate(&self) -> Result<(), String> {
        herald_runtime::bounds!("push", self, {
            request_timeout_ms: 100..=60_000,
            connect_timeout_ms: 100..,
            sends_max: 1..=16_384,
            sends_per_host_max: 1..=16_384,
            sends_per_slow_host_max: 1..=16_384,
            slow_response_ms_min: 100..=60_000,
            host_wait_ms_max: 0..=10_000,
            sends_per_chunk_max: 1..=16_384,
            chunks_in_flight_max: 1..=1_024,
            redrive_chunks_in_flight_max: 1..=1_024,
            isolate_attempts_min: 1..=1_000,
            settle_sends_max: 1..,
            settle_interval_ms: 10..=10_000,
            claim_lease_ms: 500..=60_000,
            retry_delay_ms_base: 1_000..=60_000,
            retry_delay_ms_max: 1_000..=3_600_000,
            retry_after_seconds_max: 1..=3_600,
            disable_failing_days: 1..=365,
        });
        if self.retry_delay_ms_max < self.retry_delay_ms_base {
            return Err(format!(
                "push.retry_delay_ms_max must be at least push.retry_delay_ms_base ({}), is {}",
                self.retry_delay_ms_base, self.retry_delay_ms_max
            ));
        }
        vapid_subject::check(&self.vapid_subject)
    }

    pub(crate) fn request_timeout(&self) -> Duration {
        Duration::from_millis(self.request_timeout_ms)
    }

    pub(crate) fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.connect_timeout_ms)
    }

    pub(crate) fn slow_response(&self) -> Duration {
        Duration::from_millis(self.slow_response_ms_min)
    }

    pub(crate) fn host_wait(&self) -> Duration {
        Duration::from_millis(self.host_wait_ms_max)
    }

    pub(crate) fn settle_interval(&self) -> Duration {
        Duration::from_millis(self.settle_interval_ms)
    }

    pub(crate) fn claim_lease(&self) -> Duration {
        Duration::from_millis(self.claim_lease_ms)
    }

    /// When a device is tried again.
    pub(crate) fn backoff(&self) -> Backoff {
        Backoff {
            base: Duration::from_millis(self.retry_delay_ms_base),
            max: Duration::from_millis(self.retry_delay_ms_max),
            requested_max: Duration::from_secs(self.retry_after_seconds_max),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_out_of_bounds_is_named() {
        let error = |change: fn(&mut Config)| {
            let mut config = Config::default();
            change(&mut config);
            config.validate().unwrap_err()
        };
        assert_eq!(Config::default().validate(), Ok(()));
        assert_eq!(
            error(|c| c.request_timeout_ms = 0),
            "push.request_timeout_ms must be 100 to 60000, is 0"
        );
        assert_eq!(
            error(|c| c.settle_sends_max = 0),
            "push.settle_sends_max must be at least 1, is 0"
        );
        assert!(
            error(|c| c.vapid_subject = "me@example.com".into()).starts_with("push.vapid_subject must be")
        );
    }

    #[test]
    fn the_private_key_is_redacted() {
        let config = Config {
            vapid_private_key: Secret::new("hunter2"),
            ..Config::default()
        };
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
