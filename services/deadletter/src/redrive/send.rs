//! Publishes the dead letters that a redrive has claimed.

use std::time::Instant;

use futures::{StreamExt as _, future, stream};
use herald_mesh::{ErrorKind, Redrive, consumers::ConsumerKind, streams};
use herald_model::time::Timestamp;
use herald_proto::{mesh_v1::DlqEntry, v1};
use herald_store::{Chosen, DeadLetter, DeadLetterState, OperationId, Reopening};

use super::{Redrives, chosen, refusal, way_back};
use crate::{domain::pace::Pace, error::StepError};

/// Dead letters that are read and published at a time.
const SENDS: usize = 64;

/// The result of sending one dead letter.
enum Sent {
    /// Its sequence in REDRIVE.
    At(Chosen, ConsumerKind, u64),
    /// It can't be sent; the dead letter records why.
    Not(Reopening),
}

impl Redrives {
    /// Publishes claimed dead letters at the redrive's rate, and records their sequences in REDRIVE.
    pub(super) async fn send(
        &self,
        operation: OperationId,
        dead_letters: Vec<DeadLetter>,
        pace: &mut Pace,
    ) -> Result<(), StepError> {
        let sends: Vec<Result<Sent, StepError>> = stream::iter(dead_letters)
            .map(|dead_letter| (dead_letter, pace.wait(Instant::now())))
            .then(|(dead_letter, wait)| async move {
                // A timer takes a millisecond even for nothing.
                if !wait.is_zero() {
                    tokio::time::sleep(wait).await;
                }
                dead_letter
            })
            .map(|dead_letter| self.send_one(dead_letter))
            .buffer_unordered(SENDS)
            .collect()
            .await;
        let mut sent = Vec::with_capacity(sends.len());
        let mut refused = Vec::new();
        let mut outcome = Ok(());
        for one in sends {
            match one {
                Ok(Sent::At(dead_letter, kind, sequence)) => sent.push((dead_letter, kind, sequence)),
                Ok(Sent::Not(refusal)) => {
                    tracing::warn!(
                        dead_letter_id = refusal.dead_letter.0,
                        redrive_id = operation.0,
                        reason = refusal.reason,
                        "dead letter can't be redriven"
                    );
                    refused.push(refusal);
                }
                Err(error) => outcome = Err(error),
            }
        }
        self.record(operation, sent).await?;
        // Together, so that they share a commit.
        future::try_join_all(refused.iter().map(|refusal| self.dead_letters.reopen(refusal))).await?;
        self.metrics
            .open(self.dead_letters.count(DeadLetterState::Open).await?);
        outcome
    }

    /// Records the sequences of sent dead letters in REDRIVE, and watches for their outcomes.
    pub(super) async fn record(
        &self,
        operation: OperationId,
        sent: Vec<(Chosen, ConsumerKind, u64)>,
    ) -> Result<(), StepError> {
        if sent.is_empty() {
            return Ok(());
        }
        let places: Vec<_> = sent
            .iter()
            .map(|(dead_letter, _, sequence)| (*dead_letter, *sequence))
            .collect();
        self.dead_letters.sent(operation, &places).await?;
        self.metrics.redriven.inc_by(sent.len() as u64);
        self.outcomes.expect(sent);
        Ok(())
    }

    async fn send_one(&self, dead_letter: DeadLetter) -> Result<Sent, StepError> {
        let not = |why: &str| Sent::Not(refusal::of(&dead_letter, why, Timestamp::now()));
        let redrive = match self.message_of(&dead_letter).await? {
            Ok(redrive) => redrive,
            Err(why) => return Ok(not(why)),
        };
        match self.mesh.redrive(&redrive).await {
            Ok(published) => Ok(Sent::At(chosen(&dead_letter), redrive.kind, published.sequence)),
            Err(error) => match error.kind() {
                ErrorKind::TooLarge | ErrorKind::Invalid | ErrorKind::Rejected => {
                    Ok(not(&format!("the broker refuses it: {error}")))
                }
                _ => Err(error.into()),
            },
        }
    }

    /// Reads from DLQ what a dead letter sends; the inner error is why it can't be redriven.
    async fn message_of(&self, dead_letter: &DeadLetter) -> Result<Result<Redrive, &'static str>, StepError> {
        let Some((kind, subject)) = way_back(dead_letter) else {
            return Ok(Err("no consumer takes it"));
        };
        let Some(message) = self.mesh.message(streams::DLQ, dead_letter.id.0).await? else {
            return Ok(Err("it is no longer in DLQ"));
        };
        let Ok(body) = message.decode::<DlqEntry>() else {
            return Ok(Err("it can't be read"));
        };
        let payload = match body.payload_state() {
            v1::DeadLetterPayload::Kept => body.payload,
            v1::DeadLetterPayload::TooLarge => {
                let origin = &dead_letter.origin;
                match self.mesh.message(&origin.stream, origin.sequence).await? {
                    Some(message) => message.payload,
                    None => return Ok(Err("it is no longer in its stream")),
                }
            }
            v1::DeadLetterPayload::Gone | v1::DeadLetterPayload::Unspecified => {
                return Ok(Err("what it carried is gone"));
            }
        };
        Ok(Ok(Redrive {
            kind,
            dead_letter: dead_letter.id.0,
            round: dead_letter.round,
            subject,
            sequence: dead_letter.original_sequence,
            published_at: dead_letter.published_at,
            payload,
            trace_parent: Some(body.trace_parent).filter(|parent| !parent.is_empty()),
            trace_state: Some(body.trace_state).filter(|state| !state.is_empty()),
            id: format!("dlq/{}/redrive/{}", dead_letter.id.0, dead_letter.round),
        }))
    }
}
