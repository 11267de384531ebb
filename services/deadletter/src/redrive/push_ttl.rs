//! A new time to live for the pushes of a redriven message.

use bytes::Bytes;
use herald_mesh::{Subject, consumers::ConsumerKind};
use herald_model::time::Timestamp;
use herald_proto::mesh_v1::{FanoutSlice, PostCreated, PushChunk};
use prost::{DecodeError, Message};

/// Sets the end of the time to live of a message's pushes. A message without pushes stays unchanged.
pub(super) fn renew(
    kind: ConsumerKind,
    subject: Subject,
    payload: Bytes,
    expires_at: Timestamp,
) -> Result<Bytes, DecodeError> {
    match (kind, subject) {
        (ConsumerKind::Push, Subject::PushDeliver(_)) => {
            let changed = PushChunk {
                expires_at_us: expires_at.0,
                ..PushChunk::default()
            };
            Ok(append(&payload, &changed))
        }
        (ConsumerKind::Fanout, Subject::PostCreated(_)) => {
            let post = PostCreated::decode(payload.clone())?;
            let changed = PostCreated {
                push_ttl_seconds: seconds_between(post.accepted_at_us, expires_at),
                ..PostCreated::default()
            };
            Ok(append(&payload, &changed))
        }
        (ConsumerKind::Slice, Subject::Slice(_)) => {
            let slice = FanoutSlice::decode(payload.clone())?;
            let changed = FanoutSlice {
                push_ttl_seconds: seconds_between(slice.accepted_at_us, expires_at),
                ..FanoutSlice::default()
            };
            Ok(append(&payload, &changed))
        }
        _ => Ok(payload),
    }
}

/// Appends the fields of `changed` that are set. The last value of a field wins, and fields that this version doesn't
/// know stay.
fn append(payload: &[u8], changed: &impl Message) -> Bytes {
    [payload, &changed.encode_to_vec()].concat().into()
}

/// Time from a post's acceptance to the end of its pushes' time to live, seconds, rounded up.
fn seconds_between(accepted_at_us: i64, expires_at: Timestamp) -> u32 {
    let ttl = expires_at.since(Timestamp(accepted_at_us));
    u32::try_from(ttl.as_millis().div_ceil(1_000)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use herald_model::Lane;

    use super::*;

    const NOW: Timestamp = Timestamp(1_700_000_000_000_000);
    const TTL: Duration = Duration::from_hours(1);

    #[test]
    fn a_push_chunk_expires_after_the_new_time_to_live() {
        let chunk = PushChunk {
            post_id: 9,
            recipient_count: 3,
            expires_at_us: NOW.0 - 5,
            ..PushChunk::default()
        };
        let subject = Subject::PushDeliver(Lane::Low);
        let payload = chunk.encode_to_vec().into();
        let renewed = renew(ConsumerKind::Push, subject, payload, NOW.plus(TTL)).unwrap();
        let expected = PushChunk {
            expires_at_us: NOW.plus(TTL).0,
            ..chunk
        };
        assert_eq!(PushChunk::decode(renewed).unwrap(), expected);
    }

    #[test]
    fn a_post_and_a_slice_get_the_time_to_live_from_their_acceptance() {
        // Accepted two hours and a half second ago.
        let accepted_at_us = NOW.minus(Duration::from_millis(7_200_500)).0;
        let post = PostCreated {
            author_key: 3,
            accepted_at_us,
            push_ttl_seconds: 60,
            ..PostCreated::default()
        };
        let payload = Bytes::from(post.encode_to_vec());
        let subject = Subject::PostCreated(Lane::High);
        let renewed = renew(ConsumerKind::Fanout, subject, payload.clone(), NOW.plus(TTL)).unwrap();
        let expected = PostCreated {
            push_ttl_seconds: 3 * 3_600 + 1,
            ..post
        };
        assert_eq!(PostCreated::decode(renewed).unwrap(), expected);
        // The archive has no pushes.
        let archived = renew(ConsumerKind::Archive, subject, payload.clone(), NOW.plus(TTL)).unwrap();
        assert_eq!(archived, payload);

        let slice = FanoutSlice {
            slice_index: 4,
            accepted_at_us,
            push_ttl_seconds: 60,
            ..FanoutSlice::default()
        };
        let payload = slice.encode_to_vec().into();
        let subject = Subject::Slice(Lane::High);
        let renewed = renew(ConsumerKind::Slice, subject, payload, NOW.plus(TTL)).unwrap();
        let expected = FanoutSlice {
            push_ttl_seconds: 3 * 3_600 + 1,
            ..slice
        };
        assert_eq!(FanoutSlice::decode(renewed).unwrap(), expected);
    }

    #[test]
    fn a_malformed_post_is_refused() {
        let subject = Subject::PostCreated(Lane::High);
        let payload = Bytes::from_static(&[0xff]);
        assert!(renew(ConsumerKind::Fanout, subject, payload, NOW.plus(TTL)).is_err());
    }
}
