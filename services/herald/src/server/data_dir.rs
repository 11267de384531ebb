//! The data directory is private: it has the secrets of webhooks, the VAPID key, and the text of all posts.

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::Path,
};

use anyhow::{Context as _, Result, bail};
use rustix::{fs::Mode, process};

/// Permissions of the group and of others.
const OTHERS: u32 = 0o077;

/// Creates the directory, for the user of this process alone, and makes one that exists private, with all that is in it.
/// From then on the process, and nats-server, which it starts, create files that only this user can read.
pub(super) fn prepare(dir: &Path) -> Result<()> {
    process::umask(Mode::from_raw_mode(OTHERS));
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("can't create the data directory {}", dir.display()))?;
    let found =
        fs::metadata(dir).with_context(|| format!("can't read the data directory {}", dir.display()))?;
    let user = process::geteuid().as_raw();
    if found.uid() != user {
        bail!(
            "the data directory {} belongs to the user with the id {}, and herald runs as the one with the id {user}: run \
             herald as the owner, change the owner (chown -R {user}), or use another directory",
            dir.display(),
            found.uid(),
        );
    }
    if found.mode() & OTHERS == 0 {
        return Ok(());
    }
    let tightened = tighten(dir).with_context(|| {
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

/// Refuses to make a store beside the streams of a mesh whose store is gone: its messages have the keys of users that only
/// that store knows, and a new one would give the same keys to others.
pub(super) fn check_store_of_streams(dir: &Path) -> Result<()> {
    let streams = dir.join("nats");
    if dir.join("format").exists() || !has_streams(&streams, STREAMS_DEPTH_MAX) {
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

/// Takes the permissions of others from a file or directory, and from all that is in it. Returns the number of changes.
fn tighten(path: &Path) -> io::Result<u64> {
    let metadata = fs::symlink_metadata(path)?;
    // The directory itself may be a link. A link in it leads to what is not Herald's.
    let metadata = if metadata.is_symlink() {
        fs::metadata(path)?
    } else {
        metadata
    };
    let mut changed = 0;
    if metadata.mode() & OTHERS != 0 {
        fs::set_permissions(path, Permissions::from_mode(metadata.mode() & 0o7700))?;
        if fs::metadata(path)?.mode() & OTHERS != 0 {
            return Err(io::Error::other(format!(
                "{} is still open to others",
                path.display()
            )));
        }
        changed += 1;
    }
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_file() || kind.is_dir() {
                changed += tighten(&entry.path())?;
            }
        }
    }
    Ok(changed)
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

        let (inner, file) = (dir.join("inner"), dir.join("inner/file"));
        fs::create_dir(&inner).unwrap();
        fs::write(&file, "secret").unwrap();
        assert_eq!((mode(&inner), mode(&file)), (0o700, 0o600));
        let outside = parent.path().join("outside");
        fs::write(&outside, "not Herald's").unwrap();
        std::os::unix::fs::symlink(&outside, inner.join("link")).unwrap();
        for (path, open) in [(&dir, 0o755), (&inner, 0o750), (&file, 0o644), (&outside, 0o644)] {
            fs::set_permissions(path, Permissions::from_mode(open)).unwrap();
        }
        prepare(&dir).unwrap();
        assert_eq!((mode(&dir), mode(&inner), mode(&file)), (0o700, 0o700, 0o600));
        assert_eq!(mode(&outside), 0o644);
    }

    #[test]
    fn a_directory_of_another_user_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        if std::os::unix::fs::chown(dir.path(), Some(12_345), None).is_err() {
            eprintln!("skipped: only root can give a directory away");
            return;
        }
        let refused = prepare(dir.path()).unwrap_err().to_string();
        assert!(
            refused.contains("12345") && refused.contains("chown"),
            "{refused}"
        );
    }
}
