//! Typed subjects.

use std::fmt;

use herald_model::{Channel, Lane};

/// A subject of the mesh. A message type has one subject per lane or channel, so that a consumer can filter by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// `post.v1.created.{lane}`: a post was accepted (`PostCreated`).
    PostCreated(Lane),
    /// `post.v1.deleted.{lane}`: a post was deleted (`PostDeleted`).
    PostDeleted(Lane),
    /// `fanout.v1.slice.{lane}`: continuation of a large fan-out (`FanoutSlice`).
    Slice(Lane),
    /// `timeline.v1.deliver.{lane}`: delivery of a post to some timelines (`TimelineChunk`).
    TimelineDeliver(Lane),
    /// `timeline.v1.backfill.{lane}`: delivery of an author's newest posts to new followers (`Backfill`).
    TimelineBackfill(Lane),
    /// `push.v1.deliver.{lane}`: delivery of a post to the devices of some followers (`PushChunk`).
    PushDeliver(Lane),
    /// `event.v1.settled.{channel}`: the ledger recorded settled deliveries (`DeliveriesSettled`).
    Settled(Channel),
    /// `live.v1.timeline`, core NATS: posts became visible on some timelines (`LiveUpdates`).
    LiveTimeline,
    /// `$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{stream}.{consumer}`: all attempts of a message were used (advisory
    /// of the server, JSON, without headers).
    MaxDeliveries,
    /// `$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.{stream}.{consumer}`: a worker terminated a message, or the server
    /// removed it (advisory of the server, JSON, without headers).
    Terminated,
    /// `dlq.v1.{stream}.{consumer}`: a dead letter with the failed message (`DlqEntry`).
    DeadLetter,
    /// `later.v1.due.{stream}.{consumer}`: a message of the delay queue that is due for this consumer (any type).
    Due,
}

/// Wildcard subjects: one subject per stream and consumer.
const WILDCARDS: [Subject; 4] = [
    Subject::MaxDeliveries,
    Subject::Terminated,
    Subject::DeadLetter,
    Subject::Due,
];

impl Subject {
    /// All subjects except the wildcards.
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

    /// Whether this is a wildcard: one subject per stream and consumer. Messages can't be published to it.
    pub const fn is_wildcard(self) -> bool {
        matches!(
            self,
            Self::MaxDeliveries | Self::Terminated | Self::DeadLetter | Self::Due
        )
    }

    /// Whether a second copy of a message changes nothing, because its effects are stored under keys made from its
    /// content: a delivery by follower and post, an outcome by chunk and revision. A second copy of a post is another
    /// post.
    pub const fn is_repeatable(self) -> bool {
        matches!(
            self,
            Self::Slice(_)
                | Self::TimelineDeliver(_)
                | Self::TimelineBackfill(_)
                | Self::PushDeliver(_)
                | Self::Settled(_)
        )
    }

    /// The subject on the wire; for a wildcard, the filter that matches its subjects.
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

    /// Parses a subject; `None` for a subject outside the mesh.
    pub fn parse(subject: &str) -> Option<Self> {
        if let Some(wildcard) = WILDCARDS.into_iter().find(|wildcard| wildcard.matches(subject)) {
            return Some(wildcard);
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

    /// Lane of the subject; `None` for a message type without lanes.
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

    /// Type of the messages: the value of the `Herald-Type` header, or the server's type name of an advisory.
    pub const fn message_type(self) -> &'static str {
        match self {
            Self::PostCreated(_) => "herald.mesh.v1.PostCreated",
            Self::PostDeleted(_) => "herald.mesh.v1.PostDeleted",
            Self::Slice(_) => "herald.mesh.v1.FanoutSlice",
            Self::TimelineDeliver(_) => "herald.mesh.v1.TimelineChunk",
            Self::LiveTimeline => "herald.mesh.v1.LiveUpdates",
            Self::TimelineBackfill(_) => "herald.mesh.v1.Backfill",
            Self::PushDeliver(_) => "herald.mesh.v1.PushChunk",
            Self::Settled(_) => "herald.mesh.v1.DeliveriesSettled",
            Self::MaxDeliveries => "io.nats.jetstream.advisory.v1.max_deliver",
            Self::Terminated => "io.nats.jetstream.advisory.v1.terminated",
            Self::DeadLetter => "herald.mesh.v1.DlqEntry",
            Self::Due => "any",
        }
    }

    /// Whether a subject matches this wildcard.
    fn matches(self, subject: &str) -> bool {
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
    fn subjects_are_unique_and_round_trip() {
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
    fn a_wildcard_matches_one_stream_and_consumer() {
        for (subject, wildcard) in [
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
            assert_eq!(Subject::parse(subject), wildcard, "{subject}");
        }
        for wildcard in WILDCARDS {
            assert!(wildcard.is_wildcard() && wildcard.lane().is_none());
            assert_eq!(Subject::parse(wildcard.as_str()), Some(wildcard));
        }
        assert!(!Subject::all().any(Subject::is_wildcard));
    }

    proptest! {
        #[test]
        fn a_parsed_subject_is_the_text_it_was_parsed_from(text in "([a-z0-9]{1,9}\\.){0,4}[a-z0-9]{0,9}") {
            if let Some(subject) = Subject::parse(&text).filter(|subject| !subject.is_wildcard()) {
                prop_assert_eq!(subject.as_str(), text);
            }
        }

        #[test]
        fn a_subject_with_extra_characters_does_not_parse(at in 0..20_usize, more in "[.a-z*>]{1,5}") {
            let subject = Subject::all().nth(at).unwrap();
            prop_assert_eq!(Subject::parse(&format!("{subject}{more}")), None);
            prop_assert_eq!(Subject::parse(&format!("{more}{subject}")), None);
        }
    }
}
