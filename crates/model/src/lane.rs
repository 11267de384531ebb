//! Lanes, channels and states, with the names that stand in subjects, metrics and on the command line.

use std::{fmt, str::FromStr};

/// A name that is none of those there are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is not one of {known}")]
pub struct UnknownName {
    /// What was given.
    pub name: String,
    /// What there is.
    pub known: &'static str,
}

/// Which queue a post travels in. High goes first; low is slower, never starved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// For posts that a person is waiting for.
    High,
    /// The default.
    #[default]
    Normal,
    /// For bulk and backfill.
    Low,
}

impl Lane {
    /// All of them, the most urgent first.
    pub const ALL: [Self; 3] = [Self::High, Self::Normal, Self::Low];

    /// As it stands in subjects and consumer names.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Normal => "normal",
            Self::Low => "low",
        }
    }
}

impl FromStr for Lane {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        Self::ALL
            .into_iter()
            .find(|lane| lane.as_str() == name)
            .ok_or_else(|| UnknownName {
                name: name.into(),
                known: "high, normal, low",
            })
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A way in which a post reaches a follower.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Channel {
    /// The follower's timeline.
    Timeline,
    /// The follower's devices.
    Push,
}

impl Channel {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Timeline, Self::Push];

    /// As it stands in subjects, metrics and answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Timeline => "timeline",
            Self::Push => "push",
        }
    }
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How far one delivery (a post, a channel, a recipient) has come. All but `Pending` are final, but
/// that a redrive makes `Dead` ones pending again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DeliveryState {
    /// Planned, not settled yet.
    Pending,
    /// On the timeline, or accepted by the push provider.
    Delivered,
    /// Left out on purpose.
    Suppressed,
    /// Too late to send.
    Expired,
    /// Given up.
    Dead,
}

impl DeliveryState {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Pending,
        Self::Delivered,
        Self::Suppressed,
        Self::Expired,
        Self::Dead,
    ];

    /// As it stands in metrics and answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Suppressed => "suppressed",
            Self::Expired => "expired",
            Self::Dead => "dead",
        }
    }
}

impl fmt::Display for DeliveryState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
