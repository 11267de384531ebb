//! Reading many timelines, group by group.

use std::sync::Arc;

use fjall::{Iter, Slice};

use super::{
    block,
    disk::Disk,
    keys::{read_run_key, read_user_key, run_key},
    pair,
};
use crate::{Result, embedded::database::map_err};

/// All that is on disk of the groups of a range, ascending.
pub(super) struct Groups {
    runs: Rows,
    merged: Rows,
    marks: Arc<Vec<u64>>,
    last_run: u64,
}

/// One group's users.
pub(super) struct Group {
    /// Which.
    pub(super) number: u32,
    /// Who has posts in blocks that aren't merged, one bit a user.
    pub(super) fresh: u64,
    /// How many such blocks there are.
    pub(super) blocks: u64,
}

impl Groups {
    /// Reads the groups from `start` up to but not including `end`, of runs up to `last_run`.
    pub(super) fn new(disk: &Disk, start: u32, end: Option<u32>, last_run: u64) -> Result<Self> {
        // In this order, see the invariant in `disk`.
        let marks = disk.marks.all();
        let first = run_key(start, 0);
        let runs = match end {
            Some(end) => disk.runs.range(first..run_key(end, 0)),
            None => disk.runs.range(first..),
        };
        let first = pair::user(start, 0).0.to_be_bytes();
        let merged = match end {
            Some(end) => disk.merged.range(first..pair::user(end, 0).0.to_be_bytes()),
            None => disk.merged.range(first..),
        };
        Ok(Self {
            runs: Rows::new(runs)?,
            merged: Rows::new(merged)?,
            marks,
            last_run,
        })
    }

    /// Puts the next group's pairs into `pairs`: ascending, each once.
    pub(super) fn next(&mut self, pairs: &mut Vec<u64>) -> Result<Option<Group>> {
        pairs.clear();
        let of_runs = self
            .runs
            .next
            .as_ref()
            .map(|(key, _)| read_run_key(key))
            .transpose()?
            .map(|(group, _)| group);
        let of_merged = self
            .merged
            .next
            .as_ref()
            .map(|(key, _)| read_user_key(key))
            .transpose()?
            .map(pair::group);
        let Some(number) = [of_runs, of_merged].into_iter().flatten().min() else {
            return Ok(None);
        };
        let mut group = Group {
            number,
            fresh: 0,
            blocks: 0,
        };
        let mark = self
            .marks
            .get((number >> pair::SLICE_GROUP_BITS) as usize)
            .copied()
            .unwrap_or(0);
        while let Some((key, row)) = &self.runs.next {
            let (of, run) = read_run_key(key)?;
            if of != number {
                break;
            }
            if mark < run && run <= self.last_run {
                group.fresh |= block::pairs(row, pairs)?;
                group.blocks += 1;
            }
            self.runs.advance()?;
        }
        while let Some((key, row)) = &self.merged.next {
            let user = read_user_key(key)?;
            if pair::group(user) != number {
                break;
            }
            for post in block::merged(row) {
                pairs.push(pair::in_group(pair::index(user), post?));
            }
            self.merged.advance()?;
        }
        pairs.sort_unstable();
        pairs.dedup();
        Ok(Some(group))
    }
}

/// The part of one user's posts, ascending, that is kept: the newest, and not older than the oldest kept post.
pub(super) fn kept(posts: &[u64], oldest: u64, entries_max: usize) -> &[u64] {
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
