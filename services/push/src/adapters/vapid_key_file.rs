//! The file of the VAPID private key.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD as BASE64URL};
use p256::{ecdsa::SigningKey, elliptic_curve::rand_core::OsRng};

use crate::{Config, Error};

/// The private key of a text: 32 bytes in base64url.
pub(super) fn parse_key(text: &str) -> Result<SigningKey, Error> {
    let bytes = BASE64URL.decode(text.trim()).map_err(|_| Error::VapidKey)?;
    SigningKey::from_slice(&bytes).map_err(|_| Error::VapidKey)
}

/// The path of the key file, `vapid.key` in the data directory by default.
pub(super) fn key_file(config: &Config, data_dir: &Path) -> PathBuf {
    let default = || data_dir.join("vapid.key");
    config.vapid_key_file.clone().unwrap_or_else(default)
}

/// Names the file in an error.
pub(super) fn file_error(path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::File {
        path: path.to_owned(),
        source,
    }
}

/// Reads a key file; `None` if it does not exist.
pub(super) fn read_key_file(path: &Path) -> Result<Option<SigningKey>, Error> {
    match fs::read_to_string(path) {
        Ok(text) => parse_key(&text).map(Some),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(file_error(path)(e)),
    }
}

/// Creates a key file with a new key. If another process has created it meanwhile, its key applies.
pub(super) fn create(path: &Path) -> Result<SigningKey, Error> {
    create_key_file(path, &SigningKey::random(&mut OsRng)).map_err(file_error(path))?;
    parse_key(&fs::read_to_string(path).map_err(file_error(path))?)
}

/// Creates a key file atomically; does not replace an existing file.
fn create_key_file(path: &Path, key: &SigningKey) -> io::Result<()> {
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    fs::create_dir_all(directory)?;
    let temporary = path.with_extension(format!("{:016x}", rand::random::<u64>()));
    let write = || {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)?;
        writeln!(file, "{}", BASE64URL.encode(key.to_bytes()))?;
        file.sync_all()?;
        match fs::hard_link(&temporary, path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
            _ => fs::File::open(directory)?.sync_all(),
        }
    };
    let written = write();
    let removed = fs::remove_file(&temporary);
    written.and(removed)
}
