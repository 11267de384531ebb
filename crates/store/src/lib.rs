//! What Herald remembers, as small traits split by what they hold, and the engines behind them.
//!
//! | trait | holds | who writes |
//! |---|---|---|
//! | [`Users`] | user id ↔ [`UserKey`](herald_model::UserKey) | gateway, graph |
//! | [`Follows`] | who follows whom, with history | graph |
//! | [`Posts`] | posts, deletions, request ids | the archive consumer |
//! | [`Devices`], [`Preferences`] | where and whether to push | gateway |
//! | [`Timelines`] | (follower, post) | timeline |
//! | [`Ledger`] | what was planned for a post and what became of it | fanout, timeline, push |
//! | [`Totals`] | counts by post and hour | analytics |
//! | [`DeadLetters`] | messages that were given up, and what was done about them | deadletter |
//!
//! *Invariant:* when a write's future resolves with `Ok`, it is durable (fsynced by the embedded engine); where that gives a
//! [`Durable`], when this one does. Messages are acknowledged only after that.
//!
//! *Invariant:* every write can be repeated without changing the outcome, because every message can come again.

#[macro_use]
mod fault;

mod accounts;
mod dead_letters;
pub mod embedded;
mod error;
mod follows;
mod ledger;
mod posts;
mod timelines;
mod totals;

use std::sync::Arc;

use futures::future::BoxFuture;

pub use accounts::{DEVICES_PER_USER_MAX, Devices, MUTED_AUTHORS_MAX, Preferences, PreferencesChange, Users};
pub use dead_letters::{
    Cause, Chosen, DeadLetter, DeadLetterFilter, DeadLetterGroup, DeadLetterId, DeadLetterPage,
    DeadLetterState, DeadLetters, Inserted, MessageRef, NewOperation, OPERATIONS_PER_DEAD_LETTER, Operation,
    OperationId, OperationKind, OperationState, Order, Payload, Reopened, Reopening, Step,
};
pub use error::{Error, ErrorKind, Result};
pub use follows::{FollowChange, FollowerCount, FollowerPage, Following, Follows};
pub use ledger::{
    ChannelCounts, ChunkPlan, ChunkState, ExpectedRevision, Ledger, MarkedDead, Outcome, PartialDelivery,
    PlannedSlice, PostCounts, PostPlan, RecordedOutcome, SettledCounts, Settlement, SlicePlan,
};
pub use posts::{Archived, Posts};
pub use timelines::Timelines;
pub use totals::{ChunkRef, Counted, Counts, PostTotals, Totals, TotalsBatch};

/// Resolves when something that can be read already is durable. Dropping it changes nothing about that.
pub type Durable = BoxFuture<'static, Result<()>>;

/// One engine's implementation of each trait. Cloning shares them.
#[derive(Clone)]
pub struct Stores {
    /// User id ↔ key.
    pub users: Arc<dyn Users>,
    /// Who follows whom.
    pub follows: Arc<dyn Follows>,
    /// Posts and request ids.
    pub posts: Arc<dyn Posts>,
    /// Where to push to.
    pub devices: Arc<dyn Devices>,
    /// What users want to hear.
    pub preferences: Arc<dyn Preferences>,
    /// What users read.
    pub timelines: Arc<dyn Timelines>,
    /// What became of each delivery.
    pub ledger: Arc<dyn Ledger>,
    /// Counts by post and hour.
    pub totals: Arc<dyn Totals>,
    /// Messages that were given up.
    pub dead_letters: Arc<dyn DeadLetters>,
}
