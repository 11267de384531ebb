//! The timeline of one user in the body of a bucket.
//!
//! Layout: version (1 byte), [`State`] (1 byte), varint with the end of the provisional state (seconds since 1970, else
//! 0), then the posts as in a merged row of the embedded engine: newest first, each as the difference to the one before.
//! `scripts/begin.lua` changes the state byte in place, and writes an empty partial timeline.

use herald_model::varint;

use crate::{Error, ErrorKind, Result, embedded::timelines::block};

const VERSION: u8 = 1;

/// What a timeline in a body holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// A part of what was delivered. A reader rebuilds it.
    Partial,
    /// What was delivered since the first delivery to the user that Redis has had; no rebuild has written it yet. As
    /// [`Complete`](Self::Complete) if the shard is marked as whole (`whole`), otherwise as [`Partial`](Self::Partial).
    Initial,
    /// All that was delivered, except for posts that a worker suppressed because it does not know yet that the user is
    /// active again. A reader rebuilds it again until this time has passed, and once after.
    Provisional {
        /// End of the state, seconds since 1970.
        until_s: u64,
    },
    /// All that was delivered, together with the tail.
    Complete,
}

/// The timeline of one user in a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Field {
    pub(super) state: State,
    /// Posts, strictly descending.
    pub(super) posts: Vec<u64>,
}

impl Field {
    /// A timeline of which nothing is stored.
    pub(super) fn empty() -> Self {
        Self {
            state: State::Initial,
            posts: Vec::new(),
        }
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self> {
        let (&[version, state], mut rest) = bytes.split_first_chunk::<2>().ok_or_else(malformed)?;
        if version != VERSION {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "a timeline in Redis has version {version}, this Herald knows version {VERSION}: use the newer Herald, \
                     or delete the keys herald:* to have the timelines rebuilt"
                ),
            ));
        }
        let until_s = varint::read(&mut rest).ok_or_else(malformed)?;
        let state = match state {
            0 => State::Partial,
            1 => State::Provisional { until_s },
            2 => State::Complete,
            3 => State::Initial,
            _ => return Err(malformed()),
        };
        let posts = block::decode_merged(rest).collect::<Result<_>>()?;
        Ok(Self { state, posts })
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let (state, until_s) = match self.state {
            State::Partial => (0, 0),
            State::Provisional { until_s } => (1, until_s),
            State::Complete => (2, 0),
            State::Initial => (3, 0),
        };
        let mut out = Vec::with_capacity(8 + 3 * self.posts.len());
        out.extend([VERSION, state]);
        varint::write(&mut out, until_s);
        block::encode_merged(self.posts.iter().copied(), &mut out);
        out
    }

    /// Adds posts (in any order, with repeats), and keeps the newest `entries_max` that are not less than `oldest`.
    pub(super) fn add(&mut self, more: &mut Vec<u64>, oldest: u64, entries_max: usize) {
        more.sort_unstable_by(|a, b| b.cmp(a));
        more.dedup();
        let old = std::mem::take(&mut self.posts);
        let mut posts = Vec::with_capacity((old.len() + more.len()).min(entries_max));
        let (mut old, mut new) = (old.into_iter().peekable(), more.iter().copied().peekable());
        while posts.len() < entries_max {
            let next = match (old.peek(), new.peek()) {
                (Some(a), Some(b)) if a == b => {
                    new.next();
                    old.next()
                }
                (Some(a), Some(b)) if a > b => old.next(),
                (Some(_), None) => old.next(),
                _ => new.next(),
            };
            match next {
                Some(post) if post >= oldest => posts.push(post),
                _ => break,
            }
        }
        self.posts = posts;
    }
}

fn malformed() -> Error {
    Error::new(
        ErrorKind::Corrupt,
        "a timeline in Redis is malformed: delete the keys herald:* to have the timelines rebuilt",
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn decoding_reverses_encoding(
            posts in prop::collection::btree_set(1_u64..1 << 50, 0..300),
            state in 0_u8..4,
            until_s in any::<u32>(),
        ) {
            let state = match state {
                0 => State::Partial,
                1 => State::Provisional { until_s: until_s.into() },
                2 => State::Complete,
                _ => State::Initial,
            };
            let field = Field { state, posts: posts.into_iter().rev().collect() };
            prop_assert_eq!(Field::decode(&field.encode()).unwrap(), field);
        }

        #[test]
        fn bytes_near_a_timeline_are_read_or_refused(
            bytes in herald_fuzz::near((prop::collection::btree_set(1_u64..1 << 50, 0..50), any::<u32>()).prop_map(
                |(posts, until_s)| Field {
                    state: State::Provisional { until_s: until_s.into() },
                    posts: posts.into_iter().rev().collect(),
                }.encode(),
            )),
        ) {
            if let Ok(field) = Field::decode(&bytes) {
                prop_assert!(field.posts.len() <= bytes.len() && field.posts.is_sorted_by(|a, b| a > b));
            }
        }

        #[test]
        fn adding_keeps_the_newest_of_the_union(
            old in prop::collection::btree_set(1_u64..200, 0..60),
            mut new in prop::collection::vec(1_u64..200, 0..60),
            oldest in 0_u64..150,
            entries_max in 1_usize..80,
        ) {
            let mut field = Field { state: State::Complete, posts: old.iter().rev().copied().collect() };
            let union: BTreeSet<u64> = old.iter().chain(&new).copied().filter(|post| *post >= oldest).collect();
            let expected: Vec<u64> = union.into_iter().rev().take(entries_max).collect();
            field.add(&mut new, oldest, entries_max);
            prop_assert_eq!(&field.posts, &expected);
        }
    }
}
