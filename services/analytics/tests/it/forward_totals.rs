//! Totals that commit in their own way.

/// Implements [`Totals`](herald_store::Totals) for a type with the method `commit` of its own. All other calls go to the
/// named field.
macro_rules! forward_totals {
    ($type:ty, $field:ident, { $commit:item }) => {
        #[async_trait::async_trait]
        impl herald_store::Totals for $type {
            $commit

            async fn seen(&self, stream: &str, sequences: &[u64]) -> herald_store::Result<Vec<bool>> {
                self.$field.seen(stream, sequences).await
            }

            async fn counted(
                &self,
                chunks: &[herald_store::ChunkRef],
            ) -> herald_store::Result<Vec<herald_store::Counted>> {
                self.$field.counted(chunks).await
            }

            async fn intend(&self, file: &str, owner: &herald_store::Fence) -> herald_store::Result<()> {
                self.$field.intend(file, owner).await
            }

            async fn intended(&self) -> herald_store::Result<Vec<herald_store::IntendedFile>> {
                self.$field.intended().await
            }

            async fn abandon(&self, file: &str) -> herald_store::Result<bool> {
                self.$field.abandon(file).await
            }

            async fn forget(&self, file: &str) -> herald_store::Result<()> {
                self.$field.forget(file).await
            }

            async fn post_totals(
                &self,
                post: herald_model::PostId,
            ) -> herald_store::Result<Option<herald_store::PostTotals>> {
                self.$field.post_totals(post).await
            }

            async fn hour_totals(
                &self,
                start: u32,
                end: u32,
            ) -> herald_store::Result<Vec<(u32, herald_store::Counts)>> {
                self.$field.hour_totals(start, end).await
            }
        }
    };
}

pub(crate) use forward_totals;
