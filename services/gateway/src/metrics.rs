//! Every metric of this service.

use herald_model::Lane;
use herald_rpc::status;
use herald_runtime::connections::Counts;
use herald_runtime::metrics::{Counter, Family, Gauge, Histogram, Registry, seconds};
use tonic::Status;

/// The gateway's metrics.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Posts accepted, by lane.
    pub posts_accepted: Family<[(&'static str, &'static str); 1], Counter>,
    /// Posts whose request id was accepted before.
    pub posts_duplicate: Counter,
    /// Posts refused, by gRPC status code.
    pub posts_refused: Family<[(&'static str, &'static str); 1], Counter>,
    /// Time from the arrival of a post to its acknowledgement by the broker.
    pub submit_seconds: Histogram,
    /// Active WatchTimeline streams.
    pub watchers: Gauge,
    /// WatchTimeline streams ended because their queue was full.
    pub watchers_slow: Counter,
    /// Live timeline chunks received.
    pub live_chunks: Counter,
    /// Live timeline chunks that are malformed.
    pub live_chunks_malformed: Counter,
    /// Live entries queued for watchers.
    pub live_entries: Counter,
    /// Entries that a comparison with the store found after a lost live message.
    pub live_entries_recovered: Counter,
    /// Posts on a timeline that are neither in the archive nor in POSTS.
    pub posts_missing: Counter,
    /// Calls refused because too many calls of their connection, their address or all callers were in flight.
    pub calls_shed: Counter,
    /// Calls refused because of a limit of rates, by what is limited.
    pub rate_limited: Family<[(&'static str, &'static str); 1], Counter>,
    /// Calls refused because of their credential, by reason.
    pub calls_refused: Family<[(&'static str, &'static str); 1], Counter>,
    /// Open connections.
    pub connections: Gauge,
    /// Connections refused because too many of their address or of all clients were open.
    pub connections_refused: Counter,
    /// Connections closed because their client was silent or did not read.
    pub connections_closed: Counter,
    /// Answers ended because their caller did not read them.
    pub answers_cut: Counter,
    /// Connections closed because their TLS handshake failed.
    pub handshakes_failed: Counter,
}

impl Metrics {
    /// Registers the metrics.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            posts_accepted: Family::default(),
            posts_duplicate: Counter::default(),
            posts_refused: Family::default(),
            submit_seconds: seconds(),
            watchers: Gauge::default(),
            watchers_slow: Counter::default(),
            live_chunks: Counter::default(),
            live_chunks_malformed: Counter::default(),
            live_entries: Counter::default(),
            live_entries_recovered: Counter::default(),
            posts_missing: Counter::default(),
            calls_shed: Counter::default(),
            rate_limited: Family::default(),
            calls_refused: Family::default(),
            connections: Gauge::default(),
            connections_refused: Counter::default(),
            connections_closed: Counter::default(),
            answers_cut: Counter::default(),
            handshakes_failed: Counter::default(),
        };
        macro_rules! register {
            ($($field:ident, $help:literal;)*) => {$(
                registry.register(concat!("gateway_", stringify!($field)), $help, metrics.$field.clone());
            )*};
        }
        register! {
            posts_accepted, "Posts accepted";
            posts_duplicate, "Posts whose request id was accepted before";
            posts_refused, "Posts refused, by gRPC status code";
            submit_seconds, "Time from the arrival of a post to its acknowledgement by the broker";
            watchers, "Active WatchTimeline streams";
            watchers_slow, "WatchTimeline streams ended because their queue was full";
            live_chunks, "Live timeline chunks received";
            live_chunks_malformed, "Live timeline chunks that are malformed";
            live_entries, "Live entries queued for watchers";
            live_entries_recovered, "Entries that a comparison with the store found after a lost live message";
            posts_missing, "Posts on a timeline that are neither in the archive nor in POSTS";
            calls_shed, "Calls refused because too many of their connection, their address or all callers were in flight";
            rate_limited, "Calls refused because their address, their principal or their author exceeds a limit of rates";
            calls_refused, "Calls refused because of their credential, by reason";
            connections, "Open connections";
            connections_refused, "Connections refused because too many of their address or of all clients were open";
            connections_closed, "Connections closed because their client was silent or did not read";
            answers_cut, "Answers ended because their caller did not read them";
            handshakes_failed, "Connections closed because their TLS handshake failed";
        }
        metrics
    }

    /// What the port counts.
    pub(crate) fn port_counts(&self) -> Counts {
        Counts {
            open: self.connections.clone(),
            refused: self.connections_refused.clone(),
            closed: self.connections_closed.clone(),
            answers_cut: self.answers_cut.clone(),
            handshakes_failed: self.handshakes_failed.clone(),
        }
    }

    /// Counts an accepted post.
    pub(crate) fn count_accepted(&self, lane: Lane) {
        self.posts_accepted
            .get_or_create(&[("lane", lane.as_str())])
            .inc();
    }

    /// Counts a call that a limit of rates refuses: that of an `address`, a `principal` or an `author`.
    pub(crate) fn count_limited(&self, by: &'static str) {
        self.rate_limited.get_or_create(&[("by", by)]).inc();
    }

    /// Counts a refused post.
    pub(crate) fn count_refused(&self, status: &Status) {
        let code = match status.code() {
            _ if status::is_rate_limited(status) => "rate_limited",
            _ if status::is_quota_exceeded(status) => "quota_exceeded",
            tonic::Code::InvalidArgument => "invalid_argument",
            tonic::Code::AlreadyExists => "already_exists",
            tonic::Code::ResourceExhausted => "resource_exhausted",
            tonic::Code::Unavailable => "unavailable",
            tonic::Code::DeadlineExceeded => "deadline_exceeded",
            _ => "other",
        };
        self.posts_refused.get_or_create(&[("code", code)]).inc();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use herald_runtime::metrics::Shared;
    use tonic::Code;

    use super::*;

    #[test]
    fn mistakes_of_callers_have_labels_of_their_own() {
        let shared = Shared::new();
        let metrics = shared.register(Metrics::new);
        for code in [
            Code::InvalidArgument,
            Code::AlreadyExists,
            Code::ResourceExhausted,
            Code::Internal,
        ] {
            metrics.count_refused(&Status::new(code, "refused"));
        }
        metrics.count_refused(&status::rate_limited(
            "author_id",
            "too often",
            Duration::from_secs(1),
        ));
        metrics.count_refused(&status::quota_exceeded("author_id", "too many", None));
        let text = shared.open_metrics();
        for code in [
            "invalid_argument",
            "already_exists",
            "resource_exhausted",
            "rate_limited",
            "quota_exceeded",
            "other",
        ] {
            let line = format!("herald_gateway_posts_refused_total{{code=\"{code}\"}} 1\n");
            assert!(text.contains(&line), "{line}{text}");
        }
    }
}
