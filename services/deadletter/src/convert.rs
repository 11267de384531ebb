//! Conversions between the types of the store and the Protobuf messages.

use std::time::Duration;

use herald_model::{Channel, ChunkId, Lane, PostId, UserKey, time::Timestamp};
use herald_proto::{mesh_v1, timestamp_to_proto, v1};
use herald_store::{
    Cause, DeadLetter, DeadLetterGroup, DeadLetterId, DeadLetterState, MessageRef, Operation, OperationId,
    OperationKind, OperationState, Payload, Reopening,
};
use prost::Message;

use crate::domain::fingerprint;

pub(crate) fn cause_to_proto(cause: Cause) -> v1::DeadLetterCause {
    match cause {
        Cause::MaxDeliveries => v1::DeadLetterCause::MaxDeliveries,
        Cause::Terminated => v1::DeadLetterCause::Terminated,
        Cause::Removed => v1::DeadLetterCause::Removed,
        Cause::Unreadable => v1::DeadLetterCause::Unreadable,
        Cause::Audit => v1::DeadLetterCause::Audit,
    }
}

/// `None` for the unspecified value.
pub(crate) fn cause_from_proto(cause: v1::DeadLetterCause) -> Option<Cause> {
    Some(match cause {
        v1::DeadLetterCause::Unspecified => return None,
        v1::DeadLetterCause::MaxDeliveries => Cause::MaxDeliveries,
        v1::DeadLetterCause::Terminated => Cause::Terminated,
        v1::DeadLetterCause::Removed => Cause::Removed,
        v1::DeadLetterCause::Unreadable => Cause::Unreadable,
        v1::DeadLetterCause::Audit => Cause::Audit,
    })
}

fn state_to_proto(state: DeadLetterState) -> v1::DeadLetterState {
    match state {
        DeadLetterState::Open => v1::DeadLetterState::Open,
        DeadLetterState::Redriving => v1::DeadLetterState::Redriving,
        DeadLetterState::Resolved => v1::DeadLetterState::Resolved,
        DeadLetterState::Discarded => v1::DeadLetterState::Discarded,
    }
}

/// `None` for the unspecified value.
pub(crate) fn state_from_proto(state: v1::DeadLetterState) -> Option<DeadLetterState> {
    Some(match state {
        v1::DeadLetterState::Unspecified => return None,
        v1::DeadLetterState::Open => DeadLetterState::Open,
        v1::DeadLetterState::Redriving => DeadLetterState::Redriving,
        v1::DeadLetterState::Resolved => DeadLetterState::Resolved,
        v1::DeadLetterState::Discarded => DeadLetterState::Discarded,
    })
}

fn payload_to_proto(payload: Payload) -> v1::DeadLetterPayload {
    match payload {
        Payload::Kept => v1::DeadLetterPayload::Kept,
        Payload::Gone => v1::DeadLetterPayload::Gone,
        Payload::TooLarge => v1::DeadLetterPayload::TooLarge,
    }
}

/// `None` for the unspecified value.
pub(crate) fn channel_from_proto(channel: v1::Channel) -> Option<Channel> {
    match channel {
        v1::Channel::Unspecified => None,
        v1::Channel::Timeline => Some(Channel::Timeline),
        v1::Channel::Push => Some(Channel::Push),
    }
}

/// Formats a group id as 16 hexadecimal digits.
pub(crate) fn format_group_id(group: u64) -> String {
    format!("{group:016x}")
}

/// Parses a group id; `None` unless it has 16 hexadecimal digits.
pub(crate) fn parse_group_id(id: &str) -> Option<u64> {
    (id.len() == 16)
        .then(|| u64::from_str_radix(id, 16).ok())
        .flatten()
}

/// Converts a dead letter. `undelivered` is the number of its recipients that are pending or dead in the ledger.
pub(crate) fn dead_letter_to_proto(
    dead_letter: DeadLetter,
    author_id: String,
    undelivered: u32,
) -> v1::DeadLetter {
    v1::DeadLetter {
        dead_letter_id: dead_letter.id.0,
        state: state_to_proto(dead_letter.state).into(),
        stream: dead_letter.origin.stream,
        consumer: dead_letter.origin.consumer,
        kind: dead_letter.kind,
        sequence: dead_letter.origin.sequence,
        subject: dead_letter.subject,
        message_type: dead_letter.message_type,
        cause: cause_to_proto(dead_letter.cause).into(),
        reason: dead_letter.reason,
        group_id: format_group_id(dead_letter.group),
        attempt_count: dead_letter.attempts,
        // Unknown if the message was gone.
        publish_time: (dead_letter.published_at.0 > 0).then(|| timestamp_to_proto(dead_letter.published_at)),
        first_failure_time: Some(timestamp_to_proto(dead_letter.first_failed_at)),
        last_failure_time: Some(timestamp_to_proto(dead_letter.last_failed_at)),
        redrive_count: dead_letter.round,
        redrive_id: dead_letter.redrive.map_or(0, |operation| operation.0),
        post_id: dead_letter.post.map_or(0, |post| post.0),
        author_id,
        channel: dead_letter.channel.map_or(0, |one| v1::Channel::from(one).into()),
        lane: dead_letter.lane.map_or(0, |lane| {
            i32::from(match lane {
                Lane::High => v1::Lane::High,
                Lane::Normal => v1::Lane::Normal,
                Lane::Low => v1::Lane::Low,
            })
        }),
        recipient_count: dead_letter.recipients,
        undelivered_count: undelivered,
        trace_id: dead_letter.trace_id,
        payload: payload_to_proto(dead_letter.payload).into(),
        payload_byte_count: dead_letter.payload_bytes,
        update_time: Some(timestamp_to_proto(dead_letter.updated_at)),
        push_expire_time: dead_letter.pushes_expire_at.map(timestamp_to_proto),
    }
}

/// Converts a group.
pub(crate) fn group_to_proto(group: DeadLetterGroup) -> v1::DeadLetterGroup {
    v1::DeadLetterGroup {
        group_id: format_group_id(group.group),
        kind: group.kind,
        cause: cause_to_proto(group.cause).into(),
        reason: group.reason,
        dead_letter_count: group.dead_letters,
        first_failure_time: Some(timestamp_to_proto(group.first_failed_at)),
        last_failure_time: Some(timestamp_to_proto(group.last_failed_at)),
        example_dead_letter_id: group.example.0,
    }
}

/// Converts the operation of a redrive.
pub(crate) fn redrive_to_proto(operation: &Operation, now: Timestamp) -> v1::Redrive {
    let ended_at = operation.ended_at.filter(|_| operation.is_over());
    let elapsed = ended_at.unwrap_or(now).since(operation.what.at);
    v1::Redrive {
        redrive_id: operation.id.0,
        state: operation_state_to_proto(operation.state).into(),
        selected_count: operation.selected,
        sent_count: operation.applied(),
        resolved_count: operation.resolved,
        failed_count: operation.failed,
        in_flight_count: operation.in_flight(),
        skipped_count: operation.skipped,
        excluded_count: operation.what.excluded,
        rate_max: operation.what.rate_max,
        failures_max: operation.what.failures_max,
        reason: operation.reason.clone(),
        actor: operation.what.actor.clone(),
        create_time: Some(timestamp_to_proto(operation.what.at)),
        end_time: ended_at.map(timestamp_to_proto),
        elapsed: Some(duration_to_proto(elapsed)),
        expired_count: operation.expired,
        push_ttl: operation.what.push_ttl.map(duration_to_proto),
    }
}

fn operation_state_to_proto(state: OperationState) -> v1::DeadLetterOperationState {
    match state {
        OperationState::Running => v1::DeadLetterOperationState::Running,
        OperationState::Done => v1::DeadLetterOperationState::Done,
        OperationState::Stopped => v1::DeadLetterOperationState::Stopped,
        OperationState::Cancelled => v1::DeadLetterOperationState::Cancelled,
    }
}

pub(crate) fn duration_to_proto(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: duration.subsec_nanos().cast_signed(),
    }
}

/// Converts an operation. `target` is the redrive that a cancellation stopped.
pub(crate) fn operation_to_proto(
    operation: &Operation,
    target: Option<&Operation>,
    now: Timestamp,
) -> v1::DeadLetterOperation {
    let kind = match operation.what.kind {
        OperationKind::Redrive => v1::DeadLetterOperationKind::Redrive,
        OperationKind::Discard => v1::DeadLetterOperationKind::Discard,
        OperationKind::Cancel => v1::DeadLetterOperationKind::Cancel,
    };
    v1::DeadLetterOperation {
        operation_id: operation.id.0,
        kind: kind.into(),
        actor: operation.what.actor.clone(),
        create_time: Some(timestamp_to_proto(operation.what.at)),
        // The service encoded the selection itself. A cancellation has none.
        selection: v1::DeadLetterSelection::decode(operation.what.selection.clone())
            .ok()
            .filter(|_| operation.what.kind != OperationKind::Cancel),
        selected_count: operation.selected,
        discarded_count: if operation.what.kind == OperationKind::Discard {
            operation.applied()
        } else {
            0
        },
        redrive: match operation.what.kind {
            OperationKind::Redrive => Some(redrive_to_proto(operation, now)),
            OperationKind::Cancel => target.map(|target| redrive_to_proto(target, now)),
            OperationKind::Discard => None,
        },
        state: operation_state_to_proto(operation.state).into(),
        reason: operation.reason.clone(),
    }
}

/// The content of a DLQ entry.
pub(crate) enum DlqRecord {
    /// A new dead letter.
    New(Box<DeadLetter>),
    /// The failed redrive of a dead letter, and a new dead letter in case the first one has expired.
    RedriveFailed(Reopening, Box<DeadLetter>),
}

/// Parses a DLQ entry, stored as `sequence` at `stored_at`.
///
/// # Errors
/// The reason why the entry is malformed.
pub(crate) fn parse_dlq_entry(
    entry: mesh_v1::DlqEntry,
    sequence: u64,
    stored_at: Timestamp,
) -> Result<DlqRecord, &'static str> {
    let cause = cause_from_proto(entry.cause()).ok_or("malformed DLQ entry: no cause")?;
    let payload = match entry.payload_state() {
        v1::DeadLetterPayload::Kept => Payload::Kept,
        v1::DeadLetterPayload::TooLarge => Payload::TooLarge,
        v1::DeadLetterPayload::Gone => Payload::Gone,
        v1::DeadLetterPayload::Unspecified => return Err("malformed DLQ entry: no payload state"),
    };
    if entry.stream.is_empty() || entry.consumer.is_empty() || entry.sequence == 0 {
        return Err("malformed DLQ entry: no stream, consumer or sequence");
    }
    let failed_at = Timestamp(entry.failed_at_us);
    let group_reason = fingerprint::normalize(&entry.reason);
    let group = fingerprint::group(&entry.kind, cause, &group_reason);
    let channel = channel_from_proto(entry.channel());
    let new = DeadLetter {
        id: DeadLetterId(sequence),
        origin: MessageRef {
            stream: entry.stream.clone(),
            consumer: entry.consumer.clone(),
            sequence: entry.sequence,
        },
        original_sequence: entry.original_sequence,
        cause,
        group,
        group_reason: group_reason.clone(),
        attempts: entry.attempt_count,
        published_at: Timestamp(entry.published_at_us),
        first_failed_at: failed_at,
        last_failed_at: failed_at,
        stored_at,
        post: (entry.post_id != 0).then_some(PostId(entry.post_id)),
        author: (entry.author_key != 0).then_some(UserKey(entry.author_key)),
        channel,
        // 0 means no chunk. A chunk id is a hash and practically never 0.
        chunk: (entry.chunk_id != 0).then_some(ChunkId(entry.chunk_id)),
        lane: match entry.lane() {
            v1::Lane::Unspecified => None,
            v1::Lane::High => Some(Lane::High),
            v1::Lane::Normal => Some(Lane::Normal),
            v1::Lane::Low => Some(Lane::Low),
        },
        recipients: entry.recipient_count,
        trace_id: parse_trace_id(&entry.trace_parent),
        payload,
        payload_bytes: entry.payload.len() as u64,
        state: DeadLetterState::Open,
        round: 0,
        redrive: None,
        operations: Vec::new(),
        redrive_sequence: 0,
        updated_at: failed_at,
        // 0 for a message without pushes.
        pushes_expire_at: (entry.pushes_expire_at_us != 0).then_some(Timestamp(entry.pushes_expire_at_us)),
        reason: entry.reason.clone(),
        kind: entry.kind,
        subject: entry.subject,
        message_type: entry.message_type,
    };
    Ok(if entry.redrive_dead_letter == 0 {
        DlqRecord::New(Box::new(new))
    } else {
        let reopening = Reopening {
            dead_letter: DeadLetterId(entry.redrive_dead_letter),
            round: entry.redrive_round,
            cause,
            reason: entry.reason,
            group,
            group_reason,
            failed_at,
        };
        DlqRecord::RedriveFailed(reopening, Box::new(new))
    })
}

/// The trace id of a W3C `traceparent` header; empty if it is missing or malformed.
fn parse_trace_id(parent: &str) -> String {
    let id = parent.split('-').nth(1).unwrap_or_default();
    let valid = id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit());
    if valid { id.into() } else { String::new() }
}

/// Converts an operation id; `None` for 0.
pub(crate) fn parse_operation_id(id: u64) -> Option<OperationId> {
    (id != 0).then_some(OperationId(id))
}

#[cfg(test)]
mod tests {
    use herald_store::NewOperation;

    use super::*;

    #[test]
    fn a_group_id_has_sixteen_hexadecimal_digits() {
        assert_eq!(parse_group_id(&format_group_id(7)), Some(7));
        for bad in ["", "7", "000000000000000g", "00000000000000007"] {
            assert_eq!(parse_group_id(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_redrive_with_dead_letters_in_flight_has_not_ended() {
        let mut operation = Operation {
            id: OperationId(1),
            what: NewOperation {
                kind: OperationKind::Redrive,
                actor: String::new(),
                at: Timestamp(0),
                selection: bytes::Bytes::new(),
                excluded: 0,
                rate_max: 500,
                failures_max: 0,
                push_ttl: None,
                target: None,
            },
            state: OperationState::Done,
            reason: String::new(),
            ended_at: Some(Timestamp(2_000)),
            selected: 2,
            reached: 2,
            skipped: 0,
            resolved: 1,
            failed: 0,
            expired: 0,
            redrive_after: 0,
        };
        let now = Timestamp(5_000_000);
        let in_flight = redrive_to_proto(&operation, now);
        assert_eq!(
            (in_flight.end_time, in_flight.elapsed.unwrap().seconds),
            (None, 5)
        );
        operation.failed = 1;
        operation.ended_at = Some(Timestamp(3_000_000));
        let ended = redrive_to_proto(&operation, now);
        assert_eq!(
            (ended.end_time.unwrap().seconds, ended.elapsed.unwrap().seconds),
            (3, 3)
        );
    }

    #[test]
    fn the_trace_id_is_parsed_from_traceparent() {
        assert_eq!(
            parse_trace_id("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
            "4bf92f3577b34da6a3ce929d0e0e4736"
        );
        assert_eq!(parse_trace_id("garbage-here"), "");
    }

    #[test]
    fn an_incomplete_entry_is_refused() {
        let good = mesh_v1::DlqEntry {
            stream: "PUSH".into(),
            consumer: "push-low".into(),
            sequence: 9,
            cause: v1::DeadLetterCause::Terminated.into(),
            payload_state: v1::DeadLetterPayload::Gone.into(),
            ..Default::default()
        };
        assert!(
            matches!(parse_dlq_entry(good.clone(), 3, Timestamp(5)), Ok(DlqRecord::New(dead_letter)) if dead_letter.id == DeadLetterId(3))
        );
        let again = mesh_v1::DlqEntry {
            redrive_dead_letter: 2,
            redrive_round: 1,
            ..good.clone()
        };
        assert!(
            matches!(parse_dlq_entry(again, 3, Timestamp(5)), Ok(DlqRecord::RedriveFailed(reopening, _)) if reopening.dead_letter == DeadLetterId(2))
        );
        for bad in [
            mesh_v1::DlqEntry {
                cause: 0,
                ..good.clone()
            },
            mesh_v1::DlqEntry {
                payload_state: 0,
                ..good.clone()
            },
            mesh_v1::DlqEntry {
                sequence: 0,
                ..good.clone()
            },
            mesh_v1::DlqEntry {
                stream: String::new(),
                ..good
            },
        ] {
            assert!(parse_dlq_entry(bad, 3, Timestamp(5)).is_err());
        }
    }
}
