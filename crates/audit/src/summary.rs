//! Counts of an audit.

use std::{collections::BTreeMap, ops::AddAssign, time::Duration};

use herald_model::Channel;

use crate::FindingKind;

/// Number of deliveries of one channel by state: `targeted = delivered + suppressed + expired + pending + dead`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ChannelSums {
    /// Planned.
    pub targeted: u64,
    /// Delivered.
    pub delivered: u64,
    /// Suppressed, for example by a preference.
    pub suppressed: u64,
    /// Expired before delivery.
    pub expired: u64,
    /// Not in a final state.
    pub pending: u64,
    /// Marked dead.
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

/// The progress of an audit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Posts checked.
    pub posts: u64,
    /// Estimated number of posts to check.
    pub posts_total: u64,
    /// Deliveries checked.
    pub deliveries: u64,
}

/// The result of an audit.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Summary {
    /// Posts checked.
    pub posts: u64,
    /// Deliveries on the timeline channel.
    pub timeline: ChannelSums,
    /// Deliveries on the push channel.
    pub push: ChannelSums,
    /// Pairs of recipient and post compared with the timelines.
    pub timeline_entries: u64,
    /// Timeline entries added by a backfill.
    pub backfilled: u64,
    /// Timelines that were not compared, because they are incomplete: they are rebuilt when their users read them.
    /// Those of erased users are not counted.
    pub incomplete_timelines: u64,
    /// Posts whose plan is not complete because fan-out is still at work.
    pub planning_posts: u64,
    /// Posts whose plan is not complete because their fan-out has a dead letter.
    pub dead_posts: u64,
    /// Acceptance time of the oldest post with pending deliveries: how far the mesh lags behind. `None` if none is
    /// pending.
    pub oldest_pending_at: Option<herald_model::time::Timestamp>,
    /// Findings by kind.
    pub findings: BTreeMap<FindingKind, u64>,
    /// Findings with [`Repaired::Sent`](crate::Repaired::Sent).
    pub repaired: u64,
    /// Duration of the audit.
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

    /// Number of findings of all kinds.
    pub fn finding_count(&self) -> u64 {
        self.findings.values().sum()
    }
}
