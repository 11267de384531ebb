//! Merging of a user's blocks into one row, and trimming of that row to the retention.
//!
//! Timelines that were erased are left out.
//!
//! One merge covers a shard of users: it reads their blocks and old rows in order, writes the new rows by one
//! ingestion, and then raises the shard's merge watermark. After a crash before the watermark is raised, posts are in
//! both places; readers drop duplicates.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

use super::{
    Config, block,
    disk::Disk,
    groups::{Groups, retained},
    keys::read_run_key,
    pair,
};
use crate::{Result, embedded::database::map_err};

/// Groups of one shard.
const SHARD_GROUPS: u32 = 1 << pair::SHARD_GROUP_BITS;

/// Schedules and runs merges.
#[derive(Default)]
pub(super) struct Merger {
    state: Mutex<State>,
    wake: Condvar,
    /// Held during a merge. If two merges of a shard overlapped, the one that ends last could overwrite rows of the
    /// other with rows that lack the newest runs, although the watermark covers these runs.
    pub(super) merging: Mutex<()>,
}

#[derive(Default)]
struct State {
    /// Number of unmerged blocks by shard.
    blocks: BTreeMap<u32, u64>,
    /// The shard that was merged last. Shards are merged in ascending order so that merged rows are written in key
    /// order.
    last: u32,
    closing: bool,
}

impl State {
    fn pick(&mut self, blocks_min: u64) -> Option<u32> {
        let due = |(_, blocks): &(&u32, &u64)| **blocks >= blocks_min;
        let (after, before) = (self.last.saturating_add(1).., ..=self.last);
        let shard = *self
            .blocks
            .range(after)
            .find(due)
            .or_else(|| self.blocks.range(before).find(due))?
            .0;
        self.last = shard;
        Some(shard)
    }
}

impl Merger {
    /// Adds newly written blocks, by shard, to the number of unmerged blocks.
    pub(super) fn add_blocks(&self, blocks: &BTreeMap<u32, u64>) {
        let mut state = self.state.lock();
        for (shard, count) in blocks {
            *state.blocks.entry(*shard).or_default() += count;
        }
        drop(state);
        self.wake.notify_one();
    }

    /// Stops [`run`](Self::run).
    pub(super) fn close(&self) {
        self.state.lock().closing = true;
        self.wake.notify_one();
    }

    /// Merges shards with enough unmerged blocks until closed. Sleeps between merges to limit the use of the processor.
    pub(super) fn run(&self, disk: &Disk, config: &Config) {
        if let Err(error) = self.count_blocks(disk) {
            tracing::warn!(%error, "could not count the unmerged blocks");
        }
        let blocks_min = u64::from(config.merge_blocks_min) * u64::from(SHARD_GROUPS);
        while let Some(shard) = self.next_shard(blocks_min) {
            let start = Instant::now();
            if let Err(error) = self.merge(disk, config, shard) {
                // `merge` restores the count of unmerged blocks, so the merge is retried after a pause.
                tracing::warn!(%error, shard, "could not merge the timelines of a shard");
                self.sleep(Duration::from_secs(10));
            }
            let percent = u32::from(config.merge_busy_percent.clamp(1, 100));
            self.sleep(start.elapsed() * (100 - percent) / percent);
        }
    }

    /// Merges one shard now.
    pub(super) fn merge(&self, disk: &Disk, config: &Config, shard: u32) -> Result<()> {
        let _merging = self.merging.lock();
        let counted = self.state.lock().blocks.remove(&shard).unwrap_or(0);
        merge_shard(disk, shard, config.entries_max).inspect_err(|_| {
            *self.state.lock().blocks.entry(shard).or_default() += counted;
        })
    }

    /// No shard has unmerged blocks.
    pub(super) fn forget_blocks(&self) {
        self.state.lock().blocks.clear();
    }

    /// The shards with unmerged blocks.
    pub(super) fn shards(&self) -> Vec<u32> {
        self.state.lock().blocks.keys().copied().collect()
    }

    /// Counts the unmerged blocks on disk after opening. Reads every key of `runs` once.
    pub(super) fn count_blocks(&self, disk: &Disk) -> Result<()> {
        let watermarks = disk.watermarks.all();
        let last_run = disk.last_run();
        let mut counts = BTreeMap::<u32, u64>::new();
        for row in disk.runs().iter() {
            let (group, run) = read_run_key(&row.key().map_err(map_err)?)?;
            let shard = group >> pair::SHARD_GROUP_BITS;
            if run <= last_run && run > watermarks.get(shard as usize).copied().unwrap_or(0) {
                *counts.entry(shard).or_default() += 1;
            }
            if self.state.lock().closing {
                break;
            }
        }
        self.add_blocks(&counts);
        Ok(())
    }

    fn next_shard(&self, blocks_min: u64) -> Option<u32> {
        let mut state = self.state.lock();
        loop {
            if state.closing {
                return None;
            }
            if let Some(shard) = state.pick(blocks_min) {
                return Some(shard);
            }
            self.wake.wait(&mut state);
        }
    }

    fn sleep(&self, pause: Duration) {
        let until = Instant::now() + pause;
        let mut state = self.state.lock();
        while !state.closing && !self.wake.wait_until(&mut state, until).timed_out() {}
    }
}

fn merge_shard(disk: &Disk, shard: u32, entries_max: usize) -> Result<()> {
    let last_run = disk.last_run();
    let oldest = disk.oldest();
    let start = shard << pair::SHARD_GROUP_BITS;
    // The last shard ends with the last group.
    let end = start
        .checked_add(SHARD_GROUPS)
        .filter(|end| *end <= u32::MAX >> pair::GROUP_BITS);
    let mut groups = Groups::new(disk, start, end, last_run)?;
    let merged = disk.merged();
    let mut ingestion = merged.start_ingestion().map_err(map_err)?;
    let (mut pairs, mut row) = (Vec::new(), Vec::new());
    while let Some(group) = groups.next(&mut pairs)? {
        for posts in pairs.chunk_by(|a, b| pair::user_in_group(*a) == pair::user_in_group(*b)) {
            let index = pair::user_in_group(posts[0]);
            let user = pair::user(group.number, index);
            let key = user.0.to_be_bytes();
            if disk.is_erased(user) {
                ingestion.write_tombstone(key).map_err(map_err)?;
                continue;
            }
            if group.unmerged >> index & 1 == 0 {
                continue;
            }
            row.clear();
            let posts = retained(posts, oldest, entries_max);
            block::encode_merged(posts.iter().rev().map(|p| pair::post(*p)), &mut row);
            ingestion.write(key, &row[..]).map_err(map_err)?;
        }
    }
    ingestion.finish().map_err(map_err)?;
    disk.raise_watermark(shard, last_run)
}
