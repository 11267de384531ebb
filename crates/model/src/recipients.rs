//! A set of users in 2 to 3 bytes each.

use std::ops::Range;

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

use crate::{ChunkId, UserKey, varint};

/// A sorted set of users, coded as LEB128 varints: the first key as it is, each next one as the difference to the one
/// before. At 1,000 recipients of 1,000,000 users that is 2 bytes each. Cloning shares the bytes.
///
/// *Invariant:* the bytes decode to `count` strictly ascending keys; every way to make one checks it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recipients {
    bytes: Bytes,
    count: u32,
}

/// Bytes that are not a set of users.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MalformedRecipients {
    /// A varint runs over the end or over 32 bits.
    #[error("a key is cut off or larger than 32 bits")]
    Varint,
    /// A key repeats or the sum overflows.
    #[error("the keys don't ascend")]
    Order,
    /// There are more or fewer keys than said.
    #[error("{said} recipients said, {found} found")]
    Count {
        /// By the message.
        said: u32,
        /// In the bytes.
        found: u32,
    },
}

impl Recipients {
    /// Checks bytes that came over the wire or from a store.
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
            Err(MalformedRecipients::Count { said: count, found })
        }
    }

    /// Codes keys that ascend strictly; those that don't are left out.
    pub fn from_sorted(keys: impl IntoIterator<Item = UserKey>) -> Self {
        let mut builder = RecipientsBuilder::default();
        for key in keys {
            builder.push(key);
        }
        builder.finish()
    }

    /// How many there are.
    pub fn len(&self) -> u32 {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The recipients at these places, counted from 0.
    #[must_use]
    pub fn part(&self, places: Range<usize>) -> Self {
        if places == (0..self.count as usize) {
            return self.clone();
        }
        Self::from_sorted(self.iter().skip(places.start).take(places.len()))
    }

    /// The coded form.
    pub fn as_bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Names this very set.
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

    /// Whether a user is among them; looks at each key up to it.
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

/// Codes a set of users one by one.
#[derive(Debug, Default)]
pub struct RecipientsBuilder {
    bytes: Vec<u8>,
    last: u32,
    count: u32,
}

impl RecipientsBuilder {
    /// Adds a key. One that isn't greater than the last is left out: a set has it once.
    pub fn push(&mut self, key: UserKey) {
        if self.count > 0 && key.0 <= self.last {
            return;
        }
        // `last` is 0 until the first key is there.
        varint::write(&mut self.bytes, (key.0 - self.last).into());
        self.last = key.0;
        self.count += 1;
    }

    /// How many there are so far.
    pub fn len(&self) -> u32 {
        self.count
    }

    /// Whether there are none so far.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The set so far; the builder starts anew.
    pub fn finish(&mut self) -> Recipients {
        let made = std::mem::take(self);
        Recipients {
            bytes: made.bytes.into(),
            count: made.count,
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
        // The bytes were checked when the set was made.
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
        fn decoding_gives_what_was_coded(keys in prop::collection::btree_set(any::<u32>(), 0..300)) {
            let made = Recipients::from_sorted(keys.iter().copied().map(UserKey));
            prop_assert_eq!(made.len() as usize, keys.len());
            let read = Recipients::decode(made.as_bytes().clone(), made.len()).unwrap();
            prop_assert!(read.iter().map(|k| k.0).eq(keys.iter().copied()));
            for key in &keys {
                prop_assert!(read.contains(UserKey(*key)));
            }
        }

        #[test]
        fn two_parts_make_the_whole(keys in prop::collection::btree_set(any::<u32>(), 0..300), at in any::<prop::sample::Index>()) {
            let whole = Recipients::from_sorted(keys.iter().copied().map(UserKey));
            let at = at.index(keys.len() + 1);
            let parts = [whole.part(0..at), whole.part(at..keys.len())];
            prop_assert_eq!(parts[0].len() as usize, at);
            prop_assert!(parts.iter().flatten().eq(&whole));
        }

        #[test]
        fn any_bytes_decode_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..64), count in 0_u32..64) {
            if let Ok(read) = Recipients::decode(bytes.into(), count) {
                let keys: Vec<_> = read.iter().collect();
                prop_assert_eq!(keys.len(), count as usize);
                prop_assert!(keys.is_sorted_by(|a, b| a < b));
            }
        }
    }

    #[test]
    fn another_set_has_another_chunk_id() {
        let a = Recipients::from_sorted([1, 2, 3].map(UserKey));
        let b = Recipients::from_sorted([1, 2, 4].map(UserKey));
        assert_ne!(a.chunk_id(), b.chunk_id());
        assert_eq!(a.chunk_id(), a.clone().chunk_id());
    }

    #[test]
    fn malformed_sets_are_told_apart() {
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
            Err(MalformedRecipients::Count { said: 3, found: 2 })
        );
    }
}
