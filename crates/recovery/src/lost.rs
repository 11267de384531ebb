//! Finds the posts that neither POSTS nor the store has.

use herald_model::PostId;
use herald_store::Stores;

use crate::Result;

/// Posts that are looked up at once.
const BATCH: usize = 1_024;

/// The posts after a sequence of POSTS that the ledger has, because fan-out planned their deliveries, and the archive
/// lacks; ascending. Posts that the archive has removed for their age are not among them.
pub(crate) async fn lost_posts(stores: &Stores, after: u64) -> Result<Vec<PostId>> {
    let oldest = stores.posts.list(None, 1).await?;
    let oldest = oldest.first().map_or(0, |post| post.0);
    let mut after = PostId(after.max(oldest.saturating_sub(1)));
    let mut lost = Vec::new();
    loop {
        let planned = stores.ledger.posts(Some(after), BATCH).await?;
        let Some(last) = planned.last() else {
            return Ok(lost);
        };
        after = *last;
        let stored = stores.posts.get(&planned).await?;
        let missing = planned.into_iter().zip(stored).filter(|(_, post)| post.is_none());
        lost.extend(missing.map(|(post, _)| post));
    }
}
