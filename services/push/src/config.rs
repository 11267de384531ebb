//! The settings of the service.

use std::{path::PathBuf, time::Duration};

use herald_model::Lane;
use herald_push_endpoint::Policy;
use herald_runtime::config::Secret;
use serde::{Deserialize, Serialize};

/// The settings of the push service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How long one request may take, from the first byte out to the last one in; milliseconds, 100 to 60,000.
    /// Default: 10,000.
    pub request_timeout_ms: u64,
    /// How much of that the connection may take, TLS included; milliseconds, at least 100. Default: 5,000.
    pub connect_timeout_ms: u64,
    /// Requests in flight, all lanes together; 1 to 16,384. The normal lane can take three quarters of them, the low
    /// one a quarter. Default: 512.
    pub sends_max: usize,
    /// Of these, to one host (scheme, name and port); 1 to 16,384. Default: 128.
    pub sends_per_host_max: usize,
    /// Sends of one chunk that are under way or wait for their turn; 1 to 16,384. Default: 1,024.
    pub sends_per_chunk_max: usize,
    /// Chunks in hand at a time, a lane; 1 to 1,024. Default: 32.
    pub chunks_in_flight_max: usize,
    /// Redriven chunks in hand at a time, of all lanes; 1 to 1,024. Default: 8.
    pub redrive_chunks_in_flight_max: usize,
    /// From which attempt on recipients of whom nothing can be read, because of a fault, are found out and given up, so that
    /// the others get their push; 1 to 1,000. Later than the consumer's `fault_attempts_max`: never. Default: 3.
    pub isolate_attempts_min: u64,
    /// After so many accepted sends a chunk's progress is recorded: at most so many (and those in flight) are sent
    /// again after a crash; at least 1. Default: 128.
    pub settle_sends_max: u32,
    /// After so long a chunk's progress is recorded, and a deletion of its post noticed; milliseconds, 10 to 10,000.
    /// Default: 500.
    pub settle_interval_ms: u64,
    /// The longest `Retry-After` that is honoured; seconds, 1 to 3,600. A longer one is cut to it. Default: 300.
    pub retry_after_seconds_max: u64,
    /// The file of the VAPID private key (RFC 8292): its 32 bytes as base64url. Made, mode 0600, where there is none.
    /// Keep it: subscriptions are bound to it. Default: `vapid.key` in the data directory.
    pub vapid_key_file: Option<PathBuf>,
    /// The VAPID private key itself, 32 bytes as base64url; then no file is used. Default: empty.
    pub vapid_private_key: Secret,
    /// Whom push services can turn to: a `mailto:` or `https:` URL. Apple's refuses senders without one. Default: empty.
    pub vapid_subject: String,
    /// A PEM file of certificate authorities to trust beside the system's. Default: none.
    pub ca_file: Option<PathBuf>,
    /// Which endpoints may be called. The gateway's must be the same. Default: https on the public internet.
    pub endpoints: Policy,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            request_timeout_ms: 10_000,
            connect_timeout_ms: 5_000,
            sends_max: 512,
            sends_per_host_max: 128,
            sends_per_chunk_max: 1_024,
            chunks_in_flight_max: 32,
            redrive_chunks_in_flight_max: 8,
            isolate_attempts_min: 3,
            settle_sends_max: 128,
            settle_interval_ms: 500,
            retry_after_seconds_max: 300,
            vapid_key_file: None,
            vapid_private_key: Secret::default(),
            vapid_subject: String::new(),
            ca_file: None,
            endpoints: Policy::default(),
        }
    }
}

impl Config {
    /// Says what is wrong, if anything is.
    pub fn validate(&self) -> Result<(), String> {
        herald_runtime::bounds!("push", self, {
            request_timeout_ms: 100..=60_000,
            connect_timeout_ms: 100..,
            sends_max: 1..=16_384,
            sends_per_host_max: 1..=16_384,
            sends_per_chunk_max: 1..=16_384,
            chunks_in_flight_max: 1..=1_024,
            redrive_chunks_in_flight_max: 1..=1_024,
            isolate_attempts_min: 1..=1_000,
            settle_sends_max: 1..,
            settle_interval_ms: 10..=10_000,
            retry_after_seconds_max: 1..=3_600,
        });
        let subject = &self.vapid_subject;
        if subject.is_empty() || subject.starts_with("mailto:") || subject.starts_with("https:") {
            Ok(())
        } else {
            Err(format!(
                "push.vapid_subject must be a mailto: or https: URL, is {subject:?}"
            ))
        }
    }

    pub(crate) fn request_timeout(&self) -> Duration {
        Duration::from_millis(self.request_timeout_ms)
    }

    pub(crate) fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.connect_timeout_ms)
    }

    pub(crate) fn settle_interval(&self) -> Duration {
        Duration::from_millis(self.settle_interval_ms)
    }

    pub(crate) fn retry_after_max(&self) -> Duration {
        Duration::from_secs(self.retry_after_seconds_max)
    }

    /// How many of [`sends_max`](Self::sends_max) a lane can take: the others always leave something to the high one.
    pub(crate) fn lane_sends_max(&self, lane: Lane) -> usize {
        let share = match lane {
            Lane::High => self.sends_max,
            Lane::Normal => self.sends_max * 3 / 4,
            Lane::Low => self.sends_max / 4,
        };
        share.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_checked_and_named() {
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
    fn the_key_is_not_shown() {
        let config = Config {
            vapid_private_key: Secret::new("hunter2"),
            ..Config::default()
        };
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
