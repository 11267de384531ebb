//! Metrics of the disks of a process's directories.
//!
//! Reading the space of a network volume that hangs never ends. So each directory has a thread that reads it, and `/metrics`
//! shows what that has read last.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Unit;

use crate::{Gauge, Registry};

/// Interval between two readings of a directory.
const INTERVAL: Duration = Duration::from_secs(10);
/// Age from which a reading is not shown any more.
const STALE_AFTER: Duration = Duration::from_secs(45);

/// Registers the free and the whole space of the file system of each directory. The first of a pair is the value of the label.
/// A directory that can't be read, or whose volume hangs, has no values.
pub fn register_disk(registry: &mut Registry, dirs: Vec<(&'static str, PathBuf)>) {
    let watched = dirs
        .into_iter()
        .filter_map(|(name, path)| Watched::start(name, move || read(&path)));
    registry.register_collector(Disks(watched.collect()));
}

/// The space of a file system.
#[derive(Debug, Clone, Copy)]
struct Space {
    free_bytes: i64,
    size_bytes: i64,
}

fn read(path: &Path) -> Option<Space> {
    let read = rustix::fs::statvfs(path).ok()?;
    let bytes = |blocks: u64| i64::try_from(blocks.saturating_mul(read.f_frsize)).unwrap_or(i64::MAX);
    Some(Space {
        free_bytes: bytes(read.f_bavail),
        size_bytes: bytes(read.f_blocks),
    })
}

/// The latest reading of a directory, and when it ended.
type Latest = Arc<Mutex<Option<(Instant, Space)>>>;

/// A directory that a thread reads as long as this value lives.
#[derive(Debug)]
struct Watched {
    name: &'static str,
    latest: Latest,
    /// Its end ends the thread. `Sender` alone can't be shared by threads.
    _alive: Mutex<Sender<()>>,
}

impl Watched {
    /// `None` without a thread.
    fn start(name: &'static str, read: impl Fn() -> Option<Space> + Send + 'static) -> Option<Self> {
        let latest = Latest::default();
        let (alive, ended) = mpsc::channel();
        let shown = Arc::clone(&latest);
        let thread = std::thread::Builder::new().name("disk-space".into());
        if let Err(error) = thread.spawn(move || watch(&read, &shown, &ended)) {
            tracing::warn!(%error, dir = name, "no thread can be started, so the disk has no metrics");
            return None;
        }
        Some(Self {
            name,
            latest,
            _alive: Mutex::new(alive),
        })
    }

    /// The latest reading, unless it is old at this time.
    fn space(&self, now: Instant) -> Option<Space> {
        let (at, space) = (*self.latest.lock())?;
        (now.saturating_duration_since(at) < STALE_AFTER).then_some(space)
    }
}

fn watch(read: &impl Fn() -> Option<Space>, shown: &Latest, ended: &Receiver<()>) {
    loop {
        let space = read();
        *shown.lock() = space.map(|space| (Instant::now(), space));
        if ended.recv_timeout(INTERVAL) != Err(RecvTimeoutError::Timeout) {
            return;
        }
    }
}

#[derive(Debug)]
struct Disks(Vec<Watched>);

impl Collector for Disks {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let free = Family::<[(&'static str, &'static str); 1], Gauge>::default();
        let size = Family::<[(&'static str, &'static str); 1], Gauge>::default();
        let now = Instant::now();
        for watched in &self.0 {
            if let Some(space) = watched.space(now) {
                let name = [("dir", watched.name)];
                free.get_or_create(&name).set(space.free_bytes);
                size.get_or_create(&name).set(space.size_bytes);
            }
        }
        let help = "Free space of the file system of a directory.";
        free.encode(encoder.encode_descriptor("disk_free", help, Some(&Unit::Bytes), MetricType::Gauge)?)?;
        let help = "Size of the file system of a directory.";
        size.encode(encoder.encode_descriptor("disk_size", help, Some(&Unit::Bytes), MetricType::Gauge)?)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use crate::Shared;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    fn until(what: &str, mut holds: impl FnMut() -> bool) {
        let started = Instant::now();
        while !holds() {
            assert!(started.elapsed() < LIMIT, "{what}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_directory_that_is_not_there_has_no_values() {
        let shared = Shared::new();
        let dirs = vec![("broker", "/no/such/directory".into()), ("data", "/".into())];
        shared.register(|registry| register_disk(registry, dirs));
        let prefix = "herald_disk_size_bytes{dir=\"data\"} ";
        until("the disk is read", || shared.open_metrics().contains(prefix));
        let text = shared.open_metrics();
        let size = text.lines().find_map(|line| line.strip_prefix(prefix)).unwrap();
        assert!(size.parse::<u64>().unwrap() > 0, "{text}");
        assert!(!text.contains("broker"), "{text}");
    }

    #[test]
    fn a_volume_that_hangs_keeps_nobody_waiting_and_its_old_values_vanish() {
        let (answer, answers) = channel();
        let (asked, questions) = channel();
        let read = move || {
            let _ = asked.send(());
            answers.recv().ok()
        };
        let watched = Watched::start("data", read).unwrap();
        questions.recv_timeout(LIMIT).unwrap();
        // The first reading hangs.
        assert!(watched.space(Instant::now()).is_none());
        let space = Space {
            free_bytes: 1,
            size_bytes: 2,
        };
        answer.send(space).unwrap();
        until("the reading is shown", || watched.space(Instant::now()).is_some());
        let read_before = Instant::now();
        assert!(watched.space(read_before + STALE_AFTER).is_none());
        // Its end ends the thread.
        drop(watched);
        until("the thread has ended", || answer.send(space).is_err());
    }
}
