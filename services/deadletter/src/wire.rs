//! Between the words of the store and those on the wire.

use herald_model::{Channel, ChunkId, Lane, PostId, UserKey, time::Timestamp};
use herald_proto::{mesh_v1, timestamp_to_proto, v1};
use herald_store::{
    Cause, DeadLetter, DeadLetterGroup, DeadLetterId, DeadLetterState, MessageRef, Operation, OperationId,
    OperationKind, OperationState, Payload, Reopening,
};
use prost::Message;
use prost_types::Duration;

use crate::domain::fingerprint;

pub(crate) fn cause(cause: Cause) -> v1::DeadLetterCause {
    match cause {
        Cause::MaxDeliveries => v1::DeadLetterCause::MaxDeliveries,
        Cause::Terminated => v1::DeadLetterCause::Terminated,
        Cause::Removed => v1::DeadLetterCause::Removed,
        Cause::Unreadable => v1::DeadLetterCause::Unreadable,
        Cause::Audit => v1::DeadLetterCause::Audit,
    }
}

/// `None` for one that is not said.
pub(crate) fn cause_from(cause: v1::DeadLetterCause) -> Option<Cause> {
    Some(match cause {
        v1::DeadLetterCause::Unspecified => return None,
        v1::DeadLetterCause::MaxDeliveries => Cause::MaxDeliveries,
        v1::DeadLetterCause::Terminated => Cause::Terminated,
        v1::DeadLetterCause::Removed => Cause::Removed,
        v1::DeadLetterCause::Unreadable => Cause::Unreadable,
        v1::DeadLetterCause::Audit => Cause::Audit,
    })
}

fn state(state: DeadLetterState) -> v1::DeadLetterState {
    match state {
        DeadLetterState::Open => v1::DeadLetterState::Open,
        DeadLetterState::Redriving => v1::DeadLetterState::Redriving,
        DeadLetterState::Resolved => v1::DeadLetterState::Resolved,
        DeadLetterState::Discarded => v1::DeadLetterState::Discarded,
    }
}

/// `None` for one that is not said.
pub(crate) fn state_from(state: v1::DeadLetterState) -> Option<DeadLetterState> {
    Some(match state {
        v1::DeadLetterState::Unspecified => return None,
        v1::DeadLetterState::Open => DeadLetterState::Open,
        v1::DeadLetterState::Redriving => DeadLetterState::Redriving,
        v1::DeadLetterState::Resolved => DeadLetterState::Resolved,
        v1::DeadLetterState::Discarded => DeadLetterState::Discarded,
    })
}

fn payload(payload: Payload) -> v1::DeadLetterPayload {
    match payload {
        Payload::Kept => v1::DeadLetterPayload::Kept,
        Payload::Gone => v1::DeadLetterPayload::Gone,
        Payload::TooLarge => v1::DeadLetterPayload::TooLarge,
    }
}

/// `None` for one that is not said.
pub(crate) fn channel_from(channel: v1::Channel) -> Option<Channel> {
    match channel {
        v1::Channel::Unspecified => None,
        v1::Channel::Timeline => Some(Channel::Timeline),
        v1::Channel::Push => Some(Channel::Push),
    }
}

/// A group's name as callers see it.
pub(crate) fn group_id(group: u64) -> String {
    format!("{group:016x}")
}

/// A group's name as callers say it.
pub(crate) fn group_from(id: &str) -> Option<u64> {
    (id.len() == 16)
        .then(|| u64::from_str_radix(id, 16).ok())
        .flatten()
}

/// A dead letter as callers see it, with what must be asked of others.
pub(crate) fn dead_letter(dead_letter: DeadLetter, author_id: String, owed: u32) -> v1::DeadLetter {
    v1::DeadLetter {
        dead_letter_id: dead_letter.id.0,
        state: state(dead_letter.state).into(),
        stream: dead_letter.origin.stream,
        consumer: dead_letter.origin.consumer,
        kind: dead_letter.kind,
        sequence: dead_letter.origin.sequence,
        subject: dead_letter.subject,
        message_type: dead_letter.message_type,
        cause: cause(dead_letter.cause).into(),
        reason: dead_letter.reason,
        group_id: group_id(dead_letter.group),
        attempt_count: dead_letter.attempts,
        // Not known of a message that was gone.
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
        owed_count: owed,
        trace_id: dead_letter.trace_id,
        payload: payload(dead_letter.payload).into(),
        payload_byte_count: dead_letter.payload_bytes,
        update_time: Some(timestamp_to_proto(dead_letter.updated_at)),
    }
}

/// A group as callers see it.
pub(crate) fn group(group: DeadLetterGroup) -> v1::DeadLetterGroup {
    v1::DeadLetterGroup {
        group_id: group_id(group.group),
        kind: group.kind,
        cause: cause(group.cause).into(),
        reason: group.reason,
        dead_letter_count: group.dead_letters,
        first_failure_time: Some(timestamp_to_proto(group.first_failed_at)),
        last_failure_time: Some(timestamp_to_proto(group.last_failed_at)),
        example_dead_letter_id: group.example.0,
    }
}

/// A redrive as callers see it.
pub(crate) fn redrive(operation: &Operation, now: Timestamp) -> v1::Redrive {
    let state = match operation.state {
        OperationState::Running => v1::RedriveState::Running,
        OperationState::Done => v1::RedriveState::Done,
        OperationState::Stopped => v1::RedriveState::Stopped,
        OperationState::Cancelled => v1::RedriveState::Cancelled,
    };
    let elapsed = operation.ended_at.unwrap_or(now).since(operation.what.at);
    v1::Redrive {
        redrive_id: operation.id.0,
        state: state.into(),
        frozen_count: operation.frozen,
        sent_count: operation.acted(),
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
        end_time: operation.ended_at.map(timestamp_to_proto),
        elapsed: Some(Duration {
            seconds: i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX),
            nanos: elapsed.subsec_nanos().cast_signed(),
        }),
    }
}

/// An operation as callers see it; `target` is the redrive that it stopped.
pub(crate) fn operation(
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
        // It was coded here.
        selection: v1::DeadLetterSelection::decode(operation.what.selection.clone())
            .ok()
            .filter(|_| operation.what.kind != OperationKind::Cancel),
        frozen_count: operation.frozen,
        discarded_count: if operation.what.kind == OperationKind::Discard {
            operation.acted()
        } else {
            0
        },
        redrive: match operation.what.kind {
            OperationKind::Redrive => Some(redrive(operation, now)),
            OperationKind::Cancel => target.map(|target| redrive(target, now)),
            OperationKind::Discard => None,
        },
    }
}

/// What a message of DLQ tells.
pub(crate) enum News {
    /// A message was given up.
    DeadLetter(Box<DeadLetter>),
    /// A redrive of a dead letter failed; and the dead letter, should it be forgotten.
    Failed(Reopening, Box<DeadLetter>),
}

/// Reads a message of DLQ, stored as `sequence` at `stored_at`; the error says what is wrong with it.
pub(crate) fn news(
    dead_letter: mesh_v1::DlqEntry,
    sequence: u64,
    stored_at: Timestamp,
) -> Result<News, &'static str> {
    let cause = cause_from(dead_letter.cause()).ok_or("a dead letter without a cause")?;
    let payload = match dead_letter.payload_state() {
        v1::DeadLetterPayload::Kept => Payload::Kept,
        v1::DeadLetterPayload::TooLarge => Payload::TooLarge,
        v1::DeadLetterPayload::Gone => Payload::Gone,
        v1::DeadLetterPayload::Unspecified => return Err("a dead letter that does not say what it carries"),
    };
    if dead_letter.stream.is_empty() || dead_letter.consumer.is_empty() || dead_letter.sequence == 0 {
        return Err("a dead letter without an origin");
    }
    let failed_at = Timestamp(dead_letter.failed_at_us);
    let group_reason = fingerprint::normal(&dead_letter.reason);
    let group = fingerprint::group(&dead_letter.kind, cause, &group_reason);
    let channel = channel_from(dead_letter.channel());
    let made = DeadLetter {
        id: DeadLetterId(sequence),
        origin: MessageRef {
            stream: dead_letter.stream.clone(),
            consumer: dead_letter.consumer.clone(),
            sequence: dead_letter.sequence,
        },
        original_sequence: dead_letter.original_sequence,
        cause,
        group,
        group_reason: group_reason.clone(),
        attempts: dead_letter.attempt_count,
        published_at: Timestamp(dead_letter.published_at_us),
        first_failed_at: failed_at,
        last_failed_at: failed_at,
        stored_at,
        post: (dead_letter.post_id != 0).then_some(PostId(dead_letter.post_id)),
        author: (dead_letter.author_key != 0).then_some(UserKey(dead_letter.author_key)),
        channel,
        // Whose id is a hash, which is 0 for nobody.
        chunk: (dead_letter.chunk_id != 0).then_some(ChunkId(dead_letter.chunk_id)),
        lane: match dead_letter.lane() {
            v1::Lane::Unspecified => None,
            v1::Lane::High => Some(Lane::High),
            v1::Lane::Normal => Some(Lane::Normal),
            v1::Lane::Low => Some(Lane::Low),
        },
        recipients: dead_letter.recipient_count,
        trace_id: trace_id(&dead_letter.trace_parent),
        payload,
        payload_bytes: dead_letter.payload.len() as u64,
        state: DeadLetterState::Open,
        round: 0,
        redrive: None,
        operations: Vec::new(),
        redrive_sequence: 0,
        updated_at: failed_at,
        reason: dead_letter.reason.clone(),
        kind: dead_letter.kind,
        subject: dead_letter.subject,
        message_type: dead_letter.message_type,
    };
    Ok(if dead_letter.redrive_dead_letter == 0 {
        News::DeadLetter(Box::new(made))
    } else {
        let reopening = Reopening {
            dead_letter: DeadLetterId(dead_letter.redrive_dead_letter),
            round: dead_letter.redrive_round,
            cause,
            reason: dead_letter.reason,
            group,
            group_reason,
            failed_at,
        };
        News::Failed(reopening, Box::new(made))
    })
}

/// The trace id in a W3C `traceparent`; empty when there is none.
fn trace_id(parent: &str) -> String {
    let id = parent.split('-').nth(1).unwrap_or_default();
    let valid = id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit());
    if valid { id.into() } else { String::new() }
}

/// An operation's id as callers say it.
pub(crate) fn operation_id(id: u64) -> Option<OperationId> {
    (id != 0).then_some(OperationId(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_sixteen_hexadecimal_digits() {
        assert_eq!(group_from(&group_id(7)), Some(7));
        for bad in ["", "7", "000000000000000g", "00000000000000007"] {
            assert_eq!(group_from(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_trace_id_is_read_from_its_parent() {
        assert_eq!(
            trace_id("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
            "4bf92f3577b34da6a3ce929d0e0e4736"
        );
        assert_eq!(trace_id("garbage-here"), "");
    }

    #[test]
    fn a_message_of_nobody_is_no_news() {
        let good = mesh_v1::DlqEntry {
            stream: "PUSH".into(),
            consumer: "push-low".into(),
            sequence: 9,
            cause: v1::DeadLetterCause::Terminated.into(),
            payload_state: v1::DeadLetterPayload::Gone.into(),
            ..Default::default()
        };
        assert!(
            matches!(news(good.clone(), 3, Timestamp(5)), Ok(News::DeadLetter(dead_letter)) if dead_letter.id == DeadLetterId(3))
        );
        let again = mesh_v1::DlqEntry {
            redrive_dead_letter: 2,
            redrive_round: 1,
            ..good.clone()
        };
        assert!(
            matches!(news(again, 3, Timestamp(5)), Ok(News::Failed(reopening, _)) if reopening.dead_letter == DeadLetterId(2))
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
            assert!(news(bad, 3, Timestamp(5)).is_err());
        }
    }
}
