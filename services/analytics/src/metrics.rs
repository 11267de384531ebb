//! Every metric of this service.

use herald_runtime::metrics::{Counter, Family, Histogram, Registry, seconds};

type ByTable = [(&'static str, &'static str); 1];

/// The analytics service's counters.
#[derive(Debug, Clone)]
pub struct Metrics {
    rows: Family<ByTable, Counter>,
    files: Family<ByTable, Counter>,
    /// Messages that had been counted before: redeliveries, left out.
    pub repeats: Counter,
    /// Events that told nothing new of their chunk: published again, or overtaken by a later one.
    pub stale: Counter,
    /// Batches, or parts of them, that failed.
    pub failures: Counter,
    /// Messages that can't be counted by a fault and were kept from others of their batch, once an attempt.
    pub isolated: Counter,
    /// Files of earlier failures or an earlier run, deleted.
    pub leftovers: Counter,
    /// Time of one batch, from its last message to its commit.
    pub commit_seconds: Histogram,
}

impl Metrics {
    /// Registers them.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            rows: Family::default(),
            files: Family::default(),
            repeats: Counter::default(),
            stale: Counter::default(),
            failures: Counter::default(),
            isolated: Counter::default(),
            leftovers: Counter::default(),
            commit_seconds: seconds(),
        };
        registry.register(
            "analytics_rows",
            "Rows written and counted, by table",
            metrics.rows.clone(),
        );
        registry.register(
            "analytics_files",
            "Files written and counted, by table",
            metrics.files.clone(),
        );
        registry.register(
            "analytics_repeats",
            "Messages that had been counted before and were left out",
            metrics.repeats.clone(),
        );
        registry.register(
            "analytics_stale",
            "Events that told nothing new of their chunk and were left out",
            metrics.stale.clone(),
        );
        registry.register(
            "analytics_failures",
            "Batches, or files of them, that failed",
            metrics.failures.clone(),
        );
        registry.register(
            "analytics_isolated",
            "Messages that can't be counted by a fault, once an attempt",
            metrics.isolated.clone(),
        );
        registry.register(
            "analytics_leftovers",
            "Files of earlier failures or an earlier run that were deleted",
            metrics.leftovers.clone(),
        );
        registry.register(
            "analytics_commit_seconds",
            "Time of one batch from its last message to its commit",
            metrics.commit_seconds.clone(),
        );
        metrics
    }

    pub(crate) fn written(&self, table: &'static str, rows: usize) {
        self.rows.get_or_create(&[("table", table)]).inc_by(rows as u64);
        self.files.get_or_create(&[("table", table)]).inc();
    }
}
