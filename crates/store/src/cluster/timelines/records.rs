//! The records in PostgreSQL from which timelines are made.

use bytes::Bytes;
use herald_model::{PostId, Recipients, UserKey};

use crate::{
    Error, ErrorKind, Outcome, Result,
    cluster::postgres::{Attempt, Postgres},
    embedded::ledger::row::decode_outcome,
};

/// Number of the channel in the ledger's rows.
const TIMELINE: i16 = 0;

/// Posts that the first look for a user's timeline covers. Each further look covers eight times as many.
const FIRST_WINDOW: u64 = 50_000;

/// Posts whose chunks are read in one statement when chunks are delivered again.
const POSTS_PER_STATEMENT: u64 = 10_000;

/// Backfills read in one statement.
const BACKFILLS_PER_STATEMENT: i64 = 1_000;

/// Post, outcome, recipients of the plan, their number.
type DeliveredChunk = (i64, Option<Vec<u8>>, Vec<u8>, i32);

/// Reads records.
#[derive(Clone)]
pub(super) struct Records {
    postgres: Postgres,
}

/// A post with recipients to deliver it to again.
pub(super) struct Redelivery {
    pub(super) post: PostId,
    pub(super) recipients: Recipients,
}

impl Records {
    pub(super) fn new(postgres: &Postgres) -> Self {
        Self {
            postgres: postgres.clone(),
        }
    }

    /// The identity of the installation.
    pub(super) async fn store_id(&self) -> Result<String> {
        const SQL: &str = "SELECT left(id::text, 8) FROM herald.store";
        self.postgres
            .call("read the id of the store", async || {
                Ok(sqlx::query_scalar(SQL).fetch_one(self.postgres.pool()).await?)
            })
            .await
    }

    /// The newest `limit` posts, not less than `oldest`, that a user's timeline must have, in any order: the posts of
    /// each follow interval at their pinned versions, except those that are dead for the user, and the posts of
    /// backfills. `keeps` says whether the timeline gets a post.
    pub(super) async fn posts_of(
        &self,
        user: UserKey,
        oldest: u64,
        limit: usize,
        keeps: impl Fn(u64) -> bool + Sync,
    ) -> Result<Vec<u64>> {
        let mut posts = self.backfilled(user).await?;
        posts.retain(|post| *post >= oldest && keeps(*post));
        posts.sort_unstable_by(|a, b| b.cmp(a));
        posts.dedup();
        posts.truncate(limit);
        let mut planned = 0;
        let mut end = u64::MAX >> 1;
        let mut window = FIRST_WINDOW;
        let mut start = self.last_post().await?.saturating_sub(window).max(oldest);
        loop {
            let mut found = self.planned(user, start, end, limit - planned).await?;
            let full = found.len() >= limit - planned;
            let last = found.last().copied();
            self.remove_dead(user, &mut found).await?;
            found.retain(|post| keeps(*post));
            planned += found.len();
            posts.extend(found);
            if planned >= limit {
                return Ok(posts);
            }
            match last {
                // There may be more in this window.
                Some(last) if full => end = last,
                _ if start <= oldest => return Ok(posts),
                _ => {
                    end = start;
                    window = window.saturating_mul(8);
                    start = start.saturating_sub(window).max(oldest);
                }
            }
        }
    }

    async fn last_post(&self) -> Result<u64> {
        // The last slice of a plan can be pinned before the post is archived.
        const SQL: &str = "SELECT greatest((SELECT max(id) FROM herald.posts), (SELECT max(post) FROM herald.ledger_slices))";
        let post: Option<i64> = self
            .postgres
            .call("read the last post", async || {
                Ok(sqlx::query_scalar(SQL).fetch_one(self.postgres.pool()).await?)
            })
            .await?;
        Ok(post.and_then(|post| post.try_into().ok()).unwrap_or(0))
    }

    /// The newest planned posts of a user from `start` to before `end`, descending.
    async fn planned(&self, user: UserKey, start: u64, end: u64, limit: usize) -> Result<Vec<u64>> {
        const SQL: &str = "SELECT p.post FROM herald.follow_edges e
            CROSS JOIN LATERAL (
                SELECT p.post FROM herald.pinned_posts p
                WHERE p.author = e.author AND p.post >= $2 AND p.post < $3
                    AND p.version >= e.since AND (e.until IS NULL OR p.version < e.until)
                ORDER BY p.post DESC LIMIT $4
            ) p
            WHERE e.follower = $1 ORDER BY p.post DESC LIMIT $4";
        let posts: Vec<i64> = self
            .postgres
            .call("read the posts of a timeline", async || {
                Ok(sqlx::query_scalar(SQL)
                    .bind(i64::from(user.0))
                    .bind(id(start))
                    .bind(id(end))
                    .bind(i64::try_from(limit).unwrap_or(i64::MAX))
                    .fetch_all(self.postgres.pool())
                    .await?)
            })
            .await?;
        Ok(posts.into_iter().map(|post| post as u64).collect())
    }

    /// Removes the posts that are dead for a user: no worker could deliver them.
    async fn remove_dead(&self, user: UserKey, posts: &mut Vec<u64>) -> Result<()> {
        const SQL: &str = "SELECT o.post, o.outcome FROM unnest($1::bigint[]) p
            JOIN herald.ledger_outcomes o ON o.post = p AND o.channel = $2
            WHERE o.dead > 0 AND o.outcome IS NOT NULL";
        if posts.is_empty() {
            return Ok(());
        }
        let ids: Vec<i64> = posts.iter().map(|post| id(*post)).collect();
        let rows: Vec<(i64, Vec<u8>)> = self
            .postgres
            .call("read the dead deliveries of a timeline", async || {
                Ok(sqlx::query_as(SQL)
                    .bind(&ids)
                    .bind(TIMELINE)
                    .fetch_all(self.postgres.pool())
                    .await?)
            })
            .await?;
        for (post, outcome) in rows {
            if let Outcome::Mixed { dead, .. } = decode_outcome(&outcome)?.outcome
                && dead.contains(user)
            {
                posts.retain(|other| id(*other) != post);
            }
        }
        Ok(())
    }

    async fn backfilled(&self, user: UserKey) -> Result<Vec<u64>> {
        const SQL: &str = "SELECT b.posts FROM herald.backfill_recipients r
            JOIN herald.backfills b ON b.id = r.backfill WHERE r.recipient = $1";
        let rows: Vec<Vec<i64>> = self
            .postgres
            .call("read the backfills of a timeline", async || {
                Ok(sqlx::query_scalar(SQL)
                    .bind(i64::from(user.0))
                    .fetch_all(self.postgres.pool())
                    .await?)
            })
            .await?;
        Ok(rows.into_iter().flatten().map(|post| post as u64).collect())
    }

    /// Calls `each` with the posts and recipients of all timeline chunks that were delivered since a time, in parts.
    pub(super) async fn delivered_since<F>(
        &self,
        since: i64,
        mut each: impl FnMut(Vec<Redelivery>) -> F,
    ) -> Result<()>
    where
        F: Future<Output = Result<()>>,
    {
        const FIRST: &str = "SELECT min(post) FROM herald.ledger_outcomes";
        const SQL: &str = "SELECT o.post, o.outcome, c.recipients, c.recipients_count
            FROM herald.ledger_outcomes o
            JOIN herald.ledger_chunks c USING (post, channel, chunk)
            WHERE o.post >= $1 AND o.post < $2 AND o.channel = $3 AND o.last_delivered_at >= $4";
        let first: Option<i64> = self
            .postgres
            .call("read the first outcome", async || {
                Ok(sqlx::query_scalar(FIRST).fetch_one(self.postgres.pool()).await?)
            })
            .await?;
        let Some(first) = first else { return Ok(()) };
        let last = id(self.last_post().await?);
        let mut start = first;
        while start <= last {
            let end = start + id(POSTS_PER_STATEMENT);
            let rows: Vec<DeliveredChunk> = self
                .postgres
                .call("read the delivered chunks", async || {
                    Ok(sqlx::query_as(SQL)
                        .bind(start)
                        .bind(end)
                        .bind(TIMELINE)
                        .bind(since)
                        .fetch_all(self.postgres.pool())
                        .await?)
                })
                .await?;
            let mut redeliveries = Vec::with_capacity(rows.len());
            for (post, outcome, recipients, count) in rows {
                let recipients = match outcome.map(|outcome| decode_outcome(&outcome)).transpose()? {
                    Some(recorded) => match recorded.outcome {
                        Outcome::Mixed { delivered, .. } => delivered,
                        Outcome::Delivered { .. } => read_recipients(recipients, count)?,
                    },
                    None => read_recipients(recipients, count)?,
                };
                redeliveries.push(Redelivery {
                    post: PostId(post as u64),
                    recipients,
                });
            }
            each(redeliveries).await?;
            start = end;
        }
        Ok(())
    }

    /// Calls `each` with the posts and recipients of the backfills that were recorded since a time of PostgreSQL's
    /// clock, in parts.
    pub(super) async fn backfilled_since<F>(
        &self,
        since: i64,
        mut each: impl FnMut(Vec<Redelivery>) -> F,
    ) -> Result<()>
    where
        F: Future<Output = Result<()>>,
    {
        const SQL: &str = "SELECT id, posts, recipients, recipients_count FROM herald.backfills
            WHERE id > $1 AND at >= to_timestamp($2::double precision / 1000000) ORDER BY id LIMIT $3";
        let mut after = -1;
        loop {
            let rows: Vec<(i64, Vec<i64>, Vec<u8>, i32)> = self
                .postgres
                .call("read the backfills", async || {
                    let rows = sqlx::query_as(SQL)
                        .bind(after)
                        .bind(since)
                        .bind(BACKFILLS_PER_STATEMENT)
                        .fetch_all(self.postgres.pool());
                    Attempt::Ok(rows.await?)
                })
                .await?;
            let Some((last, ..)) = rows.last() else {
                return Ok(());
            };
            after = *last;
            let mut redeliveries = Vec::new();
            for (_, posts, recipients, count) in rows {
                let recipients = read_recipients(recipients, count)?;
                redeliveries.extend(posts.into_iter().map(|post| Redelivery {
                    post: PostId(post as u64),
                    recipients: recipients.clone(),
                }));
            }
            each(redeliveries).await?;
        }
    }
}

fn id(post: u64) -> i64 {
    i64::try_from(post).unwrap_or(i64::MAX)
}

fn read_recipients(bytes: Vec<u8>, count: i32) -> Result<Recipients> {
    Recipients::decode(Bytes::from(bytes), u32::try_from(count).unwrap_or(0)).map_err(|e| {
        Error::with_source(
            ErrorKind::Corrupt,
            "the recipients of a chunk in the ledger are malformed",
            e,
        )
    })
}
