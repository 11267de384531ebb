//! Timelines with injected failures.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use herald_model::{PostId, Recipients, UserKey};
use herald_store::{Delivered, Error, ErrorKind, Rebuilt, Result, TimelineEntries, TimelinePage, Timelines};
use parking_lot::Mutex;

/// How a delivery fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Panic,
    Corrupt,
    Unavailable,
}

/// Timelines that fail for chosen users.
pub(crate) struct FaultyTimelines {
    inner: Arc<dyn Timelines>,
    fault: Mutex<(Option<Fault>, HashSet<UserKey>)>,
    /// Number of failed calls.
    pub(crate) failed: AtomicUsize,
}

impl FaultyTimelines {
    pub(crate) fn new(inner: Arc<dyn Timelines>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            fault: Mutex::default(),
            failed: AtomicUsize::new(0),
        })
    }

    /// Makes deliveries to `users` fail.
    pub(crate) fn fail(&self, fault: Fault, users: &[u32]) {
        *self.fault.lock() = (Some(fault), users.iter().copied().map(UserKey).collect());
    }

    /// Stops the failures.
    pub(crate) fn heal(&self) {
        *self.fault.lock() = (None, HashSet::new());
    }

    pub(crate) fn failed(&self) -> usize {
        self.failed.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl Timelines for FaultyTimelines {
    async fn deliver(&self, post: PostId, recipients: Recipients) -> Result<Delivered> {
        let (fault, users) = self.fault.lock().clone();
        let fault = fault.filter(|_| recipients.iter().any(|user| users.contains(&user)));
        self.failed
            .fetch_add(usize::from(fault.is_some()), Ordering::SeqCst);
        match fault {
            None => self.inner.deliver(post, recipients).await,
            Some(Fault::Panic) => panic!("unexpected row"),
            Some(Fault::Corrupt) => Err(Error::new(ErrorKind::Corrupt, "a timeline is malformed")),
            Some(Fault::Unavailable) => Err(Error::new(ErrorKind::Unavailable, "store is down")),
        }
    }

    async fn newest(&self, user: UserKey, before: Option<PostId>, limit: usize) -> Result<TimelinePage> {
        self.inner.newest(user, before, limit).await
    }

    async fn read(&self, users: &[UserKey]) -> Result<Vec<TimelineEntries>> {
        self.inner.read(users).await
    }

    async fn rebuild(&self, users: &[UserKey]) -> Result<Rebuilt> {
        self.inner.rebuild(users).await
    }
}
