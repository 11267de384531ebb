//! Delivery counts, counted messages and announced analytics files.

use herald_model::{Channel, PostId};

use super::{
    part::{Batches, Part},
    source::{Source, corrupt, read_u32, read_u64, rows_after, show_key, undecodable},
    table::{Table, Type},
};
use crate::{
    Counts, Result,
    cluster::postgres::ledger::channel_number,
    embedded::totals::row::{self, PAGE},
};

pub(super) const SEEN: Part = Part {
    name: "counted messages",
    tables: &[&SEEN_TABLE],
    estimate: |source| source.totals_seen.approximate_len() as u64,
    read: read_seen,
};

pub(super) const COUNTS: Part = Part {
    name: "delivery counts",
    tables: &[&POSTS_TABLE, &HOURS_TABLE],
    estimate: |source| source.totals_posts.approximate_len() as u64,
    read: read_counts,
};

pub(super) const CHUNKS: Part = Part {
    name: "counted chunks",
    tables: &[&CHUNKS_TABLE],
    estimate: |source| source.totals_chunks.approximate_len() as u64,
    read: read_chunks,
};

pub(super) const FILES: Part = Part {
    name: "announced files",
    tables: &[&INTENTS_TABLE],
    estimate: |source| source.totals_intents.approximate_len() as u64,
    read: read_intents,
};

static SEEN_TABLE: Table = Table {
    name: "totals_seen",
    columns: &[
        ("stream", Type::Text),
        ("page", Type::Bigint),
        ("bits", Type::Bytea),
    ],
    key: 2,
    replaces: false,
    only: "",
};

static POSTS_TABLE: Table = Table {
    name: "totals_posts",
    columns: &[
        ("post", Type::Bigint),
        ("author", Type::Bigint),
        ("posts", Type::Bigint),
        ("deleted_posts", Type::Bigint),
        ("timeline_delivered", Type::Bigint),
        ("timeline_dead", Type::Bigint),
        ("push_delivered", Type::Bigint),
        ("push_suppressed", Type::Bigint),
        ("push_expired", Type::Bigint),
        ("push_dead", Type::Bigint),
        ("timeline_latency_ms_max", Type::Bigint),
        ("push_latency_ms_max", Type::Bigint),
    ],
    key: 1,
    replaces: false,
    only: "",
};

static HOURS_TABLE: Table = Table {
    name: "totals_hours",
    columns: &[
        ("hour", Type::Bigint),
        ("posts", Type::Bigint),
        ("deleted_posts", Type::Bigint),
        ("timeline_delivered", Type::Bigint),
        ("timeline_dead", Type::Bigint),
        ("push_delivered", Type::Bigint),
        ("push_suppressed", Type::Bigint),
        ("push_expired", Type::Bigint),
        ("push_dead", Type::Bigint),
    ],
    key: 1,
    replaces: false,
    only: "",
};

static CHUNKS_TABLE: Table = Table {
    name: "totals_chunks",
    columns: &[
        ("post", Type::Bigint),
        ("channel", Type::Smallint),
        ("chunk", Type::Bigint),
        ("revision", Type::Bigint),
        ("delivered", Type::Bigint),
        ("suppressed", Type::Bigint),
        ("expired", Type::Bigint),
        ("dead", Type::Bigint),
    ],
    key: 3,
    replaces: false,
    only: "",
};

static INTENTS_TABLE: Table = Table {
    name: "totals_intents",
    columns: &[
        ("file", Type::Text),
        ("lease", Type::Text),
        ("token", Type::Bigint),
    ],
    key: 1,
    replaces: false,
    only: "",
};

fn read_seen(source: &Source, after: Option<&[u8]>, out: &mut Batches) -> Result<()> {
    for row in rows_after(&source.totals_seen, after) {
        let (key, bits) = row?;
        let what = || format!("the counted messages of the row {}", show_key(&key));
        let (stream, page) = key
            .split_last_chunk()
            .and_then(|(stream, page)| Some((str::from_utf8(stream).ok()?, u64::from_be_bytes(*page))))
            .ok_or_else(|| undecodable(what(), "totals_seen"))?;
        if bits.len() as u64 != PAGE / 8 {
            return Err(undecodable(what(), "totals_seen"));
        }
        out.rows(0)
            .push([stream.to_owned().into(), page.into(), bits.to_vec().into()]);
        out.end_row(&key)?;
    }
    Ok(())
}

/// Posts, then hours. The positions of hours have a byte before their key.
fn read_counts(source: &Source, after: Option<&[u8]>, out: &mut Batches) -> Result<()> {
    let after_hour = match after {
        Some(&[0xff, ref hour @ ..]) if hour.len() == 4 => Some(hour),
        _ => None,
    };
    if after_hour.is_none() {
        for row in rows_after(&source.totals_posts, after) {
            let (key, row) = row?;
            let what = || format!("the delivery counts of the row {}", show_key(&key));
            let post = read_u64(&key).ok_or_else(|| undecodable(what(), "totals_posts"))?;
            let totals = row::decode_post(&row)
                .ok_or_else(|| undecodable(format!("the delivery counts of post {post}"), "totals_posts"))?;
            let [
                posts,
                deleted,
                timeline,
                timeline_dead,
                push,
                suppressed,
                expired,
                dead,
            ] = numbers(&totals.counts);
            out.rows(0).push([
                post.into(),
                totals.author.0.into(),
                posts.into(),
                deleted.into(),
                timeline.into(),
                timeline_dead.into(),
                push.into(),
                suppressed.into(),
                expired.into(),
                dead.into(),
                totals.timeline_latency_ms_max.into(),
                totals.push_latency_ms_max.into(),
            ]);
            out.end_row(&key)?;
        }
    }
    for row in rows_after(&source.totals_hours, after_hour) {
        let (key, row) = row?;
        let what = || format!("the delivery counts of the hour {}", show_key(&key));
        let hour = read_u32(&key).ok_or_else(|| undecodable(what(), "totals_hours"))?;
        let counts = row::decode_counts(&mut &row[..]).ok_or_else(|| undecodable(what(), "totals_hours"))?;
        let [
            posts,
            deleted,
            timeline,
            timeline_dead,
            push,
            suppressed,
            expired,
            dead,
        ] = numbers(&counts);
        out.rows(1).push([
            hour.into(),
            posts.into(),
            deleted.into(),
            timeline.into(),
            timeline_dead.into(),
            push.into(),
            suppressed.into(),
            expired.into(),
            dead.into(),
        ]);
        out.end_row(&[&[0xff], &key[..]].concat())?;
    }
    Ok(())
}

fn numbers(counts: &Counts) -> [i64; 8] {
    [
        counts.posts,
        counts.deleted_posts,
        counts.timeline_delivered,
        counts.timeline_dead,
        counts.push_delivered,
        counts.push_suppressed,
        counts.push_expired,
        counts.push_dead,
    ]
}

fn read_chunks(source: &Source, after: Option<&[u8]>, out: &mut Batches) -> Result<()> {
    for row in rows_after(&source.totals_chunks, after) {
        let (key, row) = row?;
        let what = || format!("the counted chunk {}", show_key(&key));
        let malformed = || undecodable(what(), "totals_chunks");
        let (post, rest) = key.split_first_chunk().ok_or_else(malformed)?;
        let (channel, chunk) = rest.split_first().ok_or_else(malformed)?;
        let chunk = <[u8; 8]>::try_from(chunk).map_err(|_| malformed())?;
        let channel = match channel {
            0 => Channel::Timeline,
            1 => Channel::Push,
            _ => return Err(malformed()),
        };
        let counted = row::decode_chunk(&row).ok_or_else(malformed)?;
        out.rows(0).push([
            PostId(u64::from_be_bytes(*post)).0.into(),
            channel_number(channel).into(),
            u64::from_be_bytes(chunk).into(),
            counted.revision.into(),
            counted.counts.delivered.into(),
            counted.counts.suppressed.into(),
            counted.counts.expired.into(),
            counted.counts.dead.into(),
        ]);
        out.end_row(&key)?;
    }
    Ok(())
}

/// Their writers ended with the embedded store, so the analytics service cleans up after them.
fn read_intents(source: &Source, after: Option<&[u8]>, out: &mut Batches) -> Result<()> {
    for row in rows_after(&source.totals_intents, after) {
        let (key, row) = row?;
        let file = str::from_utf8(&key).map_err(|_| {
            corrupt(
                format!("the announced file {}", show_key(&key)),
                "its name is no text",
            )
        })?;
        let owner = row::decode_owner(&row)
            .ok_or_else(|| undecodable(format!("the announced file {file}"), "totals_intents"))?;
        out.rows(0)
            .push([file.to_owned().into(), owner.name.into(), owner.token.into()]);
        out.end_row(&key)?;
    }
    Ok(())
}
