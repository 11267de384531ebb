//! Reading of complete plans for the auditor.

use std::collections::BTreeMap;

use herald_model::{Channel, ChunkId, FollowVersion, PostId};

use super::{channel_of, exclusive, row};
use crate::{
    ChunkState, PlannedSlice, PostPlan, RecordedOutcome, Result,
    cluster::postgres::{Attempt, Postgres, keys},
};

/// Begins a transaction that reads from one snapshot.
pub(in crate::cluster::postgres) const SNAPSHOT: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

/// Lists posts with rows, ascending.
pub(super) async fn posts(postgres: &Postgres, after: Option<PostId>, limit: usize) -> Result<Vec<PostId>> {
    const SQL: &str = "
        WITH first AS (SELECT greatest($1 + 1, first_post) AS post FROM herald.ledger_trim)
        SELECT post FROM (
            (SELECT DISTINCT post FROM herald.ledger_slices
                WHERE post >= (SELECT post FROM first) ORDER BY post LIMIT $2)
            UNION
            (SELECT DISTINCT post FROM herald.ledger_outcomes
                WHERE post >= (SELECT post FROM first) ORDER BY post LIMIT $2)
            UNION
            (SELECT DISTINCT post FROM herald.backfill_posts
                WHERE post >= (SELECT post FROM first) ORDER BY post LIMIT $2)
        ) AS p
        ORDER BY post LIMIT $2";
    let after = exclusive(after);
    if after == i64::MAX {
        return Ok(Vec::new());
    }
    let limit = keys::limit(limit);
    let posts: Vec<i64> = postgres
        .call("list the posts of the ledger", async || {
            Ok(sqlx::query_scalar(SQL)
                .bind(after)
                .bind(limit)
                .fetch_all(postgres.pool())
                .await?)
        })
        .await?;
    Ok(posts
        .into_iter()
        .map(|post| PostId(post.cast_unsigned()))
        .collect())
}

/// Reads all rows of a post from one snapshot; `None` if there are none.
pub(super) async fn read(postgres: &Postgres, post: PostId) -> Result<Option<PostPlan>> {
    let rows = postgres
        .call("read the plan of a post", async || {
            Rows::read(postgres, post.0.cast_signed()).await
        })
        .await?;
    rows.into_plan()
}

/// Channel, id, revision, delivered, outcome.
type OutcomeRow = (i16, i64, i64, i32, Option<Vec<u8>>);

/// The rows of a post.
#[derive(Default)]
struct Rows {
    /// Index, last, version.
    slices: Vec<(i64, bool, i64)>,
    outcomes: Vec<OutcomeRow>,
    /// Channel, id, number of recipients, recipients.
    chunks: Vec<(i16, i64, i32, Vec<u8>)>,
    /// Number of recipients, recipients.
    backfills: Vec<(i32, Vec<u8>)>,
}

impl Rows {
    async fn read(postgres: &Postgres, post: i64) -> Attempt<Self> {
        const TRIMMED: &str = "SELECT first_post > $1 FROM herald.ledger_trim";
        const SLICES: &str =
            "SELECT slice, last, version FROM herald.ledger_slices WHERE post = $1 ORDER BY slice";
        const OUTCOMES: &str = "
            SELECT channel, chunk, revision, delivered, outcome FROM herald.ledger_outcomes WHERE post = $1";
        const CHUNKS: &str = "
            SELECT channel, chunk, recipients_count, recipients FROM herald.ledger_chunks WHERE post = $1";
        const BACKFILLS: &str = "
            SELECT recipients_count, recipients
            FROM herald.backfill_posts p JOIN herald.backfills b ON b.id = p.backfill
            WHERE p.post = $1 ORDER BY p.chunk";
        let mut snapshot = postgres.pool().begin_with(SNAPSHOT).await?;
        let trimmed: bool = sqlx::query_scalar(TRIMMED)
            .bind(post)
            .fetch_one(&mut *snapshot)
            .await?;
        if trimmed {
            return Ok(Self::default());
        }
        let rows = Self {
            slices: sqlx::query_as(SLICES)
                .bind(post)
                .fetch_all(&mut *snapshot)
                .await?,
            outcomes: sqlx::query_as(OUTCOMES)
                .bind(post)
                .fetch_all(&mut *snapshot)
                .await?,
            chunks: sqlx::query_as(CHUNKS)
                .bind(post)
                .fetch_all(&mut *snapshot)
                .await?,
            backfills: sqlx::query_as(BACKFILLS)
                .bind(post)
                .fetch_all(&mut *snapshot)
                .await?,
        };
        snapshot.commit().await?;
        Ok(rows)
    }

    fn into_plan(self) -> Result<Option<PostPlan>> {
        if self.slices.is_empty()
            && self.outcomes.is_empty()
            && self.chunks.is_empty()
            && self.backfills.is_empty()
        {
            return Ok(None);
        }
        let mut recorded: BTreeMap<(Channel, ChunkId), RecordedOutcome> = BTreeMap::new();
        for (channel, chunk, revision, delivered, outcome) in self.outcomes {
            let key = (channel_of(channel)?, ChunkId(chunk.cast_unsigned()));
            recorded.insert(key, row::recorded(revision, delivered, outcome.as_deref())?);
        }
        let mut plan = PostPlan::default();
        for (index, last, version) in self.slices {
            plan.slices.push(PlannedSlice {
                index: index as u32,
                last,
                version: Some(FollowVersion(version.cast_unsigned())),
            });
        }
        for (channel, chunk, count, recipients) in self.chunks {
            let (channel, chunk) = (channel_of(channel)?, ChunkId(chunk.cast_unsigned()));
            plan.chunks.push(ChunkState {
                channel,
                chunk,
                recipients: row::recipients(recipients, count)?,
                recorded: recorded.remove(&(channel, chunk)),
            });
        }
        plan.chunks
            .sort_unstable_by_key(|chunk| (chunk.channel, chunk.chunk));
        for (count, recipients) in self.backfills {
            plan.backfilled.push(row::recipients(recipients, count)?);
        }
        let unplanned = recorded.into_iter();
        plan.unplanned = unplanned
            .map(|((channel, chunk), recorded)| (channel, chunk, recorded))
            .collect();
        Ok(Some(plan))
    }
}
