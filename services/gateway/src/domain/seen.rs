//! The posts that a watcher has seen. They prevent duplicates on one stream, and limit them after a resume.

use std::collections::BTreeSet;

use herald_model::{PostId, varint};

/// Number of newest posts of a timeline that a snapshot and each comparison with the store read.
pub(crate) const WATCH_WINDOW: usize = 200;
/// Maximum number of seen posts held for one stream. It is greater than [`WATCH_WINDOW`], so that every seen post among
/// the newest posts of the store is still held.
const SEEN_POSTS_MAX: usize = 2_048;
/// Maximum number of post ids in a resume token.
const TOKEN_POSTS_MAX: usize = u64::BITS as usize;

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
    /// predecessor; then 0 and a bitmap of the ids that are in `shown`, the greatest id in the lowest bit.
    pub(crate) fn encode(&self, shown: &BTreeSet<PostId>) -> Vec<u8> {
        let mut out = Vec::with_capacity(2 * TOKEN_POSTS_MAX);
        let mut last = None;
        for post in self.posts.iter().rev().take(TOKEN_POSTS_MAX) {
            varint::write(&mut out, last.map_or(post.0, |last: u64| last - post.0));
            last = Some(post.0);
        }
        if last.is_some() {
            let newest = self.posts.iter().rev().take(TOKEN_POSTS_MAX).enumerate();
            let bitmap = newest
                .filter(|(_, post)| shown.contains(post))
                .fold(0_u64, |bitmap, (bit, _)| bitmap | 1 << bit);
            out.push(0);
            out.extend(bitmap.to_le_bytes());
        }
        out
    }

    /// Decodes the bytes of [`encode`](Self::encode) to the seen posts and the shown ones among them; `None` if they are
    /// malformed. With a full token, posts below its smallest id count as seen: a resume starts there. A token of an
    /// older version has no bitmap: all its posts count as shown.
    pub(crate) fn decode(mut bytes: &[u8]) -> Option<(Self, BTreeSet<PostId>)> {
        let mut seen = Self::default();
        let mut last: Option<u64> = None;
        let mut bitmap = u64::MAX;
        while !bytes.is_empty() {
            let value = varint::read(&mut bytes)?;
            if value == 0 {
                bitmap = u64::from_le_bytes(bytes.try_into().ok()?);
                break;
            }
            let post = match last {
                None => value,
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
        let newest_first = seen.posts.iter().rev().enumerate();
        let shown = newest_first.filter(|(bit, _)| bitmap >> bit & 1 == 1);
        let shown = shown.map(|(_, post)| *post).collect();
        Some((seen, shown))
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

    /// Encodes a token without shown posts, and decodes it.
    fn resume(seen: &SeenPosts) -> SeenPosts {
        SeenPosts::decode(&seen.encode(&BTreeSet::new())).unwrap().0
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
        let mut resumed = resume(&seen((1..=100).map(|i| i * 10)));
        assert!(!resumed.insert(PostId(1_000)));
        assert!(!resumed.insert(PostId(370)), "below the token's posts");
        assert!(resumed.insert(PostId(995)), "became visible late");
        assert!(resumed.insert(PostId(1_001)));
    }

    #[test]
    fn a_resume_of_a_short_timeline_includes_every_late_post() {
        let mut resumed = resume(&seen([10, 20]));
        assert!(resumed.insert(PostId(5)));
        assert!(!resumed.insert(PostId(20)));
        let mut fresh = resume(&seen([]));
        assert!(fresh.insert(PostId(1)));
    }

    #[test]
    fn all_posts_of_a_token_without_a_bitmap_were_shown() {
        let mut token = Vec::new();
        for value in [300, 100] {
            varint::write(&mut token, value);
        }
        let (read, shown) = SeenPosts::decode(&token).unwrap();
        assert_eq!(read, seen([200, 300]));
        assert_eq!(shown, read.posts);
    }

    proptest! {
        #[test]
        fn decoding_of_any_bytes_is_bounded(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Some((seen, shown)) = SeenPosts::decode(&bytes) {
                prop_assert!(seen.posts.len() <= TOKEN_POSTS_MAX);
                prop_assert!(shown.is_subset(&seen.posts));
            }
        }

        #[test]
        fn a_decoded_token_equals_the_encoded_posts(
            posts in prop::collection::btree_map(1_u64.., any::<bool>(), 0..64),
        ) {
            let written = seen(posts.keys().copied());
            let shown = posts.iter().filter(|(_, shown)| **shown).map(|(post, _)| PostId(*post)).collect();
            let (read, read_shown) = SeenPosts::decode(&written.encode(&shown)).unwrap();
            prop_assert_eq!(read.posts, written.posts);
            prop_assert_eq!(read_shown, shown);
        }
    }
}
