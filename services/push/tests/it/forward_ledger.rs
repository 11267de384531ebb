//! Ledgers that answer some calls in their own way.

/// Implements [`Ledger`](herald_store::Ledger) for a type with the methods `claim`, `settle` and `extend_claim` of its
/// own. All other calls go to the field `ledger`.
macro_rules! forward_ledger {
    ($type:ty, { $($own:item)* }) => {
        #[async_trait::async_trait]
        impl herald_store::Ledger for $type {
            $($own)*

            async fn plan(
                &self,
                plan: herald_store::SlicePlan,
            ) -> herald_store::Result<herald_store::SlicePlan> {
                self.ledger.plan(plan).await
            }

            async fn release_claim(
                &self,
                post: herald_model::PostId,
                channel: herald_model::Channel,
                chunk: herald_model::ChunkId,
                revision: u64,
            ) -> herald_store::Result<()> {
                self.ledger.release_claim(post, channel, chunk, revision).await
            }

            async fn mark_dead(
                &self,
                dead: &herald_store::DeadMessage,
                at: herald_model::time::Timestamp,
            ) -> herald_store::Result<Option<herald_store::MarkedDead>> {
                self.ledger.mark_dead(dead, at).await
            }

            async fn record_backfill(
                &self,
                posts: &[herald_model::PostId],
                recipients: &herald_model::Recipients,
            ) -> herald_store::Result<()> {
                self.ledger.record_backfill(posts, recipients).await
            }

            async fn outcome(
                &self,
                post: herald_model::PostId,
                channel: herald_model::Channel,
                chunk: herald_model::ChunkId,
            ) -> herald_store::Result<Option<herald_store::RecordedOutcome>> {
                self.ledger.outcome(post, channel, chunk).await
            }

            async fn counts(
                &self,
                post: herald_model::PostId,
            ) -> herald_store::Result<Option<herald_store::PostCounts>> {
                self.ledger.counts(post).await
            }

            async fn recipients(
                &self,
                post: herald_model::PostId,
                channel: herald_model::Channel,
                state: Option<herald_model::DeliveryState>,
                after: Option<herald_model::UserKey>,
                limit: usize,
            ) -> herald_store::Result<Vec<herald_store::RecipientStatus>> {
                self.ledger.recipients(post, channel, state, after, limit).await
            }

            async fn posts(
                &self,
                after: Option<herald_model::PostId>,
                limit: usize,
            ) -> herald_store::Result<Vec<herald_model::PostId>> {
                self.ledger.posts(after, limit).await
            }

            async fn audit(
                &self,
                post: herald_model::PostId,
            ) -> herald_store::Result<Option<herald_store::PostPlan>> {
                self.ledger.audit(post).await
            }
        }
    };
}

pub(crate) use forward_ledger;
