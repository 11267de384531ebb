//! The server's log file, which receives its standard output and standard error.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Size above which the log is rotated at the next start, bytes. One rotated log is kept.
const ROTATE_BYTES: u64 = 16 << 20;

/// Maximum part of the log in an error, bytes and lines.
const TAIL_BYTES_MAX: u64 = 8 << 10;
const TAIL_LINES_MAX: usize = 20;

/// The log of one start of the server.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    /// Offset of the first line of this start, bytes.
    start: u64,
}

impl Log {
    /// Opens the log for a start and returns the file for the child's output.
    pub fn open(path: PathBuf) -> io::Result<(Self, File)> {
        if path.metadata().is_ok_and(|meta| meta.len() > ROTATE_BYTES) {
            std::fs::rename(&path, path.with_extension("log.1"))?;
        }
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        let start = file.metadata()?.len();
        Ok((Self { path, start }, file))
    }

    /// Path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The last lines since the start.
    pub fn tail(&self) -> String {
        match self.read_tail() {
            Ok(tail) => tail,
            // The text is part of an error with its own cause, so a failed read only replaces the log lines.
            Err(error) => format!("(can't read the log: {error})"),
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
