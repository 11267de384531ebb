//! Timelines: whole, into Valkey; and those entries that could not be made again from follows, into PostgreSQL.

use futures::executor::block_on;
use herald_model::{Recipients, UserKey};

use super::{
    derivable::is_derivable,
    ledger::{BACKFILL_COLUMNS, BACKFILL_RECIPIENT_COLUMNS},
    part::{Batches, Part},
    source::{Source, named, read_u32},
    table::{Table, bigints},
};
use crate::Result;

pub(super) const TIMELINES: Part = Part {
    name: "timelines",
    tables: &[&SEEDS, &SEED_RECIPIENTS],
    estimate: |source| source.user_ids.approximate_len() as u64,
    read: read_timelines,
};

/// Users whose timelines are read at a time.
const USERS_PER_READ: u32 = 256;

/// The entries of one user, as a backfill with the negative key of the user as its id.
static SEEDS: Table = Table {
    name: "backfills",
    columns: &BACKFILL_COLUMNS,
    key: 1,
    replaces: false,
    only: "id < 0",
};

static SEED_RECIPIENTS: Table = Table {
    name: "backfill_recipients",
    columns: &BACKFILL_RECIPIENT_COLUMNS,
    key: 2,
    replaces: false,
    only: "backfill < 0",
};

fn read_timelines(source: &Source, after: Option<&[u8]>, out: &mut Batches) -> Result<()> {
    let stores = source.stores();
    let Some(UserKey(last)) = block_on(stores.users.last_key())? else {
        return Ok(());
    };
    let mut next = after
        .and_then(read_u32)
        .map_or(1, |after| after.saturating_add(1));
    while next <= last {
        let end = last.min(next.saturating_add(USERS_PER_READ - 1));
        let users: Vec<UserKey> = (next..=end).map(UserKey).collect();
        let timelines = named(block_on(stores.timelines.read(&users)), || {
            format!("the timelines of the users {next} to {end}")
        })?;
        for (user, timeline) in users.iter().zip(timelines) {
            if timeline.posts.is_empty() {
                continue;
            }
            let mut seeds = Vec::new();
            for post in &timeline.posts {
                if !is_derivable(source, post.0)? {
                    seeds.push(post.0.cast_signed());
                }
            }
            if let Some(last_post) = seeds.last().copied() {
                let id = -i64::from(user.0);
                let recipients = Recipients::from_sorted([*user]);
                out.rows(0).push([
                    id.into(),
                    bigints(seeds).into(),
                    last_post.into(),
                    recipients.len().into(),
                    recipients.as_bytes().to_vec().into(),
                ]);
                out.rows(1).push([user.0.into(), id.into()]);
            }
            out.add_timeline(*user, timeline.posts);
        }
        out.end_rows(users.len() as u64, &end.to_be_bytes())?;
        let Some(following) = end.checked_add(1) else {
            return Ok(());
        };
        next = following;
    }
    Ok(())
}
