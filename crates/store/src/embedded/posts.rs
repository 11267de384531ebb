//! The archive of posts.
//!
//! | keyspace | row |
//! |---|---|
//! | `posts` | post → [`Row`] |
//! | `posts_by_author` | (author, newest first) → nothing; posts that are not deleted |
//! | `post_deletions` | post → when; may be there before the post |
//! | `post_requests` | (author, request id) → post, when |
//! | `post_request_times` | (when, author, request id) → nothing, to trim the former by age |

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use fjall::{Keyspace, OwnedWriteBatch, Readable};
use futures::executor::block_on;
use herald_model::{FollowVersion, Lane, Post, PostId, UserId, UserKey, time::Timestamp};
use prost::Message;

use super::{
    cache::Cache,
    database::{self, Database, map_err},
    group_commit::GroupCommit,
};
use crate::{Archived, Error, ErrorKind, Result};

/// How many entries one commit takes before it leaves the rest to the next one.
const ROUND_ENTRIES: usize = 4_096;

/// How many request ids one commit of [`EmbeddedPosts::trim`] removes.
const TRIM_REQUESTS: usize = 10_000;

/// The embedded engine's [`Posts`](crate::Posts).
pub(crate) struct EmbeddedPosts {
    tables: Arc<Tables>,
    rounds: GroupCommit<Job, usize>,
}

struct Tables {
    database: Arc<Database>,
    posts: Keyspace,
    by_author: Keyspace,
    deletions: Keyspace,
    requests: Keyspace,
    request_times: Keyspace,
    request_keep: Duration,
    cache: Cache<u64, Arc<Post>>,
}

enum Job {
    EmbeddedPosts(Vec<Archived>),
    Trim(Timestamp),
}

/// A post as it is stored. What never changes: the deletion has its own row.
#[derive(Clone, PartialEq, Message)]
struct Row {
    #[prost(uint32, tag = "1")]
    author: u32,
    #[prost(string, tag = "2")]
    author_id: String,
    #[prost(string, tag = "3")]
    request_id: String,
    #[prost(string, tag = "4")]
    text: String,
    #[prost(string, repeated, tag = "5")]
    links: Vec<String>,
    #[prost(string, repeated, tag = "6")]
    media_urls: Vec<String>,
    /// 0 high, 1 normal, 2 low.
    #[prost(uint32, tag = "7")]
    lane: u32,
    #[prost(uint64, tag = "8")]
    follow_version: u64,
    #[prost(int64, tag = "9")]
    accepted_at: i64,
    #[prost(uint64, tag = "10")]
    push_ttl_us: u64,
}

/// The post that a request made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Request {
    post: u64,
    at: Timestamp,
}

/// The round in hand: what is in its batch and can't be read yet.
struct CommitBatch {
    batch: OwnedWriteBatch,
    created: HashMap<u64, UserKey>,
    deleted: HashMap<u64, Timestamp>,
    requests: HashMap<Vec<u8>, Request>,
}

impl EmbeddedPosts {
    /// Opens the archive. Request ids are kept for `request_keep`; `cache_bytes_max` bounds the memory for posts.
    pub(crate) fn open(
        database: &Arc<Database>,
        request_keep: Duration,
        cache_bytes_max: u64,
    ) -> Result<Self> {
        let keyspace = |name| database.keyspace(name, database::options);
        let tables = Arc::new(Tables {
            posts: keyspace("posts")?,
            by_author: keyspace("posts_by_author")?,
            deletions: keyspace("post_deletions")?,
            requests: keyspace("post_requests")?,
            request_times: keyspace("post_request_times")?,
            database: Arc::clone(database),
            request_keep,
            cache: Cache::new("posts", cache_bytes_max, |_, post: &Arc<Post>| bytes_of(post)),
        });
        let shared = Arc::clone(&tables);
        let weigh = |job: &Job| match job {
            Job::EmbeddedPosts(entries) => entries.len(),
            Job::Trim(_) => ROUND_ENTRIES,
        };
        let rounds = GroupCommit::start("posts", ROUND_ENTRIES, weigh, move |jobs| shared.round(jobs))?;
        Ok(Self { tables, rounds })
    }

    /// Removes request ids older than the kept time and answers how many that were.
    pub(crate) async fn trim(&self, now: Timestamp) -> Result<usize> {
        let mut removed = 0;
        loop {
            match self.rounds.run(Job::Trim(now)).await? {
                0 => return Ok(removed),
                some => removed += some,
            }
        }
    }

    /// The id from which on posts were accepted at a moment or later; one past the last when all are older. Ids ascend with
    /// time but for the clock's corrections, so it is found by halving: some 40 reads.
    pub(crate) fn first_since(&self, moment: Timestamp) -> Result<PostId> {
        let posts = &self.tables.posts;
        let Some(last) = posts.last_key_value() else {
            return Ok(PostId(1));
        };
        let (mut low, mut high) = (1, id_of(&last.key().map_err(map_err)?)? + 1);
        // Every post before `low` is older, and those from `high` on are not.
        while low < high {
            let middle = low + (high - low) / 2;
            let Some(found) = posts.range(middle.to_be_bytes()..high.to_be_bytes()).next() else {
                high = middle;
                continue;
            };
            let (key, value) = found.into_inner().map_err(map_err)?;
            let row = Row::decode(value.as_ref()).map_err(|_| corrupt("post"))?;
            if row.accepted_at < moment.0 {
                low = id_of(&key)? + 1;
            } else {
                high = middle;
            }
        }
        Ok(PostId(low))
    }

    /// [`of_request`](crate::Posts::of_request) as of a moment.
    fn of_request_at(&self, author: UserKey, request_id: &str, now: Timestamp) -> Result<Option<PostId>> {
        let request = self.tables.request(&request_key(author, request_id))?;
        Ok(request
            .filter(|r| now.since(r.at) <= self.tables.request_keep)
            .map(|r| PostId(r.post)))
    }
}

impl Tables {
    fn round(&self, jobs: Vec<Job>) -> Result<Vec<Result<usize>>> {
        let mut round = CommitBatch {
            batch: self.database.batch(),
            created: HashMap::new(),
            deleted: HashMap::new(),
            requests: HashMap::new(),
        };
        let mut answers = Vec::with_capacity(jobs.len());
        for job in jobs {
            answers.push(Ok(match job {
                Job::EmbeddedPosts(entries) => {
                    for entry in &entries {
                        match entry {
                            Archived::Created(post) => self.create(&mut round, post)?,
                            Archived::Deleted { post, at } => self.delete(&mut round, post.0, *at)?,
                        }
                    }
                    entries.len()
                }
                Job::Trim(now) => self.trim(&mut round, now)?,
            }));
        }
        if round.batch.is_empty() {
            return Ok(answers);
        }
        let committed = block_on(self.database.commit(round.batch));
        for post in round.deleted.keys() {
            self.cache.changed(post);
        }
        committed.map(|()| answers)
    }

    /// Stores a post. One that is there already stays as it is.
    fn create(&self, round: &mut CommitBatch, post: &Post) -> Result<()> {
        let id = post.id.0;
        if self.author_of(round, id)?.is_some() {
            return Ok(());
        }
        round
            .batch
            .insert(&self.posts, id.to_be_bytes(), Row::of(post).encode_to_vec());
        round.created.insert(id, post.author);
        if !self.is_deleted(round, id)? {
            round
                .batch
                .insert(&self.by_author, by_author_key(post.author, id), []);
        }

        let key = request_key(post.author, &post.request_id);
        let made = Request {
            post: id,
            at: post.accepted_at,
        };
        let known = match round.requests.get(&key) {
            Some(request) => Some(*request),
            None => self.request(&key)?,
        };
        if known.is_none_or(|known| made.replaces(known, self.request_keep)) {
            round.batch.insert(&self.requests, key.clone(), made.encode());
            round
                .batch
                .insert(&self.request_times, time_key(made.at, &key), []);
            round.requests.insert(key, made);
        }
        Ok(())
    }

    /// Notes that a post was deleted. The first deletion stays.
    fn delete(&self, round: &mut CommitBatch, post: u64, at: Timestamp) -> Result<()> {
        if self.is_deleted(round, post)? {
            return Ok(());
        }
        round
            .batch
            .insert(&self.deletions, post.to_be_bytes(), at.0.to_be_bytes());
        round.deleted.insert(post, at);
        if let Some(author) = self.author_of(round, post)? {
            round.batch.remove(&self.by_author, by_author_key(author, post));
        }
        Ok(())
    }

    /// Removes some request ids that are too old. It is done between the writes, so that one which was just made anew
    /// stays.
    fn trim(&self, round: &mut CommitBatch, now: Timestamp) -> Result<usize> {
        let keep = i64::try_from(self.request_keep.as_micros()).unwrap_or(i64::MAX);
        let end = now.0.saturating_sub(keep).max(0).to_be_bytes();
        let mut removed = 0;
        for row in self.request_times.range(..end).take(TRIM_REQUESTS) {
            let time_key = row.key().map_err(map_err)?;
            let (Some(at), Some(key)) = (time_key.get(..8), time_key.get(8..)) else {
                return Err(corrupt("request time"));
            };
            if !round.requests.contains_key(key)
                && self
                    .request(key)?
                    .is_some_and(|request| request.at.0.to_be_bytes() == at)
            {
                round.batch.remove(&self.requests, key);
            }
            round.batch.remove(&self.request_times, time_key);
            removed += 1;
        }
        Ok(removed)
    }

    fn author_of(&self, round: &CommitBatch, post: u64) -> Result<Option<UserKey>> {
        if let Some(author) = round.created.get(&post) {
            return Ok(Some(*author));
        }
        Ok(self.row(post)?.map(|row| UserKey(row.author)))
    }

    fn is_deleted(&self, round: &CommitBatch, post: u64) -> Result<bool> {
        Ok(round.deleted.contains_key(&post) || self.deletion(post)?.is_some())
    }

    fn row(&self, post: u64) -> Result<Option<Row>> {
        let bytes = self.posts.get(post.to_be_bytes()).map_err(map_err)?;
        bytes
            .map(|bytes| Row::decode(&*bytes).map_err(|_| corrupt("post")))
            .transpose()
    }

    fn deletion(&self, post: u64) -> Result<Option<Timestamp>> {
        let Some(at) = self.deletions.get(post.to_be_bytes()).map_err(map_err)? else {
            return Ok(None);
        };
        let at = (*at).try_into().map_err(|_| corrupt("deletion"))?;
        Ok(Some(Timestamp(i64::from_be_bytes(at))))
    }

    fn request(&self, key: &[u8]) -> Result<Option<Request>> {
        let Some(bytes) = self.requests.get(key).map_err(map_err)? else {
            return Ok(None);
        };
        Request::decode(&bytes)
            .map(Some)
            .ok_or_else(|| corrupt("request"))
    }

    fn post(&self, id: u64) -> Result<Option<Arc<Post>>> {
        let Some(row) = self.row(id)? else { return Ok(None) };
        Ok(Some(Arc::new(row.into_post(PostId(id), self.deletion(id)?)?)))
    }
}

impl Row {
    fn of(post: &Post) -> Self {
        Self {
            author: post.author.0,
            author_id: post.author_id.as_str().into(),
            request_id: post.request_id.clone(),
            text: post.text.clone(),
            links: post.links.clone(),
            media_urls: post.media_urls.clone(),
            lane: match post.lane {
                Lane::High => 0,
                Lane::Normal => 1,
                Lane::Low => 2,
            },
            follow_version: post.follow_version.0,
            accepted_at: post.accepted_at.0,
            push_ttl_us: u64::try_from(post.push_ttl.as_micros()).unwrap_or(u64::MAX),
        }
    }

    fn into_post(self, id: PostId, deleted_at: Option<Timestamp>) -> Result<Post> {
        Ok(Post {
            id,
            author: UserKey(self.author),
            author_id: UserId::new(self.author_id).map_err(|_| corrupt("author of a post"))?,
            request_id: self.request_id,
            text: self.text,
            links: self.links,
            media_urls: self.media_urls,
            lane: *Lane::ALL
                .get(self.lane as usize)
                .ok_or_else(|| corrupt("lane of a post"))?,
            follow_version: FollowVersion(self.follow_version),
            accepted_at: Timestamp(self.accepted_at),
            push_ttl: Duration::from_micros(self.push_ttl_us),
            deleted_at,
        })
    }
}

impl Request {
    /// Whether this is the post to remember rather than the known one: the smaller of two within the kept time, else the
    /// later.
    fn replaces(self, known: Self, keep: Duration) -> bool {
        let apart = self.at.since(known.at).max(known.at.since(self.at));
        if apart <= keep {
            self.post < known.post
        } else {
            self.at > known.at
        }
    }

    fn encode(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.post.to_be_bytes());
        bytes[8..].copy_from_slice(&self.at.0.to_be_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (post, at) = bytes.split_first_chunk()?;
        Some(Self {
            post: u64::from_be_bytes(*post),
            at: Timestamp(i64::from_be_bytes(at.try_into().ok()?)),
        })
    }
}

#[async_trait]
impl crate::Posts for EmbeddedPosts {
    async fn archive(&self, entries: &[Archived]) -> Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        can_fail!("store.archive");
        let archived = self
            .rounds
            .run(Job::EmbeddedPosts(entries.to_vec()))
            .await
            .map(drop);
        can_fail!("store.archived");
        archived
    }

    async fn get(&self, posts: &[PostId]) -> Result<Vec<Option<Post>>> {
        posts
            .iter()
            .map(|post| {
                let post = self
                    .tables
                    .cache
                    .get_or_load(post.0, |id| self.tables.post(*id))?;
                Ok(post.as_deref().cloned())
            })
            .collect()
    }

    async fn newest_of(&self, author: UserKey, up_to: PostId, limit: usize) -> Result<Vec<PostId>> {
        let (newest, oldest) = (by_author_key(author, up_to.0), by_author_key(author, 0));
        self.tables
            .database
            .snapshot()
            .range(&self.tables.by_author, newest..=oldest)
            .take(limit)
            .map(|row| {
                let key = row.key().map_err(map_err)?;
                let id = key
                    .get(4..)
                    .and_then(|id| id.try_into().ok())
                    .ok_or_else(|| corrupt("post of an author"))?;
                Ok(PostId(!u64::from_be_bytes(id)))
            })
            .collect()
    }

    async fn of_request(&self, author: UserKey, request_id: &str) -> Result<Option<PostId>> {
        self.of_request_at(author, request_id, Timestamp::now())
    }

    async fn capacity(&self) -> Result<()> {
        self.tables.database.space().check_for_more()
    }

    async fn last(&self) -> Result<Option<PostId>> {
        let Some(row) = self.tables.posts.last_key_value() else {
            return Ok(None);
        };
        let id = (*row.key().map_err(map_err)?)
            .try_into()
            .map_err(|_| corrupt("post"))?;
        Ok(Some(PostId(u64::from_be_bytes(id))))
    }
}

/// (author, !post): the newest come first.
fn by_author_key(author: UserKey, post: u64) -> [u8; 12] {
    let mut key = [0; 12];
    key[..4].copy_from_slice(&author.0.to_be_bytes());
    key[4..].copy_from_slice(&(!post).to_be_bytes());
    key
}

fn id_of(key: &[u8]) -> Result<u64> {
    let key = <[u8; 8]>::try_from(key).map_err(|_| corrupt("post's id"))?;
    Ok(u64::from_be_bytes(key))
}

fn request_key(author: UserKey, request_id: &str) -> Vec<u8> {
    [&author.0.to_be_bytes(), request_id.as_bytes()].concat()
}

fn time_key(at: Timestamp, request_key: &[u8]) -> Vec<u8> {
    [&at.0.max(0).to_be_bytes(), request_key].concat()
}

fn corrupt(what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("a {what} can't be read"))
}

/// The memory of a post, roughly.
fn bytes_of(post: &Post) -> usize {
    size_of::<Post>()
        + post.text.len()
        + post.author_id.as_str().len()
        + post.request_id.len()
        + post
            .links
            .iter()
            .chain(&post.media_urls)
            .map(|url| url.len() + size_of::<String>())
            .sum::<usize>()
}

#[cfg(test)]
mod tests;
