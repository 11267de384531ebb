//! Merging a user's many blocks into one row, and trimming it.
//!
//! A slice of users is merged in one go: their blocks and old rows are read in order, the new rows are written by one
//! ingestion, and only then the slice's mark is raised. A crash anywhere between leaves posts in both places, and readers
//! leave repeats out.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

use super::{
    Config, block,
    disk::Disk,
    groups::{Groups, kept},
    keys::read_run_key,
    pair,
};
use crate::{Result, embedded::database::map_err};

/// Groups of one slice.
const SLICE_GROUPS: u32 = 1 << pair::SLICE_GROUP_BITS;

/// Decides what to merge and when.
#[derive(Default)]
pub(super) struct Merger {
    state: Mutex<State>,
    wake: Condvar,
    /// Held while a slice is merged. Of two merges of one slice at once, the one that ends last would write rows over the
    /// other's that lack the runs it came too early to see, and the mark already says that they are merged.
    merging: Mutex<()>,
}

#[derive(Default)]
struct State {
    /// Blocks that wait to be merged, by slice.
    blocks: BTreeMap<u32, u64>,
    /// The slice that was merged last; the next one comes after it, so that the merged rows are written in order.
    last: u32,
    closing: bool,
}

impl State {
    fn pick(&mut self, blocks_min: u64) -> Option<u32> {
        let due = |(_, blocks): &(&u32, &u64)| **blocks >= blocks_min;
        let (after, before) = (self.last.saturating_add(1).., ..=self.last);
        let slice = *self
            .blocks
            .range(after)
            .find(due)
            .or_else(|| self.blocks.range(before).find(due))?
            .0;
        self.last = slice;
        Some(slice)
    }
}

impl Merger {
    /// Counts blocks that were written, by slice.
    pub(super) fn add(&self, blocks: &BTreeMap<u32, u64>) {
        let mut state = self.state.lock();
        for (slice, count) in blocks {
            *state.blocks.entry(*slice).or_default() += count;
        }
        drop(state);
        self.wake.notify_one();
    }

    /// Ends [`run`](Self::run).
    pub(super) fn close(&self) {
        self.state.lock().closing = true;
        self.wake.notify_one();
    }

    /// Merges what is due, until closed, resting in between.
    pub(super) fn run(&self, disk: &Disk, config: &Config) {
        if let Err(error) = self.count(disk) {
            tracing::warn!(%error, "could not count the blocks to merge");
        }
        let blocks_min = u64::from(config.merge_blocks_min) * u64::from(SLICE_GROUPS);
        while let Some(slice) = self.next(blocks_min) {
            let start = Instant::now();
            if let Err(error) = self.merge(disk, config, slice) {
                // The blocks stay; they are counted again so that it is tried again, not at once.
                tracing::warn!(%error, slice, "could not merge timelines");
                self.rest(Duration::from_secs(10));
            }
            let percent = u32::from(config.merge_busy_percent.clamp(1, 100));
            self.rest(start.elapsed() * (100 - percent) / percent);
        }
    }

    /// Merges one slice now.
    pub(super) fn merge(&self, disk: &Disk, config: &Config, slice: u32) -> Result<()> {
        let _merging = self.merging.lock();
        let counted = self.state.lock().blocks.remove(&slice).unwrap_or(0);
        merge_slice(disk, slice, config.entries_max).inspect_err(|_| {
            *self.state.lock().blocks.entry(slice).or_default() += counted;
        })
    }

    /// The slices that have blocks to merge.
    pub(super) fn slices(&self) -> Vec<u32> {
        self.state.lock().blocks.keys().copied().collect()
    }

    /// Counts the blocks that were there before, reading each row once.
    pub(super) fn count(&self, disk: &Disk) -> Result<()> {
        let marks = disk.marks.all();
        let last_run = disk.last_run();
        let mut counts = BTreeMap::<u32, u64>::new();
        for row in disk.runs.iter() {
            let (group, run) = read_run_key(&row.key().map_err(map_err)?)?;
            let slice = group >> pair::SLICE_GROUP_BITS;
            if run <= last_run && run > marks.get(slice as usize).copied().unwrap_or(0) {
                *counts.entry(slice).or_default() += 1;
            }
            if self.state.lock().closing {
                break;
            }
        }
        self.add(&counts);
        Ok(())
    }

    fn next(&self, blocks_min: u64) -> Option<u32> {
        let mut state = self.state.lock();
        loop {
            if state.closing {
                return None;
            }
            if let Some(slice) = state.pick(blocks_min) {
                return Some(slice);
            }
            self.wake.wait(&mut state);
        }
    }

    fn rest(&self, pause: Duration) {
        let until = Instant::now() + pause;
        let mut state = self.state.lock();
        while !state.closing && !self.wake.wait_until(&mut state, until).timed_out() {}
    }
}

fn merge_slice(disk: &Disk, slice: u32, entries_max: usize) -> Result<()> {
    let upto = disk.last_run();
    let oldest = disk.oldest();
    let start = slice << pair::SLICE_GROUP_BITS;
    // The last slice ends with the last group.
    let end = start
        .checked_add(SLICE_GROUPS)
        .filter(|end| *end <= u32::MAX >> pair::GROUP_BITS);
    let mut groups = Groups::new(disk, start, end, upto)?;
    let mut ingestion = disk.merged.start_ingestion().map_err(map_err)?;
    let (mut pairs, mut row) = (Vec::new(), Vec::new());
    while let Some(group) = groups.next(&mut pairs)? {
        for posts in pairs.chunk_by(|a, b| pair::user_in_group(*a) == pair::user_in_group(*b)) {
            let index = pair::user_in_group(posts[0]);
            if group.fresh >> index & 1 == 0 {
                continue;
            }
            row.clear();
            let posts = kept(posts, oldest, entries_max);
            block::encode_merged(posts.iter().rev().map(|p| pair::post(*p)), &mut row);
            let key = pair::user(group.number, index).0.to_be_bytes();
            ingestion.write(key, &row[..]).map_err(map_err)?;
        }
    }
    ingestion.finish().map_err(map_err)?;
    disk.raise_mark(slice, upto)
}
