//! A set of users in 2 to 3 bytes each.

use std::ops::Range;

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

use crate::{ChunkId, UserKey, varint};

/// A sorted set of users, encoded as LEB128 varints: the first key, then the difference of each key to the previous
/// one. 1,000 recipients of 1,000,000 users take 2 bytes each. Clones share the bytes.
///
/// *Invariant:* the bytes decode to `count` strictly ascending keys; every constructor ensures it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recipients {
    bytes: Bytes,
    count: u32,
}

/// Error of [`Recipients::decode`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MalformedRecipients {
    /// A varint is truncated or larger than 32 bits.
    #[error("recipients: a key is truncated or larger than 32 bits")]
    Varint,
    /// A key is repeated or exceeds 32 bits.
    #[error("recipients: the keys are not strictly ascending")]
    Order,
    /// The number of keys differs from the expected one.
    #[error("recipients: expected {expected} keys, found {found}")]
    Count {
        /// The expected number.
        expected: u32,
        /// The number of keys in the bytes.
        found: u32,
    },
}

impl Recipients {
    /// Decodes and validates bytes from a message or a store. `count` is the expected number of keys.
    pub fn decode(bytes: Bytes, count: u32) -> Result<Self, MalformedRecipients> {
        let mut rest = &bytes[..];
        let mut last = 0_u32;
        let mut found = 0_u32;
        while !rest.is_empty() {
            let delta = read_u32(&mut rest).ok_or(MalformedRecipients::Varint)?;
            if delta == 0 && found > 0 {
                return Err(MalformedRecipients::Order);
            }
            last = last.checked_add(delta).ok_or(MalformedRecipients::Order)?;
            found += 1;
        }
        if found == count {
            Ok(Self { bytes, count })
        } else {
            Err(MalformedRecipients::Count {
                expected: count,
                found,
            })
        }
    }

    /// Encodes ascending keys. A key that is not greater than the previous one is skipped.
    pub fn from_sorted(keys: impl IntoIterator<Item = UserKey>) -> Self {
        let mut builder = RecipientsBuilder::default();
        for key in keys {
            builder.push(key);
        }
        builder.finish()
    }

    /// Number of recipients.
    pub fn len(&self) -> u32 {
        self.count
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The recipients at these positions, counted from 0.
    #[must_use]
    pub fn part(&self, positions: Range<usize>) -> Self {
        if positions == (0..self.count as usize) {
            return self.clone();
        }
        Self::from_sorted(self.iter().skip(positions.start).take(positions.len()))
    }

    /// The encoded bytes.
    pub fn as_bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The chunk id of this set: a hash of its bytes.
    pub fn chunk_id(&self) -> ChunkId {
        ChunkId(xxh3_64(&self.bytes))
    }

    /// The keys, ascending.
    pub fn iter(&self) -> Keys<'_> {
        Keys {
            rest: &self.bytes,
            last: 0,
        }
    }

    /// Whether the set contains a user. Linear in the size of the set.
    pub fn contains(&self, key: UserKey) -> bool {
        self.iter().find(|k| *k >= key) == Some(key)
    }
}

impl<'a> IntoIterator for &'a Recipients {
    type Item = UserKey;
    type IntoIter = Keys<'a>;

    fn into_iter(self) -> Keys<'a> {
        self.iter()
    }
}

/// Builds [`Recipients`] key by key.
#[derive(Debug, Default)]
pub struct RecipientsBuilder {
    bytes: Vec<u8>,
    last: u32,
    count: u32,
}

impl RecipientsBuilder {
    /// Adds a key. A key that is not greater than the previous one is skipped.
    pub fn push(&mut self, key: UserKey) {
        if self.count > 0 && key.0 <= self.last {
            return;
        }
        // `last` is 0 before the first key.
        varint::write(&mut self.bytes, (key.0 - self.last).into());
        self.last = key.0;
        self.count += 1;
    }

    /// Number of keys so far.
    pub fn len(&self) -> u32 {
        self.count
    }

    /// Whether no key was added.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Returns the set and resets the builder.
    pub fn finish(&mut self) -> Recipients {
        let finished = std::mem::take(self);
        Recipients {
            bytes: finished.bytes.into(),
            count: finished.count,
        }
    }
}

/// The keys of [`Recipients`], ascending.
#[derive(Debug, Clone)]
pub struct Keys<'a> {
    rest: &'a [u8],
    last: u32,
}

impl Iterator for Keys<'_> {
    type Item = UserKey;

    #[inline]
    fn next(&mut self) -> Option<UserKey> {
        // The constructor has validated the bytes.
        self.last += read_u32(&mut self.rest)?;
        Some(UserKey(self.last))
    }
}

#[inline]
fn read_u32(rest: &mut &[u8]) -> Option<u32> {
    varint::read(rest)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn decoding_reverses_encoding(keys in prop::collection::btree_set(any::<u32>(), 0..300)) {
            let set = Recipients::from_sorted(keys.iter().copied().map(UserKey));
            prop_assert_eq!(set.len() as usize, keys.len());
            let read = Recipients::decode(set.as_bytes().clone(), set.len()).unwrap();
            prop_assert!(read.iter().map(|k| k.0).eq(keys.iter().copied()));
            for key in &keys {
                prop_assert!(read.contains(UserKey(*key)));
            }
        }

        #[test]
        fn two_parts_add_up_to_the_whole(
            keys in prop::collection::btree_set(any::<u32>(), 0..300),
            at in any::<prop::sample::Index>(),
        ) {
            let whole = Recipients::from_sorted(keys.iter().copied().map(UserKey));
            let at = at.index(keys.len() + 1);
            let parts = [whole.part(0..at), whole.part(at..keys.len())];
            prop_assert_eq!(parts[0].len() as usize, at);
            prop_assert!(parts.iter().flatten().eq(&whole));
        }

        #[test]
        fn arbitrary_bytes_are_decoded_or_refused(
            bytes in prop::collection::vec(any::<u8>(), 0..64),
            count in 0_u32..64,
        ) {
            if let Ok(read) = Recipients::decode(bytes.into(), count) {
                let keys: Vec<_> = read.iter().collect();
                prop_assert_eq!(keys.len(), count as usize);
                prop_assert!(keys.is_sorted_by(|a, b| a < b));
            }
        }

        /// A claimed number of keys is never more than the bytes can hold, and a refusal leaves nothing behind.
        #[test]
        fn bytes_near_valid_ones_are_decoded_or_refused(
            (bytes, claimed) in prop::collection::btree_set(any::<u32>(), 0..100).prop_flat_map(|keys| {
                let set = Recipients::from_sorted(keys.into_iter().map(UserKey));
                let claimed = prop_oneof![4 => Just(set.len()), 1 => herald_fuzz::u32s()];
                (herald_fuzz::near(Just(set.as_bytes().to_vec())), claimed)
            }),
        ) {
            let length = bytes.len();
            if let Ok(read) = Recipients::decode(bytes.into(), claimed) {
                prop_assert!(claimed as usize <= length);
                let keys: Vec<_> = read.iter().collect();
                prop_assert_eq!(keys.len(), claimed as usize);
                prop_assert!(keys.is_sorted_by(|a, b| a < b));
                let half = keys.len() / 2;
                prop_assert!(read.part(half..keys.len()).iter().eq(keys[half..].iter().copied()));
            }
        }
    }

    #[test]
    fn different_sets_have_different_chunk_ids() {
        let a = Recipients::from_sorted([1, 2, 3].map(UserKey));
        let b = Recipients::from_sorted([1, 2, 4].map(UserKey));
        assert_ne!(a.chunk_id(), b.chunk_id());
        assert_eq!(a.chunk_id(), a.clone().chunk_id());
    }

    #[test]
    fn malformed_bytes_have_distinct_errors() {
        assert_eq!(
            Recipients::decode(vec![0x80].into(), 1),
            Err(MalformedRecipients::Varint)
        );
        assert_eq!(
            Recipients::decode(vec![1, 0].into(), 2),
            Err(MalformedRecipients::Order)
        );
        assert_eq!(
            Recipients::decode(vec![1, 1].into(), 3),
            Err(MalformedRecipients::Count {
                expected: 3,
                found: 2
            })
        );
    }
}
