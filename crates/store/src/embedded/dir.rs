//! The data directory: locked by one process, checked for its format.

use std::{
    fs::{self, File, TryLockError},
    io::Write,
    path::{Path, PathBuf},
};

use super::contents::{Contents, DATABASES};
use crate::{Error, ErrorKind, Result};

/// Content of the file `format`. Raise the number with every change of the layout (directories, keyspaces, keys, rows)
/// that an older or a newer version would misread.
const FORMAT: &str = "herald-store 4\n";

/// The data directory. Holds the directory's lock until it is dropped.
pub(crate) struct Dir {
    path: PathBuf,
    _lock: File,
}

impl Dir {
    /// Creates the directory if it does not exist, locks it and checks its format.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let failed = |what: &str, e: std::io::Error| {
            io_error(format!("{what} the data directory {}", path.display()), e)
        };
        fs::create_dir_all(path).map_err(|e| failed("can't create", e))?;
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path.join("lock"))
            .map_err(|e| failed("can't open the lock file of", e))?;
        lock.try_lock().map_err(|e| match e {
            TryLockError::WouldBlock => Error::new(
                ErrorKind::Locked,
                format!(
                    "the data directory {} is open in another process: stop that process, or use another directory",
                    path.display()
                ),
            ),
            TryLockError::Error(e) => failed("can't lock", e),
        })?;
        check_format(path)?;
        Ok(Self {
            path: path.into(),
            _lock: lock,
        })
    }

    /// Path of the directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// Whether a directory has a store, as its file `format` tells. Changes nothing.
///
/// [`Corrupt`](ErrorKind::Corrupt) if the file has something else, or is missing beside databases.
pub fn has_store(dir: &Path) -> Result<bool> {
    let path = dir.join("format");
    match fs::read_to_string(&path) {
        Ok(found) if found == FORMAT => Ok(true),
        Ok(found) => Err(Error::new(
            ErrorKind::Corrupt,
            format!(
                "the data directory {} has the format {:?}, this version of herald reads only {:?}: use an empty \
                 directory, or the version that wrote this one",
                dir.display(),
                found.trim(),
                FORMAT.trim()
            ),
        )),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => check_unused(dir).map(|()| false),
        Err(e) => Err(io_error(format!("can't read {}", path.display()), e)),
    }
}

fn check_format(dir: &Path) -> Result<()> {
    if has_store(dir)? {
        return Ok(());
    }
    Contents::begin(dir)?;
    write_durably(dir, "format", FORMAT)
        .map_err(|e| io_error(format!("can't write {}", dir.join("format").display()), e))
}

/// Refuses to make a store beside databases whose format is unknown.
fn check_unused(dir: &Path) -> Result<()> {
    let found = DATABASES.into_iter().find(|name| dir.join(name).exists());
    match found {
        Some(name) => Err(Error::new(
            ErrorKind::Corrupt,
            format!(
                "the data directory {} has the database {name} and no file `format`, which tells how to read it: put the \
                 file back ({:?} and a newline, if this version of herald wrote the directory), restore a backup, or use an \
                 empty directory",
                dir.display(),
                FORMAT.trim(),
            ),
        )),
        None => Ok(()),
    }
}

/// Directory, in the data directory, for damaged data that was replaced.
const DAMAGED: &str = "damaged";

/// An unused path in the directory for damaged data, which is created.
pub(crate) fn unused_in_damaged(data_dir: &Path, name: &str) -> Result<PathBuf> {
    let damaged = data_dir.join(DAMAGED);
    fs::create_dir_all(&damaged)
        .and_then(|()| File::open(data_dir)?.sync_all())
        .map_err(|e| io_error(format!("can't create the directory {}", damaged.display()), e))?;
    let mut paths = (1_u32..).map(|n| damaged.join(format!("{name}.{n}")));
    let unused = paths.find(|path| !path.exists());
    Ok(unused.unwrap_or_else(|| damaged.join(name)))
}

/// Moves a damaged file or directory away, durably. Returns where it is now; `None` if it does not exist.
pub(crate) fn move_to_damaged(data_dir: &Path, name: &str) -> Result<Option<PathBuf>> {
    let from = data_dir.join(name);
    if !from.exists() {
        return Ok(None);
    }
    let to = unused_in_damaged(data_dir, name)?;
    fs::rename(&from, &to)
        .and_then(|()| File::open(data_dir)?.sync_all())
        .map_err(|e| io_error(format!("can't move {} to {}", from.display(), to.display()), e))?;
    Ok(Some(to))
}

/// Writes a small file atomically and durably: after a crash it is complete or absent.
pub(crate) fn write_durably(dir: &Path, name: &str, text: &str) -> std::io::Result<()> {
    let temporary = dir.join(format!("{name}.new"));
    let mut file = File::create(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(temporary, dir.join(name))?;
    File::open(dir)?.sync_all()
}

/// Maps an I/O error to the store's kind of error.
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
    fn only_one_process_can_open_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let first = Dir::open(dir.path()).unwrap();
        assert_eq!(Dir::open(dir.path()).err().unwrap().kind(), ErrorKind::Locked);
        drop(first);
        Dir::open(dir.path()).unwrap();
    }

    #[test]
    fn a_directory_of_another_format_is_refused_and_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        for other in ["herald-store 3\n", "herald-store 5\n"] {
            fs::write(dir.path().join("format"), other).unwrap();
            assert_eq!(Dir::open(dir.path()).err().unwrap().kind(), ErrorKind::Corrupt);
            assert_eq!(fs::read_to_string(dir.path().join("format")).unwrap(), other);
        }
    }
}
