//! Names of keys. All keys of a bucket have one hash tag, so they are in one slot of a cluster.

use std::{collections::HashMap, sync::Arc};

use parking_lot::RwLock;

/// Number of slots of a cluster.
pub(super) const SLOTS: u16 = 16_384;

/// Makes the names of keys of one installation.
///
/// The id of the view is made with the PostgreSQL schema and is part of each name, so two installations can share a
/// server, and a new database never shows the timelines of an old one.
#[derive(Debug)]
pub(super) struct Keys {
    view: String,
    /// The beats that were named before: finding a name takes a millisecond.
    beats: RwLock<HashMap<u16, Arc<str>>>,
}

/// The keys of one bucket of users.
#[derive(Debug, Clone)]
pub(super) struct BucketKeys {
    /// List of blocks that are not merged yet, oldest first.
    pub(super) tail: String,
    /// Hash of merged timelines by user.
    pub(super) body: String,
    /// Slot of both keys.
    pub(super) slot: u16,
}

impl Keys {
    pub(super) fn new(view: &str) -> Self {
        Self {
            view: view.into(),
            beats: RwLock::default(),
        }
    }

    pub(super) fn bucket(&self, bucket: u32) -> BucketKeys {
        let tag = format!("herald:{{{}.{bucket}}}", self.view);
        BucketKeys {
            slot: slot(&tag),
            tail: format!("{tag}t"),
            body: format!("{tag}b"),
        }
    }

    /// The beat of the shard that begins with a slot: a key in this slot. Single servers use slot 0 for the whole
    /// server.
    pub(super) fn beat(&self, first_slot: u16) -> Arc<str> {
        if let Some(key) = self.beats.read().get(&first_slot) {
            return Arc::clone(key);
        }
        // One in 16,384 names is in the wanted slot.
        let key: Arc<str> = (0_u32..1 << 24)
            .map(|n| format!("herald:{{{}.beat.{n}}}", self.view))
            .find(|key| slot(key) == first_slot)
            .unwrap_or_default()
            .into();
        self.beats.write().insert(first_slot, Arc::clone(&key));
        key
    }

    /// The mark of a shard that has lost nothing since the installation was new, in the slot of its beat.
    pub(super) fn whole(&self, first_slot: u16) -> String {
        format!("{}w", self.beat(first_slot))
    }
}

/// The cluster slot of a key with a hash tag: the CRC-16 (XMODEM) of the tag, modulo the number of slots. The `redis`
/// crate does not give its number away.
fn slot(key: &str) -> u16 {
    let tag = key
        .split_once('{')
        .and_then(|(_, rest)| rest.split_once('}'))
        .map_or(key, |(tag, _)| tag);
    let mut crc = 0_u16;
    for byte in tag.bytes() {
        crc ^= u16::from(byte) << 8;
        for _ in 0..8 {
            crc = if crc & 0x8000 == 0 {
                crc << 1
            } else {
                crc << 1 ^ 0x1021
            };
        }
    }
    crc % SLOTS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_redis() {
        // From the specification of Redis Cluster, and `CLUSTER KEYSLOT`.
        assert_eq!(slot("123456789"), 0x31c3);
        assert_eq!(slot("a{user1000}b"), slot("{user1000}.following"));
        assert_eq!(slot("foo"), 12_182);
    }

    #[test]
    fn the_keys_of_a_bucket_share_a_slot() {
        let keys = Keys::new("0badcafe");
        for bucket in [0, 1, 67_108_863] {
            let keys = keys.bucket(bucket);
            assert_eq!(slot(&keys.tail), keys.slot);
            assert_eq!(slot(&keys.body), keys.slot);
        }
    }

    #[test]
    fn a_beat_is_in_its_slot() {
        let keys = Keys::new("0badcafe");
        for first in [0, 5_461, 16_383] {
            assert_eq!(slot(&keys.beat(first)), first);
        }
    }
}
