//! Which posts are derivable: a rebuild of timelines finds their followers in the follows that are moved.
//!
//! The cluster engine makes a timeline again from follows at the versions that posts pinned, and from backfills. The
//! embedded store retains its follow history for days and timelines for weeks, so it does not know any more who followed
//! when older posts were delivered. The timeline entries of those posts move as backfills of their own.

use herald_model::PostId;
use prost::Message as _;

use super::{
    derivable_cache::DerivableCache,
    follows,
    source::{Source, named, undecodable},
};
use crate::{
    Result,
    embedded::{database::map_err, ledger::row, posts::row::Row},
};

/// Whether the follows at the post's pinned version, as they are moved, are those to whom the post was delivered.
pub(super) fn is_derivable(source: &Source, post: u64) -> Result<bool> {
    let mut cache = source.derivable.lock();
    if let Some(is_derivable) = cache.get(post) {
        return Ok(is_derivable);
    }
    let is_derivable = find(source, &mut cache, post)?;
    cache.insert(post, is_derivable);
    Ok(is_derivable)
}

fn find(source: &Source, cache: &mut DerivableCache, post: u64) -> Result<bool> {
    let Some(pin) = pin_of(source, post)? else {
        return Ok(false);
    };
    let Some(author) = author_of(source, post)? else {
        return Ok(false);
    };
    let first_readable = if let Some(version) = cache.first_readable(author) {
        version
    } else {
        let current = follows::count_of(source, author)?.map_or(0, |count| count.version);
        let version = follows::history_of(source, author, current)?.first_readable;
        cache.insert_first_readable(author, version);
        version
    };
    Ok(pin.version.0 >= first_readable)
}

/// The author of a post; `None` if the post is not archived yet.
pub(super) fn author_of(source: &Source, post: u64) -> Result<Option<u32>> {
    let Some(row) = source.posts.get(post.to_be_bytes()).map_err(map_err)? else {
        return Ok(None);
    };
    let row = Row::decode(&row[..]).map_err(|_| undecodable(format!("post {post}"), "posts"))?;
    Ok(Some(row.author))
}

/// The pin of a post's first slice.
fn pin_of(source: &Source, post: u64) -> Result<Option<row::Pin>> {
    let key = row::slice_key(PostId(post), 0);
    let Some(slice) = source.ledger.get(key).map_err(map_err)? else {
        return Ok(None);
    };
    named(row::Slice::decode_pin(&slice), || {
        format!("the first slice of post {post}")
    })
}
