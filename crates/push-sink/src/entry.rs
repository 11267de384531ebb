//! What came.

use std::time::Duration;

use hdrhistogram::Histogram;
use jiff::Timestamp;
use serde::Serialize;

/// By which way a push came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A signed POST.
    Webhook,
    /// An encrypted one.
    WebPush,
}

/// One push that was accepted.
#[derive(Debug, Clone, Serialize)]
pub struct Entry {
    /// By which way.
    pub kind: Kind,
    /// The device's name: the last part of the path.
    pub name: String,
    /// The post.
    pub post_id: u64,
    /// Who wrote it.
    pub author_id: String,
    /// For whom.
    pub recipient_id: String,
    /// The text, as far as it was sent.
    pub text: String,
    /// When Herald accepted the post.
    pub accepted_time: Timestamp,
    /// When the push came.
    pub received_time: Timestamp,
    /// From the one to the other; zero when the clocks disagree.
    #[serde(serialize_with = "as_ms", rename = "latency_ms")]
    pub latency: Duration,
    /// Whether this device had this post for this recipient before.
    pub duplicate: bool,
    /// A webhook's `webhook-id`, or a Web Push message's `Topic`.
    pub message_id: String,
    /// Web Push: the `TTL`, seconds.
    pub ttl_seconds: Option<u64>,
    /// Web Push: the `Urgency`.
    pub urgency: Option<String>,
}

/// Counts and latencies over all that came.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Accepted pushes, duplicates included.
    pub received: u64,
    /// Of these, repeats of (device, post, recipient).
    pub duplicates: u64,
    /// Refused because of a bad signature, token or body.
    pub rejected: u64,
    /// Answered with an error because the sink was told to.
    pub failed: u64,
    /// From a post's acceptance to the first arrival of its push.
    pub latency_ms: Latencies,
}

/// Latencies, milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Latencies {
    /// Half are faster.
    pub p50: f64,
    /// 95 of 100 are faster.
    pub p95: f64,
    /// 99 of 100 are faster.
    pub p99: f64,
    /// The slowest.
    pub max: f64,
}

impl From<&Histogram<u64>> for Latencies {
    /// Of a histogram of microseconds.
    fn from(us: &Histogram<u64>) -> Self {
        let ms = |quantile| us.value_at_quantile(quantile) as f64 / 1e3;
        Self {
            p50: ms(0.5),
            p95: ms(0.95),
            p99: ms(0.99),
            max: us.max() as f64 / 1e3,
        }
    }
}

fn as_ms<S: serde::Serializer>(latency: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(latency.as_secs_f64() * 1e3)
}
