//! The archive of posts.

mod capacity;
mod texts;
mod trim;

use std::{
    collections::{BTreeMap, HashMap, btree_map::Entry},
    time::Duration,
};

use async_trait::async_trait;
use herald_model::{Post, PostId, UserKey, time::Timestamp};
use prost::Message;

use self::capacity::Capacity;
use super::{Postgres, keys};
use crate::{
    Archived, Error, ErrorKind, Result,
    cluster::PostgresConfig,
    embedded::posts::row::{Request, Row},
};

/// Archives posts and deletions, and the requests of the posts, in one transaction.
///
/// Both lock rows in ascending order of keys. A row of `posts` that exists keeps what it has: the first deletion
/// counts, and a post that comes after its deletion fills the row. Posts that were removed don't come back, nor do the
/// requests of erased ones.
const ARCHIVE: &str = "
    WITH first AS (SELECT coalesce(max(first_post), 0) AS post FROM herald.posts_removed),
    archived AS (
        INSERT INTO herald.posts AS stored (id, author, accepted_at, body, deleted_at)
        SELECT n.* FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bytea[], $5::bigint[])
            AS n (id, author, accepted_at, body, deleted_at)
        WHERE n.id >= (SELECT post FROM first) ORDER BY 1
        ON CONFLICT (id) DO UPDATE SET
            author = coalesce(stored.author, excluded.author),
            accepted_at = coalesce(stored.accepted_at, excluded.accepted_at),
            body = coalesce(stored.body, excluded.body),
            deleted_at = coalesce(stored.deleted_at, excluded.deleted_at)
        WHERE (stored.body IS NULL AND excluded.body IS NOT NULL)
            OR (stored.deleted_at IS NULL AND excluded.deleted_at IS NOT NULL)
    )
    INSERT INTO herald.post_requests AS stored (author, request_id, post, at)
    SELECT n.* FROM unnest($6::bigint[], $7::bytea[], $8::bigint[], $9::bigint[]) AS n (author, request_id, post, at)
    WHERE n.post >= (SELECT post FROM first)
        AND NOT EXISTS (SELECT FROM herald.posts p WHERE p.id = n.post AND p.erased)
    ORDER BY 1, 2
    ON CONFLICT (author, request_id) DO UPDATE SET post = excluded.post, at = excluded.at
    WHERE CASE WHEN abs(excluded.at - stored.at) <= $10
        THEN excluded.post < stored.post
        ELSE excluded.at > stored.at
    END";

/// The cluster engine's [`Posts`](crate::Posts).
pub(crate) struct PostgresPosts {
    postgres: Postgres,
    request_keep: Duration,
    capacity: Capacity,
}

/// A row of `posts` to write.
#[derive(Default)]
struct Write {
    author: Option<i64>,
    accepted_at: Option<i64>,
    body: Option<Vec<u8>>,
    deleted_at: Option<i64>,
}

/// Number of ids that one statement of [`PostgresPosts::first_since`] reads.
const POSTS_PER_SCAN: u64 = 65_536;

impl PostgresPosts {
    /// `request_keep` is the retention of request ids.
    pub(crate) fn new(postgres: &Postgres, config: &PostgresConfig, request_keep: Duration) -> Self {
        Self {
            postgres: postgres.clone(),
            request_keep,
            capacity: Capacity::new(postgres, config.database_mb_max),
        }
    }

    /// Finds the first post from `from` on that was accepted at `moment` or later; one past the last post if all are
    /// older. Posts less than `from` are taken for older.
    ///
    /// Ids ascend in the order in which posts were accepted, and the clocks of gateways may be wrong: a post is older only
    /// if all before it are. One whose clock was behind is as old as those before it; one whose clock was ahead keeps
    /// those after it.
    pub(crate) async fn first_retained(&self, from: PostId, moment: Timestamp) -> Result<PostId> {
        const FIRST: &str = "
            SELECT min(id) FROM herald.posts
            WHERE id >= $1 AND id < $2 AND body IS NOT NULL AND accepted_at >= $3";
        let removed = self.removed().await?;
        if let Some(first) = removed.first_since(moment)
            && from < removed.first()
        {
            return Ok(from.max(first).max(PostId(1)));
        }
        let from = from.max(removed.first());
        let Some(last) = crate::Posts::last(self).await? else {
            return Ok(from.max(PostId(1)));
        };
        let mut next = from.0.max(1);
        while next <= last.0 {
            let end = next.saturating_add(POSTS_PER_SCAN).min(last.0 + 1);
            let first: Option<i64> = self
                .postgres
                .call("find the first post since a time", || async {
                    let first = sqlx::query_scalar(FIRST)
                        .bind(keys::bigint(next))
                        .bind(keys::bigint(end))
                        .bind(moment.0)
                        .fetch_one(self.postgres.pool());
                    Ok(first.await?)
                })
                .await?;
            if let Some(first) = first {
                return Ok(PostId(keys::number(first)?));
            }
            next = end;
        }
        Ok(PostId(next))
    }

    /// [`find_by_request`](crate::Posts::find_by_request) at the time `now`.
    pub(crate) async fn of_request_at(
        &self,
        author: UserKey,
        request_id: &str,
        now: Timestamp,
    ) -> Result<Option<PostId>> {
        const FIND: &str = "SELECT post, at FROM herald.post_requests WHERE author = $1 AND request_id = $2";
        let request: Option<(i64, i64)> = self
            .postgres
            .call("find the post of a request", || async {
                let request = sqlx::query_as(FIND)
                    .bind(i64::from(author.0))
                    .bind(request_id.as_bytes())
                    .fetch_optional(self.postgres.pool());
                Ok(request.await?)
            })
            .await?;
        request
            .filter(|(_, at)| now.since(Timestamp(*at)) <= self.request_keep)
            .map(|(post, _)| keys::post(post))
            .transpose()
    }

    async fn write(
        &self,
        posts: BTreeMap<i64, Write>,
        requests: BTreeMap<(i64, &[u8]), Request>,
    ) -> Result<()> {
        let count = posts.len();
        let mut ids = Vec::with_capacity(count);
        let mut authors = Vec::with_capacity(count);
        let mut times = Vec::with_capacity(count);
        let mut bodies = Vec::with_capacity(count);
        let mut deletions = Vec::with_capacity(count);
        for (id, write) in posts {
            ids.push(id);
            authors.push(write.author);
            times.push(write.accepted_at);
            bodies.push(write.body);
            deletions.push(write.deleted_at);
        }
        let (request_authors, request_ids): (Vec<i64>, Vec<&[u8]>) = requests.keys().copied().unzip();
        let (request_posts, request_times): (Vec<i64>, Vec<i64>) = requests
            .values()
            .map(|request| (keys::bigint(request.post), request.at.0))
            .unzip();
        let keep = i64::try_from(self.request_keep.as_micros()).unwrap_or(i64::MAX);
        self.postgres
            .call("archive posts", || async {
                let archive = sqlx::query(ARCHIVE)
                    .bind(&ids)
                    .bind(&authors)
                    .bind(&times)
                    .bind(&bodies)
                    .bind(&deletions)
                    .bind(&request_authors)
                    .bind(&request_ids)
                    .bind(&request_posts)
                    .bind(&request_times)
                    .bind(keep);
                archive.execute(self.postgres.pool()).await?;
                Ok(())
            })
            .await
    }
}

#[async_trait]
impl crate::Posts for PostgresPosts {
    async fn archive(&self, entries: &[Archived]) -> Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        can_fail!("store.archive");
        let mut posts: BTreeMap<i64, Write> = BTreeMap::new();
        let mut requests = BTreeMap::new();
        for entry in entries {
            match entry {
                Archived::Created(post) => {
                    let write = posts.entry(keys::bigint(post.id.0)).or_default();
                    if write.body.is_some() {
                        continue;
                    }
                    write.author = Some(post.author.0.into());
                    write.accepted_at = Some(post.accepted_at.0);
                    write.body = Some(Row::from_post(post).encode_to_vec());
                    add_request(&mut requests, post, self.request_keep);
                }
                Archived::Deleted { post, at } => {
                    let write = posts.entry(keys::bigint(post.0)).or_default();
                    write.deleted_at.get_or_insert(at.0);
                }
            }
        }
        self.write(posts, requests).await?;
        can_fail!("store.archived");
        Ok(())
    }

    async fn get(&self, posts: &[PostId]) -> Result<Vec<Option<Post>>> {
        const GET: &str =
            "SELECT id, body, deleted_at FROM herald.posts WHERE id = ANY($1) AND body IS NOT NULL";
        let ids: Vec<i64> = posts.iter().map(|post| keys::bigint(post.0)).collect();
        let rows: Vec<(i64, Vec<u8>, Option<i64>)> = self
            .postgres
            .call("read posts", || async {
                Ok(sqlx::query_as(GET)
                    .bind(&ids)
                    .fetch_all(self.postgres.pool())
                    .await?)
            })
            .await?;
        let mut found = HashMap::with_capacity(rows.len());
        for (id, body, deleted_at) in rows {
            let post = keys::post(id)?;
            let row = Row::decode(&body[..]).map_err(|_| {
                Error::new(ErrorKind::Corrupt, format!("can't decode the stored post {post}"))
            })?;
            found.insert(post, row.into_post(post, deleted_at.map(Timestamp))?);
        }
        Ok(posts.iter().map(|post| found.get(post).cloned()).collect())
    }

    async fn newest_by_author(&self, author: UserKey, up_to: PostId, limit: usize) -> Result<Vec<PostId>> {
        const NEWEST: &str = "
            SELECT id FROM herald.posts
            WHERE author = $1 AND id <= $2 AND body IS NOT NULL AND deleted_at IS NULL
            ORDER BY id DESC LIMIT $3";
        let ids: Vec<i64> = self
            .postgres
            .call("list the posts of an author", || async {
                let ids = sqlx::query_scalar(NEWEST)
                    .bind(i64::from(author.0))
                    .bind(keys::bigint(up_to.0))
                    .bind(keys::limit(limit))
                    .fetch_all(self.postgres.pool());
                Ok(ids.await?)
            })
            .await?;
        ids.into_iter().map(keys::post).collect()
    }

    async fn find_by_request(&self, author: UserKey, request_id: &str) -> Result<Option<PostId>> {
        self.of_request_at(author, request_id, Timestamp::now()).await
    }

    async fn capacity(&self) -> Result<()> {
        self.capacity.check()
    }

    async fn last(&self) -> Result<Option<PostId>> {
        const LAST: &str = "SELECT id FROM herald.posts WHERE body IS NOT NULL ORDER BY id DESC LIMIT 1";
        let last: Option<i64> = self
            .postgres
            .call("read the greatest id of a post", || async {
                Ok(sqlx::query_scalar(LAST)
                    .fetch_optional(self.postgres.pool())
                    .await?)
            })
            .await?;
        last.map(keys::post).transpose()
    }

    async fn first_since(&self, moment: Timestamp) -> Result<PostId> {
        const FIRST: &str = "
            SELECT id, accepted_at FROM herald.posts WHERE id >= $1 AND id < $2 AND body IS NOT NULL
            ORDER BY id LIMIT 1";
        let Some(last) = self.last().await? else {
            return Ok(PostId(1));
        };
        let (mut low, mut high) = (1, last.0 + 1);
        // Posts less than `low` are older than `moment`; posts from `high` on are not.
        while low < high {
            let middle = low + (high - low) / 2;
            let first: Option<(i64, i64)> = self
                .postgres
                .call("find the first post since a time", || async {
                    let first = sqlx::query_as(FIRST)
                        .bind(keys::bigint(middle))
                        .bind(keys::bigint(high))
                        .fetch_optional(self.postgres.pool());
                    Ok(first.await?)
                })
                .await?;
            match first {
                Some((id, accepted_at)) if accepted_at < moment.0 => low = keys::number(id)? + 1,
                _ => high = middle,
            }
        }
        Ok(PostId(low))
    }

    async fn list(&self, after: Option<PostId>, limit: usize) -> Result<Vec<PostId>> {
        const LIST: &str =
            "SELECT id FROM herald.posts WHERE id > $1 AND body IS NOT NULL ORDER BY id LIMIT $2";
        let after = after.map_or(-1, |after| keys::bigint(after.0));
        let ids: Vec<i64> = self
            .postgres
            .call("list posts", || async {
                let ids = sqlx::query_scalar(LIST)
                    .bind(after)
                    .bind(keys::limit(limit))
                    .fetch_all(self.postgres.pool());
                Ok(ids.await?)
            })
            .await?;
        ids.into_iter().map(keys::post).collect()
    }

    async fn of_author(&self, author: UserKey, after: Option<PostId>, limit: usize) -> Result<Vec<PostId>> {
        self.texts_of(author, after, limit).await
    }

    async fn erase_texts(&self, posts: &[PostId]) -> Result<u64> {
        let posts: Vec<i64> = posts.iter().map(|post| keys::bigint(post.0)).collect();
        self.erase(&posts).await
    }

    async fn erase_damaged(&self, author: UserKey, posts: &[PostId], at: Timestamp) -> Result<Vec<PostId>> {
        let posts: Vec<i64> = posts.iter().map(|post| keys::bigint(post.0)).collect();
        self.erase_damaged_of(author, &posts, at).await
    }
}

/// Adds the request of a post, unless another post of the same call has it.
fn add_request<'a>(requests: &mut BTreeMap<(i64, &'a [u8]), Request>, post: &'a Post, keep: Duration) {
    let request = Request {
        post: post.id.0,
        at: post.accepted_at,
    };
    match requests.entry((post.author.0.into(), post.request_id.as_bytes())) {
        Entry::Vacant(entry) => {
            entry.insert(request);
        }
        Entry::Occupied(mut entry) => {
            if request.replaces(*entry.get(), keep) {
                entry.insert(request);
            }
        }
    }
}
