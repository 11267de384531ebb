//! Encoding of dead letters and operations as Protobuf rows, and of the keys of their indices.

use std::time::Duration;

use herald_model::{Channel, ChunkId, Lane, PostId, UserKey, time::Timestamp};
use prost::Message;

use crate::{
    Cause, DeadLetter, DeadLetterId, DeadLetterState, DeadLetterVersion, Error, ErrorKind, MessageRef,
    NewOperation, Operation, OperationId, OperationKind, OperationState, Payload, Result,
};

/// The stored row of a dead letter.
#[derive(Clone, PartialEq, Message)]
pub(super) struct DeadLetterRow {
    #[prost(string, tag = "1")]
    stream: String,
    #[prost(string, tag = "2")]
    consumer: String,
    #[prost(uint64, tag = "3")]
    sequence: u64,
    #[prost(string, tag = "4")]
    kind: String,
    #[prost(uint64, tag = "5")]
    original_sequence: u64,
    #[prost(string, tag = "6")]
    subject: String,
    #[prost(string, tag = "7")]
    message_type: String,
    #[prost(uint32, tag = "8")]
    cause: u32,
    #[prost(string, tag = "9")]
    reason: String,
    #[prost(fixed64, tag = "10")]
    group: u64,
    #[prost(string, tag = "11")]
    group_reason: String,
    #[prost(uint64, tag = "12")]
    attempts: u64,
    #[prost(int64, tag = "13")]
    published_at: i64,
    #[prost(int64, tag = "14")]
    first_failed_at: i64,
    #[prost(int64, tag = "15")]
    last_failed_at: i64,
    #[prost(int64, tag = "16")]
    stored_at: i64,
    #[prost(uint64, optional, tag = "17")]
    post: Option<u64>,
    #[prost(uint32, optional, tag = "18")]
    author: Option<u32>,
    #[prost(uint32, optional, tag = "19")]
    channel: Option<u32>,
    #[prost(fixed64, optional, tag = "20")]
    chunk: Option<u64>,
    #[prost(uint32, optional, tag = "21")]
    lane: Option<u32>,
    #[prost(uint32, tag = "22")]
    recipients: u32,
    #[prost(string, tag = "23")]
    trace_id: String,
    #[prost(uint32, tag = "24")]
    payload: u32,
    #[prost(uint64, tag = "25")]
    payload_bytes: u64,
    #[prost(uint32, tag = "26")]
    state: u32,
    #[prost(uint32, tag = "27")]
    round: u32,
    #[prost(uint64, optional, tag = "28")]
    redrive: Option<u64>,
    #[prost(uint64, repeated, tag = "29")]
    operations: Vec<u64>,
    #[prost(uint64, tag = "30")]
    redrive_sequence: u64,
    #[prost(int64, tag = "31")]
    updated_at: i64,
    #[prost(int64, optional, tag = "32")]
    pushes_expire_at: Option<i64>,
}

/// The stored row of an operation.
#[derive(Clone, PartialEq, Message)]
pub(super) struct OperationRow {
    #[prost(uint32, tag = "1")]
    kind: u32,
    #[prost(string, tag = "2")]
    actor: String,
    #[prost(int64, tag = "3")]
    at: i64,
    #[prost(uint64, tag = "4")]
    excluded: u64,
    #[prost(uint32, tag = "5")]
    rate_max: u32,
    #[prost(uint32, tag = "6")]
    failures_max: u32,
    #[prost(uint64, optional, tag = "7")]
    target: Option<u64>,
    #[prost(uint32, tag = "8")]
    state: u32,
    #[prost(string, tag = "9")]
    reason: String,
    #[prost(int64, optional, tag = "10")]
    ended_at: Option<i64>,
    #[prost(uint64, tag = "11")]
    selected: u64,
    #[prost(uint64, tag = "12")]
    reached: u64,
    #[prost(uint64, tag = "13")]
    skipped: u64,
    #[prost(uint64, tag = "14")]
    resolved: u64,
    #[prost(uint64, tag = "15")]
    failed: u64,
    #[prost(uint64, tag = "16")]
    redrive_after: u64,
    #[prost(uint64, optional, tag = "17")]
    push_ttl_us: Option<u64>,
    #[prost(uint64, tag = "18")]
    expired: u64,
}

/// A part of the dead letters selected for an operation.
#[derive(Clone, PartialEq, Message)]
pub(super) struct SelectedRow {
    /// Ids as differences from the previous id.
    #[prost(uint64, repeated, tag = "1")]
    ids: Vec<u64>,
    #[prost(uint32, repeated, tag = "2")]
    rounds: Vec<u32>,
}

pub(crate) const CAUSES: [Cause; 5] = [
    Cause::MaxDeliveries,
    Cause::Terminated,
    Cause::Removed,
    Cause::Unreadable,
    Cause::Audit,
];
pub(crate) const STATES: [DeadLetterState; 4] = [
    DeadLetterState::Open,
    DeadLetterState::Redriving,
    DeadLetterState::Resolved,
    DeadLetterState::Discarded,
];
const PAYLOADS: [Payload; 3] = [Payload::Kept, Payload::Gone, Payload::TooLarge];
pub(crate) const OPERATION_KINDS: [OperationKind; 3] = [
    OperationKind::Redrive,
    OperationKind::Discard,
    OperationKind::Cancel,
];
pub(crate) const OPERATION_STATES: [OperationState; 4] = [
    OperationState::Running,
    OperationState::Done,
    OperationState::Stopped,
    OperationState::Cancelled,
];

/// The number of a variant as stored in rows: its position in the list of all variants.
pub(crate) fn variant_number<T: PartialEq>(all: &[T], variant: &T) -> u32 {
    all.iter().position(|one| one == variant).unwrap_or_default() as u32
}

/// The variant with a stored number.
pub(crate) fn variant<T: Copy>(all: &[T], number: u32) -> Result<T> {
    all.get(number as usize).copied().ok_or_else(malformed)
}

pub(crate) fn encode_dead_letter(dead_letter: &DeadLetter) -> Vec<u8> {
    DeadLetterRow {
        stream: dead_letter.origin.stream.clone(),
        consumer: dead_letter.origin.consumer.clone(),
        sequence: dead_letter.origin.sequence,
        kind: dead_letter.kind.clone(),
        original_sequence: dead_letter.original_sequence,
        subject: dead_letter.subject.clone(),
        message_type: dead_letter.message_type.clone(),
        cause: variant_number(&CAUSES, &dead_letter.cause),
        reason: dead_letter.reason.clone(),
        group: dead_letter.group,
        group_reason: dead_letter.group_reason.clone(),
        attempts: dead_letter.attempts,
        published_at: dead_letter.published_at.0,
        first_failed_at: dead_letter.first_failed_at.0,
        last_failed_at: dead_letter.last_failed_at.0,
        stored_at: dead_letter.stored_at.0,
        post: dead_letter.post.map(|post| post.0),
        author: dead_letter.author.map(|author| author.0),
        channel: dead_letter
            .channel
            .map(|channel| variant_number(&Channel::ALL, &channel)),
        chunk: dead_letter.chunk.map(|chunk| chunk.0),
        lane: dead_letter.lane.map(|lane| variant_number(&Lane::ALL, &lane)),
        recipients: dead_letter.recipients,
        trace_id: dead_letter.trace_id.clone(),
        payload: variant_number(&PAYLOADS, &dead_letter.payload),
        payload_bytes: dead_letter.payload_bytes,
        state: variant_number(&STATES, &dead_letter.state),
        round: dead_letter.round,
        redrive: dead_letter.redrive.map(|operation| operation.0),
        operations: dead_letter
            .operations
            .iter()
            .map(|operation| operation.0)
            .collect(),
        redrive_sequence: dead_letter.redrive_sequence,
        updated_at: dead_letter.updated_at.0,
        pushes_expire_at: dead_letter.pushes_expire_at.map(|at| at.0),
    }
    .encode_to_vec()
}

pub(crate) fn decode_dead_letter(id: DeadLetterId, bytes: &[u8]) -> Result<DeadLetter> {
    let row = DeadLetterRow::decode(bytes).map_err(|_| malformed())?;
    Ok(DeadLetter {
        id,
        origin: MessageRef {
            stream: row.stream,
            consumer: row.consumer,
            sequence: row.sequence,
        },
        kind: row.kind,
        original_sequence: row.original_sequence,
        subject: row.subject,
        message_type: row.message_type,
        cause: variant(&CAUSES, row.cause)?,
        reason: row.reason,
        group: row.group,
        group_reason: row.group_reason,
        attempts: row.attempts,
        published_at: Timestamp(row.published_at),
        first_failed_at: Timestamp(row.first_failed_at),
        last_failed_at: Timestamp(row.last_failed_at),
        stored_at: Timestamp(row.stored_at),
        post: row.post.map(PostId),
        author: row.author.map(UserKey),
        channel: row
            .channel
            .map(|channel| variant(&Channel::ALL, channel))
            .transpose()?,
        chunk: row.chunk.map(ChunkId),
        lane: row.lane.map(|lane| variant(&Lane::ALL, lane)).transpose()?,
        recipients: row.recipients,
        trace_id: row.trace_id,
        payload: variant(&PAYLOADS, row.payload)?,
        payload_bytes: row.payload_bytes,
        state: variant(&STATES, row.state)?,
        round: row.round,
        redrive: row.redrive.map(OperationId),
        operations: row.operations.into_iter().map(OperationId).collect(),
        redrive_sequence: row.redrive_sequence,
        updated_at: Timestamp(row.updated_at),
        pushes_expire_at: row.pushes_expire_at.map(Timestamp),
    })
}

/// Encodes an operation without its selection. The selection is immutable and has a row of its own.
pub(super) fn encode_operation(operation: &Operation) -> Vec<u8> {
    OperationRow {
        kind: variant_number(&OPERATION_KINDS, &operation.what.kind),
        actor: operation.what.actor.clone(),
        at: operation.what.at.0,
        excluded: operation.what.excluded,
        rate_max: operation.what.rate_max,
        failures_max: operation.what.failures_max,
        target: operation.what.target.map(|operation| operation.0),
        state: variant_number(&OPERATION_STATES, &operation.state),
        reason: operation.reason.clone(),
        ended_at: operation.ended_at.map(|at| at.0),
        selected: operation.selected,
        reached: operation.reached,
        skipped: operation.skipped,
        resolved: operation.resolved,
        failed: operation.failed,
        redrive_after: operation.redrive_after,
        push_ttl_us: operation
            .what
            .push_ttl
            .map(|ttl| u64::try_from(ttl.as_micros()).unwrap_or(u64::MAX)),
        expired: operation.expired,
    }
    .encode_to_vec()
}

pub(crate) fn decode_operation(id: OperationId, bytes: &[u8]) -> Result<Operation> {
    let row = OperationRow::decode(bytes).map_err(|_| malformed())?;
    Ok(Operation {
        id,
        what: NewOperation {
            kind: variant(&OPERATION_KINDS, row.kind)?,
            actor: row.actor,
            at: Timestamp(row.at),
            selection: bytes::Bytes::new(),
            excluded: row.excluded,
            rate_max: row.rate_max,
            failures_max: row.failures_max,
            push_ttl: row.push_ttl_us.map(Duration::from_micros),
            target: row.target.map(OperationId),
        },
        state: variant(&OPERATION_STATES, row.state)?,
        reason: row.reason,
        ended_at: row.ended_at.map(Timestamp),
        selected: row.selected,
        reached: row.reached,
        skipped: row.skipped,
        resolved: row.resolved,
        failed: row.failed,
        expired: row.expired,
        redrive_after: row.redrive_after,
    })
}

pub(crate) fn encode_selected(dead_letters: &[DeadLetterVersion]) -> Vec<u8> {
    let mut last = 0;
    let mut row = SelectedRow::default();
    for dead_letter in dead_letters {
        row.ids.push(dead_letter.id.0.wrapping_sub(last));
        row.rounds.push(dead_letter.round);
        last = dead_letter.id.0;
    }
    row.encode_to_vec()
}

pub(crate) fn decode_selected(bytes: &[u8]) -> Result<Vec<DeadLetterVersion>> {
    let row = SelectedRow::decode(bytes).map_err(|_| malformed())?;
    let mut last = 0_u64;
    let dead_letters = row.ids.into_iter().zip(row.rounds).map(|(id, round)| {
        last = last.wrapping_add(id);
        DeadLetterVersion {
            id: DeadLetterId(last),
            round,
        }
    });
    Ok(dead_letters.collect())
}

/// Key (stream, consumer, sequence). Names of streams and consumers contain no spaces.
pub(super) fn origin_key(origin: &MessageRef) -> Vec<u8> {
    let mut key = format!("{} {} ", origin.stream, origin.consumer).into_bytes();
    key.extend(origin.sequence.to_be_bytes());
    key
}

/// Key (state, dead letter).
pub(super) fn state_key(state: DeadLetterState, id: DeadLetterId) -> [u8; 9] {
    let mut key = [variant_number(&STATES, &state) as u8; 9];
    key[1..].copy_from_slice(&id.0.to_be_bytes());
    key
}

/// Key (group, dead letter).
pub(super) fn group_key(group: u64, id: DeadLetterId) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&group.to_be_bytes());
    key[8..].copy_from_slice(&id.0.to_be_bytes());
    key
}

/// Key (operation, index of the part).
pub(super) fn selected_key(operation: OperationId, index: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&operation.0.to_be_bytes());
    key[8..].copy_from_slice(&index.to_be_bytes());
    key
}

/// Decodes the number at the end of a key.
pub(super) fn key_number(key: &[u8]) -> Result<u64> {
    let (_, number) = key.split_last_chunk::<8>().ok_or_else(malformed)?;
    Ok(u64::from_be_bytes(*number))
}

pub(crate) fn malformed() -> Error {
    Error::new(ErrorKind::Corrupt, "a row of the dead letters is malformed")
}
