//! Checks of what must fit together in several places: the store, the clocks, the processes.

use std::{collections::BTreeMap, time::Duration};

use herald_cli::time::approximate;
use serde_json::Value;

use crate::doctor::{Finding, Observed, Severity, observed::Clock};

/// Difference of two clocks that is reported, microseconds.
const CLOCK_US_MAX: i64 = 1_000_000;

/// What is wrong between the streams and the store.
pub(in crate::doctor) fn store(observed: &Observed) -> Vec<Finding> {
    // A missing stream is told by another check.
    let problems = observed
        .store_problems
        .iter()
        .filter(|one| one.id != "stream-missing");
    let findings = problems.map(|problem| Finding {
        id: problem.id.clone(),
        severity: Severity::Error,
        what: problem.description.clone(),
        why: "gateways accept no posts: ids would be given twice, and deliveries that were lost would go unnoticed".into(),
        remedy: "stop all processes and run `herald recover`, which tells what is lost and goes on with new sequences; then \
                 `herald audit --repair`"
            .into(),
    });
    findings.collect()
}

/// Clocks that are apart.
pub(in crate::doctor) fn clocks(observed: &Observed) -> Vec<Finding> {
    let ahead = observed
        .clocks
        .iter()
        .max_by_key(|clock| clock.ahead_us - clock.error_us);
    let behind = observed
        .clocks
        .iter()
        .min_by_key(|clock| clock.ahead_us + clock.error_us);
    let (Some(ahead), Some(behind)) = (ahead, behind) else {
        return Vec::new();
    };
    let apart_us = (ahead.ahead_us - ahead.error_us) - (behind.ahead_us + behind.error_us);
    if apart_us <= CLOCK_US_MAX {
        return Vec::new();
    }
    let apart = Duration::from_micros(apart_us.unsigned_abs());
    let Clock { name: first, .. } = ahead;
    let Clock { name: second, .. } = behind;
    vec![Finding::warning(
        "clocks-apart",
        format!(
            "the clock of {first} is at least {} ahead of that of {second}",
            approximate(apart)
        ),
        "the age of a post is counted from the clock of NATS: pushes expire too early or too late, retention waits, and \
         latencies are measured wrongly",
        "synchronise the clocks (NTP, chrony) of all machines",
    )]
}

/// Processes whose settings don't fit together.
pub(in crate::doctor) fn processes(observed: &Observed) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut chunks: BTreeMap<&str, BTreeMap<u64, Vec<&str>>> = BTreeMap::new();
    let mut topologies: BTreeMap<String, BTreeMap<String, Vec<&str>>> = BTreeMap::new();
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for process in &observed.processes {
        let name = process.name.as_str();
        for (key, value) in &process.about.chunks {
            chunks
                .entry(key)
                .or_default()
                .entry(*value)
                .or_default()
                .push(name);
        }
        for (key, value) in leaves("topology", &process.about.topology) {
            topologies
                .entry(key)
                .or_default()
                .entry(value)
                .or_default()
                .push(name);
        }
        versions.entry(&process.about.version).or_default().push(name);
    }
    for (key, values) in chunks.iter().filter(|(_, values)| values.len() > 1) {
        findings.push(Finding::warning(
            "chunks-differ",
            format!("{key} differs: {}", by_process(values)),
            "each post is cut as the process does that expands it first; retries repeat that cut, so nothing is lost or \
             repeated, but the size of chunks, and with it load and lag, depends on which process came first",
            "give all processes the same configuration and restart those that differ",
        ));
    }
    // The configuration of this command is one more.
    for (key, value) in leaves("topology", &observed.topology_config) {
        if let Some(values) = topologies.get_mut(&key) {
            values.entry(value).or_default().push("this command");
        }
    }
    for (key, values) in topologies.iter().filter(|(_, values)| values.len() > 1) {
        findings.push(Finding::warning(
            "topology-differs",
            format!("{key} differs: {}", by_process(values)),
            "each process with `nats.topology` = \"apply\" changes the streams and consumers to its own configuration when it \
             starts, and relies on it afterwards",
            "give all processes, and this command (--config, HERALD_*), the same section `topology`, and restart those that \
             differ",
        ));
    }
    if versions.len() > 1 {
        findings.push(Finding::note(
            "versions-differ",
            format!("the processes have different versions: {}", by_process(&versions)),
            "this is as it should be while an upgrade runs",
            "otherwise finish the upgrade",
        ));
    }
    findings
}

/// The values of a configuration by key.
fn leaves(prefix: &str, value: &Value) -> Vec<(String, String)> {
    match value {
        Value::Object(fields) => {
            let fields = fields.iter();
            fields
                .flat_map(|(key, value)| leaves(&format!("{prefix}.{key}"), value))
                .collect()
        }
        value => vec![(prefix.to_owned(), value.to_string())],
    }
}

fn by_process<T: std::fmt::Display>(values: &BTreeMap<T, Vec<&str>>) -> String {
    let values = values
        .iter()
        .map(|(value, names)| format!("{value} in {}", names.join(", ")));
    values.collect::<Vec<_>>().join("; ")
}
