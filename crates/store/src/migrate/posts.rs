//! Posts with their deletions, and request ids.

use prost::Message as _;

use super::{
    part::{Batches, Part},
    source::{Source, corrupt, named, read_u32, read_u64, rows_after, show_key, undecodable},
    table::{Table, Type},
};
use crate::{
    Result,
    embedded::posts::row::{Request, Row},
};
use herald_model::{PostId, time::Timestamp};

pub(super) const POSTS: Part = Part {
    name: "posts",
    tables: &[&POSTS_TABLE],
    estimate: |source| source.posts.approximate_len() as u64,
    read: read_posts,
};

pub(super) const REQUESTS: Part = Part {
    name: "request ids",
    tables: &[&REQUESTS_TABLE],
    estimate: |source| source.post_requests.approximate_len() as u64,
    read: read_requests,
};

pub(super) const REMOVED: Part = Part {
    name: "removed posts",
    tables: &[&REMOVED_TABLE],
    estimate: |source| source.posts_removed.approximate_len() as u64,
    read: read_removed,
};

static POSTS_TABLE: Table = Table {
    name: "posts",
    columns: &[
        ("id", Type::Bigint),
        ("author", Type::Bigint),
        ("accepted_at", Type::Bigint),
        ("body", Type::Bytea),
        ("deleted_at", Type::Bigint),
        ("erased", Type::Boolean),
    ],
    key: 1,
    replaces: false,
    only: "",
};

static REMOVED_TABLE: Table = Table {
    name: "posts_removed",
    columns: &[("accepted_before", Type::Bigint), ("first_post", Type::Bigint)],
    key: 1,
    replaces: false,
    only: "",
};

static REQUESTS_TABLE: Table = Table {
    name: "post_requests",
    columns: &[
        ("author", Type::Bigint),
        ("request_id", Type::Bytea),
        ("post", Type::Bigint),
        ("at", Type::Bigint),
    ],
    key: 2,
    replaces: false,
    only: "",
};

fn post_of(key: &[u8], keyspace: &str) -> Result<u64> {
    match (key.len(), read_u64(key)) {
        (8, Some(post)) if i64::try_from(post).is_ok() => Ok(post),
        _ => Err(corrupt(
            format!("the row {} of the keyspace {keyspace}", show_key(key)),
            "its key is no id of a post",
        )),
    }
}

/// A row of a post has its deletion too, and a deletion that came before its post has a row of its own.
fn read_posts(source: &Source, after: Option<&[u8]>, out: &mut Batches) -> Result<()> {
    let mut posts = rows_after(&source.posts, after).peekable();
    let mut deletions = rows_after(&source.post_deletions, after).peekable();
    loop {
        // Errors come first, so that they are not skipped.
        let key = |row: Option<&Result<(fjall::Slice, fjall::Slice)>>| match row {
            None => None,
            Some(Err(_)) => Some(Vec::new()),
            Some(Ok((key, _))) => Some(key.to_vec()),
        };
        let keys = [key(posts.peek()), key(deletions.peek())];
        let Some(next) = keys.iter().flatten().min() else {
            return Ok(());
        };
        let mut body = None;
        let mut deleted_at = None;
        if keys[0].as_ref() == Some(next)
            && let Some(row) = posts.next()
        {
            body = Some(row?.1);
        }
        if keys[1].as_ref() == Some(next)
            && let Some(row) = deletions.next()
        {
            let (key, at) = row?;
            let post = post_of(&key, "post_deletions")?;
            let at = <[u8; 8]>::try_from(&at[..])
                .map_err(|_| undecodable(format!("the deletion of post {post}"), "post_deletions"))?;
            deleted_at = Some(i64::from_be_bytes(at));
        }
        let id = post_of(next, "posts")?;
        let (mut author, mut accepted_at, mut erased) = (None, None, false);
        if let Some(body) = &body {
            let row = Row::decode(&body[..]).map_err(|_| undecodable(format!("post {id}"), "posts"))?;
            author = Some(i64::from(row.author));
            accepted_at = Some(row.accepted_at);
            erased = row.is_erased();
            named(row.into_post(PostId(id), deleted_at.map(Timestamp)), || {
                format!("post {id}")
            })?;
        }
        out.rows(0).push([
            id.into(),
            author.into(),
            accepted_at.into(),
            body.map(|body| body.to_vec()).into(),
            deleted_at.into(),
            erased.into(),
        ]);
        out.end_row(next)?;
    }
}

fn read_removed(source: &Source, after: Option<&[u8]>, out: &mut Batches) -> Result<()> {
    for row in rows_after(&source.posts_removed, after) {
        let (key, first) = row?;
        let numbers = read_u64(&key).zip(read_u64(&first));
        let (before, first) = numbers.ok_or_else(|| undecodable("a removal of posts", "posts_removed"))?;
        out.rows(0).push([before.into(), first.into()]);
        out.end_row(&key)?;
    }
    Ok(())
}

fn read_requests(source: &Source, after: Option<&[u8]>, out: &mut Batches) -> Result<()> {
    for row in rows_after(&source.post_requests, after) {
        let (key, row) = row?;
        let what = || format!("the request id {}", show_key(&key));
        let author = read_u32(&key).ok_or_else(|| undecodable(what(), "post_requests"))?;
        let request = Request::decode(&row).ok_or_else(|| undecodable(what(), "post_requests"))?;
        out.rows(0).push([
            author.into(),
            key[4..].to_vec().into(),
            request.post.into(),
            request.at.0.into(),
        ]);
        out.end_row(&key)?;
    }
    Ok(())
}
