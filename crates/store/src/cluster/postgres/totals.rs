//! Delivery counts by post and by hour, and the messages that they include.
//!
//! A commit is one transaction. It locks rows table by table, and in each table in ascending order of keys, so that
//! several analytics processes wait for each other and never deadlock.

mod commit;
mod seen;

use async_trait::async_trait;
use herald_model::{PostId, UserKey};
use sqlx::{FromRow, Row as _, postgres::PgRow};

use super::{Postgres, leases, ledger::channel_number};
use crate::{ChunkRef, Counted, Counts, Fence, IntendedFile, PostTotals, Result, SettledCounts, TotalsBatch};

/// The columns of [`CountsRow`], as a literal.
macro_rules! count_columns {
    () => {
        "posts, deleted_posts, timeline_delivered, timeline_dead, push_delivered, push_suppressed, push_expired, push_dead"
    };
}

/// The cluster engine's [`Totals`](crate::Totals).
pub(crate) struct PostgresTotals {
    postgres: Postgres,
}

impl PostgresTotals {
    pub(crate) fn new(postgres: Postgres) -> Self {
        Self { postgres }
    }
}

/// [`Counts`] of a row.
struct CountsRow(Counts);

impl FromRow<'_, PgRow> for CountsRow {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        Ok(Self(Counts {
            posts: row.try_get("posts")?,
            deleted_posts: row.try_get("deleted_posts")?,
            timeline_delivered: row.try_get("timeline_delivered")?,
            timeline_dead: row.try_get("timeline_dead")?,
            push_delivered: row.try_get("push_delivered")?,
            push_suppressed: row.try_get("push_suppressed")?,
            push_expired: row.try_get("push_expired")?,
            push_dead: row.try_get("push_dead")?,
        }))
    }
}

/// [`PostTotals`] of a row.
struct PostRow(PostTotals);

impl FromRow<'_, PgRow> for PostRow {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        let number = |name: &str| row.try_get::<i64, _>(name).map(i64::cast_unsigned);
        Ok(Self(PostTotals {
            author: UserKey(number("author")? as u32),
            counts: CountsRow::from_row(row)?.0,
            timeline_latency_ms_max: number("timeline_latency_ms_max")?,
            push_latency_ms_max: number("push_latency_ms_max")?,
        }))
    }
}

/// An hour with its counts.
struct HourRow(u32, Counts);

impl FromRow<'_, PgRow> for HourRow {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        Ok(Self(
            row.try_get::<i64, _>("hour")? as u32,
            CountsRow::from_row(row)?.0,
        ))
    }
}

#[async_trait]
impl crate::Totals for PostgresTotals {
    async fn seen(&self, stream: &str, sequences: &[u64]) -> Result<Vec<bool>> {
        let pages = self
            .postgres
            .call("read which messages are counted", async || {
                seen::read(self.postgres.pool(), stream, sequences).await
            })
            .await?;
        Ok(sequences.iter().map(|sequence| pages.has(*sequence)).collect())
    }

    async fn counted(&self, chunks: &[ChunkRef]) -> Result<Vec<Counted>> {
        const SQL: &str = "
            SELECT coalesce(t.revision, 0), coalesce(t.delivered, 0), coalesce(t.suppressed, 0),
                coalesce(t.expired, 0), coalesce(t.dead, 0)
            FROM unnest($1::bigint[], $2::smallint[], $3::bigint[])
                WITH ORDINALITY AS c (post, channel, chunk, n)
            LEFT JOIN herald.totals_chunks t USING (post, channel, chunk)
            ORDER BY c.n";
        let posts: Vec<i64> = chunks.iter().map(|chunk| chunk.post.0.cast_signed()).collect();
        let channels: Vec<i16> = chunks.iter().map(|chunk| channel_number(chunk.channel)).collect();
        let ids: Vec<i64> = chunks.iter().map(|chunk| chunk.chunk.0.cast_signed()).collect();
        let rows: Vec<(i64, i64, i64, i64, i64)> = self
            .postgres
            .call("read the counted chunks", async || {
                Ok(sqlx::query_as(SQL)
                    .bind(&posts)
                    .bind(&channels)
                    .bind(&ids)
                    .persistent(false)
                    .fetch_all(self.postgres.pool())
                    .await?)
            })
            .await?;
        let counted = rows.into_iter();
        Ok(counted
            .map(|(revision, delivered, suppressed, expired, dead)| Counted {
                revision: revision.cast_unsigned(),
                counts: SettledCounts {
                    delivered: delivered as u32,
                    suppressed: suppressed as u32,
                    expired: expired as u32,
                    dead: dead as u32,
                },
            })
            .collect())
    }

    async fn intend(&self, file: &str, owner: &Fence) -> Result<()> {
        const SQL: &str = "
            INSERT INTO herald.totals_intents (file, lease, token) VALUES ($1, $2, $3)
            ON CONFLICT (file) DO UPDATE SET lease = $2, token = $3";
        can_fail!("store.intend");
        self.postgres
            .call("announce an analytics file", async || {
                let mut transaction = self.postgres.begin().await?;
                leases::hold(&mut transaction, owner).await?;
                sqlx::query(SQL)
                    .bind(file)
                    .bind(&owner.name)
                    .bind(owner.token.cast_signed())
                    .execute(&mut *transaction)
                    .await?;
                Ok(transaction.commit().await?)
            })
            .await
    }

    async fn intended(&self) -> Result<Vec<IntendedFile>> {
        const SQL: &str = "
            SELECT i.file, i.lease, i.token, l.name IS NULL
            FROM herald.totals_intents i
            LEFT JOIN herald.leases l
                ON l.name = i.lease AND l.token = i.token AND l.ends_at > clock_timestamp()
            ORDER BY i.file";
        let rows: Vec<(String, String, i64, bool)> = self
            .postgres
            .call("list the announced analytics files", async || {
                Ok(sqlx::query_as(SQL).fetch_all(self.postgres.pool()).await?)
            })
            .await?;
        let files = rows.into_iter();
        Ok(files
            .map(|(file, name, token, orphaned)| IntendedFile {
                file,
                owner: Fence {
                    name,
                    token: token.cast_unsigned(),
                },
                orphaned,
            })
            .collect())
    }

    async fn abandon(&self, file: &str) -> Result<bool> {
        const SQL: &str = "UPDATE herald.totals_intents SET lease = $2, token = $3 WHERE file = $1";
        let abandoned = self
            .postgres
            .call("abandon an analytics file", async || {
                Ok(sqlx::query(SQL)
                    .bind(file)
                    .bind(&IntendedFile::NO_OWNER.name)
                    .bind(IntendedFile::NO_OWNER.token.cast_signed())
                    .execute(self.postgres.pool())
                    .await?)
            })
            .await?;
        Ok(abandoned.rows_affected() > 0)
    }

    async fn forget(&self, file: &str) -> Result<()> {
        const SQL: &str = "DELETE FROM herald.totals_intents WHERE file = $1 AND token = $2";
        self.postgres
            .call("forget an analytics file", async || {
                sqlx::query(SQL)
                    .bind(file)
                    .bind(IntendedFile::NO_OWNER.token.cast_signed())
                    .execute(self.postgres.pool())
                    .await?;
                Ok(())
            })
            .await
    }

    async fn commit(&self, batch: &TotalsBatch) -> Result<()> {
        can_fail!("store.count");
        let counted = commit::write(&self.postgres, batch).await;
        can_fail!("store.counted");
        counted
    }

    async fn post_totals(&self, post: PostId) -> Result<Option<PostTotals>> {
        const SQL: &str = concat!(
            "SELECT author, timeline_latency_ms_max, push_latency_ms_max, ",
            count_columns!(),
            " FROM herald.totals_posts WHERE post = $1"
        );
        let row: Option<PostRow> = self
            .postgres
            .call("read the totals of a post", async || {
                Ok(sqlx::query_as(SQL)
                    .bind(post.0.cast_signed())
                    .fetch_optional(self.postgres.pool())
                    .await?)
            })
            .await?;
        Ok(row.map(|row| row.0))
    }

    async fn hour_totals(&self, start: u32, end: u32) -> Result<Vec<(u32, Counts)>> {
        const SQL: &str = concat!(
            "SELECT hour, ",
            count_columns!(),
            " FROM herald.totals_hours WHERE hour >= $1 AND hour < $2 ORDER BY hour"
        );
        let rows: Vec<HourRow> = self
            .postgres
            .call("read the totals of hours", async || {
                Ok(sqlx::query_as(SQL)
                    .bind(i64::from(start))
                    .bind(i64::from(end))
                    .fetch_all(self.postgres.pool())
                    .await?)
            })
            .await?;
        Ok(rows
            .into_iter()
            .map(|HourRow(hour, counts)| (hour, counts))
            .collect())
    }
}
