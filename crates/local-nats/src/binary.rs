//! A nats-server that runs and is new enough.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::command::{Cancel, CommandError, run};
use crate::error::{Error, Result};
use crate::locate::BinarySource;
use crate::version::{OLDEST, Version};

const VERSION_LIMIT: Duration = Duration::from_secs(20);

/// A nats-server that was found, runs, and is new enough.
#[derive(Debug, Clone)]
pub struct Binary {
    path: PathBuf,
    version: Version,
    origin: BinarySource,
}

impl Binary {
    /// Asks the file for its version.
    pub(crate) fn check(path: &Path, origin: BinarySource, cancel: &Cancel) -> Result<Self> {
        let not_nats = |reason| Error::NotNats {
            path: path.into(),
            origin,
            reason,
        };
        // Relative names would be searched for on the PATH, and mean another file once the directory changes.
        let path = path.canonicalize().map_err(|error| not_nats(error.to_string()))?;
        let answer = match run(Command::new(&path).arg("--version"), VERSION_LIMIT, cancel) {
            Ok(answer) => answer,
            Err(CommandError::Interrupted) => return Err(Error::Interrupted),
            Err(CommandError::Failed(reason)) => return Err(not_nats(reason)),
        };
        let version = answer
            .trim()
            .strip_prefix("nats-server: ")
            .and_then(Version::parse)
            .ok_or_else(|| not_nats(format!("it answers --version with {:?}", answer.trim())))?;
        if version < OLDEST {
            return Err(Error::TooOld {
                path,
                origin,
                found: version,
            });
        }
        Ok(Self {
            path,
            version,
            origin,
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Who named it.
    pub fn origin(&self) -> BinarySource {
        self.origin
    }
}
