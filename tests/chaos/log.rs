//! Log of the injected faults: printed immediately and kept for the checker.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use parking_lot::Mutex;

/// Delay after the end of a fault within which its effects may still be received.
const EFFECT_DELAY: Duration = Duration::from_secs(1);

/// The log of one run. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Log {
    started: Instant,
    faults: Arc<Mutex<Vec<FaultWindow>>>,
}

/// The time span of a fault.
#[derive(Debug, Clone)]
pub(crate) struct FaultWindow {
    /// Start of the fault.
    pub(crate) start: Timestamp,
    /// End of the fault; `None` while it is active.
    pub(crate) end: Option<Timestamp>,
}

/// An active fault. Drop records its end.
#[must_use]
pub(crate) struct FaultGuard {
    log: Log,
    index: usize,
}

impl Log {
    pub(crate) fn new() -> Self {
        Self {
            started: Instant::now(),
            faults: Arc::default(),
        }
    }

    /// Prints a line with the time since the start of the run.
    pub(crate) fn print(&self, line: impl std::fmt::Display) {
        println!("[{:>9.3}] {line}", self.started.elapsed().as_secs_f64());
    }

    /// Prints and records the start of a fault.
    pub(crate) fn begin_fault(&self, what: impl std::fmt::Display) -> FaultGuard {
        self.print(what);
        let mut faults = self.faults.lock();
        faults.push(FaultWindow {
            start: Timestamp::now(),
            end: None,
        });
        FaultGuard {
            log: self.clone(),
            index: faults.len() - 1,
        }
    }

    /// Faults of the current episode.
    pub(crate) fn faults(&self) -> Vec<FaultWindow> {
        self.faults.lock().clone()
    }

    /// Clears the faults at the start of an episode.
    pub(crate) fn clear_faults(&self) {
        self.faults.lock().clear();
    }

    /// Time since the start of the run.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

impl Drop for FaultGuard {
    fn drop(&mut self) {
        // The next episode may have cleared the faults.
        if let Some(fault) = self.log.faults.lock().get_mut(self.index) {
            fault.end = Some(Timestamp::now());
        }
    }
}

impl FaultWindow {
    /// Whether the fault was active between `first` and `last`, with [`EFFECT_DELAY`] added to its end.
    pub(crate) fn overlaps(&self, first: Timestamp, last: Timestamp) -> bool {
        self.start <= last && self.end.is_none_or(|end| end + EFFECT_DELAY >= first)
    }
}
