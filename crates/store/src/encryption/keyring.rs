//! The storage keys of a process, and the encryption of a record.

use std::collections::{BTreeMap, BTreeSet};

use base64::{Engine as _, prelude::BASE64_STANDARD as BASE64};
use chacha20poly1305::{
    KeyInit as _, XChaCha20Poly1305, XNonce,
    aead::{Aead as _, Payload},
};
use herald_model::{DeviceId, UserKey};
use rand::{TryRngCore as _, rngs::OsRng};

use super::{Encryption, PREVIOUS_KEYS_MAX, StorageKeyId, key_id::BYTES as ID_BYTES};
use crate::{Error, ErrorKind, Result};

/// Version of a record.
const VERSION: u8 = 1;

const NONCE_BYTES: usize = 24;

/// What a record is, in what it is bound to: no record of another kind can ever be taken for one of a device.
const KIND: &[u8] = b"herald device 1";

/// The storage keys of a process.
pub(crate) struct Keyring {
    current: Option<StorageKeyId>,
    ciphers: BTreeMap<StorageKeyId, XChaCha20Poly1305>,
    /// Keys that are lost for good.
    lost: BTreeSet<StorageKeyId>,
}

impl Keyring {
    /// The keys of a configuration. The error begins with the name of the malformed setting, and has no part of a key.
    pub(crate) fn new(config: &Encryption) -> std::result::Result<Self, String> {
        let mut ciphers = BTreeMap::new();
        let mut current = None;
        if !config.key.is_empty() {
            let (id, cipher) = parse_key("key", config.key.expose())?;
            current = Some(id);
            ciphers.insert(id, cipher);
        }
        let previous = config.previous_keys.expose().split([',', '\n']);
        let previous = previous.map(str::trim).filter(|key| !key.is_empty());
        for (count, key) in previous.enumerate() {
            if count == PREVIOUS_KEYS_MAX {
                return Err(format!(
                    "previous_keys must have at most {PREVIOUS_KEYS_MAX} keys"
                ));
            }
            let (id, cipher) = parse_key("previous_keys", key)?;
            ciphers.insert(id, cipher);
        }
        let lost = parse_lost(&config.lost_keys)?;
        if let Some(key) = lost.iter().find(|key| ciphers.contains_key(key)) {
            return Err(format!(
                "lost_keys names the storage key {key}, which is configured, so it is not lost: remove it from lost_keys"
            ));
        }
        Ok(Self {
            current,
            ciphers,
            lost,
        })
    }

    /// The key that records are encrypted with; `None`: they are not encrypted.
    pub(crate) fn current(&self) -> Option<StorageKeyId> {
        self.current
    }

    /// The ids of all keys.
    pub(crate) fn ids(&self) -> Vec<StorageKeyId> {
        self.ciphers.keys().copied().collect()
    }

    /// The ids of the keys that are lost.
    pub(crate) fn lost(&self) -> Vec<StorageKeyId> {
        self.lost.iter().copied().collect()
    }

    /// Whether a record is encrypted with a key that is lost.
    pub(crate) fn is_lost(&self, sealed: &[u8]) -> bool {
        key_of(sealed).is_some_and(|key| self.lost.contains(&key))
    }

    /// Whether records of a key can be decrypted.
    pub(crate) fn has(&self, key: StorageKeyId) -> bool {
        self.ciphers.contains_key(&key)
    }

    /// Encrypts a record with the current key; `None` without one.
    ///
    /// [`Unavailable`](ErrorKind::Unavailable) if the operating system has no random bytes.
    pub(crate) fn seal(&self, user: UserKey, device: DeviceId, plain: &[u8]) -> Result<Option<Vec<u8>>> {
        let Some((id, cipher)) = self.current.and_then(|id| Some((id, self.ciphers.get(&id)?))) else {
            return Ok(None);
        };
        let mut nonce = [0; NONCE_BYTES];
        OsRng.try_fill_bytes(&mut nonce).map_err(|error| {
            let message = "the operating system has no random bytes to encrypt a device with";
            Error::with_source(ErrorKind::Unavailable, message, error)
        })?;
        let aad = bound_to(user, device);
        let payload = Payload {
            msg: plain,
            aad: &aad,
        };
        let ciphertext = cipher
            .encrypt(&XNonce::from(nonce), payload)
            .map_err(|_| Error::new(ErrorKind::Invalid, "a device is too large to be encrypted"))?;
        Ok(Some([&[VERSION][..], &id.0, &nonce, &ciphertext].concat()))
    }

    /// Decrypts a record. [`Corrupt`](ErrorKind::Corrupt) if it can't be.
    pub(crate) fn open(&self, user: UserKey, device: DeviceId, sealed: &[u8]) -> Result<Vec<u8>> {
        let corrupt = |why: &str| {
            let message = format!("can't decrypt the device {} of user {user}: {why}", device.0);
            Error::new(ErrorKind::Corrupt, message)
        };
        let parts = (key_of(sealed), sealed.get(1 + ID_BYTES..));
        let (Some(id), Some(rest)) = parts else {
            return Err(corrupt("its record has another format"));
        };
        let Some(cipher) = self.ciphers.get(&id) else {
            return Err(corrupt(&format!(
                "it is encrypted with the storage key {id}, which this process lacks: add it to \
                 store.encryption.previous_keys"
            )));
        };
        let Some((nonce, ciphertext)) = rest.split_first_chunk::<NONCE_BYTES>() else {
            return Err(corrupt("its record is too short"));
        };
        let aad = bound_to(user, device);
        let payload = Payload {
            msg: ciphertext,
            aad: &aad,
        };
        cipher
            .decrypt(&XNonce::from(*nonce), payload)
            .map_err(|_| corrupt("its record was changed, or is that of another device"))
    }
}

/// The key that a record is encrypted with; `None` if it is no record of this version.
pub(crate) fn key_of(sealed: &[u8]) -> Option<StorageKeyId> {
    let (version, rest) = sealed.split_first()?;
    let id = rest.first_chunk::<ID_BYTES>()?;
    (*version == VERSION).then_some(StorageKeyId(*id))
}

/// The associated data of a record: it is authenticated, and not stored.
fn bound_to(user: UserKey, device: DeviceId) -> Vec<u8> {
    [KIND, &user.0.to_be_bytes(), &device.0.to_be_bytes()].concat()
}

/// The ids in the setting `lost_keys`.
fn parse_lost(text: &str) -> std::result::Result<BTreeSet<StorageKeyId>, String> {
    let ids = text.split([',', '\n']).map(str::trim).filter(|id| !id.is_empty());
    // The setting may have a key instead of its id by mistake, so the error has no part of it.
    let malformed = || "lost_keys must be ids of storage keys, of 16 hexadecimal digits each".to_owned();
    let ids: BTreeSet<StorageKeyId> = ids
        .map(|id| id.parse().map_err(|_: String| malformed()))
        .collect::<std::result::Result<_, _>>()?;
    if ids.len() > PREVIOUS_KEYS_MAX {
        return Err(format!("lost_keys must have at most {PREVIOUS_KEYS_MAX} ids"));
    }
    Ok(ids)
}

/// A key of a setting. The error has no part of it.
pub(super) fn parse_key(
    setting: &str,
    text: &str,
) -> std::result::Result<(StorageKeyId, XChaCha20Poly1305), String> {
    let key = BASE64.decode(text.trim()).ok();
    let key = key.and_then(|key| <[u8; 32]>::try_from(key).ok());
    let key = key.ok_or_else(|| {
        format!("{setting} must be 32 random bytes in base64, such as from `openssl rand -base64 32`")
    })?;
    Ok((StorageKeyId::of(&key), XChaCha20Poly1305::new(&key.into())))
}

/// A new key in base64.
pub(super) fn generate() -> std::io::Result<String> {
    let mut key = [0; 32];
    OsRng.try_fill_bytes(&mut key).map_err(std::io::Error::other)?;
    Ok(BASE64.encode(key))
}

#[cfg(test)]
mod tests {
    use herald_secret::Secret;
    use proptest::prelude::*;

    use super::*;

    fn key(n: u8) -> Secret {
        Secret::new(BASE64.encode([n; 32]))
    }

    fn keyring(current: u8, previous: &[u8]) -> Keyring {
        let previous: Vec<String> = previous.iter().map(|n| key(*n).expose().to_owned()).collect();
        Keyring::new(&Encryption {
            key: key(current),
            previous_keys: Secret::new(previous.join(",")),
            lost_keys: String::new(),
        })
        .unwrap()
    }

    fn sealed(keys: &Keyring, plain: &[u8]) -> Vec<u8> {
        keys.seal(UserKey(7), DeviceId(9), plain).unwrap().unwrap()
    }

    proptest! {
        #[test]
        fn a_record_is_read_only_as_it_was_written(
            plain in prop::collection::vec(any::<u8>(), 0..200),
            bit in any::<prop::sample::Index>(),
            cut in any::<prop::sample::Index>(),
        ) {
            let keys = keyring(1, &[]);
            let record = sealed(&keys, &plain);
            prop_assert_eq!(keys.open(UserKey(7), DeviceId(9), &record).unwrap(), plain);
            let mut flipped = record.clone();
            let bit = bit.index(8 * record.len());
            flipped[bit / 8] ^= 1 << (bit % 8);
            let refused = keys.open(UserKey(7), DeviceId(9), &flipped).unwrap_err();
            prop_assert_eq!(refused.kind(), ErrorKind::Corrupt);
            let cut = &record[..cut.index(record.len())];
            prop_assert!(keys.open(UserKey(7), DeviceId(9), cut).is_err());
        }
    }

    #[test]
    fn a_record_of_another_user_or_device_or_key_is_refused() {
        let (keys, other) = (keyring(1, &[]), keyring(2, &[]));
        let record = sealed(&keys, b"secret");
        for (user, device) in [(8, 9), (7, 10), (9, 7)] {
            let refused = keys.open(UserKey(user), DeviceId(device), &record).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Corrupt);
        }
        let refused = other
            .open(UserKey(7), DeviceId(9), &record)
            .unwrap_err()
            .to_string();
        assert!(
            refused.contains(&keys.current().unwrap().to_string()),
            "{refused}"
        );
        let both = keyring(2, &[3, 1]);
        assert_eq!(both.open(UserKey(7), DeviceId(9), &record).unwrap(), b"secret");
        // The key alone does not decide: a record that names another key is not that key's.
        let mut renamed = record;
        renamed[1..=ID_BYTES].copy_from_slice(&other.current().unwrap().0);
        assert!(both.open(UserKey(7), DeviceId(9), &renamed).is_err());
    }

    #[test]
    fn the_same_record_is_never_encrypted_the_same_way_twice() {
        let keys = keyring(1, &[]);
        assert_ne!(sealed(&keys, b"secret"), sealed(&keys, b"secret"));
        assert!(!sealed(&keys, b"secret").windows(6).any(|part| part == b"secret"));
        assert_eq!(sealed(&keys, b"secret").len(), 1 + 8 + 24 + 6 + 16);
    }

    /// What was written stays readable: a change of the format, the binding or the id of keys must fail here.
    #[test]
    fn a_record_of_version_1_is_read() {
        let keys = keyring(1, &[]);
        assert_eq!(keys.current().unwrap().to_string(), "72cd6e8422c407fb");
        let nonce = [5; NONCE_BYTES];
        let aad = b"herald device 1\0\0\0\x07\0\0\0\0\0\0\0\x09";
        assert_eq!(bound_to(UserKey(7), DeviceId(9)), aad);
        let cipher = XChaCha20Poly1305::new(&[1; 32].into());
        let payload = Payload { msg: b"secret", aad };
        let ciphertext = cipher.encrypt(&XNonce::from(nonce), payload).unwrap();
        let record = [b"\x01\x72\xcd\x6e\x84\x22\xc4\x07\xfb", &nonce[..], &ciphertext].concat();
        assert_eq!(keys.open(UserKey(7), DeviceId(9), &record).unwrap(), b"secret");
    }

    #[test]
    fn a_malformed_key_is_named_and_not_shown() {
        for (config, setting) in [
            (
                Encryption {
                    key: Secret::new("c2hvcnQ="),
                    ..Encryption::default()
                },
                "key must be",
            ),
            (
                Encryption {
                    key: key(1),
                    previous_keys: Secret::new("c2hvcnQ="),
                    ..Encryption::default()
                },
                "previous_keys must be",
            ),
            (
                Encryption {
                    key: key(1),
                    previous_keys: Secret::new(vec![key(2).expose(); 17].join("\n")),
                    ..Encryption::default()
                },
                "previous_keys must have at most 16",
            ),
        ] {
            let refused = config.validate().unwrap_err();
            assert!(
                refused.starts_with(setting) && !refused.contains("c2hv"),
                "{refused}"
            );
            assert!(!format!("{config:?}").contains("AQEB"), "{config:?}");
        }
        assert_eq!(Encryption::default().validate(), Ok(()));
        assert!(
            Keyring::new(&Encryption::default())
                .unwrap()
                .seal(UserKey(1), DeviceId(1), b"")
                .unwrap()
                .is_none()
        );
    }

    #[test]
    fn a_lost_key_is_named_by_its_id_and_is_none_that_is_configured() {
        let id = |n| keyring(n, &[]).current().unwrap().to_string();
        let losing = |lost: &str| Encryption {
            lost_keys: lost.into(),
            previous_keys: key(2),
            key: key(1),
        };
        let both = losing(&format!("{},\n {}", id(3), id(4)));
        assert_eq!(both.validate(), Ok(()));
        let ids: Vec<String> = both.lost_key_ids().iter().map(ToString::to_string).collect();
        assert!(ids.len() == 2 && ids.contains(&id(3)) && ids.contains(&id(4)));
        for configured in [1, 2] {
            let refused = losing(&id(configured)).validate().unwrap_err();
            assert!(
                refused.starts_with("lost_keys") && refused.contains(&id(configured)),
                "{refused}"
            );
        }
        for malformed in ["no id", "0123456789abcdef0", key(3).expose()] {
            let refused = losing(malformed).validate().unwrap_err();
            assert!(
                refused.starts_with("lost_keys") && !refused.contains(malformed),
                "{refused}"
            );
        }
    }

    #[test]
    fn a_previous_key_is_added_once() {
        let mut config = Encryption {
            key: key(1),
            ..Encryption::default()
        };
        config.add_previous(&key(1)).unwrap();
        assert!(config.previous_keys.is_empty());
        config.add_previous(&key(2)).unwrap();
        config.add_previous(&key(2)).unwrap();
        assert_eq!(config.previous_keys, key(2));
        config.add_previous(&key(3)).unwrap();
        assert_eq!(config.key_ids().len(), 3);
        assert!(config.add_previous(&Secret::new("no key")).is_err());
    }
}
