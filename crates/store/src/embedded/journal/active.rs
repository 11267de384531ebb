//! Fsync of the journal that fjall writes to.

use std::{
    fs::File,
    path::PathBuf,
    time::{Duration, Instant},
};

use fjall::PersistMode;

use crate::{
    Result,
    embedded::{database::map_err, dir::io_error, fault::is_out_of_descriptors},
};

/// How long a commit waits while the process has too many open files. Other files are closed meanwhile, or the limit is
/// too low.
const DESCRIPTORS_WAIT_MAX: Duration = Duration::from_secs(30);

/// Pause between two attempts to open a file.
const DESCRIPTORS_PAUSE: Duration = Duration::from_millis(100);

/// The active journal of fjall, synced through a file descriptor of its own: fjall's own sync holds a lock that every
/// commit would wait for, on a thread of the async runtime.
pub(crate) struct ActiveJournal {
    dir: PathBuf,
    current: Option<(u64, File)>,
}

impl ActiveJournal {
    /// The active journal in the directory of a database.
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir, current: None }
    }

    /// Makes every batch applied before this call durable. fjall syncs a journal itself before it opens the next one.
    pub(crate) fn sync(&mut self, fjall: &fjall::Database) -> Result<()> {
        fjall.persist(PersistMode::Buffer).map_err(map_err)?;
        self.sync_newest()
            .map_err(|e| io_error("can't sync the journal".into(), e))
    }

    fn sync_newest(&mut self) -> std::io::Result<()> {
        let since = Instant::now();
        let mut is_told = false;
        let (id, file) = loop {
            match self.open_newest() {
                // Nothing is lost yet: only a failed fsync loses what was written.
                Err(error) if is_out_of_descriptors(&error) && since.elapsed() < DESCRIPTORS_WAIT_MAX => {
                    if !std::mem::replace(&mut is_told, true) {
                        tracing::warn!(
                            dir = %self.dir.display(),
                            "too many open files: a commit waits until others are closed; raise the limit (ulimit -n)"
                        );
                    }
                    std::thread::sleep(DESCRIPTORS_PAUSE);
                }
                opened => break opened?,
            }
        };
        file.sync_data()?;
        self.current = Some((id, file));
        Ok(())
    }

    fn open_newest(&mut self) -> std::io::Result<(u64, File)> {
        let mut newest = None;
        for entry in std::fs::read_dir(&self.dir)? {
            let name = entry?.file_name();
            let id = name
                .to_str()
                .and_then(|n| n.strip_suffix(".jnl"))
                .and_then(|n| n.parse::<u64>().ok());
            newest = newest.max(id);
        }
        let id = newest.ok_or_else(|| std::io::Error::other("the directory has no journal file (*.jnl)"))?;
        match self.current.take() {
            Some((of, file)) if of == id => Ok((id, file)),
            _ => Ok((id, File::open(self.dir.join(format!("{id}.jnl")))?)),
        }
    }
}
