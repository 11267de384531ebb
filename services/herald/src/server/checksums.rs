//! The checksums of the files of a backup: a restore must not make an installation of what a disk has changed.

use std::{
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use super::data_dir::LOST_AND_FOUND;

/// Bytes that are read at once.
const BUFFER_BYTES: usize = 1 << 20;

/// A file of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileSum {
    /// Below the directory of the backup.
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
    /// XXH3, 128 bits, hexadecimal: what `xxh128sum` prints.
    xxh3: String,
}

/// Reads all files in a directory, in the order of their paths. What a file system keeps in its topmost directory is no
/// part of a backup, and only root can read it.
pub(super) fn of(dir: &Path) -> Result<Vec<FileSum>> {
    let mut sums = Vec::new();
    add(dir, Path::new(""), &mut sums)?;
    sums.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    Ok(sums)
}

/// Compares the files in a directory with their checksums. Returns a sentence for each damaged one.
pub(crate) fn verify(dir: &Path, sums: &[FileSum]) -> Result<Vec<String>> {
    let mut damage = Vec::new();
    for sum in sums {
        let path = dir.join(&sum.path);
        // A path that is no file, such as a device, may have no end.
        if !path.is_file() {
            damage.push(format!("{} is missing", path.display()));
            continue;
        }
        let found = read(&path, sum.path.clone())?;
        if found.bytes != sum.bytes {
            damage.push(format!(
                "{} has {} bytes, and had {} when the backup was made",
                path.display(),
                found.bytes,
                sum.bytes
            ));
        } else if found != *sum {
            damage.push(format!(
                "{} was changed since the backup was made: its checksum is another one",
                path.display()
            ));
        }
    }
    Ok(damage)
}

fn add(dir: &Path, below: &Path, sums: &mut Vec<FileSum>) -> Result<()> {
    let place = dir.join(below);
    let failed = || format!("can't read the directory {}", place.display());
    for entry in fs::read_dir(&place).with_context(failed)? {
        let entry = entry.with_context(failed)?;
        let path = below.join(entry.file_name());
        if path == Path::new(LOST_AND_FOUND) {
            continue;
        }
        let kind = entry.file_type().with_context(failed)?;
        if kind.is_dir() {
            add(dir, &path, sums)?;
        } else if kind.is_file() {
            sums.push(read(&entry.path(), path)?);
        }
    }
    Ok(())
}

fn read(file: &Path, path: PathBuf) -> Result<FileSum> {
    let failed = || format!("can't read {}", file.display());
    let mut reader = File::open(file).with_context(failed)?;
    let mut buffer = vec![0; BUFFER_BYTES];
    let (mut hash, mut bytes) = (Xxh3::new(), 0);
    loop {
        let count = reader.read(&mut buffer).with_context(failed)?;
        if count == 0 {
            break;
        }
        hash.update(&buffer[..count]);
        bytes += count as u64;
    }
    Ok(FileSum {
        path,
        bytes,
        xxh3: format!("{:032x}", hash.digest128()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_file_system_found_is_no_part_of_a_backup() {
        let dir = tempfile::tempdir().unwrap();
        for name in [LOST_AND_FOUND, "nats/lost+found"] {
            fs::create_dir_all(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("#12"), "1").unwrap();
        }
        let sums = of(dir.path()).unwrap();
        let paths: Vec<&Path> = sums.iter().map(|sum| &*sum.path).collect();
        assert_eq!(paths, [Path::new("nats/lost+found/#12")]);
    }

    #[test]
    fn each_damage_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        for (name, text) in [
            ("a/b/one", "1"),
            ("a/two", "22"),
            ("a/gone", ""),
            ("three", "333"),
        ] {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let sums = of(dir.path()).unwrap();
        assert_eq!(sums.len(), 4, "{sums:?}");
        assert_eq!(verify(dir.path(), &sums).unwrap(), Vec::<String>::new());
        fs::write(dir.path().join("a/b/one"), "2").unwrap();
        fs::write(dir.path().join("a/two"), "222").unwrap();
        fs::remove_file(dir.path().join("a/gone")).unwrap();
        fs::write(dir.path().join("new"), "not of the backup").unwrap();
        let damage = verify(dir.path(), &sums).unwrap().join("\n");
        for named in [
            "a/b/one was changed",
            "a/two has 3 bytes, and had 2",
            "a/gone is missing",
        ] {
            assert!(damage.contains(named), "{damage}");
        }
        assert!(!damage.contains("three") && !damage.contains("new"), "{damage}");
    }

    #[test]
    fn what_the_file_system_has_in_its_topmost_directory_is_no_part_of_a_backup() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["lost+found/#12", "files/lost+found/kept"] {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "1").unwrap();
        }
        let sums = of(dir.path()).unwrap();
        let paths: Vec<_> = sums.iter().map(|sum| sum.path.as_path()).collect();
        assert_eq!(paths, [Path::new("files/lost+found/kept")]);
    }
}
