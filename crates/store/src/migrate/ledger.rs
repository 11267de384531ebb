//! The ledger: plans, outcomes and backfills. Claims end with the process that holds them, so none moves.

use std::collections::BTreeSet;

use herald_model::{Channel, PostId, Recipients, UserKey};

use super::{
    derivable::{author_of, is_derivable},
    part::{Batches, Part},
    source::{Source, corrupt, named, rows_after, show_key},
    table::{Table, Type, bigints},
};
use crate::{
    Outcome, Result,
    cluster::postgres::ledger::{channel_number, row::OutcomeColumns},
    embedded::{
        database::map_err,
        ledger::row::{self, RowKind},
    },
};

pub(super) const LEDGER: Part = Part {
    name: "ledger",
    tables: &[
        &SLICES,
        &CHUNKS,
        &OUTCOMES,
        &PINS,
        &BACKFILLS,
        &BACKFILL_POSTS,
        &BACKFILL_RECIPIENTS,
    ],
    estimate: |source| source.ledger.approximate_len() as u64,
    read: read_ledger,
};

const IN_SLICES: usize = 0;
const IN_CHUNKS: usize = 1;
const IN_OUTCOMES: usize = 2;
const IN_PINS: usize = 3;
const IN_BACKFILLS: usize = 4;
const IN_BACKFILL_POSTS: usize = 5;
const IN_BACKFILL_RECIPIENTS: usize = 6;

static SLICES: Table = Table {
    name: "ledger_slices",
    columns: &[
        ("post", Type::Bigint),
        ("slice", Type::Bigint),
        ("timeline", Type::Bigint),
        ("push", Type::Bigint),
        ("version", Type::Bigint),
        ("last", Type::Boolean),
        ("pin", Type::Bytea),
    ],
    key: 2,
    replaces: false,
    only: "",
};

static CHUNKS: Table = Table {
    name: "ledger_chunks",
    columns: &[
        ("post", Type::Bigint),
        ("channel", Type::Smallint),
        ("chunk", Type::Bigint),
        ("first_user", Type::Bigint),
        ("last_user", Type::Bigint),
        ("recipients_count", Type::Integer),
        ("recipients", Type::Bytea),
    ],
    key: 3,
    replaces: false,
    only: "",
};

static OUTCOMES: Table = Table {
    name: "ledger_outcomes",
    columns: &[
        ("post", Type::Bigint),
        ("channel", Type::Smallint),
        ("chunk", Type::Bigint),
        ("revision", Type::Bigint),
        ("first_delivered_at", Type::Bigint),
        ("last_delivered_at", Type::Bigint),
        ("delivered", Type::Integer),
        ("suppressed", Type::Integer),
        ("expired", Type::Integer),
        ("dead", Type::Integer),
        ("suppressed_by", Type::Integers),
        ("outcome", Type::Bytea),
    ],
    key: 3,
    replaces: false,
    only: "",
};

static PINS: Table = Table {
    name: "pinned_posts",
    columns: &[
        ("author", Type::Bigint),
        ("post", Type::Bigint),
        ("version", Type::Bigint),
    ],
    key: 2,
    replaces: false,
    only: "",
};

/// Columns of the table of backfills. The part of timelines fills it too.
pub(super) const BACKFILL_COLUMNS: [(&str, Type); 5] = [
    ("id", Type::Bigint),
    ("posts", Type::Bigints),
    ("last_post", Type::Bigint),
    ("recipients_count", Type::Integer),
    ("recipients", Type::Bytea),
];

/// Columns of the table of the recipients of backfills. The part of timelines fills it too.
pub(super) const BACKFILL_RECIPIENT_COLUMNS: [(&str, Type); 2] =
    [("recipient", Type::Bigint), ("backfill", Type::Bigint)];

static BACKFILLS: Table = Table {
    name: "backfills",
    columns: &BACKFILL_COLUMNS,
    key: 1,
    replaces: false,
    // Those with negative ids are of the part of timelines.
    only: "id > 0",
};

static BACKFILL_POSTS: Table = Table {
    name: "backfill_posts",
    columns: &[
        ("post", Type::Bigint),
        ("chunk", Type::Bigint),
        ("backfill", Type::Bigint),
    ],
    key: 2,
    replaces: false,
    only: "",
};

static BACKFILL_RECIPIENTS: Table = Table {
    name: "backfill_recipients",
    columns: &BACKFILL_RECIPIENT_COLUMNS,
    key: 2,
    replaces: false,
    only: "backfill > 0",
};

/// Bits of the number of a backfill within its post, in the backfill's id.
const NUMBER_BITS: u32 = 20;
/// Numbers of recorded backfills begin here; those of chunks that are moved as backfills begin at 0.
const RECORDED: u64 = 1 << (NUMBER_BITS - 1);

/// Numbers the rows of one kind within their post. They are counted again after an interruption, so that they are the
/// same.
struct Numbers {
    kind: RowKind,
    post: u64,
    next: u64,
}

impl Numbers {
    fn of(source: &Source, kind: RowKind, after: Option<&[u8]>) -> Result<Self> {
        let mut numbers = Self {
            kind,
            post: 0,
            next: 0,
        };
        if let Some(after) = after {
            numbers.post = row::read_post(after)?.0;
            let before = row::prefix(PostId(numbers.post), kind).to_vec()..=after.to_vec();
            if before.start() <= before.end() {
                for row in source.ledger.range(before) {
                    numbers.next += u64::from(RowKind::of_key(&row.key().map_err(map_err)?)? == kind);
                }
            }
        }
        Ok(numbers)
    }

    fn next(&mut self, post: u64) -> Result<u64> {
        if self.post != post {
            (self.post, self.next) = (post, 0);
        }
        let number = self.next;
        self.next += 1;
        if number >= RECORDED || post >= 1 << (63 - NUMBER_BITS) {
            return Err(corrupt(
                format!("post {post}"),
                format!(
                    "its id is too great, or it has more than {RECORDED} rows of the kind {:?}",
                    self.kind
                ),
            ));
        }
        Ok(post << NUMBER_BITS | number)
    }
}

fn read_ledger(source: &Source, after: Option<&[u8]>, out: &mut Batches) -> Result<()> {
    let mut chunks = Numbers::of(source, RowKind::Chunk, after)?;
    let mut backfills = Numbers::of(source, RowKind::Backfill, after)?;
    for entry in rows_after(&source.ledger, after) {
        let (key, value) = entry?;
        let what = || format!("the row {} of the ledger", show_key(&key));
        let post = named(row::read_post(&key), what)?.0;
        let what = || format!("the row {} of the ledger (post {post})", show_key(&key));
        match named(RowKind::of_key(&key), what)? {
            RowKind::Slice => named(read_slice(source, post, &key, &value, out), what)?,
            RowKind::Outcome => named(read_outcome(post, &key, &value, out), what)?,
            RowKind::Chunk => {
                let number = chunks.next(post)?;
                named(read_chunk(source, post, number, &key, &value, out), what)?;
            }
            RowKind::Backfill => {
                let id = backfills.next(post)? | RECORDED;
                let (_, chunk) = named(row::read_chunk_key(&key), what)?;
                let recipients = named(row::decode_chunk(&value).and_then(|(_, set)| set.decode()), what)?;
                add_backfill(out, id, post, &recipients);
                out.rows(IN_BACKFILL_POSTS)
                    .push([post.into(), chunk.0.into(), id.into()]);
            }
        }
        out.end_row(&key)?;
    }
    Ok(())
}

fn read_slice(source: &Source, post: u64, key: &[u8], value: &[u8], out: &mut Batches) -> Result<()> {
    let index = row::read_slice_key(key)?;
    let slice = row::Slice::decode(value)?;
    let (pin, pinned) = match row::Slice::decode_pin(value)? {
        Some(pin) => (pin, true),
        None => (pin_of_old_row(source, post, slice)?, false),
    };
    if pinned
        && index == 0
        && let Some(author) = author_of(source, post)?
    {
        out.rows(IN_PINS)
            .push([author.into(), post.into(), pin.version.0.into()]);
    }
    out.rows(IN_SLICES).push([
        post.into(),
        index.into(),
        slice.timeline.into(),
        slice.push.into(),
        pin.version.0.into(),
        slice.last.into(),
        slice.encode(&pin).into(),
    ]);
    Ok(())
}

/// The pin of a row of an older Herald, which stored none: as the embedded engine reads it, a retry publishes all chunks
/// of the post again, and the next slice begins after the last follower.
fn pin_of_old_row(source: &Source, post: u64, slice: row::Slice) -> Result<row::Pin> {
    let mut chunks = Vec::new();
    let mut last_follower: Option<UserKey> = None;
    for entry in source.ledger.prefix(row::prefix(PostId(post), RowKind::Chunk)) {
        let (key, value) = entry.into_inner().map_err(map_err)?;
        last_follower = last_follower.max(Some(row::decode_chunk(&value)?.0));
        chunks.push(row::read_chunk_key(&key)?);
    }
    Ok(row::Pin {
        version: herald_model::FollowVersion::default(),
        next_after: if slice.last { None } else { last_follower },
        chunks,
    })
}

fn read_chunk(
    source: &Source,
    post: u64,
    number: u64,
    key: &[u8],
    value: &[u8],
    out: &mut Batches,
) -> Result<()> {
    let (channel, chunk) = row::read_chunk_key(key)?;
    let (last, set) = row::decode_chunk(value)?;
    let recipients = set.decode()?;
    let first = recipients.iter().next();
    out.rows(IN_CHUNKS).push([
        post.into(),
        channel_number(channel).into(),
        chunk.0.into(),
        first.map_or(0, |user| user.0).into(),
        last.0.into(),
        recipients.len().into(),
        recipients.as_bytes().to_vec().into(),
    ]);
    if channel == Channel::Timeline && !is_derivable(source, post)? {
        // What is on timelines already moves with them.
        let recorded = source
            .ledger
            .get(row::chunk_key(PostId(post), RowKind::Outcome, channel, chunk))
            .map_err(map_err)?;
        let outcome = recorded.map(|row| row::decode_outcome(&row)).transpose()?;
        let pending = pending(&recipients, outcome.map(|recorded| recorded.outcome));
        if !pending.is_empty() {
            add_backfill(out, number, post, &pending);
        }
    }
    Ok(())
}

/// The recipients of a chunk who wait for their delivery.
fn pending(recipients: &Recipients, outcome: Option<Outcome>) -> Recipients {
    match outcome {
        None => recipients.clone(),
        Some(Outcome::Delivered { .. }) => Recipients::default(),
        Some(Outcome::Mixed {
            delivered,
            suppressed,
            expired,
            dead,
            ..
        }) => {
            let sets = [delivered, suppressed, expired, dead];
            let settled: BTreeSet<UserKey> = sets.iter().flatten().collect();
            Recipients::from_sorted(recipients.iter().filter(|user| !settled.contains(user)))
        }
    }
}

fn add_backfill(out: &mut Batches, id: u64, post: u64, recipients: &Recipients) {
    out.rows(IN_BACKFILLS).push([
        id.into(),
        bigints([post.cast_signed()]).into(),
        post.into(),
        recipients.len().into(),
        recipients.as_bytes().to_vec().into(),
    ]);
    let rows = out.rows(IN_BACKFILL_RECIPIENTS);
    for user in recipients {
        rows.push([user.0.into(), id.into()]);
    }
}

fn read_outcome(post: u64, key: &[u8], value: &[u8], out: &mut Batches) -> Result<()> {
    let (channel, chunk) = row::read_chunk_key(key)?;
    let head = row::decode_head(value)?;
    let recorded = row::decode_outcome(value)?;
    let columns = OutcomeColumns::of(&recorded.outcome);
    out.rows(IN_OUTCOMES).push([
        post.into(),
        channel_number(channel).into(),
        chunk.0.into(),
        recorded.revision.into(),
        head.delivered_at.map(|(first, _)| first.0).into(),
        head.delivered_at.map(|(_, last)| last.0).into(),
        columns.counts.delivered.into(),
        columns.counts.suppressed.into(),
        columns.counts.expired.into(),
        columns.counts.dead.into(),
        columns.suppressed_by.into(),
        columns.outcome.into(),
    ]);
    Ok(())
}
