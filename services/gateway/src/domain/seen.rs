//! What a watcher has seen, so that nothing is sent twice on one stream and little after a resume.

use std::collections::BTreeSet;

use herald_model::{PostId, varint};

/// How many of a timeline's newest posts a snapshot and each comparison with the store look at.
pub(crate) const WINDOW: usize = 200;
/// How many posts are remembered on one stream. More than [`WINDOW`], so that what the store shows as newest is always
/// remembered.
const REMEMBERED_MAX: usize = 2_048;
/// How many posts a resume token tells.
const TOKEN_POSTS: usize = 64;

/// The greatest post ids that a watcher has seen; posts that were left out count as seen too.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    posts: BTreeSet<PostId>,
    /// Everything at or below was seen, or is so old that it isn't told any more.
    floor: Option<PostId>,
}

impl Seen {
    /// Whether a post was seen.
    pub(crate) fn contains(&self, post: PostId) -> bool {
        self.floor.is_some_and(|floor| post <= floor) || self.posts.contains(&post)
    }

    /// Remembers a post; false if it was seen before.
    pub(crate) fn insert(&mut self, post: PostId) -> bool {
        if self.contains(post) {
            return false;
        }
        self.posts.insert(post);
        if self.posts.len() > REMEMBERED_MAX {
            self.posts.pop_first();
        }
        true
    }

    /// What a resume token tells: varints, the greatest id first, each next one as the difference
    /// to the one before.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(2 * TOKEN_POSTS);
        let mut last = None;
        for post in self.posts.iter().rev().take(TOKEN_POSTS) {
            varint::write(&mut out, last.map_or(post.0, |last: u64| last - post.0));
            last = Some(post.0);
        }
        out
    }

    /// Reads [`encode`](Self::encode)'s bytes; `None` if they are not such. Posts below the smallest one told count as
    /// seen: that is where a resume begins.
    pub(crate) fn decode(mut bytes: &[u8]) -> Option<Self> {
        let mut seen = Self::default();
        let mut last: Option<u64> = None;
        while !bytes.is_empty() {
            let value = varint::read(&mut bytes)?;
            let post = match last {
                None => value,
                Some(_) if value == 0 => return None,
                Some(last) => last.checked_sub(value)?,
            };
            seen.posts.insert(PostId(post));
            last = Some(post);
            if seen.posts.len() > TOKEN_POSTS {
                return None;
            }
        }
        // Fewer than a token holds: all that was ever seen is told, so an older post is a new one.
        if seen.posts.len() == TOKEN_POSTS {
            seen.floor = seen.posts.first().copied();
        }
        Some(seen)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seen(posts: impl IntoIterator<Item = u64>) -> Seen {
        let mut seen = Seen::default();
        for post in posts {
            seen.insert(PostId(post));
        }
        seen
    }

    #[test]
    fn a_post_is_new_once_in_any_order() {
        let mut seen = seen([5, 3]);
        assert!(!seen.insert(PostId(5)));
        assert!(seen.insert(PostId(4)));
        assert!(seen.insert(PostId(1)));
        assert!(!seen.insert(PostId(1)));
    }

    #[test]
    fn memory_is_bounded_and_keeps_the_greatest() {
        let mut seen = seen(1..=10_000);
        assert_eq!(seen.posts.len(), REMEMBERED_MAX);
        assert!(!seen.insert(PostId(10_000)));
        assert!(!seen.insert(PostId(10_000 - WINDOW as u64)));
    }

    #[test]
    fn a_resume_tells_what_came_late_from_what_was_seen() {
        let mut resumed = Seen::decode(&seen((1..=100).map(|i| i * 10)).encode()).unwrap();
        assert!(!resumed.insert(PostId(1_000)));
        assert!(!resumed.insert(PostId(370)), "below the token's posts");
        assert!(resumed.insert(PostId(995)), "became visible late");
        assert!(resumed.insert(PostId(1_001)));
    }

    #[test]
    fn a_resume_of_a_short_timeline_takes_every_late_post() {
        let mut resumed = Seen::decode(&seen([10, 20]).encode()).unwrap();
        assert!(resumed.insert(PostId(5)));
        assert!(!resumed.insert(PostId(20)));
        let mut fresh = Seen::decode(&seen([]).encode()).unwrap();
        assert!(fresh.insert(PostId(1)));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Some(seen) = Seen::decode(&bytes) {
                prop_assert!(seen.posts.len() <= TOKEN_POSTS);
            }
        }

        #[test]
        fn a_token_reads_as_written(posts in prop::collection::btree_set(any::<u64>(), 0..64)) {
            let written = seen(posts.iter().copied());
            prop_assert_eq!(Seen::decode(&written.encode()).unwrap().posts, written.posts);
        }
    }
}
