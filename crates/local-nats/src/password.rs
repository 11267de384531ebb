//! The password of a server's user: generated once, and kept in the server's directory.

use std::fmt;
use std::fs::{OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use crate::error::{Error, Result};

/// A password. `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Password(String);

impl Password {
    #[cfg(test)]
    pub(crate) fn new(password: &str) -> Self {
        Self(password.into())
    }

    /// Reads the password from its file, or generates it.
    ///
    /// Call it with the lock of the directory.
    pub(crate) fn load_or_create(path: &Path) -> Result<Self> {
        match std::fs::read_to_string(path) {
            // A crash can leave an empty file.
            Ok(text) if text.trim().is_empty() => {}
            Ok(text) => return Ok(Self(text.trim().to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => {
                return Err(Error::Io {
                    action: format!("read {}", path.display()),
                    source,
                });
            }
        }
        let password = format!("{:032x}", rand::random::<u128>());
        write_private(path, &format!("{password}\n"))
            .map_err(Error::io(format!("write {}", path.display())))?;
        Ok(Self(password))
    }

    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[hidden]")
    }
}

/// Replaces the content of a file that only its owner can read, also if the file exists with another mode.
pub(crate) fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(text.as_bytes())
}
