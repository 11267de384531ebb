//! Builds the DLQ entry of a dead letter from an advisory and its message.

use std::time::Duration;

use herald_mesh::{RawMessage, Subject, consumers::ConsumerKind, streams};
use herald_model::{Channel, ChunkId, Recipients, UserId, time::Timestamp};
use herald_proto::{
    mesh_v1::{
        Backfill, DeliveriesSettled, DlqEntry, FanoutSlice, Header, PostCreated, PostDeleted, PushChunk,
        TimelineChunk,
    },
    v1,
};
use herald_store::Cause;
use prost::Message;

use crate::{convert, domain::advisory::Advisory};

/// Builds the entry. `message` is the advisory's message, `None` if it is no longer in its stream.
pub(crate) fn build(advisory: Advisory, message: Option<&RawMessage>) -> DlqEntry {
    let kind = ConsumerKind::of(&advisory.consumer)
        .map_or_else(|| advisory.consumer.clone(), |kind| kind.as_str().into());
    let mut entry = DlqEntry {
        kind,
        sequence: advisory.sequence,
        original_sequence: advisory.sequence,
        cause: convert::cause_to_proto(advisory.cause).into(),
        attempt_count: advisory.attempts,
        failed_at_us: advisory.failed_at.0,
        payload_state: v1::DeadLetterPayload::Gone.into(),
        reason: advisory.reason,
        stream: advisory.stream,
        consumer: advisory.consumer,
        ..DlqEntry::default()
    };
    let Some(message) = message else {
        set_post_id(&mut entry);
        return entry;
    };
    entry.payload_state = v1::DeadLetterPayload::Kept.into();
    entry.payload = message.payload.clone();
    entry.subject.clone_from(&message.subject);
    entry.published_at_us = message.published_at.0;
    entry.message_type = message.message_type().unwrap_or_default().into();
    entry.message_id = message.id().unwrap_or_default().into();
    entry.trace_parent = message.trace_parent().unwrap_or_default().into();
    entry.trace_state = message.trace_state().unwrap_or_default().into();
    entry.headers = message
        .headers()
        .map(|(name, value)| Header {
            name: name.into(),
            value: value.into(),
        })
        .collect();
    // With malformed redrive headers the entry describes the message in its present stream.
    if let Ok(origin) = message.origin() {
        // JetStream counts the deliveries of a copy (from LATER or REDRIVE) from 1.
        entry.attempt_count = entry.attempt_count.saturating_add(origin.previous_attempts);
        entry.published_at_us = origin.published_at.0;
        if let Some(redrive) = origin.redrive {
            entry.redrive_dead_letter = redrive.dead_letter;
            entry.redrive_round = redrive.round;
            entry.subject = origin.subject.as_str().into();
            entry.original_sequence = origin.sequence;
        }
    }
    set_post_id(&mut entry);
    let undescribed = entry.clone();
    if describe(&mut entry).is_err() {
        // Discard the fields that were set before the error.
        entry = undescribed;
        if entry.cause == i32::from(convert::cause_to_proto(Cause::Terminated)) {
            entry.cause = convert::cause_to_proto(Cause::Unreadable).into();
        }
    }
    entry
}

/// Sets the post id of an entry about a created post: the post's sequence, so a malformed payload has an id too.
fn set_post_id(entry: &mut DlqEntry) {
    let kind = entry.kind.parse::<ConsumerKind>();
    let created = match &entry.subject[..] {
        // The message is gone, so its subject is unknown. In POSTS the sequence is the post's id.
        "" => entry.stream == streams::POSTS,
        subject => subject.starts_with("post.v1.created."),
    };
    let of_post = matches!(
        kind,
        Ok(ConsumerKind::Fanout | ConsumerKind::Archive | ConsumerKind::AnalyticsPosts)
    );
    if of_post && created {
        entry.post_id = entry.original_sequence;
    }
}

/// The message is malformed.
#[derive(Debug)]
struct Malformed;

impl From<prost::DecodeError> for Malformed {
    fn from(_: prost::DecodeError) -> Self {
        Self
    }
}

impl From<herald_model::MalformedRecipients> for Malformed {
    fn from(_: herald_model::MalformedRecipients) -> Self {
        Self
    }
}

/// Sets the fields that come from the payload: post, author, chunk, recipients.
fn describe(entry: &mut DlqEntry) -> Result<(), Malformed> {
    let Some(subject) = Subject::parse(&entry.subject) else {
        // A message of ADVISORIES or DLQ, or of another program.
        return Err(Malformed);
    };
    entry.lane = subject
        .lane()
        .map_or(v1::Lane::Unspecified, v1::Lane::from)
        .into();
    let payload = entry.payload.clone();
    match subject {
        Subject::PostCreated(_) => {
            let post = PostCreated::decode(payload)?;
            UserId::from_stored(post.author_id).map_err(|_| Malformed)?;
            entry.post_id = entry.original_sequence;
            entry.author_key = post.author_key;
            entry.accepted_at_us = post.accepted_at_us;
            if entry.kind == ConsumerKind::Fanout.as_str() {
                entry.pushes_expire_at_us = expires_at_us(post.accepted_at_us, post.push_ttl_seconds);
            }
        }
        Subject::PostDeleted(_) => {
            let deletion = PostDeleted::decode(payload)?;
            entry.post_id = deletion.post_id;
            entry.author_key = deletion.author_key;
        }
        Subject::Slice(_) => {
            let slice = FanoutSlice::decode(payload)?;
            entry.post_id = slice.post_id;
            entry.author_key = slice.author_key;
            entry.accepted_at_us = slice.accepted_at_us;
            entry.pushes_expire_at_us = expires_at_us(slice.accepted_at_us, slice.push_ttl_seconds);
        }
        Subject::TimelineDeliver(_) => {
            let chunk = TimelineChunk::decode(payload)?;
            entry.post_id = chunk.post_id;
            entry.author_key = chunk.author_key;
            entry.accepted_at_us = chunk.accepted_at_us;
            let recipients = Recipients::decode(chunk.recipients, chunk.recipient_count)?;
            set_chunk(entry, Channel::Timeline, ChunkId(chunk.chunk_id), &recipients)?;
        }
        Subject::PushDeliver(_) => {
            let chunk = PushChunk::decode(payload)?;
            entry.post_id = chunk.post_id;
            entry.author_key = chunk.author_key;
            entry.accepted_at_us = chunk.accepted_at_us;
            let recipients = Recipients::decode(chunk.recipients, chunk.recipient_count)?;
            set_chunk(entry, Channel::Push, ChunkId(chunk.chunk_id), &recipients)?;
            entry.pushes_expire_at_us = chunk.expires_at_us;
        }
        Subject::TimelineBackfill(_) => {
            let backfill = Backfill::decode(payload)?;
            let recipients = Recipients::decode(backfill.recipients, backfill.recipient_count)?;
            entry.author_key = backfill.author_key;
            entry.channel = v1::Channel::Timeline.into();
            entry.recipient_count = recipients.len();
        }
        Subject::Settled(_) => {
            let settled = DeliveriesSettled::decode(payload)?;
            let first = settled.chunks.first().ok_or(Malformed)?;
            // An event about several posts has no single post id.
            if settled.chunks.iter().all(|chunk| chunk.post_id == first.post_id) {
                entry.post_id = first.post_id;
                entry.author_key = first.author_key;
                entry.accepted_at_us = first.accepted_at_us;
            }
        }
        _ => {}
    }
    Ok(())
}

/// End of the time to live of the pushes of a post, microseconds since 1970.
fn expires_at_us(accepted_at_us: i64, push_ttl_seconds: u32) -> i64 {
    let push_ttl = Duration::from_secs(push_ttl_seconds.into());
    Timestamp(accepted_at_us).plus(push_ttl).0
}

/// Sets the chunk of the entry. A chunk id that doesn't match the recipients is malformed: the ledger has no such
/// chunk.
fn set_chunk(
    entry: &mut DlqEntry,
    channel: Channel,
    chunk: ChunkId,
    recipients: &Recipients,
) -> Result<(), Malformed> {
    if recipients.chunk_id() != chunk {
        return Err(Malformed);
    }
    entry.channel = v1::Channel::from(channel).into();
    entry.chunk_id = chunk.0;
    entry.recipient_count = recipients.len();
    Ok(())
}

/// The recipients of the entry's chunk; `None` without a chunk or with a malformed payload.
pub(crate) fn recipients(entry: &DlqEntry) -> Option<Recipients> {
    let (bytes, count) = match Subject::parse(&entry.subject)? {
        Subject::TimelineDeliver(_) => {
            let chunk = TimelineChunk::decode(entry.payload.clone()).ok()?;
            (chunk.recipients, chunk.recipient_count)
        }
        Subject::PushDeliver(_) => {
            let chunk = PushChunk::decode(entry.payload.clone()).ok()?;
            (chunk.recipients, chunk.recipient_count)
        }
        _ => return None,
    };
    Recipients::decode(bytes, count).ok()
}

/// The generation of the entry's push chunk; 0 for other messages and for a malformed payload.
pub(crate) fn retry_generation(entry: &DlqEntry) -> u32 {
    match Subject::parse(&entry.subject) {
        Some(Subject::PushDeliver(_)) => {
            PushChunk::decode(entry.payload.clone()).map_or(0, |chunk| chunk.retry_generation)
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use herald_model::{PostId, UserKey};
    use proptest::prelude::*;

    use super::*;

    /// An entry whose message is gone.
    fn entry_without_message(stream: &str, consumer: &str) -> DlqEntry {
        let advisory = Advisory {
            stream: stream.into(),
            consumer: consumer.into(),
            sequence: 7,
            attempts: 1,
            failed_at: Timestamp(1),
            cause: Cause::Removed,
            reason: String::new(),
        };
        build(advisory, None)
    }

    #[test]
    fn an_entry_without_its_message_has_a_post_id_only_in_posts() {
        assert_eq!(entry_without_message("POSTS", "fanout-low").post_id, 7);
        assert_eq!(entry_without_message("POSTS", "archive").post_id, 7);
        assert_eq!(entry_without_message("POSTS", "analytics-posts").post_id, 7);
        // These sequences are not post ids.
        assert_eq!(entry_without_message("REDRIVE", "redrive-fanout").post_id, 0);
        assert_eq!(entry_without_message("TIMELINE", "timeline-high").post_id, 0);
    }

    /// Bodies of every subject, with numbers at the ends of their ranges.
    fn bodies() -> impl Strategy<Value = (&'static str, Vec<u8>)> {
        let recipients = prop::collection::btree_set(any::<u32>(), 0..20)
            .prop_map(|keys| Recipients::from_sorted(keys.into_iter().map(UserKey)));
        let times = (herald_fuzz::micros(), herald_fuzz::micros());
        (
            0..8_usize,
            recipients,
            herald_fuzz::u64s(),
            herald_fuzz::u32s(),
            times,
        )
            .prop_map(|(kind, recipients, post_id, number, (one, other))| {
                let (post, author) = (PostId(post_id), UserKey(number));
                let chunk = PushChunk::new(post, author, Timestamp(one), Timestamp(other), &recipients);
                match kind {
                    0 => ("post.v1.created.low", post_created(number, one).encode_to_vec()),
                    1 => (
                        "post.v1.deleted.low",
                        PostDeleted {
                            post_id,
                            ..Default::default()
                        }
                        .encode_to_vec(),
                    ),
                    2 => ("fanout.v1.slice.low", slice(post_id, number, one).encode_to_vec()),
                    3 => (
                        "timeline.v1.deliver.low",
                        TimelineChunk::new(post, author, Timestamp(one), &recipients).encode_to_vec(),
                    ),
                    4 => ("push.v1.deliver.low", chunk.encode_to_vec()),
                    5 => (
                        "timeline.v1.backfill.low",
                        backfill(&recipients, post_id).encode_to_vec(),
                    ),
                    6 => (
                        "event.v1.settled.push",
                        DeliveriesSettled::default().encode_to_vec(),
                    ),
                    _ => ("unknown", vec![0xff]),
                }
            })
    }

    fn post_created(push_ttl_seconds: u32, accepted_at_us: i64) -> PostCreated {
        PostCreated {
            author_id: "author".into(),
            accepted_at_us,
            push_ttl_seconds,
            ..PostCreated::default()
        }
    }

    fn slice(post_id: u64, push_ttl_seconds: u32, accepted_at_us: i64) -> FanoutSlice {
        FanoutSlice {
            post_id,
            accepted_at_us,
            push_ttl_seconds,
            ..FanoutSlice::default()
        }
    }

    fn backfill(recipients: &Recipients, posts_sequence: u64) -> Backfill {
        Backfill {
            recipients: recipients.as_bytes().clone(),
            recipient_count: recipients.len(),
            posts_sequence,
            ..Backfill::default()
        }
    }

    proptest! {
        /// A malformed payload makes a dead letter too: what can be read of it is described, the rest is left out.
        #[test]
        fn every_payload_has_an_entry(
            (subject, payload) in bodies().prop_flat_map(|(subject, body)| {
                (Just(subject), herald_fuzz::near(Just(body)))
            }),
            kind in 0..ConsumerKind::ALL.len(),
        ) {
            let kind = ConsumerKind::ALL[kind].as_str();
            let mut entry = DlqEntry {
                subject: subject.into(),
                payload: payload.into(),
                kind: kind.into(),
                original_sequence: 7,
                ..entry_without_message("TIMELINE", "timeline-low")
            };
            if describe(&mut entry).is_ok() && entry.chunk_id != 0 {
                let recipients = recipients(&entry).unwrap();
                prop_assert_eq!((recipients.chunk_id().0, recipients.len()), (entry.chunk_id, entry.recipient_count));
            }
            let _ = retry_generation(&entry);
            if entry.sequence > 0 {
                prop_assert!(convert::parse_dlq_entry(entry, 9, Timestamp(1)).is_ok());
            }
        }

        #[test]
        fn bytes_near_an_entry_are_an_entry_or_refused(
            bytes in herald_fuzz::near(bodies().prop_map(|(subject, body)| DlqEntry {
                subject: subject.into(),
                payload: body.into(),
                trace_parent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into(),
                reason: "the store is away".into(),
                ..entry_without_message("PUSH", "push-low")
            }.encode_to_vec())),
        ) {
            if let Ok(entry) = DlqEntry::decode(&bytes[..]) {
                let recipients = recipients(&entry);
                let payload = entry.payload.len();
                prop_assert!(recipients.is_none_or(|all| all.len() as usize <= payload));
                let _ = convert::parse_dlq_entry(entry, 9, Timestamp(1));
            }
        }
    }
}
