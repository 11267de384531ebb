//! The storage key of `herald up`: the file `storage.key` in the data directory, unless another key is configured.
//!
//! It is on the disk of the store, so it protects copies of the store alone: backups, which don't have it, and disks whose
//! files were removed one by one. Who can read the data directory has both.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use anyhow::{Context as _, Result, anyhow};
use herald_runtime::config::Secret;
use herald_store::{embedded, encryption::Encryption};

use super::Config;

/// Name of the file.
pub(super) const FILE: &str = "storage.key";

impl Config {
    /// The configuration of the embedded engine, with the key of the data directory: the one that devices are encrypted
    /// with, or one of those before if another one is configured.
    ///
    /// # Errors
    /// The file of the key can't be read, or has none.
    pub(crate) fn embedded(&self) -> Result<embedded::Config> {
        let mut config = self.store.embedded(&self.data_dir);
        let path = self.data_dir.join(FILE);
        if let Some(key) = read(&path)? {
            if config.encryption.key.is_empty() {
                config.encryption.key = key;
            } else {
                let added = config.encryption.add_previous(&key);
                added.map_err(|reason| anyhow!("{}: {reason}", path.display()))?;
            }
        }
        Ok(config)
    }

    /// Checks that a move to the cluster engine keeps devices encrypted.
    ///
    /// # Errors
    /// The data directory has a storage key, and none is configured for the database.
    pub(crate) fn check_moved_key(&self) -> Result<()> {
        let from = self.embedded()?.encryption;
        if from.key.is_empty() || !self.store.encryption.key.is_empty() {
            return Ok(());
        }
        Err(anyhow!(
            "the devices in {} are encrypted, and PostgreSQL would have their endpoints and secrets in plain text: set \
             store.encryption.key for this command and all gateways and push processes \
             (HERALD_STORE__ENCRYPTION__KEY_FILE={} keeps the key), or give --plain-devices",
            self.data_dir.display(),
            self.data_dir.join(FILE).display()
        ))
    }

    /// A new key, if the embedded engine has none: [`write`] it when the engine is open.
    ///
    /// # Errors
    /// The operating system has no random bytes.
    pub(super) fn new_storage_key(&self) -> Result<Option<Secret>> {
        if self.store.is_cluster()
            || !self.store.encryption.key.is_empty()
            || self.data_dir.join(FILE).exists()
        {
            return Ok(None);
        }
        let key = Encryption::generate_key().context("can't make a storage key")?;
        Ok(Some(key))
    }
}

/// Reads a file with a key; `None` if it does not exist.
///
/// # Errors
/// The file can't be read, or has no key.
pub(crate) fn read(path: &Path) -> Result<Option<Secret>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(error).with_context(|| format!("can't read the storage key {}", path.display()));
        }
    };
    let key = Secret::new(text.trim());
    let alone = Encryption {
        key: key.clone(),
        ..Encryption::default()
    };
    match alone.key_id() {
        Some(_) => Ok(Some(key)),
        None => Err(anyhow!(
            "the file {} has no storage key (32 bytes in base64): put it back from where you keep a copy",
            path.display()
        )),
    }
}

/// Writes the key of a data directory, durably, for the user of this process alone. Replaces no file.
pub(super) fn write(data_dir: &Path, key: &Secret) -> Result<()> {
    let (path, new) = (data_dir.join(FILE), data_dir.join("storage.key.new"));
    let written = || {
        // Of a start that was interrupted.
        let _ = fs::remove_file(&new);
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(0o600).open(&new)?;
        writeln!(file, "{}", key.expose())?;
        file.sync_all()?;
        let linked = fs::hard_link(&new, &path);
        fs::remove_file(&new)?;
        linked?;
        File::open(data_dir)?.sync_all()
    };
    written().with_context(|| format!("can't write the storage key {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_key_of_a_data_directory_is_private_and_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config {
            data_dir: dir.path().into(),
            ..Config::default()
        };
        assert_eq!(config.embedded().unwrap().encryption, Encryption::default());
        let key = config.new_storage_key().unwrap().unwrap();
        write(dir.path(), &key).unwrap();
        assert!(write(dir.path(), &Encryption::generate_key().unwrap()).is_err());
        let mode = fs::metadata(dir.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(config.new_storage_key().unwrap().is_none());
        assert_eq!(config.embedded().unwrap().encryption.key, key);

        // Another key is used from now on, and that of the directory still reads what it has written.
        let other = Encryption::generate_key().unwrap();
        config.store.encryption.key = other.clone();
        let encryption = config.embedded().unwrap().encryption;
        assert_eq!((encryption.key, encryption.previous_keys), (other, key));

        // A move keeps devices encrypted, with the configured key.
        assert!(config.check_moved_key().is_ok());
        config.store.encryption.key = Secret::default();
        let refused = config.check_moved_key().unwrap_err().to_string();
        assert!(
            refused.contains("store.encryption.key") && refused.contains("--plain-devices"),
            "{refused}"
        );
        let plain = tempfile::tempdir().unwrap();
        let without = Config {
            data_dir: plain.path().into(),
            ..Config::default()
        };
        assert!(without.check_moved_key().is_ok());

        fs::write(dir.path().join(FILE), "nonsense").unwrap();
        let refused = config.embedded().unwrap_err().to_string();
        assert!(
            refused.contains("storage.key") && !refused.contains("nonsense"),
            "{refused}"
        );
    }
}
