//! Checks of what must be there and work: processes, servers, stores.

use crate::{
    doctor::{Finding, Observed, Severity, observed::Process},
    server::{Away, Part},
};

/// Parts that can't be reached.
pub(in crate::doctor) fn unreachable(observed: &Observed) -> Vec<Finding> {
    observed.away.iter().map(unreachable_part).collect()
}

fn unreachable_part(away: &Away) -> Finding {
    let Away {
        part,
        name,
        reason,
        is_silent,
    } = away;
    let (id, what, why, program) = match part {
        Part::Process => (
            "process-unreachable",
            name.clone(),
            "what it has in hand waits until another process of its roles takes it over; without another one its work stops",
            "the process",
        ),
        Part::Broker => (
            "broker-unreachable",
            format!("NATS at {name}"),
            "no post is accepted, and nothing is delivered",
            "the nats-server",
        ),
        Part::Monitor => (
            "server-unreachable",
            name.clone(),
            "the server may be down: its streams then have one replica less, or none",
            "the nats-server",
        ),
        Part::Store => (
            "store-unreachable",
            format!("the store {name}"),
            "posts are accepted, and not delivered; reads fail",
            "PostgreSQL",
        ),
        Part::Timelines => (
            "store-unreachable",
            format!("the timelines in {name}"),
            "posts are accepted; no timeline is written or read, and pushes go on",
            "Valkey",
        ),
    };
    let (what, remedy) = if *is_silent {
        (
            format!("{what} doesn't answer: {reason}"),
            format!(
                "{program} is stopped (`ps -o stat= -p PID` says T: `kill -CONT PID`), hangs or is overloaded (see its log; end it \
                 and start it again), or its machine is cut off"
            ),
        )
    } else {
        (
            format!("{what} can't be reached: {reason}"),
            format!("start {program}, or correct its address in this command or its configuration"),
        )
    };
    Finding::error(id, what, why, remedy)
}

/// Processes whose `/readyz` has failing checks.
pub(in crate::doctor) fn not_ready(observed: &Observed) -> Vec<Finding> {
    let failing = observed.processes.iter().filter(|one| !one.failing.is_empty());
    failing.map(not_ready_process).collect()
}

fn not_ready_process(process: &Process) -> Finding {
    let checks: Vec<_> = process
        .failing
        .iter()
        .map(|check| format!("{} ({})", check.name, check.reason))
        .collect();
    let checks = checks.join("; ");
    let is_required = process.failing.iter().any(|check| check.required);
    let (severity, what, why) = if is_required {
        (
            Severity::Error,
            format!("process {} is not ready: {checks}", process.name),
            "it refuses calls, or takes no work, until the checks pass",
        )
    } else {
        (
            Severity::Warning,
            format!("process {} works with restrictions: {checks}", process.name),
            "it accepts posts, and part of its work waits or is refused until the checks pass",
        )
    };
    Finding::new(
        severity,
        "process-not-ready",
        what,
        why,
        "remove what the reason of each check names; `/readyz` of the process tells when they pass, and its log since when they \
         fail",
    )
}
