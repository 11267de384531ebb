//! What an audit has seen, in numbers.

use std::{collections::BTreeMap, ops::AddAssign, time::Duration};

use herald_model::Channel;

use crate::FindingKind;

/// The deliveries of one channel: `targeted = delivered + suppressed + expired + pending + dead`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ChannelSums {
    /// Planned.
    pub targeted: u64,
    /// Reached.
    pub delivered: u64,
    /// Left out on purpose.
    pub suppressed: u64,
    /// Too late to send.
    pub expired: u64,
    /// Not settled.
    pub pending: u64,
    /// Given up.
    pub dead: u64,
}

impl AddAssign for ChannelSums {
    fn add_assign(&mut self, other: Self) {
        self.targeted += other.targeted;
        self.delivered += other.delivered;
        self.suppressed += other.suppressed;
        self.expired += other.expired;
        self.pending += other.pending;
        self.dead += other.dead;
    }
}

/// How far an audit has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Posts checked.
    pub posts: u64,
    /// Posts to check, as far as is known.
    pub posts_total: u64,
    /// Deliveries checked.
    pub deliveries: u64,
}

/// What an audit has seen.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Summary {
    /// Posts checked.
    pub posts: u64,
    /// The timeline.
    pub timeline: ChannelSums,
    /// The push.
    pub push: ChannelSums,
    /// Pairs of follower and post compared with the timelines.
    pub timeline_entries: u64,
    /// Entries that came by a backfill.
    pub backfilled: u64,
    /// Posts whose planning is under way.
    pub planning_posts: u64,
    /// Posts that were not planned, with a dead letter that says why.
    pub dead_posts: u64,
    /// When the oldest delivery that is pending was accepted, if any is: how far behind the mesh is.
    pub oldest_pending_at: Option<herald_model::time::Timestamp>,
    /// Findings by kind.
    pub findings: BTreeMap<FindingKind, u64>,
    /// Findings whose deliveries were sent again.
    pub repaired: u64,
    /// How long it took.
    pub took: Duration,
}

impl Summary {
    /// The sums of a channel.
    pub fn channel_mut(&mut self, channel: Channel) -> &mut ChannelSums {
        match channel {
            Channel::Timeline => &mut self.timeline,
            Channel::Push => &mut self.push,
        }
    }

    /// Findings of all kinds.
    pub fn finding_count(&self) -> u64 {
        self.findings.values().sum()
    }
}
