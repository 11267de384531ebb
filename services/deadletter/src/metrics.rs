//! The metrics of this service.

use std::time::Duration;

use herald_audit::FindingKind;
use herald_model::{Channel, time::Timestamp};
use herald_runtime::metrics::{Counter, Family, Gauge, Histogram, Registry, seconds};
use herald_store::{Cause, Erasure};

type ConsumerLabels = [(&'static str, String); 2];
type StateLabels = [(&'static str, &'static str); 2];
type LeaseLabels = [(&'static str, &'static str); 1];
type KindLabels = [(&'static str, &'static str); 1];

/// The metrics of the deadletter service.
#[derive(Debug, Clone)]
pub struct Metrics {
    created: Family<ConsumerLabels, Counter>,
    /// Open dead letters.
    pub open: Gauge,
    /// Redelivered advisories and DLQ entries whose dead letter existed already.
    pub repeats: Counter,
    /// Ignored advisories: about streams and consumers of other programs, or about messages that were handled.
    pub ignored: Counter,
    /// Dead letters that wait for the store.
    pub waiting: Gauge,
    /// Dead letters published to REDRIVE.
    pub redriven: Counter,
    /// Redriven dead letters that succeeded.
    pub resolved: Counter,
    /// Redriven dead letters that failed again.
    pub failed_again: Counter,
    /// Dead letters discarded.
    pub discarded: Counter,
    erasures_running: Gauge,
    erasure_oldest_seconds: Gauge,
    /// Time from the end of the last attempt until the dead letter is in the store.
    pub visible_seconds: Histogram,
    audited: Family<StateLabels, Gauge>,
    findings: Family<KindLabels, Gauge>,
    oldest_pending_seconds: Gauge,
    continuous_audit_interval_seconds: Gauge,
    continuous_audit_alive_time_seconds: Gauge,
    leading: Family<LeaseLabels, Gauge>,
    /// 1 while retention removes nothing because the clock has jumped.
    pub retention_paused: Gauge,
    /// Completed rounds of the continuous audit.
    pub continuous_audit_rounds: Counter,
    /// Failed rounds of the continuous audit.
    pub continuous_audit_failures: Counter,
}

impl Metrics {
    /// Creates the metrics and registers them.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            created: Family::default(),
            open: Gauge::default(),
            repeats: Counter::default(),
            ignored: Counter::default(),
            waiting: Gauge::default(),
            redriven: Counter::default(),
            resolved: Counter::default(),
            failed_again: Counter::default(),
            discarded: Counter::default(),
            erasures_running: Gauge::default(),
            erasure_oldest_seconds: Gauge::default(),
            visible_seconds: seconds(),
            audited: Family::default(),
            findings: Family::default(),
            oldest_pending_seconds: Gauge::default(),
            continuous_audit_interval_seconds: Gauge::default(),
            continuous_audit_alive_time_seconds: Gauge::default(),
            leading: Family::default(),
            retention_paused: Gauge::default(),
            continuous_audit_rounds: Counter::default(),
            continuous_audit_failures: Counter::default(),
        };
        registry.register(
            "deadletter_created",
            "Dead letters created, by consumer and cause",
            metrics.created.clone(),
        );
        registry.register(
            "deadletter_open",
            "Open dead letters, sampled every 10 s",
            metrics.open.clone(),
        );
        registry.register(
            "deadletter_repeats",
            "Redelivered advisories and DLQ entries whose dead letter existed already",
            metrics.repeats.clone(),
        );
        registry.register(
            "deadletter_ignored",
            "Ignored advisories, about other programs or handled messages",
            metrics.ignored.clone(),
        );
        registry.register(
            "deadletter_waiting",
            "Dead letters that wait for the store",
            metrics.waiting.clone(),
        );
        registry.register(
            "deadletter_redriven",
            "Dead letters published to REDRIVE",
            metrics.redriven.clone(),
        );
        registry.register(
            "deadletter_resolved",
            "Redriven dead letters that succeeded",
            metrics.resolved.clone(),
        );
        registry.register(
            "deadletter_failed_again",
            "Redriven dead letters that failed again",
            metrics.failed_again.clone(),
        );
        registry.register(
            "deadletter_discarded",
            "Dead letters discarded",
            metrics.discarded.clone(),
        );
        registry.register(
            "deadletter_erasures_running",
            "Erasures of users that are not complete, if this process runs them, else 0",
            metrics.erasures_running.clone(),
        );
        registry.register(
            "deadletter_erasure_oldest_seconds",
            "Age of the oldest erasure of a user that is not complete, if this process runs them, else 0",
            metrics.erasure_oldest_seconds.clone(),
        );
        registry.register(
            "deadletter_visible_seconds",
            "Time from the end of a message's last attempt until its dead letter is in the store",
            metrics.visible_seconds.clone(),
        );
        registry.register(
            "audit_deliveries",
            "Deliveries of recent posts by channel and state; targeted is the sum of the other states",
            metrics.audited.clone(),
        );
        registry.register(
            "audit_findings",
            "Findings of the last round of the continuous audit, by kind",
            metrics.findings.clone(),
        );
        registry.register(
            "audit_oldest_pending_seconds",
            "Age of the oldest recent post with a pending delivery; 0 if there is none",
            metrics.oldest_pending_seconds.clone(),
        );
        registry.register(
            "audit_interval_seconds",
            "Time between two rounds of the continuous audit, if this process runs it, else 0",
            metrics.continuous_audit_interval_seconds.clone(),
        );
        registry.register(
            "audit_alive_time_seconds",
            "When the continuous audit of this process was last known to work, seconds since 1970: a round ended well, \
             or one went on and the round before it did not fail; 0 if another process runs it",
            metrics.continuous_audit_alive_time_seconds.clone(),
        );
        registry.register(
            "deadletter_leading",
            "1 while this process holds the lease and does its work, else 0; 0 at once when the lease is lost",
            metrics.leading.clone(),
        );
        registry.register(
            "deadletter_retention_paused",
            "1 while retention removes nothing because the clock has jumped, else 0",
            metrics.retention_paused.clone(),
        );
        registry.register(
            "audit_rounds",
            "Completed rounds of the continuous audit",
            metrics.continuous_audit_rounds.clone(),
        );
        registry.register(
            "audit_failures",
            "Failed rounds of the continuous audit",
            metrics.continuous_audit_failures.clone(),
        );
        metrics
    }

    pub(crate) fn record_created(&self, consumer: &str, cause: Cause) {
        let labels = [
            ("consumer", consumer.to_owned()),
            ("cause", cause_label(cause).into()),
        ];
        self.created.get_or_create(&labels).inc();
    }

    pub(crate) fn set_audited(&self, channel: Channel, state: &'static str, deliveries: u64) {
        let labels = [("channel", channel.as_str()), ("state", state)];
        let deliveries = i64::try_from(deliveries).unwrap_or(i64::MAX);
        self.audited.get_or_create(&labels).set(deliveries);
    }

    pub(crate) fn set_findings(&self, kind: FindingKind, findings: u64) {
        let findings = i64::try_from(findings).unwrap_or(i64::MAX);
        self.findings
            .get_or_create(&[("kind", kind.as_str())])
            .set(findings);
    }

    pub(crate) fn set_oldest_pending(&self, age: Duration) {
        let seconds = i64::try_from(age.as_secs()).unwrap_or(i64::MAX);
        self.oldest_pending_seconds.set(seconds);
    }

    pub(crate) fn set_leading(&self, lease: &'static str, leading: bool) {
        self.leading
            .get_or_create(&[("lease", lease)])
            .set(leading.into());
    }

    /// Sets the erasures that are not complete, oldest first.
    pub(crate) fn set_erasures(&self, running: &[Erasure], now: Timestamp) {
        let count = i64::try_from(running.len()).unwrap_or(i64::MAX);
        self.erasures_running.set(count);
        let oldest = running
            .first()
            .map_or(0, |oldest| now.since(oldest.requested_at).as_secs());
        self.erasure_oldest_seconds
            .set(i64::try_from(oldest).unwrap_or(i64::MAX));
    }

    pub(crate) fn set_audit_interval(&self, interval: Duration) {
        let seconds = i64::try_from(interval.as_secs()).unwrap_or(i64::MAX);
        self.continuous_audit_interval_seconds.set(seconds);
    }

    /// Says that the continuous audit works at this time.
    pub(crate) fn set_audit_alive(&self, at: Timestamp) {
        self.continuous_audit_alive_time_seconds.set(at.0 / 1_000_000);
    }

    /// Removes the results of the last round: another process reports the newer ones.
    pub(crate) fn clear_audit(&self) {
        self.audited.clear();
        self.findings.clear();
        self.oldest_pending_seconds.set(0);
        self.continuous_audit_interval_seconds.set(0);
        self.continuous_audit_alive_time_seconds.set(0);
    }

    pub(crate) fn set_open(&self, dead_letters: u64) {
        self.open.set(i64::try_from(dead_letters).unwrap_or(i64::MAX));
    }
}

const fn cause_label(cause: Cause) -> &'static str {
    match cause {
        Cause::MaxDeliveries => "max_deliveries",
        Cause::Terminated => "terminated",
        Cause::Removed => "removed",
        Cause::Unreadable => "unreadable",
        Cause::Audit => "audit",
    }
}
