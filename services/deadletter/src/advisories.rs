//! Creates the DLQ entries of dead letters from JetStream advisories.

use std::sync::Arc;

use async_trait::async_trait;
use herald_mesh::{Delivery, Disposition, ErrorKind, Handler, Mesh, Topology, streams};
use herald_proto::{mesh_v1::DlqEntry, v1};
use herald_store::Cause;

use crate::{Metrics, dlq_entry, domain::advisory::Advisory, error::StepError};

/// Handles the messages of ADVISORIES.
pub(crate) struct AdvisoryHandler {
    pub(crate) mesh: Mesh,
    pub(crate) topology: Arc<Topology>,
    pub(crate) metrics: Metrics,
}

#[async_trait]
impl Handler for AdvisoryHandler {
    async fn handle(&self, delivery: &Delivery) -> Disposition {
        let advisory = match Advisory::parse(&delivery.payload) {
            Ok(advisory) => advisory,
            Err(error) => return Disposition::term(format_args!("malformed advisory: {error}")),
        };
        if !self.is_declared(&advisory) {
            tracing::debug!(
                stream = advisory.stream,
                consumer = advisory.consumer,
                sequence = advisory.sequence,
                "advisory ignored: its consumer isn't Herald's"
            );
            self.metrics.ignored.inc();
            return Disposition::Ack;
        }
        if was_handled(&advisory) {
            self.metrics.ignored.inc();
            return Disposition::Ack;
        }
        match self.publish_dead_letter(advisory).await {
            Ok(()) => Disposition::Ack,
            Err(error) => Disposition::from(error),
        }
    }
}

/// Whether the advisory reports a handled message as removed. LATER deletes a message when it is acknowledged. A server
/// that is killed right after that may recover a consumer state from before the acknowledgement, and reports the
/// message as deleted.
fn was_handled(advisory: &Advisory) -> bool {
    advisory.stream == streams::LATER && advisory.cause == Cause::Removed
}

impl AdvisoryHandler {
    /// Whether the topology declares the advisory's consumer on its stream.
    fn is_declared(&self, advisory: &Advisory) -> bool {
        self.topology
            .consumer(&advisory.consumer)
            .is_some_and(|consumer| consumer.stream == advisory.stream)
    }

    /// Publishes the entry of a dead letter to DLQ, without the payload if the broker refuses it as too large.
    /// A redelivered advisory creates the same entry: DLQ drops it within the dedupe window, the store after that.
    async fn publish_dead_letter(&self, advisory: Advisory) -> Result<(), StepError> {
        let message = self.mesh.message(&advisory.stream, advisory.sequence).await?;
        if let Some(message) = &message {
            message.link_current_span();
        }
        let entry = dlq_entry::build(advisory, message.as_ref());
        match self.publish_entry(&entry).await {
            Err(error) if error.kind() == ErrorKind::TooLarge && !entry.payload.is_empty() => {
                let without_payload = DlqEntry {
                    payload: bytes::Bytes::new(),
                    payload_state: v1::DeadLetterPayload::TooLarge.into(),
                    headers: Vec::new(),
                    ..entry
                };
                self.publish_entry(&without_payload).await?;
            }
            published => published?,
        }
        Ok(())
    }

    async fn publish_entry(&self, entry: &DlqEntry) -> Result<(), herald_mesh::Error> {
        let id = format!("{}/{}/{}", entry.stream, entry.consumer, entry.sequence);
        let published = self
            .mesh
            .publish_dead_letter(&entry.stream, &entry.consumer, &id, entry)
            .await?;
        if published.duplicate {
            self.metrics.repeats.inc();
        }
        Ok(())
    }
}
