//! Files that were announced and are not counted: of failed commits, and of instances that died.
//!
//! A file is abandoned before it is deleted, so that its writer can't count it afterwards, and forgotten after it is
//! deleted. Until then every instance finds it, also when the one that deletes it dies or the object store fails.

use std::time::Duration;

use herald_store::Totals;
use parking_lot::Mutex;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::adapters::FileStore;
use crate::error::CommitError;
use crate::metrics::Metrics;

/// A file of this instance that was announced.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Leftover {
    path: String,
    /// Whether a commit was tried whose result is not known.
    may_be_counted: bool,
}

/// The announced files of a batcher that may not be counted. Bounded by the files of one batch, because they are deleted
/// before the next file is written.
#[derive(Debug, Default)]
pub(crate) struct Leftovers(Mutex<Vec<Leftover>>);

impl Leftovers {
    pub(crate) fn add(&self, path: &str) {
        self.0.lock().push(Leftover {
            path: path.to_owned(),
            may_be_counted: false,
        });
    }

    pub(crate) fn remove(&self, path: &str) {
        self.0.lock().retain(|leftover| leftover.path != path);
    }

    pub(crate) fn set_may_be_counted(&self, path: &str, may_be_counted: bool) {
        let mut leftovers = self.0.lock();
        if let Some(leftover) = leftovers.iter_mut().find(|leftover| leftover.path == path) {
            leftover.may_be_counted = may_be_counted;
        }
    }

    /// Deletes all files that are not counted. A file whose commit succeeded in spite of an error is kept.
    pub(crate) async fn delete(
        &self,
        totals: &dyn Totals,
        files: &FileStore,
        metrics: &Metrics,
    ) -> Result<(), CommitError> {
        let leftovers = self.0.lock().clone();
        for Leftover { path, may_be_counted } in leftovers {
            let is_uncounted = totals.abandon(&path).await?;
            // Without its announcement a file is counted, or another instance has deleted it.
            if is_uncounted || !may_be_counted {
                self.set_may_be_counted(&path, false);
                delete(&path, totals, files, metrics).await?;
            }
            self.remove(&path);
        }
        Ok(())
    }
}

/// Whether the file is announced and not counted.
pub(crate) async fn is_announced(totals: &dyn Totals, path: &str) -> Result<bool, CommitError> {
    let intended = totals.intended().await?;
    Ok(intended.iter().any(|intended| intended.file == path))
}

/// Deletes the files of instances that died, at once and at each interval, until the lease of this instance is lost.
pub(crate) async fn delete_orphans_periodically(
    totals: &dyn Totals,
    files: &FileStore,
    metrics: &Metrics,
    interval: Duration,
    lost: &CancellationToken,
) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while lost.run_until_cancelled(ticks.tick()).await.is_some() {
        if let Err(error) = delete_orphans(totals, files, metrics).await {
            tracing::warn!(%error, "can't delete the uncounted files of an instance that died; retrying");
        }
    }
}

async fn delete_orphans(
    totals: &dyn Totals,
    files: &FileStore,
    metrics: &Metrics,
) -> Result<(), CommitError> {
    let intended = totals.intended().await?;
    for orphan in intended.iter().filter(|intended| intended.orphaned) {
        // Its writer may have counted it meanwhile, or another instance has deleted it.
        if totals.abandon(&orphan.file).await? {
            delete(&orphan.file, totals, files, metrics).await?;
        }
    }
    Ok(())
}

/// Deletes an abandoned file, then its announcement.
async fn delete(
    path: &str,
    totals: &dyn Totals,
    files: &FileStore,
    metrics: &Metrics,
) -> Result<(), CommitError> {
    files.delete(path).await?;
    totals.forget(path).await?;
    metrics.leftovers.inc();
    tracing::info!(
        file = path,
        "uncounted file deleted, its messages will be redelivered"
    );
    Ok(())
}
