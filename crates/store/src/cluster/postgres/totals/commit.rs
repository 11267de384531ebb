//! The commit of an analytics file: all or nothing.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::{
    PgConnection, Postgres as Sql,
    postgres::{PgArguments, PgQueryResult},
    query::Query,
};

use super::seen;
use crate::{
    ChunkRef, Counted, Counts, Error, ErrorKind, IntendedFile, PostTotals, Result, TotalsBatch,
    cluster::postgres::{Attempt, Postgres, ledger::channel_number},
};

/// Adds the counts of a file, unless all of its messages were counted before.
pub(super) async fn write(postgres: &Postgres, batch: &TotalsBatch) -> Result<()> {
    let changes = Changes::of(batch)?;
    postgres
        .call("count an analytics file", async || {
            let mut transaction = postgres.begin().await?;
            if changes.write(&mut transaction, batch).await? {
                transaction.commit().await?;
            }
            Ok(())
        })
        .await
}

/// The changes of a batch by key, each key once.
struct Changes {
    sequences: BTreeSet<u64>,
    posts: BTreeMap<i64, PostTotals>,
    hours: BTreeMap<u32, Counts>,
    chunks: BTreeMap<ChunkRef, Counted>,
}

impl Changes {
    fn of(batch: &TotalsBatch) -> Result<Self> {
        let mut changes = Self {
            sequences: batch.sequences.iter().copied().collect(),
            posts: BTreeMap::new(),
            hours: BTreeMap::new(),
            chunks: BTreeMap::new(),
        };
        for (post, more) in &batch.posts {
            let existing = changes.posts.entry(post.0.cast_signed());
            existing
                .and_modify(|existing| {
                    existing.counts += more.counts;
                    existing.timeline_latency_ms_max =
                        existing.timeline_latency_ms_max.max(more.timeline_latency_ms_max);
                    existing.push_latency_ms_max = existing.push_latency_ms_max.max(more.push_latency_ms_max);
                })
                .or_insert(*more);
        }
        for (hour, more) in &batch.hours {
            *changes.hours.entry(*hour).or_default() += *more;
        }
        for (chunk, counted) in &batch.chunks {
            if counted.revision == 0 {
                return Err(counted_before(chunk, counted.revision));
            }
            // Of several revisions the last one is what the totals include.
            changes.chunks.insert(*chunk, *counted);
        }
        Ok(changes)
    }

    /// Writes all changes. `false` if all messages were counted before: nothing is to be committed.
    async fn write(&self, connection: &mut PgConnection, batch: &TotalsBatch) -> Attempt<bool> {
        let mut pages = seen::lock(connection, &batch.stream, &self.sequences).await?;
        let counted = self
            .sequences
            .iter()
            .filter(|sequence| pages.has(**sequence))
            .count();
        if counted > 0 && counted == self.sequences.len() {
            return Ok(false);
        }
        if counted > 0 {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "{counted} of the {} messages of the file {} were counted before",
                    self.sequences.len(),
                    batch.file
                ),
            )
            .into());
        }
        self.write_chunks(connection).await?;
        pages.add(self.sequences.iter().copied());
        pages.write(connection, &batch.stream).await?;
        let announced = sqlx::query("DELETE FROM herald.totals_intents WHERE file = $1 AND token <> $2")
            .bind(&batch.file)
            .bind(IntendedFile::NO_OWNER.token.cast_signed())
            .execute(&mut *connection)
            .await?;
        if announced.rows_affected() == 0 {
            return Err(Error::new(
                ErrorKind::Fenced,
                format!(
                    "the file {} is not announced: another writer has abandoned it",
                    batch.file
                ),
            )
            .into());
        }
        self.write_posts(connection).await?;
        self.write_hours(connection).await?;
        Ok(true)
    }

    /// Writes the counted revisions; a conflict if the totals include one of them or a later one.
    async fn write_chunks(&self, connection: &mut PgConnection) -> Attempt<()> {
        const SQL: &str = "
            INSERT INTO herald.totals_chunks AS t
                (post, channel, chunk, revision, delivered, suppressed, expired, dead)
            SELECT * FROM unnest(
                $1::bigint[], $2::smallint[], $3::bigint[], $4::bigint[],
                $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[]
            ) AS c (post, channel, chunk, revision, delivered, suppressed, expired, dead)
            ORDER BY post, channel, chunk
            ON CONFLICT (post, channel, chunk) DO UPDATE SET
                revision = excluded.revision, delivered = excluded.delivered, suppressed = excluded.suppressed,
                expired = excluded.expired, dead = excluded.dead
            WHERE t.revision < excluded.revision
            RETURNING post, channel, chunk";
        if self.chunks.is_empty() {
            return Ok(());
        }
        let numbers = |number: fn(&Counted) -> i64| self.chunks.values().map(number).collect::<Vec<_>>();
        let posts: Vec<i64> = self
            .chunks
            .keys()
            .map(|chunk| chunk.post.0.cast_signed())
            .collect();
        let channels: Vec<i16> = self
            .chunks
            .keys()
            .map(|chunk| channel_number(chunk.channel))
            .collect();
        let ids: Vec<i64> = self
            .chunks
            .keys()
            .map(|chunk| chunk.chunk.0.cast_signed())
            .collect();
        let written: Vec<(i64, i16, i64)> = sqlx::query_as(SQL)
            .bind(posts)
            .bind(channels)
            .bind(ids)
            .bind(numbers(|counted| counted.revision.cast_signed()))
            .bind(numbers(|counted| counted.counts.delivered.into()))
            .bind(numbers(|counted| counted.counts.suppressed.into()))
            .bind(numbers(|counted| counted.counts.expired.into()))
            .bind(numbers(|counted| counted.counts.dead.into()))
            .fetch_all(connection)
            .await?;
        if written.len() == self.chunks.len() {
            return Ok(());
        }
        let written: BTreeSet<_> = written.into_iter().collect();
        let refused = self.chunks.iter().find(|(chunk, _)| {
            let key = (
                chunk.post.0.cast_signed(),
                channel_number(chunk.channel),
                chunk.chunk.0.cast_signed(),
            );
            !written.contains(&key)
        });
        let refused = refused.map(|(chunk, counted)| counted_before(chunk, counted.revision));
        Err(refused
            .unwrap_or_else(|| Error::new(ErrorKind::Conflict, "a chunk was counted before"))
            .into())
    }

    async fn write_posts(&self, connection: &mut PgConnection) -> Attempt<()> {
        const SQL: &str = "
            INSERT INTO herald.totals_posts AS t (
                post, author, timeline_latency_ms_max, push_latency_ms_max, posts, deleted_posts,
                timeline_delivered, timeline_dead, push_delivered, push_suppressed, push_expired, push_dead
            )
            SELECT * FROM unnest(
                $1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[],
                $7::bigint[], $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[]
            ) AS p (post) ORDER BY post
            ON CONFLICT (post) DO UPDATE SET
                timeline_latency_ms_max = greatest(t.timeline_latency_ms_max, excluded.timeline_latency_ms_max),
                push_latency_ms_max = greatest(t.push_latency_ms_max, excluded.push_latency_ms_max),
                posts = t.posts + excluded.posts,
                deleted_posts = t.deleted_posts + excluded.deleted_posts,
                timeline_delivered = t.timeline_delivered + excluded.timeline_delivered,
                timeline_dead = t.timeline_dead + excluded.timeline_dead,
                push_delivered = t.push_delivered + excluded.push_delivered,
                push_suppressed = t.push_suppressed + excluded.push_suppressed,
                push_expired = t.push_expired + excluded.push_expired,
                push_dead = t.push_dead + excluded.push_dead";
        let numbers = |number: fn(&PostTotals) -> i64| self.posts.values().map(number).collect::<Vec<_>>();
        let query = sqlx::query(SQL)
            .bind(self.posts.keys().copied().collect::<Vec<_>>())
            .bind(numbers(|totals| totals.author.0.into()))
            .bind(numbers(|totals| totals.timeline_latency_ms_max.cast_signed()))
            .bind(numbers(|totals| totals.push_latency_ms_max.cast_signed()));
        let counts: Vec<&Counts> = self.posts.values().map(|totals| &totals.counts).collect();
        bind_counts(query, &counts, connection).await?;
        Ok(())
    }

    async fn write_hours(&self, connection: &mut PgConnection) -> Attempt<()> {
        const SQL: &str = "
            INSERT INTO herald.totals_hours AS t (
                hour, posts, deleted_posts,
                timeline_delivered, timeline_dead, push_delivered, push_suppressed, push_expired, push_dead
            )
            SELECT * FROM unnest(
                $1::bigint[], $2::bigint[], $3::bigint[],
                $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[], $9::bigint[]
            ) AS h (hour) ORDER BY hour
            ON CONFLICT (hour) DO UPDATE SET
                posts = t.posts + excluded.posts,
                deleted_posts = t.deleted_posts + excluded.deleted_posts,
                timeline_delivered = t.timeline_delivered + excluded.timeline_delivered,
                timeline_dead = t.timeline_dead + excluded.timeline_dead,
                push_delivered = t.push_delivered + excluded.push_delivered,
                push_suppressed = t.push_suppressed + excluded.push_suppressed,
                push_expired = t.push_expired + excluded.push_expired,
                push_dead = t.push_dead + excluded.push_dead";
        let hours: Vec<i64> = self.hours.keys().map(|hour| i64::from(*hour)).collect();
        let counts: Vec<&Counts> = self.hours.values().collect();
        bind_counts(sqlx::query(SQL).bind(hours), &counts, connection).await?;
        Ok(())
    }
}

/// Binds the eight columns of counts and runs the statement.
async fn bind_counts(
    query: Query<'_, Sql, PgArguments>,
    counts: &[&Counts],
    connection: &mut PgConnection,
) -> sqlx::Result<PgQueryResult> {
    let numbers = |number: fn(&Counts) -> i64| counts.iter().map(|counts| number(counts)).collect::<Vec<_>>();
    query
        .bind(numbers(|counts| counts.posts))
        .bind(numbers(|counts| counts.deleted_posts))
        .bind(numbers(|counts| counts.timeline_delivered))
        .bind(numbers(|counts| counts.timeline_dead))
        .bind(numbers(|counts| counts.push_delivered))
        .bind(numbers(|counts| counts.push_suppressed))
        .bind(numbers(|counts| counts.push_expired))
        .bind(numbers(|counts| counts.push_dead))
        .execute(connection)
        .await
}

fn counted_before(chunk: &ChunkRef, revision: u64) -> Error {
    Error::new(
        ErrorKind::Conflict,
        format!(
            "revision {revision} of chunk {} of post {} was counted before",
            chunk.chunk, chunk.post
        ),
    )
}
