//! Settlements: the outcomes of chunks, each with the revision that it replaces.

use std::{collections::HashMap, sync::Arc};

use herald_model::{ChunkId, PostId};

use super::{ChunkKey, chunk_key, partitions::Partitions, row::OutcomeColumns};
use crate::{
    Error, ErrorKind, ExpectedRevision, Outcome, Result, Settlement,
    cluster::postgres::{Attempt, Postgres, leases::microseconds},
};

/// Rounds in which every settlement loses a race with another writer of its chunk.
const LOST_ROUNDS_MAX: usize = 5;

/// The base of a settlement without a precondition. Revisions begin at 0.
const ANY: i64 = -1;

/// Time after the last delivery from which on a repeated delivery counts as the last one. The repair of lost timelines
/// looks for deliveries by that time, and tolerates twice this value.
const REDELIVERED_AFTER_US: i64 = 5_000_000;

/// Number of settled recipients that the settlement writes one by one.
pub(super) fn weight(settlement: &Settlement) -> usize {
    match &settlement.outcome {
        Outcome::Delivered { .. } => 1,
        outcome @ Outcome::Mixed { .. } => {
            let counts = outcome.counts();
            (counts.delivered + counts.suppressed + counts.expired + counts.dead) as usize
        }
    }
}

/// Writes settlements and returns the revision of each.
pub(super) async fn write(
    postgres: &Postgres,
    partitions: &Partitions,
    settlements: &[Arc<Settlement>],
) -> Result<Vec<Result<u64>>> {
    partitions
        .ensure(settlements.iter().map(|settlement| settlement.post))
        .await?;
    let mut results: Vec<Option<Result<u64>>> = settlements.iter().map(|_| None).collect();
    let mut lost_rounds = 0;
    while lost_rounds < LOST_ROUNDS_MAX {
        // A statement settles a chunk once; further settlements of the chunk follow in the next round.
        let mut round: HashMap<ChunkKey, usize> = HashMap::new();
        for (index, settlement) in settlements.iter().enumerate() {
            if results[index].is_none() {
                round.entry(key(settlement)).or_insert(index);
            }
        }
        if round.is_empty() {
            break;
        }
        let mut sorted: Vec<(ChunkKey, usize)> = round.iter().map(|(key, index)| (*key, *index)).collect();
        // Transactions that wait for each other's rows do so in the same order.
        sorted.sort_unstable();
        let columns = Columns::of(sorted.iter().map(|(_, index)| &*settlements[*index]));
        let decided = apply(postgres, partitions, &columns).await?;
        lost_rounds += usize::from(decided.is_empty());
        for (key, result) in decided {
            if let Some(index) = round.get(&key) {
                results[*index] = Some(result);
            }
        }
    }
    let lost = || {
        Err(Error::new(
            ErrorKind::Unavailable,
            "many writers change the outcome of a chunk at the same time",
        ))
    };
    Ok(results
        .into_iter()
        .map(|result| result.unwrap_or_else(lost))
        .collect())
}

fn key(settlement: &Settlement) -> ChunkKey {
    chunk_key(settlement.post, settlement.channel, settlement.chunk)
}

/// The columns of settlements, ascending by key.
#[derive(Default)]
struct Columns {
    posts: Vec<i64>,
    channels: Vec<i16>,
    chunks: Vec<i64>,
    bases: Vec<i64>,
    at: Vec<i64>,
    delivered: Vec<i32>,
    suppressed: Vec<i32>,
    expired: Vec<i32>,
    dead: Vec<i32>,
    suppressed_by: Vec<Option<String>>,
    outcomes: Vec<Option<Vec<u8>>>,
    /// Leases of kept claims, microseconds.
    claims: Vec<Option<i64>>,
}

impl Columns {
    fn of<'a>(settlements: impl Iterator<Item = &'a Settlement>) -> Self {
        let mut columns = Self::default();
        for settlement in settlements {
            let (post, channel, chunk) = key(settlement);
            let outcome = OutcomeColumns::of(&settlement.outcome);
            columns.posts.push(post);
            columns.channels.push(channel);
            columns.chunks.push(chunk);
            columns.bases.push(match settlement.base {
                ExpectedRevision::Revision(revision) => revision.cast_signed(),
                ExpectedRevision::Any => ANY,
            });
            columns.at.push(settlement.at.0);
            columns.delivered.push(outcome.counts.delivered.cast_signed());
            columns.suppressed.push(outcome.counts.suppressed.cast_signed());
            columns.expired.push(outcome.counts.expired.cast_signed());
            columns.dead.push(outcome.counts.dead.cast_signed());
            columns.suppressed_by.push(outcome.suppressed_by);
            columns.outcomes.push(outcome.outcome);
            columns.claims.push(settlement.keep_claim.map(microseconds));
        }
        columns
    }

    fn keys(&self) -> impl Iterator<Item = ChunkKey> {
        let (channels, chunks) = (self.channels.iter(), self.chunks.iter());
        let keys = self.posts.iter().zip(channels).zip(chunks);
        keys.map(|((post, channel), chunk)| (*post, *channel, *chunk))
    }

    /// Writes those whose precondition holds, and returns the revisions of their chunks.
    ///
    /// An insertion that finds a row which was inserted since the statement began writes nothing; so does an update of
    /// a row that was changed meanwhile to another revision.
    async fn write(&self, postgres: &Postgres) -> sqlx::Result<HashMap<ChunkKey, i64>> {
        const SQL: &str = "
            WITH s AS (
                SELECT * FROM unnest(
                    $1::bigint[], $2::smallint[], $3::bigint[], $4::bigint[], $5::bigint[],
                    $6::integer[], $7::integer[], $8::integer[], $9::integer[], $10::text[], $11::bytea[],
                    $12::bigint[]
                ) AS s (
                    post, channel, chunk, base, at, delivered, suppressed, expired, dead, suppressed_by, outcome, lease_us
                )
            ), updated AS (
                UPDATE herald.ledger_outcomes o SET
                    revision = o.revision + CASE
                        WHEN o.outcome IS NOT DISTINCT FROM s.outcome AND o.delivered = s.delivered THEN 0 ELSE 1 END,
                    first_delivered_at = CASE
                        WHEN o.first_delivered_at IS NULL THEN CASE WHEN s.delivered > 0 THEN s.at END
                        WHEN s.delivered <= o.delivered THEN o.first_delivered_at
                        ELSE least(o.first_delivered_at, s.at) END,
                    last_delivered_at = CASE
                        WHEN o.last_delivered_at IS NULL THEN CASE WHEN s.delivered > 0 THEN s.at END
                        WHEN s.delivered < o.delivered THEN o.last_delivered_at
                        ELSE greatest(o.last_delivered_at, s.at) END,
                    claimed_until = clock_timestamp() + s.lease_us * interval '1 microsecond',
                    delivered = s.delivered, suppressed = s.suppressed, expired = s.expired, dead = s.dead,
                    suppressed_by = s.suppressed_by::integer[],
                    outcome = s.outcome
                FROM s
                WHERE o.post BETWEEN $13 AND $14
                    AND o.post = s.post AND o.channel = s.channel AND o.chunk = s.chunk
                    AND (s.base = -1 OR o.revision = s.base)
                    AND (o.outcome IS DISTINCT FROM s.outcome OR o.delivered <> s.delivered
                        OR o.claimed_until IS NOT NULL OR s.lease_us IS NOT NULL
                        OR s.delivered > 0 AND s.at > o.last_delivered_at + $15)
                RETURNING o.post, o.channel, o.chunk, o.revision
            ), inserted AS (
                INSERT INTO herald.ledger_outcomes (
                    post, channel, chunk, revision, first_delivered_at, last_delivered_at, claimed_until,
                    delivered, suppressed, expired, dead, suppressed_by, outcome
                )
                SELECT post, channel, chunk, 1,
                    CASE WHEN delivered > 0 THEN at END, CASE WHEN delivered > 0 THEN at END,
                    clock_timestamp() + lease_us * interval '1 microsecond',
                    delivered, suppressed, expired, dead, suppressed_by::integer[], outcome
                FROM s WHERE base <= 0
                ON CONFLICT DO NOTHING
                RETURNING post, channel, chunk, revision
            )
            SELECT * FROM updated UNION ALL SELECT * FROM inserted";
        let rows: Vec<(i64, i16, i64, i64)> = sqlx::query_as(SQL)
            .bind(&self.posts)
            .bind(&self.channels)
            .bind(&self.chunks)
            .bind(&self.bases)
            .bind(&self.at)
            .bind(&self.delivered)
            .bind(&self.suppressed)
            .bind(&self.expired)
            .bind(&self.dead)
            .bind(&self.suppressed_by)
            .bind(&self.outcomes)
            .bind(&self.claims)
            .bind(self.posts.first())
            .bind(self.posts.last())
            .bind(REDELIVERED_AFTER_US)
            // Planned anew each time: a plan that was made when the partition was small would be kept too long.
            .persistent(false)
            .fetch_all(postgres.pool())
            .await?;
        Ok(rows
            .into_iter()
            .map(|(post, channel, chunk, revision)| ((post, channel, chunk), revision))
            .collect())
    }

    /// The recorded revision of each chunk that has one, and whether the outcome is the same.
    async fn read(&self, postgres: &Postgres) -> Attempt<HashMap<ChunkKey, (i64, bool)>> {
        const SQL: &str = "
            SELECT o.post, o.channel, o.chunk, o.revision,
                o.outcome IS NOT DISTINCT FROM s.outcome AND o.delivered = s.delivered
            FROM unnest($1::bigint[], $2::smallint[], $3::bigint[], $4::integer[], $5::bytea[])
                AS s (post, channel, chunk, delivered, outcome)
            JOIN herald.ledger_outcomes o USING (post, channel, chunk)
            WHERE o.post BETWEEN $6 AND $7";
        let rows: Vec<(i64, i16, i64, i64, bool)> = sqlx::query_as(SQL)
            .bind(&self.posts)
            .bind(&self.channels)
            .bind(&self.chunks)
            .bind(&self.delivered)
            .bind(&self.outcomes)
            .bind(self.posts.first())
            .bind(self.posts.last())
            .persistent(false)
            .fetch_all(postgres.pool())
            .await?;
        Ok(rows
            .into_iter()
            .map(|(post, channel, chunk, revision, same)| ((post, channel, chunk), (revision, same)))
            .collect())
    }
}

/// Writes settlements of different chunks. A chunk without a result lost a race that another round decides.
async fn apply(
    postgres: &Postgres,
    partitions: &Partitions,
    columns: &Columns,
) -> Result<Vec<(ChunkKey, Result<u64>)>> {
    let posts = columns.posts.iter().map(|post| PostId(post.cast_unsigned()));
    let posts: Vec<PostId> = posts.collect();
    // Not repeated when the connection is lost: the first attempt may have changed the revision.
    let written = postgres
        .call_once("write outcomes to the ledger", async || {
            partitions.insert(&posts, || columns.write(postgres)).await
        })
        .await?;
    if written.len() == columns.posts.len() {
        let done = written.into_iter();
        return Ok(done
            .map(|(key, revision)| (key, Ok(revision.cast_unsigned())))
            .collect());
    }
    let recorded = postgres
        .call("read outcomes of the ledger", async || {
            columns.read(postgres).await
        })
        .await?;
    let mut results = Vec::with_capacity(columns.posts.len());
    for (key, base) in columns.keys().zip(&columns.bases) {
        if let Some(revision) = written.get(&key) {
            results.push((key, Ok(revision.cast_unsigned())));
            continue;
        }
        match recorded.get(&key) {
            Some((revision, true)) if *base == ANY || base == revision => {
                results.push((key, Ok(revision.cast_unsigned())));
            }
            Some((revision, _)) if *base != ANY && base != revision => {
                results.push((key, Err(conflict(key.2, *revision, *base))));
            }
            None if *base > 0 => results.push((key, Err(conflict(key.2, 0, *base)))),
            _ => {}
        }
    }
    Ok(results)
}

/// The error of a write that expects another revision.
pub(super) fn conflict(chunk: i64, revision: i64, base: i64) -> Error {
    let chunk = ChunkId(chunk.cast_unsigned());
    Error::new(
        ErrorKind::Conflict,
        format!("chunk {chunk} is at revision {revision}, expected {base}"),
    )
}
