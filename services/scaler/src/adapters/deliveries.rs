//! How many deliveries a message has.

use herald_mesh::{RawMessage, Subject, consumers::ConsumerKind};
use herald_proto::mesh_v1::{Backfill, DeliveriesSettled, PushChunk, TimelineChunk};

/// Numbers that messages don't have.
#[derive(Debug, Clone, Copy)]
pub struct Assumptions {
    /// Recipients of a post that fan-out has not expanded.
    pub post_recipients: f64,
    /// Recipients of a slice. The last one of a post has fewer.
    pub slice_recipients: f64,
    /// Posts that a backfill brings to each recipient, at most.
    pub backfill_posts: f64,
}

/// How the deliveries of a consumer's messages are known.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Known {
    /// Each message counts as this many.
    Fixed(f64),
    /// The messages have the number. Until some are read, each counts as this many.
    InMessages(f64),
}

impl Assumptions {
    /// How the deliveries of a consumer's messages are known.
    pub fn of_consumer(&self, consumer: &str) -> Known {
        match ConsumerKind::of(consumer) {
            Some(ConsumerKind::Fanout) => Known::Fixed(self.post_recipients),
            Some(ConsumerKind::Slice) => Known::Fixed(self.slice_recipients),
            Some(ConsumerKind::Timeline | ConsumerKind::Push) => Known::InMessages(self.post_recipients),
            Some(ConsumerKind::AnalyticsEvents) => Known::InMessages(1.0),
            // A due message is only published again.
            Some(ConsumerKind::Archive | ConsumerKind::AnalyticsPosts) | None => Known::Fixed(1.0),
        }
    }

    /// Deliveries of a message. One that can't be decoded counts as one: it costs a worker an attempt.
    pub fn of_message(&self, message: &RawMessage) -> f64 {
        let count = match message.original().map(|(subject, _)| subject) {
            Some(Subject::TimelineDeliver(_)) => message
                .decode::<TimelineChunk>()
                .map(|chunk| f64::from(chunk.recipient_count)),
            Some(Subject::PushDeliver(_)) => message
                .decode::<PushChunk>()
                .map(|chunk| f64::from(chunk.recipient_count)),
            Some(Subject::TimelineBackfill(_)) => message
                .decode::<Backfill>()
                .map(|backfill| f64::from(backfill.recipient_count) * self.backfill_posts),
            Some(Subject::Settled(_)) => message
                .decode::<DeliveriesSettled>()
                .map(|settled| settled.chunks.len() as f64),
            _ => Ok(1.0),
        };
        count.unwrap_or(1.0).max(1.0)
    }
}

#[cfg(test)]
mod tests {
    use herald_mesh::consumers;
    use herald_model::Lane;

    use super::*;

    #[test]
    fn a_message_of_fan_out_counts_as_its_recipients() {
        let assumed = Assumptions {
            post_recipients: 1_000.0,
            slice_recipients: 65_536.0,
            backfill_posts: 20.0,
        };
        for (consumer, known) in [
            (consumers::fanout(Lane::High), Known::Fixed(1_000.0)),
            (consumers::slice(Lane::Low), Known::Fixed(65_536.0)),
            (consumers::redrive(ConsumerKind::Slice), Known::Fixed(65_536.0)),
            (consumers::push(Lane::Normal), Known::InMessages(1_000.0)),
            (consumers::ANALYTICS_EVENTS, Known::InMessages(1.0)),
            (consumers::ARCHIVE, Known::Fixed(1.0)),
            (consumers::LATER, Known::Fixed(1.0)),
        ] {
            assert_eq!(assumed.of_consumer(consumer), known, "{consumer}");
        }
    }
}
