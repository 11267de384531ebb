//! Publishes the dead letters that a redrive has claimed.

use std::time::{Duration, Instant};

use futures::{StreamExt as _, future, stream};
use herald_mesh::{ErrorKind, Redrive, consumers::ConsumerKind, streams};
use herald_model::time::Timestamp;
use herald_proto::{mesh_v1::DlqEntry, v1};
use herald_store::{DeadLetter, DeadLetterVersion, Operation, OperationId, Reopening};

use super::{Leader, push_ttl, redrive_target, refusal, to_version};
use crate::{domain::throttle::RateLimiter, error::StepError};

/// Dead letters read and published concurrently.
const CONCURRENCY: usize = 64;

/// The result of sending one dead letter.
enum SendResult {
    /// Published, with its sequence in REDRIVE.
    Published(DeadLetterVersion, ConsumerKind, u64),
    /// It can't be redriven; the reason is in the reopening.
    Refused(Reopening),
}

impl Leader {
    /// Publishes claimed dead letters at the redrive's rate, and records their sequences in REDRIVE.
    pub(super) async fn send(
        &self,
        operation: &Operation,
        dead_letters: Vec<DeadLetter>,
        limiter: &mut RateLimiter,
    ) -> Result<(), StepError> {
        let sends: Vec<Result<SendResult, StepError>> = stream::iter(dead_letters)
            .map(|dead_letter| (dead_letter, limiter.reserve(Instant::now())))
            .then(|(dead_letter, delay)| async move {
                // Tokio's timer takes a millisecond even for a delay of zero.
                if !delay.is_zero() {
                    tokio::time::sleep(delay).await;
                }
                dead_letter
            })
            .map(|dead_letter| self.send_one(dead_letter, operation.what.push_ttl))
            .buffer_unordered(CONCURRENCY)
            .collect()
            .await;
        let mut sent = Vec::with_capacity(sends.len());
        let mut refused = Vec::new();
        let mut outcome = Ok(());
        for result in sends {
            match result {
                Ok(SendResult::Published(dead_letter, kind, sequence)) => {
                    sent.push((dead_letter, kind, sequence));
                }
                Ok(SendResult::Refused(refusal)) => {
                    tracing::warn!(
                        dead_letter_id = refusal.dead_letter.0,
                        redrive_id = operation.id.0,
                        reason = refusal.reason,
                        "dead letter can't be redriven; it is open again"
                    );
                    refused.push(refusal);
                }
                Err(error) => outcome = Err(error),
            }
        }
        self.record_sent(operation.id, sent).await?;
        // Concurrently, so that the reopenings share a commit.
        future::try_join_all(
            refused
                .iter()
                .map(|refusal| self.runner.dead_letters.reopen(refusal)),
        )
        .await?;
        outcome
    }

    /// Records the sequences of sent dead letters in REDRIVE, and tracks their outcomes.
    pub(super) async fn record_sent(
        &self,
        operation: OperationId,
        sent: Vec<(DeadLetterVersion, ConsumerKind, u64)>,
    ) -> Result<(), StepError> {
        if sent.is_empty() {
            return Ok(());
        }
        let sequences: Vec<_> = sent
            .iter()
            .map(|(dead_letter, _, sequence)| (*dead_letter, *sequence))
            .collect();
        self.runner.dead_letters.sent(operation, &sequences).await?;
        self.runner.metrics.redriven.inc_by(sent.len() as u64);
        self.outcomes.track(sent);
        Ok(())
    }

    async fn send_one(
        &self,
        dead_letter: DeadLetter,
        push_ttl: Option<Duration>,
    ) -> Result<SendResult, StepError> {
        let refuse = |why: &str| SendResult::Refused(refusal::reopening(&dead_letter, why, Timestamp::now()));
        let redrive = match self.build_redrive(&dead_letter, push_ttl).await? {
            Ok(redrive) => redrive,
            Err(why) => return Ok(refuse(why)),
        };
        if !self.lease.lasts() {
            return Err(StepError::LeaseLost);
        }
        match self.runner.mesh.redrive(&redrive).await {
            Ok(published) => Ok(SendResult::Published(
                to_version(&dead_letter),
                redrive.kind,
                published.sequence,
            )),
            Err(error) => match error.kind() {
                ErrorKind::TooLarge | ErrorKind::Invalid | ErrorKind::Rejected => {
                    Ok(refuse(&format!("the broker refuses it: {error}")))
                }
                _ => Err(error.into()),
            },
        }
    }

    /// Builds the message to REDRIVE from the entry in DLQ. The inner error is the reason why the dead letter can't be
    /// redriven.
    async fn build_redrive(
        &self,
        dead_letter: &DeadLetter,
        push_ttl: Option<Duration>,
    ) -> Result<Result<Redrive, &'static str>, StepError> {
        let Some((kind, subject)) = redrive_target(dead_letter) else {
            return Ok(Err("no consumer handles its subject"));
        };
        let Some(message) = self.runner.mesh.message(streams::DLQ, dead_letter.id.0).await? else {
            return Ok(Err("its message is no longer in DLQ"));
        };
        let Ok(entry) = message.decode::<DlqEntry>() else {
            return Ok(Err("its DLQ entry is malformed"));
        };
        let payload = match entry.payload_state() {
            v1::DeadLetterPayload::Kept => entry.payload,
            v1::DeadLetterPayload::TooLarge => {
                let origin = &dead_letter.origin;
                match self.runner.mesh.message(&origin.stream, origin.sequence).await? {
                    Some(message) => message.payload,
                    None => return Ok(Err("its message is no longer in its stream")),
                }
            }
            v1::DeadLetterPayload::Gone | v1::DeadLetterPayload::Unspecified => {
                return Ok(Err("its payload is gone"));
            }
        };
        let expires_at = match push_ttl {
            Some(ttl) => Some(Timestamp::now().plus(ttl)),
            // An earlier redrive gave the pushes a new time to live.
            None => dead_letter
                .pushes_expire_at
                .filter(|at| at.0 != entry.pushes_expire_at_us),
        };
        let payload = match expires_at {
            None => payload,
            Some(expires_at) => match push_ttl::renew(kind, subject, payload, expires_at) {
                Ok(payload) => payload,
                Err(_) => {
                    return Ok(Err(
                        "its payload is malformed, so its pushes can't get a new time to live",
                    ));
                }
            },
        };
        Ok(Ok(Redrive {
            kind,
            dead_letter: dead_letter.id.0,
            round: dead_letter.round,
            subject,
            sequence: dead_letter.original_sequence,
            published_at: dead_letter.published_at,
            payload,
            trace_parent: Some(entry.trace_parent).filter(|parent| !parent.is_empty()),
            trace_state: Some(entry.trace_state).filter(|state| !state.is_empty()),
            id: format!("dlq/{}/redrive/{}", dead_letter.id.0, dead_letter.round),
        }))
    }
}
