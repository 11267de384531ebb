//! Timelines: deliveries gathered in memory, sorted, and written as packed blocks in runs.
//!
//! Writing a row a delivery costs microseconds each; a run of sorted blocks costs tens of nanoseconds. JetStream is the
//! write-ahead log: a message is acknowledged when the run that has its deliveries is synced, and comes again otherwise.
//!
//! The way of a delivery: [`intake`] (readable at once) → [`disk`] by the flusher thread (durable) → merged into one row a user
//! by the merger thread ([`merge`]).

mod block;
mod buffer;
mod disk;
mod groups;
mod intake;
mod keys;
mod marks;
mod merge;
mod pair;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, path::Path, sync::Arc, thread::JoinHandle, time::Duration};

use async_trait::async_trait;
use herald_model::{PostId, Recipients, UserKey};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use self::{
    buffer::Buffer,
    disk::Disk,
    groups::{Groups, kept},
    intake::{FlushWhen, Intake},
    merge::Merger,
};
use super::{dir::io_error, shared_error::SharedError, space::Space};
use crate::{Durable, Error, ErrorKind, Result, Timelines};

/// How timelines are written and kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The longest time a delivery waits in memory before its run is written, milliseconds, at most 1,000. A message that
    /// is delivered is acknowledged no sooner than its run is written, so it must be well below the consumer's ack wait.
    pub flush_interval_ms: u64,
    /// Chunks after which a small run is written at once, at least 1. All who wait for a run go on when it is written, and so
    /// many acknowledgements together keep everybody else's messages waiting.
    pub flush_chunks: usize,
    /// Deliveries in one run at most. There are two runs in memory, 8 to 16 bytes a delivery; more deliveries wait.
    pub run_pairs_max: usize,
    /// Runs of at most so many deliveries are written as a batch to the journal, larger ones as a sorted table.
    pub small_run_pairs_max: usize,
    /// Entries that a timeline keeps: the newest ones.
    pub entries_max: usize,
    /// Memory for blocks that were read from disk, MiB.
    pub cache_mb: u64,
    /// Blocks that a user has on average before they are merged into one row. Fewer: faster reads, more writing.
    pub merge_blocks_min: u32,
    /// The most that merging may take of one core, percent.
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

/// The timelines of the embedded engine.
pub struct EmbeddedTimelines {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    config: Config,
    space: Arc<Space>,
    intake: Intake,
    disk: Disk,
    merger: Merger,
}

impl EmbeddedTimelines {
    /// Opens the timelines, making them when they aren't there.
    pub(crate) fn open(dir: &Path, config: &Config, space: Arc<Space>) -> Result<Self> {
        let when = FlushWhen {
            interval: Duration::from_millis(config.flush_interval_ms.min(1_000)),
            chunks: config.flush_chunks.max(1),
            small_pairs_max: config.small_run_pairs_max,
        };
        let shared = Arc::new(Shared {
            intake: Intake::new(config.run_pairs_max, when),
            disk: Disk::open(dir, config)?,
            merger: Merger::default(),
            config: config.clone(),
            space,
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

    /// Posts less than this one are no longer shown, and dropped when their timeline is merged. It never goes back.
    /// Meant to be raised as posts pass the age that timelines keep (30 days). Durable on return.
    pub fn set_oldest(&self, post: PostId) -> Result<()> {
        self.shared.disk.set_oldest(post.0)
    }

    /// Merges every user's blocks now. For tests and maintenance: it is done in the background anyway.
    pub fn merge_all(&self) -> Result<()> {
        let shared = &self.shared;
        shared
            .merger
            .slices()
            .into_iter()
            .try_for_each(|slice| shared.merger.merge(&shared.disk, &shared.config, slice))
    }

    /// Writes what is in memory and ends the threads; later deliveries are refused.
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
    /// Writes run after run, until closed.
    fn flush(&self) {
        // Whatever ends this, nobody waits for ever.
        let _abandon = Abandon(&self.intake);
        while let Some(run) = self.intake.next() {
            let small = run.pairs() <= self.config.small_run_pairs_max;
            let outcome = self.write(&run, small);
            // A full disk that a sorted table met is no harm: nothing of it is in the database. All else leaves unknown
            // what is on disk.
            let fatal = outcome
                .as_ref()
                .is_err_and(|e| small || e.kind() != ErrorKind::Full);
            if let Err(error) = &outcome {
                tracing::error!(
                    error = super::shared_error::with_sources(error),
                    fatal,
                    "could not write a run of timelines"
                );
            }
            let outcome = outcome.map_err(|e| SharedError::new("the timelines can't be written", &e));
            self.intake.done(run, outcome, fatal, !small);
        }
    }

    fn write(&self, run: &Buffer, small: bool) -> Result<()> {
        let mut blocks = BTreeMap::<u32, u64>::new();
        let (mut slice, mut count) = (0, 0);
        self.disk.write_run(run, small, |group| {
            let of = group >> pair::SLICE_GROUP_BITS;
            if of != slice {
                *blocks.entry(slice).or_default() += count;
                (slice, count) = (of, 0);
            }
            count += 1;
        })?;
        *blocks.entry(slice).or_default() += count;
        self.merger.add(&blocks);
        Ok(())
    }

    fn newest(&self, user: UserKey, before: Option<PostId>, limit: usize) -> Result<Vec<PostId>> {
        let mut posts = Vec::new();
        self.intake.posts_of(user, &mut posts);
        self.disk.posts_of(user, &mut posts)?;
        posts.sort_unstable();
        posts.dedup();
        let posts = kept(&posts, self.disk.oldest(), self.config.entries_max);
        let end = before.map_or(posts.len(), |before| posts.partition_point(|p| *p < before.0));
        Ok(posts[..end]
            .iter()
            .rev()
            .take(limit)
            .map(|p| PostId(*p))
            .collect())
    }

    fn scan(&self, after: Option<UserKey>, limit: usize) -> Result<Vec<(UserKey, Vec<PostId>)>> {
        let start = after.map_or(0, pair::group);
        let mut groups = Groups::new(&self.disk, start, None, self.disk.last_run())?;
        let mut found = Vec::new();
        let mut pairs = Vec::new();
        while found.len() < limit
            && let Some(group) = groups.next(&mut pairs)?
        {
            for posts in pairs.chunk_by(|a, b| pair::user_in_group(*a) == pair::user_in_group(*b)) {
                let user = pair::user(group.number, pair::user_in_group(posts[0]));
                let posts = kept(posts, self.disk.oldest(), self.config.entries_max);
                if Some(user) > after && !posts.is_empty() && found.len() < limit {
                    found.push((user, posts.iter().map(|p| PostId(pair::post(*p))).collect()));
                }
            }
        }
        Ok(found)
    }
}

#[async_trait]
impl Timelines for EmbeddedTimelines {
    async fn deliver(&self, post: PostId, recipients: Recipients) -> Result<Durable> {
        let post = pair::check(post)?;
        if recipients.is_empty() {
            return Ok(Box::pin(std::future::ready(Ok(()))));
        }
        self.shared.space.check()?;
        can_fail!("store.deliver");
        let durable = self.shared.intake.put(post, &recipients).await?;
        if herald_failpoints::sabotaged!("store.early-ack") {
            return Ok(Box::pin(std::future::ready(Ok(()))));
        }
        Ok(durable)
    }

    async fn newest(&self, user: UserKey, before: Option<PostId>, limit: usize) -> Result<Vec<PostId>> {
        self.shared.newest(user, before, limit)
    }

    async fn scan(&self, after: Option<UserKey>, limit: usize) -> Result<Vec<(UserKey, Vec<PostId>)>> {
        let shared = Arc::clone(&self.shared);
        tokio::task::spawn_blocking(move || shared.scan(after, limit))
            .await
            .map_err(|e| {
                Error::with_source(ErrorKind::Unavailable, "a scan of the timelines was cut off", e)
            })?
    }
}

/// Tells all who wait that the flusher is gone.
struct Abandon<'a>(&'a Intake);

impl Drop for Abandon<'_> {
    fn drop(&mut self) {
        self.0.abandon(&SharedError::ended("the timelines are closed"));
    }
}
