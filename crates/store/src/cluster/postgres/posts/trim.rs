//! Removal of request ids and posts that are past their retention.

use herald_model::{PostId, time::Timestamp};

use super::{
    PostgresPosts,
    texts::{Requests, decode},
};
use crate::{
    Result,
    cluster::postgres::{Attempt, keys},
    removed_posts::{RemovedPosts, STEP_MIN},
};

/// Maximum number of request ids that one statement removes.
const REQUESTS_MAX: i64 = 10_000;

/// Maximum number of posts that one transaction removes.
const POSTS_MAX: i64 = 2_000;

impl PostgresPosts {
    /// Removes request ids past their retention and returns their number.
    pub(crate) async fn trim(&self, now: Timestamp) -> Result<u64> {
        const TRIM: &str = "
            DELETE FROM herald.post_requests WHERE (author, request_id) IN (
                SELECT author, request_id FROM herald.post_requests WHERE at < $1 ORDER BY author, request_id
                LIMIT $2 FOR UPDATE
            )";
        let before = now.minus(self.request_keep);
        let mut removed = 0;
        loop {
            let trimmed = self
                .postgres
                .call("remove request ids past their retention", || async {
                    let trim = sqlx::query(TRIM).bind(before.0).bind(REQUESTS_MAX);
                    Ok(trim.execute(self.postgres.pool()).await?.rows_affected())
                })
                .await?;
            removed += trimmed;
            if trimmed == 0 {
                return Ok(removed);
            }
        }
    }

    /// Removes the posts that were accepted before a time, except the newest one, and returns their number.
    /// [`first_retained`](Self::first_retained) still answers for the time `ages_since` and later ones.
    pub(crate) async fn trim_posts(&self, before: Timestamp, ages_since: Timestamp) -> Result<u64> {
        let mut removed = self.removed().await?;
        if removed
            .last_moment()
            .is_none_or(|last| before.since(last) >= STEP_MIN)
            && let Some(last) = crate::Posts::last(self).await?
        {
            let first = self.first_retained(removed.first(), before).await?.min(last);
            if first > removed.first() {
                let unneeded = removed.hide(before, first, ages_since);
                self.hide_posts(before, first, &unneeded).await?;
            }
        }
        let first = keys::bigint(removed.first().0);
        let mut count = 0;
        loop {
            let some = self
                .postgres
                .call("remove posts past their retention", || self.remove_posts(first))
                .await?;
            count += some;
            if some < POSTS_MAX.cast_unsigned() {
                return Ok(count);
            }
        }
    }

    /// Reads which posts were removed.
    pub(super) async fn removed(&self) -> Result<RemovedPosts> {
        const SQL: &str = "SELECT accepted_before, first_post FROM herald.posts_removed";
        let rows: Vec<(i64, i64)> = self
            .postgres
            .call("read which posts were removed", || async {
                Ok(sqlx::query_as(SQL).fetch_all(self.postgres.pool()).await?)
            })
            .await?;
        let removals = rows
            .into_iter()
            .map(|(before, first)| Ok((Timestamp(before), keys::post(first)?)));
        removals.collect::<Result<_>>().map(RemovedPosts::new)
    }

    /// Records that the posts less than `first` are removed: messages about them are ignored from now on.
    async fn hide_posts(&self, before: Timestamp, first: PostId, unneeded: &[Timestamp]) -> Result<()> {
        const HIDE: &str = "
            INSERT INTO herald.posts_removed AS stored (accepted_before, first_post) VALUES ($1, $2)
            ON CONFLICT (accepted_before) DO UPDATE SET first_post = greatest(stored.first_post, excluded.first_post)";
        const FORGET: &str = "DELETE FROM herald.posts_removed WHERE accepted_before = ANY($1)";
        let unneeded: Vec<i64> = unneeded.iter().map(|moment| moment.0).collect();
        self.postgres
            .call("record which posts are removed", || async {
                let mut transaction = self.postgres.begin().await?;
                sqlx::query(HIDE)
                    .bind(before.0)
                    .bind(keys::bigint(first.0))
                    .execute(&mut *transaction)
                    .await?;
                sqlx::query(FORGET)
                    .bind(&unneeded)
                    .execute(&mut *transaction)
                    .await?;
                Ok(transaction.commit().await?)
            })
            .await
    }

    /// Removes rows of posts less than `first`, with their requests.
    async fn remove_posts(&self, first: i64) -> Attempt<u64> {
        const REMOVE: &str = "
            DELETE FROM herald.posts WHERE id IN (
                SELECT id FROM herald.posts WHERE id < $1 ORDER BY id LIMIT $2 FOR UPDATE
            ) RETURNING id, body";
        let mut transaction = self.postgres.begin().await?;
        let rows: Vec<(i64, Option<Vec<u8>>)> = sqlx::query_as(REMOVE)
            .bind(first)
            .bind(POSTS_MAX)
            .fetch_all(&mut *transaction)
            .await?;
        let mut requests = Requests::default();
        for (id, body) in &rows {
            if let Some(row) = body.as_ref().and_then(|body| decode(*id, body)) {
                requests.add(*id, &row);
            }
        }
        requests.remove(&mut transaction).await?;
        transaction.commit().await?;
        Ok(rows.len() as u64)
    }
}
