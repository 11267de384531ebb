//! Negative controls: a failpoint breaks a rule on purpose, and the checker must detect the violation.

use std::time::Duration;

use crate::{
    cli::Arguments,
    faults::{Budget, FaultKind},
    log::Log,
    scenario::run_episode,
    world::Options,
};

/// A negative control.
pub(crate) struct Control {
    pub(crate) name: &'static str,
    /// `FAILPOINTS` value that breaks the rule.
    sabotage: &'static str,
    /// Settings that make the violation more likely.
    settings: &'static [(&'static str, &'static str)],
    /// Whether the mesh is a fleet.
    fleet: bool,
    /// Faults to inject: most violations show only after a fault.
    kinds: &'static [FaultKind],
    budget: Budget,
    /// Kinds of violations that the checker must report.
    findings: &'static [&'static str],
}

/// All negative controls.
pub(crate) const CONTROLS: [Control; 6] = [
    // Rule: commit, then acknowledge. Broken: both the acknowledgement and the ledger come before the commit.
    Control {
        name: "control-ack-before-commit",
        sabotage: "store.early-ack=return",
        settings: &[("HERALD_STORE__TIMELINES__FLUSH_INTERVAL_MS", "1000")],
        fleet: false,
        kinds: &[FaultKind::KillHerald],
        budget: Budget::Kills(5),
        findings: &["timelines", "audit"],
    },
    // Rule: a request is one post. Broken: each attempt gets a new message id and skips the duplicate lookup.
    Control {
        name: "control-random-message-ids",
        sabotage: "gateway.random-ids=return",
        settings: &[],
        fleet: false,
        kinds: &[FaultKind::KillHerald],
        budget: Budget::Time(Duration::from_secs(5)),
        findings: &["requests"],
    },
    // Rule: each chunk is published. Broken: after each start, the process drops one chunk.
    Control {
        name: "control-dropped-chunk",
        sabotage: "fanout.drop-chunk=100*off->1*return",
        settings: &[],
        fleet: false,
        kinds: &[FaultKind::KillHerald],
        budget: Budget::Time(Duration::from_secs(5)),
        findings: &["not settled", "audit"],
    },
    // Rule: an answered follow counts for later posts. Broken: fan-out pins the version before the newest one.
    Control {
        name: "control-stale-followers",
        sabotage: "fanout.stale-followers=return",
        settings: &[],
        fleet: false,
        kinds: &[FaultKind::KillHerald],
        budget: Budget::Time(Duration::from_secs(5)),
        findings: &["fan-out"],
    },
    // Rule: an answered deletion is done. Broken: no deletion is done.
    Control {
        name: "control-lost-deletion",
        sabotage: "gateway.drop-deletion=return",
        settings: &[],
        fleet: false,
        kinds: &[FaultKind::KillHerald],
        budget: Budget::Time(Duration::from_secs(5)),
        findings: &["deletions", "violations during the load"],
    },
    // Rule: a worker claims a chunk before its first send. Broken: two workers that get a chunk at once both send it.
    Control {
        name: "control-no-claim",
        sabotage: "push.unclaimed=return",
        settings: &[],
        fleet: true,
        kinds: &[FaultKind::Repeat],
        budget: Budget::Time(Duration::from_secs(5)),
        findings: &["pushes"],
    },
];

/// Runs a negative control; true if the checker detected the violation.
pub(crate) async fn run(control: &Control, arguments: &Arguments, log: &Log, seed: u64) -> bool {
    let options = Options {
        sabotage: control.sabotage.into(),
        fleet: control.fleet,
        settings: control
            .settings
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()))
            .collect(),
        ..Options::default()
    };
    let (verdict, _, mut world) = run_episode(log, seed, control.kinds, control.budget, options).await;
    let missed: Vec<_> = control
        .findings
        .iter()
        .filter(|kind| !verdict.has(kind))
        .collect();
    let detected = missed.is_empty();
    if detected {
        log.print(format!("detected as expected: {}", control.findings.join(", ")));
    } else {
        log.print(format!(
            "NOT DETECTED: the checker reported no violation of {missed:?}"
        ));
        for line in verdict.lines() {
            log.print(line);
        }
    }
    if !detected || arguments.keep {
        log.print(format!(
            "logs and data are kept in {}",
            world.keep_dir().display()
        ));
    }
    detected
}
