//! The data directory is private: it has the secrets of webhooks, the VAPID key, the storage key, and the text of all posts.

use std::{
    fs::{self, DirBuilder, File, Metadata, Permissions},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::{fs::Mode, process};

use super::{backup::MANIFEST as BACKUP, root_key};

/// Permissions of the group and of others.
const OTHERS: u32 = 0o077;

/// What some file systems have in their topmost directory.
pub(super) const LOST_AND_FOUND: &str = "lost+found";

/// What a data directory can have before it has a store: an interrupted first start, the streams of processes that share
/// a store, files that were put there before the first start, and what file systems have.
const WITHOUT_STORE: [&str; 15] = [
    "analytics",
    "contents",
    "contents.new",
    "control.sock",
    "format.new",
    "lock",
    LOST_AND_FOUND,
    "nats",
    "process.json",
    root_key::FILE,
    "root-key.new",
    "storage.key",
    "storage.key.new",
    "tls",
    "vapid.key",
];

/// What a data directory has with its store.
const WITH_STORE: [&str; 9] = [
    "damaged",
    "dead_letters",
    "format",
    "moved",
    "moved.new",
    "rebuild-timelines",
    "records",
    "timelines",
    "totals",
];

/// The file that says that a restore did not finish.
const RESTORING: &str = "restoring";

/// Lets this process, and nats-server, which it starts, create files that only their user can read.
pub(crate) fn create_private_files() {
    process::umask(Mode::from_raw_mode(OTHERS));
}

/// Checks that a directory is a data directory or can become one, and changes nothing. `has_streams`: its streams belong
/// to its store.
pub(super) fn check(dir: &Path, has_streams: bool) -> Result<()> {
    let found = match fs::metadata(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found.with_context(|| format!("can't read the data directory {}", dir.display()))?,
    };
    ensure!(found.is_dir(), "{} is not a directory", dir.display());
    let user = process::geteuid().as_raw();
    if found.uid() != user {
        bail!(
            "the data directory {} belongs to the user with the id {}, and herald runs as the one with the id {user}: run \
             herald as the owner, change the owner (chown -R {user}), or use another directory",
            dir.display(),
            found.uid(),
        );
    }
    if dir.join(RESTORING).exists() {
        bail!(
            "the restore into {dir} did not finish: remove {dir} and run `herald restore` again",
            dir = dir.display()
        );
    }
    let dir_resolved = resolved(dir);
    if let Some(backup) = dir_resolved
        .ancestors()
        .take(2)
        .find(|dir| dir.join(BACKUP).exists())
    {
        bail!(
            "{} is a backup, or a part of one, and no data directory: make one of it with `herald restore {} --data-dir NEW`",
            dir.display(),
            backup.display()
        );
    }
    if herald_store::embedded::has_store(dir)? {
        return Ok(());
    }
    let names =
        fs::read_dir(dir).with_context(|| format!("can't read the data directory {}", dir.display()))?;
    for entry in names {
        let name = entry?.file_name();
        if !WITHOUT_STORE.iter().any(|own| name == *own) {
            bail!(
                "{} is not a data directory of Herald and not empty (it has {}): choose an empty or a new one",
                dir.display(),
                name.display()
            );
        }
    }
    if has_streams {
        check_store_of_streams(dir)?;
    }
    Ok(())
}

/// Checks that a directory has a store, and changes nothing.
pub(super) fn check_store(dir: &Path, has_streams: bool) -> Result<()> {
    ensure!(
        dir.exists(),
        "there is no data directory {}: name it with --data-dir",
        dir.display()
    );
    check(dir, has_streams)?;
    ensure!(
        herald_store::embedded::has_store(dir)?,
        "{} is not a data directory of `herald up`: it has no store; name the right one with --data-dir",
        dir.display()
    );
    Ok(())
}

/// Checks that a directory can be made: its parent exists.
pub(super) fn check_parent(dir: &Path) -> Result<()> {
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
    if let Some(parent) = parent.filter(|parent| !parent.is_dir()) {
        bail!(
            "the directory {} doesn't exist: create it, or mount its disk",
            parent.display()
        );
    }
    Ok(())
}

/// The directory without links, and as an absolute path. What doesn't exist is kept as it is.
fn resolved(dir: &Path) -> PathBuf {
    let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.into());
    let mut parents = dir.ancestors();
    let resolved = parents.find_map(|parent| {
        let rest = dir.strip_prefix(parent).ok()?;
        Some(parent.canonicalize().ok()?.join(rest))
    });
    resolved.unwrap_or_else(|| dir.clone())
}

/// Whether a directory is another one, or in it.
pub(super) fn is_in(dir: &Path, other: &Path) -> bool {
    resolved(dir).starts_with(resolved(other))
}

/// Creates the directory, for the user of this process alone, and makes one that exists private, with all that Herald has
/// in it. Call [`check`] before.
pub(super) fn prepare(dir: &Path) -> Result<()> {
    create_private_files();
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("can't create the data directory {}", dir.display()))?;
    let found =
        fs::metadata(dir).with_context(|| format!("can't read the data directory {}", dir.display()))?;
    if found.mode() & OTHERS == 0 {
        return Ok(());
    }
    let tightened = tighten_own(dir).with_context(|| {
        format!(
            "other users can read the data directory {}, and its permissions can't be changed: use a directory on a file \
             system that has permissions",
            dir.display()
        )
    })?;
    tracing::warn!(
        dir = %dir.display(),
        files = tightened,
        "other users could read the data directory; now it is private"
    );
    Ok(())
}

/// Marks a new data directory as incomplete, until [`restored`].
pub(super) fn begin_restore(dir: &Path) -> Result<()> {
    let path = dir.join(RESTORING);
    let written = File::create(&path)
        .and_then(|file| file.sync_all())
        .and_then(|()| File::open(dir)?.sync_all());
    written.with_context(|| format!("can't write {}", path.display()))
}

/// Removes the mark of [`begin_restore`].
pub(super) fn restored(dir: &Path) -> Result<()> {
    let path = dir.join(RESTORING);
    let removed = fs::remove_file(&path).and_then(|()| File::open(dir)?.sync_all());
    removed.with_context(|| format!("can't remove {}", path.display()))
}

/// Refuses to make a store beside the streams of a mesh whose store is gone: its messages have the keys of users that only
/// that store knows, and a new one would give the same keys to others.
fn check_store_of_streams(dir: &Path) -> Result<()> {
    let streams = dir.join("nats");
    if !has_streams(&streams, STREAMS_DEPTH_MAX) {
        return Ok(());
    }
    bail!(
        "the data directory {} has the streams of a mesh ({}), and its store is gone: put the store back or restore the \
         whole directory from a backup; to give up all data, remove the whole directory",
        dir.display(),
        streams.display()
    );
}

/// Depth of the directory `streams` of nats-server: `jetstream/jetstream/ACCOUNT/streams`.
const STREAMS_DEPTH_MAX: u32 = 4;

fn has_streams(dir: &Path, depth_max: u32) -> bool {
    let Ok(entries) = fs::read_dir(dir) else {
        return false;
    };
    let mut directories = entries.flatten().filter(|entry| entry.path().is_dir());
    directories.any(|entry| {
        let is_one = dir.ends_with("streams") && entry.file_name() == "POSTS";
        is_one || (depth_max > 0 && has_streams(&entry.path(), depth_max - 1))
    })
}

/// Takes the permissions of others from the data directory, and from all that Herald has in it. Returns the number of
/// changes.
fn tighten_own(dir: &Path) -> io::Result<u64> {
    let mut changed = take_from_others(dir, &fs::metadata(dir)?)?;
    for name in WITHOUT_STORE
        .iter()
        .chain(&WITH_STORE)
        .filter(|name| **name != LOST_AND_FOUND)
    {
        let path = dir.join(name);
        if fs::symlink_metadata(&path).is_ok_and(|found| found.is_file() || found.is_dir()) {
            changed += tighten(&path)?;
        }
    }
    Ok(changed)
}

/// Takes the permissions of others from a file or directory, and from all that is in it. Returns the number of changes.
fn tighten(path: &Path) -> io::Result<u64> {
    let metadata = fs::symlink_metadata(path)?;
    let mut changed = take_from_others(path, &metadata)?;
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            // A link leads to what is not Herald's.
            if kind.is_file() || kind.is_dir() {
                changed += tighten(&entry.path())?;
            }
        }
    }
    Ok(changed)
}

fn take_from_others(path: &Path, found: &Metadata) -> io::Result<u64> {
    if found.mode() & OTHERS == 0 {
        return Ok(0);
    }
    fs::set_permissions(path, Permissions::from_mode(found.mode() & 0o7700))?;
    if fs::metadata(path)?.mode() & OTHERS != 0 {
        return Err(io::Error::other(format!(
            "{} is still open to others",
            path.display()
        )));
    }
    Ok(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn a_new_directory_is_private_and_an_open_one_is_made_so() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("a/data");
        prepare(&dir).unwrap();
        assert_eq!(mode(&dir), 0o700);

        let (inner, file) = (dir.join("records"), dir.join("records/file"));
        fs::create_dir(&inner).unwrap();
        let other = dir.join("other");
        fs::write(&other, "not Herald's").unwrap();
        fs::write(&file, "secret").unwrap();
        assert_eq!((mode(&inner), mode(&file)), (0o700, 0o600));
        let outside = parent.path().join("outside");
        fs::write(&outside, "not Herald's").unwrap();
        std::os::unix::fs::symlink(&outside, inner.join("link")).unwrap();
        let open = [
            (&dir, 0o755),
            (&inner, 0o750),
            (&file, 0o644),
            (&outside, 0o644),
            (&other, 0o644),
        ];
        for (path, open) in open {
            fs::set_permissions(path, Permissions::from_mode(open)).unwrap();
        }
        prepare(&dir).unwrap();
        assert_eq!((mode(&dir), mode(&inner), mode(&file)), (0o700, 0o700, 0o600));
        assert_eq!((mode(&outside), mode(&other)), (0o644, 0o644));
    }

    #[test]
    fn a_directory_of_another_user_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        if std::os::unix::fs::chown(dir.path(), Some(12_345), None).is_err() {
            eprintln!("skipped: only root can give a directory away");
            return;
        }
        let refused = check(dir.path(), true).unwrap_err().to_string();
        assert!(
            refused.contains("12345") && refused.contains("chown"),
            "{refused}"
        );
    }

    #[test]
    fn a_directory_is_in_itself_and_in_its_parents() {
        let parent = tempfile::tempdir().unwrap();
        let data = parent.path().join("data");
        fs::create_dir(&data).unwrap();
        std::os::unix::fs::symlink(&data, parent.path().join("link")).unwrap();
        assert!(is_in(&data, &data) && is_in(&data.join("new/backup"), &data));
        assert!(is_in(&parent.path().join("link/backup"), &data));
        assert!(!is_in(&parent.path().join("data2"), &data) && !is_in(parent.path(), &data));
    }
}
