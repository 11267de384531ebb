//! What JetStream says was given up, against the dead letters.

use futures::{StreamExt as _, pin_mut};
use herald_mesh::{consumers, streams};
use herald_store::MessageRef;
use serde::Deserialize;

use crate::{Auditor, Finding, FindingKind, Result, Scope, confirm::Run, explained::Explained};

/// Of which message an advisory is, whatever its kind.
#[derive(Debug, Deserialize)]
struct Advisory {
    stream: String,
    consumer: String,
    #[serde(rename = "stream_seq")]
    sequence: u64,
    #[serde(default)]
    reason: String,
}

/// What the server says when a message of LATER is gone: it was handled, and the consumer's book was a moment older when the
/// server was killed. The dead letters leave it out too.
const GONE: &str = "Unacknowledged message was deleted";

/// Whether a message was a dead letter's, redriven: its failure opened that dead letter again.
async fn is_of_dead_letter(auditor: &Auditor, explained: &Explained, advisory: &Advisory) -> Result<bool> {
    if advisory.stream != streams::REDRIVE {
        return Ok(false);
    }
    let message = auditor.mesh.message(&advisory.stream, advisory.sequence).await?;
    let redriven = message.and_then(|message| message.redriven());
    Ok(redriven.is_some_and(|redriven| explained.dead_letter(redriven.dead_letter)))
}

/// Checks the advisories in scope. The newest may still be on their way; they are left to the next audit.
pub(crate) async fn check(auditor: &Auditor, scope: Scope, run: &mut Run<'_>) -> Result<()> {
    let mesh = &auditor.mesh;
    let from = match scope {
        Scope::Since(at) => mesh.sequence_since(streams::ADVISORIES, at).await?,
        Scope::All | Scope::Post(_) => 1,
    };
    // Handled up to here, and what came of it is indexed up to its end.
    let handled = mesh.ack_floor(streams::ADVISORIES, consumers::DEADLETTER).await?;
    if handled < from {
        return Ok(());
    }
    let made = mesh.last_sequence(streams::DLQ).await?;
    if mesh.ack_floor(streams::DLQ, consumers::DEAD_LETTERS).await? < made {
        return Ok(());
    }
    let explained = Explained::read(&*auditor.dead_letters, &mut run.pace).await?;
    let messages = mesh.scan(streams::ADVISORIES, None, from, handled);
    pin_mut!(messages);
    while let Some(message) = messages.next().await {
        let message = message?;
        let Ok(advisory) = serde_json::from_slice::<Advisory>(&message.payload) else {
            continue;
        };
        let known = auditor.topology.consumer(&advisory.consumer);
        let origin = MessageRef {
            stream: advisory.stream.clone(),
            consumer: advisory.consumer.clone(),
            sequence: advisory.sequence,
        };
        if known.is_none_or(|consumer| consumer.stream != advisory.stream) || explained.origin(&origin) {
            continue;
        }
        let gone = advisory.stream == streams::LATER && advisory.reason == GONE;
        if gone || is_of_dead_letter(auditor, &explained, &advisory).await? {
            continue;
        }
        let detail = format!(
            "message {} of stream {} was given up by consumer {}, and no dead letter keeps it",
            advisory.sequence, advisory.stream, advisory.consumer
        );
        let mut finding = Finding {
            kind: FindingKind::Unrecorded,
            post: None,
            channel: None,
            user: None,
            chunk: None,
            deliveries: 0,
            detail,
            repaired: crate::Repaired::NotAsked,
        };
        if let Some(repair) = &mut run.repair {
            finding.repaired = repair.advise_again(&message).await;
        }
        run.report(finding).await?;
    }
    Ok(())
}
