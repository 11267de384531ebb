//! Waits until consumers have settled messages.

use std::time::Duration;

use herald_mesh::{ConsumerLag, ConsumerSpec};
use tokio::time::Instant;

use super::Erase;
use crate::Result;

/// Delay between two readings of a consumer: it doubles from the minimum to the maximum.
const POLL_MIN: Duration = Duration::from_millis(50);
const POLL_MAX: Duration = Duration::from_secs(2);
/// Wait after which the log says what is waited for.
const TOLD_AFTER: Duration = Duration::from_mins(1);

impl Erase<'_> {
    /// Waits until each consumer of a stream has settled all its messages up to the sequence that `wanted` returns for
    /// it; `None`: it does not wait for this consumer.
    pub(super) async fn wait_until_settled(
        &self,
        stream: &str,
        wanted: impl Fn(&ConsumerSpec) -> Option<u64>,
    ) -> Result<()> {
        for consumer in self.data.topology.consumers_of(stream) {
            if let Some(sequence) = wanted(consumer) {
                self.wait_for(consumer, sequence).await?;
            }
        }
        Ok(())
    }

    async fn wait_for(&self, consumer: &ConsumerSpec, sequence: u64) -> Result<()> {
        let (begun, mut delay, mut told) = (Instant::now(), POLL_MIN, false);
        loop {
            let lag = self.data.mesh.lag_of(consumer).await?;
            if lag.is_some_and(|lag| has_settled(consumer, &lag, sequence)) {
                return Ok(());
            }
            if !told && begun.elapsed() >= TOLD_AFTER {
                told = true;
                tracing::warn!(
                    erasure_id = self.erasure.id.0,
                    stream = consumer.stream,
                    consumer = consumer.name,
                    sequence,
                    "the erasure waits until the consumer has settled its messages"
                );
            }
            tokio::time::sleep(delay).await;
            delay = (2 * delay).min(POLL_MAX);
        }
    }
}

/// Whether a consumer has settled all its messages up to a sequence. The ack floor advances only with messages of the
/// consumer, so it can stay below the sequence; then no message of the consumer is outstanding.
fn has_settled(consumer: &ConsumerSpec, lag: &ConsumerLag, sequence: u64) -> bool {
    // A consumer of all subjects counts a message as pending only some time after its publish was acknowledged.
    let has_seen_all = consumer.filter.is_some() || lag.delivered_sequence >= sequence;
    lag.ack_floor >= sequence || (lag.outstanding_count() == 0 && has_seen_all)
}
