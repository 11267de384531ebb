//! What a message that was given up says of itself: the dead letter about it.

use herald_mesh::{RawMessage, Subject, consumers::ConsumerKind, streams};
use herald_model::{Channel, ChunkId, Recipients, UserId};
use herald_proto::{
    mesh_v1::{
        Backfill, DeliveriesSettled, DlqEntry, FanoutSlice, Header, PostCreated, PostDeleted, PushChunk,
        TimelineChunk,
    },
    v1,
};
use herald_store::Cause;
use prost::Message;

use crate::{domain::advisory::Advisory, wire};

/// The dead letter that an advisory makes, with the message that it tells of if that is still there.
pub(crate) fn dead_letter(advisory: Advisory, message: Option<&RawMessage>) -> DlqEntry {
    let kind = ConsumerKind::of(&advisory.consumer)
        .map_or_else(|| advisory.consumer.clone(), |kind| kind.as_str().into());
    let mut dead_letter = DlqEntry {
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
        ..DlqEntry::default()
    };
    let Some(message) = message else {
        number(&mut dead_letter);
        return dead_letter;
    };
    dead_letter.payload_state = v1::DeadLetterPayload::Kept.into();
    dead_letter.payload = message.payload.clone();
    dead_letter.subject.clone_from(&message.subject);
    dead_letter.published_at_us = message.published_at.0;
    dead_letter.message_type = message.message_type().unwrap_or_default().into();
    dead_letter.message_id = message.id().unwrap_or_default().into();
    dead_letter.trace_parent = message.trace_parent().unwrap_or_default().into();
    dead_letter.trace_state = message.trace_state().unwrap_or_default().into();
    dead_letter.headers = message
        .headers()
        .map(|(name, value)| Header {
            name: name.into(),
            value: value.into(),
        })
        .collect();
    // One that makes no sense is told of as it is.
    if let Ok(origin) = message.origin() {
        // A message that waited long came as a copy of itself, which counts its attempts anew.
        dead_letter.attempt_count += origin.attempts_before;
        dead_letter.published_at_us = origin.published_at.0;
        if let Some(redriven) = origin.redrive {
            dead_letter.redrive_dead_letter = redriven.dead_letter;
            dead_letter.redrive_round = redriven.round;
            dead_letter.subject = origin.subject.as_str().into();
            dead_letter.original_sequence = origin.sequence;
        }
    }
    number(&mut dead_letter);
    let plain = dead_letter.clone();
    if describe(&mut dead_letter).is_err() {
        // What was filled in before it made no sense any more is no better.
        dead_letter = plain;
        if dead_letter.cause == i32::from(wire::cause(Cause::Terminated)) {
            dead_letter.cause = wire::cause(Cause::Unreadable).into();
        }
    }
    dead_letter
}

/// A post's id is its sequence, whether or not anybody can read it.
fn number(dead_letter: &mut DlqEntry) {
    let kind = dead_letter.kind.parse::<ConsumerKind>();
    let created = match &dead_letter.subject[..] {
        // Gone: of POSTS the sequence is still the post's id.
        "" => dead_letter.stream == streams::POSTS,
        subject => subject.starts_with("post.v1.created."),
    };
    if matches!(kind, Ok(ConsumerKind::Fanout | ConsumerKind::Archive)) && created {
        dead_letter.post_id = dead_letter.original_sequence;
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
fn describe(dead_letter: &mut DlqEntry) -> Result<(), Unreadable> {
    let Some(subject) = Subject::parse(&dead_letter.subject) else {
        // Of ADVISORIES or DLQ, or of nobody.
        return Err(Unreadable);
    };
    dead_letter.lane = subject
        .lane()
        .map_or(v1::Lane::Unspecified, v1::Lane::from)
        .into();
    let payload = dead_letter.payload.clone();
    match subject {
        Subject::PostCreated(_) => {
            let post = PostCreated::decode(payload)?;
            UserId::new(post.author_id).map_err(|_| Unreadable)?;
            dead_letter.post_id = dead_letter.original_sequence;
            dead_letter.author_key = post.author_key;
            dead_letter.accepted_at_us = post.accepted_at_us;
        }
        Subject::PostDeleted(_) => {
            let deletion = PostDeleted::decode(payload)?;
            dead_letter.post_id = deletion.post_id;
            dead_letter.author_key = deletion.author_key;
        }
        Subject::Slice(_) => {
            let slice = FanoutSlice::decode(payload)?;
            dead_letter.post_id = slice.post_id;
            dead_letter.author_key = slice.author_key;
            dead_letter.accepted_at_us = slice.accepted_at_us;
        }
        Subject::TimelineDeliver(_) => {
            let chunk = TimelineChunk::decode(payload)?;
            dead_letter.post_id = chunk.post_id;
            dead_letter.author_key = chunk.author_key;
            dead_letter.accepted_at_us = chunk.accepted_at_us;
            let recipients = Recipients::decode(chunk.recipients, chunk.recipient_count)?;
            owe(
                dead_letter,
                Channel::Timeline,
                ChunkId(chunk.chunk_id),
                &recipients,
            )?;
        }
        Subject::PushDeliver(_) => {
            let chunk = PushChunk::decode(payload)?;
            dead_letter.post_id = chunk.post_id;
            dead_letter.author_key = chunk.author_key;
            dead_letter.accepted_at_us = chunk.accepted_at_us;
            let recipients = Recipients::decode(chunk.recipients, chunk.recipient_count)?;
            owe(dead_letter, Channel::Push, ChunkId(chunk.chunk_id), &recipients)?;
        }
        Subject::TimelineBackfill(_) => {
            let backfill = Backfill::decode(payload)?;
            let recipients = Recipients::decode(backfill.recipients, backfill.recipient_count)?;
            dead_letter.author_key = backfill.author_key;
            dead_letter.channel = v1::Channel::Timeline.into();
            dead_letter.recipient_count = recipients.len();
        }
        Subject::Settled(_) => {
            let settled = DeliveriesSettled::decode(payload)?;
            let first = settled.chunks.first().ok_or(Unreadable)?;
            // An event about several posts is about none of them.
            if settled.chunks.iter().all(|chunk| chunk.post_id == first.post_id) {
                dead_letter.post_id = first.post_id;
                dead_letter.author_key = first.author_key;
                dead_letter.accepted_at_us = first.accepted_at_us;
            }
        }
        _ => {}
    }
    Ok(())
}

/// The dead letter is about a chunk of deliveries. One whose id isn't that of its recipients is about nothing in the ledger.
fn owe(
    dead_letter: &mut DlqEntry,
    channel: Channel,
    chunk: ChunkId,
    recipients: &Recipients,
) -> Result<(), Unreadable> {
    if recipients.chunk_id() != chunk {
        return Err(Unreadable);
    }
    dead_letter.channel = v1::Channel::from(channel).into();
    dead_letter.chunk_id = chunk.0;
    dead_letter.recipient_count = recipients.len();
    Ok(())
}

/// For whom a dead letter's chunk is.
pub(crate) fn recipients(dead_letter: &DlqEntry) -> Option<Recipients> {
    let (bytes, count) = match Subject::parse(&dead_letter.subject)? {
        Subject::TimelineDeliver(_) => {
            let chunk = TimelineChunk::decode(dead_letter.payload.clone()).ok()?;
            (chunk.recipients, chunk.recipient_count)
        }
        Subject::PushDeliver(_) => {
            let chunk = PushChunk::decode(dead_letter.payload.clone()).ok()?;
            (chunk.recipients, chunk.recipient_count)
        }
        _ => return None,
    };
    Recipients::decode(bytes, count).ok()
}

#[cfg(test)]
mod tests {
    use herald_model::time::Timestamp;

    use super::*;

    /// Without its message.
    fn gone(stream: &str, consumer: &str) -> DlqEntry {
        let advisory = Advisory {
            stream: stream.into(),
            consumer: consumer.into(),
            sequence: 7,
            attempts: 1,
            failed_at: Timestamp(1),
            cause: Cause::Removed,
            reason: String::new(),
        };
        dead_letter(advisory, None)
    }

    #[test]
    fn a_message_that_is_gone_is_about_a_post_only_where_its_sequence_is_one() {
        assert_eq!(gone("POSTS", "fanout-low").post_id, 7);
        assert_eq!(gone("POSTS", "archive").post_id, 7);
        // Another count: post 7 is somebody else's.
        assert_eq!(gone("REDRIVE", "redrive-fanout").post_id, 0);
        assert_eq!(gone("TIMELINE", "timeline-high").post_id, 0);
    }
}
