//! Output of dead letters, groups and redrives. The JSON keys are the field names of the API.

use herald_cli::{
    failure::printable,
    output::{Table, channel_name, count, counted, lane_name},
    time::{ago, rfc3339},
};
use herald_proto::v1::{self, DeadLetterCause, DeadLetterOperationState, DeadLetterPayload, DeadLetterState};
use serde::Serialize;

/// Longest reason in a table, characters.
const REASON_WIDTH: usize = 72;

pub(super) const fn cause_name(cause: DeadLetterCause) -> &'static str {
    match cause {
        DeadLetterCause::Unspecified => "unknown",
        DeadLetterCause::MaxDeliveries => "max_deliveries",
        DeadLetterCause::Terminated => "terminated",
        DeadLetterCause::Removed => "removed",
        DeadLetterCause::Unreadable => "unreadable",
        DeadLetterCause::Audit => "audit",
    }
}

pub(super) const fn state_name(state: DeadLetterState) -> &'static str {
    match state {
        DeadLetterState::Unspecified => "unknown",
        DeadLetterState::Open => "open",
        DeadLetterState::Redriving => "redriving",
        DeadLetterState::Resolved => "resolved",
        DeadLetterState::Discarded => "discarded",
    }
}

const fn payload_name(payload: DeadLetterPayload) -> &'static str {
    match payload {
        DeadLetterPayload::Unspecified => "unknown",
        DeadLetterPayload::Kept => "kept",
        DeadLetterPayload::Gone => "gone",
        DeadLetterPayload::TooLarge => "too_large",
    }
}

pub(super) const fn operation_state_name(state: DeadLetterOperationState) -> &'static str {
    match state {
        DeadLetterOperationState::Unspecified => "dry_run",
        DeadLetterOperationState::Running => "running",
        DeadLetterOperationState::Done => "done",
        DeadLetterOperationState::Stopped => "stopped",
        DeadLetterOperationState::Cancelled => "cancelled",
    }
}

/// A dead letter.
#[allow(clippy::struct_field_names, reason = "the names are those of the JSON")]
#[derive(Debug, Serialize)]
pub(super) struct DeadLetter {
    pub(super) dead_letter_id: u64,
    pub(super) state: &'static str,
    pub(super) stream: String,
    pub(super) consumer: String,
    pub(super) kind: String,
    pub(super) sequence: u64,
    pub(super) subject: String,
    pub(super) message_type: String,
    pub(super) cause: &'static str,
    pub(super) reason: String,
    pub(super) group_id: String,
    pub(super) attempt_count: u64,
    pub(super) publish_time: Option<String>,
    pub(super) first_failure_time: Option<String>,
    pub(super) last_failure_time: Option<String>,
    pub(super) redrive_count: u32,
    pub(super) redrive_id: Option<u64>,
    pub(super) post_id: Option<u64>,
    pub(super) author_id: Option<String>,
    pub(super) channel: Option<&'static str>,
    pub(super) lane: Option<&'static str>,
    pub(super) recipient_count: u32,
    /// Undelivered recipients: their delivery is pending or dead.
    pub(super) undelivered_count: u32,
    pub(super) trace_id: Option<String>,
    pub(super) payload: &'static str,
    pub(super) payload_byte_count: u64,
    pub(super) update_time: Option<String>,
    pub(super) push_expire_time: Option<String>,
    #[serde(skip)]
    pub(super) last_failure: Option<prost_types::Timestamp>,
}

impl From<v1::DeadLetter> for DeadLetter {
    fn from(dead_letter: v1::DeadLetter) -> Self {
        let non_zero = |number: u64| (number != 0).then_some(number);
        let non_empty = |text: String| (!text.is_empty()).then_some(text);
        Self {
            dead_letter_id: dead_letter.dead_letter_id,
            state: state_name(dead_letter.state()),
            cause: cause_name(dead_letter.cause()),
            payload: payload_name(dead_letter.payload()),
            stream: dead_letter.stream,
            consumer: dead_letter.consumer,
            kind: dead_letter.kind,
            sequence: dead_letter.sequence,
            subject: dead_letter.subject,
            message_type: dead_letter.message_type,
            reason: dead_letter.reason,
            group_id: dead_letter.group_id,
            attempt_count: dead_letter.attempt_count,
            publish_time: rfc3339(dead_letter.publish_time.as_ref()),
            first_failure_time: rfc3339(dead_letter.first_failure_time.as_ref()),
            last_failure_time: rfc3339(dead_letter.last_failure_time.as_ref()),
            redrive_count: dead_letter.redrive_count,
            redrive_id: non_zero(dead_letter.redrive_id),
            post_id: non_zero(dead_letter.post_id),
            author_id: non_empty(dead_letter.author_id),
            channel: (dead_letter.channel != 0).then(|| channel_name(dead_letter.channel)),
            lane: (dead_letter.lane != 0).then(|| lane_name(dead_letter.lane)),
            recipient_count: dead_letter.recipient_count,
            undelivered_count: dead_letter.undelivered_count,
            trace_id: non_empty(dead_letter.trace_id),
            payload_byte_count: dead_letter.payload_byte_count,
            update_time: rfc3339(dead_letter.update_time.as_ref()),
            push_expire_time: rfc3339(dead_letter.push_expire_time.as_ref()),
            last_failure: dead_letter.last_failure_time,
        }
    }
}

/// Dead letters with the same kind of consumer, cause and reason.
#[allow(clippy::struct_field_names, reason = "the names are those of the JSON")]
#[derive(Debug, Serialize)]
pub(super) struct Group {
    pub(super) group_id: String,
    pub(super) dead_letter_count: u64,
    pub(super) kind: String,
    pub(super) cause: &'static str,
    pub(super) reason: String,
    pub(super) first_failure_time: Option<String>,
    pub(super) last_failure_time: Option<String>,
    pub(super) example_dead_letter_id: u64,
    #[serde(skip)]
    first: Option<prost_types::Timestamp>,
    #[serde(skip)]
    last: Option<prost_types::Timestamp>,
}

impl From<v1::DeadLetterGroup> for Group {
    fn from(group: v1::DeadLetterGroup) -> Self {
        Self {
            cause: cause_name(group.cause()),
            group_id: group.group_id,
            dead_letter_count: group.dead_letter_count,
            kind: group.kind,
            reason: group.reason,
            first_failure_time: rfc3339(group.first_failure_time.as_ref()),
            last_failure_time: rfc3339(group.last_failure_time.as_ref()),
            example_dead_letter_id: group.example_dead_letter_id,
            first: group.first_failure_time,
            last: group.last_failure_time,
        }
    }
}

/// Formats groups as a table.
pub(super) fn group_table(groups: &[Group]) -> String {
    let mut table = Table::new(&[
        "group",
        ">dead letters",
        "kind",
        "cause",
        "first",
        "last",
        "reason",
    ]);
    for group in groups {
        table.row([
            printable(&group.group_id),
            count(group.dead_letter_count),
            printable(&group.kind),
            group.cause.into(),
            ago(group.first.as_ref()),
            ago(group.last.as_ref()),
            truncate_reason(&group.reason),
        ]);
    }
    table.render()
}

/// Formats the groups of a dry run and its total. The server sends the largest groups only.
pub(super) fn groups_and_total(groups: &[Group], group_count: u64, total: &str) -> String {
    if groups.is_empty() {
        return total.into();
    }
    let more = match group_count.saturating_sub(groups.len() as u64) {
        0 => String::new(),
        more => format!("\nand {}", counted(more, "more group", "more groups")),
    };
    format!("{}{more}\n\n{total}", group_table(groups))
}

/// A redrive and its progress.
#[allow(clippy::struct_field_names, reason = "the names are those of the JSON")]
#[derive(Debug, Clone, Serialize)]
pub(super) struct Redrive {
    pub(super) redrive_id: u64,
    pub(super) state: &'static str,
    pub(super) selected_count: u64,
    pub(super) sent_count: u64,
    pub(super) resolved_count: u64,
    pub(super) failed_count: u64,
    pub(super) in_flight_count: u64,
    pub(super) skipped_count: u64,
    pub(super) excluded_count: u64,
    pub(super) expired_count: u64,
    pub(super) push_ttl_seconds: Option<f64>,
    pub(super) reason: String,
    pub(super) actor: String,
    pub(super) create_time: Option<String>,
    pub(super) end_time: Option<String>,
    pub(super) elapsed_seconds: f64,
}

impl From<v1::Redrive> for Redrive {
    fn from(redrive: v1::Redrive) -> Self {
        let seconds =
            |duration: prost_types::Duration| duration.seconds as f64 + f64::from(duration.nanos) / 1e9;
        Self {
            redrive_id: redrive.redrive_id,
            state: operation_state_name(redrive.state()),
            selected_count: redrive.selected_count,
            sent_count: redrive.sent_count,
            resolved_count: redrive.resolved_count,
            failed_count: redrive.failed_count,
            in_flight_count: redrive.in_flight_count,
            skipped_count: redrive.skipped_count,
            excluded_count: redrive.excluded_count,
            expired_count: redrive.expired_count,
            push_ttl_seconds: redrive.push_ttl.map(seconds),
            reason: redrive.reason,
            actor: redrive.actor,
            create_time: rfc3339(redrive.create_time.as_ref()),
            end_time: rfc3339(redrive.end_time.as_ref()),
            elapsed_seconds: redrive.elapsed.map(seconds).unwrap_or_default(),
        }
    }
}

impl Redrive {
    /// Formats the progress: the counts that are not zero.
    pub(super) fn progress(&self) -> String {
        let mut parts = vec![format!("{} resolved", count(self.resolved_count))];
        for (number, label) in [
            (self.failed_count, "failed again"),
            (self.in_flight_count, "in flight"),
            (self.skipped_count, "skipped"),
        ] {
            if number > 0 {
                parts.push(format!("{} {label}", count(number)));
            }
        }
        let unsent = self
            .selected_count
            .saturating_sub(self.sent_count)
            .saturating_sub(self.skipped_count);
        if unsent > 0 {
            parts.push(format!("{} not sent", count(unsent)));
        }
        parts.join(", ")
    }
}

/// Truncates a reason for a table.
pub(super) fn truncate_reason(reason: &str) -> String {
    let reason = printable(reason);
    if reason.chars().count() <= REASON_WIDTH {
        return reason;
    }
    reason.chars().take(REASON_WIDTH - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_reason_is_truncated() {
        assert_eq!(truncate_reason("short"), "short");
        let cut = truncate_reason(&"ä".repeat(100));
        assert_eq!(cut.chars().count(), REASON_WIDTH);
        assert!(cut.ends_with('…'));
    }

    #[test]
    fn progress_has_the_counts_that_are_not_zero() {
        let redrive = Redrive::from(v1::Redrive {
            selected_count: 2_000,
            sent_count: 10,
            resolved_count: 7,
            failed_count: 2,
            in_flight_count: 1,
            ..Default::default()
        });
        assert_eq!(
            redrive.progress(),
            "7 resolved, 2 failed again, 1 in flight, 1,990 not sent"
        );
    }
}
