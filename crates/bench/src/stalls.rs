//! When the machine stood still: a virtual machine whose host is busy with others, an interrupt that took long. A thread of
//! real-time priority goes before all others, so what it has to wait for isn't the load's doing.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use herald_model::time::Micros;
use parking_lot::Mutex;

/// How often each processor is looked for.
const INTERVAL: Duration = Duration::from_millis(1);
/// What counts as a stall.
const STALL_MIN: Duration = Duration::from_millis(2);

/// From when until when a processor was away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stall {
    pub(super) from: Micros,
    pub(super) to: Micros,
}

impl Stall {
    /// Whether it touches this time.
    pub(super) fn touches(&self, from: Micros, to: Micros) -> bool {
        self.from <= to && from <= self.to
    }
}

/// Notes stalls for as long as it lives: a thread on each processor.
#[derive(Debug)]
pub(super) struct Stalls {
    noted: Arc<Mutex<Vec<Stall>>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Stalls {
    /// `None` where threads of real-time priority aren't allowed: they are to root, and with `CAP_SYS_NICE`.
    pub(super) fn watch() -> Option<Self> {
        let processors = processors();
        let mut stalls = Self {
            noted: Arc::default(),
            stop: Arc::default(),
            threads: Vec::new(),
        };
        let (allowed, answers) = std::sync::mpsc::channel();
        for processor in processors.iter().copied() {
            let (noted, stop, allowed) = (stalls.noted.clone(), stalls.stop.clone(), allowed.clone());
            stalls.threads.push(thread::spawn(move || {
                let on = real_time_on(processor);
                let _ = allowed.send(on);
                if on {
                    note(&noted, &stop);
                }
            }));
        }
        let allowed = answers.iter().take(processors.len()).all(|on| on);
        (allowed && !processors.is_empty()).then_some(stalls)
    }

    /// Those of the time so far.
    pub(super) fn noted(&self) -> Vec<Stall> {
        self.noted.lock().clone()
    }
}

impl Drop for Stalls {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn note(noted: &Mutex<Vec<Stall>>, stop: &AtomicBool) {
    let mut due = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        due += INTERVAL;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let late = due.elapsed();
        if late >= STALL_MIN {
            let to = Micros::now();
            noted.lock().push(Stall {
                from: to.minus(late),
                to,
            });
            due = Instant::now();
        }
    }
}

#[cfg(target_os = "linux")]
fn processors() -> Vec<usize> {
    let Ok(set) = rustix::thread::sched_getaffinity(None) else {
        return Vec::new();
    };
    (0..rustix::thread::CpuSet::MAX_CPU)
        .filter(|processor| set.is_set(*processor))
        .collect()
}

/// Makes this thread a real-time one that stays on a processor; whether that is allowed.
#[cfg(target_os = "linux")]
fn real_time_on(processor: usize) -> bool {
    use thread_priority::{
        RealtimeThreadSchedulePolicy, ThreadPriority, ThreadPriorityValue, ThreadSchedulePolicy,
        set_thread_priority_and_policy, thread_native_id,
    };

    /// Above those that are started without saying how urgent they are.
    const PRIORITY: u8 = 50;

    let mut set = rustix::thread::CpuSet::new();
    set.set(processor);
    let Ok(priority) = ThreadPriorityValue::try_from(PRIORITY) else {
        return false;
    };
    rustix::thread::sched_setaffinity(None, &set).is_ok()
        && set_thread_priority_and_policy(
            thread_native_id(),
            ThreadPriority::Crossplatform(priority),
            ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::Fifo),
        )
        .is_ok()
}

#[cfg(not(target_os = "linux"))]
fn processors() -> Vec<usize> {
    Vec::new()
}

#[cfg(not(target_os = "linux"))]
fn real_time_on(_processor: usize) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_touches_what_it_begins_or_ends_in() {
        let stall = Stall {
            from: Micros(10),
            to: Micros(20),
        };
        let touched = [(0, 9), (0, 10), (12, 13), (0, 30), (20, 30), (21, 30)]
            .map(|(from, to)| stall.touches(Micros(from), Micros(to)));
        assert_eq!(touched, [false, true, true, true, true, false]);
    }
}
