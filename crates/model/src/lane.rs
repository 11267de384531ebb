//! Lanes, channels and delivery states, with their names in subjects, metrics and on the command line.

use std::{fmt, str::FromStr};

/// Error for an unknown name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is not one of {known}")]
pub struct UnknownName {
    /// The unknown name.
    pub name: String,
    /// The known names, separated by commas.
    pub known: &'static str,
}

/// Priority class of a post, with its own queues. High is served first; low is slower, but not starved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Urgent posts.
    High,
    /// The default.
    #[default]
    Normal,
    /// Bulk posts and backfills.
    Low,
}

impl Lane {
    /// All lanes, most urgent first.
    pub const ALL: [Self; 3] = [Self::High, Self::Normal, Self::Low];

    /// Name in subjects and consumer names.
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

/// A delivery channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Channel {
    /// The follower's timeline.
    Timeline,
    /// The follower's devices.
    Push,
}

impl Channel {
    /// All channels.
    pub const ALL: [Self; 2] = [Self::Timeline, Self::Push];

    /// Name in subjects, metrics and API responses.
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

/// State of a delivery (a post, a channel, a recipient). All states except `Pending` are final, except that a redrive
/// makes `Dead` deliveries pending again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DeliveryState {
    /// Planned and not settled.
    Pending,
    /// Written to the timeline, or accepted by the push provider.
    Delivered,
    /// Not sent on purpose: push disabled, author muted, no device, post deleted.
    Suppressed,
    /// Not sent because the TTL of the post had passed.
    Expired,
    /// Marked dead: only a redrive delivers it.
    Dead,
}

impl DeliveryState {
    /// All states.
    pub const ALL: [Self; 5] = [
        Self::Pending,
        Self::Delivered,
        Self::Suppressed,
        Self::Expired,
        Self::Dead,
    ];

    /// Name in metrics and API responses.
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
