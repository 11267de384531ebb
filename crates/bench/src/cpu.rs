//! Processor time of processes, as `/proc` reports it; 0 where there is none.

use rustix::param::clock_ticks_per_second;
use serde::Serialize;

use super::{engine::Engine, server::Server};

/// Processor time of each part, seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[allow(clippy::struct_field_names, reason = "the names are those of the JSON")]
pub(super) struct Cpu {
    pub(super) herald_s: f64,
    pub(super) nats_s: f64,
    pub(super) postgres_s: f64,
    pub(super) redis_s: f64,
    /// Of the load generator: this process.
    pub(super) load_s: f64,
}

impl Cpu {
    /// What the parts have used so far.
    pub(super) fn read(server: &Server, engine: &Engine) -> Self {
        let (herald, nats) = server.pids();
        let (postgres, redis) = engine.pids().unzip();
        let seconds = |pid: Option<u32>| pid.map_or(0.0, process_s);
        Self {
            herald_s: process_s(herald),
            nats_s: seconds(nats),
            // A process for each connection.
            postgres_s: postgres.map_or(0.0, tree_s),
            redis_s: seconds(redis),
            load_s: process_s(std::process::id()),
        }
    }

    /// What the parts have used since an earlier reading.
    pub(super) fn since(&self, before: &Self) -> Self {
        Self {
            herald_s: self.herald_s - before.herald_s,
            nats_s: self.nats_s - before.nats_s,
            postgres_s: self.postgres_s - before.postgres_s,
            redis_s: self.redis_s - before.redis_s,
            load_s: self.load_s - before.load_s,
        }
    }

    pub(super) fn sum_s(&self) -> f64 {
        self.herald_s + self.nats_s + self.postgres_s + self.redis_s + self.load_s
    }
}

/// The fields of `/proc/PID/stat` from the third one on.
fn stat(pid: u32) -> Vec<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The second field is the name in parentheses, which can have spaces and parentheses.
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    rest.split_whitespace()
        .map(|field| field.parse().unwrap_or(0))
        .collect()
}

/// The sum of fields of `/proc/PID/stat`, in seconds; fields count from 1, as in its manual.
fn ticks_s(stat: &[u64], fields: &[usize]) -> f64 {
    let ticks: u64 = fields
        .iter()
        .map(|field| stat.get(field - 3).copied().unwrap_or(0))
        .sum();
    ticks as f64 / clock_ticks_per_second() as f64
}

/// User and system time of a process.
fn process_s(pid: u32) -> f64 {
    ticks_s(&stat(pid), &[14, 15])
}

/// User and system time of a process, of its children that ended, and of all its descendants.
fn tree_s(pid: u32) -> f64 {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children = children.split_whitespace().filter_map(|child| child.parse().ok());
    ticks_s(&stat(pid), &[14, 15, 16, 17]) + children.map(tree_s).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::{process_s, tree_s};

    #[test]
    fn this_process_uses_time() {
        let pid = std::process::id();
        let before = process_s(pid);
        while process_s(pid) < before + 0.05 {
            std::hint::black_box((0..1_000_000_u64).sum::<u64>());
        }
        assert!(tree_s(pid) >= before + 0.05);
    }
}
