//! Findings of audits.

use herald_model::{Channel, ChunkId, PostId, UserId};

/// A kind of finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FindingKind {
    /// An accepted post is not in the archive, and no message in flight will archive it.
    Unarchived,
    /// An accepted post is not completely planned, and no message in flight will plan the rest.
    Unplanned,
    /// Deliveries are pending, and no message in flight will settle them.
    Lost,
    /// A delivery is delivered according to the ledger, but the post is not on the timeline.
    Missing,
    /// A post is on a timeline, but was neither planned for that timeline nor backfilled.
    Extra,
    /// The ledger settles recipients that were not planned or settles a recipient twice, or rows can't be read.
    Inconsistent,
    /// Deliveries are dead in the ledger, and no dead letter explains them.
    Unexplained,
    /// A JetStream advisory reports that a message is no longer redelivered, and the message has no dead letter.
    Unrecorded,
    /// The totals of analytics differ from the ledger.
    Miscounted,
}

impl FindingKind {
    /// All kinds.
    pub const ALL: [Self; 9] = [
        Self::Unarchived,
        Self::Unplanned,
        Self::Lost,
        Self::Missing,
        Self::Extra,
        Self::Inconsistent,
        Self::Unexplained,
        Self::Unrecorded,
        Self::Miscounted,
    ];

    /// The name in metrics and responses.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unarchived => "unarchived",
            Self::Unplanned => "unplanned",
            Self::Lost => "lost",
            Self::Missing => "missing",
            Self::Extra => "extra",
            Self::Inconsistent => "inconsistent",
            Self::Unexplained => "unexplained",
            Self::Unrecorded => "unrecorded",
            Self::Miscounted => "miscounted",
        }
    }
}

/// The result of repairing a finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Repaired {
    /// No repair was requested.
    NotRequested,
    /// A message that repairs the finding was published, or the timeline was rebuilt.
    Sent,
    /// The repair failed, with the reason.
    Failed(String),
}

/// A discrepancy found by an audit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The kind.
    pub kind: FindingKind,
    /// The post; `None` if unknown.
    pub post: Option<PostId>,
    /// The channel; `None` if the finding is not about one channel.
    pub channel: Option<Channel>,
    /// The recipient; `None` if the finding is not about one delivery.
    pub user: Option<UserId>,
    /// The chunk; `None` if the finding is not about one chunk.
    pub chunk: Option<ChunkId>,
    /// Number of affected deliveries; 0 if unknown.
    pub deliveries: u64,
    /// A description for operators.
    pub detail: String,
    /// The result of the repair.
    pub repaired: Repaired,
}

impl Finding {
    /// A finding about a post.
    pub(crate) fn of_post(kind: FindingKind, post: PostId, detail: impl Into<String>) -> Self {
        Self {
            kind,
            post: Some(post),
            channel: None,
            user: None,
            chunk: None,
            deliveries: 0,
            detail: detail.into(),
            repaired: Repaired::NotRequested,
        }
    }

    /// A finding about deliveries of a chunk.
    pub(crate) fn of_chunk(
        kind: FindingKind,
        (post, channel, chunk): (PostId, Channel, ChunkId),
        deliveries: u64,
        detail: impl Into<String>,
    ) -> Self {
        Self {
            channel: Some(channel),
            chunk: Some(chunk),
            deliveries,
            ..Self::of_post(kind, post, detail)
        }
    }
}
