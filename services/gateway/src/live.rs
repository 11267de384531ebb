//! Live entries for WatchTimeline streams: one subscription for each gateway, active while there is a watcher.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use herald_mesh::Mesh;
use herald_model::{PostId, Recipients, UserKey};
use herald_proto::mesh_v1::LiveUpdates;
use herald_runtime::shares::{Caller, Share, Shares};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::{broadcast, mpsc};
use tokio_util::sync::CancellationToken;

use crate::{Metrics, domain};

/// Maximum number of changes that wait for a watch; a slower watch looks for all of them in the store.
const CHANGES_MAX: usize = 1_024;

/// Why a watch can't start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WatchError {
    /// The share of the caller is used up.
    #[error(
        "the maximum of concurrent watchers is reached: all callers have {max} (gateway.watchers_max), and an address may \
         have as many as are left for others, a connection half as many"
    )]
    TooMany {
        /// That of all callers.
        max: usize,
    },
    /// The broker refused the subscription.
    #[error("the subscription to the live subject failed")]
    Mesh(#[from] herald_mesh::Error),
}

/// Distributes the ids of posts that became visible to the watchers of their recipients. Clones share the state.
///
/// Live messages are best effort: core NATS drops them while a connection is down. Each watch compares itself with the
/// store periodically.
#[derive(Clone)]
pub(crate) struct Hub(Arc<Inner>);

struct Inner {
    mesh: Mesh,
    metrics: Metrics,
    queue_max: usize,
    watchers_max: usize,
    shares: Shares,
    /// Held while the subscription is being created, so that only one is created.
    starting: tokio::sync::Mutex<()>,
    state: Mutex<State>,
    /// Changes for all watches; each watch picks those that concern it.
    changes: broadcast::Sender<Change>,
}

/// *Invariant:* `subscription` is `Some` whenever `count` is not 0 and no task holds `starting`.
#[derive(Default)]
struct State {
    watchers: BTreeMap<UserKey, Vec<Watcher>>,
    /// Number of [`Watch`] values that are not dropped. A slow watcher is removed from `watchers` but still counted.
    count: usize,
    next_id: u64,
    /// Cancels the subscription.
    subscription: Option<CancellationToken>,
}

struct Watcher {
    id: u64,
    queue: mpsc::Sender<PostId>,
    slow: Arc<AtomicBool>,
}

/// A change that can hide posts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// A post was deleted.
    Deleted(PostId),
    /// A user changed their muted authors.
    Muting(UserKey),
}

/// An event of a watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WatchEvent {
    /// A post became visible.
    Post(PostId),
    /// A change that concerns any watch.
    Change(Change),
    /// Changes were dropped, because the watcher is too slow for them.
    ChangesMissed,
    /// The watcher's queue was full; the watch has ended.
    Slow,
    /// The subscription has ended.
    Closed,
}

/// Whose timeline a watch follows.
enum Target {
    /// A user with a key.
    Known(UserKey),
    /// A user who has no key yet; the other end of the watch's queue, for [`Watch::follow`].
    Awaited(mpsc::Sender<PostId>),
}

/// Receiver of one watcher; dropping it ends the watch.
pub(crate) struct Watch {
    id: u64,
    target: Target,
    queue: mpsc::Receiver<PostId>,
    slow: Arc<AtomicBool>,
    changes: broadcast::Receiver<Change>,
    hub: Hub,
    _share: Share,
}

impl Watch {
    /// Receives the next event; queued posts come before [`WatchEvent::Slow`]. Cancel safe.
    pub(crate) async fn next(&mut self) -> WatchEvent {
        tokio::select! {
            // A post comes before its deletion.
            biased;
            post = self.queue.recv() => match post {
                Some(post) => WatchEvent::Post(post),
                None if self.slow.load(Ordering::Acquire) => WatchEvent::Slow,
                None => WatchEvent::Closed,
            },
            change = self.changes.recv() => match change {
                Ok(change) => WatchEvent::Change(change),
                Err(broadcast::error::RecvError::Lagged(_)) => WatchEvent::ChangesMissed,
                Err(broadcast::error::RecvError::Closed) => WatchEvent::Closed,
            },
        }
    }
}

impl Watch {
    /// Follows the timeline of a user from now on, for a watch that began without one.
    pub(crate) fn follow(&mut self, user: UserKey) {
        let mut state = self.hub.0.state.lock();
        // Without a subscription the sender is dropped, and the watch is closed as all others were.
        if let Target::Awaited(queue) = std::mem::replace(&mut self.target, Target::Known(user))
            && state.subscription.is_some()
        {
            state.add(user, self.id, queue, self.slow.clone());
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut state = self.hub.0.state.lock();
        if let Target::Known(user) = self.target {
            state.remove(user, self.id);
        }
        state.count -= 1;
        if state.count == 0
            && let Some(subscription) = state.subscription.take()
        {
            subscription.cancel();
        }
        self.hub.0.metrics.watchers.dec();
    }
}

impl State {
    fn add(&mut self, user: UserKey, id: u64, queue: mpsc::Sender<PostId>, slow: Arc<AtomicBool>) {
        let watchers = self.watchers.entry(user).or_default();
        watchers.push(Watcher { id, queue, slow });
    }

    fn remove(&mut self, user: UserKey, id: u64) {
        if let Some(watchers) = self.watchers.get_mut(&user) {
            watchers.retain(|watcher| watcher.id != id);
            if watchers.is_empty() {
                self.watchers.remove(&user);
            }
        }
    }
}

impl Hub {
    pub(crate) fn new(mesh: Mesh, metrics: Metrics, watchers_max: usize, queue_max: usize) -> Self {
        let (starting, state) = Default::default();
        Self(Arc::new(Inner {
            mesh,
            metrics,
            queue_max,
            watchers_max,
            shares: Shares::new(watchers_max),
            starting,
            state,
            changes: broadcast::Sender::new(CHANGES_MAX),
        }))
    }

    /// Starts a watch of a user's timeline, or one that waits for [`Watch::follow`]. On return the subscription is
    /// active: the watch receives every live message published from then on.
    pub(crate) async fn watch(&self, user: Option<UserKey>, caller: Caller) -> Result<Watch, WatchError> {
        let inner = &*self.0;
        let starting = inner.starting.lock().await;
        let (watch, subscribed) = self.register(user, caller)?;
        if !subscribed {
            let chunks = inner.mesh.subscribe_live().await?;
            let stop = CancellationToken::new();
            inner.state.lock().subscription = Some(stop.clone());
            tokio::spawn(self.clone().run_subscription(chunks, stop));
        }
        drop(starting);
        Ok(watch)
    }

    /// Adds a watcher; also returns whether there is a subscription.
    fn register(&self, user: Option<UserKey>, caller: Caller) -> Result<(Watch, bool), WatchError> {
        let inner = &*self.0;
        let too_many = WatchError::TooMany {
            max: inner.watchers_max,
        };
        let share = inner.shares.try_acquire(caller, 1).ok_or(too_many)?;
        let mut state = inner.state.lock();
        let (sender, queue) = mpsc::channel(inner.queue_max);
        let slow = Arc::new(AtomicBool::new(false));
        let id = state.next_id;
        state.next_id += 1;
        state.count += 1;
        let target = match user {
            Some(user) => {
                state.add(user, id, sender, slow.clone());
                Target::Known(user)
            }
            None => Target::Awaited(sender),
        };
        inner.metrics.watchers.inc();
        Ok((
            Watch {
                id,
                target,
                queue,
                slow,
                changes: inner.changes.subscribe(),
                hub: self.clone(),
                _share: share,
            },
            state.subscription.is_some(),
        ))
    }

    async fn run_subscription(self, chunks: impl Stream<Item = Bytes> + Send, stop: CancellationToken) {
        let mut chunks = std::pin::pin!(chunks);
        while let Some(Some(body)) = stop.run_until_cancelled(chunks.next()).await {
            self.dispatch(body);
        }
        if !stop.is_cancelled() {
            tracing::warn!(
                "subscription to live posts ended; open watches are closed and their clients reconnect"
            );
            let mut state = self.0.state.lock();
            // Their watches receive `Closed`, and the clients resume.
            state.watchers.clear();
            state.subscription = None;
        }
    }

    /// Sends the post of each chunk to the watchers among the chunk's recipients, and changes to all watches.
    fn dispatch(&self, body: Bytes) {
        let live = match LiveUpdates::decode(body) {
            Ok(live) => live,
            Err(error) => return self.report_malformed(&error),
        };
        let deleted = live.deleted_post_ids.into_iter().map(PostId).map(Change::Deleted);
        let muting = live.muting_user_keys.into_iter().map(UserKey).map(Change::Muting);
        for change in deleted.chain(muting) {
            // An error: no watch is open.
            let _ = self.0.changes.send(change);
        }
        for chunk in live.chunks {
            self.0.metrics.live_chunks.inc();
            match Recipients::decode(chunk.recipients, chunk.recipient_count) {
                Ok(recipients) => self.send_to_watchers(PostId(chunk.post_id), &recipients),
                Err(error) => self.report_malformed(&error),
            }
        }
    }

    fn report_malformed(&self, reason: &impl std::fmt::Display) {
        self.0.metrics.live_chunks_malformed.inc();
        tracing::warn!(%reason, "malformed live message skipped; watchers receive its post later, from the store");
    }

    fn send_to_watchers(&self, post: PostId, recipients: &Recipients) {
        let metrics = &self.0.metrics;
        let mut state = self.0.state.lock();
        let mut closed = Vec::new();
        domain::for_each_watched_recipient(&state.watchers, recipients, |user, watchers| {
            for watcher in watchers {
                match watcher.queue.try_send(post) {
                    Ok(()) => _ = metrics.live_entries.inc(),
                    Err(error) => {
                        if matches!(error, mpsc::error::TrySendError::Full(_)) {
                            watcher.slow.store(true, Ordering::Release);
                            metrics.watchers_slow.inc();
                        }
                        closed.push((user, watcher.id));
                    }
                }
            }
        });
        for (user, id) in closed {
            state.remove(user, id);
        }
    }
}
