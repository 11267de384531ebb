//! One WatchTimeline stream: snapshot, entries, heartbeats.
//!
//! What a resume promises: a token tells the 64 greatest post ids that the watcher has seen, and a resume sends all of
//! the timeline's newest 200 posts that are greater than the smallest of these and not among them. So a post that
//! became visible late, out of order, is not missed unless it is older than those 64; whoever was away for more than 200
//! posts reads the rest with ListTimeline.

use std::{collections::VecDeque, time::Duration};

use futures::{Stream, stream};
use herald_model::{Post, PostId, UserId, UserKey, time::Timestamp};
use herald_proto::v1::{self, watch_timeline_response::Event};
use herald_rpc::{
    paging::{self, PageToken},
    status,
};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep_until};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{
    domain::{Seen, WINDOW},
    feed::{self, ANSWER_BYTES_MAX, Feed},
    live::{Heard, Watch},
    wire::timeline_entry,
};

const WATCH_TIMELINE: &str = "WatchTimeline";
/// Posts that a snapshot reads in one go.
const READ_MAX: usize = 50;
/// When a reader that was too slow may come back: at once, it has its token.
const SLOW_RETRY_AFTER: Duration = Duration::from_millis(100);

/// What a resume token is bound to.
pub(super) fn identity(user: &UserId) -> u64 {
    paging::identity([user.as_str().as_bytes()])
}

/// Reads a resume token; `None` for the empty one.
pub(super) fn decode(identity: u64, token: &str) -> Result<Option<Vec<u8>>, Status> {
    PageToken::decode(WATCH_TIMELINE, identity, token)
}

/// How a watch starts.
pub(super) struct Start {
    pub(super) user: UserKey,
    pub(super) identity: u64,
    /// How many entries the snapshot holds at most.
    pub(super) size: usize,
    /// What was seen before, for one that goes on.
    pub(super) resumed: Option<Seen>,
}

/// One watch under way. What has not been sent yet waits in the watch's bounded queue, as ids.
pub(super) struct Watching {
    user: UserKey,
    identity: u64,
    /// Set until the snapshot is sent.
    start: Option<(usize, Option<Seen>)>,
    watch: Watch,
    feed: Feed,
    seen: Seen,
    /// Found in the store and not sent yet; at most [`WINDOW`].
    found: VecDeque<PostId>,
    heartbeat: Duration,
    heartbeat_at: Instant,
    compare: Interval,
    shutdown: CancellationToken,
}

impl Watching {
    pub(super) fn new(
        start: Start,
        watch: Watch,
        feed: Feed,
        heartbeat: Duration,
        shutdown: CancellationToken,
    ) -> Self {
        let now = Instant::now();
        // Those that start together must not read the store together for ever.
        let mut compare = interval_at(now + heartbeat.mul_f64(rand::random_range(0.5..=1.0)), heartbeat);
        compare.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            user: start.user,
            identity: start.identity,
            start: Some((start.size, start.resumed)),
            watch,
            feed,
            seen: Seen::default(),
            found: VecDeque::new(),
            heartbeat,
            heartbeat_at: now + heartbeat,
            compare,
            shutdown,
        }
    }

    /// The answers; an error is the last one.
    pub(super) fn into_stream(self) -> impl Stream<Item = Result<v1::WatchTimelineResponse, Status>> + Send {
        stream::unfold(Some(self), |watching| async {
            let mut watching = watching?;
            match watching.next().await {
                Ok(answer) => Some((Ok(answer), Some(watching))),
                Err(status) => Some((Err(status), None)),
            }
        })
    }

    async fn next(&mut self) -> Result<v1::WatchTimelineResponse, Status> {
        if let Some((size, resumed)) = self.start.take() {
            return self.snapshot(size, resumed).await;
        }
        loop {
            if let Some(id) = self.found.pop_front() {
                if let Some(answer) = self.show(id).await? {
                    return Ok(answer);
                }
                continue;
            }
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => {
                    return Err(status::unavailable("SHUTTING_DOWN", "the gateway is shutting down; resume elsewhere"));
                }
                _ = self.compare.tick() => self.compare().await?,
                heard = self.watch.next() => match heard {
                    Heard::Post(id) => self.found.push_back(id),
                    Heard::Slow => {
                        let message = "the reader was too slow; go on with the last resume_token";
                        return Err(status::exhausted("SLOW_READER", message, SLOW_RETRY_AFTER));
                    }
                    Heard::Closed => {
                        let message = "live entries are not available; go on with the last resume_token";
                        return Err(status::unavailable("LIVE_UNAVAILABLE", message));
                    }
                },
                () = sleep_until(self.heartbeat_at) => {
                    return Ok(self.answer(Event::Heartbeat(v1::TimelineHeartbeat {})));
                }
            }
        }
    }

    /// The newest posts; of a resumed watch, all of them that were not seen.
    async fn snapshot(
        &mut self,
        size: usize,
        resumed: Option<Seen>,
    ) -> Result<v1::WatchTimelineResponse, Status> {
        let muted = self.feed.muted(self.user).await?;
        let window = self.feed.newest(self.user, None, WINDOW).await?;
        // Of a fresh one some may be left out; it is filled from those after them.
        let (wanted, size) = match &resumed {
            Some(seen) => (
                window.iter().copied().filter(|id| !seen.contains(*id)).collect(),
                WINDOW,
            ),
            None => (window.clone(), size),
        };
        let mut entries = Vec::new();
        let mut bytes = 0;
        let mut taken = 0;
        'filling: for ids in wanted.chunks(size.clamp(1, READ_MAX)) {
            for post in self.feed.visible(ids, &muted).await? {
                bytes += post.as_ref().map_or(0, feed::weight);
                if entries.len() == size || bytes > ANSWER_BYTES_MAX {
                    break 'filling;
                }
                entries.extend(post.map(timeline_entry));
                taken += 1;
            }
        }
        // What a resume has no room for comes as entries, the oldest first; what a fresh one leaves is older than it.
        let rest = if resumed.is_some() { &wanted[taken..] } else { &[] };
        self.found.extend(rest.iter().rev());
        self.seen = resumed.unwrap_or_default();
        for id in window {
            if !rest.contains(&id) {
                self.seen.insert(id);
            }
        }
        Ok(self.answer(Event::Snapshot(v1::TimelineSnapshot { entries })))
    }

    /// Looks for what the live messages did not bring.
    async fn compare(&mut self) -> Result<(), Status> {
        let window = self.feed.newest(self.user, None, WINDOW).await?;
        // The oldest first, as they would have come.
        let missed = window.into_iter().rev().filter(|id| !self.seen.contains(*id));
        let before = self.found.len();
        self.found.extend(missed);
        self.feed.count_recovered(self.found.len() - before);
        Ok(())
    }

    /// An entry, unless it was seen or is not to be shown.
    async fn show(&mut self, id: PostId) -> Result<Option<v1::WatchTimelineResponse>, Status> {
        if self.seen.contains(id) {
            return Ok(None);
        }
        // Asked each time, so that a mute counts at once; the store keeps what it is asked often.
        let muted = self.feed.muted(self.user).await?;
        let post = self.feed.visible_live(id, &muted).await?;
        self.seen.insert(id);
        Ok(post.map(|post| self.answer(Event::Entry(timeline_entry(Post::clone(&post))))))
    }

    fn answer(&mut self, event: Event) -> v1::WatchTimelineResponse {
        self.heartbeat_at = Instant::now() + self.heartbeat;
        v1::WatchTimelineResponse {
            event: Some(event),
            // Tells only what is in this answer or the ones before.
            resume_token: PageToken::encode(WATCH_TIMELINE, self.identity, &self.seen.encode()),
            server_time: Some(herald_proto::timestamp_to_proto(Timestamp::now())),
        }
    }
}
