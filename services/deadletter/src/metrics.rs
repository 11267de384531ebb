//! Every metric of this service.

use herald_runtime::metrics::{Counter, Family, Gauge, Histogram, Registry, seconds};
use herald_store::Cause;

type ByConsumer = [(&'static str, String); 2];

/// The deadletter service's counters.
#[derive(Debug, Clone)]
pub struct Metrics {
    letters: Family<ByConsumer, Counter>,
    /// Letters that nobody has decided upon.
    pub open: Gauge,
    /// Letters about messages that had one already: advisories come again.
    pub repeats: Counter,
    /// Advisories about streams and consumers that aren't the mesh's.
    pub ignored: Counter,
    /// Letters sent once more.
    pub redriven: Counter,
    /// Of these, done.
    pub resolved: Counter,
    /// Of these, failed again.
    pub failed_again: Counter,
    /// Letters discarded.
    pub discarded: Counter,
    /// From the end of the last attempt until the letter could be seen.
    pub visible_seconds: Histogram,
}

impl Metrics {
    /// Registers them.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            letters: Family::default(),
            open: Gauge::default(),
            repeats: Counter::default(),
            ignored: Counter::default(),
            redriven: Counter::default(),
            resolved: Counter::default(),
            failed_again: Counter::default(),
            discarded: Counter::default(),
            visible_seconds: seconds(),
        };
        registry.register(
            "deadletter_letters",
            "Messages given up, by consumer and cause",
            metrics.letters.clone(),
        );
        registry.register(
            "deadletter_open",
            "Dead letters that nobody has decided upon",
            metrics.open.clone(),
        );
        registry.register(
            "deadletter_repeats",
            "Advisories and letters about messages that had a letter already",
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
            "From the end of a message's last attempt until its letter could be seen",
            metrics.visible_seconds.clone(),
        );
        metrics
    }

    pub(crate) fn letter(&self, consumer: &str, cause: Cause) {
        let labels = [
            ("consumer", consumer.to_owned()),
            ("cause", cause_name(cause).into()),
        ];
        self.letters.get_or_create(&labels).inc();
    }

    pub(crate) fn open(&self, letters: u64) {
        self.open.set(i64::try_from(letters).unwrap_or(i64::MAX));
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
