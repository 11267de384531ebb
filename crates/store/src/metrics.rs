//! All metrics of the store: its calls, and the connections, rebuilds and commands of the cluster engine.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use herald_metrics::encoding::{DescriptorEncoder, EncodeMetric};
use herald_metrics::{
    Collector, Counter, Family, Gauge, Histogram, MetricType, Registry, seconds, seconds_family,
};
use sqlx::PgPool;

use crate::{ErrorKind, Result};

type Label = (&'static str, &'static str);
type Seconds<const N: usize> = Family<[Label; N], Histogram, fn() -> Histogram>;

/// The metrics of an engine. Clones share the values.
#[derive(Debug, Clone)]
pub struct Metrics {
    operation_seconds: Seconds<2>,
    pool: Arc<OnceLock<PgPool>>,
    pool_wait_seconds: Histogram,
    valkey_seconds: Seconds<1>,
    rebuilds: Family<[Label; 1], Counter>,
    rebuild_seconds: Histogram,
    unreadable_devices: Counter,
    removed: Family<[Label; 1], Counter>,
}

impl Default for Metrics {
    /// Metrics that are not exported yet.
    fn default() -> Self {
        Self {
            operation_seconds: seconds_family(),
            pool: Arc::default(),
            pool_wait_seconds: seconds(),
            valkey_seconds: seconds_family(),
            rebuilds: Family::default(),
            rebuild_seconds: seconds(),
            unreadable_devices: Counter::default(),
            removed: Family::default(),
        }
    }
}

impl Metrics {
    /// Registers the metrics.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "store_operation_seconds",
            "Time of a call of the store, by operation and result",
            self.operation_seconds.clone(),
        );
        registry.register(
            "store_unreadable_devices",
            "Reads of a user's devices that failed because they could not be decrypted or decoded",
            self.unreadable_devices.clone(),
        );
        registry.register(
            "store_retention_removed",
            "Texts of deleted posts, and posts, that retention has removed",
            self.removed.clone(),
        );
    }

    /// Counts what retention has removed: `texts` of deleted posts, or `posts`.
    pub(crate) fn add_removed(&self, what: &'static str, count: u64) {
        self.removed.get_or_create(&[("data", what)]).inc_by(count);
    }

    /// Counts reads of a user's devices that could not be decrypted or decoded.
    pub(crate) fn unreadable_devices(&self) -> &Counter {
        &self.unreadable_devices
    }

    /// Registers the metrics of the cluster engine too.
    pub fn register_cluster(&self, registry: &mut Registry) {
        self.register(registry);
        registry.register_collector(Pool(Arc::clone(&self.pool)));
        registry.register(
            "store_pool_wait_seconds",
            "Time until a call gets a connection to PostgreSQL",
            self.pool_wait_seconds.clone(),
        );
        registry.register(
            "store_valkey_seconds",
            "Time of a command or pipeline of commands to Valkey, by result",
            self.valkey_seconds.clone(),
        );
        registry.register(
            "store_timeline_rebuilds",
            "Timelines that were rebuilt from PostgreSQL, by result",
            self.rebuilds.clone(),
        );
        registry.register(
            "store_timeline_rebuild_seconds",
            "Time to rebuild a timeline from PostgreSQL",
            self.rebuild_seconds.clone(),
        );
    }

    /// Observes a call.
    pub(crate) async fn observe<T>(
        &self,
        operation: &'static str,
        call: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let started = Instant::now();
        let done = call.await;
        let labels = [("operation", operation), ("result", result_of_call(&done))];
        let seconds = self.operation_seconds.get_or_create(&labels);
        seconds.observe(started.elapsed().as_secs_f64());
        done
    }

    /// The connections to PostgreSQL.
    pub(crate) fn set_pool(&self, pool: &PgPool) {
        // A process has one engine, so there is no second pool.
        let _ = self.pool.set(pool.clone());
    }

    /// Records that a call has waited for a connection to PostgreSQL since `started`.
    pub(crate) fn record_pool_wait(&self, started: Instant) {
        self.pool_wait_seconds.observe(started.elapsed().as_secs_f64());
    }

    /// Records what Valkey has answered to what was sent at `started`.
    pub(crate) fn record_valkey<T, E>(&self, started: Instant, done: &std::result::Result<T, E>) {
        let seconds = self.valkey_seconds.get_or_create(&[("result", result(done))]);
        seconds.observe(started.elapsed().as_secs_f64());
    }

    /// Records the rebuild of a timeline that began at `started`.
    pub(crate) fn record_rebuild<T>(&self, started: Instant, done: &Result<T>) {
        self.rebuild_seconds.observe(started.elapsed().as_secs_f64());
        self.rebuilds.get_or_create(&[("result", result(done))]).inc();
    }
}

/// The result of a call. A refusal is an answer that callers count on: a claim that another worker holds, a row that has
/// changed. The store works.
fn result_of_call<T>(done: &Result<T>) -> &'static str {
    match done.as_ref().err().map(crate::Error::kind) {
        None => "ok",
        Some(
            ErrorKind::Claimed
            | ErrorKind::Conflict
            | ErrorKind::Fenced
            | ErrorKind::HistoryTrimmed
            | ErrorKind::LimitExceeded,
        ) => "refused",
        Some(
            ErrorKind::Unavailable
            | ErrorKind::Full
            | ErrorKind::UnknownVersion
            | ErrorKind::Invalid
            | ErrorKind::Corrupt
            | ErrorKind::Locked
            | ErrorKind::Failed,
        ) => "error",
    }
}

fn result<T, E>(done: &std::result::Result<T, E>) -> &'static str {
    if done.is_ok() { "ok" } else { "error" }
}

/// The connections to PostgreSQL, read when they are exported.
#[derive(Debug)]
struct Pool(Arc<OnceLock<PgPool>>);

impl Collector for Pool {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::result::Result<(), std::fmt::Error> {
        let connections = Family::<[Label; 1], Gauge>::default();
        let max = Family::<[Label; 0], Gauge>::default();
        if let Some(pool) = self.0.get() {
            let (size, idle) = (
                i64::from(pool.size()),
                i64::try_from(pool.num_idle()).unwrap_or(i64::MAX),
            );
            connections.get_or_create(&[("state", "idle")]).set(idle);
            connections
                .get_or_create(&[("state", "in_use")])
                .set(size.saturating_sub(idle).max(0));
            max.get_or_create(&[])
                .set(pool.options().get_max_connections().into());
        }
        let help = "Open connections to PostgreSQL, by state.";
        connections.encode(encoder.encode_descriptor(
            "store_pool_connections",
            help,
            None,
            MetricType::Gauge,
        )?)?;
        let help = "Connections to PostgreSQL that this process may open.";
        max.encode(encoder.encode_descriptor("store_pool_max_connections", help, None, MetricType::Gauge)?)
    }
}

#[cfg(test)]
mod tests {
    use herald_metrics::Shared;

    use super::*;
    use crate::Error;

    #[tokio::test]
    async fn an_answer_that_callers_count_on_is_no_error() {
        let metrics = Metrics::default();
        let shared = Shared::new();
        shared.register(|registry| metrics.register(registry));
        let call = async |kind| {
            let failing = async { Err::<(), _>(Error::new(kind, "no")) };
            metrics.observe("ledger_claim", failing).await.unwrap_err();
        };
        for kind in [
            ErrorKind::Claimed,
            ErrorKind::Conflict,
            ErrorKind::Fenced,
            ErrorKind::HistoryTrimmed,
            ErrorKind::LimitExceeded,
        ] {
            call(kind).await;
        }
        for kind in [ErrorKind::Unavailable, ErrorKind::Failed, ErrorKind::Corrupt] {
            call(kind).await;
        }
        metrics.observe("ledger_claim", async { Ok(()) }).await.unwrap();
        let text = shared.open_metrics();
        for (result, count) in [("refused", 5), ("error", 3), ("ok", 1)] {
            let line = format!(
                "herald_store_operation_seconds_count{{operation=\"ledger_claim\",result=\"{result}\"}} {count}"
            );
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }
}
