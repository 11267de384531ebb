//! Recovers the dead letters that an earlier process, or a failed step, left in flight.

use std::{
    collections::{HashMap, HashSet},
    time::Instant,
};

use futures::TryStreamExt as _;
use herald_mesh::streams;
use herald_store::{DeadLetter, DeadLetterFilter, DeadLetterState, OperationId, Order};

use super::{BATCH, Leader, redrive_target, to_redriven, to_version};
use crate::{domain::throttle::RateLimiter, error::StepError};

impl Leader {
    /// Tracks or recovers the dead letters that earlier processes left in flight.
    pub(super) async fn recover_interrupted(&self) -> Result<(), StepError> {
        let mut unsent: HashMap<OperationId, Vec<DeadLetter>> = HashMap::new();
        self.for_each_in_flight(
            |dead_letter| match (redrive_target(&dead_letter), dead_letter.redrive) {
                (Some((kind, _)), _) if dead_letter.redrive_sequence != 0 => {
                    self.outcomes
                        .track([(to_version(&dead_letter), kind, dead_letter.redrive_sequence)]);
                }
                (_, Some(operation)) => unsent.entry(operation).or_default().push(dead_letter),
                (_, None) => {}
            },
        )
        .await?;
        for (operation, dead_letters) in unsent {
            tracing::info!(
                redrive_id = operation.0,
                dead_letters = dead_letters.len(),
                "redrive was interrupted; searching REDRIVE for its claimed dead letters"
            );
            self.recover(operation, dead_letters).await?;
        }
        Ok(())
    }

    /// Recovers the claimed dead letters of a redrive that aren't recorded as sent.
    pub(super) async fn recover_claimed(&self, operation: OperationId) -> Result<(), StepError> {
        let mut unrecorded = Vec::new();
        self.for_each_in_flight(|dead_letter| {
            if dead_letter.redrive == Some(operation) && dead_letter.redrive_sequence == 0 {
                unrecorded.push(dead_letter);
            }
        })
        .await?;
        self.recover(operation, unrecorded).await
    }

    /// Searches REDRIVE for dead letters that may have been published: records the ones found and sends the others.
    async fn recover(&self, operation: OperationId, dead_letters: Vec<DeadLetter>) -> Result<(), StepError> {
        if dead_letters.is_empty() {
            return Ok(());
        }
        let Some(redrive) = self.runner.dead_letters.operation(operation).await? else {
            tracing::error!(
                redrive_id = operation.0,
                dead_letters = dead_letters.len(),
                "the redrive of claimed dead letters is unknown; they stay in flight"
            );
            return Ok(());
        };
        let after = redrive.redrive_after;
        let claimed: HashSet<_> = dead_letters.iter().map(to_redriven).collect();
        let last = self.runner.mesh.last_sequence(streams::REDRIVE).await?;
        let mut sequences = HashMap::new();
        if last > after {
            let messages = self.runner.mesh.scan(streams::REDRIVE, None, after + 1, last);
            let mut messages = std::pin::pin!(messages);
            while let Some(message) = messages.try_next().await? {
                if let Some(redriven) = message.redriven().filter(|redriven| claimed.contains(redriven)) {
                    sequences.entry(redriven).or_insert(message.sequence);
                }
            }
        }
        let mut sent = Vec::new();
        let mut unsent = Vec::new();
        for dead_letter in dead_letters {
            match (
                sequences.get(&to_redriven(&dead_letter)),
                redrive_target(&dead_letter),
            ) {
                (Some(sequence), Some((kind, _))) => sent.push((to_version(&dead_letter), kind, *sequence)),
                _ => unsent.push(dead_letter),
            }
        }
        self.record_sent(operation, sent).await?;
        let mut limiter = RateLimiter::new(redrive.what.rate_max, Instant::now());
        self.send(&redrive, unsent, &mut limiter).await
    }

    /// Passes each dead letter in state `Redriving` to `visit`, without keeping them.
    async fn for_each_in_flight(&self, mut visit: impl FnMut(DeadLetter)) -> Result<(), StepError> {
        let filter = DeadLetterFilter {
            state: Some(DeadLetterState::Redriving),
            ..DeadLetterFilter::default()
        };
        let mut after = None;
        loop {
            let page = self
                .runner
                .dead_letters
                .scan(&filter, Order::OldestFirst, after, BATCH as usize)
                .await?;
            page.dead_letters.into_iter().for_each(&mut visit);
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(()),
            }
        }
    }
}
