//! Negative controls: a rule is broken on purpose, and the checker must notice. A checker that never fails proves nothing.

use std::time::Duration;

use crate::{
    cli::Arguments,
    faults::{Budget, Kind},
    log::Log,
    scenario::episode_of,
    world::Options,
};

/// One broken rule.
pub(crate) struct Control {
    pub(crate) name: &'static str,
    /// How it is broken, in the words of `FAILPOINTS`.
    sabotage: &'static str,
    /// Settings that make its use likelier to show.
    settings: &'static [(&'static str, &'static str)],
    /// What happens to the mesh meanwhile: a rule's use shows when something goes wrong.
    kinds: &'static [Kind],
    budget: Budget,
    /// The kinds of findings that it must lead to.
    findings: &'static [&'static str],
}

/// All of them.
pub(crate) const CONTROLS: [Control; 4] = [
    // *Commit, then acknowledge.* The message is acknowledged and its deliveries are recorded before they are durable.
    Control {
        name: "control-ack-before-commit",
        sabotage: "store.early-ack=return",
        settings: &[("HERALD_STORE__TIMELINES__FLUSH_INTERVAL_MS", "1000")],
        kinds: &[Kind::KillHerald],
        budget: Budget::Kills(5),
        findings: &["timelines", "audit"],
    },
    // *A request is one post.* Each try is published under a new id, and nobody looks for an earlier one.
    Control {
        name: "control-random-message-ids",
        sabotage: "gateway.random-ids=return",
        settings: &[],
        kinds: &[Kind::KillHerald],
        budget: Budget::Time(Duration::from_secs(5)),
        findings: &["requests"],
    },
    // *Each chunk is published.* One chunk in each life of the process isn't.
    Control {
        name: "control-dropped-chunk",
        sabotage: "fanout.drop-chunk=100*off->1*return",
        settings: &[],
        kinds: &[Kind::KillHerald],
        budget: Budget::Time(Duration::from_secs(5)),
        findings: &["not settled", "audit"],
    },
    // *A deletion that was answered is done.* None is.
    Control {
        name: "control-forgotten-deletion",
        sabotage: "gateway.forget-deletion=return",
        settings: &[],
        kinds: &[Kind::KillHerald],
        budget: Budget::Time(Duration::from_secs(5)),
        findings: &["deletions", "seen during the load"],
    },
];

/// Runs one; true when the checker noticed.
pub(crate) async fn run(control: &Control, arguments: &Arguments, log: &Log, seed: u64) -> bool {
    let options = Options {
        sabotage: control.sabotage.into(),
        settings: control
            .settings
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()))
            .collect(),
        ..Options::default()
    };
    let (verdict, _, mut world) = episode_of(log, seed, control.kinds, control.budget, options).await;
    let missed: Vec<_> = control
        .findings
        .iter()
        .filter(|kind| !verdict.has(kind))
        .collect();
    let noticed = missed.is_empty();
    if noticed {
        log.say(format!("noticed, as it must be: {}", control.findings.join(", ")));
    } else {
        log.say(format!("NOT NOTICED: nothing was found of the kinds {missed:?}"));
        for line in verdict.lines() {
            log.say(line);
        }
    }
    if !noticed || arguments.keep {
        log.say(format!("logs and data are kept in {}", world.keep().display()));
    }
    noticed
}
