//! Dead letters and the audit log of operations on them.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use herald_model::{Channel, ChunkId, Lane, PostId, UserKey, time::Timestamp};

use crate::{DeadLetterGroups, Error, ErrorKind, Fence, Result};

/// Id of a dead letter: the sequence of its first message in the DLQ stream. Ids ascend in order of arrival.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeadLetterId(pub u64);

/// Id of an operation, from 1, ascending. A redrive is identified by the id of its operation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OperationId(pub u64);

/// Why a message was dead-lettered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// It reached the maximum number of deliveries, and no worker reported a reason.
    MaxDeliveries,
    /// A worker terminated it.
    Terminated,
    /// The server removed it from its stream before it was acknowledged.
    Removed,
    /// A worker terminated it because it can't be decoded.
    Unreadable,
    /// An audit found that it was lost.
    Audit,
}

/// State of a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DeadLetterState {
    /// An operator must redrive or discard it.
    Open,
    /// Redriven; the outcome is pending.
    Redriving,
    /// Redriven successfully.
    Resolved,
    /// Discarded by an operator; kept for the record.
    Discarded,
}

/// Whether the DLQ stream holds the payload of the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Payload {
    /// DLQ holds the payload.
    Kept,
    /// The message was removed before its payload could be copied.
    Gone,
    /// The payload was too large to be copied.
    TooLarge,
}

/// A dead-lettered message and its consumer. They have one dead letter, however often the failure is reported.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MessageRef {
    /// The stream of the message.
    pub stream: String,
    /// The consumer that dead-lettered it.
    pub consumer: String,
    /// The sequence of the message in the stream.
    pub sequence: u64,
}

/// A dead letter. Its payload is not in the store but in the DLQ stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// The id.
    pub id: DeadLetterId,
    /// The message and its consumer.
    pub origin: MessageRef,
    /// Kind of the consumer, without its lane: `push`, for example.
    pub kind: String,
    /// Sequence of the message where it was published first; a redriven copy keeps it.
    pub original_sequence: u64,
    /// Subject of the message.
    pub subject: String,
    /// Full name of the Protobuf message in the payload.
    pub message_type: String,
    /// Cause of the last failure.
    pub cause: Cause,
    /// Reason of the last failure, as the worker or the server reported it.
    pub reason: String,
    /// Id of the group of equal failures: a hash of `kind`, `cause` and `group_reason`.
    pub group: u64,
    /// The reason without ids, numbers and quoted text.
    pub group_reason: String,
    /// Delivery attempts, without those of redrives.
    pub attempts: u64,
    /// Time at which the message was published.
    pub published_at: Timestamp,
    /// Time of the first failure.
    pub first_failed_at: Timestamp,
    /// Time of the last failure.
    pub last_failed_at: Timestamp,
    /// Time at which DLQ stored it. Retention counts from here.
    pub stored_at: Timestamp,
    /// The post of the message, if it has one.
    pub post: Option<PostId>,
    /// The author of that post.
    pub author: Option<UserKey>,
    /// The channel, if the message is a chunk.
    pub channel: Option<Channel>,
    /// The id of the chunk, if the message is one.
    pub chunk: Option<ChunkId>,
    /// The lane of the message.
    pub lane: Option<Lane>,
    /// Number of recipients of the message.
    pub recipients: u32,
    /// W3C trace id, 32 hexadecimal digits; empty without a trace.
    pub trace_id: String,
    /// End of the time to live of the message's pushes. `None` for a message without pushes, and when it is unknown.
    pub pushes_expire_at: Option<Timestamp>,
    /// Whether DLQ holds the payload.
    pub payload: Payload,
    /// Size of the payload in DLQ, bytes.
    pub payload_bytes: u64,
    /// State of the dead letter.
    pub state: DeadLetterState,
    /// Number of redrives of this dead letter. Each redrive begins a round.
    pub round: u32,
    /// The last redrive of this dead letter.
    pub redrive: Option<OperationId>,
    /// The last [`OPERATIONS_PER_DEAD_LETTER`] operations on it, newest last.
    pub operations: Vec<OperationId>,
    /// Sequence of the last round's copy in the REDRIVE stream; 0 until it is recorded.
    pub redrive_sequence: u64,
    /// Time of the last change of `state`.
    pub updated_at: Timestamp,
}

/// Maximum number of operations that a dead letter lists.
pub const OPERATIONS_PER_DEAD_LETTER: usize = 20;

/// Result of inserting a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inserted {
    /// The dead letter of the message and its consumer.
    pub id: DeadLetterId,
    /// Whether the dead letter is new.
    pub new: bool,
}

/// A redrive of a dead letter that failed, or that could not be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reopening {
    /// The dead letter.
    pub dead_letter: DeadLetterId,
    /// The round that failed.
    pub round: u32,
    /// Cause of the failure.
    pub cause: Cause,
    /// Reason of the failure, as the worker or the server reported it.
    pub reason: String,
    /// Id of the group of equal failures: a hash of `kind`, `cause` and `group_reason`.
    pub group: u64,
    /// The reason without ids, numbers and quoted text.
    pub group_reason: String,
    /// Time of the failure.
    pub failed_at: Timestamp,
}

/// Result of a [`Reopening`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reopened {
    /// The dead letter is open again.
    Open,
    /// Nothing changed: this failure or a later state is already recorded.
    AlreadyRecorded,
    /// The dead letter does not exist, or is past its retention.
    NotFound,
}

/// Selects dead letters. All fields that are set must match.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeadLetterFilter {
    /// Stream of the message.
    pub stream: Option<String>,
    /// Consumer that dead-lettered the message.
    pub consumer: Option<String>,
    /// Cause of the last failure.
    pub cause: Option<Cause>,
    /// Text in the reason. Must be lower case; the case of the reason is ignored.
    pub reason: Option<String>,
    /// Group of equal failures.
    pub group: Option<u64>,
    /// Author of the post.
    pub author: Option<UserKey>,
    /// The post.
    pub post: Option<PostId>,
    /// Channel of the chunk.
    pub channel: Option<Channel>,
    /// State of the dead letter.
    pub state: Option<DeadLetterState>,
    /// Earliest time of the last failure, inclusive.
    pub since: Option<Timestamp>,
    /// Latest time of the last failure, exclusive.
    pub until: Option<Timestamp>,
}

impl DeadLetterFilter {
    /// Whether a dead letter matches.
    pub fn passes(&self, dead_letter: &DeadLetter) -> bool {
        fn same<T: PartialEq>(wanted: Option<&T>, is: &T) -> bool {
            wanted.is_none_or(|wanted| wanted == is)
        }
        same(self.state.as_ref(), &dead_letter.state)
            && same(self.group.as_ref(), &dead_letter.group)
            && same(self.cause.as_ref(), &dead_letter.cause)
            && same(self.stream.as_ref(), &dead_letter.origin.stream)
            && same(self.consumer.as_ref(), &dead_letter.origin.consumer)
            && (self.author.is_none() || self.author == dead_letter.author)
            && (self.post.is_none() || self.post == dead_letter.post)
            && (self.channel.is_none() || self.channel == dead_letter.channel)
            && self.since.is_none_or(|since| dead_letter.last_failed_at >= since)
            && self.until.is_none_or(|until| dead_letter.last_failed_at < until)
            && self
                .reason
                .as_ref()
                .is_none_or(|part| dead_letter.reason.to_lowercase().contains(part))
    }
}

/// Order of a scan, by id.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Order {
    /// Newest (greatest id) first.
    #[default]
    NewestFirst,
    /// Oldest (smallest id) first.
    OldestFirst,
}

/// A page of a scan.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeadLetterPage {
    /// The dead letters. Can be empty although more pages follow.
    pub dead_letters: Vec<DeadLetter>,
    /// The `after` of the next page; `None` on the last page.
    pub next: Option<DeadLetterId>,
}

/// Kind of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OperationKind {
    /// Redrives dead letters.
    Redrive,
    /// Discards dead letters.
    Discard,
    /// Cancels a redrive.
    Cancel,
}

/// State of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OperationState {
    /// Dead letters are left to process.
    Running,
    /// All dead letters are processed.
    Done,
    /// It stopped because too many dead letters failed again.
    Stopped,
    /// An operator cancelled it.
    Cancelled,
}

/// A dead letter in one round: a write that names a round changes the dead letter only while it is in that round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeadLetterVersion {
    /// The dead letter.
    pub id: DeadLetterId,
    /// The round: the number of redrives.
    pub round: u32,
}

/// An operation to begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewOperation {
    /// Kind of the operation.
    pub kind: OperationKind,
    /// Name of the operator.
    pub actor: String,
    /// Time at which it begins.
    pub at: Timestamp,
    /// The request that selected the dead letters. Opaque to the store.
    pub selection: Bytes,
    /// Number of dead letters that matched but can't be redriven.
    pub excluded: u64,
    /// Redrives only: maximum dead letters per second, at least 1.
    pub rate_max: u32,
    /// Redrives only: stop after so many dead letters failed again; 0 for never.
    pub failures_max: u32,
    /// Redrives only: time to live of the redriven pushes, from their claim. It stays with the dead letters. `None` keeps
    /// the end of their time to live.
    pub push_ttl: Option<Duration>,
    /// Cancellations only: the redrive to cancel.
    pub target: Option<OperationId>,
}

/// An operation of the audit log, with its progress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// The id.
    pub id: OperationId,
    /// The operation as it was requested.
    pub what: NewOperation,
    /// State of the operation.
    pub state: OperationState,
    /// Why it stopped; empty otherwise.
    pub reason: String,
    /// Time of its last change after it ended: of the last outcome of a redrive. `None` while it is running.
    pub ended_at: Option<Timestamp>,
    /// Number of dead letters selected at the beginning.
    pub selected: u64,
    /// Number of them that were processed, including skipped ones.
    pub reached: u64,
    /// Number of them that were skipped because they had changed since the selection.
    pub skipped: u64,
    /// Number of them that were redriven successfully.
    pub resolved: u64,
    /// Number of them that failed again or could not be published.
    pub failed: u64,
    /// Redrives only: number of them whose pushes had expired when they were claimed. They are counted by their outcome
    /// too.
    pub expired: u64,
    /// Copies of claimed dead letters without a recorded sequence can only be in REDRIVE after this sequence.
    pub redrive_after: u64,
}

impl NewOperation {
    /// Whether a redrive at this time finds the pushes of the dead letter expired.
    pub fn finds_expired(&self, dead_letter: &DeadLetter, now: Timestamp) -> bool {
        self.kind == OperationKind::Redrive
            && self.push_ttl.is_none()
            && dead_letter.pushes_expire_at.is_some_and(|end| end <= now)
    }
}

impl Operation {
    /// Number of dead letters that were discarded or redriven.
    pub fn applied(&self) -> u64 {
        self.reached.saturating_sub(self.skipped)
    }

    /// Number of redriven dead letters whose outcome is pending.
    pub fn in_flight(&self) -> u64 {
        match self.what.kind {
            OperationKind::Redrive => self.applied().saturating_sub(self.resolved + self.failed),
            OperationKind::Discard | OperationKind::Cancel => 0,
        }
    }

    /// Whether no more changes of this operation follow.
    pub fn is_over(&self) -> bool {
        self.state != OperationState::Running && self.in_flight() == 0
    }
}

/// Result of one step of an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The dead letters that the step changed, after the change.
    pub dead_letters: Vec<DeadLetter>,
    /// The operation after the step.
    pub operation: Operation,
}

/// The dead letters and the audit log of operations on them.
///
/// States change only as follows: `Open → Redriving → Resolved | Open`, `Resolved → Open` when a failure is reported
/// late, `Open → Discarded`. Every write is atomic and durable on return.
///
/// *Invariant:* each change is made once, even if several callers try, so two redrives of a dead letter publish it
/// once.
///
/// Dead letters and operations are removed when their retention ends; a dead letter whose redrive is pending stays.
/// Writes that name an operation return [`Corrupt`](crate::ErrorKind::Corrupt) if the operation does not exist.
#[async_trait]
pub trait DeadLetters: Send + Sync {
    /// Adds dead letters in state `Open`, round 0, without operations, whatever these fields hold. The caller chooses
    /// the id. If the message and its consumer already have a dead letter, it stays unchanged.
    ///
    /// [`Corrupt`](crate::ErrorKind::Corrupt) if another message has a dead letter of this id: the stream that gave the
    /// id was made again or lost its tail.
    async fn insert(&self, dead_letters: &[DeadLetter]) -> Result<Vec<Inserted>>;

    /// Records that a redrive failed, or that the dead letter could not be published: the dead letter is `Open` again
    /// with the new cause and reason, and its redrive counts one more failure. Changes nothing unless the dead letter
    /// is in this round and `Redriving` or `Resolved`.
    async fn reopen(&self, reopening: &Reopening) -> Result<Reopened>;

    /// Reads dead letters; `None` for one that does not exist.
    async fn get(&self, ids: &[DeadLetterId]) -> Result<Vec<Option<DeadLetter>>>;

    /// Reads up to `limit` dead letters that match, after `after` in the given order, from one snapshot. A page also
    /// ends after an engine-defined number of examined dead letters (10,000 in the embedded engine), so that calls stay
    /// short. A dead letter that can't be decoded is logged and left out.
    async fn scan(
        &self,
        filter: &DeadLetterFilter,
        order: Order,
        after: Option<DeadLetterId>,
        limit: usize,
    ) -> Result<DeadLetterPage>;

    /// Counts the dead letters that match, by group, from one snapshot. Reads every candidate: the duration grows with
    /// their number.
    async fn groups(&self, filter: &DeadLetterFilter) -> Result<DeadLetterGroups>;

    /// Counts the dead letters in a state, for metrics. An engine may answer with a count of up to 10 s ago.
    async fn count(&self, state: DeadLetterState) -> Result<u64>;

    /// Records an operation and the dead letters that it selected, for [`claim`](Self::claim) or
    /// [`discard`](Self::discard) to process in this order. The operation is `Running`, or `Done` if it selected none.
    /// Not idempotent: each call records a new operation.
    async fn begin(&self, operation: &NewOperation, dead_letters: &[DeadLetterVersion]) -> Result<Operation>;

    /// Records an operation as [`begin`](Self::begin) does, if fewer than `running_max` are running. Concurrent calls, of
    /// other processes too, never make more of them run.
    ///
    /// # Errors
    /// [`LimitExceeded`](crate::ErrorKind::LimitExceeded) if as many are running.
    async fn begin_below(
        &self,
        operation: &NewOperation,
        dead_letters: &[DeadLetterVersion],
        running_max: u64,
    ) -> Result<Operation>;

    /// Processes up to `limit` more dead letters of a running redrive. Those that are still `Open` in the selected
    /// round become `Redriving` in the next round and are returned, to be published; the others are skipped, as is one
    /// that can't be decoded.
    /// `redrive_after` is the last sequence of REDRIVE before the call: after a crash, the copies of claimed dead
    /// letters are searched for after it. Returns no dead letters if the operation is not running or has none left.
    ///
    /// [`Fenced`](crate::ErrorKind::Fenced) if the lease of the caller has ended or belongs to a newer holder.
    async fn claim(
        &self,
        operation: OperationId,
        limit: usize,
        redrive_after: u64,
        at: Timestamp,
        fence: &Fence,
    ) -> Result<Step>;

    /// Records the sequences in REDRIVE of claimed dead letters. Ignores those that this operation did not claim in
    /// this round.
    async fn sent(&self, operation: OperationId, dead_letters: &[(DeadLetterVersion, u64)]) -> Result<()>;

    /// Records that redrives succeeded: dead letters that are `Redriving` in this round become `Resolved`. Returns
    /// their number.
    async fn resolve(&self, dead_letters: &[DeadLetterVersion], at: Timestamp) -> Result<u64>;

    /// Processes up to `limit` more dead letters of a running discard. Those that are still `Open` in the selected
    /// round become `Discarded` and are returned; the others, and those that can't be decoded, are skipped. The
    /// operation is `Done` after its last dead letter.
    async fn discard(&self, operation: OperationId, limit: usize, at: Timestamp) -> Result<Step>;

    /// Ends a running operation with this state and reason. An operation that has already ended is returned unchanged.
    async fn finish(
        &self,
        operation: OperationId,
        state: OperationState,
        reason: &str,
        at: Timestamp,
    ) -> Result<Operation>;

    /// Reads an operation; `None` if it does not exist.
    async fn operation(&self, id: OperationId) -> Result<Option<Operation>>;

    /// Lists up to `limit` operations less than `before`, newest (greatest id) first.
    async fn operations(&self, before: Option<OperationId>, limit: usize) -> Result<Vec<Operation>>;

    /// Lists the operations that are running, in ascending order.
    async fn running(&self) -> Result<Vec<Operation>>;
}

/// The error of an operation that can't begin because as many as the maximum are running.
pub(crate) fn too_many_running(running: u64, running_max: u64) -> Error {
    let message = format!("{running} redrives and discards are running, the maximum is {running_max}");
    Error::new(ErrorKind::LimitExceeded, message)
}
