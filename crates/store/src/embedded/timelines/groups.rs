//! Reading of timelines in bulk, group by group.

use std::sync::Arc;

use fjall::{Iter, Slice};

use super::{
    block,
    disk::Disk,
    keys::{read_run_key, read_user_key, run_key},
    pair,
};
use crate::{Result, embedded::database::map_err};

/// An ascending cursor over the groups of a range on disk.
pub(super) struct Groups {
    runs: Rows,
    merged: Rows,
    watermarks: Arc<Vec<u64>>,
    last_run: u64,
}

/// One group of users.
pub(super) struct Group {
    /// The group's number.
    pub(super) number: u32,
    /// The users that have posts in unmerged blocks, as a bit set.
    pub(super) unmerged: u64,
    /// Number of unmerged blocks.
    pub(super) blocks: u64,
}

impl Groups {
    /// Reads the groups from `start` to before `end`; `None` reads to the last group. Runs after `last_run` are
    /// ignored.
    pub(super) fn new(disk: &Disk, start: u32, end: Option<u32>, last_run: u64) -> Result<Self> {
        // The order matters: see the invariant in `disk`.
        let watermarks = disk.watermarks.all();
        let first = run_key(start, 0);
        let runs = match end {
            Some(end) => disk.runs().range(first..run_key(end, 0)),
            None => disk.runs().range(first..),
        };
        let first = pair::user(start, 0).0.to_be_bytes();
        let merged = match end {
            Some(end) => disk.merged().range(first..pair::user(end, 0).0.to_be_bytes()),
            None => disk.merged().range(first..),
        };
        Ok(Self {
            runs: Rows::new(runs)?,
            merged: Rows::new(merged)?,
            watermarks,
            last_run,
        })
    }

    /// Replaces `pairs` with the next group's pairs, ascending and without duplicates.
    pub(super) fn next(&mut self, pairs: &mut Vec<u64>) -> Result<Option<Group>> {
        pairs.clear();
        let next_in_runs = self
            .runs
            .next
            .as_ref()
            .map(|(key, _)| read_run_key(key))
            .transpose()?
            .map(|(group, _)| group);
        let next_in_merged = self
            .merged
            .next
            .as_ref()
            .map(|(key, _)| read_user_key(key))
            .transpose()?
            .map(pair::group);
        let Some(number) = [next_in_runs, next_in_merged].into_iter().flatten().min() else {
            return Ok(None);
        };
        let mut group = Group {
            number,
            unmerged: 0,
            blocks: 0,
        };
        let watermark = self
            .watermarks
            .get((number >> pair::SHARD_GROUP_BITS) as usize)
            .copied()
            .unwrap_or(0);
        while let Some((key, row)) = &self.runs.next {
            let (group_number, run) = read_run_key(key)?;
            if group_number != number {
                break;
            }
            if watermark < run && run <= self.last_run {
                group.unmerged |= block::decode_pairs(row, pairs)?;
                group.blocks += 1;
            }
            self.runs.advance()?;
        }
        while let Some((key, row)) = &self.merged.next {
            let user = read_user_key(key)?;
            if pair::group(user) != number {
                break;
            }
            for post in block::decode_merged(row) {
                pairs.push(pair::in_group(pair::index(user), post?));
            }
            self.merged.advance()?;
        }
        pairs.sort_unstable();
        pairs.dedup();
        Ok(Some(group))
    }
}

/// The posts of one user that the retention keeps: the newest `entries_max` that are not smaller than `oldest`.
/// `posts` must be ascending.
pub(super) fn retained(posts: &[u64], oldest: u64, entries_max: usize) -> &[u64] {
    let posts = &posts[posts.partition_point(|p| pair::post(*p) < oldest)..];
    &posts[posts.len().saturating_sub(entries_max)..]
}

struct Rows {
    rows: Iter,
    next: Option<(Slice, Slice)>,
}

impl Rows {
    fn new(rows: Iter) -> Result<Self> {
        let mut rows = Self { rows, next: None };
        rows.advance()?;
        Ok(rows)
    }

    fn advance(&mut self) -> Result<()> {
        self.next = self
            .rows
            .next()
            .map(fjall::Guard::into_inner)
            .transpose()
            .map_err(map_err)?;
        Ok(())
    }
}
