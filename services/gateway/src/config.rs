//! What can be set.

use herald_push_endpoint::Policy;
use serde::{Deserialize, Serialize};

/// The gateway's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The largest request, bytes; 131,072 to 64 MiB. A post, whatever its fields hold, is at most 106 KB, a tenth of NATS's
    /// usual `max_payload`; where that is set lower, those that don't fit are refused.
    pub request_bytes_max: usize,
    /// Calls under way at the same time, over all connections; 1 to 1,000,000. More are refused with RESOURCE_EXHAUSTED.
    pub calls_max: usize,
    /// Streams under way at the same time on one connection; 1 to 100,000.
    pub streams_per_connection_max: u32,
    /// WatchTimeline streams under way at the same time; 1 to 1,000,000.
    pub watchers_max: usize,
    /// Entries that wait for one slow WatchTimeline reader before its stream is ended; 1 to 100,000.
    pub watch_queue_max: usize,
    /// How often a silent WatchTimeline stream gets a heartbeat, and how often it is compared with the store,
    /// milliseconds; 100 to 600,000.
    pub heartbeat_ms: u64,
    /// Memory for posts that are being shown to watchers, bytes; up to 4 GiB.
    pub live_post_cache_bytes_max: u64,
    /// Posts of one SubmitPosts stream that are on their way to the broker at the same time; 1 to 10,000.
    pub submit_in_flight_max: usize,
    /// How long a post waits for the graph service to tell the author's follow version, milliseconds; 10 to 60,000.
    pub graph_timeout_ms: u64,
    /// How long DeletePost waits until the archive shows the post as deleted, milliseconds; 0 to 60,000. The deletion is
    /// durable either way.
    pub delete_wait_ms: u64,
    /// Posts that the archive consumer writes in one go; 1 to 10,000.
    pub archive_batch_max: usize,
    /// Messages that the archive consumer holds at the same time; 1 to 100,000.
    pub archive_in_flight_max: usize,
    /// Of the redriven messages, likewise; 1 to 32,768.
    pub archive_redrive_in_flight_max: usize,
    /// Origins whose pages may call over gRPC-Web, as `https://app.example.org`; `*` for any; empty for none.
    pub cors_origins: Vec<String>,
    /// Which endpoints devices may have.
    pub endpoints: Policy,
    /// How long calls under way may take to finish at shutdown, milliseconds; 0 to 600,000.
    pub drain_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            request_bytes_max: 1 << 20,
            calls_max: 4_096,
            streams_per_connection_max: 4_096,
            watchers_max: 10_000,
            watch_queue_max: 256,
            heartbeat_ms: 15_000,
            live_post_cache_bytes_max: 32 << 20,
            submit_in_flight_max: 256,
            graph_timeout_ms: 2_000,
            delete_wait_ms: 5_000,
            archive_batch_max: 256,
            archive_in_flight_max: 512,
            archive_redrive_in_flight_max: 64,
            cors_origins: vec!["*".into()],
            endpoints: Policy::default(),
            drain_ms: 10_000,
        }
    }
}

impl Config {
    /// Says what is wrong, if anything is.
    pub fn validate(&self) -> Result<(), String> {
        herald_runtime::bounds!("gateway", self, {
            request_bytes_max: 131_072..=64 << 20,
            calls_max: 1..=1_000_000,
            streams_per_connection_max: 1..=100_000,
            watchers_max: 1..=1_000_000,
            watch_queue_max: 1..=100_000,
            heartbeat_ms: 100..=600_000,
            live_post_cache_bytes_max: 0..=4 << 30,
            submit_in_flight_max: 1..=10_000,
            graph_timeout_ms: 10..=60_000,
            delete_wait_ms: 0..=60_000,
            archive_batch_max: 1..=10_000,
            archive_in_flight_max: 1..=100_000,
            archive_redrive_in_flight_max: 1..=32_768,
            drain_ms: 0..=600_000,
        });
        let origin = |o: &String| o != "*" && http::HeaderValue::from_str(o).is_err();
        match self.cors_origins.iter().find(|o| origin(o)) {
            Some(bad) => Err(format!("gateway.cors_origins holds {bad:?}, which is no origin")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(Config::default().validate(), Ok(()));
    }

    #[test]
    fn a_value_out_of_bounds_is_named() {
        let config = Config {
            heartbeat_ms: 1,
            ..Config::default()
        };
        assert!(
            config
                .validate()
                .unwrap_err()
                .starts_with("gateway.heartbeat_ms must be 100 to 600000")
        );
        let config = Config {
            cors_origins: vec!["a\nb".into()],
            ..Config::default()
        };
        assert!(config.validate().unwrap_err().starts_with("gateway.cors_origins"));
    }
}
