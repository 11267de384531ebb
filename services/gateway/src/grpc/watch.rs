//! One WatchTimeline stream: snapshot, entries, removals, heartbeats.
//!
//! Guarantee of a resume: a token contains the 64 greatest post ids that the watcher has seen. A resume sends those of
//! the newest 200 posts of the timeline that are greater than the smallest id in the token and not in the token. So a
//! post that became visible late, out of order, is sent unless it is older than those 64. A client that missed more
//! than 200 posts reads the rest with ListTimeline.
//!
//! Removals: the stream remembers the newest 200 entries that it sent, and the token those among its 64 posts. A removal
//! is found by a live message, by the periodic comparison with the store, or by a resume.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    future::pending,
    sync::Arc,
    time::Duration,
};

use futures::{Stream, stream};
use herald_model::{Post, PostId, UserId, UserKey, time::Timestamp};
use herald_proto::v1::{self, watch_timeline_response::Event};
use herald_rpc::{
    paging::{self, PageToken},
    status,
};
use herald_store::Users;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep_until};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{
    arrivals::Arrival,
    domain::{SeenPosts, WATCH_WINDOW},
    feed::{self, Feed, RESPONSE_BYTES_MAX},
    live::{Change, Watch, WatchEvent},
    wire::timeline_entry_to_v1,
};

const WATCH_TIMELINE: &str = "WatchTimeline";
/// Maximum number of posts that a snapshot reads at once.
const SNAPSHOT_READ_MAX: usize = 50;
/// Retry delay for a slow reader. It is short, because the client resumes with its token.
const SLOW_RETRY_AFTER: Duration = Duration::from_millis(100);

/// The identity that a resume token is bound to.
pub(super) fn token_identity(user: &UserId) -> u64 {
    paging::identity([user.as_str().as_bytes()])
}

/// Decodes a resume token to the cursor in it; `None` for an empty token.
pub(super) fn decode_token(identity: u64, token: &str) -> Result<Option<Vec<u8>>, Status> {
    PageToken::decode(WATCH_TIMELINE, identity, token)
}

/// Start of a WatchTimeline stream.
pub(super) struct WatchStart {
    pub(super) users: Arc<dyn Users>,
    /// `None` while the id has no key.
    pub(super) user: Option<UserKey>,
    /// Gives the key of a user without one.
    pub(super) arrival: Option<Arrival>,
    pub(super) identity: u64,
    /// Maximum number of entries in the snapshot.
    pub(super) size: usize,
    /// Posts seen before, and those of them that were sent, if the stream resumes.
    pub(super) resumed: Option<(SeenPosts, BTreeSet<PostId>)>,
}

/// A WatchTimeline stream. Ids of unsent posts wait in the bounded queue of its [`Watch`].
pub(super) struct WatchStream {
    /// `None` until the id has a key. Until then nothing is in its timeline.
    user: Option<UserKey>,
    arrival: Option<Arrival>,
    identity: u64,
    /// Size of the snapshot and the posts seen before; `None` once the snapshot is sent.
    start: Option<(usize, Option<SeenPosts>)>,
    /// The newest entries that were sent, at most [`WATCH_WINDOW`].
    shown: BTreeSet<PostId>,
    /// Removals of shown entries that are next to be sent.
    removed: BTreeMap<PostId, v1::RemovalReason>,
    watch: Watch,
    feed: Feed,
    seen: SeenPosts,
    /// Posts that are next to be sent, at most [`WATCH_WINDOW`].
    unsent: VecDeque<PostId>,
    heartbeat: Duration,
    heartbeat_at: Instant,
    compare: Interval,
    shutdown: CancellationToken,
    users: Arc<dyn Users>,
}

/// The key of a user who is awaited. Cancel safe.
async fn key_of(arrival: &mut Option<Arrival>) -> UserKey {
    match arrival {
        Some(arrival) => arrival.key().await,
        None => pending().await,
    }
}

impl WatchStream {
    pub(super) fn new(
        start: WatchStart,
        watch: Watch,
        feed: Feed,
        heartbeat: Duration,
        shutdown: CancellationToken,
    ) -> Self {
        let now = Instant::now();
        // Jitter: streams that start at the same time must not compare with the store at the same time.
        let mut compare = interval_at(now + heartbeat.mul_f64(rand::random_range(0.5..=1.0)), heartbeat);
        compare.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (resumed, shown) = start.resumed.unzip();
        Self {
            user: start.user,
            arrival: start.arrival,
            identity: start.identity,
            start: Some((start.size, resumed)),
            shown: shown.unwrap_or_default(),
            removed: BTreeMap::new(),
            watch,
            feed,
            seen: SeenPosts::default(),
            unsent: VecDeque::new(),
            heartbeat,
            heartbeat_at: now + heartbeat,
            compare,
            shutdown,
            users: start.users,
        }
    }

    /// The responses; an error ends the stream.
    pub(super) fn into_stream(self) -> impl Stream<Item = Result<v1::WatchTimelineResponse, Status>> + Send {
        stream::unfold(Some(self), |stream| async {
            let mut stream = stream?;
            match stream.next().await {
                Ok(response) => Some((Ok(response), Some(stream))),
                Err(status) => Some((Err(status), None)),
            }
        })
    }

    async fn next(&mut self) -> Result<v1::WatchTimelineResponse, Status> {
        if let Some((size, resumed)) = self.start.take() {
            // Entries that a resumed stream sent before can be hidden now.
            self.find_removed().await?;
            return self.build_snapshot(size, resumed).await;
        }
        loop {
            if let Some((id, reason)) = self.removed.pop_first() {
                self.shown.remove(&id);
                return Ok(self.build_response(Event::Removal(v1::TimelineRemoval {
                    post_id: id.0,
                    reason: reason.into(),
                })));
            }
            if let Some(id) = self.unsent.pop_front() {
                if let Some(response) = self.build_entry(id).await? {
                    return Ok(response);
                }
                continue;
            }
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => {
                    let message = "the gateway is shutting down; resume with the last resume_token";
                    return Err(status::unavailable("SHUTTING_DOWN", message));
                }
                _ = self.compare.tick() => self.compare_with_store().await?,
                user = key_of(&mut self.arrival) => {
                    (self.user, self.arrival) = (Some(user), None);
                    // What is delivered from now on is received live, what was delivered before is in the store.
                    self.watch.follow(user);
                    self.compare_with_store().await?;
                }
                event = self.watch.next() => match event {
                    WatchEvent::Post(id) => self.unsent.push_back(id),
                    WatchEvent::Change(Change::Deleted(id)) => {
                        if self.shown.contains(&id) {
                            self.removed.insert(id, v1::RemovalReason::Deleted);
                        }
                    }
                    WatchEvent::Change(Change::Muting(user)) if Some(user) != self.user => {}
                    WatchEvent::Change(Change::Muting(_)) | WatchEvent::ChangesMissed => {
                        self.find_removed().await?;
                    }
                    WatchEvent::Slow => {
                        let message = "the reader was too slow; resume with the last resume_token";
                        return Err(status::exhausted("SLOW_READER", message, SLOW_RETRY_AFTER));
                    }
                    WatchEvent::Closed => {
                        let message = "live entries are not available; resume with the last resume_token";
                        return Err(status::unavailable("LIVE_UNAVAILABLE", message));
                    }
                },
                () = sleep_until(self.heartbeat_at) => {
                    return Ok(self.build_response(Event::Heartbeat(v1::TimelineHeartbeat {})));
                }
            }
        }
    }

    /// Builds the snapshot: the newest posts, or for a resumed stream all unseen posts of the window.
    async fn build_snapshot(
        &mut self,
        size: usize,
        resumed: Option<SeenPosts>,
    ) -> Result<v1::WatchTimelineResponse, Status> {
        let muted = self.muted_authors().await?;
        let window = self.newest_ids().await?;
        // Hidden posts of a new stream are replaced by the next posts of the window.
        let (wanted, size) = match &resumed {
            Some(seen) => (
                window.iter().copied().filter(|id| !seen.contains(*id)).collect(),
                WATCH_WINDOW,
            ),
            None => (window.clone(), size),
        };
        let mut entries = Vec::new();
        let mut bytes = 0;
        let mut included = 0;
        'filling: for ids in wanted.chunks(size.clamp(1, SNAPSHOT_READ_MAX)) {
            for post in self.feed.read_visible(ids, &muted).await? {
                bytes += post.as_ref().map_or(0, feed::estimated_bytes);
                if entries.len() == size || bytes > RESPONSE_BYTES_MAX {
                    break 'filling;
                }
                entries.extend(post.map(timeline_entry_to_v1));
                included += 1;
            }
        }
        // A resume sends the posts that exceed the snapshot as entries, oldest first. A new stream skips them: they are
        // older than its snapshot.
        let rest = if resumed.is_some() {
            &wanted[included..]
        } else {
            &[]
        };
        self.unsent.extend(rest.iter().rev());
        self.seen = resumed.unwrap_or_default();
        for id in window {
            if !rest.contains(&id) {
                self.seen.insert(id);
            }
        }
        for entry in &entries {
            self.add_shown(entry);
        }
        Ok(self.build_response(Event::Snapshot(v1::TimelineSnapshot { entries })))
    }

    async fn muted_authors(&self) -> Result<BTreeSet<UserKey>, Status> {
        match self.user {
            Some(user) => self.feed.muted_authors(user).await,
            None => Ok(BTreeSet::new()),
        }
    }

    /// The posts of the window, newest first.
    async fn newest_ids(&self) -> Result<Vec<PostId>, Status> {
        match self.user {
            Some(user) => Ok(self.feed.newest_ids(user, None, WATCH_WINDOW).await?.posts),
            None => Ok(Vec::new()),
        }
    }

    fn add_shown(&mut self, entry: &v1::TimelineEntry) {
        self.shown
            .extend(entry.post.as_ref().map(|post| PostId(post.post_id)));
        while self.shown.len() > WATCH_WINDOW {
            self.shown.pop_first();
        }
    }

    /// Finds shown entries that are hidden now.
    async fn find_removed(&mut self) -> Result<(), Status> {
        if self.shown.is_empty() {
            return Ok(());
        }
        let shown: Vec<_> = self.shown.iter().copied().collect();
        let muted = self.muted_authors().await?;
        self.removed.extend(self.feed.find_hidden(&shown, &muted).await?);
        Ok(())
    }

    /// Refuses a user who was erased: nothing will be delivered to this key any more.
    async fn check_user(&self) -> Result<(), Status> {
        let Some(user) = self.user else { return Ok(()) };
        let ids = self.users.ids(&[user]).await;
        let ids = ids.map_err(|e| status::from_store(&e))?;
        if ids.into_iter().flatten().any(|id| id.is_placeholder()) {
            let message = "the user was erased; a new watch of this id is one of a new user";
            return Err(status::not_found("USER_ERASED", message));
        }
        Ok(())
    }

    /// Finds new posts and removals whose live messages were lost.
    async fn compare_with_store(&mut self) -> Result<(), Status> {
        self.check_user().await?;
        self.find_removed().await?;
        let window = self.newest_ids().await?;
        // Oldest first, in the order of their live messages.
        let missed = window.into_iter().rev().filter(|id| !self.seen.contains(*id));
        let before = self.unsent.len();
        self.unsent.extend(missed);
        self.feed.count_recovered(self.unsent.len() - before);
        Ok(())
    }

    /// Builds the entry of a post; `None` if it was seen or is hidden.
    async fn build_entry(&mut self, id: PostId) -> Result<Option<v1::WatchTimelineResponse>, Status> {
        if self.seen.contains(id) {
            return Ok(None);
        }
        // Read for each post, so that a mute takes effect at once; the store caches preferences.
        let muted = self.muted_authors().await?;
        let post = self.feed.read_visible_live(id, &muted).await?;
        self.seen.insert(id);
        let Some(post) = post else { return Ok(None) };
        let entry = timeline_entry_to_v1(Post::clone(&post));
        self.add_shown(&entry);
        Ok(Some(self.build_response(Event::Entry(entry))))
    }

    fn build_response(&mut self, event: Event) -> v1::WatchTimelineResponse {
        self.heartbeat_at = Instant::now() + self.heartbeat;
        v1::WatchTimelineResponse {
            event: Some(event),
            // Contains only posts of this response and the previous ones.
            resume_token: PageToken::encode(WATCH_TIMELINE, self.identity, &self.seen.encode(&self.shown)),
            server_time: Some(herald_proto::timestamp_to_proto(Timestamp::now())),
        }
    }
}
