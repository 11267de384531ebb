//! The server's log file: everything that it writes to its standard error.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// A log larger than this is set aside at the next start, so that the two together are bounded over many starts.
const BYTES_MAX: u64 = 16 << 20;

/// How much of the log an error shows.
const TAIL_BYTES_MAX: u64 = 8 << 10;
const TAIL_LINES_MAX: usize = 20;

/// The log of one run of the server.
#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
    /// Where this run's lines begin.
    start: u64,
}

impl Log {
    /// Opens the log for one more run, and returns the file that the child writes to.
    pub(crate) fn open(path: PathBuf) -> io::Result<(Self, File)> {
        if path.metadata().is_ok_and(|meta| meta.len() > BYTES_MAX) {
            std::fs::rename(&path, path.with_extension("log.1"))?;
        }
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        let start = file.metadata()?.len();
        Ok((Self { path, start }, file))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The last lines of this run.
    pub(crate) fn tail(&self) -> String {
        match self.read_tail() {
            Ok(tail) => tail,
            // It stands in an error that has its own cause; that the log is unreadable is one more line of it.
            Err(error) => format!("(the log can't be read: {error})"),
        }
    }

    fn read_tail(&self) -> io::Result<String> {
        let mut file = File::open(&self.path)?;
        let end = file.metadata()?.len();
        file.seek(SeekFrom::Start(
            self.start.max(end.saturating_sub(TAIL_BYTES_MAX)),
        ))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES_MAX).read_to_end(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<_> = text.lines().collect();
        Ok(lines[lines.len().saturating_sub(TAIL_LINES_MAX)..].join("\n"))
    }
}
