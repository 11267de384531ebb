//! The embedded store whose data is moved, and the mark of the move in its directory.

use std::ops::Bound;

use fjall::{Keyspace, Slice};
use herald_model::UserKey;
use parking_lot::Mutex;

use super::derivable_cache::DerivableCache;
use crate::{
    Error, ErrorKind, Result, Stores,
    embedded::{
        self, Embedded, api_keys,
        database::{self, map_err},
        devices::Codec,
        erased_timelines, erasures,
        mark::Mark,
        posts,
    },
    encryption::Encryption,
};

/// The open store: its rows and its stores.
pub(super) struct Source {
    embedded: Embedded,
    pub(super) user_ids: Keyspace,
    pub(super) user_keys: Keyspace,
    pub(super) followers: Keyspace,
    pub(super) follow_counts: Keyspace,
    pub(super) follow_history: Keyspace,
    pub(super) follow_moments: Keyspace,
    pub(super) following: Keyspace,
    pub(super) posts: Keyspace,
    pub(super) post_deletions: Keyspace,
    pub(super) post_requests: Keyspace,
    pub(super) posts_removed: Keyspace,
    pub(super) devices: Keyspace,
    /// Reads the devices, with the storage keys of the embedded store.
    pub(super) devices_from: Codec,
    /// Writes the devices, with the storage key of the database.
    pub(super) devices_to: Codec,
    pub(super) device_counter: Keyspace,
    pub(super) preferences: Keyspace,
    pub(super) api_keys: Keyspace,
    pub(super) erasures: Keyspace,
    pub(super) erased_timelines: Keyspace,
    pub(super) ledger: Keyspace,
    pub(super) leases: Keyspace,
    pub(super) totals_seen: Keyspace,
    pub(super) totals_intents: Keyspace,
    pub(super) totals_posts: Keyspace,
    pub(super) totals_hours: Keyspace,
    pub(super) totals_chunks: Keyspace,
    pub(super) dead_letters: Keyspace,
    pub(super) dead_letter_progress: Keyspace,
    pub(super) dead_letter_operations: Keyspace,
    pub(super) dead_letter_selections: Keyspace,
    pub(super) dead_letter_selected: Keyspace,
    /// What the move has looked up about derivable posts.
    pub(super) derivable: Mutex<DerivableCache>,
}

impl Source {
    /// Opens the store of a stopped installation. `encryption`: of the database that it is moved to.
    ///
    /// [`Invalid`](ErrorKind::Invalid) if the directory has none, [`Locked`](ErrorKind::Locked) if a process uses it.
    pub(super) fn open(config: &embedded::Config, encryption: &Encryption) -> Result<Self> {
        // Opening would make an empty store.
        if !config.data_dir.join("format").exists() {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "there is no embedded store in {}: name the data directory of `herald up` (--data-dir)",
                    config.data_dir.display()
                ),
            ));
        }
        let embedded = Embedded::open_to_move(config)?;
        let databases = embedded.databases();
        let record = |name| databases.records.keyspace(name, database::options);
        let total = |name| databases.totals.keyspace(name, database::options);
        let dead = |name| databases.dead_letters.keyspace(name, database::options);
        Ok(Self {
            user_ids: record("user_ids")?,
            user_keys: record("user_keys")?,
            followers: record("followers")?,
            follow_counts: record("follow_counts")?,
            follow_history: record("follow_history")?,
            follow_moments: record("follow_moments")?,
            following: record("following")?,
            posts: record("posts")?,
            post_deletions: record("post_deletions")?,
            post_requests: record("post_requests")?,
            posts_removed: record(posts::REMOVED)?,
            devices: record("devices")?,
            devices_from: Codec::new(&config.encryption, embedded.metrics())?,
            devices_to: Codec::new(encryption, embedded.metrics())?,
            device_counter: record("device_counter")?,
            preferences: record("preferences")?,
            api_keys: record(api_keys::KEYSPACE)?,
            erasures: record(erasures::KEYSPACE)?,
            erased_timelines: record(erased_timelines::KEYSPACE)?,
            ledger: record("ledger")?,
            leases: record("leases")?,
            totals_seen: total("totals_seen")?,
            totals_intents: total("totals_intents")?,
            totals_posts: total("totals_posts")?,
            totals_hours: total("totals_hours")?,
            totals_chunks: total("totals_chunks")?,
            dead_letters: dead("dead_letters")?,
            dead_letter_progress: dead("dead_letter_progress")?,
            dead_letter_operations: dead("dead_letter_operations")?,
            dead_letter_selections: dead("dead_letter_selections")?,
            dead_letter_selected: dead("dead_letter_selected")?,
            derivable: Mutex::default(),
            embedded,
        })
    }

    /// The stores.
    pub(super) fn stores(&self) -> Stores {
        self.embedded.stores()
    }

    /// The smallest post that timelines show.
    pub(super) fn oldest_shown(&self) -> u64 {
        self.embedded.timelines().oldest_kept().0
    }

    /// The mark of the move; makes one if there is none. From now on `herald up` refuses the directory.
    pub(super) fn mark(&self) -> Result<Mark> {
        let dir = self.embedded.path();
        if let Some(mark) = Mark::read(dir)? {
            Ok(mark)
        } else {
            let mark = Mark::new(format!("{:032x}", rand::random::<u128>()));
            mark.write(dir)?;
            Ok(mark)
        }
    }

    /// Whether there is a mark.
    pub(super) fn is_marked(&self) -> Result<bool> {
        Ok(Mark::read(self.embedded.path())?.is_some())
    }

    /// Removes the mark of a move that has not written anything.
    pub(super) fn unmark(&self) -> Result<()> {
        Mark::remove(self.embedded.path())
    }

    /// Marks the move as finished.
    pub(super) fn mark_finished(&self, mark: &Mark) -> Result<()> {
        mark.finished().write(self.embedded.path())
    }

    /// Closes the store.
    pub(super) fn close(&self) -> Result<()> {
        self.embedded.close()
    }
}

/// The rows of a keyspace after a key, ascending.
pub(super) fn rows_after(
    keyspace: &Keyspace,
    after: Option<&[u8]>,
) -> impl Iterator<Item = Result<(Slice, Slice)>> + use<> {
    let from = after.map_or(Bound::Unbounded, |after| Bound::Excluded(after.to_vec()));
    keyspace
        .range::<Vec<u8>, _>((from, Bound::Unbounded))
        .map(|row| row.into_inner().map_err(map_err))
}

/// Names the row whose data can't be used in the error.
pub(super) fn named<T>(result: Result<T>, what: impl FnOnce() -> String) -> Result<T> {
    result.map_err(|error| {
        let message = format!("can't move {}: {error}", what());
        Error::with_source(error.kind(), message, error)
    })
}

/// Error for a row that can't be decoded.
pub(super) fn corrupt(what: impl std::fmt::Display, reason: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Corrupt, format!("can't move {what}: {reason}"))
}

/// Error for a row whose value can't be decoded.
pub(super) fn undecodable(what: impl std::fmt::Display, keyspace: &str) -> Error {
    corrupt(
        what,
        format!("its row in the keyspace {keyspace} can't be decoded"),
    )
}

/// A big-endian number at the beginning of a key.
pub(super) fn read_u64(bytes: &[u8]) -> Option<u64> {
    bytes.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
}

/// A big-endian number at the beginning of a key.
pub(super) fn read_u32(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

/// The user whose key is the key of a row.
pub(super) fn user_of(key: &[u8], keyspace: &str) -> Result<UserKey> {
    let user = <[u8; 4]>::try_from(key).map_err(|_| {
        corrupt(
            format!("the row {} of the keyspace {keyspace}", show_key(key)),
            "its key is no key of a user",
        )
    })?;
    Ok(UserKey(u32::from_be_bytes(user)))
}

/// A key for messages.
pub(super) fn show_key(key: &[u8]) -> String {
    key.iter().fold(String::from("0x"), |mut text, byte| {
        use std::fmt::Write as _;
        let _ = write!(text, "{byte:02x}");
        text
    })
}
