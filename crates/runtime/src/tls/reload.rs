//! What is made of files, and made again when they change.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use super::files::{Error, Pem, PemFile};

/// Interval at which the files are read.
const INTERVAL: Duration = Duration::from_secs(1);
/// Failed readings in a row after which the failure is logged: files that are written one after the other don't fit each
/// other for a moment.
const FAILURES_MAX: u32 = 2;

/// The newest usable value of some files. Clones share it; the files are read until the last one is dropped.
pub(super) struct Reloading<T>(Arc<watch::Sender<Arc<T>>>);

impl<T> Clone for Reloading<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: Send + Sync + 'static> Reloading<T> {
    /// Reads the files, and reads them again each second. `build` has their contents in the same order. Must be called
    /// within a tokio runtime.
    pub(super) fn open(
        files: Vec<PemFile>,
        build: impl Fn(&[Pem]) -> Result<T, Error> + Send + 'static,
    ) -> Result<Self, Error> {
        let contents = read(&files)?;
        let current = Arc::new(watch::Sender::new(Arc::new(build(&contents)?)));
        if !files.is_empty() {
            tokio::spawn(follow(Arc::downgrade(&current), files, contents, build));
        }
        Ok(Self(current))
    }

    pub(super) fn current(&self) -> Arc<T> {
        self.0.borrow().clone()
    }

    /// Receives each value that follows the current one.
    pub(super) fn subscribe(&self) -> watch::Receiver<Arc<T>> {
        self.0.subscribe()
    }
}

async fn follow<T: Send + Sync + 'static>(
    current: Weak<watch::Sender<Arc<T>>>,
    files: Vec<PemFile>,
    mut loaded: Vec<Pem>,
    build: impl Fn(&[Pem]) -> Result<T, Error> + Send + 'static,
) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failure: Option<(Error, u32)> = None;
    loop {
        ticks.tick().await;
        let files = files.clone();
        let Ok(contents) = tokio::task::spawn_blocking(move || read(&files)).await else {
            return;
        };
        let Some(current) = current.upgrade() else { return };
        let changed = contents.and_then(|contents| {
            if contents == loaded {
                Ok(None)
            } else {
                build(&contents).map(|value| Some((contents, value)))
            }
        });
        match changed {
            Ok(None) => failure = None,
            Ok(Some((contents, value))) => {
                failure = None;
                loaded = contents;
                current.send_replace(Arc::new(value));
                tracing::info!(files = %names(&loaded), "new TLS files are in use for new connections");
            }
            Err(error) => {
                let failures = match failure.take() {
                    Some((before, failures)) if before == error => failures.saturating_add(1),
                    _ => 1,
                };
                if failures == FAILURES_MAX {
                    tracing::error!(%error, "new TLS files can't be used; those that were read before stay in use");
                }
                failure = Some((error, failures));
            }
        }
    }
}

fn read(files: &[PemFile]) -> Result<Vec<Pem>, Error> {
    files.iter().map(PemFile::read).collect()
}

fn names(contents: &[Pem]) -> String {
    let names: Vec<_> = contents.iter().map(Pem::name).collect();
    names.join(", ")
}
