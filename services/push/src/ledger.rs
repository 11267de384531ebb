//! A chunk in the ledger: its claim, and the record of its progress.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use herald_model::{Channel, time::Timestamp};
use herald_store::{ErrorKind, ExpectedRevision, Settlement};
use tracing::debug;

use crate::{
    claim::Claim,
    domain::Progress,
    error::AttemptError,
    handler::{Chunk, PushHandler},
};

impl PushHandler {
    /// Claims the chunk in the ledger for `lease`. Without the claim nothing may be sent: a ledger that can't be written
    /// would not know of the pushes, and another worker may be sending them.
    pub(crate) async fn claim(
        &self,
        chunk: &Chunk,
        progress: &mut Progress,
        lease: Duration,
    ) -> Result<Arc<Claim>, AttemptError> {
        let from = Instant::now();
        if herald_failpoints::negative_control!("push.unclaimed") {
            return Ok(Arc::new(Claim::new(Duration::from_hours(1), from)));
        }
        let claimed = self
            .ledger
            .claim(chunk.post, Channel::Push, chunk.id, progress.revision(), lease);
        match claimed.await.map_err(AttemptError::from) {
            Ok(revision) => {
                self.metrics.count_claim("granted");
                progress.mark_claimed(revision);
            }
            Err(error) => {
                if error.is_claimed() {
                    self.metrics.count_claim("refused");
                }
                return Err(error);
            }
        }
        Ok(Arc::new(Claim::new(lease, from)))
    }

    /// Extends the claim. It is lost if that fails.
    pub(crate) async fn extend_claim(
        &self,
        chunk: &Chunk,
        progress: &Progress,
        claim: &Claim,
    ) -> Result<(), AttemptError> {
        if herald_failpoints::negative_control!("push.unclaimed") {
            return Ok(());
        }
        let from = Instant::now();
        let extended = self.ledger.extend_claim(
            chunk.post,
            Channel::Push,
            chunk.id,
            progress.revision(),
            claim.lease(),
        );
        match extended.await {
            Ok(()) => claim.extend(from),
            Err(error) => {
                claim.lose();
                return Err(error.into());
            }
        }
        if claim.lasts() {
            Ok(())
        } else {
            Err(AttemptError::ClaimEnded)
        }
    }

    /// Ends a claim without an outcome, so that nobody has to wait for its lease.
    pub(crate) async fn release_claim(&self, chunk: &Chunk, progress: &Progress) {
        let released = self
            .ledger
            .release_claim(chunk.post, Channel::Push, chunk.id, progress.revision());
        if let Err(error) = released.await {
            debug!(%error, post_id = chunk.post.0, chunk_id = %chunk.id, "claim not released; its lease ends by itself");
        }
    }

    /// Records the progress in the ledger if it has changed. With `keep`, the claim goes on; without it, it ends.
    pub(crate) async fn record(
        &self,
        chunk: &Chunk,
        progress: &mut Progress,
        keep: Option<&Claim>,
    ) -> Result<(), AttemptError> {
        if !progress.is_changed() {
            return Ok(());
        }
        let from = Instant::now();
        let mut settlement = Settlement {
            post: chunk.post,
            channel: Channel::Push,
            chunk: chunk.id,
            base: ExpectedRevision::Revision(progress.revision()),
            outcome: progress.outcome(),
            at: Timestamp::now(),
            keep_claim: keep.map(Claim::lease),
        };
        let mut settled = self.ledger.settle(&settlement).await;
        if matches!(&settled, Err(error) if error.kind() == ErrorKind::Conflict)
            && self.was_recorded_before(chunk, progress).await?
        {
            settlement.base = ExpectedRevision::Revision(progress.revision());
            settled = self.ledger.settle(&settlement).await;
        }
        match settled {
            Ok(revision) => {
                progress.mark_recorded(revision);
                if let Some(claim) = keep {
                    claim.extend(from);
                }
                Ok(())
            }
            Err(error) => {
                if error.kind() != ErrorKind::Conflict {
                    progress.mark_uncertain(settlement.outcome);
                }
                Err(error.into())
            }
        }
    }

    /// Whether a record that failed was written all the same. Then the progress is at its revision.
    async fn was_recorded_before(
        &self,
        chunk: &Chunk,
        progress: &mut Progress,
    ) -> Result<bool, AttemptError> {
        if !progress.is_uncertain() {
            return Ok(false);
        }
        let recorded = self.ledger.outcome(chunk.post, Channel::Push, chunk.id).await?;
        Ok(recorded.is_some_and(|recorded| progress.resolve_uncertain(&recorded)))
    }
}
