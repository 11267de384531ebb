//! Dead letters and the operations on them.
//!
//! A transaction locks the lease of its caller first, then operations, then dead letters, each in ascending order, so
//! that several processes wait for each other and never deadlock.

mod find;
mod operations;
pub(crate) mod row;
mod step;
mod write;

use std::time::{Duration, Instant};

use async_trait::async_trait;
use herald_model::time::Timestamp;
use tokio::sync::Mutex;

use self::step::Change;
use super::{Attempt, Postgres};
use crate::{
    DeadLetter, DeadLetterFilter, DeadLetterGroups, DeadLetterId, DeadLetterPage, DeadLetterState,
    DeadLetterVersion, Fence, Inserted, NewOperation, Operation, OperationId, OperationState, Order,
    Reopened, Reopening, Result, Step,
    embedded::dead_letters::row::{STATES, variant_number},
};

/// Maximum age of a count of dead letters.
const COUNT_AGE_MAX: Duration = Duration::from_secs(10);

/// A count is kept for this many times its duration, so that counting takes a small part of the time.
const COUNT_AGE_FACTOR: u32 = 20;

/// The cluster engine's [`DeadLetters`](crate::DeadLetters).
pub(crate) struct PostgresDeadLetters {
    postgres: Postgres,
    counts: Mutex<Option<CountSample>>,
}

/// Numbers of dead letters at a moment.
struct CountSample {
    by_state: [u64; STATES.len()],
    valid_until: Instant,
}

impl PostgresDeadLetters {
    pub(crate) fn new(postgres: Postgres) -> Self {
        Self {
            postgres,
            counts: Mutex::new(None),
        }
    }

    async fn sample_counts(&self) -> Attempt<CountSample> {
        let start = Instant::now();
        let rows: Vec<(i16, i64)> =
            sqlx::query_as("SELECT state, count(*) FROM herald.dead_letters GROUP BY state")
                .fetch_all(self.postgres.pool())
                .await?;
        let mut by_state = [0; STATES.len()];
        for (state, count) in rows {
            if let Some(counter) = usize::try_from(state)
                .ok()
                .and_then(|state| by_state.get_mut(state))
            {
                *counter = count.cast_unsigned();
            }
        }
        let keep = (COUNT_AGE_FACTOR * start.elapsed()).min(COUNT_AGE_MAX);
        Ok(CountSample {
            by_state,
            valid_until: Instant::now() + keep,
        })
    }
}

#[async_trait]
impl crate::DeadLetters for PostgresDeadLetters {
    async fn insert(&self, dead_letters: &[DeadLetter]) -> Result<Vec<Inserted>> {
        write::insert(&self.postgres, dead_letters).await
    }

    async fn reopen(&self, reopening: &Reopening) -> Result<Reopened> {
        write::reopen(&self.postgres, reopening).await
    }

    async fn get(&self, ids: &[DeadLetterId]) -> Result<Vec<Option<DeadLetter>>> {
        find::get(&self.postgres, ids).await
    }

    async fn scan(
        &self,
        filter: &DeadLetterFilter,
        order: Order,
        after: Option<DeadLetterId>,
        limit: usize,
    ) -> Result<DeadLetterPage> {
        find::scan(&self.postgres, filter, order, after, limit).await
    }

    async fn groups(&self, filter: &DeadLetterFilter) -> Result<DeadLetterGroups> {
        find::groups(&self.postgres, filter).await
    }

    async fn count(&self, state: DeadLetterState) -> Result<u64> {
        let mut counts = self.counts.lock().await;
        let sample = match counts.take() {
            Some(sample) if Instant::now() < sample.valid_until => sample,
            _ => {
                self.postgres
                    .call("count the dead letters", async || self.sample_counts().await)
                    .await?
            }
        };
        let count = sample.by_state[variant_number(&STATES, &state) as usize];
        *counts = Some(sample);
        Ok(count)
    }

    async fn begin(&self, operation: &NewOperation, dead_letters: &[DeadLetterVersion]) -> Result<Operation> {
        operations::begin(&self.postgres, operation, dead_letters, None).await
    }

    async fn begin_below(
        &self,
        operation: &NewOperation,
        dead_letters: &[DeadLetterVersion],
        running_max: u64,
    ) -> Result<Operation> {
        operations::begin(&self.postgres, operation, dead_letters, Some(running_max)).await
    }

    async fn claim(
        &self,
        operation: OperationId,
        limit: usize,
        redrive_after: u64,
        at: Timestamp,
        fence: &Fence,
    ) -> Result<Step> {
        let change = Change::Claim { redrive_after, fence };
        step::run(&self.postgres, operation, limit, at, change).await
    }

    async fn sent(&self, operation: OperationId, dead_letters: &[(DeadLetterVersion, u64)]) -> Result<()> {
        write::sent(&self.postgres, operation, dead_letters).await
    }

    async fn resolve(&self, dead_letters: &[DeadLetterVersion], at: Timestamp) -> Result<u64> {
        write::resolve(&self.postgres, dead_letters, at).await
    }

    async fn discard(&self, operation: OperationId, limit: usize, at: Timestamp) -> Result<Step> {
        step::run(&self.postgres, operation, limit, at, Change::Discard).await
    }

    async fn finish(
        &self,
        operation: OperationId,
        state: OperationState,
        reason: &str,
        at: Timestamp,
    ) -> Result<Operation> {
        operations::finish(&self.postgres, operation, state, reason, at).await
    }

    async fn operation(&self, id: OperationId) -> Result<Option<Operation>> {
        operations::get(&self.postgres, id).await
    }

    async fn operations(&self, before: Option<OperationId>, limit: usize) -> Result<Vec<Operation>> {
        operations::list(&self.postgres, before, limit).await
    }

    async fn running(&self) -> Result<Vec<Operation>> {
        operations::running(&self.postgres).await
    }
}
