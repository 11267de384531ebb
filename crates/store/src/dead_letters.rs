//! Messages that were given up, and what was done about them.

use std::{cmp::Reverse, collections::HashMap};

use async_trait::async_trait;
use bytes::Bytes;
use herald_model::{Channel, ChunkId, Lane, PostId, UserKey, time::Timestamp};

use crate::Result;

/// A dead letter's id: the sequence of the first message about it in DLQ, so dead letters ascend in the order in which they came.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeadLetterId(pub u64);

/// The id of something done to dead letters; a redrive's id is that of its operation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OperationId(pub u64);

/// Why a message was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// Its attempts were used up, and no worker said why.
    MaxDeliveries,
    /// A worker gave it up.
    Terminated,
    /// The server removed it before it was acknowledged.
    Removed,
    /// A worker gave it up because nobody can read it.
    Unreadable,
    /// An audit found it.
    Audit,
}

/// What became of a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DeadLetterState {
    /// Somebody must decide.
    Open,
    /// Sent once more, outcome not known yet.
    Redriving,
    /// Sent once more, and done.
    Resolved,
    /// Kept for the record only.
    Discarded,
}

/// Whether DLQ has what the message carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Payload {
    /// It has.
    Kept,
    /// It was gone before it could be copied.
    Gone,
    /// It was too large to be copied.
    TooLarge,
}

/// The message that was given up, and by whom: there is one dead letter for it, however often it is told of.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MessageRef {
    /// The stream it was in.
    pub stream: String,
    /// The consumer that gave it up.
    pub consumer: String,
    /// Its sequence in the stream.
    pub sequence: u64,
}

/// A message that was given up, without what it carried: that is in DLQ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// Its id.
    pub id: DeadLetterId,
    /// The message.
    pub origin: MessageRef,
    /// What the consumer does, whatever its lane.
    pub kind: String,
    /// The sequence the message had where it was published first.
    pub original_sequence: u64,
    /// The message's subject.
    pub subject: String,
    /// The Protobuf message in it.
    pub message_type: String,
    /// Why it was given up last.
    pub cause: Cause,
    /// The worker's own words, or the server's.
    pub reason: String,
    /// Names equal failures.
    pub group: u64,
    /// The reason without what differs between equal failures.
    pub group_reason: String,
    /// Attempts that were made, those of redrives not included.
    pub attempts: u64,
    /// When the message was published.
    pub published_at: Timestamp,
    /// When it was given up for the first time.
    pub first_failed_at: Timestamp,
    /// When it was given up for the last time.
    pub last_failed_at: Timestamp,
    /// When DLQ stored it: it is forgotten by this.
    pub stored_at: Timestamp,
    /// The post it is about.
    pub post: Option<PostId>,
    /// The post's author.
    pub author: Option<UserKey>,
    /// The channel, for what is on its way to recipients.
    pub channel: Option<Channel>,
    /// The chunk, likewise.
    pub chunk: Option<ChunkId>,
    /// The lane.
    pub lane: Option<Lane>,
    /// How many recipients it is for.
    pub recipients: u32,
    /// The trace it belongs to, hexadecimal; empty without one.
    pub trace_id: String,
    /// Whether DLQ has what it carried.
    pub payload: Payload,
    /// How much that is, bytes.
    pub payload_bytes: u64,
    /// What became of it.
    pub state: DeadLetterState,
    /// How often it was redriven.
    pub round: u32,
    /// The last redrive it was part of.
    pub redrive: Option<OperationId>,
    /// What was done to it, the newest last; no more than [`OPERATIONS_PER_DEAD_LETTER`].
    pub operations: Vec<OperationId>,
    /// Its sequence in REDRIVE in the last round; 0 as long as that isn't known.
    pub redrive_sequence: u64,
    /// When its state last changed.
    pub updated_at: Timestamp,
}

/// Of how many of its operations a dead letter knows.
pub const OPERATIONS_PER_DEAD_LETTER: usize = 20;

/// What became of an insertion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inserted {
    /// The dead letter about this origin.
    pub id: DeadLetterId,
    /// Whether it was not there before.
    pub new: bool,
}

/// A redrive of a dead letter failed, or it could not be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reopening {
    /// The dead letter.
    pub dead_letter: DeadLetterId,
    /// The round that failed.
    pub round: u32,
    /// Why.
    pub cause: Cause,
    /// In the worker's words, or the server's.
    pub reason: String,
    /// Names equal failures.
    pub group: u64,
    /// The reason without what differs between equal failures.
    pub group_reason: String,
    /// When it was given up.
    pub failed_at: Timestamp,
}

/// What became of a [`Reopening`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reopened {
    /// The dead letter is open again.
    Open,
    /// That was known, or something later is.
    Known,
    /// There is no such dead letter, or no more.
    Unknown,
}

/// Which dead letters. All that is set must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeadLetterFilter {
    /// From this stream.
    pub stream: Option<String>,
    /// Given up by this consumer.
    pub consumer: Option<String>,
    /// For this cause.
    pub cause: Option<Cause>,
    /// With this in the reason, in lower case; the case there doesn't matter.
    pub reason: Option<String>,
    /// In this group.
    pub group: Option<u64>,
    /// About a post of this author.
    pub author: Option<UserKey>,
    /// About this post.
    pub post: Option<PostId>,
    /// On this channel.
    pub channel: Option<Channel>,
    /// In this state.
    pub state: Option<DeadLetterState>,
    /// Last given up at this moment or later.
    pub since: Option<Timestamp>,
    /// Last given up before this moment.
    pub until: Option<Timestamp>,
}

impl DeadLetterFilter {
    /// Whether a dead letter is one of these.
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

/// In which order dead letters are read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Order {
    /// The newest first.
    #[default]
    NewestFirst,
    /// The oldest first.
    OldestFirst,
}

/// Some dead letters of a scan.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeadLetterPage {
    /// The dead letters; there may be none although there are more.
    pub dead_letters: Vec<DeadLetter>,
    /// Go on after this one; `None`: there is nothing more.
    pub next: Option<DeadLetterId>,
}

/// Dead letters that failed in the same way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetterGroup {
    /// Its name.
    pub group: u64,
    /// What the consumers do.
    pub kind: String,
    /// Why they gave up.
    pub cause: Cause,
    /// The reason without what differs.
    pub reason: String,
    /// How many dead letters.
    pub dead_letters: u64,
    /// When the first of them was given up for the first time.
    pub first_failed_at: Timestamp,
    /// When one of them was given up last.
    pub last_failed_at: Timestamp,
    /// The newest of them.
    pub example: DeadLetterId,
}

impl DeadLetterGroup {
    /// Groups dead letters, which come oldest first; the largest group first.
    pub fn of(dead_letters: impl IntoIterator<Item = DeadLetter>) -> Vec<Self> {
        let mut groups: HashMap<u64, Self> = HashMap::new();
        for dead_letter in dead_letters {
            let group = groups.entry(dead_letter.group).or_insert_with(|| Self {
                group: dead_letter.group,
                kind: dead_letter.kind,
                cause: dead_letter.cause,
                reason: dead_letter.group_reason,
                dead_letters: 0,
                first_failed_at: dead_letter.first_failed_at,
                last_failed_at: dead_letter.last_failed_at,
                example: dead_letter.id,
            });
            group.dead_letters += 1;
            group.first_failed_at = group.first_failed_at.min(dead_letter.first_failed_at);
            group.last_failed_at = group.last_failed_at.max(dead_letter.last_failed_at);
            group.example = dead_letter.id;
        }
        let mut groups: Vec<_> = groups.into_values().collect();
        groups.sort_unstable_by_key(|group| (Reverse(group.dead_letters), group.group));
        groups
    }
}

/// What somebody did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OperationKind {
    /// Redrove dead letters.
    Redrive,
    /// Discarded dead letters.
    Discard,
    /// Stopped a redrive.
    Cancel,
}

/// How far an operation has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OperationState {
    /// There are dead letters left to do.
    Running,
    /// All are done.
    Done,
    /// It stopped by itself.
    Stopped,
    /// Somebody stopped it.
    Cancelled,
}

/// A dead letter as it was when it was chosen: only as long as it is so, it is acted on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chosen {
    /// The dead letter.
    pub id: DeadLetterId,
    /// How often it had been redriven.
    pub round: u32,
}

/// Something somebody did, to be recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewOperation {
    /// What.
    pub kind: OperationKind,
    /// Who.
    pub actor: String,
    /// When.
    pub at: Timestamp,
    /// What was asked for, in the caller's own coding.
    pub selection: Bytes,
    /// Dead letters that passed and can't be redriven.
    pub excluded: u64,
    /// Of a redrive: dead letters a second at most, at least 1.
    pub rate_max: u32,
    /// Stops when this many have failed again; 0: never.
    pub failures_max: u32,
    /// The redrive that is stopped.
    pub target: Option<OperationId>,
}

/// Something somebody did, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// Its id.
    pub id: OperationId,
    /// What was asked for.
    pub what: NewOperation,
    /// How far it has come.
    pub state: OperationState,
    /// Why it stopped.
    pub reason: String,
    /// When it had done its last dead letter.
    pub ended_at: Option<Timestamp>,
    /// Dead letters chosen at the beginning.
    pub frozen: u64,
    /// Of these, looked at.
    pub reached: u64,
    /// Of these, left alone because they had changed.
    pub skipped: u64,
    /// Of these, redriven and done.
    pub resolved: u64,
    /// Of these, redriven and failed again, or impossible to send.
    pub failed: u64,
    /// Dead letters that were claimed and not recorded may be in REDRIVE, after this sequence.
    pub redrive_after: u64,
}

impl Operation {
    /// Dead letters that were acted on: discarded, or sent.
    pub fn acted(&self) -> u64 {
        self.reached.saturating_sub(self.skipped)
    }

    /// Dead letters that were sent and whose outcome isn't known.
    pub fn in_flight(&self) -> u64 {
        match self.what.kind {
            OperationKind::Redrive => self.acted().saturating_sub(self.resolved + self.failed),
            OperationKind::Discard | OperationKind::Cancel => 0,
        }
    }

    /// Whether nothing more comes of it.
    pub fn is_over(&self) -> bool {
        self.state != OperationState::Running && self.in_flight() == 0
    }
}

/// What one step of an operation took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The dead letters, as they are now.
    pub dead_letters: Vec<DeadLetter>,
    /// The operation, as it is now.
    pub operation: Operation,
}

/// The dead letters, and the record of what was done to them.
///
/// States change only as they may: `Open → Redriving → Resolved | Open`, `Resolved → Open` when a failure becomes known
/// late, `Open → Discarded`. Each change is made once, whoever else tries, so two redrives of a dead letter send it once.
#[async_trait]
pub trait DeadLetters: Send + Sync {
    /// Adds dead letters, open and in no redrive. Of an origin that has one already nothing changes.
    async fn insert(&self, dead_letters: &[DeadLetter]) -> Result<Vec<Inserted>>;

    /// Opens a dead letter again whose redrive failed, or which could not be sent.
    async fn reopen(&self, reopening: &Reopening) -> Result<Reopened>;

    /// Reads dead letters.
    async fn get(&self, ids: &[DeadLetterId]) -> Result<Vec<Option<DeadLetter>>>;

    /// Reads dead letters that pass, up to `limit` of them, beyond `after`. Ends early after having looked at many.
    async fn scan(
        &self,
        filter: &DeadLetterFilter,
        order: Order,
        after: Option<DeadLetterId>,
        limit: usize,
    ) -> Result<DeadLetterPage>;

    /// Counts dead letters that pass, by what failed and how; the largest group first.
    async fn groups(&self, filter: &DeadLetterFilter) -> Result<Vec<DeadLetterGroup>>;

    /// How many dead letters are in a state.
    async fn count(&self, state: DeadLetterState) -> Result<u64>;

    /// Records that somebody acts on dead letters, and on which, for [`claim`](Self::claim) and
    /// [`discard`](Self::discard) to take. Without any the operation is done.
    async fn begin(&self, operation: &NewOperation, dead_letters: &[Chosen]) -> Result<Operation>;

    /// Takes a redrive's next dead letters, up to `limit`: those that are as they were chosen begin a new round. They may turn
    /// up in REDRIVE after the sequence `redrive_after`.
    async fn claim(
        &self,
        operation: OperationId,
        limit: usize,
        redrive_after: u64,
        at: Timestamp,
    ) -> Result<Step>;

    /// Records where claimed dead letters are in REDRIVE.
    async fn sent(&self, operation: OperationId, dead_letters: &[(Chosen, u64)]) -> Result<()>;

    /// Records that redrives succeeded: of dead letters that are still in that round. Answers how many that were.
    async fn resolve(&self, dead_letters: &[Chosen], at: Timestamp) -> Result<u64>;

    /// Discards an operation's next dead letters, up to `limit`: those that are as they were chosen.
    async fn discard(&self, operation: OperationId, limit: usize, at: Timestamp) -> Result<Step>;

    /// Ends a running redrive, as it is. One that has ended stays as it did.
    async fn finish(
        &self,
        operation: OperationId,
        state: OperationState,
        reason: &str,
        at: Timestamp,
    ) -> Result<Operation>;

    /// One operation.
    async fn operation(&self, id: OperationId) -> Result<Option<Operation>>;

    /// Acts, the newest first, less than `before`.
    async fn operations(&self, before: Option<OperationId>, limit: usize) -> Result<Vec<Operation>>;

    /// Redrives and discards that are running.
    async fn running(&self) -> Result<Vec<Operation>>;
}
