//! Every metric of this service.

use std::time::Duration;

use herald_audit::FindingKind;
use herald_model::Channel;
use herald_runtime::metrics::{Counter, Family, Gauge, Histogram, Registry, seconds};
use herald_store::Cause;

type ByConsumer = [(&'static str, String); 2];
type ByState = [(&'static str, &'static str); 2];
type ByKind = [(&'static str, &'static str); 1];

/// The deadletter service's counters.
#[derive(Debug, Clone)]
pub struct Metrics {
    dead_letters: Family<ByConsumer, Counter>,
    /// Dead letters that nobody has decided upon.
    pub open: Gauge,
    /// Dead letters about messages that had one already: advisories come again.
    pub repeats: Counter,
    /// Advisories about streams and consumers that aren't the mesh's.
    pub ignored: Counter,
    /// Dead letters sent once more.
    pub redriven: Counter,
    /// Of these, done.
    pub resolved: Counter,
    /// Of these, failed again.
    pub failed_again: Counter,
    /// Dead letters discarded.
    pub discarded: Counter,
    /// From the end of the last attempt until the dead letter could be seen.
    pub visible_seconds: Histogram,
    audited: Family<ByState, Gauge>,
    found: Family<ByKind, Gauge>,
    oldest_pending_seconds: Gauge,
    /// Rounds of the continuous audit.
    pub continuous_audit_rounds: Counter,
    /// Rounds that could not be finished.
    pub continuous_audit_failures: Counter,
}

impl Metrics {
    /// Registers them.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            dead_letters: Family::default(),
            open: Gauge::default(),
            repeats: Counter::default(),
            ignored: Counter::default(),
            redriven: Counter::default(),
            resolved: Counter::default(),
            failed_again: Counter::default(),
            discarded: Counter::default(),
            visible_seconds: seconds(),
            audited: Family::default(),
            found: Family::default(),
            oldest_pending_seconds: Gauge::default(),
            continuous_audit_rounds: Counter::default(),
            continuous_audit_failures: Counter::default(),
        };
        registry.register(
            "deadletter_created",
            "Messages given up, by consumer and cause",
            metrics.dead_letters.clone(),
        );
        registry.register(
            "deadletter_open",
            "Dead letters that nobody has decided upon",
            metrics.open.clone(),
        );
        registry.register(
            "deadletter_repeats",
            "Advisories and dead letters about messages that had a dead letter already",
            metrics.repeats.clone(),
        );
        registry.register(
            "deadletter_ignored",
            "Advisories about streams and consumers that are not the mesh's",
            metrics.ignored.clone(),
        );
        registry.register(
            "deadletter_redriven",
            "Dead letters sent once more",
            metrics.redriven.clone(),
        );
        registry.register(
            "deadletter_resolved",
            "Dead letters that were sent once more and are done",
            metrics.resolved.clone(),
        );
        registry.register(
            "deadletter_failed_again",
            "Dead letters that were sent once more and failed again",
            metrics.failed_again.clone(),
        );
        registry.register(
            "deadletter_discarded",
            "Dead letters discarded",
            metrics.discarded.clone(),
        );
        registry.register(
            "deadletter_visible_seconds",
            "From the end of a message's last attempt until its dead letter could be seen",
            metrics.visible_seconds.clone(),
        );
        registry.register(
            "audit_deliveries",
            "Deliveries of the newest posts by channel and state; targeted is the sum of the others",
            metrics.audited.clone(),
        );
        registry.register(
            "audit_findings",
            "What the last audit of the newest posts found wrong, by kind",
            metrics.found.clone(),
        );
        registry.register(
            "audit_oldest_pending_seconds",
            "Age of the oldest of the newest posts that has a pending delivery; 0 without one",
            metrics.oldest_pending_seconds.clone(),
        );
        registry.register(
            "audit_rounds",
            "Audits of the newest posts",
            metrics.continuous_audit_rounds.clone(),
        );
        registry.register(
            "audit_failures",
            "Audits of the newest posts that could not be finished",
            metrics.continuous_audit_failures.clone(),
        );
        metrics
    }

    pub(crate) fn dead_letter(&self, consumer: &str, cause: Cause) {
        let labels = [
            ("consumer", consumer.to_owned()),
            ("cause", cause_name(cause).into()),
        ];
        self.dead_letters.get_or_create(&labels).inc();
    }

    pub(crate) fn audited(&self, channel: Channel, state: &'static str, deliveries: u64) {
        let labels = [("channel", channel.as_str()), ("state", state)];
        let deliveries = i64::try_from(deliveries).unwrap_or(i64::MAX);
        self.audited.get_or_create(&labels).set(deliveries);
    }

    pub(crate) fn found(&self, kind: FindingKind, findings: u64) {
        let findings = i64::try_from(findings).unwrap_or(i64::MAX);
        self.found.get_or_create(&[("kind", kind.as_str())]).set(findings);
    }

    pub(crate) fn oldest_pending(&self, age: Duration) {
        let seconds = i64::try_from(age.as_secs()).unwrap_or(i64::MAX);
        self.oldest_pending_seconds.set(seconds);
    }

    pub(crate) fn open(&self, dead_letters: u64) {
        self.open.set(i64::try_from(dead_letters).unwrap_or(i64::MAX));
    }
}

const fn cause_name(cause: Cause) -> &'static str {
    match cause {
        Cause::MaxDeliveries => "max_deliveries",
        Cause::Terminated => "terminated",
        Cause::Removed => "removed",
        Cause::Unreadable => "unreadable",
        Cause::Audit => "audit",
    }
}
