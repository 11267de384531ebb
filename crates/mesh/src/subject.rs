//! The subjects that messages travel on, typed.

use std::fmt;

use herald_model::{Channel, Lane};

/// A subject of the mesh. Each kind of message has one a lane (or a channel), so that a consumer can choose by filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// `post.v1.created.{lane}`: a post was accepted (`PostCreated`).
    PostCreated(Lane),
    /// `post.v1.deleted.{lane}`: a post was deleted (`PostDeleted`).
    PostDeleted(Lane),
    /// `fanout.v1.slice.{lane}`: the rest of a big author's fan-out (`FanoutSlice`).
    Slice(Lane),
    /// `timeline.v1.deliver.{lane}`: a post for some timelines (`TimelineChunk`).
    TimelineDeliver(Lane),
    /// `timeline.v1.backfill.{lane}`: an author's newest posts for some new followers (`Backfill`).
    TimelineBackfill(Lane),
    /// `push.v1.deliver.{lane}`: a post for the devices of some followers (`PushChunk`).
    PushDeliver(Lane),
    /// `event.v1.settled.{channel}`: deliveries were settled (`DeliveriesSettled`).
    Settled(Channel),
    /// `live.v1.timeline`, core NATS: a chunk is readable (`TimelineChunk`).
    LiveTimeline,
    /// `$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{stream}.{consumer}`: the server gave a message up, as its attempts
    /// were used up (JSON, the server's own; it has no headers).
    MaxDeliveries,
    /// `$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.{stream}.{consumer}`: a worker gave a message up, or the server removed
    /// it (JSON, the server's own; it has no headers).
    Terminated,
    /// `dlq.v1.{stream}.{consumer}`: a message that was given up, with all that is known about it (`DeadLetter`).
    DeadLetter,
    /// `later.v1.due.{stream}.{consumer}`: a message that this consumer asked to have again later, and now is (any).
    Due,
}

/// The kinds that have one subject a stream and consumer.
const FAMILIES: [Subject; 4] = [
    Subject::MaxDeliveries,
    Subject::Terminated,
    Subject::DeadLetter,
    Subject::Due,
];

impl Subject {
    /// All that can be published to by name, which are all but the families.
    pub fn all() -> impl Iterator<Item = Self> {
        Lane::ALL
            .into_iter()
            .flat_map(|lane| {
                [
                    Self::PostCreated(lane),
                    Self::PostDeleted(lane),
                    Self::Slice(lane),
                    Self::TimelineDeliver(lane),
                    Self::TimelineBackfill(lane),
                    Self::PushDeliver(lane),
                ]
            })
            .chain(Channel::ALL.into_iter().map(Self::Settled))
            .chain([Self::LiveTimeline])
    }

    /// Whether it stands for many: one a stream and consumer.
    pub const fn is_family(self) -> bool {
        matches!(
            self,
            Self::MaxDeliveries | Self::Terminated | Self::DeadLetter | Self::Due
        )
    }

    /// As it goes over the wire; of a family, the filter that chooses all of it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PostCreated(Lane::High) => "post.v1.created.high",
            Self::PostCreated(Lane::Normal) => "post.v1.created.normal",
            Self::PostCreated(Lane::Low) => "post.v1.created.low",
            Self::PostDeleted(Lane::High) => "post.v1.deleted.high",
            Self::PostDeleted(Lane::Normal) => "post.v1.deleted.normal",
            Self::PostDeleted(Lane::Low) => "post.v1.deleted.low",
            Self::Slice(Lane::High) => "fanout.v1.slice.high",
            Self::Slice(Lane::Normal) => "fanout.v1.slice.normal",
            Self::Slice(Lane::Low) => "fanout.v1.slice.low",
            Self::TimelineDeliver(Lane::High) => "timeline.v1.deliver.high",
            Self::TimelineDeliver(Lane::Normal) => "timeline.v1.deliver.normal",
            Self::TimelineDeliver(Lane::Low) => "timeline.v1.deliver.low",
            Self::TimelineBackfill(Lane::High) => "timeline.v1.backfill.high",
            Self::TimelineBackfill(Lane::Normal) => "timeline.v1.backfill.normal",
            Self::TimelineBackfill(Lane::Low) => "timeline.v1.backfill.low",
            Self::PushDeliver(Lane::High) => "push.v1.deliver.high",
            Self::PushDeliver(Lane::Normal) => "push.v1.deliver.normal",
            Self::PushDeliver(Lane::Low) => "push.v1.deliver.low",
            Self::Settled(Channel::Timeline) => "event.v1.settled.timeline",
            Self::Settled(Channel::Push) => "event.v1.settled.push",
            Self::LiveTimeline => "live.v1.timeline",
            Self::MaxDeliveries => "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.*.*",
            Self::Terminated => "$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.*.*",
            Self::DeadLetter => "dlq.v1.*.*",
            Self::Due => "later.v1.due.*.*",
        }
    }

    /// Reads a subject off the wire; `None` for one that isn't of the mesh.
    pub fn parse(subject: &str) -> Option<Self> {
        if let Some(family) = FAMILIES.into_iter().find(|family| family.has(subject)) {
            return Some(family);
        }
        let (kind, last) = subject.rsplit_once('.')?;
        let lane = |make: fn(Lane) -> Self| last.parse().ok().map(make);
        match kind {
            "post.v1.created" => lane(Self::PostCreated),
            "post.v1.deleted" => lane(Self::PostDeleted),
            "fanout.v1.slice" => lane(Self::Slice),
            "timeline.v1.deliver" => lane(Self::TimelineDeliver),
            "timeline.v1.backfill" => lane(Self::TimelineBackfill),
            "push.v1.deliver" => lane(Self::PushDeliver),
            "event.v1.settled" => Channel::ALL
                .into_iter()
                .find(|c| c.as_str() == last)
                .map(Self::Settled),
            "live.v1" if last == "timeline" => Some(Self::LiveTimeline),
            _ => None,
        }
    }

    /// The lane it belongs to, if its kind has lanes.
    pub const fn lane(self) -> Option<Lane> {
        match self {
            Self::PostCreated(lane)
            | Self::PostDeleted(lane)
            | Self::Slice(lane)
            | Self::TimelineDeliver(lane)
            | Self::TimelineBackfill(lane)
            | Self::PushDeliver(lane) => Some(lane),
            Self::Settled(_)
            | Self::LiveTimeline
            | Self::MaxDeliveries
            | Self::Terminated
            | Self::DeadLetter
            | Self::Due => None,
        }
    }

    /// The message that travels on it: the value of the `Herald-Type` header where Herald publishes it, the server's own
    /// name for it otherwise.
    pub const fn message_type(self) -> &'static str {
        match self {
            Self::PostCreated(_) => "herald.mesh.v1.PostCreated",
            Self::PostDeleted(_) => "herald.mesh.v1.PostDeleted",
            Self::Slice(_) => "herald.mesh.v1.FanoutSlice",
            Self::TimelineDeliver(_) => "herald.mesh.v1.TimelineChunk",
            Self::LiveTimeline => "herald.mesh.v1.LiveChunks",
            Self::TimelineBackfill(_) => "herald.mesh.v1.Backfill",
            Self::PushDeliver(_) => "herald.mesh.v1.PushChunk",
            Self::Settled(_) => "herald.mesh.v1.DeliveriesSettled",
            Self::MaxDeliveries => "io.nats.jetstream.advisory.v1.max_deliver",
            Self::Terminated => "io.nats.jetstream.advisory.v1.terminated",
            Self::DeadLetter => "herald.mesh.v1.DlqEntry",
            Self::Due => "any",
        }
    }

    /// Whether a subject is of this family.
    fn has(self, subject: &str) -> bool {
        self.as_str()
            .strip_suffix("*.*")
            .and_then(|start| subject.strip_prefix(start))
            .and_then(|rest| rest.split_once('.'))
            .is_some_and(|(stream, consumer)| {
                !stream.is_empty() && !consumer.is_empty() && !consumer.contains('.')
            })
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_subject_reads_back_as_itself_and_no_two_are_alike() {
        let all: Vec<_> = Subject::all().collect();
        let texts: BTreeSet<_> = all.iter().map(ToString::to_string).collect();
        assert_eq!(all.len(), texts.len());
        for subject in all {
            assert_eq!(Subject::parse(subject.as_str()), Some(subject));
            assert_eq!(
                subject
                    .lane()
                    .is_some_and(|lane| subject.as_str().ends_with(lane.as_str())),
                subject.lane().is_some()
            );
        }
    }

    #[test]
    fn a_family_has_one_a_stream_and_consumer() {
        for (subject, family) in [
            (
                "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.PUSH.push-low",
                Some(Subject::MaxDeliveries),
            ),
            (
                "$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.POSTS.archive",
                Some(Subject::Terminated),
            ),
            ("$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.POSTS", None),
            ("$JS.EVENT.ADVISORY.CONSUMER.MSG_NAKED.POSTS.archive", None),
            ("$JS.EVENT.ADVISORY.STREAM.CREATED.POSTS", None),
            ("dlq.v1.TIMELINE.timeline-low", Some(Subject::DeadLetter)),
            ("later.v1.due.PUSH.push-low", Some(Subject::Due)),
            ("later.v1.wait.PUSH.push-low.7", None),
            ("dlq.v1.TIMELINE.", None),
            ("dlq.v1.TIMELINE.timeline-low.more", None),
        ] {
            assert_eq!(Subject::parse(subject), family, "{subject}");
        }
        for family in FAMILIES {
            assert!(family.is_family() && family.lane().is_none());
            assert_eq!(Subject::parse(family.as_str()), Some(family));
        }
        assert!(!Subject::all().any(Subject::is_family));
    }

    proptest! {
        #[test]
        fn what_parses_is_what_was_read(text in "([a-z0-9]{1,9}\\.){0,4}[a-z0-9]{0,9}") {
            if let Some(subject) = Subject::parse(&text).filter(|subject| !subject.is_family()) {
                prop_assert_eq!(subject.as_str(), text);
            }
        }

        #[test]
        fn a_subject_with_anything_more_is_another_one(at in 0..20_usize, more in "[.a-z*>]{1,5}") {
            let subject = Subject::all().nth(at).unwrap();
            prop_assert_eq!(Subject::parse(&format!("{subject}{more}")), None);
            prop_assert_eq!(Subject::parse(&format!("{more}{subject}")), None);
        }
    }
}
