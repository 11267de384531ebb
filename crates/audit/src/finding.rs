//! What can be wrong.

use herald_model::{Channel, ChunkId, PostId, UserId};

/// A kind of finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FindingKind {
    /// An accepted post is not in the archive, and no message will put it there.
    Unarchived,
    /// An accepted post's deliveries are not all planned, and no message will plan them.
    Unplanned,
    /// Deliveries are pending, and no message will settle them.
    Lost,
    /// The ledger says delivered, the timeline doesn't have it.
    Missing,
    /// The timeline has a post that was neither planned for it nor backfilled.
    Extra,
    /// More recipients are settled than were planned, one is settled twice, or what is recorded can't be read.
    Inconsistent,
    /// Deliveries are dead, and no dead letter says why.
    Unexplained,
    /// JetStream told that a message was given up, and no dead letter keeps it.
    Unrecorded,
    /// The totals of analytics differ from the ledger.
    Miscounted,
}

impl FindingKind {
    /// All of them.
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

    /// As it stands in metrics and answers.
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

/// What was done about a finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Repaired {
    /// Nothing: nobody asked.
    NotAsked,
    /// What is owed was sent again.
    Sent,
    /// It can't be.
    Failed(String),
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What.
    pub kind: FindingKind,
    /// The post, when one is known.
    pub post: Option<PostId>,
    /// The channel, where it is about one.
    pub channel: Option<Channel>,
    /// The recipient, where it is about one delivery.
    pub user: Option<UserId>,
    /// The chunk, where it is about one.
    pub chunk: Option<ChunkId>,
    /// How many deliveries it is about; 0 when that is not known.
    pub deliveries: u64,
    /// What was seen, in a sentence.
    pub detail: String,
    /// What was done about it.
    pub repaired: Repaired,
}

impl Finding {
    /// About a post.
    pub(crate) fn of_post(kind: FindingKind, post: PostId, detail: impl Into<String>) -> Self {
        Self {
            kind,
            post: Some(post),
            channel: None,
            user: None,
            chunk: None,
            deliveries: 0,
            detail: detail.into(),
            repaired: Repaired::NotAsked,
        }
    }

    /// About deliveries of a chunk.
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
