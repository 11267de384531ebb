//! A store of dead letters whose steps fail on request.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use herald_model::time::Timestamp;
use herald_store::{
    DeadLetter, DeadLetterFilter, DeadLetterGroups, DeadLetterId, DeadLetterPage, DeadLetterState,
    DeadLetterVersion, DeadLetters, Error, ErrorKind, Fence, Inserted, NewOperation, Operation, OperationId,
    OperationState, Order, Reopened, Reopening, Result, Step,
};

/// What a step does.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Behavior {
    Succeed,
    Fail(ErrorKind),
    Panic,
    /// Panics after the store has made the step.
    PanicAfterwards,
}

/// Passes all calls to another store. Calls of `claim` and `discard` take the next of the given behaviors, and succeed
/// when none is left.
pub(crate) struct FailingDeadLetters {
    inner: Arc<dyn DeadLetters>,
    behaviors: Mutex<VecDeque<Behavior>>,
    /// Calls of `insert` that failed because the store was away; `None` while it is there.
    away: Mutex<Option<u32>>,
}

impl FailingDeadLetters {
    pub(crate) fn new(inner: Arc<dyn DeadLetters>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            behaviors: Mutex::default(),
            away: Mutex::default(),
        })
    }

    /// Lets `insert` fail because the store is away, or succeed again.
    pub(crate) fn set_away(&self, away: bool) {
        *self.away.lock().unwrap() = away.then_some(0);
    }

    /// Calls of `insert` that failed since the store went away.
    pub(crate) fn failed_inserts(&self) -> u32 {
        self.away.lock().unwrap().unwrap_or(0)
    }

    pub(crate) fn set_behaviors(&self, behaviors: impl IntoIterator<Item = Behavior>) {
        *self.behaviors.lock().unwrap() = behaviors.into_iter().collect();
    }

    async fn behave(&self, step: impl Future<Output = Result<Step>>) -> Result<Step> {
        let next = self.behaviors.lock().unwrap().pop_front();
        match next {
            None | Some(Behavior::Succeed) => step.await,
            Some(Behavior::Fail(kind)) => Err(Error::new(kind, "failed on purpose")),
            Some(Behavior::Panic) => panic!("on purpose"),
            Some(Behavior::PanicAfterwards) => {
                step.await?;
                panic!("afterwards, on purpose")
            }
        }
    }
}

#[async_trait]
impl DeadLetters for FailingDeadLetters {
    async fn insert(&self, dead_letters: &[DeadLetter]) -> Result<Vec<Inserted>> {
        if let Some(failed) = &mut *self.away.lock().unwrap() {
            *failed += 1;
            return Err(Error::new(ErrorKind::Unavailable, "away on purpose"));
        }
        self.inner.insert(dead_letters).await
    }

    async fn reopen(&self, reopening: &Reopening) -> Result<Reopened> {
        self.inner.reopen(reopening).await
    }

    async fn get(&self, ids: &[DeadLetterId]) -> Result<Vec<Option<DeadLetter>>> {
        self.inner.get(ids).await
    }

    async fn scan(
        &self,
        filter: &DeadLetterFilter,
        order: Order,
        after: Option<DeadLetterId>,
        limit: usize,
    ) -> Result<DeadLetterPage> {
        self.inner.scan(filter, order, after, limit).await
    }

    async fn groups(&self, filter: &DeadLetterFilter) -> Result<DeadLetterGroups> {
        self.inner.groups(filter).await
    }

    async fn count(&self, state: DeadLetterState) -> Result<u64> {
        self.inner.count(state).await
    }

    async fn begin(&self, operation: &NewOperation, dead_letters: &[DeadLetterVersion]) -> Result<Operation> {
        self.inner.begin(operation, dead_letters).await
    }

    async fn begin_below(
        &self,
        operation: &NewOperation,
        dead_letters: &[DeadLetterVersion],
        running_max: u64,
    ) -> Result<Operation> {
        self.inner.begin_below(operation, dead_letters, running_max).await
    }

    async fn claim(
        &self,
        operation: OperationId,
        limit: usize,
        redrive_after: u64,
        at: Timestamp,
        fence: &Fence,
    ) -> Result<Step> {
        self.behave(self.inner.claim(operation, limit, redrive_after, at, fence))
            .await
    }

    async fn sent(&self, operation: OperationId, dead_letters: &[(DeadLetterVersion, u64)]) -> Result<()> {
        self.inner.sent(operation, dead_letters).await
    }

    async fn resolve(&self, dead_letters: &[DeadLetterVersion], at: Timestamp) -> Result<u64> {
        self.inner.resolve(dead_letters, at).await
    }

    async fn discard(&self, operation: OperationId, limit: usize, at: Timestamp) -> Result<Step> {
        self.behave(self.inner.discard(operation, limit, at)).await
    }

    async fn finish(
        &self,
        operation: OperationId,
        state: OperationState,
        reason: &str,
        at: Timestamp,
    ) -> Result<Operation> {
        self.inner.finish(operation, state, reason, at).await
    }

    async fn operation(&self, id: OperationId) -> Result<Option<Operation>> {
        self.inner.operation(id).await
    }

    async fn operations(&self, before: Option<OperationId>, limit: usize) -> Result<Vec<Operation>> {
        self.inner.operations(before, limit).await
    }

    async fn running(&self) -> Result<Vec<Operation>> {
        self.inner.running().await
    }
}
