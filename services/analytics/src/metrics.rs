//! Every metric of this service.

use herald_runtime::metrics::{Counter, Family, Gauge, Histogram, Registry, seconds};

type ByTable = [(&'static str, &'static str); 1];

/// The analytics service's metrics.
#[derive(Debug, Clone)]
pub struct Metrics {
    rows: Family<ByTable, Counter>,
    files: Family<ByTable, Counter>,
    /// Messages skipped because they were counted before.
    pub repeats: Counter,
    /// Rows skipped because they are not newer than the counted revision of their chunk.
    pub stale: Counter,
    /// Files written again because another instance counted a part of their rows meanwhile.
    pub overtaken: Counter,
    /// Batches, or files of a batch, that failed.
    pub failures: Counter,
    /// Messages that failed permanently and were isolated from their batch, per attempt.
    pub isolated: Counter,
    /// Uncounted files deleted after a failure or a crash.
    pub leftovers: Counter,
    /// Posts that wait for the store to look up their authors.
    pub waiting: Gauge,
    /// Time to commit a batch.
    pub commit_seconds: Histogram,
}

impl Metrics {
    /// Registers the metrics.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            rows: Family::default(),
            files: Family::default(),
            repeats: Counter::default(),
            stale: Counter::default(),
            overtaken: Counter::default(),
            failures: Counter::default(),
            isolated: Counter::default(),
            leftovers: Counter::default(),
            waiting: Gauge::default(),
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
            "Messages skipped because they were counted before",
            metrics.repeats.clone(),
        );
        registry.register(
            "analytics_stale",
            "Rows skipped because they are not newer than the counted revision of their chunk",
            metrics.stale.clone(),
        );
        registry.register(
            "analytics_overtaken",
            "Files written again because another instance counted a part of their rows meanwhile",
            metrics.overtaken.clone(),
        );
        registry.register(
            "analytics_failures",
            "Batches, or files of a batch, that failed",
            metrics.failures.clone(),
        );
        registry.register(
            "analytics_isolated",
            "Messages that failed permanently and were isolated from their batch, per attempt",
            metrics.isolated.clone(),
        );
        registry.register(
            "analytics_leftovers",
            "Uncounted files deleted after a failure or a crash",
            metrics.leftovers.clone(),
        );
        registry.register(
            "analytics_waiting",
            "Posts that wait for the store to look up their authors",
            metrics.waiting.clone(),
        );
        registry.register(
            "analytics_commit_seconds",
            "Time to commit a batch",
            metrics.commit_seconds.clone(),
        );
        metrics
    }

    pub(crate) fn count_file(&self, table: &'static str, rows: usize) {
        self.rows.get_or_create(&[("table", table)]).inc_by(rows as u64);
        self.files.get_or_create(&[("table", table)]).inc();
    }
}
