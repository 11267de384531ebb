//! Names of the streams and consumers.

/// Names of the streams.
pub mod streams {
    /// Accepted and deleted posts. The sequence of an accepted post is its id.
    pub const POSTS: &str = "POSTS";
    /// Continuations of large fan-outs.
    pub const SLICES: &str = "SLICES";
    /// Timeline chunks and backfills.
    pub const TIMELINE: &str = "TIMELINE";
    /// Push chunks.
    pub const PUSH: &str = "PUSH";
    /// Settled deliveries, for analytics.
    pub const EVENTS: &str = "EVENTS";
    /// The delay queue: messages with a long retry delay.
    pub const LATER: &str = "LATER";
    /// JetStream's advisories about messages that were terminated or used all attempts.
    pub const ADVISORIES: &str = "ADVISORIES";
    /// Dead letters.
    pub const DLQ: &str = "DLQ";
    /// Redriven messages, by consumer kind.
    pub const REDRIVE: &str = "REDRIVE";

    /// The streams that can have a `PostCreated`, and with it the text of a post. Posts don't wait in [`LATER`].
    pub const WITH_TEXTS: [&str; 3] = [POSTS, REDRIVE, DLQ];

    /// All streams.
    pub(crate) const ALL: [&str; 9] = [
        POSTS, SLICES, TIMELINE, PUSH, EVENTS, LATER, ADVISORIES, DLQ, REDRIVE,
    ];
}

/// Names of the consumers.
pub mod consumers {
    use std::{fmt, str::FromStr};

    use herald_model::{Lane, UnknownName};

    use crate::NatsUser;
    use crate::headers::REDRIVE_SUBJECTS;

    /// POSTS: writes posts and request ids to the archive.
    pub const ARCHIVE: &str = "archive";
    /// POSTS: counts posts.
    pub const ANALYTICS_POSTS: &str = "analytics-posts";
    /// EVENTS: counts deliveries.
    pub const ANALYTICS_EVENTS: &str = "analytics-events";
    /// LATER: publishes due messages to their original subjects.
    pub const LATER: &str = "later";
    /// ADVISORIES: publishes dead letters to DLQ.
    pub const DEADLETTER: &str = "deadletter";
    /// DLQ: writes dead letters to the store.
    pub const DEAD_LETTERS: &str = "dead-letters";

    /// POSTS: fans out the posts of a lane.
    pub const fn fanout(lane: Lane) -> &'static str {
        match lane {
            Lane::High => "fanout-high",
            Lane::Normal => "fanout-normal",
            Lane::Low => "fanout-low",
        }
    }

    /// SLICES: continues large fan-outs of a lane.
    pub const fn slice(lane: Lane) -> &'static str {
        match lane {
            Lane::High => "slice-high",
            Lane::Normal => "slice-normal",
            Lane::Low => "slice-low",
        }
    }

    /// TIMELINE: writes the timeline entries of a lane.
    pub const fn timeline(lane: Lane) -> &'static str {
        match lane {
            Lane::High => "timeline-high",
            Lane::Normal => "timeline-normal",
            Lane::Low => "timeline-low",
        }
    }

    /// PUSH: sends the pushes of a lane.
    pub const fn push(lane: Lane) -> &'static str {
        match lane {
            Lane::High => "push-high",
            Lane::Normal => "push-normal",
            Lane::Low => "push-low",
        }
    }

    /// REDRIVE: handles the redriven messages of a consumer kind.
    pub const fn redrive(kind: ConsumerKind) -> &'static str {
        match kind {
            ConsumerKind::Archive => "redrive-archive",
            ConsumerKind::AnalyticsPosts => "redrive-analytics-posts",
            ConsumerKind::AnalyticsEvents => "redrive-analytics-events",
            ConsumerKind::Fanout => "redrive-fanout",
            ConsumerKind::Slice => "redrive-slice",
            ConsumerKind::Timeline => "redrive-timeline",
            ConsumerKind::Push => "redrive-push",
        }
    }

    /// Kind of a consumer, without its lane. Consumers of one kind have the same handler, so one redrive consumer
    /// serves all of them.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub enum ConsumerKind {
        /// Consumer [`ARCHIVE`].
        Archive,
        /// Consumer [`ANALYTICS_POSTS`].
        AnalyticsPosts,
        /// Consumer [`ANALYTICS_EVENTS`].
        AnalyticsEvents,
        /// Consumers of [`fanout`].
        Fanout,
        /// Consumers of [`slice`].
        Slice,
        /// Consumers of [`timeline`].
        Timeline,
        /// Consumers of [`push`].
        Push,
    }

    impl ConsumerKind {
        /// All kinds.
        pub const ALL: [Self; 7] = [
            Self::Archive,
            Self::AnalyticsPosts,
            Self::AnalyticsEvents,
            Self::Fanout,
            Self::Slice,
            Self::Timeline,
            Self::Push,
        ];

        /// Name of the kind in subjects.
        pub const fn as_str(self) -> &'static str {
            match self {
                Self::Archive => ARCHIVE,
                Self::AnalyticsPosts => ANALYTICS_POSTS,
                Self::AnalyticsEvents => ANALYTICS_EVENTS,
                Self::Fanout => "fanout",
                Self::Slice => "slice",
                Self::Timeline => "timeline",
                Self::Push => "push",
            }
        }

        /// Users of the NATS server whose service handles this kind.
        pub(crate) const fn users(self) -> &'static [NatsUser] {
            match self {
                Self::Archive => &[NatsUser::Archive],
                Self::AnalyticsPosts | Self::AnalyticsEvents => &[NatsUser::Analytics],
                Self::Fanout | Self::Slice => &[NatsUser::Fanout],
                Self::Timeline => &[NatsUser::Timeline],
                Self::Push => &[NatsUser::Push],
            }
        }

        /// Subject of redriven messages.
        pub(crate) fn subject(self) -> String {
            format!("{REDRIVE_SUBJECTS}{self}")
        }

        /// Kind of a consumer or a redrive consumer; `None` for a consumer whose messages can't be redriven.
        pub fn of(consumer: &str) -> Option<Self> {
            let consumer = consumer.strip_prefix("redrive-").unwrap_or(consumer);
            let without_lane = consumer
                .rsplit_once('-')
                .filter(|(_, lane)| lane.parse::<Lane>().is_ok())
                .map_or(consumer, |(kind, _)| kind);
            without_lane.parse().ok()
        }
    }

    impl FromStr for ConsumerKind {
        type Err = UnknownName;

        fn from_str(name: &str) -> Result<Self, UnknownName> {
            Self::ALL
                .into_iter()
                .find(|kind| kind.as_str() == name)
                .ok_or_else(|| UnknownName {
                    name: name.into(),
                    known: "archive, analytics-posts, analytics-events, fanout, slice, timeline, push",
                })
        }
    }

    impl fmt::Display for ConsumerKind {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.as_str())
        }
    }
}

#[cfg(test)]
mod tests {
    use herald_model::Lane;

    use super::consumers::{self, ConsumerKind};

    #[test]
    fn each_consumer_has_a_kind_and_each_kind_a_redrive_consumer() {
        for kind in ConsumerKind::ALL {
            assert_eq!(kind.as_str().parse(), Ok(kind));
            assert_eq!(consumers::redrive(kind), format!("redrive-{kind}"));
            assert_eq!(ConsumerKind::of(consumers::redrive(kind)), Some(kind));
        }
        for lane in Lane::ALL {
            assert_eq!(
                ConsumerKind::of(consumers::fanout(lane)),
                Some(ConsumerKind::Fanout)
            );
            assert_eq!(
                ConsumerKind::of(consumers::slice(lane)),
                Some(ConsumerKind::Slice)
            );
            assert_eq!(
                ConsumerKind::of(consumers::timeline(lane)),
                Some(ConsumerKind::Timeline)
            );
            assert_eq!(ConsumerKind::of(consumers::push(lane)), Some(ConsumerKind::Push));
        }
        assert_eq!(ConsumerKind::of(consumers::ARCHIVE), Some(ConsumerKind::Archive));
        assert_eq!(
            ConsumerKind::of(consumers::ANALYTICS_POSTS),
            Some(ConsumerKind::AnalyticsPosts)
        );
        assert_eq!(
            ConsumerKind::of(consumers::ANALYTICS_EVENTS),
            Some(ConsumerKind::AnalyticsEvents)
        );
        for other in [
            consumers::LATER,
            consumers::DEADLETTER,
            consumers::DEAD_LETTERS,
            "",
            "push-urgent",
            "redrive",
        ] {
            assert_eq!(ConsumerKind::of(other), None, "{other}");
        }
    }
}
