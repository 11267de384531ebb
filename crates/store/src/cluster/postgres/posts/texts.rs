//! Removal of the texts of deleted posts.

use herald_model::{PostId, UserKey, time::Timestamp};
use prost::Message as _;

use super::PostgresPosts;
use crate::{
    Result,
    cluster::postgres::{Attempt, Transaction, keys},
    embedded::posts::row::Row,
};

/// Maximum number of posts whose texts one transaction removes.
const TEXTS_MAX: usize = 1_000;

impl PostgresPosts {
    /// Lists up to `limit` posts of an author, as [`Posts::of_author`](crate::Posts::of_author) does.
    pub(super) async fn texts_of(
        &self,
        author: UserKey,
        after: Option<PostId>,
        limit: usize,
    ) -> Result<Vec<PostId>> {
        // Each half has an index of its own.
        const SQL: &str = "
            (SELECT id FROM herald.posts
                WHERE author = $1 AND id > $2 AND body IS NOT NULL AND deleted_at IS NULL ORDER BY id LIMIT $3)
            UNION ALL
            (SELECT id FROM herald.posts
                WHERE author = $1 AND id > $2 AND body IS NOT NULL AND deleted_at IS NOT NULL AND NOT erased
                ORDER BY id LIMIT $3)
            ORDER BY id LIMIT $3";
        let after = after.map_or(-1, |after| keys::bigint(after.0));
        let ids: Vec<i64> = self
            .postgres
            .call("list the texts of an author", || async {
                let ids = sqlx::query_scalar(SQL)
                    .bind(i64::from(author.0))
                    .bind(after)
                    .bind(keys::limit(limit))
                    .fetch_all(self.postgres.pool());
                Ok(ids.await?)
            })
            .await?;
        ids.into_iter().map(keys::post).collect()
    }

    /// Removes texts as [`Posts::erase_texts`](crate::Posts::erase_texts) does.
    pub(super) async fn erase(&self, posts: &[i64]) -> Result<u64> {
        let mut erased = 0;
        for posts in posts.chunks(TEXTS_MAX) {
            erased += self
                .postgres
                .call("remove the texts of deleted posts", || self.erase_now(posts))
                .await?;
        }
        Ok(erased)
    }

    async fn erase_now(&self, posts: &[i64]) -> Attempt<u64> {
        const READ: &str = "
            SELECT id, body FROM herald.posts
            WHERE id = ANY($1) AND body IS NOT NULL AND deleted_at IS NOT NULL AND NOT erased ORDER BY id FOR UPDATE";
        const ERASE: &str = "
            UPDATE herald.posts SET body = n.body, erased = true
            FROM unnest($1::bigint[], $2::bytea[]) AS n (id, body) WHERE posts.id = n.id";
        let mut transaction = self.postgres.begin().await?;
        let rows: Vec<(i64, Vec<u8>)> = sqlx::query_as(READ)
            .bind(posts)
            .fetch_all(&mut *transaction)
            .await?;
        let (mut ids, mut bodies) = (Vec::with_capacity(rows.len()), Vec::with_capacity(rows.len()));
        let mut requests = Requests::default();
        for (id, body) in rows {
            let Some(row) = decode(id, &body) else { continue };
            requests.add(id, &row);
            ids.push(id);
            bodies.push(row.erased().encode_to_vec());
        }
        if ids.is_empty() {
            return Ok(0);
        }
        sqlx::query(ERASE)
            .bind(&ids)
            .bind(&bodies)
            .execute(&mut *transaction)
            .await?;
        requests.remove(&mut transaction).await?;
        transaction.commit().await?;
        Ok(ids.len() as u64)
    }

    /// Removes the texts of damaged posts as [`Posts::erase_damaged`](crate::Posts::erase_damaged) does.
    pub(super) async fn erase_damaged_of(
        &self,
        author: UserKey,
        posts: &[i64],
        at: Timestamp,
    ) -> Result<Vec<PostId>> {
        let mut erased = Vec::new();
        for posts in posts.chunks(TEXTS_MAX) {
            let damaged = self
                .postgres
                .call("remove the texts of damaged posts", || {
                    self.erase_damaged_now(author, posts, at)
                })
                .await?;
            erased.extend(damaged);
        }
        erased.sort_unstable();
        Ok(erased)
    }

    async fn erase_damaged_now(&self, author: UserKey, posts: &[i64], at: Timestamp) -> Attempt<Vec<PostId>> {
        const READ: &str = "
            SELECT id, body, accepted_at FROM herald.posts WHERE id = ANY($1) AND author = $2 AND body IS NOT NULL
            ORDER BY id FOR UPDATE";
        const ERASE: &str = "
            UPDATE herald.posts SET body = n.body, erased = true, deleted_at = coalesce(deleted_at, $3)
            FROM unnest($1::bigint[], $2::bytea[]) AS n (id, body) WHERE posts.id = n.id";
        // The request ids can't be read from the posts.
        const REQUESTS: &str = "DELETE FROM herald.post_requests WHERE author = $1 AND post = ANY($2)";
        let mut transaction = self.postgres.begin().await?;
        let rows: Vec<(i64, Vec<u8>, Option<i64>)> = sqlx::query_as(READ)
            .bind(posts)
            .bind(i64::from(author.0))
            .fetch_all(&mut *transaction)
            .await?;
        let (mut erased, mut ids, mut bodies) = (Vec::new(), Vec::new(), Vec::new());
        for (id, body, accepted_at) in rows {
            let post = keys::post(id)?;
            if Row::is_damaged(post, &body) {
                let row = Row::erased_damaged(author, Timestamp(accepted_at.unwrap_or(0)));
                erased.push(post);
                ids.push(id);
                bodies.push(row.encode_to_vec());
            }
        }
        if ids.is_empty() {
            return Ok(erased);
        }
        sqlx::query(ERASE)
            .bind(&ids)
            .bind(&bodies)
            .bind(at.0)
            .execute(&mut *transaction)
            .await?;
        sqlx::query(REQUESTS)
            .bind(i64::from(author.0))
            .bind(&ids)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(erased)
    }

    /// Removes the texts of the posts that were deleted before a time, and returns their number.
    pub(crate) async fn trim_texts(&self, before: Timestamp) -> Result<u64> {
        const SQL: &str = "
            SELECT deleted_at, id FROM herald.posts
            WHERE body IS NOT NULL AND deleted_at IS NOT NULL AND NOT erased AND deleted_at < $1
                AND (deleted_at, id) > ($2, $3)
            ORDER BY deleted_at, id LIMIT $4";
        let mut erased = 0;
        // Pages by key, because damaged posts keep their texts and would be found again.
        let mut after = (i64::MIN, -1);
        loop {
            let found: Vec<(i64, i64)> = self
                .postgres
                .call("find the texts past their retention", || async {
                    let found = sqlx::query_as(SQL)
                        .bind(before.0)
                        .bind(after.0)
                        .bind(after.1)
                        .bind(keys::limit(TEXTS_MAX))
                        .fetch_all(self.postgres.pool());
                    Ok(found.await?)
                })
                .await?;
            let Some(last) = found.last() else {
                return Ok(erased);
            };
            after = *last;
            let posts: Vec<i64> = found.into_iter().map(|(_, post)| post).collect();
            erased += self.erase(&posts).await?;
        }
    }
}

/// The requests of posts that are removed.
#[derive(Default)]
pub(super) struct Requests {
    authors: Vec<i64>,
    ids: Vec<Vec<u8>>,
    posts: Vec<i64>,
}

impl Requests {
    /// Adds the request of a post.
    pub(super) fn add(&mut self, post: i64, row: &Row) {
        self.authors.push(row.author.into());
        self.ids.push(row.request_id.as_bytes().to_vec());
        self.posts.push(post);
    }

    /// Removes the request ids, except those that stand for other posts by now.
    pub(super) async fn remove(&self, transaction: &mut Transaction) -> Attempt<()> {
        const SQL: &str = "
            DELETE FROM herald.post_requests r USING unnest($1::bigint[], $2::bytea[], $3::bigint[]) AS n (author, id, post)
            WHERE r.author = n.author AND r.request_id = n.id AND r.post = n.post";
        sqlx::query(SQL)
            .bind(&self.authors)
            .bind(&self.ids)
            .bind(&self.posts)
            .execute(&mut **transaction)
            .await?;
        Ok(())
    }
}

/// Decodes a post whose text or row is removed; logs a damaged one.
pub(super) fn decode(post: i64, body: &[u8]) -> Option<Row> {
    Row::decode(body)
        .inspect_err(|error| {
            tracing::error!(post_id = post, %error, "can't decode a damaged post: its text or request id stays");
        })
        .ok()
}
