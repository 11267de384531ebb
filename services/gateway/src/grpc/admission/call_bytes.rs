//! The bytes that a call has in memory.

use herald_runtime::shares::{Caller, Share, Shares};
use parking_lot::Mutex;

/// Bytes of a call that don't count: the number of calls bounds them.
const SMALL: usize = 16 << 10;

/// The bytes of a call: its request, and its answer until that is sent.
pub(super) struct CallBytes {
    shares: Shares,
    caller: Caller,
    held: Mutex<HeldBytes>,
}

#[derive(Default)]
struct HeldBytes {
    /// Those that don't count, at most [`SMALL`].
    small: usize,
    share: Option<Share>,
}

impl CallBytes {
    pub(super) fn new(shares: Shares, caller: Caller) -> Self {
        Self {
            shares,
            caller,
            held: Mutex::default(),
        }
    }

    /// Counts more bytes. Returns whether they may be kept.
    pub(super) fn take(&self, count: usize) -> bool {
        let held = &mut *self.held.lock();
        let small = count.min(SMALL - held.small);
        held.small += small;
        let count = count - small;
        match &mut held.share {
            _ if count == 0 => true,
            Some(share) => share.grow(count),
            none => {
                *none = self.shares.try_acquire(self.caller, count);
                none.is_some()
            }
        }
    }

    /// Sets how many bytes the call has in memory. Returns whether they may be kept.
    pub(super) fn set(&self, count: usize) -> bool {
        let held = &mut *self.held.lock();
        let count = count.saturating_sub(SMALL);
        if count == 0 {
            held.share = None;
            return true;
        }
        match &mut held.share {
            Some(share) if share.amount() <= count => share.grow(count - share.amount()),
            Some(share) => {
                share.shrink(share.amount() - count);
                true
            }
            share => {
                *share = self.shares.try_acquire(self.caller, count);
                share.is_some()
            }
        }
    }
}
