//! Where to search for a nats-server, and where one was found.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use crate::fetcher::{Fetcher, OnProgress};

/// Where a nats-server was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum BinarySource {
    /// [`Locate::explicit`].
    Explicit,
    /// The environment variable `NATS_SERVER`.
    Environment,
    /// A directory of `PATH`.
    Path,
    /// Herald's cache, from an earlier fetch.
    Cache,
    /// Fetched into the cache by this search.
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

/// Where to search for a nats-server. [`Locate::default`] reads the environment.
#[derive(Debug, Clone)]
pub struct Locate {
    /// The file to use; no other place is searched.
    pub explicit: Option<PathBuf>,
    /// The file named by `$NATS_SERVER`. If set, no later place is searched.
    pub environment: Option<PathBuf>,
    /// Directories to search, in the format of `$PATH`.
    pub path: Option<OsString>,
    /// Cache directory of fetched servers: `$HERALD_CACHE`, or `herald` in the user's cache directory
    /// (`$XDG_CACHE_HOME` or `~/.cache`). `None` disables fetching.
    pub cache: Option<PathBuf>,
    /// Fetchers, in the order in which they are tried. Empty disables fetching.
    pub fetchers: Vec<Fetcher>,
    /// Directories of the fetchers' programs, in the format of `$PATH`.
    pub tools: Option<OsString>,
    /// Callback for the progress of a fetch, which is also logged.
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
    /// Uses only this file.
    pub fn exactly(path: impl Into<PathBuf>) -> Self {
        Self {
            explicit: Some(path.into()),
            ..Self::default()
        }
    }
}
