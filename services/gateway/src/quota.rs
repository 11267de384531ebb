//! The quota of posts of an author in a day: soft, cheap, and never a reason to refuse posts while the store is away.
//!
//! The posts of the last 24 hours, deleted ones included, are counted from the archive once a minute and author, by
//! their ids and the times of a few of them. In between, the posts that this process accepts are added. When that count
//! has reached the quota, the archive is read again. What other processes accept is seen with the next reading,
//! so together they may let a few more posts pass.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use herald_model::{PostId, UserId, UserKey, time::Timestamp};
use herald_store::{Error, Posts};
use moka::sync::Cache;
use parking_lot::Mutex;
use tokio::time::timeout;

use crate::day_start::DayStart;

/// The time over which posts are counted.
const DAY: Duration = Duration::from_hours(24);
/// Maximum number of authors whose posts are counted, some 20 MB.
const AUTHORS_MAX: u64 = 100_000;
/// Time for which a reading of the archive is used.
const KEEP: Duration = Duration::from_mins(1);
/// Posts read at once.
const PAGE: usize = 1_000;
/// Maximum time of a reading of the archive. An author whose posts can't be counted in time may post.
const READ_MAX: Duration = Duration::from_secs(1);
/// Retry delay of a post that has no room only because other posts of its author are being accepted.
const IN_FLIGHT_RETRY: Duration = Duration::from_secs(1);

/// Limits the posts of each author in 24 hours. Clones share the counts.
#[derive(Clone)]
pub(crate) struct PostQuota(Option<Arc<Inner>>);

struct Inner {
    per_day: usize,
    posts: Arc<dyn Posts>,
    authors: Cache<UserId, Arc<Mutex<Counted>>>,
    day_start: DayStart,
}

/// What is known of the posts of an author in the last 24 hours.
#[derive(Default)]
struct Counted {
    /// What the archive had when it was read.
    archived: Option<Recent>,
    /// Posts that this process has accepted and that the archive did not have when it was read.
    accepted: Vec<Accepted>,
    /// Request ids of posts that this process is accepting.
    reserved: Vec<String>,
}

/// The newest posts of an author in the archive.
#[derive(Debug, Default)]
struct Recent {
    /// Posts of the last 24 hours, newest first; at most as many as the quota allows.
    ids: Vec<PostId>,
    /// When the oldest of them was accepted.
    oldest_at: Option<Timestamp>,
}

struct Accepted {
    request_id: String,
    id: PostId,
    at: Timestamp,
}

/// What the counts say of one more post.
enum Verdict {
    /// There is room, and the post has its place.
    Room,
    /// The request id is that of a post that this process has just accepted or is accepting.
    Repeated,
    /// No room; there is room after this time.
    Full(Duration),
    /// The archive must be read.
    Unknown,
}

/// The place of a post in the quota of its author, until it is accepted or dropped.
#[derive(Default)]
pub(crate) struct Reservation(Option<(Arc<Mutex<Counted>>, String)>);

impl Reservation {
    /// Counts the post as accepted.
    pub(crate) fn accept(self, id: PostId, at: Timestamp) {
        if let Some((counted, request_id)) = &self.0 {
            let request_id = request_id.clone();
            counted.lock().accepted.push(Accepted { request_id, id, at });
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some((counted, request_id)) = self.0.take() {
            let reserved = &mut counted.lock().reserved;
            if let Some(at) = reserved.iter().position(|reserved| *reserved == request_id) {
                reserved.swap_remove(at);
            }
        }
    }
}

impl PostQuota {
    /// At most `per_day` posts of an author in 24 hours; 0: no quota.
    pub(crate) fn new(per_day: u32, posts: Arc<dyn Posts>) -> Self {
        let authors = Cache::builder().max_capacity(AUTHORS_MAX).time_to_live(KEEP);
        Self((per_day > 0).then(|| {
            Arc::new(Inner {
                per_day: per_day as usize,
                day_start: DayStart::new(Arc::clone(&posts), DAY, KEEP),
                posts,
                authors: authors.build(),
            })
        }))
    }

    /// Takes a place in the quota of an author. `key` is that of the author, `None` while the store is away: then
    /// every post passes.
    ///
    /// # Errors
    /// The author has no room; the error is the time until there is room.
    pub(crate) async fn reserve(
        &self,
        author: &UserId,
        key: Option<UserKey>,
        request_id: &str,
    ) -> Result<Reservation, Duration> {
        let Some(inner) = &self.0 else {
            return Ok(Reservation::default());
        };
        let counted = inner.authors.get_with(author.clone(), Arc::default);
        let verdict = counted
            .lock()
            .verdict(inner.per_day, request_id, Timestamp::now());
        let verdict = match (verdict, key) {
            (Verdict::Unknown, Some(key)) => {
                let now = Timestamp::now();
                match timeout(READ_MAX, inner.read(key, now)).await {
                    Ok(Ok(recent)) => counted.lock().update(recent, inner.per_day, request_id, now),
                    Ok(Err(error)) => {
                        tracing::debug!(%error, %author, "posts of the last day not counted; the post passes");
                        counted.lock().pass(request_id)
                    }
                    Err(_) => {
                        tracing::debug!(%author, "posts of the last day not counted in time; the post passes");
                        counted.lock().pass(request_id)
                    }
                }
            }
            (Verdict::Unknown | Verdict::Full(_), None) => counted.lock().pass(request_id),
            (known, _) => known,
        };
        match verdict {
            Verdict::Full(wait) => Err(wait),
            Verdict::Repeated => Ok(Reservation::default()),
            Verdict::Room | Verdict::Unknown => Ok(Reservation(Some((counted, request_id.to_owned())))),
        }
    }
}

impl Inner {
    /// Reads the author's posts of the last 24 hours; no more of them than the quota.
    async fn read(&self, author: UserKey, now: Timestamp) -> Result<Recent, Error> {
        let since = now.minus(DAY);
        let mut after = self.day_start.get().await.0.checked_sub(1).map(PostId);
        // The newest, as many as the quota allows. Deleted posts are among these while their texts are kept
        // (`store.deleted_text_keep_hours`, 7 days by default). There can be more than the quota allows: other processes
        // may have let some pass, and the day start can be old by a minute.
        let mut newest = VecDeque::new();
        loop {
            let page = self.posts.of_author(author, after, PAGE).await?;
            after = page.last().copied();
            newest.extend(&page);
            newest.drain(..newest.len().saturating_sub(self.per_day));
            if page.len() < PAGE {
                break;
            }
        }
        let mut ids: Vec<_> = newest.into_iter().rev().collect();
        // Newest first, so the posts of the last 24 hours come first. Mostly that is all of them.
        let (mut recent, mut older) = (0, ids.len());
        let (mut oldest_at, mut probe) = (None, older.saturating_sub(1));
        while recent < older {
            match self.accepted_at(ids[probe]).await?.filter(|at| *at > since) {
                Some(at) => (recent, oldest_at) = (probe + 1, Some(at)),
                None => older = probe,
            }
            probe = usize::midpoint(recent, older);
        }
        ids.truncate(recent);
        Ok(Recent { ids, oldest_at })
    }

    async fn accepted_at(&self, post: PostId) -> Result<Option<Timestamp>, Error> {
        let found = self.posts.get(&[post]).await?;
        Ok(found.into_iter().flatten().next().map(|post| post.accepted_at))
    }
}

impl Counted {
    /// Whether one more post has room; if so, takes the place.
    fn verdict(&mut self, per_day: usize, request_id: &str, now: Timestamp) -> Verdict {
        let is_accepted = |accepted: &Accepted| accepted.request_id == request_id;
        if self.reserved.iter().any(|reserved| reserved == request_id)
            || self.accepted.iter().any(is_accepted)
        {
            return Verdict::Repeated;
        }
        let Some(archived) = &self.archived else {
            return Verdict::Unknown;
        };
        let count = archived.ids.len() + self.accepted.len();
        if count + self.reserved.len() < per_day {
            return self.pass(request_id);
        }
        // Only if archived posts fill the quota alone, their times tell when there is room.
        match archived.oldest_at.map(|at| at.plus(DAY)) {
            Some(until) if archived.ids.len() >= per_day && until > now => Verdict::Full(until.since(now)),
            _ => Verdict::Unknown,
        }
    }

    /// Takes a place without asking whether there is room.
    fn pass(&mut self, request_id: &str) -> Verdict {
        self.reserved.push(request_id.to_owned());
        Verdict::Room
    }

    /// Takes over a reading of the archive.
    fn update(&mut self, recent: Recent, per_day: usize, request_id: &str, now: Timestamp) -> Verdict {
        self.accepted
            .retain(|accepted| !recent.ids.contains(&accepted.id));
        let count = recent.ids.len() + self.accepted.len();
        let first_accepted = self.accepted.iter().map(|accepted| accepted.at).min();
        let oldest_at = recent.oldest_at.into_iter().chain(first_accepted).min();
        self.archived = Some(recent);
        match self.verdict(per_day, request_id, now) {
            Verdict::Unknown if count < per_day => Verdict::Full(IN_FLIGHT_RETRY),
            Verdict::Unknown => Verdict::Full(oldest_at.map_or(DAY, |at| at.plus(DAY).since(now))),
            known => known,
        }
    }
}

#[cfg(test)]
mod tests {
    use herald_model::{Lane, Post, PushContent};
    use herald_store::{
        Archived,
        embedded::{self, Embedded},
    };
    use tempfile::TempDir;

    use super::*;

    const HOUR: Duration = Duration::from_hours(1);
    const AUTHOR: UserKey = UserKey(1);

    fn author() -> UserId {
        UserId::new("107").unwrap()
    }

    async fn archive(posts: &dyn Posts, id: u64, accepted_at: Timestamp) {
        let post = Post {
            id: PostId(id),
            author: AUTHOR,
            author_id: author(),
            request_id: format!("archived-{id}"),
            text: "text".into(),
            links: Vec::new(),
            media_urls: Vec::new(),
            lane: Lane::Normal,
            accepted_at,
            push_ttl: HOUR,
            push: PushContent::default(),
            deleted_at: None,
        };
        posts.archive(&[Archived::Created(post)]).await.unwrap();
    }

    fn store() -> (TempDir, Arc<dyn Posts>) {
        let dir = tempfile::tempdir().unwrap();
        let config = embedded::Config {
            data_dir: dir.path().into(),
            ..embedded::Config::default()
        };
        let posts = Embedded::open(&config).unwrap().stores().posts;
        (dir, posts)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn only_posts_of_the_last_day_count() {
        for (old, new, per_day) in [
            (0, 0, 1),
            (9, 0, 5),
            (9, 4, 5),
            (0, 4, 5),
            (3, 5, 5),
            (2, 9, 5),
            (1, 7, 20),
        ] {
            let (_dir, posts) = store();
            let now = Timestamp::now();
            let hours = |n: u32, all: u32| HOUR * (all - n);
            for n in 0..old {
                archive(&*posts, 1 + u64::from(n), now.minus(HOUR * 24 + hours(n, old))).await;
            }
            for n in 0..new {
                archive(&*posts, 100 + u64::from(n), now.minus(hours(n, new))).await;
            }
            let quota = PostQuota::new(per_day, posts);
            for n in new..per_day {
                let id = PostId(200 + u64::from(n));
                let reserved = quota.reserve(&author(), Some(AUTHOR), &format!("new-{n}")).await;
                reserved.expect("room").accept(id, now);
            }
            let wait = quota.reserve(&author(), Some(AUTHOR), "one more").await.err();
            // With more than the quota, the oldest of as many as the quota allows must leave.
            let oldest = if new == 0 {
                Duration::ZERO
            } else {
                HOUR * new.min(per_day)
            };
            let expected = DAY.saturating_sub(oldest);
            let wait = wait.expect("no room");
            assert!(
                wait <= expected && wait + HOUR / 2 > expected,
                "{old} {new} {per_day}: {wait:?}"
            );
            assert!(quota.reserve(&author(), None, "store away").await.is_ok());
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn deleted_posts_count() {
        let (_dir, posts) = store();
        for n in 1..=3 {
            archive(&*posts, n, Timestamp::now().minus(HOUR)).await;
        }
        let deletion = Archived::Deleted {
            post: PostId(2),
            at: Timestamp::now(),
        };
        posts.archive(&[deletion]).await.unwrap();
        let quota = PostQuota::new(3, posts);
        assert!(quota.reserve(&author(), Some(AUTHOR), "new").await.is_err());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_place_is_free_again_when_its_post_is_not_accepted() {
        let (_dir, posts) = store();
        let quota = PostQuota::new(2, posts);
        let reserve = async |request_id: &str| quota.reserve(&author(), Some(AUTHOR), request_id).await;
        let first = reserve("a").await.expect("room");
        let second = reserve("b").await.expect("room");
        assert_eq!(reserve("c").await.err(), Some(IN_FLIGHT_RETRY));
        drop(first);
        second.accept(PostId(1), Timestamp::now());
        let third = reserve("c").await.expect("room");
        third.accept(PostId(2), Timestamp::now());
        assert!(reserve("d").await.is_err_and(|wait| wait + HOUR > DAY));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 8)]
    async fn concurrent_posts_take_no_more_places_than_there_are() {
        let (_dir, posts) = store();
        for round in 0..100 {
            let quota = PostQuota::new(5, posts.clone());
            let reserving = (0..32).map(|n| {
                let quota = quota.clone();
                tokio::spawn(async move {
                    let request_id = format!("request-{n}");
                    quota.reserve(&author(), Some(AUTHOR), &request_id).await
                })
            });
            let reserved = futures::future::join_all(reserving.collect::<Vec<_>>()).await;
            let places: Vec<_> = reserved.into_iter().filter_map(|one| one.unwrap().ok()).collect();
            assert_eq!(places.len(), 5, "round {round}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_repeated_request_takes_no_place() {
        let (_dir, posts) = store();
        let quota = PostQuota::new(2, posts.clone());
        let reserve = async |request_id: &str| quota.reserve(&author(), Some(AUTHOR), request_id).await;
        let first = reserve("a").await.expect("room");
        for _ in 0..5 {
            assert!(reserve("a").await.is_ok());
        }
        first.accept(PostId(1), Timestamp::now());
        for _ in 0..5 {
            assert!(reserve("a").await.is_ok());
        }
        // A post that this process has accepted counts once, also when the archive has it.
        archive(&*posts, 1, Timestamp::now()).await;
        let second = reserve("b").await.expect("room");
        assert!(reserve("c").await.is_err());
        drop(second);
        assert!(reserve("c").await.is_ok());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn without_a_quota_nothing_is_counted() {
        let (_dir, posts) = store();
        let quota = PostQuota::new(0, posts);
        for _ in 0..100 {
            assert!(
                quota
                    .reserve(&author(), Some(AUTHOR), "a")
                    .await
                    .is_ok_and(|reserved| reserved.0.is_none())
            );
        }
    }
}
