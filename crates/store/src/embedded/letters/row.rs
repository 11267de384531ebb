//! How letters and acts are stored: Protobuf rows, and the keys of their indices.

use herald_model::{Channel, ChunkId, Lane, PostId, UserKey, time::Micros};
use prost::Message;

use crate::{
    Act, ActId, ActKind, ActState, Cause, Chosen, Error, ErrorKind, Letter, LetterId, LetterState, NewAct,
    Origin, Payload, Result,
};

/// A letter.
#[derive(Clone, PartialEq, Message)]
pub(super) struct LetterRow {
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
    acts: Vec<u64>,
    #[prost(uint64, tag = "30")]
    redrive_sequence: u64,
    #[prost(int64, tag = "31")]
    updated_at: i64,
}

/// An act.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ActRow {
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
    frozen: u64,
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
}

/// Some of the letters that an act is about, as they were chosen.
#[derive(Clone, PartialEq, Message)]
pub(super) struct FrozenRow {
    /// Each less the one before.
    #[prost(uint64, repeated, tag = "1")]
    ids: Vec<u64>,
    #[prost(uint32, repeated, tag = "2")]
    rounds: Vec<u32>,
}

const CAUSES: [Cause; 5] = [
    Cause::MaxDeliveries,
    Cause::Terminated,
    Cause::Removed,
    Cause::Unreadable,
    Cause::Audit,
];
pub(super) const STATES: [LetterState; 4] = [
    LetterState::Open,
    LetterState::Redriving,
    LetterState::Resolved,
    LetterState::Discarded,
];
const PAYLOADS: [Payload; 3] = [Payload::Kept, Payload::Gone, Payload::TooLarge];
const ACT_KINDS: [ActKind; 3] = [ActKind::Redrive, ActKind::Discard, ActKind::Cancel];
const ACT_STATES: [ActState; 4] = [
    ActState::Running,
    ActState::Done,
    ActState::Stopped,
    ActState::Cancelled,
];

/// The place of a word in its list, as rows hold it.
pub(super) fn number<T: PartialEq>(all: &[T], word: &T) -> u32 {
    all.iter().position(|one| one == word).unwrap_or_default() as u32
}

pub(super) fn word<T: Copy>(all: &[T], number: u32) -> Result<T> {
    all.get(number as usize).copied().ok_or_else(malformed)
}

pub(super) fn encode_letter(letter: &Letter) -> Vec<u8> {
    LetterRow {
        stream: letter.origin.stream.clone(),
        consumer: letter.origin.consumer.clone(),
        sequence: letter.origin.sequence,
        kind: letter.kind.clone(),
        original_sequence: letter.original_sequence,
        subject: letter.subject.clone(),
        message_type: letter.message_type.clone(),
        cause: number(&CAUSES, &letter.cause),
        reason: letter.reason.clone(),
        group: letter.group,
        group_reason: letter.group_reason.clone(),
        attempts: letter.attempts,
        published_at: letter.published_at.0,
        first_failed_at: letter.first_failed_at.0,
        last_failed_at: letter.last_failed_at.0,
        stored_at: letter.stored_at.0,
        post: letter.post.map(|post| post.0),
        author: letter.author.map(|author| author.0),
        channel: letter.channel.map(|channel| number(&Channel::ALL, &channel)),
        chunk: letter.chunk.map(|chunk| chunk.0),
        lane: letter.lane.map(|lane| number(&Lane::ALL, &lane)),
        recipients: letter.recipients,
        trace_id: letter.trace_id.clone(),
        payload: number(&PAYLOADS, &letter.payload),
        payload_bytes: letter.payload_bytes,
        state: number(&STATES, &letter.state),
        round: letter.round,
        redrive: letter.redrive.map(|act| act.0),
        acts: letter.acts.iter().map(|act| act.0).collect(),
        redrive_sequence: letter.redrive_sequence,
        updated_at: letter.updated_at.0,
    }
    .encode_to_vec()
}

pub(super) fn decode_letter(id: LetterId, bytes: &[u8]) -> Result<Letter> {
    let row = LetterRow::decode(bytes).map_err(|_| malformed())?;
    Ok(Letter {
        id,
        origin: Origin {
            stream: row.stream,
            consumer: row.consumer,
            sequence: row.sequence,
        },
        kind: row.kind,
        original_sequence: row.original_sequence,
        subject: row.subject,
        message_type: row.message_type,
        cause: word(&CAUSES, row.cause)?,
        reason: row.reason,
        group: row.group,
        group_reason: row.group_reason,
        attempts: row.attempts,
        published_at: Micros(row.published_at),
        first_failed_at: Micros(row.first_failed_at),
        last_failed_at: Micros(row.last_failed_at),
        stored_at: Micros(row.stored_at),
        post: row.post.map(PostId),
        author: row.author.map(UserKey),
        channel: row
            .channel
            .map(|channel| word(&Channel::ALL, channel))
            .transpose()?,
        chunk: row.chunk.map(ChunkId),
        lane: row.lane.map(|lane| word(&Lane::ALL, lane)).transpose()?,
        recipients: row.recipients,
        trace_id: row.trace_id,
        payload: word(&PAYLOADS, row.payload)?,
        payload_bytes: row.payload_bytes,
        state: word(&STATES, row.state)?,
        round: row.round,
        redrive: row.redrive.map(ActId),
        acts: row.acts.into_iter().map(ActId).collect(),
        redrive_sequence: row.redrive_sequence,
        updated_at: Micros(row.updated_at),
    })
}

/// An act without what was asked for, which never changes and has a row of its own.
pub(super) fn encode_act(act: &Act) -> Vec<u8> {
    ActRow {
        kind: number(&ACT_KINDS, &act.what.kind),
        actor: act.what.actor.clone(),
        at: act.what.at.0,
        excluded: act.what.excluded,
        rate_max: act.what.rate_max,
        failures_max: act.what.failures_max,
        target: act.what.target.map(|act| act.0),
        state: number(&ACT_STATES, &act.state),
        reason: act.reason.clone(),
        ended_at: act.ended_at.map(|at| at.0),
        frozen: act.frozen,
        reached: act.reached,
        skipped: act.skipped,
        resolved: act.resolved,
        failed: act.failed,
        redrive_after: act.redrive_after,
    }
    .encode_to_vec()
}

pub(super) fn decode_act(id: ActId, bytes: &[u8]) -> Result<Act> {
    let row = ActRow::decode(bytes).map_err(|_| malformed())?;
    Ok(Act {
        id,
        what: NewAct {
            kind: word(&ACT_KINDS, row.kind)?,
            actor: row.actor,
            at: Micros(row.at),
            selection: bytes::Bytes::new(),
            excluded: row.excluded,
            rate_max: row.rate_max,
            failures_max: row.failures_max,
            target: row.target.map(ActId),
        },
        state: word(&ACT_STATES, row.state)?,
        reason: row.reason,
        ended_at: row.ended_at.map(Micros),
        frozen: row.frozen,
        reached: row.reached,
        skipped: row.skipped,
        resolved: row.resolved,
        failed: row.failed,
        redrive_after: row.redrive_after,
    })
}

pub(super) fn encode_frozen(letters: &[Chosen]) -> Vec<u8> {
    let mut last = 0;
    let mut row = FrozenRow::default();
    for letter in letters {
        row.ids.push(letter.id.0.wrapping_sub(last));
        row.rounds.push(letter.round);
        last = letter.id.0;
    }
    row.encode_to_vec()
}

pub(super) fn decode_frozen(bytes: &[u8]) -> Result<Vec<Chosen>> {
    let row = FrozenRow::decode(bytes).map_err(|_| malformed())?;
    let mut last = 0_u64;
    let letters = row.ids.into_iter().zip(row.rounds).map(|(id, round)| {
        last = last.wrapping_add(id);
        Chosen {
            id: LetterId(last),
            round,
        }
    });
    Ok(letters.collect())
}

/// (stream, consumer, sequence); names of streams and consumers have no spaces.
pub(super) fn origin_key(origin: &Origin) -> Vec<u8> {
    let mut key = format!("{} {} ", origin.stream, origin.consumer).into_bytes();
    key.extend(origin.sequence.to_be_bytes());
    key
}

/// (state, letter)
pub(super) fn state_key(state: LetterState, id: LetterId) -> [u8; 9] {
    let mut key = [number(&STATES, &state) as u8; 9];
    key[1..].copy_from_slice(&id.0.to_be_bytes());
    key
}

/// (group, letter)
pub(super) fn group_key(group: u64, id: LetterId) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&group.to_be_bytes());
    key[8..].copy_from_slice(&id.0.to_be_bytes());
    key
}

/// (act, part)
pub(super) fn frozen_key(act: ActId, part: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&act.0.to_be_bytes());
    key[8..].copy_from_slice(&part.to_be_bytes());
    key
}

/// The number that a key ends with.
pub(super) fn last_number(key: &[u8]) -> Result<u64> {
    let (_, number) = key.split_last_chunk::<8>().ok_or_else(malformed)?;
    Ok(u64::from_be_bytes(*number))
}

pub(super) fn malformed() -> Error {
    Error::new(ErrorKind::Corrupt, "a row of the letters is malformed")
}
