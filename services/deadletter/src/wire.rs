//! Between the words of the store and those on the wire.

use herald_model::{Channel, ChunkId, Lane, PostId, UserKey, time::Micros};
use herald_proto::{mesh_v1, timestamp, v1};
use herald_store::{
    Act, ActId, ActKind, ActState, Cause, Letter, LetterGroup, LetterId, LetterState, Origin, Payload,
    Reopening,
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

fn state(state: LetterState) -> v1::DeadLetterState {
    match state {
        LetterState::Open => v1::DeadLetterState::Open,
        LetterState::Redriving => v1::DeadLetterState::Redriving,
        LetterState::Resolved => v1::DeadLetterState::Resolved,
        LetterState::Discarded => v1::DeadLetterState::Discarded,
    }
}

/// `None` for one that is not said.
pub(crate) fn state_from(state: v1::DeadLetterState) -> Option<LetterState> {
    Some(match state {
        v1::DeadLetterState::Unspecified => return None,
        v1::DeadLetterState::Open => LetterState::Open,
        v1::DeadLetterState::Redriving => LetterState::Redriving,
        v1::DeadLetterState::Resolved => LetterState::Resolved,
        v1::DeadLetterState::Discarded => LetterState::Discarded,
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

/// A letter as callers see it, with what must be asked of others.
pub(crate) fn letter(letter: Letter, author_id: String, owed: u32) -> v1::DeadLetter {
    v1::DeadLetter {
        letter_id: letter.id.0,
        state: state(letter.state).into(),
        stream: letter.origin.stream,
        consumer: letter.origin.consumer,
        kind: letter.kind,
        sequence: letter.origin.sequence,
        subject: letter.subject,
        message_type: letter.message_type,
        cause: cause(letter.cause).into(),
        reason: letter.reason,
        group_id: group_id(letter.group),
        attempt_count: letter.attempts,
        // Not known of a message that was gone.
        publish_time: (letter.published_at.0 > 0).then(|| timestamp(letter.published_at)),
        first_failure_time: Some(timestamp(letter.first_failed_at)),
        last_failure_time: Some(timestamp(letter.last_failed_at)),
        redrive_count: letter.round,
        redrive_id: letter.redrive.map_or(0, |act| act.0),
        post_id: letter.post.map_or(0, |post| post.0),
        author_id,
        channel: letter.channel.map_or(0, |one| v1::Channel::from(one).into()),
        lane: letter.lane.map_or(0, |lane| {
            i32::from(match lane {
                Lane::High => v1::Lane::High,
                Lane::Normal => v1::Lane::Normal,
                Lane::Low => v1::Lane::Low,
            })
        }),
        recipient_count: letter.recipients,
        owed_count: owed,
        trace_id: letter.trace_id,
        payload: payload(letter.payload).into(),
        payload_byte_count: letter.payload_bytes,
        update_time: Some(timestamp(letter.updated_at)),
    }
}

/// A group as callers see it.
pub(crate) fn group(group: LetterGroup) -> v1::DeadLetterGroup {
    v1::DeadLetterGroup {
        group_id: group_id(group.group),
        kind: group.kind,
        cause: cause(group.cause).into(),
        reason: group.reason,
        letter_count: group.letters,
        first_failure_time: Some(timestamp(group.first_failed_at)),
        last_failure_time: Some(timestamp(group.last_failed_at)),
        example_letter_id: group.example.0,
    }
}

/// A redrive as callers see it.
pub(crate) fn redrive(act: &Act, now: Micros) -> v1::Redrive {
    let state = match act.state {
        ActState::Running => v1::RedriveState::Running,
        ActState::Done => v1::RedriveState::Done,
        ActState::Stopped => v1::RedriveState::Stopped,
        ActState::Cancelled => v1::RedriveState::Cancelled,
    };
    let elapsed = act.ended_at.unwrap_or(now).since(act.what.at);
    v1::Redrive {
        redrive_id: act.id.0,
        state: state.into(),
        frozen_count: act.frozen,
        sent_count: act.acted(),
        resolved_count: act.resolved,
        failed_count: act.failed,
        in_flight_count: act.in_flight(),
        skipped_count: act.skipped,
        excluded_count: act.what.excluded,
        rate_max: act.what.rate_max,
        failures_max: act.what.failures_max,
        reason: act.reason.clone(),
        actor: act.what.actor.clone(),
        create_time: Some(timestamp(act.what.at)),
        end_time: act.ended_at.map(timestamp),
        elapsed: Some(Duration {
            seconds: i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX),
            nanos: elapsed.subsec_nanos().cast_signed(),
        }),
    }
}

/// An act as callers see it; `target` is the redrive that it stopped.
pub(crate) fn act(act: &Act, target: Option<&Act>, now: Micros) -> v1::DeadLetterAct {
    let kind = match act.what.kind {
        ActKind::Redrive => v1::DeadLetterActKind::Redrive,
        ActKind::Discard => v1::DeadLetterActKind::Discard,
        ActKind::Cancel => v1::DeadLetterActKind::Cancel,
    };
    v1::DeadLetterAct {
        act_id: act.id.0,
        kind: kind.into(),
        actor: act.what.actor.clone(),
        create_time: Some(timestamp(act.what.at)),
        // It was coded here.
        selection: v1::DeadLetterSelection::decode(act.what.selection.clone())
            .ok()
            .filter(|_| act.what.kind != ActKind::Cancel),
        frozen_count: act.frozen,
        discarded_count: if act.what.kind == ActKind::Discard {
            act.acted()
        } else {
            0
        },
        redrive: match act.what.kind {
            ActKind::Redrive => Some(redrive(act, now)),
            ActKind::Cancel => target.map(|target| redrive(target, now)),
            ActKind::Discard => None,
        },
    }
}

/// What a message of DLQ tells.
pub(crate) enum News {
    /// A message was given up.
    Letter(Box<Letter>),
    /// A redrive of a letter failed; and the letter, should it be forgotten.
    Failed(Reopening, Box<Letter>),
}

/// Reads a message of DLQ, stored as `sequence` at `stored_at`; the error says what is wrong with it.
pub(crate) fn news(
    letter: mesh_v1::DeadLetter,
    sequence: u64,
    stored_at: Micros,
) -> Result<News, &'static str> {
    let cause = cause_from(letter.cause()).ok_or("a dead letter without a cause")?;
    let payload = match letter.payload_state() {
        v1::DeadLetterPayload::Kept => Payload::Kept,
        v1::DeadLetterPayload::TooLarge => Payload::TooLarge,
        v1::DeadLetterPayload::Gone => Payload::Gone,
        v1::DeadLetterPayload::Unspecified => return Err("a dead letter that does not say what it carries"),
    };
    if letter.stream.is_empty() || letter.consumer.is_empty() || letter.sequence == 0 {
        return Err("a dead letter without an origin");
    }
    let failed_at = Micros(letter.failed_at_us);
    let group_reason = fingerprint::normal(&letter.reason);
    let group = fingerprint::group(&letter.kind, cause, &group_reason);
    let channel = channel_from(letter.channel());
    let made = Letter {
        id: LetterId(sequence),
        origin: Origin {
            stream: letter.stream.clone(),
            consumer: letter.consumer.clone(),
            sequence: letter.sequence,
        },
        original_sequence: letter.original_sequence,
        cause,
        group,
        group_reason: group_reason.clone(),
        attempts: letter.attempt_count,
        published_at: Micros(letter.published_at_us),
        first_failed_at: failed_at,
        last_failed_at: failed_at,
        stored_at,
        post: (letter.post_id != 0).then_some(PostId(letter.post_id)),
        author: (letter.author_key != 0).then_some(UserKey(letter.author_key)),
        channel,
        // Whose id is a hash, which is 0 for nobody.
        chunk: (letter.chunk_id != 0).then_some(ChunkId(letter.chunk_id)),
        lane: match letter.lane() {
            v1::Lane::Unspecified => None,
            v1::Lane::High => Some(Lane::High),
            v1::Lane::Normal => Some(Lane::Normal),
            v1::Lane::Low => Some(Lane::Low),
        },
        recipients: letter.recipient_count,
        trace_id: trace_id(&letter.trace_parent),
        payload,
        payload_bytes: letter.payload.len() as u64,
        state: LetterState::Open,
        round: 0,
        redrive: None,
        acts: Vec::new(),
        redrive_sequence: 0,
        updated_at: failed_at,
        reason: letter.reason.clone(),
        kind: letter.kind,
        subject: letter.subject,
        message_type: letter.message_type,
    };
    Ok(if letter.redrive_letter == 0 {
        News::Letter(Box::new(made))
    } else {
        let reopening = Reopening {
            letter: LetterId(letter.redrive_letter),
            round: letter.redrive_round,
            cause,
            reason: letter.reason,
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

/// An act's id as callers say it.
pub(crate) fn act_id(id: u64) -> Option<ActId> {
    (id != 0).then_some(ActId(id))
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
        let good = mesh_v1::DeadLetter {
            stream: "PUSH".into(),
            consumer: "push-low".into(),
            sequence: 9,
            cause: v1::DeadLetterCause::Terminated.into(),
            payload_state: v1::DeadLetterPayload::Gone.into(),
            ..Default::default()
        };
        assert!(
            matches!(news(good.clone(), 3, Micros(5)), Ok(News::Letter(letter)) if letter.id == LetterId(3))
        );
        let again = mesh_v1::DeadLetter {
            redrive_letter: 2,
            redrive_round: 1,
            ..good.clone()
        };
        assert!(
            matches!(news(again, 3, Micros(5)), Ok(News::Failed(reopening, _)) if reopening.letter == LetterId(2))
        );
        for bad in [
            mesh_v1::DeadLetter {
                cause: 0,
                ..good.clone()
            },
            mesh_v1::DeadLetter {
                payload_state: 0,
                ..good.clone()
            },
            mesh_v1::DeadLetter {
                sequence: 0,
                ..good.clone()
            },
            mesh_v1::DeadLetter {
                stream: String::new(),
                ..good
            },
        ] {
            assert!(news(bad, 3, Micros(5)).is_err());
        }
    }
}
