//! The sink's webhook secret and Web Push keys.

use std::{fs, io::Write, os::unix::fs::OpenOptionsExt, path::Path};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD as BASE64URL};
use p256::{SecretKey, elliptic_curve::rand_core::OsRng, elliptic_curve::sec1::ToEncodedPoint};

use crate::Error;

/// Lines of a key file, one secret each.
const LINES: usize = 3;

/// The sink's secrets, shared by all device names: a webhook secret, and the key pair and authentication secret of Web
/// Push subscriptions.
#[derive(Clone)]
pub struct Keys {
    pub(crate) webhook: Vec<u8>,
    pub(crate) secret: SecretKey,
    pub(crate) auth: [u8; 16],
}

impl Keys {
    /// Generates random keys.
    pub fn generate() -> Self {
        let webhook: [u8; 32] = rand::random();
        Self {
            webhook: webhook.to_vec(),
            secret: SecretKey::random(&mut OsRng),
            auth: rand::random(),
        }
    }

    /// Loads the keys from a file. Creates the file (mode 0600) with new keys if it does not exist, so that registered
    /// devices stay valid after a restart.
    pub fn load_or_create(path: &Path) -> Result<Self, Error> {
        let file_error = |source| Error::KeyFile {
            path: path.to_owned(),
            source,
        };
        match fs::read_to_string(path) {
            Ok(text) => Self::parse(&text).ok_or_else(|| Error::MalformedKeys {
                path: path.to_owned(),
            }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let keys = Self::generate();
                let mut file = fs::OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(path)
                    .map_err(file_error)?;
                file.write_all(keys.encode().as_bytes()).map_err(file_error)?;
                Ok(keys)
            }
            Err(e) => Err(file_error(e)),
        }
    }

    /// The public key of Web Push subscriptions: an uncompressed P-256 point of 65 bytes.
    pub fn p256dh(&self) -> Vec<u8> {
        self.secret
            .public_key()
            .to_encoded_point(false)
            .as_bytes()
            .to_vec()
    }

    fn encode(&self) -> String {
        let parts = [&self.webhook[..], &self.secret.to_bytes(), &self.auth];
        parts.map(|part| BASE64URL.encode(part) + "\n").concat()
    }

    fn parse(text: &str) -> Option<Self> {
        let parts: Vec<Vec<u8>> = text
            .lines()
            .map(|line| BASE64URL.decode(line))
            .collect::<Result<_, _>>()
            .ok()?;
        let [webhook, secret, auth]: [Vec<u8>; LINES] = parts.try_into().ok()?;
        Some(Self {
            webhook,
            secret: SecretKey::from_slice(&secret).ok()?,
            auth: auth.try_into().ok()?,
        })
    }
}

impl std::fmt::Debug for Keys {
    /// Omits the secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_loaded_from_their_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys");
        let created = Keys::load_or_create(&path).unwrap();
        let loaded = Keys::load_or_create(&path).unwrap();
        assert_eq!(created.encode(), loaded.encode());
        fs::write(&path, "nonsense").unwrap();
        assert!(matches!(
            Keys::load_or_create(&path),
            Err(Error::MalformedKeys { .. })
        ));
    }
}
