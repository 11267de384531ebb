//! Rebuilding of timelines from PostgreSQL.
//!
//! 1. `scripts/begin.lua` makes sure that the body exists and tells its epoch; a returning user's timeline is marked as
//!    partial, then the user is recorded as active.
//!    A timeline that was erased is left alone.
//! 2. What the timeline must have is read from PostgreSQL. A post that is planned later is delivered later, to the tail.
//! 3. The posts are added to those that the timeline has, and written if the generation of the body is the same as when
//!    the timeline was read. If only the generation changed, the write is repeated; if the epoch changed, the body was
//!    lost and with it deliveries after step 2, so the rebuild begins anew.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt, stream};
use herald_model::{UserKey, time::Timestamp};
use parking_lot::Mutex;
use redis::Value;
use tokio::sync::{Semaphore, watch};

use super::{
    View, erased,
    field::{Field, State},
    merge::{read_value, write},
    read::{Need, timeline},
    script::ScriptCall,
};
use crate::{Error, ErrorKind, Rebuilt, Result, embedded::timelines::pair};

/// Maximum number of rebuilds for readers of this process at a time.
const REBUILDS_MAX: usize = 16;

/// Maximum number of rebuilds at a time of one call for many users.
const REBUILDS_PER_CALL: usize = 4;

/// Maximum number of attempts at a rebuild whose body was lost meanwhile.
const ATTEMPTS_MAX: u32 = 20;

/// Rebuilds timelines, each user's once at a time.
pub(super) struct Rebuilder {
    running: Mutex<HashMap<UserKey, watch::Receiver<Option<bool>>>>,
    permits: Semaphore,
}

impl Rebuilder {
    pub(super) fn new() -> Self {
        Self {
            running: Mutex::default(),
            permits: Semaphore::new(REBUILDS_MAX),
        }
    }

    /// Rebuilds the timeline of a user, or waits for the rebuild that runs. Returns whether it has succeeded within the
    /// time that a reader waits; otherwise it goes on.
    pub(super) async fn rebuild(&self, view: &Arc<View>, user: UserKey, need: Need) -> bool {
        let mut outcome = {
            let mut running = self.running.lock();
            if let Some(outcome) = running.get(&user) {
                outcome.clone()
            } else {
                let (sender, outcome) = watch::channel(None);
                running.insert(user, outcome.clone());
                let view = Arc::clone(view);
                tokio::spawn(async move {
                    // Removes the entry even if the rebuild panics.
                    let _ended = Ended(&view.rebuilder, user);
                    let rebuilt = match view.rebuilder.permits.acquire().await {
                        Ok(_permit) => rebuild(&view, user, need).await,
                        Err(_) => return,
                    };
                    if let Err(error) = &rebuilt {
                        tracing::warn!(%error, "could not rebuild a timeline");
                    }
                    sender.send_replace(Some(rebuilt.is_ok()));
                });
                outcome
            }
        };
        let wait = Duration::from_millis(view.config.rebuild_wait_ms);
        let ended = tokio::time::timeout(wait, outcome.wait_for(Option::is_some)).await;
        matches!(ended, Ok(Ok(outcome)) if *outcome == Some(true))
    }
}

struct Ended<'a>(&'a Rebuilder, UserKey);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.running.lock().remove(&self.1);
    }
}

/// Rebuilds the timeline of a user now.
pub(super) async fn rebuild(view: &View, user: UserKey, need: Need) -> Result<Rebuilt> {
    let started = Instant::now();
    let rebuilt = rebuild_now(view, user, need).await;
    view.metrics.record_rebuild(started, &rebuilt);
    rebuilt
}

async fn rebuild_now(view: &View, user: UserKey, need: Need) -> Result<Rebuilt> {
    let mut provisional_until = None;
    for _ in 0..ATTEMPTS_MAX {
        let epoch = begin(view, user, need == Need::Return).await?;
        if erased::is_erased(view, user).await? {
            return Ok(Rebuilt::default());
        }
        if need == Need::Return {
            view.activity.record_return(&view.state, user).await?;
            let until = Timestamp::now().plus(view.activity.provisional());
            provisional_until = Some(u64::try_from(until.0 / 1_000_000).unwrap_or(0) + 1);
        }
        can_fail!("store.timelines.rebuild");
        let mut posts = view
            .records
            .posts_of(user, view.oldest(), view.config.entries_max, |post| {
                view.keeps(user, post)
            })
            .await?;
        while let Some(written) = add(view, user, &epoch, &mut posts, provisional_until).await? {
            if let Written::Done(rebuilt) = written {
                return Ok(rebuilt);
            }
            tokio::task::yield_now().await;
        }
    }
    Err(Error::new(
        ErrorKind::Unavailable,
        "can't rebuild a timeline: Redis loses its keys again and again",
    ))
}

async fn begin(view: &View, user: UserKey, invalidate: bool) -> Result<Vec<u8>> {
    let keys = view.keys.bucket(pair::group(user));
    let call = ScriptCall {
        script: &view.scripts.begin,
        keys: &[&keys.body],
        arguments: vec![
            view.new_generation(),
            view.ttl_s.to_string().into_bytes(),
            if invalidate { b"1".to_vec() } else { b"0".to_vec() },
            pair::index(user).to_string().into_bytes(),
        ],
    };
    read_value(
        view.writer
            .run_script(keys.slot, &call, "write a timeline")
            .await?,
    )
}

enum Written {
    Done(Rebuilt),
    /// Something else wrote to the body.
    Overtaken,
}

/// Adds posts to a timeline and marks it as complete. `None` if the body has another epoch.
async fn add(
    view: &View,
    user: UserKey,
    epoch: &[u8],
    posts: &mut Vec<u64>,
    provisional_until: Option<u64>,
) -> Result<Option<Written>> {
    let keys = view.keys.bucket(pair::group(user));
    let mut read = redis::cmd("HMGET");
    read.arg(&keys.body).arg("e").arg("g").arg(pair::index(user));
    // What the tail has is not counted as missing.
    let before = timeline(view, &view.writer, user).await?;
    let answer: Value = view.writer.run(keys.slot, read).await?;
    let [found_epoch, generation, field]: [Option<Vec<u8>>; 3] = read_value(answer)?;
    if found_epoch.as_deref() != Some(epoch) {
        return Ok(None);
    }
    let mut field = match field {
        Some(field) => Field::decode(&field)?,
        None => Field::empty(),
    };
    let was_complete = before.state == State::Complete;
    field.state = next_state(field.state, provisional_until);
    field.add(posts, view.oldest(), view.config.entries_max);
    let missing = field.posts.iter().filter(|post| !holds(&before.posts, **post));
    let rebuilt = Rebuilt {
        timelines: u64::from(!was_complete && field.state == State::Complete),
        entries: missing.count() as u64,
    };
    let generation = generation.unwrap_or_default();
    let fields = [(pair::index(user), field)];
    let written = write(view, pair::group(user), &generation, &[], &fields).await?;
    Ok(Some(if written {
        Written::Done(rebuilt)
    } else {
        Written::Overtaken
    }))
}

/// Whether descending posts have one.
fn holds(posts: &[u64], post: u64) -> bool {
    posts.binary_search_by(|other| post.cmp(other)).is_ok()
}

/// The state of a rebuilt timeline. It stays provisional until the time that the return of its user has set.
fn next_state(state: State, provisional_until: Option<u64>) -> State {
    let now_s = u64::try_from(Timestamp::now().0 / 1_000_000).unwrap_or(0);
    let until_s = match (state, provisional_until) {
        (State::Provisional { until_s }, Some(until)) => until_s.max(until),
        (State::Provisional { until_s }, None) => until_s,
        (_, until) => until.unwrap_or(0),
    };
    if until_s > now_s {
        State::Provisional { until_s }
    } else {
        State::Complete
    }
}

/// Rebuilds what is missing on timelines of users. Inactive users are left out: they are rebuilt when they read.
pub(super) async fn rebuild_all(view: &View, users: &[UserKey]) -> Result<Rebuilt> {
    let mut total = Rebuilt::default();
    let mut active = users.to_vec();
    active.retain(|user| !view.activity.is_dormant(*user) && !view.is_erased(*user));
    let mut rebuilding = stream::iter(active)
        .map(|user| rebuild(view, user, Need::Rebuild))
        .buffer_unordered(REBUILDS_PER_CALL);
    while let Some(rebuilt) = rebuilding.next().await {
        let rebuilt = rebuilt?;
        total.timelines += rebuilt.timelines;
        total.entries += rebuilt.entries;
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_returned_timeline_is_provisional_until_its_time() {
        let now_s = u64::try_from(Timestamp::now().0 / 1_000_000).unwrap();
        let later = State::Provisional { until_s: now_s + 100 };
        assert_eq!(next_state(State::Partial, Some(now_s + 100)), later);
        assert_eq!(next_state(State::Complete, Some(now_s + 100)), later);
        assert_eq!(next_state(later, None), later);
        assert_eq!(
            next_state(State::Provisional { until_s: now_s - 1 }, None),
            State::Complete
        );
        assert_eq!(next_state(State::Partial, None), State::Complete);
    }
}
