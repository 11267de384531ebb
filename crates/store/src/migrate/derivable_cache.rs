//! Cache of what a move has looked up about derivable posts: two bits a post, and one version for each author.

use std::collections::HashMap;

/// Maximum number of authors in the cache. It forgets all of them when there are more.
const AUTHORS_MAX: usize = 100_000;

/// Answers by post, and the first readable follow versions by author.
#[derive(Default)]
pub(super) struct DerivableCache {
    /// 64 posts each: which are known, and which of them are derivable.
    posts: HashMap<u64, (u64, u64)>,
    first_readable: HashMap<u32, u64>,
}

impl DerivableCache {
    /// Whether the post is derivable; `None` if that is not known yet.
    pub(super) fn get(&self, post: u64) -> Option<bool> {
        let bit = 1 << (post % 64);
        let (known, derivable) = self.posts.get(&(post / 64))?;
        (known & bit != 0).then_some(derivable & bit != 0)
    }

    /// Remembers whether the post is derivable.
    pub(super) fn insert(&mut self, post: u64, is_derivable: bool) {
        let bit = 1 << (post % 64);
        let (known, derivable) = self.posts.entry(post / 64).or_default();
        *known |= bit;
        if is_derivable {
            *derivable |= bit;
        }
    }

    /// The first readable follow version of the author; `None` if that is not known.
    pub(super) fn first_readable(&self, author: u32) -> Option<u64> {
        self.first_readable.get(&author).copied()
    }

    /// Remembers the first readable follow version of the author.
    pub(super) fn insert_first_readable(&mut self, author: u32, version: u64) {
        if self.first_readable.len() >= AUTHORS_MAX {
            self.first_readable.clear();
        }
        self.first_readable.insert(author, version);
    }
}
