//! Where to look for a nats-server, and where one was found.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use crate::fetcher::{Fetcher, OnProgress};

/// Who named the nats-server that is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum BinarySource {
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

impl fmt::Display for BinarySource {
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
