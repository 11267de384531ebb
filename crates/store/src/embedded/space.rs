//! Free disk space, looked at before it runs out.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::{Error, ErrorKind, Result};

/// How long a look at the file system is good for.
const FRESH: Duration = Duration::from_millis(250);

/// Refuses writes while the disk is nearly full.
///
/// Running out of space in the middle of a journal write leaves fjall unable to write until it is opened again. Refused in
/// time, writes simply succeed again when there is room.
pub(crate) struct Space {
    dir: PathBuf,
    free_mb_min: u64,
    looked: Mutex<Option<(Instant, u64)>>,
}

impl Space {
    /// Watches the file system that holds `dir`.
    pub(crate) fn new(dir: &Path, free_mb_min: u64) -> Self {
        Self {
            dir: dir.into(),
            free_mb_min,
            looked: Mutex::new(None),
        }
    }

    /// [`Full`](ErrorKind::Full) when less than the wanted space is free.
    pub(crate) fn check(&self) -> Result<()> {
        self.check_free(self.free_mb_min)
    }

    /// [`Full`](ErrorKind::Full) when less than twice the wanted space is free: no more should be accepted, so that what was
    /// accepted can still be written.
    pub(crate) fn check_for_more(&self) -> Result<()> {
        self.check_free(self.free_mb_min.saturating_mul(2))
    }

    fn check_free(&self, wanted_mb: u64) -> Result<()> {
        let free_mb = self.free_mb();
        if free_mb >= wanted_mb {
            return Ok(());
        }
        let dir = self.dir.display();
        let message = format!("only {free_mb} MiB are free at {dir}, {wanted_mb} wanted");
        Err(Error::new(ErrorKind::Full, message))
    }

    fn free_mb(&self) -> u64 {
        let mut looked = self.looked.lock();
        if let Some((at, free_mb)) = *looked
            && at.elapsed() < FRESH
        {
            return free_mb;
        }
        // A file system that doesn't tell is taken as one with room: the write itself will say.
        let free_mb =
            rustix::fs::statvfs(&self.dir).map_or(u64::MAX, |s| s.f_bavail.saturating_mul(s.f_frsize) >> 20);
        *looked = Some((Instant::now(), free_mb));
        free_mb
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wanting_more_than_there_is_refuses() {
        let dir = tempfile::tempdir().unwrap();
        Space::new(dir.path(), 0).check().unwrap();
        assert_eq!(
            Space::new(dir.path(), u64::MAX).check().unwrap_err().kind(),
            ErrorKind::Full
        );
    }
}
