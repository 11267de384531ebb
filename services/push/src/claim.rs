//! The claim of a chunk: while it lasts, no other worker sends the chunk.
//!
//! *Invariant:* no request to a device starts after the end of the claim. The lease is counted on the monotonic clock
//! from before each call to the ledger, so it ends here before it ends there. A request that has started may end later:
//! it is one of those that a crash can repeat too.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// A claim, shared by the sends of a chunk.
#[derive(Debug)]
pub(crate) struct Claim {
    lease: Duration,
    /// `None`: lost.
    ends_at: Mutex<Option<Instant>>,
}

impl Claim {
    /// A claim that was requested at `from`.
    pub(crate) fn new(lease: Duration, from: Instant) -> Self {
        Self {
            lease,
            ends_at: Mutex::new(Some(from + lease)),
        }
    }

    /// Whether a request to a device may start now.
    pub(crate) fn lasts(&self) -> bool {
        self.ends_at.lock().is_some_and(|end| Instant::now() < end)
    }

    /// Time for which the claim is extended.
    pub(crate) fn lease(&self) -> Duration {
        self.lease
    }

    /// Interval of extensions.
    pub(crate) fn extend_interval(&self) -> Duration {
        self.lease / 3
    }

    /// Ends the claim for all sends of the chunk.
    pub(crate) fn lose(&self) {
        *self.ends_at.lock() = None;
    }

    /// Lets the claim last for its lease from `from`. A claim that has ended stays so: sends were refused already.
    pub(crate) fn extend(&self, from: Instant) {
        let mut ends_at = self.ends_at.lock();
        *ends_at = ends_at
            .filter(|end| Instant::now() < *end)
            .map(|_| from + self.lease);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(10);

    fn past(time: Duration) -> Instant {
        Instant::now().checked_sub(time).unwrap()
    }

    #[test]
    fn a_claim_ends_with_its_lease_and_is_not_revived() {
        assert!(Claim::new(LEASE, Instant::now()).lasts());
        let claim = Claim::new(LEASE, past(LEASE / 2));
        claim.extend(Instant::now());
        assert!(claim.lasts());
        claim.extend(past(2 * LEASE));
        assert!(!claim.lasts(), "the answer came too late");
        claim.extend(Instant::now());
        assert!(!claim.lasts(), "sends were refused already");
        let claim = Claim::new(LEASE, Instant::now());
        claim.lose();
        claim.extend(Instant::now());
        assert!(!claim.lasts());
    }
}
