//! Compares JetStream advisories with the dead letters.

use std::{collections::HashSet, time::Duration};

use futures::{StreamExt as _, pin_mut};
use herald_mesh::{RawMessage, consumers, streams};
use herald_model::time::Timestamp;
use herald_proto::mesh_v1::DlqEntry;
use herald_store::MessageRef;
use serde::Deserialize;

use crate::{
    Auditor, Finding, FindingKind, Result, Scope, confirm::Run, dead_letter_index::DeadLetterIndex,
    throttle::Throttle,
};

/// The message that an advisory is about; these fields are common to all kinds of advisories.
#[derive(Debug, Deserialize)]
struct Advisory {
    stream: String,
    consumer: String,
    #[serde(rename = "stream_seq")]
    sequence: u64,
    #[serde(default)]
    reason: String,
}

/// The reason of an advisory about a deleted message. For LATER it is expected: the message was handled, and the
/// consumer's state was older than the stream when the server was killed. The deadletter service ignores it as well.
const MESSAGE_DELETED: &str = "Unacknowledged message was deleted";

/// Messages of DLQ read between two pauses.
const PAGE: usize = 1_024;

/// Failures that are looked up with one scan of DLQ.
const FAILURES_MAX: usize = 1_024;

/// Tolerated difference of the clocks of two servers: the leaders of ADVISORIES and of DLQ can be different ones, and
/// each sets the publish times of its stream.
const CLOCK_DIFFERENCE_MAX: Duration = Duration::from_mins(1);

/// The failure of a message, from its advisory.
struct Failure {
    message: MessageRef,
    advisory: RawMessage,
}

/// What DLQ tells of failures of redriven messages. REDRIVE loses a message before ADVISORIES loses the advisory of its
/// failure, because both keep messages for as long; and an erasure deletes a message from both REDRIVE and DLQ.
struct RecordedFailures {
    /// The messages whose failures have an entry.
    failed: HashSet<MessageRef>,
    /// DLQ has each entry that was published after this time.
    complete_after: Timestamp,
}

impl RecordedFailures {
    /// Looks for the entries of these failures in DLQ, up to the sequence `last`.
    async fn read(
        auditor: &Auditor,
        failures: &[Failure],
        last: u64,
        throttle: &mut Throttle,
    ) -> Result<Self> {
        let mut recorded = Self {
            failed: HashSet::new(),
            complete_after: Timestamp(i64::MIN),
        };
        let Some(oldest) = failures.iter().map(|failure| failure.advisory.published_at).min() else {
            return Ok(recorded);
        };
        let wanted: HashSet<&MessageRef> = failures.iter().map(|failure| &failure.message).collect();
        let since = oldest.minus(CLOCK_DIFFERENCE_MAX);
        let since = auditor.mesh.sequence_since(streams::DLQ, since).await?;
        // Begins one message earlier: if DLQ lacks that one, an entry of these failures can have been removed with it.
        let mut expected = since.saturating_sub(1).clamp(1, last.max(1));
        let entries = auditor.mesh.scan(streams::DLQ, None, expected, last).enumerate();
        pin_mut!(entries);
        while let Some((index, message)) = entries.next().await {
            let message = message?;
            if message.sequence != expected {
                recorded.complete_after = message.published_at;
            }
            expected = message.sequence + 1;
            if let Ok(entry) = message.decode::<DlqEntry>() {
                let failed = MessageRef {
                    stream: entry.stream,
                    consumer: entry.consumer,
                    sequence: entry.sequence,
                };
                if wanted.contains(&failed) {
                    recorded.failed.insert(failed);
                }
            }
            if (index + 1).is_multiple_of(PAGE) {
                throttle.pause().await;
            }
        }
        if expected <= last {
            recorded.complete_after = Timestamp(i64::MAX);
        }
        Ok(recorded)
    }

    /// Whether the failure certainly has no entry. Its advisory was published at `failed_at`, and the entry would be
    /// newer.
    fn is_missing(&self, failed: &MessageRef, failed_at: Timestamp) -> bool {
        failed_at > self.complete_after.plus(CLOCK_DIFFERENCE_MAX) && !self.failed.contains(failed)
    }
}

/// Failures of redriven messages that REDRIVE no longer has. Nothing tells their dead letters, but DLQ has the entries
/// of the failures; if an entry can have been removed too, its failure counts as recorded.
struct GoneRedrives {
    /// Not looked up yet; at most [`FAILURES_MAX`].
    failures: Vec<Failure>,
    /// The last sequence of DLQ that belongs to the audit.
    dlq_last: u64,
}

impl GoneRedrives {
    /// Adds a failure. Looks all up when there are enough for a scan.
    async fn add(&mut self, failure: Failure, run: &mut Run<'_>) -> Result<()> {
        self.failures.push(failure);
        if self.failures.len() >= FAILURES_MAX {
            self.look_up(run).await?;
        }
        Ok(())
    }

    /// Reports the failures without an entry.
    async fn look_up(&mut self, run: &mut Run<'_>) -> Result<()> {
        let failures = std::mem::take(&mut self.failures);
        let recorded =
            RecordedFailures::read(run.auditor, &failures, self.dlq_last, &mut run.throttle).await?;
        for failure in failures {
            if recorded.is_missing(&failure.message, failure.advisory.published_at) {
                report(&failure, run).await?;
            }
        }
        Ok(())
    }
}

/// Checks the advisories in scope. Advisories that the deadletter service has not processed yet are left to the next
/// audit.
pub(crate) async fn check(auditor: &Auditor, scope: Scope, run: &mut Run<'_>) -> Result<()> {
    let mesh = &auditor.mesh;
    let from = match scope {
        Scope::Since(at) => mesh.sequence_since(streams::ADVISORIES, at).await?,
        Scope::All | Scope::Post(_) => 1,
    };
    // Advisories up to `handled` are processed. The check runs only if DLQ is fully indexed.
    let handled = mesh.ack_floor(streams::ADVISORIES, consumers::DEADLETTER).await?;
    if handled < from {
        return Ok(());
    }
    let dlq_last = mesh.last_sequence(streams::DLQ).await?;
    if mesh.ack_floor(streams::DLQ, consumers::DEAD_LETTERS).await? < dlq_last {
        return Ok(());
    }
    let dead_letters = DeadLetterIndex::read(&*auditor.dead_letters, &mut run.throttle).await?;
    let mut gone_redrives = GoneRedrives {
        failures: Vec::new(),
        dlq_last,
    };
    let messages = mesh.scan(streams::ADVISORIES, None, from, handled);
    pin_mut!(messages);
    while let Some(message) = messages.next().await {
        let message = message?;
        let Ok(advisory) = serde_json::from_slice::<Advisory>(&message.payload) else {
            continue;
        };
        let consumer = auditor.topology.consumer(&advisory.consumer);
        let is_expected = advisory.stream == streams::LATER && advisory.reason == MESSAGE_DELETED;
        let failure = Failure {
            message: MessageRef {
                stream: advisory.stream,
                consumer: advisory.consumer,
                sequence: advisory.sequence,
            },
            advisory: message,
        };
        if is_expected
            || consumer.is_none_or(|consumer| consumer.stream != failure.message.stream)
            || dead_letters.has_origin(&failure.message)
        {
            continue;
        }
        if failure.message.stream == streams::REDRIVE {
            let Some(redriven) = mesh.message(streams::REDRIVE, failure.message.sequence).await? else {
                gone_redrives.add(failure, run).await?;
                continue;
            };
            // The failure reopened the dead letter that the message was redriven from.
            let redriven = redriven.redriven();
            if redriven.is_some_and(|redriven| dead_letters.contains(redriven.dead_letter)) {
                continue;
            }
        }
        report(&failure, run).await?;
    }
    gone_redrives.look_up(run).await
}

/// Reports a failure that has no dead letter.
async fn report(failure: &Failure, run: &mut Run<'_>) -> Result<()> {
    let MessageRef {
        stream,
        consumer,
        sequence,
    } = &failure.message;
    let mut finding = Finding {
        kind: FindingKind::Unrecorded,
        post: None,
        channel: None,
        user: None,
        chunk: None,
        deliveries: 0,
        detail: format!(
            "consumer {consumer} stopped redelivering message {sequence} of stream {stream}, and the message has no \
             dead letter"
        ),
        repaired: crate::Repaired::NotRequested,
    };
    if let Some(repair) = &mut run.repair {
        finding.repaired = repair.republish_advisory(&failure.advisory).await;
    }
    run.report(finding).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_missing_only_if_dlq_is_complete_despite_different_clocks() {
        let failure = |sequence| MessageRef {
            stream: streams::REDRIVE.into(),
            consumer: "redrive-archive".into(),
            sequence,
        };
        let removed_at = Timestamp::now();
        let recorded = RecordedFailures {
            failed: [failure(1)].into(),
            complete_after: removed_at,
        };
        let certain = removed_at
            .plus(CLOCK_DIFFERENCE_MAX)
            .plus(Duration::from_micros(1));
        assert!(recorded.is_missing(&failure(2), certain));
        assert!(!recorded.is_missing(&failure(1), certain));
        // The clock of DLQ can be behind that of ADVISORIES.
        assert!(!recorded.is_missing(&failure(2), removed_at.plus(CLOCK_DIFFERENCE_MAX)));
        let all = RecordedFailures {
            complete_after: Timestamp(i64::MIN),
            ..recorded
        };
        assert!(all.is_missing(&failure(2), removed_at));
    }
}
