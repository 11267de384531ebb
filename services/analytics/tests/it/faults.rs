//! A store with injected faults.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use herald_store::{Error, ErrorKind, Result, Totals, TotalsBatch};

use crate::forward_totals::forward_totals;

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

forward_totals!(Faulty, inner, {
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
});
