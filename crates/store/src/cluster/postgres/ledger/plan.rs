//! Plans of slices: the first one is written, and every later call returns it.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use herald_model::{Channel, PostId, Recipients};

use super::{channel_number, partitions::Partitions, row};
use crate::{
    ChunkPlan, Error, ErrorKind, Result, SlicePlan,
    cluster::postgres::{Attempt, Postgres},
    embedded::ledger::row::{Pin, Slice},
};

/// Size of a plan: the bytes of its recipients.
pub(super) fn weight(plan: &SlicePlan) -> usize {
    let bytes = plan.chunks.iter().map(|chunk| chunk.recipients.as_bytes().len());
    64 + bytes.sum::<usize>()
}

/// Writes plans of slices that have none, and returns the recorded plan of each.
pub(super) async fn write(
    postgres: &Postgres,
    partitions: &Partitions,
    plans: &[Arc<SlicePlan>],
) -> Result<Vec<Result<SlicePlan>>> {
    partitions.ensure(plans.iter().map(|plan| plan.post)).await?;
    // Of two plans of one slice in a batch the first wins.
    let mut slices = HashSet::new();
    let mut first: Vec<&SlicePlan> = plans
        .iter()
        .map(|plan| &**plan)
        .filter(|plan| slices.insert((plan.post, plan.slice)))
        .collect();
    // Transactions that wait for each other's rows do so in the same order.
    first.sort_unstable_by_key(|plan| (plan.post, plan.slice));
    let columns = Columns::of(&first);
    let posts: Vec<PostId> = first.iter().map(|plan| plan.post).collect();
    let mut written: HashSet<(i64, i64)> = postgres
        .call("write plans to the ledger", async || {
            partitions.insert(&posts, || columns.insert(postgres)).await
        })
        .await?;
    let mut results = Vec::with_capacity(plans.len());
    for plan in plans {
        let is_first = written.remove(&(plan.post.0.cast_signed(), plan.slice.into()));
        results.push(if is_first {
            Ok(SlicePlan::clone(plan))
        } else {
            recorded_plan(postgres, plan).await
        });
    }
    Ok(results)
}

/// The columns of plans.
#[derive(Default)]
struct Columns<'a> {
    posts: Vec<i64>,
    slices: Vec<i64>,
    authors: Vec<i64>,
    versions: Vec<i64>,
    last: Vec<bool>,
    timeline: Vec<i64>,
    push: Vec<i64>,
    pins: Vec<Vec<u8>>,
    chunks: ChunkColumns<'a>,
}

/// The columns of chunks. The first two name their slice.
#[derive(Default)]
struct ChunkColumns<'a> {
    posts: Vec<i64>,
    slices: Vec<i64>,
    channels: Vec<i16>,
    ids: Vec<i64>,
    first_users: Vec<i64>,
    last_users: Vec<i64>,
    counts: Vec<i32>,
    recipients: Vec<&'a [u8]>,
}

impl<'a> Columns<'a> {
    fn of(plans: &[&'a SlicePlan]) -> Self {
        let mut columns = Self::default();
        for plan in plans {
            let (post, slice) = (plan.post.0.cast_signed(), i64::from(plan.slice));
            let mut row = Slice {
                last: plan.next_after.is_none(),
                ..Slice::default()
            };
            let mut ids = Vec::with_capacity(plan.chunks.len());
            for chunk in &plan.chunks {
                let recipients = &chunk.recipients;
                let id = recipients.chunk_id();
                ids.push((chunk.channel, id));
                *match chunk.channel {
                    Channel::Timeline => &mut row.timeline,
                    Channel::Push => &mut row.push,
                } += u64::from(recipients.len());
                let chunks = &mut columns.chunks;
                chunks.posts.push(post);
                chunks.slices.push(slice);
                chunks.channels.push(channel_number(chunk.channel));
                chunks.ids.push(id.0.cast_signed());
                let (first, last) = (recipients.iter().next(), recipients.iter().last());
                chunks.first_users.push(first.map_or(0, |user| user.0.into()));
                chunks.last_users.push(last.map_or(0, |user| user.0.into()));
                chunks.counts.push(recipients.len().cast_signed());
                chunks.recipients.push(recipients.as_bytes());
            }
            columns.posts.push(post);
            columns.slices.push(slice);
            columns.authors.push(plan.author.0.into());
            columns.versions.push(plan.version.0.cast_signed());
            columns.last.push(row.last);
            columns.timeline.push(row.timeline.cast_signed());
            columns.push.push(row.push.cast_signed());
            columns.pins.push(row.encode(&Pin {
                version: plan.version,
                next_after: plan.next_after,
                chunks: ids,
            }));
        }
        columns
    }

    /// Inserts the slices that are not planned yet, with their chunks, and returns them.
    async fn insert(&self, postgres: &Postgres) -> sqlx::Result<HashSet<(i64, i64)>> {
        const SQL: &str = "
            WITH p AS (
                SELECT * FROM unnest(
                    $1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[],
                    $5::boolean[], $6::bigint[], $7::bigint[], $8::bytea[]
                ) AS p (post, slice, author, version, last, timeline, push, pin)
            ), new AS (
                INSERT INTO herald.ledger_slices (post, slice, timeline, push, version, last, pin)
                SELECT post, slice, timeline, push, version, last, pin FROM p
                ON CONFLICT DO NOTHING
                RETURNING post, slice
            ), chunks AS (
                INSERT INTO herald.ledger_chunks
                    (post, channel, chunk, first_user, last_user, recipients_count, recipients)
                SELECT c.post, channel, chunk, first_user, last_user, recipients_count, recipients
                FROM unnest(
                    $9::bigint[], $10::bigint[], $11::smallint[], $12::bigint[],
                    $13::bigint[], $14::bigint[], $15::integer[], $16::bytea[]
                ) AS c (post, slice, channel, chunk, first_user, last_user, recipients_count, recipients)
                JOIN new USING (post, slice)
                ON CONFLICT DO NOTHING
            ), pins AS (
                INSERT INTO herald.pinned_posts (author, post, version)
                SELECT author, post, version FROM p JOIN new USING (post, slice)
                ON CONFLICT DO NOTHING
            )
            SELECT post, slice FROM new";
        let chunks = &self.chunks;
        let rows: Vec<(i64, i64)> = sqlx::query_as(SQL)
            .bind(&self.posts)
            .bind(&self.slices)
            .bind(&self.authors)
            .bind(&self.versions)
            .bind(&self.last)
            .bind(&self.timeline)
            .bind(&self.push)
            .bind(&self.pins)
            .bind(&chunks.posts)
            .bind(&chunks.slices)
            .bind(&chunks.channels)
            .bind(&chunks.ids)
            .bind(&chunks.first_users)
            .bind(&chunks.last_users)
            .bind(&chunks.counts)
            .bind(&chunks.recipients)
            // Planned anew each time, for the number of chunks of this batch.
            .persistent(false)
            .fetch_all(postgres.pool())
            .await?;
        Ok(rows.into_iter().collect())
    }
}

/// Reads the recorded plan of the slice that `proposed` names.
async fn recorded_plan(postgres: &Postgres, proposed: &SlicePlan) -> Result<SlicePlan> {
    let (pin, sets) = postgres
        .call("read a plan of the ledger", async || {
            read_plan(postgres, proposed).await
        })
        .await?;
    let chunks = pin.chunks.into_iter().map(|(channel, id)| {
        let recipients = sets.get(&(channel_number(channel), id.0.cast_signed()));
        let recipients = recipients.ok_or_else(|| missing(proposed.post))?;
        Ok(ChunkPlan {
            channel,
            recipients: recipients.clone(),
        })
    });
    Ok(SlicePlan {
        post: proposed.post,
        author: proposed.author,
        slice: proposed.slice,
        version: pin.version,
        chunks: chunks.collect::<Result<_>>()?,
        next_after: pin.next_after,
    })
}

/// The recipients of chunks by channel and id.
type ChunkSets = HashMap<(i16, i64), Recipients>;

/// Both rows were committed together and never change, so two statements read one plan.
async fn read_plan(postgres: &Postgres, proposed: &SlicePlan) -> Attempt<(Pin, ChunkSets)> {
    const SLICE: &str = "SELECT pin FROM herald.ledger_slices WHERE post = $1 AND slice = $2";
    const CHUNKS: &str = "
        SELECT channel, chunk, recipients_count, recipients FROM herald.ledger_chunks
        WHERE post = $1 AND (channel, chunk) IN (SELECT * FROM unnest($2::smallint[], $3::bigint[]))";
    let post = proposed.post.0.cast_signed();
    let pin: Option<Vec<u8>> = sqlx::query_scalar(SLICE)
        .bind(post)
        .bind(i64::from(proposed.slice))
        .fetch_optional(postgres.pool())
        .await?;
    let pin = pin.map(|pin| Slice::decode_pin(&pin)).transpose()?.flatten();
    let pin = pin.ok_or_else(|| missing(proposed.post))?;
    let (channels, ids): (Vec<i16>, Vec<i64>) = pin
        .chunks
        .iter()
        .map(|(channel, id)| (channel_number(*channel), id.0.cast_signed()))
        .unzip();
    let rows: Vec<(i16, i64, i32, Vec<u8>)> = sqlx::query_as(CHUNKS)
        .bind(post)
        .bind(channels)
        .bind(ids)
        .fetch_all(postgres.pool())
        .await?;
    let sets = rows
        .into_iter()
        .map(|(channel, id, count, recipients)| Ok(((channel, id), row::recipients(recipients, count)?)));
    Ok((pin, sets.collect::<Result<_>>()?))
}

fn missing(post: PostId) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!("a part of the plan of post {post} is missing in the ledger"),
    )
}
