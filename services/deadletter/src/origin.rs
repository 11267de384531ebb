//! What a message that was given up says of itself: the letter about it.

use herald_mesh::{RawMessage, Redriven, Subject, consumers::Kind};
use herald_model::{Channel, ChunkId, Lane, Recipients, UserId};
use herald_proto::{
    mesh_v1::{
        Backfill, DeadLetter, DeliveriesSettled, FanoutSlice, Header, PostCreated, PostDeleted, PushChunk,
        TimelineChunk,
    },
    v1,
};
use herald_store::Cause;
use prost::Message;

use crate::{domain::advisory::Advisory, wire};

const TYPE: &str = "Herald-Type";
const REDRIVE: &str = "Herald-Redrive";
const ORIGINAL_SUBJECT: &str = "Herald-Subject";
const ORIGINAL_SEQUENCE: &str = "Herald-Sequence";
const ORIGINAL_PUBLISHED_AT: &str = "Herald-Published-At";
const EARLIER_ATTEMPTS: &str = "Herald-Attempts";

/// The letter that an advisory makes, with the message that it tells of if that is still there.
pub(crate) fn letter(advisory: Advisory, message: Option<&RawMessage>) -> DeadLetter {
    let kind =
        Kind::of(&advisory.consumer).map_or_else(|| advisory.consumer.clone(), |kind| kind.as_str().into());
    let mut letter = DeadLetter {
        kind,
        sequence: advisory.sequence,
        original_sequence: advisory.sequence,
        cause: wire::cause(advisory.cause).into(),
        attempt_count: advisory.attempts,
        failed_at_us: advisory.failed_at.0,
        payload_state: v1::DeadLetterPayload::Gone.into(),
        reason: advisory.reason,
        stream: advisory.stream,
        consumer: advisory.consumer,
        ..DeadLetter::default()
    };
    let Some(message) = message else {
        number(&mut letter);
        return letter;
    };
    let header = |name: &str| message.header(name).unwrap_or_default().to_owned();
    letter.payload_state = v1::DeadLetterPayload::Kept.into();
    letter.payload = message.payload.clone();
    letter.subject.clone_from(&message.subject);
    letter.published_at_us = message.published_at.0;
    letter.message_type = header(TYPE);
    letter.message_id = message.id().unwrap_or_default().into();
    letter.trace_parent = message.trace_parent().unwrap_or_default().into();
    letter.trace_state = header("tracestate");
    // A message that waited long came as a copy of itself, which counts its attempts anew.
    letter.attempt_count += header(EARLIER_ATTEMPTS).parse().unwrap_or(0);
    letter.headers = message
        .headers()
        .map(|(name, value)| Header {
            name: name.into(),
            value: value.into(),
        })
        .collect();
    if let Some(redriven) = message.header(REDRIVE).and_then(Redriven::parse) {
        letter.redrive_letter = redriven.letter;
        letter.redrive_round = redriven.round;
        letter.subject = header(ORIGINAL_SUBJECT);
        letter.original_sequence = header(ORIGINAL_SEQUENCE).parse().unwrap_or(0);
        letter.published_at_us = header(ORIGINAL_PUBLISHED_AT).parse().unwrap_or(0);
    }
    number(&mut letter);
    let plain = letter.clone();
    if describe(&mut letter).is_err() {
        // What was filled in before it made no sense any more is no better.
        letter = plain;
        if letter.cause == i32::from(wire::cause(Cause::Terminated)) {
            letter.cause = wire::cause(Cause::Unreadable).into();
        }
    }
    letter
}

/// A post's id is its sequence, whether or not anybody can read it.
fn number(letter: &mut DeadLetter) {
    let kind = letter.kind.parse::<Kind>();
    let created = letter.subject.is_empty() || letter.subject.starts_with("post.v1.created.");
    if matches!(kind, Ok(Kind::Fanout | Kind::Archive)) && created {
        letter.post_id = letter.original_sequence;
    }
}

/// A message that makes no sense.
#[derive(Debug)]
struct Unreadable;

impl From<prost::DecodeError> for Unreadable {
    fn from(_: prost::DecodeError) -> Self {
        Self
    }
}

impl From<herald_model::MalformedRecipients> for Unreadable {
    fn from(_: herald_model::MalformedRecipients) -> Self {
        Self
    }
}

/// Fills in what the payload is about.
fn describe(letter: &mut DeadLetter) -> Result<(), Unreadable> {
    let Some(subject) = Subject::parse(&letter.subject) else {
        // Of ADVISORIES or DLQ, or of nobody.
        return Err(Unreadable);
    };
    letter.lane = lane(subject.lane()).into();
    let payload = letter.payload.clone();
    match subject {
        Subject::PostCreated(_) => {
            let post = PostCreated::decode(payload)?;
            UserId::new(post.author_id).map_err(|_| Unreadable)?;
            letter.post_id = letter.original_sequence;
            letter.author_key = post.author_key;
            letter.accepted_at_us = post.accepted_at_us;
        }
        Subject::PostDeleted(_) => {
            let deletion = PostDeleted::decode(payload)?;
            letter.post_id = deletion.post_id;
            letter.author_key = deletion.author_key;
        }
        Subject::Slice(_) => {
            let slice = FanoutSlice::decode(payload)?;
            letter.post_id = slice.post_id;
            letter.author_key = slice.author_key;
            letter.accepted_at_us = slice.accepted_at_us;
        }
        Subject::TimelineDeliver(_) => {
            let chunk = TimelineChunk::decode(payload)?;
            letter.post_id = chunk.post_id;
            letter.author_key = chunk.author_key;
            letter.accepted_at_us = chunk.accepted_at_us;
            let recipients = Recipients::decode(chunk.recipients, chunk.recipient_count)?;
            owe(letter, Channel::Timeline, ChunkId(chunk.chunk_id), &recipients)?;
        }
        Subject::PushDeliver(_) => {
            let chunk = PushChunk::decode(payload)?;
            letter.post_id = chunk.post_id;
            letter.author_key = chunk.author_key;
            letter.accepted_at_us = chunk.accepted_at_us;
            let recipients = Recipients::decode(chunk.recipients, chunk.recipient_count)?;
            owe(letter, Channel::Push, ChunkId(chunk.chunk_id), &recipients)?;
        }
        Subject::TimelineBackfill(_) => {
            let backfill = Backfill::decode(payload)?;
            let recipients = Recipients::decode(backfill.recipients, backfill.recipient_count)?;
            letter.author_key = backfill.author_key;
            letter.channel = v1::Channel::Timeline.into();
            letter.recipient_count = recipients.len();
        }
        Subject::Settled(_) => {
            let settled = DeliveriesSettled::decode(payload)?;
            letter.post_id = settled.post_id;
            letter.author_key = settled.author_key;
            letter.accepted_at_us = settled.accepted_at_us;
        }
        _ => {}
    }
    Ok(())
}

/// The letter is about a chunk of deliveries. One whose id isn't that of its recipients is about nothing in the ledger.
fn owe(
    letter: &mut DeadLetter,
    channel: Channel,
    chunk: ChunkId,
    recipients: &Recipients,
) -> Result<(), Unreadable> {
    if recipients.chunk_id() != chunk {
        return Err(Unreadable);
    }
    letter.channel = wire::channel(channel).into();
    letter.chunk_id = chunk.0;
    letter.recipient_count = recipients.len();
    Ok(())
}

/// For whom a letter's chunk is.
pub(crate) fn recipients(letter: &DeadLetter) -> Option<Recipients> {
    let (bytes, count) = match Subject::parse(&letter.subject)? {
        Subject::TimelineDeliver(_) => {
            let chunk = TimelineChunk::decode(letter.payload.clone()).ok()?;
            (chunk.recipients, chunk.recipient_count)
        }
        Subject::PushDeliver(_) => {
            let chunk = PushChunk::decode(letter.payload.clone()).ok()?;
            (chunk.recipients, chunk.recipient_count)
        }
        _ => return None,
    };
    Recipients::decode(bytes, count).ok()
}

fn lane(lane: Option<Lane>) -> v1::Lane {
    match lane {
        None => v1::Lane::Unspecified,
        Some(Lane::High) => v1::Lane::High,
        Some(Lane::Normal) => v1::Lane::Normal,
        Some(Lane::Low) => v1::Lane::Low,
    }
}
