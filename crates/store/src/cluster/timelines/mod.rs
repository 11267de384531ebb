//! Timelines in Valkey or Redis: a view that can be made again from PostgreSQL at any time.
//!
//! A row for each delivery would cost Redis some microseconds and 50 to 100 bytes. So users are put into *buckets* of 64,
//! and a bucket has two keys, with one hash tag:
//!
//! - the *tail*, a list of blocks. A block has the deliveries of one run to the users of the bucket, packed as in the
//!   embedded engine. One command appends it.
//! - the *body*, a hash with a field for each user: the state of the timeline and its newest posts, merged and packed.
//!
//! | file | what is in it |
//! |---|---|
//! | `collector` | gathers the deliveries of many posts into runs |
//! | `flush` | appends a run to the tails of its buckets |
//! | `merge` | merges a tail into its body |
//! | `read` | reads timelines: tail and field |
//! | `rebuild`, `records` | makes a timeline again from PostgreSQL |
//! | `activity`, `drowning` | whose timelines are not written, or only in part |
//! | `erased` | whose timelines are shown no more |
//! | `monitor`, `repair`, `whole` | notices and repairs lost writes |
//! | `server`, `connector`, `check`, `keys`, `field`, `state` | connection, checks at start, names, encoding, state in PostgreSQL |
//!
//! # Invariants
//!
//! - A timeline is the union of its field and of its entries in the tail; repeats vanish. So appending and merging again
//!   changes nothing, and workers need no order among them.
//! - A body is written only by `scripts/write.lua` and `scripts/begin.lua`, and each write gives it a new random
//!   generation. A writer names the generation that it has read. A body that is made anew also has a new epoch.
//! - A field whose state is complete has, together with the tail, all that was delivered to the user; so has a timeline
//!   of which nothing is stored, while its shard is marked as whole. Any other timeline is rebuilt when it is read.
//! - Each key has a time to live: the retention of timelines and two days, extended at least once on each day with a
//!   delivery.
//!
//! # Durability
//!
//! A delivery is durable when Redis has acknowledged it, and `replicas_min` replicas have it. Redis with
//! `appendfsync everysec` can lose the last second, and a fail-over more; this is noticed and repaired (`monitor`).

mod activity;
mod bits;
mod check;
mod collector;
mod config;
mod connector;
mod drowning;
mod erased;
mod error;
mod field;
mod flush;
mod import;
mod keys;
mod merge;
mod monitor;
mod read;
mod rebuild;
mod records;
mod repair;
mod script;
mod server;
mod slots;
mod state;
#[cfg(test)]
mod tests;
mod whole;

use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures::FutureExt as _;
use herald_model::{PostId, Recipients, UserKey};
use parking_lot::{Mutex, RwLock};
use tokio::task::JoinHandle;

use self::{
    activity::Activity,
    collector::{Collector, Policy},
    drowning::Drowning,
    erased::ErasedUsers,
    flush::Extended,
    keys::Keys,
    merge::Merger,
    monitor::Monitor,
    rebuild::Rebuilder,
    records::Records,
    script::Script,
    server::Server,
    state::ViewState,
};
pub use self::{
    check::{PrimaryClock, timeline_clocks},
    config::TimelinesConfig,
};
use super::postgres::{
    Postgres,
    batch::{BatchLimits, Batcher},
};
use crate::{
    Delivered, Leases, Metrics, Rebuilt, Result, SuppressedReason, TimelineEntries, TimelinePage, Timelines,
    embedded::timelines::pair,
};

/// Time that keys live longer than the retention of timelines, days. Half of it is the interval at which the time to
/// live is extended.
const TTL_MARGIN_DAYS: u64 = 2;

/// Time-out of writing the last run when closing.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Callers that read the number of losses in one statement.
const LOSS_READS: BatchLimits = BatchLimits {
    jobs_max: 1_024,
    weight_max: usize::MAX,
    in_flight_max: 2,
};

/// The cluster engine's [`Timelines`](crate::Timelines).
pub(crate) struct ClusterTimelines {
    view: Arc<View>,
    flusher: Mutex<Option<JoinHandle<()>>>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

/// What the tasks share.
struct View {
    config: TimelinesConfig,
    keys: Keys,
    /// Time to live of keys, seconds.
    ttl_s: u64,
    /// The connection for runs, merges and rebuilds.
    writer: Server,
    /// The connection for readers, who would wait behind large pipelines.
    reader: Server,
    metrics: Metrics,
    scripts: Scripts,
    collector: Collector,
    extended: Extended,
    merger: Merger,
    rebuilder: Rebuilder,
    records: Records,
    state: ViewState,
    activity: Activity,
    drowning: RwLock<Drowning>,
    erased: RwLock<ErasedUsers>,
    monitor: Monitor,
    /// Reads the number of recorded losses: concurrent callers share a statement.
    losses: Batcher<(), u64>,
    /// The oldest post that timelines show.
    oldest: AtomicU64,
    random: RandomState,
    next_random: AtomicU64,
}

/// The scripts that run inside of Redis.
struct Scripts {
    write: Script,
    begin: Script,
    beat: Script,
}

impl Scripts {
    fn new() -> Self {
        Self {
            write: Script::new(include_str!("scripts/write.lua")),
            begin: Script::new(include_str!("scripts/begin.lua")),
            beat: Script::new(include_str!("scripts/beat.lua")),
        }
    }
}

impl View {
    /// The oldest post that timelines show.
    fn oldest(&self) -> u64 {
        self.oldest.load(Ordering::Relaxed)
    }

    /// The slot of a user's bucket.
    fn slot(&self, user: UserKey) -> u16 {
        self.keys.bucket(pair::group(user)).slot
    }

    /// Whether the timeline of a user gets a post, if the user is active.
    fn keeps(&self, user: UserKey, post: u64) -> bool {
        self.drowning.read().keeps(user, post)
    }

    /// Whether this process knows that the timeline of a user is erased.
    fn is_erased(&self, user: UserKey) -> bool {
        self.erased.read().contains(user)
    }

    /// A generation that no body has had.
    fn new_generation(&self) -> Vec<u8> {
        let number = self.next_random.fetch_add(1, Ordering::Relaxed);
        self.random.hash_one(number).to_be_bytes().to_vec()
    }

    fn jitter_ms(&self, max: u64) -> u64 {
        self.random
            .hash_one(self.next_random.fetch_add(1, Ordering::Relaxed))
            % max.max(1)
    }

    /// Splits recipients into those who get a post, those who drown and the inactive ones.
    fn split(&self, post: u64, recipients: Recipients) -> (Recipients, Vec<(SuppressedReason, Recipients)>) {
        let drowning = self.drowning.read();
        self.activity.with_inactive(|inactive| {
            if inactive.is_none() && drowning.is_empty() {
                return (recipients, Vec::new());
            }
            let (mut kept, mut idle, mut drowned) = (Vec::new(), Vec::new(), Vec::new());
            for user in &recipients {
                if inactive.is_some_and(|inactive| inactive.contains(user)) {
                    idle.push(user);
                } else if drowning.keeps(user, post) {
                    kept.push(user);
                } else {
                    drowned.push(user);
                }
            }
            if idle.is_empty() && drowned.is_empty() {
                return (recipients, Vec::new());
            }
            let sets = [
                (SuppressedReason::Inactive, idle),
                (SuppressedReason::Drowning, drowned),
            ];
            let suppressed = sets
                .into_iter()
                .filter(|(_, users)| !users.is_empty())
                .map(|(reason, users)| (reason, Recipients::from_sorted(users)))
                .collect();
            (Recipients::from_sorted(kept), suppressed)
        })
    }

    /// Samples what PostgreSQL knows of users and retention.
    async fn sample(&self) -> Result<()> {
        self.activity.write_records(&self.state).await?;
        self.activity.sample(&self.state).await?;
        if self.config.following_max > 0 {
            let drowning = Drowning::new(self.state.drowning().await?, self.config.following_max);
            *self.drowning.write() = drowning;
        }
        erased::sample(self).await?;
        let oldest = self.state.oldest_kept().await?;
        self.oldest.fetch_max(oldest, Ordering::Relaxed);
        Ok(())
    }
}

impl ClusterTimelines {
    /// Connects, checks the server, and starts the tasks of the view. `keep_days` is the retention of timelines, `holder`
    /// the name of this process for leases.
    ///
    /// [`Invalid`](crate::ErrorKind::Invalid) for a server that can't be used: it is too old, a replica, or would drop
    /// timelines when memory is short.
    pub(crate) async fn open(
        config: &TimelinesConfig,
        keep_days: u64,
        postgres: &Postgres,
        leases: Arc<dyn Leases>,
        holder: &str,
    ) -> Result<Self> {
        config.validate()?;
        let metrics = postgres.metrics();
        let writer = Server::connect(config, metrics).await?;
        check::check(&writer).await?;
        let reader = Server::connect(config, metrics).await?;
        let records = Records::new(postgres);
        let view = Arc::new(View {
            keys: Keys::new(&records.store_id().await?),
            ttl_s: (keep_days + TTL_MARGIN_DAYS) * 86_400,
            writer,
            reader,
            metrics: metrics.clone(),
            scripts: Scripts::new(),
            collector: Collector::new(Policy {
                delay: Duration::from_millis(config.flush_delay_ms),
                pairs: config.flush_pairs,
                pending_max: config.pending_pairs_max,
            }),
            extended: Extended::default(),
            merger: Merger::new(config),
            rebuilder: Rebuilder::new(),
            records,
            state: ViewState::new(postgres),
            activity: Activity::new(config.active_days, config.sample_interval()),
            drowning: RwLock::default(),
            erased: RwLock::default(),
            monitor: Monitor::default(),
            losses: count_losses(ViewState::new(postgres)),
            oldest: AtomicU64::new(0),
            random: RandomState::new(),
            next_random: AtomicU64::new(0),
            config: config.clone(),
        });
        view.sample().await?;
        // Nothing is delivered before there is a beat.
        monitor::look(&view, true).await?;
        let flusher = tokio::spawn(flush::flush(Arc::clone(&view)));
        let mut tasks = vec![
            tokio::spawn(monitor::run(Arc::clone(&view))),
            tokio::spawn(repair::run(Arc::clone(&view), leases, holder.into())),
            tokio::spawn(run_samples(Arc::clone(&view))),
        ];
        for _ in 0..config.merges_in_flight_max {
            tasks.push(tokio::spawn(merge::run(Arc::clone(&view))));
        }
        Ok(Self {
            view,
            flusher: Mutex::new(Some(flusher)),
            tasks: Mutex::new(tasks),
        })
    }

    /// Hides posts with smaller ids in all processes: at once in this one, within the interval of samples in the others.
    /// A value smaller than an earlier one is ignored. Called when posts pass the retention of timelines.
    pub(crate) async fn raise_oldest_kept(&self, post: PostId) -> Result<()> {
        self.view.state.raise_oldest_kept(post.0).await?;
        self.view.oldest.fetch_max(post.0, Ordering::Relaxed);
        Ok(())
    }

    /// Checks that timelines can be read and written.
    pub(crate) async fn check(&self) -> Result<()> {
        check::check_now(&self.view.reader).await
    }

    /// Writes what is pending and stops the tasks; later deliveries are rejected.
    pub(crate) async fn close(&self) {
        self.view.collector.close();
        let flusher = self.flusher.lock().take();
        if let Some(flusher) = flusher {
            // Deliveries that are not written were not acknowledged either.
            drop(tokio::time::timeout(CLOSE_TIMEOUT, flusher).await);
        }
        self.view.merger.close();
        for task in self.tasks.lock().drain(..) {
            task.abort();
        }
        let recording = self.view.activity.write_records(&self.view.state);
        if let Ok(Err(error)) = tokio::time::timeout(CLOSE_TIMEOUT, recording).await {
            tracing::warn!(%error, "could not record the last reads of users");
        }
    }
}

impl Drop for ClusterTimelines {
    fn drop(&mut self) {
        self.view.collector.close();
        self.view.merger.close();
        for task in self.tasks.lock().drain(..) {
            task.abort();
        }
    }
}

/// Reads of the number of recorded losses.
fn count_losses(state: ViewState) -> Batcher<(), u64> {
    Batcher::start(
        LOSS_READS,
        |()| 1,
        move |callers| {
            let state = state.clone();
            async move {
                let losses = state.losses().await?;
                Ok(callers.iter().map(|_| Ok(losses)).collect())
            }
            .boxed()
        },
    )
}

async fn run_samples(view: Arc<View>) {
    loop {
        tokio::time::sleep(view.config.sample_interval()).await;
        if let Err(error) = view.sample().await {
            tracing::warn!(%error, "could not sample the activity of users");
        }
    }
}

#[async_trait]
impl Timelines for ClusterTimelines {
    async fn deliver(&self, post: PostId, recipients: Recipients) -> Result<Delivered> {
        let post = pair::check(post)?;
        can_fail!("store.deliver");
        let view = &self.view;
        let losses = view.monitor.losses();
        let (kept, suppressed) = view.split(post, recipients);
        view.activity.note_recipients(kept.iter());
        if kept.is_empty() {
            return Ok(Delivered {
                suppressed,
                durable: Box::pin(std::future::ready(Ok(()))),
                losses,
            });
        }
        let accepted = view.collector.put(post, &kept).await?;
        accepted.readable.await?;
        Ok(Delivered {
            suppressed,
            durable: accepted.durable,
            losses,
        })
    }

    async fn is_intact(&self, losses: u64) -> Result<bool> {
        let now = self.view.losses.run(()).await?;
        self.view.monitor.set_losses(now);
        Ok(now == losses)
    }

    async fn newest(&self, user: UserKey, before: Option<PostId>, limit: usize) -> Result<TimelinePage> {
        read::newest(&self.view, user, before, limit).await
    }

    async fn read(&self, users: &[UserKey]) -> Result<Vec<TimelineEntries>> {
        read::read(&self.view, users).await
    }

    async fn rebuild(&self, users: &[UserKey]) -> Result<Rebuilt> {
        rebuild::rebuild_all(&self.view, users).await
    }

    async fn erase(&self, user: UserKey) -> Result<u64> {
        erased::erase(&self.view, user).await
    }
}
