//! Every metric of this service.

use herald_model::Lane;
use herald_runtime::metrics::{Counter, Family, Gauge, Histogram, Registry, seconds};

/// The gateway's metrics.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Posts accepted, by lane.
    pub posts_accepted: Family<[(&'static str, &'static str); 1], Counter>,
    /// Posts that had been accepted before.
    pub posts_duplicate: Counter,
    /// Posts refused, by gRPC status code.
    pub posts_refused: Family<[(&'static str, &'static str); 1], Counter>,
    /// From a post's arrival to its acknowledgement by the broker.
    pub submit_seconds: Histogram,
    /// Posts and deletions archived.
    pub archived: Counter,
    /// Batches in which they were archived.
    pub archive_batches: Counter,
    /// WatchTimeline streams under way.
    pub watchers: Gauge,
    /// WatchTimeline streams ended because their reader was too slow.
    pub watchers_slow: Counter,
    /// Timeline chunks looked at for watchers.
    pub live_chunks: Counter,
    /// Timeline chunks that could not be read.
    pub live_chunks_malformed: Counter,
    /// Entries handed to watchers.
    pub live_entries: Counter,
    /// Entries that watchers got from the store because the live message was lost.
    pub live_entries_recovered: Counter,
    /// Posts on a timeline that are neither archived nor in the stream.
    pub posts_missing: Counter,
    /// Calls refused because too many were under way.
    pub calls_shed: Counter,
}

impl Metrics {
    /// Registers them.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            posts_accepted: Family::default(),
            posts_duplicate: Counter::default(),
            posts_refused: Family::default(),
            submit_seconds: seconds(),
            archived: Counter::default(),
            archive_batches: Counter::default(),
            watchers: Gauge::default(),
            watchers_slow: Counter::default(),
            live_chunks: Counter::default(),
            live_chunks_malformed: Counter::default(),
            live_entries: Counter::default(),
            live_entries_recovered: Counter::default(),
            posts_missing: Counter::default(),
            calls_shed: Counter::default(),
        };
        macro_rules! register {
            ($($field:ident, $help:literal;)*) => {$(
                registry.register(concat!("gateway_", stringify!($field)), $help, metrics.$field.clone());
            )*};
        }
        register! {
            posts_accepted, "Posts accepted";
            posts_duplicate, "Posts that had been accepted before";
            posts_refused, "Posts refused, by gRPC status code";
            submit_seconds, "From a post's arrival to its acknowledgement by the broker";
            archived, "Posts and deletions archived";
            archive_batches, "Batches in which posts and deletions were archived";
            watchers, "WatchTimeline streams under way";
            watchers_slow, "WatchTimeline streams ended because their reader was too slow";
            live_chunks, "Timeline chunks looked at for watchers";
            live_chunks_malformed, "Timeline chunks that could not be read";
            live_entries, "Entries handed to watchers";
            live_entries_recovered, "Entries that watchers got from the store because the live message was lost";
            posts_missing, "Posts on a timeline that are neither archived nor in the stream";
            calls_shed, "Calls refused because too many were under way";
        }
        metrics
    }

    /// Counts an accepted post.
    pub(crate) fn accepted(&self, lane: Lane) {
        self.posts_accepted
            .get_or_create(&[("lane", lane.as_str())])
            .inc();
    }

    /// Counts a refused post.
    pub(crate) fn refused(&self, code: tonic::Code) {
        let code = match code {
            tonic::Code::InvalidArgument => "invalid_argument",
            tonic::Code::ResourceExhausted => "resource_exhausted",
            tonic::Code::Unavailable => "unavailable",
            tonic::Code::DeadlineExceeded => "deadline_exceeded",
            _ => "other",
        };
        self.posts_refused.get_or_create(&[("code", code)]).inc();
    }
}
