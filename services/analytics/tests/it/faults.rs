//! A store with injected faults.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use herald_model::PostId;
use herald_store::{
    ChunkRef, Counted, Counts, Error, ErrorKind, Fence, IntendedFile, PostTotals, Result, Totals, TotalsBatch,
};

/// How a commit fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The commit is not done, and returns an error.
    Before,
    /// The commit is done, and returns an error.
    After,
    /// The commit is not done, and never returns.
    Hang,
}

/// Totals with an injected fault in every `every`th commit.
pub(crate) struct Faulty {
    pub(crate) inner: Arc<dyn Totals>,
    pub(crate) fault: Fault,
    pub(crate) every: usize,
    pub(crate) commits: AtomicUsize,
    pub(crate) faults: AtomicUsize,
}

impl Faulty {
    pub(crate) fn new(inner: Arc<dyn Totals>, fault: Fault, every: usize) -> Arc<Self> {
        Arc::new(Self {
            inner,
            fault,
            every,
            commits: AtomicUsize::new(0),
            faults: AtomicUsize::new(0),
        })
    }

    pub(crate) fn faults(&self) -> usize {
        self.faults.load(Ordering::SeqCst)
    }
}

fn failed() -> Error {
    Error::new(ErrorKind::Unavailable, "injected fault")
}

#[async_trait]
impl Totals for Faulty {
    async fn seen(&self, stream: &str, sequences: &[u64]) -> Result<Vec<bool>> {
        self.inner.seen(stream, sequences).await
    }

    async fn counted(&self, chunks: &[ChunkRef]) -> Result<Vec<Counted>> {
        self.inner.counted(chunks).await
    }

    async fn intend(&self, file: &str, owner: &Fence) -> Result<()> {
        self.inner.intend(file, owner).await
    }

    async fn intended(&self) -> Result<Vec<IntendedFile>> {
        self.inner.intended().await
    }

    async fn abandon(&self, file: &str) -> Result<bool> {
        self.inner.abandon(file).await
    }

    async fn forget(&self, file: &str) -> Result<()> {
        self.inner.forget(file).await
    }

    async fn commit(&self, batch: &TotalsBatch) -> Result<()> {
        let commit = self.commits.fetch_add(1, Ordering::SeqCst);
        if !(commit + 1).is_multiple_of(self.every) {
            return self.inner.commit(batch).await;
        }
        self.faults.fetch_add(1, Ordering::SeqCst);
        match self.fault {
            Fault::Before => Err(failed()),
            Fault::After => {
                self.inner.commit(batch).await?;
                Err(failed())
            }
            Fault::Hang => std::future::pending().await,
        }
    }

    async fn post_totals(&self, post: PostId) -> Result<Option<PostTotals>> {
        self.inner.post_totals(post).await
    }

    async fn hour_totals(&self, start: u32, end: u32) -> Result<Vec<(u32, Counts)>> {
        self.inner.hour_totals(start, end).await
    }
}
