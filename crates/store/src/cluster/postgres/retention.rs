//! Retention: removing data that is older than its configured age.
//!
//! Rows are removed in bounded statements ([`removal`](super::removal)), the ledger partition by partition.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::future::BoxFuture;
use herald_model::{PostId, time::Timestamp};

use super::{
    Postgres, PostgresFollows, PostgresPosts, keys, ledger,
    removal::{remove, remove_except},
};
use crate::{
    ClockCheck, Result,
    cluster::Config,
    embedded::dead_letters::row::{OPERATION_STATES, STATES, variant_number},
    retention_clock::SeenClock,
};

/// Tells the timelines the oldest post that they show.
pub(crate) type RaiseOldestShown = Box<dyn Fn(PostId) -> BoxFuture<'static, Result<()>> + Send + Sync>;

/// The cluster engine's [`Retention`](crate::Retention).
pub(crate) struct PostgresRetention {
    postgres: Postgres,
    follows: Arc<PostgresFollows>,
    posts: Arc<PostgresPosts>,
    raise_oldest_shown: RaiseOldestShown,
    /// Retention of posts on timelines, from their acceptance.
    timeline_keep: Duration,
    /// Retention of the ledger, from the acceptance of a post, and of dead letters, from their arrival.
    ledger_keep: Duration,
    /// Retention of operations on dead letters.
    dead_letter_operation_keep: Duration,
    /// Retention of the texts of deleted posts, from the deletion.
    deleted_text_keep: Duration,
    /// Retention of posts, from their acceptance.
    post_keep: Option<Duration>,
}

impl PostgresRetention {
    pub(crate) fn new(
        postgres: &Postgres,
        config: &Config,
        follows: Arc<PostgresFollows>,
        posts: Arc<PostgresPosts>,
        raise_oldest_shown: RaiseOldestShown,
    ) -> Self {
        let days = |days: u64| Duration::from_secs(days.saturating_mul(86_400));
        Self {
            postgres: postgres.clone(),
            follows,
            posts,
            raise_oldest_shown,
            timeline_keep: days(config.timeline_keep_days),
            ledger_keep: days(config.ledger_keep_days),
            dead_letter_operation_keep: days(config.dead_letter_operation_keep_days),
            deleted_text_keep: Duration::from_secs(config.deleted_text_keep_hours.saturating_mul(3_600)),
            post_keep: config.post_keep_days.map(days),
        }
    }

    /// A dead-lettered event can be redriven as long as its dead letter exists, and its chunks must not be counted again.
    fn counted_keep(&self) -> Duration {
        2 * self.ledger_keep
    }

    /// The first post that is not trimmed yet.
    async fn first(&self, sql: &'static str) -> Result<PostId> {
        let first: i64 = self
            .postgres
            .call("find the first post that is not trimmed", async || {
                Ok(sqlx::query_scalar(sql).fetch_one(self.postgres.pool()).await?)
            })
            .await?;
        Ok(PostId(keys::number(first)?))
    }

    async fn trim_totals(&self, now: Timestamp) -> Result<u64> {
        const CHUNKS: &str = "
            DELETE FROM herald.totals_chunks WHERE (post, channel, chunk) IN (
                SELECT post, channel, chunk FROM herald.totals_chunks WHERE post < $1
                ORDER BY post, channel, chunk LIMIT $2
            )";
        const SEEN: &str = "
            DELETE FROM herald.totals_seen WHERE (stream, page) IN (
                SELECT stream, page FROM herald.totals_seen
                WHERE changed_at < now() - $1 * interval '1 second' ORDER BY stream, page LIMIT $2
            ) AND changed_at < now() - $1 * interval '1 second'";
        let first = self
            .first("SELECT coalesce((SELECT post FROM herald.totals_chunks ORDER BY post LIMIT 1), 0)")
            .await?;
        let oldest = self
            .posts
            .first_retained(first, now.minus(self.counted_keep()))
            .await?;
        let keep_s = self.counted_keep().as_secs().cast_signed();
        Ok(
            remove(&self.postgres, "counted chunks", CHUNKS, oldest.0.cast_signed()).await?
                + remove(&self.postgres, "counted messages", SEEN, keep_s).await?,
        )
    }

    async fn trim_dead_letters(&self, now: Timestamp) -> Result<u64> {
        // A running redrive still needs the dead letter to record its outcome.
        const DEAD_LETTERS: &str = "
            DELETE FROM herald.dead_letters WHERE id IN (
                SELECT id FROM herald.dead_letters WHERE stored_at < $1 AND state <> $3
                ORDER BY stored_at LIMIT $2
            ) AND state <> $3";
        const OPERATIONS: &str = "
            DELETE FROM herald.dead_letter_operations WHERE id IN (
                SELECT id FROM herald.dead_letter_operations WHERE at < $1 AND state <> $3 ORDER BY id LIMIT $2
            )";
        let redriving = variant_number(&STATES, &crate::DeadLetterState::Redriving);
        let running = variant_number(&OPERATION_STATES, &crate::OperationState::Running);
        let removals = [
            ("dead letters", DEAD_LETTERS, self.ledger_keep, redriving),
            (
                "operations on dead letters",
                OPERATIONS,
                self.dead_letter_operation_keep,
                running,
            ),
        ];
        let mut removed = 0;
        for (what, statement, keep, state) in removals {
            removed +=
                remove_except(&self.postgres, what, statement, now.minus(keep).0, state as i16).await?;
        }
        Ok(removed)
    }

    /// Removes leases of processes that are gone for good, such as those of replaced pods.
    async fn trim_leases(&self) -> Result<u64> {
        const SQL: &str = "
            DELETE FROM herald.leases WHERE name IN (
                SELECT name FROM herald.leases
                WHERE greatest(ends_at, changed_at) < now() - $1 * interval '1 second' ORDER BY name LIMIT $2
            ) AND greatest(ends_at, changed_at) < now() - $1 * interval '1 second'";
        remove(
            &self.postgres,
            "ended leases",
            SQL,
            self.counted_keep().as_secs().cast_signed(),
        )
        .await
    }
}

#[async_trait]
impl crate::Retention for PostgresRetention {
    async fn trim(&self, now: Timestamp) -> Result<()> {
        let follows = self.follows.trim(now).await?;
        let requests = self.posts.trim(now).await?;
        let first = self
            .first("SELECT oldest_kept FROM herald.timelines_retention")
            .await?;
        let oldest_shown = self
            .posts
            .first_retained(first, now.minus(self.timeline_keep))
            .await?;
        (self.raise_oldest_shown)(oldest_shown).await?;
        let pins = ledger::trim::pins(&self.postgres, oldest_shown).await?;
        let first = self.first("SELECT first_post FROM herald.ledger_trim").await?;
        let oldest_recorded = self
            .posts
            .first_retained(first, now.minus(self.ledger_keep))
            .await?;
        let ledger_tables = ledger::trim::partitions(&self.postgres, oldest_recorded).await?;
        let oldest_backfilled = oldest_shown.min(oldest_recorded);
        let backfills = ledger::trim::backfills(&self.postgres, oldest_backfilled).await?;
        let totals = self.trim_totals(now).await?;
        let dead_letters = self.trim_dead_letters(now).await?;
        let leases = self.trim_leases().await?;
        let metrics = self.postgres.metrics();
        let texts = self.posts.trim_texts(now.minus(self.deleted_text_keep)).await?;
        metrics.add_removed("texts", texts);
        let posts = match self.post_keep {
            Some(keep) => {
                let counted_since = now.minus(self.counted_keep());
                self.posts.trim_posts(now.minus(keep), counted_since).await?
            }
            None => 0,
        };
        metrics.add_removed("posts", posts);
        let rows = texts
            + posts
            + follows.versions
            + follows.edges
            + requests
            + pins
            + backfills
            + totals
            + dead_letters;
        if rows + ledger_tables + leases > 0 {
            tracing::debug!(
                versions = follows.versions,
                ended_follows = follows.edges,
                requests,
                pins,
                ledger_tables,
                backfills,
                totals,
                dead_letters,
                leases,
                texts,
                posts,
                "removed data past its retention"
            );
        }
        Ok(())
    }

    async fn observe_clock(&self, now: Timestamp) -> Result<ClockCheck> {
        // PostgreSQL's clock decides too, about rows that have a time of its own.
        const SEEN: &str = "
            SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, seen_at, settled_at,
                (SELECT accepted_at FROM herald.posts WHERE body IS NOT NULL ORDER BY id DESC LIMIT 1)
            FROM (SELECT true AS only_row) AS one LEFT JOIN herald.retention_clock USING (only_row)";
        const RECORD: &str = "
            INSERT INTO herald.retention_clock (seen_at, settled_at) VALUES ($1, $2)
            ON CONFLICT (only_row) DO UPDATE SET seen_at = excluded.seen_at, settled_at = excluded.settled_at";
        type Row = (i64, Option<i64>, Option<i64>, Option<i64>);
        let (server, seen_at, settled_at, newest_post): Row = self
            .postgres
            .call("read the time that retention has seen", async || {
                Ok(sqlx::query_as(SEEN).fetch_one(self.postgres.pool()).await?)
            })
            .await?;
        let before = match seen_at.zip(settled_at) {
            Some((seen_at, settled_at)) => SeenClock {
                seen_at: Timestamp(seen_at),
                settled_at: Timestamp(settled_at),
            },
            None => SeenClock::new(newest_post.map_or(now, Timestamp)),
        };
        let (seen, check) = before.observe(now, Some(Timestamp(server)));
        self.postgres
            .call("record the time that retention has seen", async || {
                let record = sqlx::query(RECORD).bind(seen.seen_at.0).bind(seen.settled_at.0);
                record.execute(self.postgres.pool()).await?;
                Ok(())
            })
            .await?;
        Ok(check)
    }
}
