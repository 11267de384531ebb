//! Compares JetStream advisories with the dead letters.

use futures::{StreamExt as _, pin_mut};
use herald_mesh::{consumers, streams};
use herald_store::MessageRef;
use serde::Deserialize;

use crate::{Auditor, Finding, FindingKind, Result, Scope, confirm::Run, dead_letter_index::DeadLetterIndex};

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

/// Whether the advisory is about a redriven message that needs no dead letter of its own: its failure reopened the dead
/// letter that it was redriven from. True also if REDRIVE no longer has the message, because then nothing tells its
/// dead letter.
async fn is_redrive_of_dead_letter(
    auditor: &Auditor,
    dead_letters: &DeadLetterIndex,
    advisory: &Advisory,
) -> Result<bool> {
    if advisory.stream != streams::REDRIVE {
        return Ok(false);
    }
    let message = auditor.mesh.message(&advisory.stream, advisory.sequence).await?;
    let Some(message) = message else {
        // An erasure has deleted it, or it is past its retention.
        return Ok(true);
    };
    let redriven = message.redriven();
    Ok(redriven.is_some_and(|redriven| dead_letters.contains(redriven.dead_letter)))
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
        if expected || is_redrive_of_dead_letter(auditor, &dead_letters, &advisory).await? {
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
