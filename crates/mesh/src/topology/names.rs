//! What the streams and consumers are called.

/// The streams' names.
pub mod streams {
    /// Posts accepted and deleted. A post's id is its sequence here.
    pub const POSTS: &str = "POSTS";
    /// The rest of big authors' fan-outs.
    pub const SLICES: &str = "SLICES";
    /// Chunks for timelines, and backfills.
    pub const TIMELINE: &str = "TIMELINE";
    /// Chunks for devices.
    pub const PUSH: &str = "PUSH";
    /// What was settled, for analytics.
    pub const EVENTS: &str = "EVENTS";
    /// Messages that wait long for their next attempt.
    pub const LATER: &str = "LATER";
    /// JetStream's advisories of messages that were given up.
    pub const ADVISORIES: &str = "ADVISORIES";
    /// Dead letters: what was given up, with all that is known about it.
    pub const DLQ: &str = "DLQ";
    /// Dead letters on their second way, each to the kind of consumer that had given it up.
    pub const REDRIVE: &str = "REDRIVE";
}

/// The consumers' names.
pub mod consumers {
    use std::{fmt, str::FromStr};

    use herald_model::{Lane, UnknownName};

    use crate::headers::REDRIVE_SUBJECTS;

    /// Of POSTS: writes posts and request ids to the store.
    pub const ARCHIVE: &str = "archive";
    /// Of POSTS: analytics.
    pub const ANALYTICS_POSTS: &str = "analytics-posts";
    /// Of EVENTS: analytics.
    pub const ANALYTICS_EVENTS: &str = "analytics-events";
    /// Of LATER: puts messages that have waited long enough back into their streams.
    pub const LATER: &str = "later";
    /// Of ADVISORIES: makes dead letters of what was given up.
    pub const DEADLETTER: &str = "deadletter";
    /// Of DLQ: writes the dead letters to the store.
    pub const DEAD_LETTERS: &str = "dead-letters";

    /// Of POSTS: expands the posts of a lane.
    pub const fn fanout(lane: Lane) -> &'static str {
        match lane {
            Lane::High => "fanout-high",
            Lane::Normal => "fanout-normal",
            Lane::Low => "fanout-low",
        }
    }

    /// Of SLICES: goes on with big authors' fan-outs of a lane.
    pub const fn slice(lane: Lane) -> &'static str {
        match lane {
            Lane::High => "slice-high",
            Lane::Normal => "slice-normal",
            Lane::Low => "slice-low",
        }
    }

    /// Of TIMELINE: writes the timelines of a lane.
    pub const fn timeline(lane: Lane) -> &'static str {
        match lane {
            Lane::High => "timeline-high",
            Lane::Normal => "timeline-normal",
            Lane::Low => "timeline-low",
        }
    }

    /// Of PUSH: sends the pushes of a lane.
    pub const fn push(lane: Lane) -> &'static str {
        match lane {
            Lane::High => "push-high",
            Lane::Normal => "push-normal",
            Lane::Low => "push-low",
        }
    }

    /// Of REDRIVE: does again what the consumers of a kind had given up.
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

    /// What a consumer does, whatever its lane: the consumers of one kind have one handler, so one of them can do again
    /// what another had given up.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub enum ConsumerKind {
        /// [`ARCHIVE`].
        Archive,
        /// [`ANALYTICS_POSTS`].
        AnalyticsPosts,
        /// [`ANALYTICS_EVENTS`].
        AnalyticsEvents,
        /// Those of [`fanout`].
        Fanout,
        /// Those of [`slice`].
        Slice,
        /// Those of [`timeline`].
        Timeline,
        /// Those of [`push`].
        Push,
    }

    impl ConsumerKind {
        /// All of them.
        pub const ALL: [Self; 7] = [
            Self::Archive,
            Self::AnalyticsPosts,
            Self::AnalyticsEvents,
            Self::Fanout,
            Self::Slice,
            Self::Timeline,
            Self::Push,
        ];

        /// As it stands in subjects.
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

        /// The subject of redriven messages.
        pub(crate) fn subject(self) -> String {
            format!("{REDRIVE_SUBJECTS}{self}")
        }

        /// The kind of this consumer, or of this one of REDRIVE; `None` for one whose messages can't be redriven.
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
    fn a_consumer_knows_its_kind_and_each_kind_its_redrive_consumer() {
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
