//! The store's traits, split by the data they hold, and the engines that implement them.
//!
//! | trait | data | writers |
//! |---|---|---|
//! | [`Users`] | user id ↔ [`UserKey`](herald_model::UserKey) | gateway, graph |
//! | [`Follows`] | the follow graph and its history | graph |
//! | [`Posts`] | posts, deletions, request ids | archive, gateway |
//! | [`Devices`], [`Preferences`] | push addresses and push settings | gateway |
//! | [`Timelines`] | (follower, post) pairs | timeline |
//! | [`Ledger`] | planned and recorded deliveries of each post | fanout, timeline, push, deadletter |
//! | [`Totals`] | delivery counts by post and by hour | analytics |
//! | [`DeadLetters`] | dead letters and the audit log of operations on them | deadletter |
//! | [`Erasures`] | the erasures of users | deadletter |
//! | [`ApiKeys`] | API keys, without their secrets | gateway |
//! | [`StreamMarks`] | the newest message of each stream | gateway |
//! | [`Leases`] | who does what only one process may do | deadletter, analytics |
//! | [`Retention`] | removes what is past its retention | deadletter |
//! | [`Health`] | whether the store answers | |
//!
//! # Contract of every engine
//!
//! - **Durability.** *Invariant:* when a write returns `Ok`, it survives a crash and a loss of power (the embedded
//!   engine calls fsync; PostgreSQL must have `fsync` and `synchronous_commit` on). The exception are timelines of the
//!   cluster engine: they are a view, whose losses are noticed and repaired. A write that returns a [`Durable`] is
//!   durable when that future resolves with `Ok`. Messages are acknowledged only after that.
//! - **Idempotency.** *Invariant:* repeating a write does not change the result, because every message can be
//!   redelivered. The exceptions are [`DeadLetters::begin`] and [`Erasures::add`].
//! - **Failed and dropped writes.** A write that returned `Err`, or whose future was dropped, may have been applied.
//!   Repeat it to be sure.
//! - **Reads** see every write that has returned. A read may also see a write that is not durable yet, except where a
//!   trait excludes that.
//! - **Order.** Calls that return one result for each input return them in the order of the input. Lists are sorted as
//!   each method says, and are paged with an exclusive `after` or `before`: pass the last item of one page for the
//!   next. `limit` counts returned items.
//! - **Time.** A [`Timestamp`](herald_model::time::Timestamp) is in microseconds since 1970 (UTC), taken from the
//!   caller's clock.
//! - **Errors** have an [`ErrorKind`]. Every method can return [`Unavailable`](ErrorKind::Unavailable) and
//!   [`Corrupt`](ErrorKind::Corrupt), every write also [`Full`](ErrorKind::Full); a method's docs name the other kinds.
//! - **Concurrency.** All methods can be called concurrently, by any number of callers. Each write is atomic for
//!   readers unless its docs say otherwise.

#[macro_use]
mod failpoint;

mod accounts;
mod api_keys;
pub mod cluster;
mod dead_letter_groups;
mod dead_letters;
pub mod embedded;
pub mod encryption;
mod erasures;
mod error;
mod follows;
mod later;
mod lease_holder;
mod leases;
mod ledger;
mod maintenance;
mod metrics;
pub mod migrate;
mod observed;
mod outcome;
mod posts;
mod removed_posts;
mod retention_clock;
mod stream_marks;
mod timelines;
mod totals;
mod users_cache;

use std::sync::Arc;

use futures::future::BoxFuture;

pub use accounts::{
    DEVICES_PER_USER_MAX, Devices, MUTED_AUTHORS_MAX, Preferences, PreferencesChange, SECRET_OVERLAP, Users,
};
pub use api_keys::{API_KEYS_MAX, ApiKeys};
pub use dead_letter_groups::{DEAD_LETTER_GROUPS_MAX, DeadLetterGroup, DeadLetterGroups};
pub use dead_letters::{
    Cause, DeadLetter, DeadLetterFilter, DeadLetterId, DeadLetterPage, DeadLetterState, DeadLetterVersion,
    DeadLetters, Inserted, MessageRef, NewOperation, OPERATIONS_PER_DEAD_LETTER, Operation, OperationId,
    OperationKind, OperationState, Order, Payload, Reopened, Reopening, Step,
};
pub use erasures::{ErasedCounts, Erasure, ErasureId, Erasures, Forgotten};
pub use error::{Error, ErrorKind, Result};
pub use follows::{
    FollowAction, FollowChange, FollowEffect, FollowerCount, FollowerPage, Following, Follows,
};
pub use lease_holder::{HeldLease, LEASE_DURATION, LeaseHolder, holder_id};
pub use leases::{Fence, Leases};
pub use ledger::{
    ChannelCounts, ChunkPlan, ChunkState, DeadMessage, ExpectedRevision, Ledger, MarkedDead, PlannedSlice,
    PostCounts, PostPlan, RecipientStatus, RecordedOutcome, Settlement, SlicePlan, SuppressedCounts,
};
pub use maintenance::{Health, RETENTION_LEASE, Retention};
pub use metrics::Metrics;
pub use outcome::{
    DeviceFailure, DeviceRetry, FailedRecipient, Outcome, OutcomeDetails, PendingRecipient, PushFailure,
    SettledCounts, SuppressedReason,
};
pub use posts::{Archived, Posts};
pub use retention_clock::{CLOCK_STEP_MAX, ClockCheck};
pub use stream_marks::{StreamMark, StreamMarks};
pub use timelines::{Delivered, Rebuilt, TimelineEntries, TimelinePage, Timelines};
pub use totals::{ChunkRef, Counted, Counts, IntendedFile, PostTotals, Totals, TotalsBatch};
pub use users_cache::KeyUse;

/// Resolves with `Ok` when a write that is already readable is durable. Dropping the future does not cancel the write.
pub type Durable = BoxFuture<'static, Result<()>>;

/// One engine's implementation of each trait. Clones share the same engine.
#[derive(Clone)]
pub struct Stores {
    /// User id ↔ user key.
    pub users: Arc<dyn Users>,
    /// The follow graph.
    pub follows: Arc<dyn Follows>,
    /// Posts and request ids.
    pub posts: Arc<dyn Posts>,
    /// Push addresses.
    pub devices: Arc<dyn Devices>,
    /// Push settings and muted authors.
    pub preferences: Arc<dyn Preferences>,
    /// Delivered posts by user.
    pub timelines: Arc<dyn Timelines>,
    /// Planned and recorded deliveries.
    pub ledger: Arc<dyn Ledger>,
    /// Delivery counts by post and by hour.
    pub totals: Arc<dyn Totals>,
    /// Dead letters and their operations.
    pub dead_letters: Arc<dyn DeadLetters>,
    /// The erasures of users.
    pub erasures: Arc<dyn Erasures>,
    /// Leases of work that only one process may do.
    pub leases: Arc<dyn Leases>,
    /// API keys.
    pub api_keys: Arc<dyn ApiKeys>,
    /// How far the streams of the broker were.
    pub stream_marks: Arc<dyn StreamMarks>,
    /// Removes data past its retention.
    pub retention: Arc<dyn Retention>,
    /// Whether the engine can be used now.
    pub health: Arc<dyn Health>,
}
