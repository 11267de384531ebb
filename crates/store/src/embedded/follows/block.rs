//! A block: up to [`FOLLOWERS_MAX`] followers of one author, ascending, in about two bytes each.
//!
//! The blocks of an author partition the range of user keys: a block begins at its bound (the second half of its row's
//! key) and ends before the bound of the next block. The first block begins at 0 and exists if the author has any
//! block. A follower is encoded as a varint: the difference to the previous follower (of the first one: to the bound),
//! times two, plus one if the follower has notifications on.

use herald_model::varint;

/// Maximum number of followers in a block.
pub(crate) const FOLLOWERS_MAX: usize = 2_048;

/// Maximum number of followers in a block after a split. Leaves space for new followers.
const FOLLOWERS_AFTER_SPLIT: usize = 1_536;

/// First byte of a block: the version of its format.
const FORMAT: u8 = 1;

/// One follower of an author.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Follower {
    /// The key of the follower.
    pub(crate) key: u32,
    /// Whether the follower has notifications on.
    pub(crate) notify: bool,
}

/// Bytes that are not a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

/// The followers of a block, ascending.
#[derive(Debug, Clone)]
pub(crate) struct Followers<'a> {
    rest: &'a [u8],
    last: u32,
    first: bool,
}

impl<'a> Followers<'a> {
    /// Reads the block that begins at `bound`.
    pub(crate) fn new(bytes: &'a [u8], bound: u32) -> Result<Self, Malformed> {
        match bytes {
            [FORMAT, rest @ ..] => Ok(Self {
                rest,
                last: bound,
                first: true,
            }),
            _ => Err(Malformed),
        }
    }
}

impl Iterator for Followers<'_> {
    type Item = Result<Follower, Malformed>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let read = varint::read(&mut self.rest).and_then(|coded| {
            let step = u32::try_from(coded >> 1).ok()?;
            if step == 0 && !self.first {
                return None;
            }
            let key = self.last.checked_add(step)?;
            Some(Follower {
                key,
                notify: coded & 1 == 1,
            })
        });
        self.first = false;
        if let Some(follower) = read {
            self.last = follower.key;
            Some(Ok(follower))
        } else {
            self.rest = &[];
            Some(Err(Malformed))
        }
    }
}

/// Encodes followers, which must be ascending and not less than `bound`.
pub(crate) fn encode(bound: u32, followers: &[Follower]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1 + 2 * followers.len());
    bytes.push(FORMAT);
    let mut last = bound;
    for follower in followers {
        varint::write(
            &mut bytes,
            u64::from(follower.key - last) << 1 | u64::from(follower.notify),
        );
        last = follower.key;
    }
    bytes
}

/// Splits the followers of a block that begins at `bound` into blocks within [`FOLLOWERS_MAX`], each with its bound.
pub(crate) fn split(bound: u32, followers: &[Follower]) -> impl Iterator<Item = (u32, &[Follower])> {
    let pieces = if followers.len() <= FOLLOWERS_MAX {
        1
    } else {
        followers.len().div_ceil(FOLLOWERS_AFTER_SPLIT)
    };
    (0..pieces).map(move |piece| {
        let start = followers.len() * piece / pieces;
        let end = followers.len() * (piece + 1) / pieces;
        let part = &followers[start..end];
        (
            if piece == 0 {
                bound
            } else {
                part.first().map_or(bound, |f| f.key)
            },
            part,
        )
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn decoding_reverses_encoding(
            keys in prop::collection::btree_map(any::<u32>(), any::<bool>(), 0..300),
            at_first: bool,
        ) {
            let followers: Vec<_> = keys.into_iter().map(|(key, notify)| Follower { key, notify }).collect();
            let bound = if at_first { followers.first().map_or(0, |f| f.key) } else { 0 };
            let bytes = encode(bound, &followers);
            let read: Result<Vec<_>, _> = Followers::new(&bytes, bound).unwrap().collect();
            prop_assert_eq!(read, Ok(followers));
        }

        #[test]
        fn arbitrary_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64), bound: u32) {
            if let Ok(followers) = Followers::new(&bytes, bound) {
                let read: Vec<_> = followers.take_while(Result::is_ok).flatten().map(|f| f.key).collect();
                prop_assert!(read.is_sorted_by(|a, b| a < b));
            }
        }

        #[test]
        fn a_split_keeps_all_followers_within_the_limit(count in 0_usize..10_000) {
            let followers: Vec<_> = (0..count as u32)
                .map(|n| Follower { key: 3 * n + 7, notify: n % 5 == 0 })
                .collect();
            let pieces: Vec<_> = split(5, &followers).collect();
            prop_assert_eq!(pieces[0].0, 5);
            prop_assert!(pieces.iter().all(|(_, part)| part.len() <= FOLLOWERS_MAX));
            prop_assert!(pieces.iter().skip(1).all(|(bound, part)| *bound == part[0].key));
            prop_assert_eq!(pieces.iter().flat_map(|(_, part)| part.to_vec()).collect::<Vec<_>>(), followers);
        }
    }
}
