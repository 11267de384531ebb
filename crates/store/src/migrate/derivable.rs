//! Which posts a rebuild of timelines finds by follows.
//!
//! The cluster engine makes a timeline again from follows at the versions that posts pinned, and from backfills. The
//! embedded store retains its follow history for days and timelines for weeks, so it does not know any more who followed
//! when older posts were delivered. Their entries move as backfills of their own.

use std::collections::HashMap;

use herald_model::PostId;
use prost::Message as _;

use super::{
    follows,
    source::{Source, named, undecodable},
};
use crate::{
    Result,
    embedded::{database::map_err, ledger::row, posts::row::Row},
};

/// Remembered authors.
const AUTHORS_MAX: usize = 100_000;

/// Remembers which posts are derivable: two bits a post.
#[derive(Default)]
pub(super) struct Derivable {
    /// 64 posts each: which are known, and which of them are derivable.
    posts: HashMap<u64, (u64, u64)>,
    /// The first readable version by author.
    authors: HashMap<u32, u64>,
}

impl Derivable {
    /// Whether the follows at the post's pinned version, as they are moved, are those to whom the post was delivered.
    pub(super) fn has(&mut self, source: &Source, post: u64) -> Result<bool> {
        let bit = 1 << (post % 64);
        if let Some((known, derivable)) = self.posts.get(&(post / 64))
            && known & bit != 0
        {
            return Ok(derivable & bit != 0);
        }
        let is_derivable = self.find(source, post)?;
        let (known, derivable) = self.posts.entry(post / 64).or_default();
        *known |= bit;
        if is_derivable {
            *derivable |= bit;
        }
        Ok(is_derivable)
    }

    fn find(&mut self, source: &Source, post: u64) -> Result<bool> {
        let Some(pin) = pin_of(source, post)? else {
            return Ok(false);
        };
        let Some(author) = author_of(source, post)? else {
            return Ok(false);
        };
        let first_readable = if let Some(first) = self.authors.get(&author) {
            *first
        } else {
            let current = follows::count_of(source, author)?.map_or(0, |count| count.version);
            let first = follows::history_of(source, author, current)?.first_readable;
            if self.authors.len() >= AUTHORS_MAX {
                self.authors.clear();
            }
            self.authors.insert(author, first);
            first
        };
        Ok(pin.version.0 >= first_readable)
    }
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
