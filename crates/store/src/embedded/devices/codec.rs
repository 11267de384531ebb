//! Encodes and decodes the devices of users, with the storage keys of the process. Both engines store the same rows.

use std::collections::HashSet;

use herald_metrics::Counter;
use herald_model::{Device, UserKey};
use parking_lot::Mutex;
use prost::Message as _;

use super::row::{Rows, undecodable};
use crate::{
    Error, ErrorKind, Metrics, Result,
    encryption::{Encryption, Keyring},
};

/// Maximum number of users that are remembered, so that each is logged once.
const LOGGED_MAX: usize = 1_000;

/// Encodes and decodes the devices of users.
pub(crate) struct Codec {
    keys: Keyring,
    unreadable: Counter,
    logged: Mutex<HashSet<UserKey>>,
}

/// A row from which the devices whose keys are lost were removed.
pub(crate) struct WithoutLost {
    /// The row; empty if no device is left.
    pub(crate) row: Vec<u8>,
    /// Whether a Web Push device is left.
    pub(crate) has_web_push: bool,
    /// Number of removed devices.
    pub(crate) removed: u64,
}

impl Codec {
    /// [`Invalid`](ErrorKind::Invalid) if a key is malformed.
    pub(crate) fn new(config: &Encryption, metrics: &Metrics) -> Result<Self> {
        let keys = Keyring::new(config);
        let keys =
            keys.map_err(|reason| Error::new(ErrorKind::Invalid, format!("store.encryption.{reason}")))?;
        Ok(Self {
            keys,
            unreadable: metrics.unreadable_devices().clone(),
            logged: Mutex::default(),
        })
    }

    /// Without a key.
    #[cfg(test)]
    pub(crate) fn plain() -> Self {
        Self::new(&Encryption::default(), &Metrics::default()).unwrap()
    }

    /// The keys.
    pub(crate) fn keys(&self) -> &Keyring {
        &self.keys
    }

    /// The row of devices.
    pub(crate) fn encode(&self, devices: &[Device]) -> Result<Vec<u8>> {
        Ok(Rows::seal(devices, &self.keys)?.encode_to_vec())
    }

    /// The devices of `user`. A failure is counted; the first one of each user is logged.
    pub(crate) fn decode(&self, user: UserKey, row: &[u8]) -> Result<Vec<Device>> {
        let rows = Rows::decode(row).map_err(|_| undecodable(user));
        let devices = rows.and_then(|rows| rows.open(user, &self.keys));
        if let Err(error) = &devices {
            self.unreadable.inc();
            let mut logged = self.logged.lock();
            if logged.len() < LOGGED_MAX && logged.insert(user) {
                tracing::error!(%error, user_key = user.0, "the devices of a user can't be read; the user gets no pushes");
            }
        }
        devices
    }

    /// Whether all devices of a row are encrypted with the current key; true without one. False for a row that can't
    /// be decoded.
    pub(crate) fn is_sealed(&self, row: &[u8]) -> bool {
        Rows::decode(row).is_ok_and(|rows| rows.are_sealed(&self.keys))
    }

    /// The row without the devices whose keys are lost; `None` if it has none of them, or can't be decoded.
    pub(crate) fn without_lost(&self, row: &[u8]) -> Option<WithoutLost> {
        let mut rows = Rows::decode(row).ok()?;
        let removed = rows.remove_lost(&self.keys);
        (removed > 0).then(|| WithoutLost {
            row: if rows.is_empty() {
                Vec::new()
            } else {
                rows.encode_to_vec()
            },
            has_web_push: rows.have_web_push(),
            removed,
        })
    }

    /// The number of devices in a row; one if it can't be decoded. Needs no key.
    pub(crate) fn count(row: &[u8]) -> u64 {
        Rows::decode(row).map_or(1, |rows| rows.len())
    }

    /// Whether a user has a Web Push device. Needs no key.
    pub(crate) fn has_web_push(user: UserKey, row: &[u8]) -> Result<bool> {
        let rows = Rows::decode(row).map_err(|_| undecodable(user))?;
        Ok(rows.have_web_push())
    }
}
