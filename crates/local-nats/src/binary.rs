//! Where the nats-server comes from.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::command::{Cancel, Failure, run};
use crate::error::{Error, Result};
use crate::fetch::{self, Fetcher, OnProgress};

/// The oldest nats-server that Herald runs on.
pub(crate) const OLDEST: Version = Version {
    major: 2,
    minor: 11,
    patch: 0,
};

const VERSION_LIMIT: Duration = Duration::from_secs(20);

/// A version of nats-server, without what may follow it (`-RC.1`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The first number.
    pub major: u32,
    /// The second number.
    pub minor: u32,
    /// The third number.
    pub patch: u32,
}

impl Version {
    /// Reads `2.15.2`, `v2.15.2` and `2.15.2-RC.1`.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.strip_prefix('v').unwrap_or(text);
        let mut numbers = text.split(['-', '+']).next()?.split('.').map(str::parse);
        match (numbers.next(), numbers.next(), numbers.next(), numbers.next()) {
            (Some(Ok(major)), Some(Ok(minor)), Some(Ok(patch)), None) => Some(Self { major, minor, patch }),
            _ => None,
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// Who named the nats-server that is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// The caller, by [`Locate::explicit`].
    Explicit,
    /// `$NATS_SERVER`.
    Environment,
    /// A directory of the PATH.
    Path,
    /// Herald's cache, filled earlier.
    Cache,
    /// Fetched just now, into the cache.
    Fetched(Fetcher),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Explicit => f.write_str("the configuration"),
            Self::Environment => f.write_str("$NATS_SERVER"),
            Self::Path => f.write_str("the PATH"),
            Self::Cache => f.write_str("the cache"),
            Self::Fetched(fetcher) => write!(f, "fetched by {fetcher}"),
        }
    }
}

/// Where to look for a nats-server. [`Locate::default`] reads the environment; a test fills in what it wants.
#[derive(Debug, Clone)]
pub struct Locate {
    /// The file to use, whatever else there is.
    pub explicit: Option<PathBuf>,
    /// The file that `$NATS_SERVER` names.
    pub environment: Option<PathBuf>,
    /// The directories to search, as in `$PATH`.
    pub path: Option<OsString>,
    /// The directory that fetched servers are kept in: `$HERALD_CACHE`, or `herald` in the user's cache directory
    /// (`$XDG_CACHE_HOME` or `~/.cache`).
    pub cache: Option<PathBuf>,
    /// The ways of fetching one, in the order in which they are tried; empty to stay off the network.
    pub fetchers: Vec<Fetcher>,
    /// Where the programs are that a fetch uses, as in `$PATH`.
    pub tools: Option<OsString>,
    /// Told of each step of a fetch, beside the log.
    pub progress: OnProgress,
}

impl Default for Locate {
    fn default() -> Self {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let cache = variable("HERALD_CACHE").map(PathBuf::from).or_else(|| {
            let user = variable("XDG_CACHE_HOME")
                .map(PathBuf::from)
                .or_else(|| variable("HOME").map(|home| PathBuf::from(home).join(".cache")));
            user.map(|user| user.join("herald"))
        });
        Self {
            explicit: None,
            environment: variable("NATS_SERVER").map(PathBuf::from),
            path: variable("PATH"),
            cache,
            fetchers: Fetcher::ALL.to_vec(),
            tools: variable("PATH"),
            progress: OnProgress::default(),
        }
    }
}

impl Locate {
    /// Uses this file and nothing else.
    pub fn exactly(path: impl Into<PathBuf>) -> Self {
        Self {
            explicit: Some(path.into()),
            ..Self::default()
        }
    }
}

/// A nats-server that was found, runs, and is new enough.
#[derive(Debug, Clone)]
pub struct Binary {
    path: PathBuf,
    version: Version,
    origin: Origin,
}

impl Binary {
    /// Finds a nats-server: the explicit one, `$NATS_SERVER`, the PATH, the cache, and at last fetches one into the
    /// cache, once for all processes that look for it at the same time.
    ///
    /// One that was named (explicitly or by `$NATS_SERVER`) and is missing or too old is an error. One on the PATH
    /// that is too old, as distributions have them, is passed over with a warning.
    pub async fn locate(locate: Locate) -> Result<Self> {
        let cancel = Cancel::default();
        let _guard = cancel.on_drop();
        tokio::task::spawn_blocking(move || Self::locate_blocking(&locate, &cancel))
            .await
            .map_err(|error| Error::Io {
                action: "search for a nats-server".into(),
                source: error.into(),
            })?
    }

    fn locate_blocking(locate: &Locate, cancel: &Cancel) -> Result<Self> {
        if let Some(path) = &locate.explicit {
            return Self::named(path, Origin::Explicit, cancel);
        }
        if let Some(path) = &locate.environment {
            return Self::named(path, Origin::Environment, cancel);
        }
        if let Some(found) = Self::on_path(locate, cancel)? {
            return Ok(found);
        }
        let Some(cache) = &locate.cache else {
            return Err(Error::Unavailable { attempts: Vec::new() });
        };
        match fetch::cached(cache, cancel)? {
            Some(found) => Ok(found),
            None => fetch::fetch(locate, cache, cancel),
        }
    }

    fn named(path: &Path, origin: Origin, cancel: &Cancel) -> Result<Self> {
        if !path.is_file() {
            return Err(Error::Missing {
                path: path.into(),
                origin,
            });
        }
        Self::check(path, origin, cancel)
    }

    fn on_path(locate: &Locate, cancel: &Cancel) -> Result<Option<Self>> {
        for dir in locate.path.iter().flat_map(std::env::split_paths) {
            // An empty entry means the current directory, where a server that is found is rather an accident.
            let path = dir.join("nats-server");
            if dir.as_os_str().is_empty() || !path.is_file() {
                continue;
            }
            match Self::check(&path, Origin::Path, cancel) {
                Ok(found) => return Ok(Some(found)),
                Err(Error::Interrupted) => return Err(Error::Interrupted),
                Err(error) => tracing::warn!(%error, "nats-server on the PATH passed over"),
            }
        }
        Ok(None)
    }

    /// Asks the file for its version.
    pub(crate) fn check(path: &Path, origin: Origin, cancel: &Cancel) -> Result<Self> {
        let not_nats = |reason| Error::NotNats {
            path: path.into(),
            origin,
            reason,
        };
        // Relative names would be searched for on the PATH, and mean another file once the directory changes.
        let path = path.canonicalize().map_err(|error| not_nats(error.to_string()))?;
        let answer = match run(Command::new(&path).arg("--version"), VERSION_LIMIT, cancel) {
            Ok(answer) => answer,
            Err(Failure::Interrupted) => return Err(Error::Interrupted),
            Err(Failure::Failed(reason)) => return Err(not_nats(reason)),
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
    pub fn origin(&self) -> Origin {
        self.origin
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_compared() {
        let version = |text| Version::parse(text).unwrap();
        assert_eq!(
            version("v2.15.2"),
            Version {
                major: 2,
                minor: 15,
                patch: 2
            }
        );
        assert_eq!(version("2.11.0-RC.1"), OLDEST);
        assert!(version("2.9.25") < OLDEST);
        assert!(version("2.100.0") > version("2.15.2"));
        for nonsense in ["", "2", "2.15", "2.15.2.1", "v", "two"] {
            assert_eq!(Version::parse(nonsense), None, "{nonsense}");
        }
    }
}
