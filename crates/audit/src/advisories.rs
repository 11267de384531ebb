//! Compares JetStream advisories with the dead letters.

use std::collections::HashSet;

use futures::{StreamExt as _, pin_mut};
use herald_mesh::{consumers, streams};
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

/// What DLQ tells of the failures of redriven messages. REDRIVE loses a message before ADVISORIES loses the advisory of its
/// failure, because both keep messages for as long; and an erasure deletes a message from both REDRIVE and DLQ.
struct RecordedFailures {
    /// The messages of REDRIVE whose failures have an entry.
    failed: HashSet<MessageRef>,
    /// DLQ has each entry that was published after this time.
    complete_after: Timestamp,
}

impl RecordedFailures {
    async fn read(auditor: &Auditor, last: u64, throttle: &mut Throttle) -> Result<Self> {
        let mut recorded = Self {
            failed: HashSet::new(),
            complete_after: Timestamp(i64::MIN),
        };
        let mut expected = 1;
        let entries = auditor.mesh.scan(streams::DLQ, None, 1, last).enumerate();
        pin_mut!(entries);
        while let Some((index, message)) = entries.next().await {
            let message = message?;
            if message.sequence != expected {
                recorded.complete_after = message.published_at;
            }
            expected = message.sequence + 1;
            if let Ok(entry) = message.decode::<DlqEntry>()
                && entry.stream == streams::REDRIVE
            {
                recorded.failed.insert(MessageRef {
                    stream: entry.stream,
                    consumer: entry.consumer,
                    sequence: entry.sequence,
                });
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

    /// Whether the failure certainly has no entry. Its advisory was published at `failed_at`, and the entry would be newer.
    fn lack(&self, failed: &MessageRef, failed_at: Timestamp) -> bool {
        failed_at > self.complete_after && !self.failed.contains(failed)
    }
}

/// Whether an advisory about a message of REDRIVE is recorded: its failure reopened the dead letter that it was redriven
/// from. If REDRIVE no longer has the message, nothing tells its dead letter, but DLQ has the entry of the failure; if
/// that can have been removed too, the advisory counts as recorded.
async fn is_recorded_redrive(
    auditor: &Auditor,
    dead_letters: &DeadLetterIndex,
    (advisory, failed_at): (&MessageRef, Timestamp),
    (recorded, dlq_last): (&mut Option<RecordedFailures>, u64),
    throttle: &mut Throttle,
) -> Result<bool> {
    if advisory.stream != streams::REDRIVE {
        return Ok(false);
    }
    if let Some(message) = auditor.mesh.message(&advisory.stream, advisory.sequence).await? {
        let redriven = message.redriven();
        return Ok(redriven.is_some_and(|redriven| dead_letters.contains(redriven.dead_letter)));
    }
    let recorded = match recorded {
        Some(recorded) => recorded,
        none => none.insert(RecordedFailures::read(auditor, dlq_last, throttle).await?),
    };
    Ok(!recorded.lack(advisory, failed_at))
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
    let mut recorded = None;
    let messages = mesh.scan(streams::ADVISORIES, None, from, handled);
    pin_mut!(messages);
    while let Some(message) = messages.next().await {
        let message = message?;
        let Ok(advisory) = serde_json::from_slice::<Advisory>(&message.payload) else {
            continue;
        };
        let consumer = auditor.topology.consumer(&advisory.consumer);
        let origin = MessageRef {
            stream: advisory.stream.clone(),
            consumer: advisory.consumer.clone(),
            sequence: advisory.sequence,
        };
        if consumer.is_none_or(|consumer| consumer.stream != advisory.stream)
            || dead_letters.has_origin(&origin)
        {
            continue;
        }
        let expected = advisory.stream == streams::LATER && advisory.reason == MESSAGE_DELETED;
        let is_recorded = is_recorded_redrive(
            auditor,
            &dead_letters,
            (&origin, message.published_at),
            (&mut recorded, dlq_last),
            &mut run.throttle,
        );
        if expected || is_recorded.await? {
            continue;
        }
        let detail = format!(
            "consumer {} stopped redelivering message {} of stream {}, and the message has no dead letter",
            advisory.consumer, advisory.sequence, advisory.stream
        );
        let mut finding = Finding {
            kind: FindingKind::Unrecorded,
            post: None,
            channel: None,
            user: None,
            chunk: None,
            deliveries: 0,
            detail,
            repaired: crate::Repaired::NotRequested,
        };
        if let Some(repair) = &mut run.repair {
            finding.repaired = repair.republish_advisory(&message).await;
        }
        run.report(finding).await?;
    }
    Ok(())
}
