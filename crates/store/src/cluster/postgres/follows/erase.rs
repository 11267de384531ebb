//! Removal of the follows of an erased user, also of those whose numbers are none of a user, or that contradict each
//! other.

use herald_model::UserKey;

use super::PostgresFollows;
use crate::{FollowChange, Follows as _, Result, cluster::postgres::keys};

/// Follows removed by a statement.
const BATCH: usize = 10_000;

/// Empties the row of the user, whose earlier versions count as trimmed.
const EMPTY: &str = "
    UPDATE herald.follow_authors SET version = greatest(version, 0) + 1, trimmed_version = greatest(version, 0) + 1,
        followers = 0, notify = 0
    WHERE author = $1 RETURNING version";

/// Removes some of the edges that the current version, `$2`, has.
const REMOVE_FOLLOWERS: &str = "
    DELETE FROM herald.follow_edges WHERE (author, follower, since) IN (
        SELECT author, follower, since FROM herald.follow_edges
        WHERE author = $1 AND (until IS NULL OR until > $2) LIMIT $3
    )";

/// Removes the edges to numbers above that of any user.
const REMOVE_IMPOSSIBLE: &str = "
    DELETE FROM herald.follow_edges WHERE follower = $1 AND author > $2 AND until IS NULL";

impl PostgresFollows {
    /// Removes the followers of a user.
    pub(super) async fn erase_followers(&self, user: UserKey) -> Result<u64> {
        let version: Option<i64> = self
            .postgres
            .call("empty the followers of a user", || async {
                let emptied = sqlx::query_scalar(EMPTY)
                    .bind(i64::from(user.0))
                    .fetch_optional(self.postgres.pool());
                Ok(emptied.await?)
            })
            .await?;
        let mut removed = 0;
        loop {
            let some = self
                .postgres
                .call("remove the followers of a user", || async {
                    let remove = sqlx::query(REMOVE_FOLLOWERS)
                        .bind(i64::from(user.0))
                        .bind(version.unwrap_or(0))
                        .bind(keys::limit(BATCH));
                    Ok(remove.execute(self.postgres.pool()).await?.rows_affected())
                })
                .await?;
            removed += some;
            if some == 0 {
                return Ok(removed);
            }
        }
    }

    /// Removes the follows of a user.
    pub(super) async fn erase_following(&self, user: UserKey) -> Result<u64> {
        let mut removed = self
            .postgres
            .call("remove damaged follows of a user", || async {
                let remove = sqlx::query(REMOVE_IMPOSSIBLE)
                    .bind(i64::from(user.0))
                    .bind(i64::from(u32::MAX));
                Ok(remove.execute(self.postgres.pool()).await?.rows_affected())
            })
            .await?;
        loop {
            let page = self.following(user, None, BATCH).await?;
            if page.is_empty() {
                return Ok(removed);
            }
            let changes = page.iter().map(|one| FollowChange::unfollow(user, one.author));
            let effects = self.apply(&changes.collect::<Vec<_>>()).await?;
            removed += effects.iter().filter(|effect| effect.changed).count() as u64;
        }
    }
}
