//! Shows what the broker has, its streams and consumers, in the metrics of the process.
//!
//! Every process with the deadletter role does so: its user of the NATS server reads all streams anyway, and there are few such
//! processes. They all show the same.

use std::{sync::Arc, time::Duration};

use herald_mesh::{BrokerMetrics, ConsumerLag, ConsumerSpec, Error, Mesh, Topology};
use herald_scaler::{Assumptions, Known};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::Config;

/// Interval between two readings.
const INTERVAL: Duration = Duration::from_secs(10);
/// Time-out of reading one stream or consumer.
const READ_TIMEOUT: Duration = Duration::from_secs(2);
/// Messages of a consumer that are read to estimate their deliveries.
const SAMPLE_MESSAGES_MAX: u64 = 16;

/// Reads the streams and consumers, one after the other: a broker that is slow gets no more requests for it.
pub(super) struct BrokerState {
    mesh: Mesh,
    topology: Arc<Topology>,
    assumptions: Assumptions,
    metrics: BrokerMetrics,
}

impl BrokerState {
    pub(super) fn new(mesh: Mesh, topology: Arc<Topology>, config: &Config, metrics: BrokerMetrics) -> Self {
        Self {
            mesh,
            topology,
            assumptions: Assumptions {
                post_recipients: config.scaler.post_recipients as f64,
                slice_recipients: config.fanout.slice_recipients_max.into(),
                backfill_posts: config.timeline.backfill_posts_max.max(1) as f64,
            },
            metrics,
        }
    }

    /// Reads until the shutdown.
    pub(super) async fn run(self, shutdown: CancellationToken) -> Result<(), std::convert::Infallible> {
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
            let _ = shutdown.run_until_cancelled(Box::pin(self.read())).await;
        }
        Ok(())
    }

    async fn read(&self) {
        for spec in &self.topology.streams {
            match self.ask(self.mesh.stream_state(spec)).await {
                Some(Ok(read)) => self.metrics.show_stream(&read),
                failed => {
                    tracing::debug!(stream = spec.name, ?failed, "stream can't be read for metrics");
                    self.metrics.show_unreadable_stream(&spec.name);
                }
            }
        }
        for spec in &self.topology.consumers {
            match self.ask(self.read_consumer(spec)).await {
                Some(Ok(Some((read, deliveries)))) => self.metrics.show_consumer(&read, deliveries),
                failed => {
                    tracing::debug!(
                        consumer = spec.name,
                        ?failed,
                        "consumer can't be read for metrics"
                    );
                    self.metrics.show_unreadable_consumer(&spec.name);
                }
            }
        }
    }

    /// The answer of the broker; `None` after the time-out, and at once while the broker is away: the time-outs of all streams
    /// and consumers together would show old values for minutes.
    async fn ask<T>(&self, reading: impl Future<Output = T>) -> Option<T> {
        if !self.mesh.is_connected() {
            return None;
        }
        timeout(READ_TIMEOUT, reading).await.ok()
    }

    /// The state of a consumer, and the deliveries in its messages that are not settled; `None` if it doesn't exist.
    async fn read_consumer(&self, spec: &ConsumerSpec) -> Result<Option<(ConsumerLag, f64)>, Error> {
        let Some(read) = self.mesh.lag_of(spec).await? else {
            return Ok(None);
        };
        let outstanding = read.outstanding_count();
        let of_message = match self.assumptions.of_consumer(&spec.name) {
            Known::Fixed(deliveries) => deliveries,
            Known::InMessages(_) if outstanding == 0 => 0.0,
            Known::InMessages(assumed) => {
                let sample = self.mesh.sample(spec, read.ack_floor, SAMPLE_MESSAGES_MAX);
                let messages = sample.await?;
                let deliveries = messages
                    .iter()
                    .map(|message| self.assumptions.of_message(message));
                if messages.is_empty() {
                    assumed
                } else {
                    deliveries.sum::<f64>() / messages.len() as f64
                }
            }
        };
        Ok(Some((read, outstanding as f64 * of_message)))
    }
}
