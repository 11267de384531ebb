//! The posts that a watcher has seen. They prevent duplicates on one stream, and limit them after a resume.

use std::collections::BTreeSet;

use herald_model::{PostId, varint};

/// Number of newest posts of a timeline that a snapshot and each comparison with the store read.
pub(crate) const WATCH_WINDOW: usize = 200;
/// Maximum number of seen posts held for one stream. It is greater than [`WATCH_WINDOW`], so that every seen post among
/// the newest posts of the store is still held.
const SEEN_POSTS_MAX: usize = 2_048;
/// Maximum number of post ids in a resume token.
const TOKEN_POSTS_MAX: usize = 64;

/// The greatest post ids that a watcher has seen. Hidden posts that were skipped count as seen.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct SeenPosts {
    posts: BTreeSet<PostId>,
    /// Every post up to this id counts as seen.
    floor: Option<PostId>,
}

impl SeenPosts {
    pub(crate) fn contains(&self, post: PostId) -> bool {
        self.floor.is_some_and(|floor| post <= floor) || self.posts.contains(&post)
    }

    /// Records a post as seen; returns false if it was seen before.
    pub(crate) fn insert(&mut self, post: PostId) -> bool {
        if self.contains(post) {
            return false;
        }
        self.posts.insert(post);
        if self.posts.len() > SEEN_POSTS_MAX {
            self.posts.pop_first();
        }
        true
    }

    /// Encodes the cursor of a resume token: varints, the greatest id first, each following id as the difference to its
    /// predecessor.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(2 * TOKEN_POSTS_MAX);
        let mut last = None;
        for post in self.posts.iter().rev().take(TOKEN_POSTS_MAX) {
            varint::write(&mut out, last.map_or(post.0, |last: u64| last - post.0));
            last = Some(post.0);
        }
        out
    }

    /// Decodes the bytes of [`encode`](Self::encode); `None` if they are malformed. With a full token, posts below its
    /// smallest id count as seen: a resume starts there.
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
            if seen.posts.len() > TOKEN_POSTS_MAX {
                return None;
            }
        }
        // A token that is not full contains every seen post, so an older post is unseen.
        if seen.posts.len() == TOKEN_POSTS_MAX {
            seen.floor = seen.posts.first().copied();
        }
        Some(seen)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seen(posts: impl IntoIterator<Item = u64>) -> SeenPosts {
        let mut seen = SeenPosts::default();
        for post in posts {
            seen.insert(PostId(post));
        }
        seen
    }

    #[test]
    fn a_post_is_unseen_once_in_any_order() {
        let mut seen = seen([5, 3]);
        assert!(!seen.insert(PostId(5)));
        assert!(seen.insert(PostId(4)));
        assert!(seen.insert(PostId(1)));
        assert!(!seen.insert(PostId(1)));
    }

    #[test]
    fn the_number_of_held_posts_is_bounded_and_the_greatest_are_kept() {
        let mut seen = seen(1..=10_000);
        assert_eq!(seen.posts.len(), SEEN_POSTS_MAX);
        assert!(!seen.insert(PostId(10_000)));
        assert!(!seen.insert(PostId(10_000 - WATCH_WINDOW as u64)));
    }

    #[test]
    fn a_resume_distinguishes_late_posts_from_seen_posts() {
        let mut resumed = SeenPosts::decode(&seen((1..=100).map(|i| i * 10)).encode()).unwrap();
        assert!(!resumed.insert(PostId(1_000)));
        assert!(!resumed.insert(PostId(370)), "below the token's posts");
        assert!(resumed.insert(PostId(995)), "became visible late");
        assert!(resumed.insert(PostId(1_001)));
    }

    #[test]
    fn a_resume_of_a_short_timeline_includes_every_late_post() {
        let mut resumed = SeenPosts::decode(&seen([10, 20]).encode()).unwrap();
        assert!(resumed.insert(PostId(5)));
        assert!(!resumed.insert(PostId(20)));
        let mut fresh = SeenPosts::decode(&seen([]).encode()).unwrap();
        assert!(fresh.insert(PostId(1)));
    }

    proptest! {
        #[test]
        fn decoding_of_any_bytes_is_bounded(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Some(seen) = SeenPosts::decode(&bytes) {
                prop_assert!(seen.posts.len() <= TOKEN_POSTS_MAX);
            }
        }

        #[test]
        fn a_decoded_token_equals_the_encoded_posts(posts in prop::collection::btree_set(any::<u64>(), 0..64)) {
            let written = seen(posts.iter().copied());
            prop_assert_eq!(SeenPosts::decode(&written.encode()).unwrap().posts, written.posts);
        }
    }
}
