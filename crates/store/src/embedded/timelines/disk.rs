//! The `timelines/` database.
//!
//! | keyspace | key | value |
//! |---|---|---|
//! | `runs` | group `u32`, run `u64` | a [block] |
//! | `merged` | user `u32` | a [merged row](block) |
//! | `state` | `next_run`, `oldest`, `mark` + shard `u32` | a `u64` |
//!
//! Numbers in keys and in `state` are big-endian. `mark` rows hold the merge watermarks.
//!
//! *Invariant:* a key of `runs` is written once. Blocks of runs up to the shard's merge watermark are also in `merged`:
//! readers skip these blocks and compaction drops them. Readers must read the watermarks first, then `runs`, then
//! `merged`.

use std::{
    path::Path,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use fjall::{
    Database, Keyspace, KeyspaceCreateOptions, PersistMode,
    compaction::Leveled,
    config::{
        BlockSizePolicy, BloomConstructionPolicy, CompressionPolicy, FilterPolicy, FilterPolicyEntry,
        PinningPolicy, RestartIntervalPolicy,
    },
};
use herald_model::UserKey;
use parking_lot::{Mutex, RwLock};

use super::{
    Config, block,
    buffer::Buffer,
    keys::{decode_number, malformed, run_key},
    merge_watermarks::MergeWatermarks,
    pair,
};
use crate::{
    Result,
    embedded::{
        contents::Contents,
        database::{files_cached_max, map_err, opening},
        erased_timelines::ErasedTimelines,
    },
};

/// Run numbers reserved at a time. Reserved numbers left at shutdown are never used.
const RUN_NUMBERS_RESERVED: u64 = 1_000;

/// Memtable size of `runs` in bytes. Only small runs use the memtable.
const MEMTABLE_BYTES: u64 = 8 << 20;

/// Journaled bytes after which the next large run rotates the journal.
const JOURNAL_BYTES: u64 = 32 << 20;

/// The keyspaces and their cached state.
pub(super) struct Disk {
    pub(super) database: Database,
    rows: RwLock<Rows>,
    state: Keyspace,
    pub(super) watermarks: Arc<MergeWatermarks>,
    numbers: Mutex<RunNumbers>,
    /// The last run that is readable. Gaps before it are never filled.
    written: AtomicU64,
    oldest: AtomicU64,
    /// Approximate bytes written to the journal since the last rotation.
    journaled: AtomicU64,
    erased: OnceLock<ErasedTimelines>,
}

/// The keyspaces of deliveries.
struct Rows {
    runs: Keyspace,
    merged: Keyspace,
}

struct RunNumbers {
    next: u64,
    reserved: u64,
}

impl Disk {
    /// Opens the database; creates it if it doesn't exist.
    pub(super) fn open(dir: &Path, config: &Config, contents: &Contents) -> Result<Self> {
        let watermarks = Arc::new(MergeWatermarks::default());
        let filters = Arc::clone(&watermarks);
        let database = Database::builder(dir)
            .cache_size(config.cache_mb << 20)
            .max_cached_files(Some(files_cached_max()))
            .manual_journal_persist(true)
            // With more than one, the first thread busy-waits while another compacts.
            .worker_threads(1)
            .with_compaction_filter_factories(Arc::new(move |keyspace| {
                (keyspace == "runs").then(|| filters.factory())
            }))
            .open()
            .map_err(|error| opening(dir, error))?;
        contents.check("timelines", &database)?;
        let runs = database.keyspace("runs", runs_options).map_err(map_err)?;
        let merged = database.keyspace("merged", merged_options).map_err(map_err)?;
        let state = database
            .keyspace("state", || options().max_memtable_size(1 << 20))
            .map_err(map_err)?;
        for row in state.prefix("mark") {
            let (key, value) = row.into_inner().map_err(map_err)?;
            let shard = key
                .get(4..)
                .and_then(|k| k.try_into().ok())
                .map(u32::from_be_bytes)
                .ok_or_else(malformed)?;
            watermarks.raise(shard, decode_number(&value)?);
        }
        let stored = |key: &str| {
            state
                .get(key)
                .map_err(map_err)?
                .map_or(Ok(0), |value| decode_number(&value))
        };
        let next = stored("next_run")?.max(1);
        let oldest = stored("oldest")?;
        Ok(Self {
            database,
            rows: RwLock::new(Rows { runs, merged }),
            watermarks,
            numbers: Mutex::new(RunNumbers { next, reserved: next }),
            written: AtomicU64::new(next - 1),
            oldest: AtomicU64::new(oldest),
            journaled: AtomicU64::new(0),
            erased: OnceLock::new(),
            state,
        })
    }

    /// Writes a run durably. Calls `each` with the group of each block. A small run is written to the journal, a large
    /// one as a sorted table.
    pub(super) fn write_run(&self, buffer: &Buffer, small: bool, mut each: impl FnMut(u32)) -> Result<()> {
        let run = self.next_run()?;
        if small {
            let runs = self.runs();
            let mut batch = self.database.batch();
            let mut bytes = 0;
            buffer.blocks(|group, block| {
                each(group);
                bytes += block.len() + 32;
                batch.insert(&runs, run_key(group, run), block);
                Ok(())
            })?;
            batch.commit().map_err(map_err)?;
            self.database.persist(PersistMode::SyncData).map_err(map_err)?;
            self.journaled.fetch_add(bytes as u64, Ordering::Relaxed);
        } else {
            self.rotate_journal()?;
            // `finish` fsyncs the tables, their directory and the manifest.
            let runs = self.runs();
            let mut ingestion = runs.start_ingestion().map_err(map_err)?;
            buffer.blocks(|group, block| {
                each(group);
                ingestion.write(run_key(group, run), block).map_err(map_err)
            })?;
            ingestion.finish().map_err(map_err)?;
        }
        self.written.store(run, Ordering::Release);
        Ok(())
    }

    /// The keyspace `runs`.
    pub(super) fn runs(&self) -> Keyspace {
        self.rows.read().runs.clone()
    }

    /// The keyspace `merged`.
    pub(super) fn merged(&self) -> Keyspace {
        self.rows.read().merged.clone()
    }

    /// Removes all deliveries, without reading them. Nothing writes meanwhile.
    ///
    /// By new keyspaces: after `Keyspace::clear`, fjall's recovery clears also what is ingested later.
    pub(super) fn clear(&self) -> Result<()> {
        let mut rows = self.rows.write();
        let Rows { runs, merged } = &mut *rows;
        for (keyspace, options) in [
            (runs, runs_options as fn() -> KeyspaceCreateOptions),
            (merged, merged_options),
        ] {
            let name = keyspace.name().clone();
            self.database.delete_keyspace(keyspace.clone()).map_err(map_err)?;
            *keyspace = self.database.keyspace(&name, options).map_err(map_err)?;
        }
        self.database.persist(PersistMode::SyncAll).map_err(map_err)
    }

    /// Reads all rows.
    pub(super) fn check(&self) -> Result<()> {
        for rows in [self.runs().iter(), self.merged().iter(), self.state.iter()] {
            for row in rows {
                row.into_inner().map_err(map_err)?;
            }
        }
        Ok(())
    }

    /// The last run that is readable.
    pub(super) fn last_run(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }

    /// The smallest post id that is kept.
    pub(super) fn oldest(&self) -> u64 {
        self.oldest.load(Ordering::Relaxed)
    }

    /// Sets the users whose timelines were erased.
    pub(super) fn set_erased(&self, erased: ErasedTimelines) {
        // Others are never set.
        let _ = self.erased.set(erased);
    }

    /// The users whose timelines were erased; `None` before they are set.
    pub(super) fn erased(&self) -> Option<&ErasedTimelines> {
        self.erased.get()
    }

    /// Whether the timeline of a user was erased.
    pub(super) fn is_erased(&self, user: UserKey) -> bool {
        self.erased().is_some_and(|erased| erased.contains(user))
    }

    /// Raises the smallest post id that is kept; smaller values are ignored. Durable on return.
    pub(super) fn raise_oldest_kept(&self, post: u64) -> Result<()> {
        if self.oldest.fetch_max(post, Ordering::Relaxed) < post {
            self.store("oldest".as_bytes(), post)?;
        }
        Ok(())
    }

    /// Durably records that a shard's blocks are merged up to a run.
    pub(super) fn raise_watermark(&self, shard: u32, run: u64) -> Result<()> {
        self.store(&[b"mark", &shard.to_be_bytes()[..]].concat(), run)?;
        self.watermarks.raise(shard, run);
        Ok(())
    }

    /// Appends a user's posts on disk to `out`: unmerged posts in any order, then merged posts, newest first.
    pub(super) fn posts_of(&self, user: UserKey, out: &mut Vec<u64>) -> Result<()> {
        let group = pair::group(user);
        let after = self.watermarks.get(group >> pair::SHARD_GROUP_BITS) + 1;
        for row in self
            .runs()
            .range(run_key(group, after)..=run_key(group, u64::MAX))
        {
            block::decode_user_posts(&row.value().map_err(map_err)?, pair::index(user), out)?;
        }
        if let Some(row) = self.merged().get(user.0.to_be_bytes()).map_err(map_err)? {
            for post in block::decode_merged(&row) {
                out.push(post?);
            }
        }
        Ok(())
    }

    fn next_run(&self) -> Result<u64> {
        let mut numbers = self.numbers.lock();
        if numbers.next == numbers.reserved {
            let reserved = numbers.next + RUN_NUMBERS_RESERVED;
            self.store(b"next_run", reserved)?;
            numbers.reserved = reserved;
        }
        let run = numbers.next;
        numbers.next += 1;
        Ok(run)
    }

    /// An ingestion flushes the memtable, but fjall's journal isn't informed of that and would grow without bound.
    /// Rotating the memtables lets fjall delete old journals.
    fn rotate_journal(&self) -> Result<()> {
        if self.journaled.load(Ordering::Relaxed) > JOURNAL_BYTES {
            self.runs().rotate_memtable().map_err(map_err)?;
            self.state.rotate_memtable().map_err(map_err)?;
            self.journaled.store(0, Ordering::Relaxed);
        }
        Ok(())
    }

    fn store(&self, key: &[u8], value: u64) -> Result<()> {
        self.state.insert(key, value.to_be_bytes()).map_err(map_err)?;
        self.database.persist(PersistMode::SyncData).map_err(map_err)
    }
}

fn options() -> KeyspaceCreateOptions {
    KeyspaceCreateOptions::default()
        .max_memtable_size(MEMTABLE_BYTES)
        .manual_journal_persist(true)
}

fn runs_options() -> KeyspaceCreateOptions {
    options()
        // Range reads don't use filters.
        .filter_policy(FilterPolicy::disabled())
        .data_block_size_policy(BlockSizePolicy::all(16 << 10))
        .data_block_restart_interval_policy(RestartIntervalPolicy::all(16))
        .data_block_compression_policy(CompressionPolicy::disabled())
        .index_block_pinning_policy(PinningPolicy::all(true))
        .compaction_strategy(Arc::new(
            Leveled::default()
                .with_l0_threshold(16)
                .with_table_target_size(8 << 20),
        ))
}

fn merged_options() -> KeyspaceCreateOptions {
    options()
        .filter_policy(FilterPolicy::all(FilterPolicyEntry::Bloom(
            BloomConstructionPolicy::BitsPerKey(10.0),
        )))
        .data_block_size_policy(BlockSizePolicy::all(8 << 10))
        .data_block_compression_policy(CompressionPolicy::disabled())
        .compaction_strategy(Arc::new(
            Leveled::default()
                .with_l0_threshold(4)
                .with_table_target_size(32 << 20),
        ))
}
