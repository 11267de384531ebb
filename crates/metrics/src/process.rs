//! Metrics of the process itself: what it uses, and what runs in it. They are read when they are exported.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Unit;

use crate::Registry;

/// Registers which version runs.
pub fn register_build(registry: &mut Registry, version: &'static str) {
    #[derive(Debug)]
    struct Build(Info<[(&'static str, &'static str); 1]>);

    impl Collector for Build {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
            let help = "Version of the program. The value is always 1.";
            self.0
                .encode(encoder.encode_descriptor("build", help, None, MetricType::Info)?)
        }
    }
    registry.register_collector(Build(Info::new([("version", version)])));
}

/// Registers what the process uses of the machine.
pub fn register_process(registry: &mut Registry) {
    registry.register_collector(Process);
}

#[derive(Debug)]
struct Process;

/// What the process uses.
struct Usage {
    cpu_seconds: f64,
    resident_bytes: u64,
    virtual_bytes: u64,
    threads: u64,
    open_fds: u64,
    max_fds: u64,
    start_seconds: f64,
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Some(usage) = usage() else { return Ok(()) };
        let cpu = encoder.encode_descriptor(
            "process_cpu",
            "User and system CPU time of the process.",
            Some(&Unit::Seconds),
            MetricType::Counter,
        )?;
        ConstCounter::new(usage.cpu_seconds).encode(cpu)?;
        let gauges = [
            (
                "resident_memory",
                "Resident memory of the process.",
                Some(Unit::Bytes),
                usage.resident_bytes as f64,
            ),
            (
                "virtual_memory",
                "Virtual memory of the process.",
                Some(Unit::Bytes),
                usage.virtual_bytes as f64,
            ),
            ("threads", "Threads of the process.", None, usage.threads as f64),
            (
                "open_fds",
                "Open file descriptors of the process.",
                None,
                usage.open_fds as f64,
            ),
            (
                "max_fds",
                "Limit of open file descriptors of the process.",
                None,
                usage.max_fds as f64,
            ),
            (
                "start_time",
                "Start of the process, seconds since 1970.",
                Some(Unit::Seconds),
                usage.start_seconds,
            ),
        ];
        for (name, help, unit, value) in gauges {
            let name = format!("process_{name}");
            let metric = encoder.encode_descriptor(&name, help, unit.as_ref(), MetricType::Gauge)?;
            ConstGauge::new(value).encode(metric)?;
        }
        Ok(())
    }
}

#[cfg(target_os = "linux")]
fn usage() -> Option<Usage> {
    use procfs::{CurrentSI as _, WithCurrentSystemInfo as _};

    let process = procfs::process::Process::myself().ok()?;
    let stat = process.stat().ok()?;
    let ticks = procfs::ticks_per_second() as f64;
    let booted = procfs::KernelStats::current().ok()?.btime as f64;
    let limits = process.limits().ok()?;
    Some(Usage {
        cpu_seconds: (stat.utime + stat.stime) as f64 / ticks,
        resident_bytes: stat.rss_bytes().get(),
        virtual_bytes: stat.vsize,
        threads: u64::try_from(stat.num_threads).unwrap_or(0),
        open_fds: process.fd_count().ok()? as u64,
        max_fds: match limits.max_open_files.soft_limit {
            procfs::process::LimitValue::Value(max) => max,
            procfs::process::LimitValue::Unlimited => u64::MAX,
        },
        start_seconds: booted + stat.starttime as f64 / ticks,
    })
}

/// Only Linux tells it in files.
#[cfg(not(target_os = "linux"))]
fn usage() -> Option<Usage> {
    None
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use crate::Shared;

    use super::*;

    fn value(text: &str, name: &str) -> f64 {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name} is not in\n{text}"))
            .parse()
            .unwrap()
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_process_tells_what_it_uses() {
        let shared = Shared::new();
        shared.register(register_process);
        let text = shared.open_metrics();
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs_f64();
        let started = value(&text, "herald_process_start_time_seconds");
        assert!(
            (now - 3_600.0..=now + 2.0).contains(&started),
            "{started} of {now}"
        );
        assert!(value(&text, "herald_process_resident_memory_bytes") > 1e5);
        assert!(value(&text, "herald_process_open_fds") >= 3.0);
        assert!(value(&text, "herald_process_cpu_seconds_total") >= 0.0);
    }

    #[test]
    fn the_version_is_told() {
        let shared = Shared::new();
        shared.register(|registry| register_build(registry, "1.2.3"));
        let text = shared.open_metrics();
        assert!(
            text.contains("herald_build_info{version=\"1.2.3\"} 1\n"),
            "{text}"
        );
    }
}
