//! Records of received pushes, and statistics over them.

use std::time::Duration;

use hdrhistogram::Histogram;
use jiff::Timestamp;
use serde::Serialize;

/// How a push was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A POST signed as in Standard Webhooks.
    Webhook,
    /// An encrypted Web Push message (RFC 8030, RFC 8291).
    WebPush,
}

/// One accepted push.
#[derive(Debug, Clone, Serialize)]
pub struct Entry {
    /// How it was sent.
    pub kind: Kind,
    /// The device's name: the last segment of the request path.
    pub name: String,
    /// The post id.
    pub post_id: u64,
    /// The author's user id.
    pub author_id: String,
    /// The recipient's user id.
    pub recipient_id: String,
    /// The text as sent; Herald may have truncated it.
    pub text: String,
    /// When Herald accepted the post.
    pub accepted_time: Timestamp,
    /// When the sink received the push.
    pub received_time: Timestamp,
    /// From `accepted_time` to `received_time`; zero if the clocks disagree.
    #[serde(serialize_with = "serialize_ms", rename = "latency_ms")]
    pub latency: Duration,
    /// Whether the sink already had this (device, post, recipient).
    pub duplicate: bool,
    /// A webhook's `webhook-id`, or a Web Push message's `Topic`.
    pub message_id: String,
    /// The `TTL` of a Web Push message, seconds.
    pub ttl_seconds: Option<u64>,
    /// The `Urgency` of a Web Push message.
    pub urgency: Option<String>,
}

/// Counts and latencies over all requests since the start.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Accepted pushes, duplicates included.
    pub received: u64,
    /// Accepted pushes whose (device, post, recipient) was already received.
    pub duplicates: u64,
    /// Requests rejected because of a bad signature, token or body.
    pub rejected: u64,
    /// Requests answered with an injected error.
    pub failed: u64,
    /// From the acceptance of a post to the first receipt of its push; duplicates don't count.
    pub latency_ms: Latencies,
}

/// Latency percentiles, milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Latencies {
    /// Median.
    pub p50: f64,
    /// 95th percentile.
    pub p95: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Maximum.
    pub max: f64,
}

impl From<&Histogram<u64>> for Latencies {
    /// Converts a histogram of microseconds.
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

fn serialize_ms<S: serde::Serializer>(latency: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(latency.as_secs_f64() * 1e3)
}
