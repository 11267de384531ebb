//! Timelines: deliveries are buffered in memory, sorted, and flushed to disk as runs of packed blocks.
//!
//! A row for each delivery would cost microseconds; a delivery in a run of sorted blocks costs tens of nanoseconds.
//! JetStream is the write-ahead log: a message is acknowledged after the run with its deliveries is fsynced, and
//! redelivered otherwise.
//!
//! Path of a delivery: [`intake`] (readable immediately) → [`disk`], written by the flusher thread (durable) → one
//! merged row for each user, written by the merger thread ([`merge`]).

pub(crate) mod block;
pub(crate) mod buffer;
mod disk;
mod groups;
mod intake;
mod keys;
mod merge;
mod merge_watermarks;
pub(crate) mod pair;
mod read;
mod rebuild;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, path::Path, sync::Arc, thread::JoinHandle, time::Duration};

use async_trait::async_trait;
use herald_model::{PostId, Recipients, UserKey};
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};

pub(super) use self::rebuild::{
    Deliveries, copy_mark, prepare as prepare_rebuild, request as request_rebuild,
};
use self::{
    buffer::Buffer,
    disk::Disk,
    groups::retained,
    intake::{FlushPolicy, Intake},
    merge::Merger,
    rebuild::Rebuilding,
};
use super::{
    blocking::read_blocking, contents::Contents, database::map_err, dir::io_error,
    erased_timelines::ErasedTimelines, fault::Fault, ledger::Ledger, recover::TimelinesState,
    shared_error::SharedError, space::Space,
};
use crate::{
    Delivered, Durable, Error, ErrorKind, Rebuilt, Result, TimelineEntries, TimelinePage, Timelines,
};

/// Configuration of the timelines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Maximum age of a run in memory before it is flushed, in milliseconds, at most 1,000. A message is acknowledged
    /// only after its run is flushed, so this must be well below the consumer's ack wait.
    pub flush_interval_ms: u64,
    /// Number of chunks after which a small run is flushed, at least 1. A larger number acknowledges more messages in
    /// one burst, which delays other messages.
    pub flush_chunks: usize,
    /// Maximum number of deliveries in one run. Two runs are in memory, at 8 to 16 bytes for each delivery; further
    /// deliveries wait.
    pub run_pairs_max: usize,
    /// Maximum number of deliveries in a small run. A small run is written to the journal, a larger run as a sorted
    /// table.
    pub small_run_pairs_max: usize,
    /// Maximum number of entries in a timeline; older entries are dropped.
    pub entries_max: usize,
    /// Size of the block cache in MiB.
    pub cache_mb: u64,
    /// Average number of unmerged blocks for each user at which a shard is merged. A smaller number makes reads faster
    /// and causes more writes.
    pub merge_blocks_min: u32,
    /// Maximum share of one core that merging uses, in percent.
    pub merge_busy_percent: u8,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            flush_interval_ms: 200,
            flush_chunks: 128,
            run_pairs_max: 4_000_000,
            small_run_pairs_max: 65_536,
            entries_max: 800,
            cache_mb: 64,
            merge_blocks_min: 64,
            merge_busy_percent: 15,
        }
    }
}

/// What failed, in a report of a fault.
const FAULT: &str = "can't write to the database timelines";

/// The embedded engine's [`Timelines`](crate::Timelines).
pub struct EmbeddedTimelines {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    config: Config,
    space: Arc<Space>,
    fault: Arc<Fault>,
    intake: Intake,
    disk: Disk,
    merger: Merger,
    /// Held for reading while a run is written, and for writing while all rows are removed.
    clearing: RwLock<()>,
    rebuilding: Rebuilding,
}

impl EmbeddedTimelines {
    /// Opens the timelines in the directory `timelines` below `parent`; creates them if they don't exist.
    pub(crate) fn open(
        parent: &Path,
        config: &Config,
        space: Arc<Space>,
        fault: Arc<Fault>,
        contents: &Contents,
    ) -> Result<Self> {
        let policy = FlushPolicy {
            interval: Duration::from_millis(config.flush_interval_ms.min(1_000)),
            chunks: config.flush_chunks.max(1),
            small_pairs_max: config.small_run_pairs_max,
        };
        let shared = Arc::new(Shared {
            intake: Intake::new(config.run_pairs_max, policy),
            disk: Disk::open(&parent.join("timelines"), config, contents)?,
            merger: Merger::default(),
            config: config.clone(),
            clearing: RwLock::default(),
            rebuilding: Rebuilding::open(parent)?,
            space,
            fault,
        });
        let store = Self {
            shared,
            threads: Mutex::default(),
        };
        store.spawn("timelines-flush", Shared::flush)?;
        store.spawn("timelines-merge", |shared| {
            shared.merger.run(&shared.disk, &shared.config);
        })?;
        Ok(store)
    }

    /// Sets the ledger from which timelines are rebuilt and the users whose timelines were erased, and continues a
    /// rebuild that an earlier process began.
    pub(super) fn attach(&self, ledger: Arc<Ledger>, erased: ErasedTimelines) -> Result<()> {
        self.shared.disk.set_erased(erased);
        self.shared.rebuilding.attach(ledger);
        if !self.shared.rebuilding.is_active() {
            return Ok(());
        }
        self.spawn("timelines-rebuild", |shared| {
            // Reads run on the blocking threads of a runtime.
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let finished = runtime
                .map_err(|e| io_error("can't start a runtime".into(), e))
                .and_then(|runtime| runtime.block_on(shared.finish_rebuild()));
            if let Err(error) = finished {
                tracing::error!(
                    error = super::shared_error::with_sources(&error),
                    "can't rebuild the timelines: the next start tries again"
                );
            }
        })
    }

    /// Hides posts with smaller ids from now on; merging drops them from disk. A value smaller than an earlier one is
    /// ignored. Called when posts pass the retention of timelines. Durable on return.
    pub fn raise_oldest_kept(&self, post: PostId) -> Result<()> {
        self.shared.disk.raise_oldest_kept(post.0)
    }

    /// The smallest post that is not hidden.
    pub(crate) fn oldest_kept(&self) -> PostId {
        PostId(self.shared.disk.oldest())
    }

    /// Merges the blocks of all users now. For tests and maintenance; the merger thread does the same in the
    /// background.
    pub fn merge_all(&self) -> Result<()> {
        let shared = &self.shared;
        shared
            .merger
            .shards()
            .into_iter()
            .try_for_each(|shard| shared.merger.merge(&shared.disk, &shared.config, shard))
    }

    /// Checks that deliveries are accepted.
    pub(crate) fn check(&self) -> Result<()> {
        self.shared.space.check()?;
        self.shared.fault.check()?;
        self.shared.intake.check()
    }

    /// The database of fjall.
    pub(crate) fn fjall(&self) -> &fjall::Database {
        &self.shared.disk.database
    }

    /// Stops merges until the guard is dropped: compaction drops what is merged, also from snapshots.
    pub(crate) fn freeze(&self) -> Frozen<'_> {
        Frozen {
            shared: &self.shared,
            _no_merge: self.shared.merger.merging.lock(),
        }
    }

    /// Reports a fault of fjall's own threads, which tell nobody: they refuse all later writes.
    pub(crate) fn check_disk(&self) -> Result<()> {
        let checked = self.shared.disk.database.persist(fjall::PersistMode::Buffer);
        checked.map_err(|e| self.shared.fault.report(FAULT, &map_err(e)))
    }

    /// Flushes the buffers and stops the threads; later deliveries are rejected.
    pub(crate) fn close(&self) -> Result<()> {
        self.shared.intake.close();
        self.shared.merger.close();
        let threads = std::mem::take(&mut *self.threads.lock());
        let panicked = threads
            .into_iter()
            .filter_map(|thread| thread.join().err())
            .count();
        if panicked > 0 {
            return Err(Error::new(
                ErrorKind::Unavailable,
                "a thread of the timelines panicked",
            ));
        }
        Ok(())
    }

    fn spawn(&self, name: &str, work: fn(&Shared)) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new()
            .name(name.into())
            .spawn(move || work(&shared))
            .map_err(|e| io_error(format!("can't start the thread {name}"), e))?;
        self.threads.lock().push(thread);
        Ok(())
    }
}

impl Drop for EmbeddedTimelines {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::error!(%error, "the timelines were not closed cleanly");
        }
    }
}

impl Shared {
    /// Flushes runs until closed.
    fn flush(&self) {
        // Fails pending deliveries even if this thread panics.
        let _abandon = AbandonOnDrop(self);
        while let Some(run) = self.intake.next() {
            let small = run.pairs() <= self.config.small_run_pairs_max;
            let outcome = {
                let _no_clearing = self.clearing.read();
                self.write_run(&run, small)
            };
            // If the disk is full while a sorted table is written, the database is unchanged. After any other error the
            // state on disk is unknown.
            let fatal = outcome
                .as_ref()
                .is_err_and(|e| small || e.kind() != ErrorKind::Full);
            let outcome = outcome.map_err(|error| {
                if fatal {
                    return SharedError::of(&self.fault.report(FAULT, &error));
                }
                tracing::error!(
                    error = super::shared_error::with_sources(&error),
                    "could not flush a run of timelines: its messages are delivered again"
                );
                SharedError::new("the timelines can't be flushed", &error)
            });
            self.intake.finish_flush(run, outcome, fatal, !small);
        }
    }

    fn write_run(&self, run: &Buffer, small: bool) -> Result<()> {
        let mut blocks = BTreeMap::<u32, u64>::new();
        let (mut shard, mut count) = (0, 0);
        self.disk.write_run(run, small, |group| {
            let group_shard = group >> pair::SHARD_GROUP_BITS;
            if group_shard != shard {
                *blocks.entry(shard).or_default() += count;
                (shard, count) = (group_shard, 0);
            }
            count += 1;
        })?;
        *blocks.entry(shard).or_default() += count;
        self.merger.add_blocks(&blocks);
        Ok(())
    }

    /// Says what to do about a timeline that can't be read.
    fn unreadable(&self, error: Error) -> Error {
        if error.kind() != ErrorKind::Corrupt {
            return error;
        }
        let message = format!(
            "a block of the timelines in {} is damaged: run `herald rebuild timelines`, which rebuilds them from the ledger",
            self.rebuilding.dir().join("timelines").display()
        );
        Error::with_source(ErrorKind::Corrupt, message, error)
    }

    /// Erases a timeline: hides it, then removes what is written of it from the disk.
    fn erase(&self, user: UserKey) -> Result<u64> {
        let Some(erased) = self.disk.erased() else {
            return Err(Error::new(
                ErrorKind::Unavailable,
                "the timelines are not attached to the records yet",
            ));
        };
        let removed = self.newest(user, None, usize::MAX)?.len();
        erased.add(user)?;
        let shard = pair::group(user) >> pair::SHARD_GROUP_BITS;
        self.merger.merge(&self.disk, &self.config, shard)?;
        Ok(removed as u64)
    }

    fn newest(&self, user: UserKey, before: Option<PostId>, limit: usize) -> Result<Vec<PostId>> {
        if self.disk.is_erased(user) {
            return Ok(Vec::new());
        }
        let mut posts = Vec::new();
        self.intake.posts_of(user, &mut posts);
        self.disk.posts_of(user, &mut posts)?;
        posts.sort_unstable();
        posts.dedup();
        let posts = retained(&posts, self.disk.oldest(), self.config.entries_max);
        let end = before.map_or(posts.len(), |before| posts.partition_point(|p| *p < before.0));
        Ok(posts[..end]
            .iter()
            .rev()
            .take(limit)
            .map(|p| PostId(*p))
            .collect())
    }
}

#[async_trait]
impl Timelines for EmbeddedTimelines {
    async fn deliver(&self, post: PostId, recipients: Recipients) -> Result<Delivered> {
        let post = pair::check(post)?;
        let losses = self.shared.rebuilding.losses();
        let delivered = |durable: Durable| Delivered {
            suppressed: Vec::new(),
            durable,
            losses,
        };
        let durable_now = || delivered(Box::pin(std::future::ready(Ok(()))));
        if recipients.is_empty() {
            return Ok(durable_now());
        }
        self.shared.space.check()?;
        self.shared.fault.check()?;
        can_fail!("store.deliver");
        let durable = self.shared.intake.put(post, &recipients).await?;
        if herald_failpoints::negative_control!("store.early-ack") {
            return Ok(durable_now());
        }
        Ok(delivered(durable))
    }

    async fn is_intact(&self, losses: u64) -> Result<bool> {
        Ok(self.shared.rebuilding.losses() == losses)
    }

    async fn newest(&self, user: UserKey, before: Option<PostId>, limit: usize) -> Result<TimelinePage> {
        Ok(TimelinePage {
            rebuilding: self.shared.rebuilding.is_active(),
            posts: self
                .shared
                .newest(user, before, limit)
                .map_err(|e| self.shared.unreadable(e))?,
        })
    }

    async fn read(&self, users: &[UserKey]) -> Result<Vec<TimelineEntries>> {
        let (shared, users) = (Arc::clone(&self.shared), users.to_vec());
        read_blocking("the timelines", move || {
            shared.read(&users).map_err(|e| shared.unreadable(e))
        })
        .await
    }

    /// Timelines that can be read are complete. If one can't, all are rebuilt: a damaged table has to be removed as a
    /// whole, and it can have any of them.
    async fn rebuild(&self, users: &[UserKey]) -> Result<Rebuilt> {
        match self.shared.rebuild(users).await? {
            None => Ok(Rebuilt::default()),
            Some(entries) => Ok(Rebuilt {
                timelines: users.len() as u64,
                entries,
            }),
        }
    }

    async fn erase(&self, user: UserKey) -> Result<u64> {
        let shared = Arc::clone(&self.shared);
        read_blocking("a timeline to erase", move || {
            shared.erase(user).map_err(|e| shared.unreadable(e))
        })
        .await
    }
}

/// Timelines without merges.
pub(crate) struct Frozen<'a> {
    shared: &'a Shared,
    _no_merge: parking_lot::MutexGuard<'a, ()>,
}

impl Frozen<'_> {
    /// Waits for the end of a flush, and stops flushes until the guard is dropped.
    pub(crate) fn stop_flushes(&self) -> impl Drop + use<'_> {
        self.shared.clearing.write()
    }
}

/// Whether all rows of the timelines in a data directory can be read. Nothing else has them open.
pub(super) fn check(data_dir: &Path, config: &Config) -> Result<TimelinesState> {
    let dir = data_dir.join("timelines");
    let contents = Contents::load(data_dir)?;
    if !dir.exists() {
        return Ok(if contents.expects("timelines", true) {
            TimelinesState::Missing
        } else {
            TimelinesState::Intact
        });
    }
    let is_damaged = |checked: Result<()>| match checked {
        Ok(()) => Ok(false),
        Err(error) if error.kind() == ErrorKind::Corrupt => {
            tracing::warn!(
                error = super::shared_error::with_sources(&error),
                "the timelines are damaged"
            );
            Ok(true)
        }
        Err(error) => Err(error),
    };
    if is_damaged(contents.check_files("timelines"))? {
        return Ok(TimelinesState::Missing);
    }
    let read = Disk::open(&dir, config, &contents).and_then(|disk| disk.check());
    Ok(if is_damaged(read)? {
        TimelinesState::Damaged
    } else {
        TimelinesState::Intact
    })
}

/// Fails pending deliveries when the flusher thread ends.
struct AbandonOnDrop<'a>(&'a Shared);

impl Drop for AbandonOnDrop<'_> {
    fn drop(&mut self) {
        let Shared { fault, intake, .. } = self.0;
        if std::thread::panicking() {
            fault.report(
                FAULT,
                &Error::new(ErrorKind::Unavailable, "the thread that flushes panicked"),
            );
        }
        intake.abandon(&SharedError::ended("the timelines are closed"));
    }
}
