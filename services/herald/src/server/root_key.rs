//! The root key of `herald up`: a file in the data directory.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use herald_runtime::config::Secret;
use rand::RngCore as _;

/// Name of the file.
pub(super) const FILE: &str = "root-key";
/// Beginning of a key, by which programs that look for leaked secrets find one.
const PREFIX: &str = "hk_root_";
/// All permissions of a file but those of its user.
const OTHERS: u32 = 0o077;

/// The file of a data directory.
pub(crate) fn path(data_dir: &Path) -> PathBuf {
    data_dir.join(FILE)
}

/// Reads the key of a data directory; makes one, for this user alone, if there is none.
pub(super) fn open(data_dir: &Path) -> Result<Secret> {
    let path = path(data_dir);
    let shown = path.display();
    let found = match fs::metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return create(&path).with_context(|| format!("can't write the root key to {shown}"));
        }
        found => found.with_context(|| format!("can't read the root key in {shown}"))?,
    };
    ensure!(
        found.mode() & OTHERS == 0,
        "other users can read or change the root key in {shown}: they may have it; remove the file, and Herald makes another \
         key"
    );
    let text = fs::read_to_string(&path).with_context(|| format!("can't read the root key in {shown}"))?;
    let key = text.trim();
    if !key.starts_with(PREFIX) || key.len() < PREFIX.len() + 43 {
        bail!("{shown} has no root key: remove the file, and Herald makes one");
    }
    Ok(Secret::new(key))
}

fn create(path: &Path) -> io::Result<Secret> {
    let mut bytes = [0; 32];
    rand::rng().fill_bytes(&mut bytes);
    let key = format!("{PREFIX}{}", BASE64.encode(bytes));
    // Whole or absent: a crash leaves no half of a key.
    let new = path.with_extension("new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(format!("{key}\n").as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    Ok(Secret::new(key))
}

#[cfg(test)]
mod tests {
    use std::{fs::Permissions, os::unix::fs::PermissionsExt as _};

    use super::*;

    #[test]
    fn a_key_is_made_once_for_this_user_alone() {
        let dir = tempfile::tempdir().unwrap();
        let key = open(dir.path()).unwrap();
        assert!(key.expose().starts_with("hk_root_"));
        assert_eq!(fs::metadata(path(dir.path())).unwrap().mode() & 0o777, 0o600);
        assert_eq!(open(dir.path()).unwrap(), key);
        let other = tempfile::tempdir().unwrap();
        assert_ne!(open(other.path()).unwrap(), key);
        let config = herald_auth::Config {
            root_key: key,
            ..herald_auth::Config::default()
        };
        assert_eq!(config.validate(), Ok(()));
    }

    #[test]
    fn a_key_that_others_can_read_or_that_is_none_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let key = open(dir.path()).unwrap();
        fs::set_permissions(path(dir.path()), Permissions::from_mode(0o640)).unwrap();
        let error = open(dir.path()).unwrap_err().to_string();
        assert!(
            error.contains("other users can read") && !error.contains(key.expose()),
            "{error}"
        );
        fs::set_permissions(path(dir.path()), Permissions::from_mode(0o600)).unwrap();
        fs::write(path(dir.path()), "hk_root_short").unwrap();
        assert!(
            open(dir.path())
                .unwrap_err()
                .to_string()
                .contains("has no root key")
        );
    }
}
