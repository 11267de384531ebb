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
use herald_store::{
    Delivered, Error, ErrorKind, Rebuilt, Result, SuppressedReason, TimelineEntries, TimelinePage, Timelines,
};
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
    /// Recipients whose timelines are not written, by reason.
    suppressed: Mutex<Vec<(SuppressedReason, HashSet<UserKey>)>>,
    /// Number of failed calls.
    pub(crate) failed: AtomicUsize,
    /// Number of calls that deliver.
    delivered: AtomicUsize,
    /// Number of deliveries after which timelines are lost.
    losses: AtomicUsize,
}

impl FaultyTimelines {
    pub(crate) fn new(inner: Arc<dyn Timelines>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            fault: Mutex::default(),
            suppressed: Mutex::default(),
            failed: AtomicUsize::new(0),
            delivered: AtomicUsize::new(0),
            losses: AtomicUsize::new(0),
        })
    }

    /// Loses timelines after each of the next deliveries.
    pub(crate) fn lose(&self, deliveries: usize) {
        self.losses.store(deliveries, Ordering::SeqCst);
    }

    /// Number of calls that deliver.
    pub(crate) fn delivered(&self) -> usize {
        self.delivered.load(Ordering::SeqCst)
    }

    /// Makes deliveries to `users` fail.
    pub(crate) fn fail(&self, fault: Fault, users: &[u32]) {
        *self.fault.lock() = (Some(fault), users.iter().copied().map(UserKey).collect());
    }

    /// Leaves out these users from now on.
    pub(crate) fn suppress(&self, reasons: &[(SuppressedReason, &[u32])]) {
        let sets = reasons
            .iter()
            .map(|(reason, users)| (*reason, users.iter().copied().map(UserKey).collect()));
        *self.suppressed.lock() = sets.collect();
    }

    /// Delivers to all recipients that are not left out.
    async fn deliver_unsuppressed(&self, post: PostId, recipients: Recipients) -> Result<Delivered> {
        let sets = self.suppressed.lock().clone();
        let is_left_out = |user: &UserKey| sets.iter().any(|(_, users)| users.contains(user));
        let written = Recipients::from_sorted(recipients.iter().filter(|user| !is_left_out(user)));
        let mut delivered = self.inner.deliver(post, written).await?;
        for (reason, users) in &sets {
            let set = Recipients::from_sorted(recipients.iter().filter(|user| users.contains(user)));
            if !set.is_empty() {
                delivered.suppressed.push((*reason, set));
            }
        }
        Ok(delivered)
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
        self.delivered.fetch_add(1, Ordering::SeqCst);
        let (fault, users) = self.fault.lock().clone();
        let fault = fault.filter(|_| recipients.iter().any(|user| users.contains(&user)));
        self.failed
            .fetch_add(usize::from(fault.is_some()), Ordering::SeqCst);
        match fault {
            None => self.deliver_unsuppressed(post, recipients).await,
            Some(Fault::Panic) => panic!("unexpected row"),
            Some(Fault::Corrupt) => Err(Error::new(ErrorKind::Corrupt, "a timeline is malformed")),
            Some(Fault::Unavailable) => Err(Error::new(ErrorKind::Unavailable, "store is down")),
        }
    }

    async fn is_intact(&self, losses: u64) -> Result<bool> {
        let lost = self
            .losses
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |losses| losses.checked_sub(1));
        Ok(lost.is_err() && self.inner.is_intact(losses).await?)
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

    async fn erase(&self, user: UserKey) -> Result<u64> {
        self.inner.erase(user).await
    }
}
