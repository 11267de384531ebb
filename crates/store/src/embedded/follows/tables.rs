//! The keyspaces and rows of the graph.

use std::sync::Arc;

use fjall::{Keyspace, Readable, Snapshot};
use herald_model::{time::Timestamp, varint};

use crate::{
    Error, ErrorKind, Result,
    embedded::database::{self, Database, map_err},
};

use super::block::Malformed;

/// Memtable size of a keyspace, bytes. Larger than the default, because an import writes to random keys and each flush
/// causes a compaction with most of the existing tables.
const MEMTABLE_BYTES: u64 = 32 << 20;

/// The keyspaces of the graph.
pub(super) struct Tables {
    pub(super) database: Arc<Database>,
    /// (author, bound) → a block of followers.
    pub(super) blocks: Keyspace,
    /// author → [`Count`].
    pub(super) counts: Keyspace,
    /// (author, version) → the changes of the version.
    pub(super) history: Keyspace,
    /// time (microseconds since 1970) → the versions created then, the index for retention.
    pub(super) moments: Keyspace,
    /// (follower, author) → whether the follower has notifications on.
    pub(super) following: Keyspace,
}

/// Blocks with their bounds, ascending.
pub(super) type Blocks = Box<dyn Iterator<Item = Result<(u32, fjall::Slice)>>>;

/// The row of an author.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) followers: u64,
    pub(crate) notify: u64,
    pub(crate) version: u64,
    /// Number of blocks. The first one begins at 0.
    pub(crate) blocks: u64,
}

/// The block of one follower.
pub(super) struct BlockLocation {
    /// The first key of the block.
    pub(super) bound: u32,
    /// The first key of the next block.
    pub(super) end: Option<u32>,
    /// The stored block; `None` if the author has none.
    pub(super) bytes: Option<fjall::Slice>,
}

impl Tables {
    pub(super) fn open(database: &Arc<Database>) -> Result<Self> {
        let options = || database::options().max_memtable_size(MEMTABLE_BYTES);
        Ok(Self {
            blocks: database.keyspace("followers", options)?,
            counts: database.keyspace("follow_counts", options)?,
            history: database.keyspace("follow_history", options)?,
            moments: database.keyspace("follow_moments", database::options)?,
            following: database.keyspace("following", options)?,
            database: Arc::clone(database),
        })
    }

    /// The row of an author; zeroes if there is none.
    pub(super) fn count(&self, snapshot: &Snapshot, author: u32) -> Result<Count> {
        match snapshot
            .get(&self.counts, author.to_be_bytes())
            .map_err(map_err)?
        {
            Some(row) => Count::decode(&row).ok_or_else(|| malformed("count", author)),
            None => Ok(Count::default()),
        }
    }

    /// Finds the block of a follower. `blocks` is the number of blocks of the author.
    pub(super) fn locate_block(
        &self,
        snapshot: &Snapshot,
        author: u32,
        blocks: u64,
        follower: u32,
    ) -> Result<BlockLocation> {
        let (bound, end) = match blocks {
            0 => {
                return Ok(BlockLocation {
                    bound: 0,
                    end: None,
                    bytes: None,
                });
            }
            1 => (0, None),
            _ => {
                let bound = self.bound(snapshot, author, follower)?;
                let next = follower.checked_add(1).and_then(|next| {
                    snapshot
                        .range(&self.blocks, pair_key(author, next)..=pair_key(author, u32::MAX))
                        .next()
                });
                (
                    bound,
                    next.map(|row| row.key().map_err(map_err).and_then(|key| second_user(&key)))
                        .transpose()?,
                )
            }
        };
        let bytes = snapshot
            .get(&self.blocks, pair_key(author, bound))
            .map_err(map_err)?;
        if bytes.is_none() {
            return Err(malformed("followers", author));
        }
        Ok(BlockLocation { bound, end, bytes })
    }

    /// The bound of the block of a follower.
    fn bound(&self, snapshot: &Snapshot, author: u32, follower: u32) -> Result<u32> {
        snapshot
            .range(&self.blocks, pair_key(author, 0)..=pair_key(author, follower))
            .next_back()
            .ok_or_else(|| malformed("followers", author))
            .and_then(|row| second_user(&row.key().map_err(map_err)?))
    }

    /// The blocks of an author with their bounds, from the block of `follower` on.
    pub(super) fn blocks_from(
        &self,
        snapshot: &Snapshot,
        author: u32,
        blocks: u64,
        follower: u32,
    ) -> Result<Blocks> {
        if blocks < 2 {
            let place = self.locate_block(snapshot, author, blocks, follower)?;
            return Ok(Box::new(
                place.bytes.map(|bytes| Ok((place.bound, bytes))).into_iter(),
            ));
        }
        let bound = if follower == 0 {
            0
        } else {
            self.bound(snapshot, author, follower)?
        };
        let rows = snapshot.range(&self.blocks, pair_key(author, bound)..=pair_key(author, u32::MAX));
        Ok(Box::new(rows.map(|row| {
            let (key, bytes) = row.into_inner().map_err(map_err)?;
            Ok((second_user(&key)?, bytes))
        })))
    }

    /// Time of the newest version in the history.
    pub(super) fn last_moment(&self) -> Result<Option<Timestamp>> {
        self.moments
            .last_key_value()
            .map(|row| decode_time(&row.key().map_err(map_err)?))
            .transpose()
    }
}

impl Count {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(16);
        for part in [self.followers, self.notify, self.version, self.blocks] {
            varint::write(&mut bytes, part);
        }
        bytes
    }

    pub(crate) fn decode(mut bytes: &[u8]) -> Option<Self> {
        let bytes = &mut bytes;
        Some(Self {
            followers: varint::read(bytes)?,
            notify: varint::read(bytes)?,
            version: varint::read(bytes)?,
            blocks: varint::read(bytes)?,
        })
    }
}

/// A key of two users.
pub(crate) fn pair_key(first: u32, second: u32) -> [u8; 8] {
    (u64::from(first) << 32 | u64::from(second)).to_be_bytes()
}

/// The second user of a key made by [`pair_key`].
pub(crate) fn second_user(key: &[u8]) -> Result<u32> {
    match key {
        [_, _, _, _, a, b, c, d] => Ok(u32::from_be_bytes([*a, *b, *c, *d])),
        _ => Err(Error::new(
            ErrorKind::Corrupt,
            "can't decode a key of the follow graph",
        )),
    }
}

/// A key of `history`.
pub(crate) fn version_key(author: u32, version: u64) -> [u8; 12] {
    let mut key = [0; 12];
    key[..4].copy_from_slice(&author.to_be_bytes());
    key[4..].copy_from_slice(&version.to_be_bytes());
    key
}

/// The version of a key made by [`version_key`].
pub(crate) fn decode_version(key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(key.get(4..)?.try_into().ok()?))
}

/// The time of a key of `moments`.
pub(super) fn decode_time(key: &[u8]) -> Result<Timestamp> {
    let bytes = key.try_into().map_err(|_| {
        Error::new(
            ErrorKind::Corrupt,
            "can't decode a key of the keyspace follow_moments",
        )
    })?;
    Ok(Timestamp(i64::from_be_bytes(bytes)))
}

/// Error for a row of an author that can't be decoded.
pub(super) fn malformed(what: &str, author: u32) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!("can't decode the {what} of author {author}"),
    )
}

/// Maps the codec's error to the store's.
pub(super) fn corrupt(what: &'static str, author: u32) -> impl Fn(Malformed) -> Error {
    move |_| malformed(what, author)
}
