//! Live entries: one subscription a gateway, while anybody watches, and what each watcher wants of it.

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
use herald_proto::mesh_v1::LiveChunks;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{Metrics, domain};

/// Why nobody can start to watch.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WatchError {
    /// There are as many watchers as allowed.
    #[error("{0} watchers are the most at one time")]
    TooMany(usize),
    /// The broker doesn't take the subscription.
    #[error("the live subject can't be subscribed to")]
    Mesh(#[from] herald_mesh::Error),
}

/// Hands the ids of posts that became visible to those who watch. Cloning shares it.
///
/// Live messages are a hint, not a promise: core NATS loses them while a connection is down. Watchers compare with the
/// store from time to time.
#[derive(Clone)]
pub(crate) struct Hub(Arc<Inner>);

struct Inner {
    mesh: Mesh,
    metrics: Metrics,
    queue_max: usize,
    watchers_max: usize,
    /// Held while the subscription is being made, so that there is one.
    starting: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

/// *Invariant:* `subscription` is there whenever `count` is not 0 and nobody holds `starting`.
#[derive(Default)]
struct State {
    watchers: BTreeMap<UserKey, Vec<Watcher>>,
    /// Watches that are not dropped yet; slow ones are no longer in `watchers` but still counted.
    count: usize,
    next_id: u64,
    /// Ends the subscription.
    subscription: Option<CancellationToken>,
}

struct Watcher {
    id: u64,
    queue: mpsc::Sender<PostId>,
    slow: Arc<AtomicBool>,
}

/// What a watcher hears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heard {
    /// A post became visible.
    Post(PostId),
    /// The watcher took too long, its queue was full.
    Slow,
    /// The subscription is gone.
    Closed,
}

/// One watcher's ear; dropping it ends the watch.
pub(crate) struct Watch {
    id: u64,
    user: UserKey,
    queue: mpsc::Receiver<PostId>,
    slow: Arc<AtomicBool>,
    hub: Hub,
}

impl Watch {
    /// The next thing to hear; what was queued comes before [`Heard::Slow`]. Cancel safe.
    pub(crate) async fn next(&mut self) -> Heard {
        match self.queue.recv().await {
            Some(post) => Heard::Post(post),
            None if self.slow.load(Ordering::Acquire) => Heard::Slow,
            None => Heard::Closed,
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut state = self.hub.0.state.lock();
        state.remove(self.user, self.id);
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
            starting,
            state,
        }))
    }

    /// Starts to watch a user's timeline. On return the subscription is made: what becomes visible from now on is heard.
    pub(crate) async fn watch(&self, user: UserKey) -> Result<Watch, WatchError> {
        let inner = &*self.0;
        let starting = inner.starting.lock().await;
        let (watch, subscribed) = self.register(user)?;
        if !subscribed {
            let chunks = inner.mesh.subscribe_live().await?;
            let stop = CancellationToken::new();
            inner.state.lock().subscription = Some(stop.clone());
            tokio::spawn(self.clone().pump(chunks, stop));
        }
        drop(starting);
        Ok(watch)
    }

    /// Adds a watcher, and tells whether there is a subscription.
    fn register(&self, user: UserKey) -> Result<(Watch, bool), WatchError> {
        let inner = &*self.0;
        let mut state = inner.state.lock();
        if state.count >= inner.watchers_max {
            return Err(WatchError::TooMany(inner.watchers_max));
        }
        let (sender, queue) = mpsc::channel(inner.queue_max);
        let slow = Arc::new(AtomicBool::new(false));
        let id = state.next_id;
        state.next_id += 1;
        state.count += 1;
        state.watchers.entry(user).or_default().push(Watcher {
            id,
            queue: sender,
            slow: slow.clone(),
        });
        inner.metrics.watchers.inc();
        Ok((
            Watch {
                id,
                user,
                queue,
                slow,
                hub: self.clone(),
            },
            state.subscription.is_some(),
        ))
    }

    async fn pump(self, chunks: impl Stream<Item = Bytes> + Send, stop: CancellationToken) {
        let mut chunks = std::pin::pin!(chunks);
        while let Some(Some(body)) = stop.run_until_cancelled(chunks.next()).await {
            self.dispatch(body);
        }
        if !stop.is_cancelled() {
            tracing::warn!("live subscription ended");
            let mut state = self.0.state.lock();
            // The watchers hear that it is closed and come back.
            state.watchers.clear();
            state.subscription = None;
        }
    }

    /// Gives each chunk's post to the watchers among its recipients.
    fn dispatch(&self, body: Bytes) {
        let chunks = match LiveChunks::decode(body) {
            Ok(live) => live.chunks,
            Err(error) => return self.malformed(&error),
        };
        for chunk in chunks {
            self.0.metrics.live_chunks.inc();
            match Recipients::decode(chunk.recipients, chunk.recipient_count) {
                Ok(recipients) => self.tell(PostId(chunk.post_id), &recipients),
                Err(error) => self.malformed(&error),
            }
        }
    }

    fn malformed(&self, reason: &impl std::fmt::Display) {
        self.0.metrics.live_chunks_malformed.inc();
        tracing::warn!(%reason, "live chunk left out");
    }

    fn tell(&self, post: PostId, recipients: &Recipients) {
        let metrics = &self.0.metrics;
        let mut state = self.0.state.lock();
        let mut gone = Vec::new();
        domain::for_each_watched(&state.watchers, recipients, |user, watchers| {
            for watcher in watchers {
                match watcher.queue.try_send(post) {
                    Ok(()) => _ = metrics.live_entries.inc(),
                    Err(error) => {
                        if matches!(error, mpsc::error::TrySendError::Full(_)) {
                            watcher.slow.store(true, Ordering::Release);
                            metrics.watchers_slow.inc();
                        }
                        gone.push((user, watcher.id));
                    }
                }
            }
        });
        for (user, id) in gone {
            state.remove(user, id);
        }
    }
}
