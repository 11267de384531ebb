//! Free disk space, checked before each write.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::{Error, ErrorKind, Result};

/// How long a measurement of the free space is reused.
const MEASUREMENT_TTL: Duration = Duration::from_millis(250);

/// Refuses writes while the disk is nearly full.
///
/// If the disk fills up during a journal write, fjall refuses writes until it is opened again. If writes are refused
/// earlier, they succeed again as soon as space is free.
pub(crate) struct Space {
    dir: PathBuf,
    free_mb_min: u64,
    measured: Mutex<Option<(Instant, u64)>>,
}

impl Space {
    /// Measures the file system of `dir`. `free_mb_min` is in MiB.
    pub(crate) fn new(dir: &Path, free_mb_min: u64) -> Self {
        Self {
            dir: dir.into(),
            free_mb_min,
            measured: Mutex::new(None),
        }
    }

    /// [`Full`](ErrorKind::Full) if less than `free_mb_min` is free.
    pub(crate) fn check(&self) -> Result<()> {
        self.check_free(self.free_mb_min)
    }

    /// [`Full`](ErrorKind::Full) if less than twice `free_mb_min` is free. Accepting new posts stops at this level, so
    /// that accepted posts can still be written.
    pub(crate) fn check_for_more(&self) -> Result<()> {
        self.check_free(self.free_mb_min.saturating_mul(2))
    }

    /// The error reaches callers of the API, so it has no path.
    fn check_free(&self, wanted_mb: u64) -> Result<()> {
        let free_mb = self.free_mb();
        if free_mb >= wanted_mb {
            return Ok(());
        }
        let needed = if wanted_mb == self.free_mb_min {
            "(store.disk_free_mb_min)"
        } else {
            "for new posts (twice store.disk_free_mb_min)"
        };
        let message = format!(
            "the disk of the data directory is too full: {free_mb} MiB are free and {wanted_mb} MiB are needed \
             {needed}; free some space or enlarge the disk"
        );
        Err(Error::new(ErrorKind::Full, message))
    }

    fn free_mb(&self) -> u64 {
        let mut measured = self.measured.lock();
        if let Some((at, free_mb)) = *measured
            && at.elapsed() < MEASUREMENT_TTL
        {
            return free_mb;
        }
        // If the free space can't be measured, the write itself reports a full disk.
        let free_mb =
            rustix::fs::statvfs(&self.dir).map_or(u64::MAX, |s| s.f_bavail.saturating_mul(s.f_frsize) >> 20);
        *measured = Some((Instant::now(), free_mb));
        free_mb
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_free_space_is_full() {
        let dir = tempfile::tempdir().unwrap();
        Space::new(dir.path(), 0).check().unwrap();
        let full = Space::new(dir.path(), 1 << 40);
        let error = full.check().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Full);
        assert!(
            error.to_string().ends_with(
                "MiB are free and 1099511627776 MiB are needed (store.disk_free_mb_min); free some space or enlarge the \
                 disk"
            ),
            "{error}"
        );
        let error = full.check_for_more().unwrap_err().to_string();
        assert!(
            error.contains("2199023255552 MiB are needed for new posts (twice store.disk_free_mb_min)"),
            "{error}"
        );
    }
}
