//! What was done to the mesh, and when: printed as it happens, and kept for the checker.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use parking_lot::Mutex;

const MOMENT: Duration = Duration::from_secs(1);

/// The log of one run. Cloning shares it.
#[derive(Debug, Clone)]
pub(crate) struct Log {
    started: Instant,
    faults: Arc<Mutex<Vec<Window>>>,
}

/// A time in which a fault was in force.
#[derive(Debug, Clone)]
pub(crate) struct Window {
    /// When it began.
    pub(crate) start: Timestamp,
    /// When it ended; `None` while it lasts.
    pub(crate) end: Option<Timestamp>,
}

/// A fault in force; ends it when dropped.
#[must_use]
pub(crate) struct InForce {
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

    /// Prints a line with the time since the start.
    pub(crate) fn say(&self, line: impl std::fmt::Display) {
        println!("[{:>9.3}] {line}", self.started.elapsed().as_secs_f64());
    }

    /// A fault begins now.
    pub(crate) fn begin(&self, what: impl std::fmt::Display) -> InForce {
        self.say(what);
        let mut faults = self.faults.lock();
        faults.push(Window {
            start: Timestamp::now(),
            end: None,
        });
        InForce {
            log: self.clone(),
            index: faults.len() - 1,
        }
    }

    /// All faults so far.
    pub(crate) fn faults(&self) -> Vec<Window> {
        self.faults.lock().clone()
    }

    /// Forgets the faults: another mesh begins.
    pub(crate) fn forget(&self) {
        self.faults.lock().clear();
    }

    /// Since the start.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

impl Drop for InForce {
    fn drop(&mut self) {
        // It may have been forgotten.
        if let Some(fault) = self.log.faults.lock().get_mut(self.index) {
            fault.end = Some(Timestamp::now());
        }
    }
}

impl Window {
    /// Whether it was in force at some moment from `first` to `last`. What a process sent as it died is received a moment
    /// later.
    pub(crate) fn overlaps(&self, first: Timestamp, last: Timestamp) -> bool {
        self.start <= last && self.end.is_none_or(|end| end + MOMENT >= first)
    }
}
