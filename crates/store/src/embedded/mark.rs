//! The mark of a move to the cluster engine, in the file `moved` of the data directory.
//!
//! A store that is being moved, or was, must not be used: what it accepts would not be in the new one.

use std::{fs, path::Path};

use super::dir::{io_error, write_durably};
use crate::{Error, ErrorKind, Result};

const FILE: &str = "moved";
const FORMAT: &str = "herald-moved 1";

/// A mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mark {
    /// Identifies the move in the database.
    pub(crate) id: String,
    /// Whether the move is finished.
    pub(crate) is_finished: bool,
}

impl Mark {
    /// The mark of a move that begins.
    pub(crate) fn new(id: String) -> Self {
        Self {
            id,
            is_finished: false,
        }
    }

    /// The same mark, finished.
    pub(crate) fn finished(&self) -> Self {
        Self {
            id: self.id.clone(),
            is_finished: true,
        }
    }

    /// Reads the mark of a data directory.
    pub(crate) fn read(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error(format!("can't read {}", path.display()), error)),
        };
        let words: Vec<&str> = text.lines().collect();
        match words[..] {
            [FORMAT, id, state @ ("begun" | "finished")] => Ok(Some(Self {
                id: id.into(),
                is_finished: state == "finished",
            })),
            _ => Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "{} is not a mark that this version of Herald wrote: use the version that moved this store",
                    path.display()
                ),
            )),
        }
    }

    /// Writes the mark durably.
    pub(crate) fn write(&self, dir: &Path) -> Result<()> {
        let state = if self.is_finished { "finished" } else { "begun" };
        write_durably(dir, FILE, &format!("{FORMAT}\n{}\n{state}\n", self.id))
            .map_err(|error| io_error(format!("can't write {}", dir.join(FILE).display()), error))
    }

    /// Removes the mark.
    pub(crate) fn remove(dir: &Path) -> Result<()> {
        let path = dir.join(FILE);
        fs::remove_file(&path).map_err(|error| io_error(format!("can't remove {}", path.display()), error))
    }

    /// The error for those who would use the store.
    pub(crate) fn refusal(&self, dir: &Path) -> Error {
        let (dir, file) = (dir.display(), dir.join(FILE));
        let file = file.display();
        let message = if self.is_finished {
            format!(
                "the data in {dir} was moved to PostgreSQL by `herald migrate`: start with --store and --timelines; to go \
                 back to the data as it was then, and give up all that the new store has accepted since, remove the file {file}"
            )
        } else {
            format!(
                "the data in {dir} is being moved to PostgreSQL: run `herald migrate` again until it is finished; to give \
                 up the move instead, empty the database (`DROP SCHEMA herald CASCADE`) and remove the file {file}"
            )
        };
        Error::new(ErrorKind::Invalid, message)
    }
}
