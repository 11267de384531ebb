//! The archive of posts.
//!
//! | keyspace | row |
//! |---|---|
//! | `posts` | post → [`Row`] |
//! | `posts_by_author` | (author, !post) → nothing, for posts that are not deleted, newest first |
//! | `post_deletions` | post → time; can precede the post |
//! | `post_requests` | (author, request id) → post, time |
//! | `post_request_times` | (time, author, request id) → nothing, the index for retention of `post_requests` |
//! | `post_deleted_texts` | (author, post) → nothing, for deleted posts whose text is held |
//! | `post_deleted_text_times` | (time of the deletion, post) → nothing, the index for retention of these texts |
//! | [`REMOVED`] | time → post: all posts less than the post are removed, and were accepted before the time |
//! | `posts_state` | marks, such as that all deleted texts are indexed |

pub(crate) mod row;
#[cfg(test)]
mod tests;
mod texts;
mod trim;

use std::{
    collections::HashMap,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use async_trait::async_trait;
use fjall::{Keyspace, OwnedWriteBatch, Readable};
use futures::executor::block_on;
use herald_model::{Post, PostId, UserKey, time::Timestamp};
use parking_lot::Mutex;
use prost::Message;

use self::row::{Request, Row};
use super::{
    cache::Cache,
    database::{self, Database, map_err},
    group_commit::GroupCommit,
};
use crate::{Archived, Error, ErrorKind, Result, removed_posts::RemovedPosts};

/// Number of entries at which a batch takes no more calls.
const BATCH_ENTRIES_MAX: usize = 4_096;

/// Name of the keyspace of removals of posts.
pub(crate) const REMOVED: &str = "posts_removed";

/// The embedded engine's [`Posts`](crate::Posts).
pub(crate) struct EmbeddedPosts {
    tables: Arc<Tables>,
    writes: GroupCommit<Job, usize>,
}

struct Tables {
    database: Arc<Database>,
    posts: Keyspace,
    by_author: Keyspace,
    deletions: Keyspace,
    requests: Keyspace,
    request_times: Keyspace,
    deleted_texts: Keyspace,
    deleted_text_times: Keyspace,
    removed_rows: Keyspace,
    state: Keyspace,
    /// What `removed_rows` has.
    removed: Mutex<RemovedPosts>,
    /// Posts less than this one have no rows any more: a trim begins here, and doesn't read the tombstones before.
    trimmed: AtomicU64,
    request_keep: Duration,
    cache: Cache<u64, Arc<Post>>,
}

enum Job {
    Archive(Vec<Archived>),
    TrimRequests(Timestamp),
    EraseTexts(Vec<u64>),
    EraseDamaged {
        author: UserKey,
        posts: Vec<u64>,
        at: Timestamp,
    },
    TrimTexts(Timestamp),
    HidePosts {
        before: Timestamp,
        first: PostId,
        ages_since: Timestamp,
    },
    TrimPosts,
}

/// The current batch and its changes, which can't be read from the keyspaces yet.
struct CommitBatch {
    batch: OwnedWriteBatch,
    created: HashMap<u64, UserKey>,
    deleted: HashMap<u64, Timestamp>,
    requests: HashMap<Vec<u8>, Request>,
    /// Posts whose cached values are out of date after the commit, besides the deleted ones.
    changed: Vec<u64>,
}

impl CommitBatch {
    fn new(database: &Database) -> Self {
        Self {
            batch: database.batch(),
            created: HashMap::new(),
            deleted: HashMap::new(),
            requests: HashMap::new(),
            changed: Vec::new(),
        }
    }
}

impl EmbeddedPosts {
    /// Opens the archive. `request_keep` is the retention of request ids; `cache_bytes_max` bounds the cache of posts.
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
            deleted_texts: keyspace("post_deleted_texts")?,
            deleted_text_times: keyspace("post_deleted_text_times")?,
            removed_rows: keyspace(REMOVED)?,
            state: keyspace("posts_state")?,
            removed: Mutex::default(),
            trimmed: AtomicU64::new(0),
            database: Arc::clone(database),
            request_keep,
            cache: Cache::new("posts", cache_bytes_max, |_, post: &Arc<Post>| memory_bytes(post)),
        });
        tables.index_texts()?;
        *tables.removed.lock() = tables.read_removed()?;
        let shared = Arc::clone(&tables);
        let weigh = |job: &Job| match job {
            Job::Archive(entries) => entries.len(),
            _ => BATCH_ENTRIES_MAX,
        };
        let writes = GroupCommit::start("posts", BATCH_ENTRIES_MAX, weigh, move |jobs| shared.run(jobs))?;
        Ok(Self { tables, writes })
    }

    /// When the newest post was accepted.
    pub(crate) fn last_accepted_at(&self) -> Result<Option<Timestamp>> {
        let Some(last) = self.tables.posts.last_key_value() else {
            return Ok(None);
        };
        let row = last.value().map_err(map_err)?;
        let row = Row::decode(row.as_ref()).map_err(|_| corrupt("post"))?;
        Ok(Some(Timestamp(row.accepted_at)))
    }

    /// [`find_by_request`](crate::Posts::find_by_request) at the time `now`.
    fn of_request_at(&self, author: UserKey, request_id: &str, now: Timestamp) -> Result<Option<PostId>> {
        let request = self.tables.request(&request_key(author, request_id))?;
        Ok(request
            .filter(|r| now.since(r.at) <= self.tables.request_keep)
            .map(|r| PostId(r.post)))
    }
}

impl Tables {
    /// Does a batch of jobs, in their order.
    fn run(&self, jobs: Vec<Job>) -> Result<Vec<Result<usize>>> {
        let mut pending = CommitBatch::new(&self.database);
        let mut answers = Vec::with_capacity(jobs.len());
        for job in jobs {
            let Job::Archive(entries) = job else {
                // The job reads rows, so the changes before it must be committed.
                let before = std::mem::replace(&mut pending, CommitBatch::new(&self.database));
                self.commit(before)?;
                answers.push(self.remove(job));
                continue;
            };
            for entry in &entries {
                match entry {
                    Archived::Created(post) => self.create(&mut pending, post)?,
                    Archived::Deleted { post, at } => self.delete(&mut pending, post.0, *at)?,
                }
            }
            answers.push(Ok(entries.len()));
        }
        self.commit(pending)?;
        Ok(answers)
    }

    /// Does a job that removes something, and returns the number of rows that it removed or changed.
    fn remove(&self, job: Job) -> Result<usize> {
        let mut pending = CommitBatch::new(&self.database);
        let removed = match job {
            Job::Archive(_) => 0,
            Job::TrimRequests(now) => self.trim_requests(&mut pending, now)?,
            Job::EraseTexts(posts) => self.erase_texts(&mut pending, &posts)?,
            Job::EraseDamaged { author, posts, at } => {
                self.erase_damaged(&mut pending, author, &posts, at)?
            }
            Job::TrimTexts(before) => self.trim_texts(&mut pending, before)?,
            Job::HidePosts {
                before,
                first,
                ages_since,
            } => {
                self.hide_posts(before, first, ages_since)?;
                0
            }
            Job::TrimPosts => self.trim_posts(&mut pending)?,
        };
        self.commit(pending)?;
        Ok(removed)
    }

    fn commit(&self, pending: CommitBatch) -> Result<()> {
        if pending.batch.is_empty() {
            return Ok(());
        }
        let committed = block_on(self.database.commit(pending.batch));
        for post in pending.deleted.keys().chain(&pending.changed) {
            self.cache.invalidate(post);
        }
        committed
    }

    /// Stores a post, unless it is already stored.
    fn create(&self, pending: &mut CommitBatch, post: &Post) -> Result<()> {
        let id = post.id.0;
        if id < self.first() || self.author_of(pending, id)?.is_some() {
            return Ok(());
        }
        pending.batch.insert(
            &self.posts,
            id.to_be_bytes(),
            Row::from_post(post).encode_to_vec(),
        );
        pending.created.insert(id, post.author);
        match self.deleted_at(pending, id)? {
            Some(at) => self.add_text(pending, post.author, id, at),
            None => pending
                .batch
                .insert(&self.by_author, by_author_key(post.author, id), []),
        }

        let key = request_key(post.author, &post.request_id);
        let request = Request {
            post: id,
            at: post.accepted_at,
        };
        let existing = match pending.requests.get(&key) {
            Some(existing) => Some(*existing),
            None => self.request(&key)?,
        };
        if existing.is_none_or(|existing| request.replaces(existing, self.request_keep)) {
            pending
                .batch
                .insert(&self.requests, key.clone(), request.encode());
            pending
                .batch
                .insert(&self.request_times, time_key(request.at, &key), []);
            pending.requests.insert(key, request);
        }
        Ok(())
    }

    /// Records a deletion. The first deletion of a post counts.
    fn delete(&self, pending: &mut CommitBatch, post: u64, at: Timestamp) -> Result<()> {
        if post < self.first() || self.deleted_at(pending, post)?.is_some() {
            return Ok(());
        }
        pending
            .batch
            .insert(&self.deletions, post.to_be_bytes(), at.0.to_be_bytes());
        pending.deleted.insert(post, at);
        if let Some(author) = self.author_of(pending, post)? {
            pending.batch.remove(&self.by_author, by_author_key(author, post));
            self.add_text(pending, author, post, at);
        }
        Ok(())
    }

    fn author_of(&self, pending: &CommitBatch, post: u64) -> Result<Option<UserKey>> {
        if let Some(author) = pending.created.get(&post) {
            return Ok(Some(*author));
        }
        Ok(self.row(post)?.map(|row| UserKey(row.author)))
    }

    fn deleted_at(&self, pending: &CommitBatch, post: u64) -> Result<Option<Timestamp>> {
        match pending.deleted.get(&post) {
            Some(at) => Ok(Some(*at)),
            None => self.deletion(post),
        }
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

#[async_trait]
impl crate::Posts for EmbeddedPosts {
    async fn archive(&self, entries: &[Archived]) -> Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        can_fail!("store.archive");
        let archived = self.writes.run(Job::Archive(entries.to_vec())).await.map(drop);
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

    async fn newest_by_author(&self, author: UserKey, up_to: PostId, limit: usize) -> Result<Vec<PostId>> {
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

    async fn find_by_request(&self, author: UserKey, request_id: &str) -> Result<Option<PostId>> {
        self.of_request_at(author, request_id, Timestamp::now())
    }

    async fn capacity(&self) -> Result<()> {
        self.tables.database.check_for_more()
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

    async fn first_since(&self, moment: Timestamp) -> Result<PostId> {
        let posts = &self.tables.posts;
        let Some(last) = posts.last_key_value() else {
            return Ok(PostId(1));
        };
        let first = self.tables.first().max(1);
        let (mut low, mut high) = (first, decode_id(&last.key().map_err(map_err)?)? + 1);
        // Posts less than `low` are older than `moment`; posts from `high` on are not.
        while low < high {
            let middle = low + (high - low) / 2;
            let Some(found) = posts.range(middle.to_be_bytes()..high.to_be_bytes()).next() else {
                high = middle;
                continue;
            };
            let (key, value) = found.into_inner().map_err(map_err)?;
            // A damaged post counts as a newer one: its reader is told of the damage.
            let is_older = Row::decode(value.as_ref()).is_ok_and(|row| row.accepted_at < moment.0);
            if is_older {
                low = decode_id(&key)? + 1;
            } else {
                high = middle;
            }
        }
        Ok(PostId(low))
    }

    async fn list(&self, after: Option<PostId>, limit: usize) -> Result<Vec<PostId>> {
        let from = after.map_or(0, |after| after.0.saturating_add(1));
        let from = from.max(self.tables.first());
        let rows = self.tables.posts.range(from.to_be_bytes()..).take(limit);
        rows.map(|row| Ok(PostId(decode_id(&row.key().map_err(map_err)?)?)))
            .collect()
    }

    async fn of_author(&self, author: UserKey, after: Option<PostId>, limit: usize) -> Result<Vec<PostId>> {
        self.texts_of(author, after, limit)
    }

    async fn erase_texts(&self, posts: &[PostId]) -> Result<u64> {
        self.erase(posts).await.map(|erased| erased as u64)
    }

    async fn erase_damaged(&self, author: UserKey, posts: &[PostId], at: Timestamp) -> Result<Vec<PostId>> {
        self.erase_damaged_of(author, posts, at).await
    }
}

/// The key (author, !post), which sorts the newest post first.
fn by_author_key(author: UserKey, post: u64) -> [u8; 12] {
    let mut key = [0; 12];
    key[..4].copy_from_slice(&author.0.to_be_bytes());
    key[4..].copy_from_slice(&(!post).to_be_bytes());
    key
}

fn decode_id(key: &[u8]) -> Result<u64> {
    let key = <[u8; 8]>::try_from(key).map_err(|_| corrupt("id of a post"))?;
    Ok(u64::from_be_bytes(key))
}

fn request_key(author: UserKey, request_id: &str) -> Vec<u8> {
    [&author.0.to_be_bytes(), request_id.as_bytes()].concat()
}

fn time_key(at: Timestamp, request_key: &[u8]) -> Vec<u8> {
    [&at.0.max(0).to_be_bytes(), request_key].concat()
}

fn corrupt(what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("can't decode the stored {what}"))
}

/// Approximate memory of a post, bytes.
fn memory_bytes(post: &Post) -> usize {
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
        + post.push.title.len()
        + post.push.collapse_key.len()
        + post
            .push
            .data
            .iter()
            .map(|(key, value)| key.len() + value.len() + 2 * size_of::<String>())
            .sum::<usize>()
}
