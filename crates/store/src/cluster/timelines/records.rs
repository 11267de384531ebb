//! The records in PostgreSQL from which timelines are made.

use std::collections::HashSet;

use herald_model::{Channel, PostId, Recipients, UserKey};

use crate::{
    Outcome, Result, SuppressedReason,
    cluster::postgres::{
        Attempt, Postgres, keys,
        ledger::{channel_number, row},
    },
    embedded::ledger::row::decode_outcome,
};

/// Number of the channel in the ledger's rows.
const TIMELINE: i16 = channel_number(Channel::Timeline);

/// Number of the newest posts that are searched first for a user's timeline. Each further search covers eight times as
/// many older ones.
const FIRST_WINDOW: u64 = 50_000;

/// Maximum number of posts whose chunks are read in one statement when chunks are delivered again.
const POSTS_PER_STATEMENT: u64 = 10_000;

/// Maximum number of backfills read in one statement.
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
    /// each follow interval at their pinned versions, except those that are dead or left out for the user, and the posts
    /// of backfills. `keeps` says whether the timeline gets a post that is not delivered yet.
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
            self.remove_undelivered(user, &mut found, &keeps).await?;
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
                    .bind(keys::bigint(start))
                    .bind(keys::bigint(end))
                    .bind(keys::limit(limit))
                    .fetch_all(self.postgres.pool())
                    .await?)
            })
            .await?;
        Ok(posts.into_iter().map(|post| post as u64).collect())
    }

    /// Removes the posts that are dead for a user, because no worker could deliver them, and those that are suppressed
    /// because the user drowns. `keeps` decides about posts without an outcome: the number of authors whom the user
    /// follows, and so the part of the posts that is kept, can have changed since a delivery.
    async fn remove_undelivered(
        &self,
        user: UserKey,
        posts: &mut Vec<u64>,
        keeps: impl Fn(u64) -> bool,
    ) -> Result<()> {
        const SQL: &str = "SELECT o.post, o.outcome FROM unnest($1::bigint[]) p
            JOIN herald.ledger_outcomes o ON o.post = p AND o.channel = $2
            WHERE (o.dead > 0 OR o.suppressed_by[$3] > 0) AND o.outcome IS NOT NULL";
        if posts.is_empty() {
            return Ok(());
        }
        let ids: Vec<i64> = posts.iter().map(|post| keys::bigint(*post)).collect();
        let rows: Vec<(i64, Vec<u8>)> = self
            .postgres
            .call("read the dead deliveries of a timeline", async || {
                Ok(sqlx::query_as(SQL)
                    .bind(&ids)
                    .bind(TIMELINE)
                    .bind(SuppressedReason::Drowning as i32)
                    .fetch_all(self.postgres.pool())
                    .await?)
            })
            .await?;
        let mut undelivered = HashSet::new();
        for (post, outcome) in rows {
            if let Outcome::Mixed { dead, details, .. } = decode_outcome(&outcome)?.outcome
                && (dead.contains(user) || details.suppressed(user) == Some(SuppressedReason::Drowning))
            {
                undelivered.insert(post);
            }
        }
        let in_doubt: Vec<i64> = ids
            .into_iter()
            .filter(|post| !undelivered.contains(post) && !keeps(*post as u64))
            .collect();
        let delivered = self.delivered(user, &in_doubt).await?;
        undelivered.extend(in_doubt.into_iter().filter(|post| !delivered.contains(post)));
        posts.retain(|post| !undelivered.contains(&keys::bigint(*post)));
        Ok(())
    }

    /// Those posts that are delivered to a user according to their outcomes.
    async fn delivered(&self, user: UserKey, posts: &[i64]) -> Result<HashSet<i64>> {
        const SQL: &str = "SELECT o.post, o.outcome, c.recipients, c.recipients_count
            FROM unnest($1::bigint[]) p
            JOIN herald.ledger_chunks c
                ON c.post = p AND c.channel = $2 AND c.first_user <= $3 AND c.last_user >= $3
            JOIN herald.ledger_outcomes o USING (post, channel, chunk)
            WHERE o.delivered > 0";
        if posts.is_empty() {
            return Ok(HashSet::new());
        }
        let rows: Vec<DeliveredChunk> = self
            .postgres
            .call("read the deliveries of a timeline", async || {
                Ok(sqlx::query_as(SQL)
                    .bind(posts)
                    .bind(TIMELINE)
                    .bind(i64::from(user.0))
                    .fetch_all(self.postgres.pool())
                    .await?)
            })
            .await?;
        let mut delivered = HashSet::new();
        for (post, outcome, recipients, count) in rows {
            if delivered_recipients(outcome, recipients, count)?.contains(user) {
                delivered.insert(post);
            }
        }
        Ok(delivered)
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

    /// Calls `each` with the posts and recipients of all timeline chunks that were delivered since a time of the workers'
    /// clocks, microseconds since 1970, in parts.
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
        let last = keys::bigint(self.last_post().await?);
        let mut start = first;
        while start <= last {
            let end = start + keys::bigint(POSTS_PER_STATEMENT);
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
                let recipients = delivered_recipients(outcome, recipients, count)?;
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
    /// clock, microseconds since 1970, in parts.
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
                let recipients = row::recipients(recipients, count)?;
                redeliveries.extend(posts.into_iter().map(|post| Redelivery {
                    post: PostId(post as u64),
                    recipients: recipients.clone(),
                }));
            }
            each(redeliveries).await?;
        }
    }
}

/// The delivered recipients of a chunk.
fn delivered_recipients(outcome: Option<Vec<u8>>, planned: Vec<u8>, count: i32) -> Result<Recipients> {
    let recorded = outcome.map(|outcome| decode_outcome(&outcome)).transpose()?;
    match recorded.map(|recorded| recorded.outcome) {
        Some(Outcome::Mixed { delivered, .. }) => Ok(delivered),
        Some(Outcome::Delivered { .. }) | None => row::recipients(planned, count),
    }
}
