//! Claims of chunks, with leases by the clock of PostgreSQL.

use std::{collections::HashMap, sync::Arc, time::Duration};

use herald_model::{Channel, ChunkId, PostId};

use super::{
    ChunkKey, channel_number, chunk_key, partitions::Partitions, row::OutcomeColumns, settle::conflict,
};
use crate::{
    Error, ErrorKind, Result,
    cluster::postgres::{Attempt, Postgres, leases::microseconds},
    embedded::ledger::settle::all_pending,
};

/// A claim to write.
#[derive(Debug, Clone, Copy)]
pub(super) struct ClaimRequest {
    pub(super) post: PostId,
    pub(super) channel: Channel,
    pub(super) chunk: ChunkId,
    pub(super) base: u64,
    pub(super) lease: Duration,
}

impl ClaimRequest {
    fn key(&self) -> ChunkKey {
        chunk_key(self.post, self.channel, self.chunk)
    }
}

/// Writes claims and returns the revision of each.
pub(super) async fn write(
    postgres: &Postgres,
    partitions: &Partitions,
    requests: &[Arc<ClaimRequest>],
) -> Result<Vec<Result<u64>>> {
    partitions
        .ensure(requests.iter().map(|request| request.post))
        .await?;
    // Of two claims of one chunk in a batch the first is tried.
    let mut first: HashMap<ChunkKey, usize> = HashMap::new();
    for (index, request) in requests.iter().enumerate() {
        first.entry(request.key()).or_insert(index);
    }
    let mut sorted: Vec<(ChunkKey, usize)> = first.into_iter().collect();
    // Transactions that wait for each other's rows do so in the same order.
    sorted.sort_unstable();
    let posts: Vec<PostId> = requests.iter().map(|request| request.post).collect();
    let columns = Columns::of(sorted.iter().map(|(_, index)| &*requests[*index]));
    // Not repeated when the connection is lost: the first attempt may have claimed the chunks.
    let written = postgres
        .call_once("claim chunks in the ledger", async || {
            partitions.insert(&posts, || columns.write(postgres)).await
        })
        .await?;
    let mut claimed: HashMap<usize, i64> = sorted
        .iter()
        .filter_map(|(key, index)| Some((*index, *written.get(key)?)))
        .collect();
    let recorded = if claimed.len() == requests.len() {
        HashMap::new()
    } else {
        postgres
            .call("read outcomes of the ledger", async || {
                columns.read(postgres).await
            })
            .await?
    };
    let results = requests.iter().enumerate().map(|(index, request)| {
        if let Some(revision) = claimed.remove(&index) {
            return Ok(revision.cast_unsigned());
        }
        let (revision, is_claimed) = recorded.get(&request.key()).copied().unwrap_or_default();
        // With the revision unchanged, the claim that refused this one ended between the two statements.
        if is_claimed || revision == request.base.cast_signed() {
            return Err(Error::new(
                ErrorKind::Claimed,
                format!(
                    "another worker has claimed chunk {} of post {}",
                    request.chunk, request.post
                ),
            ));
        }
        Err(conflict(request.key().2, revision, request.base.cast_signed()))
    });
    Ok(results.collect())
}

/// The columns of claims, ascending by key.
#[derive(Default)]
struct Columns {
    posts: Vec<i64>,
    channels: Vec<i16>,
    chunks: Vec<i64>,
    bases: Vec<i64>,
    leases: Vec<i64>,
}

impl Columns {
    fn of<'a>(requests: impl Iterator<Item = &'a ClaimRequest>) -> Self {
        let mut columns = Self::default();
        for request in requests {
            let (post, channel, chunk) = request.key();
            columns.posts.push(post);
            columns.channels.push(channel);
            columns.chunks.push(chunk);
            columns.bases.push(request.base.cast_signed());
            columns.leases.push(microseconds(request.lease));
        }
        columns
    }

    /// Claims those that can be claimed, and returns their revisions.
    async fn write(&self, postgres: &Postgres) -> sqlx::Result<HashMap<ChunkKey, i64>> {
        const SQL: &str = "
            WITH c AS (
                SELECT post, channel, chunk, base, lease_us * interval '1 microsecond' AS lease
                FROM unnest($1::bigint[], $2::smallint[], $3::bigint[], $4::bigint[], $5::bigint[])
                    AS c (post, channel, chunk, base, lease_us)
            ), updated AS (
                UPDATE herald.ledger_outcomes o
                SET revision = o.revision + 1, claimed_until = clock_timestamp() + c.lease
                FROM c
                WHERE o.post BETWEEN $7 AND $8
                    AND o.post = c.post AND o.channel = c.channel AND o.chunk = c.chunk
                    AND o.revision = c.base
                    AND (o.claimed_until IS NULL OR o.claimed_until <= clock_timestamp())
                RETURNING o.post, o.channel, o.chunk, o.revision
            ), inserted AS (
                INSERT INTO herald.ledger_outcomes
                    (post, channel, chunk, revision, claimed_until, delivered, suppressed, expired, dead, outcome)
                SELECT post, channel, chunk, 1, clock_timestamp() + lease, 0, 0, 0, 0, $6
                FROM c WHERE base = 0
                ON CONFLICT DO NOTHING
                RETURNING post, channel, chunk, revision
            )
            SELECT * FROM updated UNION ALL SELECT * FROM inserted";
        let rows: Vec<(i64, i16, i64, i64)> = sqlx::query_as(SQL)
            .bind(&self.posts)
            .bind(&self.channels)
            .bind(&self.chunks)
            .bind(&self.bases)
            .bind(&self.leases)
            .bind(OutcomeColumns::of(&all_pending()).outcome)
            .bind(self.posts.first())
            .bind(self.posts.last())
            // Planned anew each time: a plan that was made when the partition was small would be kept too long.
            .persistent(false)
            .fetch_all(postgres.pool())
            .await?;
        Ok(rows
            .into_iter()
            .map(|(post, channel, chunk, revision)| ((post, channel, chunk), revision))
            .collect())
    }

    /// The recorded revision of each chunk that has one, and whether a claim of it lasts.
    async fn read(&self, postgres: &Postgres) -> Attempt<HashMap<ChunkKey, (i64, bool)>> {
        const SQL: &str = "
            SELECT post, channel, chunk, revision, coalesce(claimed_until > clock_timestamp(), false)
            FROM unnest($1::bigint[], $2::smallint[], $3::bigint[]) AS c (post, channel, chunk)
            JOIN herald.ledger_outcomes USING (post, channel, chunk)
            WHERE post BETWEEN $4 AND $5";
        let rows: Vec<(i64, i16, i64, i64, bool)> = sqlx::query_as(SQL)
            .bind(&self.posts)
            .bind(&self.channels)
            .bind(&self.chunks)
            .bind(self.posts.first())
            .bind(self.posts.last())
            .persistent(false)
            .fetch_all(postgres.pool())
            .await?;
        Ok(rows
            .into_iter()
            .map(|(post, channel, chunk, revision, claimed)| ((post, channel, chunk), (revision, claimed)))
            .collect())
    }
}

/// Lets the claim of a revision last for `lease` from now.
pub(super) async fn extend(
    postgres: &Postgres,
    (post, channel, chunk): (PostId, Channel, ChunkId),
    revision: u64,
    lease: Duration,
) -> Result<()> {
    const SQL: &str = "
        UPDATE herald.ledger_outcomes SET claimed_until = clock_timestamp() + $5 * interval '1 microsecond'
        WHERE post = $1 AND channel = $2 AND chunk = $3 AND revision = $4 AND claimed_until IS NOT NULL";
    let extended = postgres
        .call("extend a claim in the ledger", async || {
            Ok(sqlx::query(SQL)
                .bind(post.0.cast_signed())
                .bind(channel_number(channel))
                .bind(chunk.0.cast_signed())
                .bind(revision.cast_signed())
                .bind(microseconds(lease))
                .execute(postgres.pool())
                .await?)
        })
        .await?;
    match extended.rows_affected() {
        0 => Err(Error::new(
            ErrorKind::Conflict,
            format!("chunk {chunk} of post {post} has no claim of revision {revision}"),
        )),
        _ => Ok(()),
    }
}

/// Ends the claim of a revision, if it has one.
pub(super) async fn release(
    postgres: &Postgres,
    (post, channel, chunk): (PostId, Channel, ChunkId),
    revision: u64,
) -> Result<()> {
    const SQL: &str = "
        UPDATE herald.ledger_outcomes SET claimed_until = NULL
        WHERE post = $1 AND channel = $2 AND chunk = $3 AND revision = $4 AND claimed_until IS NOT NULL";
    postgres
        .call("release a claim in the ledger", async || {
            sqlx::query(SQL)
                .bind(post.0.cast_signed())
                .bind(channel_number(channel))
                .bind(chunk.0.cast_signed())
                .bind(revision.cast_signed())
                .execute(postgres.pool())
                .await?;
            Ok(())
        })
        .await
}
