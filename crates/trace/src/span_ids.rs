//! Ids of spans. The span of an attempt at a message has an id that every process can compute, so that the next attempt,
//! in whichever process, links to it.

use std::cell::Cell;

use opentelemetry::trace::{SpanId, TraceId};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator};
use xxhash_rust::xxh3::xxh3_64;

thread_local! {
    static NEXT: Cell<Option<SpanId>> = const { Cell::new(None) };
}

/// Random ids, except within [`with_span_id`].
#[derive(Debug, Default)]
pub struct SpanIds(RandomIdGenerator);

impl IdGenerator for SpanIds {
    fn new_trace_id(&self) -> TraceId {
        self.0.new_trace_id()
    }

    fn new_span_id(&self) -> SpanId {
        NEXT.take().unwrap_or_else(|| self.0.new_span_id())
    }
}

/// Runs `start`, which starts one span, the one that gets this id.
pub fn with_span_id<T>(id: SpanId, start: impl FnOnce() -> T) -> T {
    NEXT.set(Some(id));
    let started = start();
    NEXT.set(None);
    started
}

/// The id of the span of an attempt: a hash of the trace, the consumer, and the attempt at one of its messages.
pub fn attempt_span_id(trace: TraceId, consumer: &str, sequence: u64, attempt: u64) -> SpanId {
    let trace_bytes = trace.to_bytes();
    let parts: [&[u8]; 4] = [
        &trace_bytes,
        consumer.as_bytes(),
        &sequence.to_le_bytes(),
        &attempt.to_le_bytes(),
    ];
    // 0 is no valid id.
    SpanId::from(xxh3_64(&parts.concat()).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_next_span_gets_the_chosen_id() {
        let ids = SpanIds::default();
        let chosen = attempt_span_id(TraceId::from(1), "push-normal", 7, 2);
        let (first, second) = with_span_id(chosen, || (ids.new_span_id(), ids.new_span_id()));
        assert_eq!(first, chosen);
        assert_ne!(second, chosen);
        with_span_id(chosen, || ());
        assert_ne!(ids.new_span_id(), chosen);
    }

    #[test]
    fn each_attempt_at_each_message_of_each_consumer_has_its_id() {
        let id = |consumer, sequence, attempt| attempt_span_id(TraceId::from(1), consumer, sequence, attempt);
        let first = id("push-normal", 7, 1);
        assert_eq!(first, id("push-normal", 7, 1));
        for other in [
            id("push-low", 7, 1),
            id("push-normal", 8, 1),
            id("push-normal", 7, 2),
        ] {
            assert_ne!(first, other);
        }
    }
}
