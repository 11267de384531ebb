//! Copies of the parts of a data directory, which come back older.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The parts of a data directory: the broker's, and all others, which are the store's.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Part {
    Broker,
    Store,
}

impl Part {
    fn has(self, entry: &Path) -> bool {
        (entry.file_name().unwrap() == "nats") == (self == Self::Broker)
    }

    pub(super) fn save(self, data: &Path) -> Backup {
        let dir = tempfile::tempdir().unwrap();
        for entry in entries(data).filter(|entry| self.has(entry)) {
            copy(&entry, &dir.path().join(entry.file_name().unwrap()));
        }
        Backup { part: self, dir }
    }
}

pub(super) struct Backup {
    part: Part,
    dir: tempfile::TempDir,
}

impl Backup {
    /// Replaces the part of a data directory by what was saved.
    pub(super) fn restore(&self, data: &Path) {
        for entry in entries(data).filter(|entry| self.part.has(entry)) {
            if entry.is_dir() {
                fs::remove_dir_all(entry).unwrap();
            } else {
                fs::remove_file(entry).unwrap();
            }
        }
        for entry in entries(self.dir.path()) {
            copy(&entry, &data.join(entry.file_name().unwrap()));
        }
    }
}

pub(super) fn entries(dir: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path())
}

pub(super) fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        fs::create_dir(to).unwrap();
        for entry in entries(from) {
            copy(&entry, &to.join(entry.file_name().unwrap()));
        }
    } else {
        fs::copy(from, to).unwrap();
    }
}
