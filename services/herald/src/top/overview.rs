//! The overview: what `herald top` shows and prints.

use std::time::Duration;

use serde::Serialize;

use super::{samples::Buckets, window::Activity};

/// Time within which a post must be readable on every timeline.
const TIMELINE_PROMISE: Duration = Duration::from_secs(30);
/// Time within which a push must be accepted by its provider.
const PUSH_PROMISE: Duration = Duration::from_secs(5);

/// One reading. What could not be read is `null`, and its source has the reason.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Overview {
    pub(crate) read_time: String,
    /// Where the numbers come from.
    pub(crate) sources: Vec<SourceState>,
    pub(crate) posts_per_second: Option<f64>,
    pub(crate) timeline_deliveries_per_second: Option<f64>,
    pub(crate) pushes_per_second: Option<f64>,
    /// Latencies against their promises.
    pub(crate) latencies: Vec<Latency>,
    pub(crate) dead_letters: Option<DeadLetters>,
    pub(crate) last_24_hours: Option<Day>,
    /// The consumer with the oldest message first.
    pub(crate) consumers: Option<Vec<Consumer>>,
    /// The fullest stream first.
    pub(crate) streams: Option<Vec<Stream>>,
}

/// A process or service that was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct SourceState {
    pub(crate) source: String,
    /// Why it could not be read.
    pub(crate) error: Option<String>,
}

/// A latency over the last 30 s; all `null` without a post in that time.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Latency {
    pub(crate) channel: &'static str,
    pub(crate) promise_seconds: f64,
    pub(crate) p50_seconds: Option<f64>,
    /// The greatest bound of the histogram, 60 s, if it is above that.
    pub(crate) p99_seconds: Option<f64>,
    /// Share of what was within the promise, 0 to 1.
    pub(crate) within_promise: Option<f64>,
    /// Observations; `null` if no process that has them could be read twice.
    pub(crate) count: Option<f64>,
}

/// Open dead letters.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct DeadLetters {
    pub(crate) open_count: u64,
    pub(crate) group_count: u64,
}

/// Totals of the last 24 hours.
#[allow(clippy::struct_field_names, reason = "the names are those of the JSON")]
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Day {
    pub(crate) post_count: u64,
    pub(crate) timeline_delivered_count: u64,
    pub(crate) push_delivered_count: u64,
}

/// The lag of a consumer.
#[allow(clippy::struct_field_names, reason = "the names are those of the JSON")]
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Consumer {
    pub(crate) consumer: String,
    pub(crate) stream: String,
    pub(crate) pending_count: u64,
    pub(crate) ack_pending_count: u64,
    pub(crate) oldest_age_seconds: f64,
    /// Over the last 30 s.
    pub(crate) acknowledged_per_second: f64,
    /// Lag ÷ rate; 0 without lag, `null` if nothing is acknowledged.
    pub(crate) drain_seconds: Option<f64>,
}

/// The fullness of a stream.
#[allow(clippy::struct_field_names, reason = "the names are those of the JSON")]
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Stream {
    pub(crate) stream: String,
    /// Bytes ÷ limit, 0 to 1; `null` without a limit.
    pub(crate) fullness: Option<f64>,
    pub(crate) message_count: u64,
}

impl Consumer {
    /// Messages not acknowledged yet.
    pub(crate) fn lag(&self) -> u64 {
        self.pending_count.saturating_add(self.ack_pending_count)
    }
}

/// Time until a lag is worked off.
pub(super) fn drain_seconds(lag: u64, per_second: f64) -> Option<f64> {
    match lag {
        0 => Some(0.0),
        lag => (per_second > 0.0).then(|| lag as f64 / per_second),
    }
}

/// Both latencies.
pub(super) fn latencies(activity: &Activity) -> Vec<Latency> {
    let latency = |channel, promise: Duration, buckets: Option<&Buckets>| Latency {
        channel,
        promise_seconds: promise.as_secs_f64(),
        p50_seconds: buckets.and_then(|buckets| buckets.quantile(0.5)),
        p99_seconds: buckets.and_then(|buckets| buckets.quantile(0.99)),
        within_promise: buckets.and_then(|buckets| buckets.share_within(promise)),
        count: buckets.map(Buckets::total),
    };
    vec![
        latency("timeline", TIMELINE_PROMISE, activity.accept_to_visible.as_ref()),
        latency("push", PUSH_PROMISE, activity.accept_to_push.as_ref()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lag_without_progress_never_drains() {
        assert_eq!(drain_seconds(0, 0.0), Some(0.0));
        assert_eq!(drain_seconds(100, 50.0), Some(2.0));
        assert_eq!(drain_seconds(100, 0.0), None);
    }

    #[test]
    fn what_was_not_read_has_no_number() {
        for latency in latencies(&Activity::default()) {
            assert_eq!((latency.count, latency.p99_seconds), (None, None));
        }
    }
}
