//! A usable nats-server executable.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::command::{Cancel, CommandError, run};
use crate::error::{Error, Result};
use crate::locate::BinarySource;
use crate::version::{OLDEST, Version};

const VERSION_TIMEOUT: Duration = Duration::from_secs(20);

/// A nats-server executable that runs on this machine and is new enough.
#[derive(Debug, Clone)]
pub struct Binary {
    path: PathBuf,
    version: Version,
    origin: BinarySource,
}

impl Binary {
    /// Runs the file with `--version` and checks the version.
    pub(crate) fn check(path: &Path, origin: BinarySource, cancel: &Cancel) -> Result<Self> {
        let not_nats = |reason| Error::NotNats {
            path: path.into(),
            origin,
            reason,
        };
        // A relative path would be searched for on the PATH, and would name another file in another working directory.
        let path = path.canonicalize().map_err(|error| not_nats(error.to_string()))?;
        let answer = match run(Command::new(&path).arg("--version"), VERSION_TIMEOUT, cancel) {
            Ok(answer) => answer,
            Err(CommandError::Interrupted) => return Err(Error::Interrupted),
            Err(CommandError::Failed(reason)) => return Err(not_nats(reason)),
        };
        let version = answer
            .trim()
            .strip_prefix("nats-server: ")
            .and_then(Version::parse)
            .ok_or_else(|| not_nats(format!("its reply to --version is {:?}", answer.trim())))?;
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

    /// Path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Version of the server.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Where the file was found.
    pub fn origin(&self) -> BinarySource {
        self.origin
    }
}
