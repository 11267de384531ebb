//! The data directory: held by one process, of one format.

use std::{
    fs::{self, File, TryLockError},
    io::Write,
    path::{Path, PathBuf},
};

use crate::{Error, ErrorKind, Result};

/// What `format` holds. Raised when the layout changes in a way that older or newer code misreads.
const FORMAT: &str = "herald-store 3\n";

/// The data directory, locked as long as this lives.
pub(crate) struct Dir {
    path: PathBuf,
    _lock: File,
}

impl Dir {
    /// Makes the directory when it isn't there, locks it and checks its format.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let failed = |what: &str, e: std::io::Error| {
            io_error(format!("{what} the data directory {}", path.display()), e)
        };
        fs::create_dir_all(path).map_err(|e| failed("can't make", e))?;
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path.join("lock"))
            .map_err(|e| failed("can't open the lock of", e))?;
        lock.try_lock().map_err(|e| match e {
            TryLockError::WouldBlock => Error::new(
                ErrorKind::Locked,
                format!("another process has the data directory {} open", path.display()),
            ),
            TryLockError::Error(e) => failed("can't lock", e),
        })?;
        check_format(path)?;
        Ok(Self {
            path: path.into(),
            _lock: lock,
        })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

fn check_format(dir: &Path) -> Result<()> {
    let path = dir.join("format");
    match fs::read_to_string(&path) {
        Ok(found) if found == FORMAT => Ok(()),
        Ok(found) => Err(Error::new(
            ErrorKind::Corrupt,
            format!(
                "{} says {:?}, this program reads {:?}",
                path.display(),
                found.trim(),
                FORMAT.trim()
            ),
        )),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => write_durably(dir, "format", FORMAT)
            .map_err(|e| io_error(format!("can't write {}", path.display()), e)),
        Err(e) => Err(io_error(format!("can't read {}", path.display()), e)),
    }
}

/// Writes a small file so that after a crash it is there in full or not at all.
fn write_durably(dir: &Path, name: &str, text: &str) -> std::io::Result<()> {
    let temporary = dir.join(format!("{name}.new"));
    let mut file = File::create(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(temporary, dir.join(name))?;
    File::open(dir)?.sync_all()
}

/// An error of the file system, with the kind that fits.
pub(crate) fn io_error(message: String, e: std::io::Error) -> Error {
    use std::io::ErrorKind as Io;
    let kind = match e.kind() {
        Io::StorageFull | Io::QuotaExceeded => ErrorKind::Full,
        Io::InvalidData | Io::UnexpectedEof => ErrorKind::Corrupt,
        _ => ErrorKind::Unavailable,
    };
    Error::with_source(kind, message, e)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_open_once_and_opens_again_after() {
        let dir = tempfile::tempdir().unwrap();
        let first = Dir::open(dir.path()).unwrap();
        assert_eq!(Dir::open(dir.path()).err().unwrap().kind(), ErrorKind::Locked);
        drop(first);
        Dir::open(dir.path()).unwrap();
    }

    #[test]
    fn another_format_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("format"), "herald-store 1\n").unwrap();
        assert_eq!(Dir::open(dir.path()).err().unwrap().kind(), ErrorKind::Corrupt);
    }
}
