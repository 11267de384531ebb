//! Makes dead letters of advisories.

use std::sync::Arc;

use async_trait::async_trait;
use herald_mesh::{Delivery, Disposition, ErrorKind, Handler, Mesh, Topology, streams};
use herald_proto::{mesh_v1::DlqEntry, v1};
use herald_store::Cause;

use crate::{Metrics, domain::advisory::Advisory, error::StepError, origin};

/// Works on ADVISORIES.
pub(crate) struct Advisories {
    pub(crate) mesh: Mesh,
    pub(crate) topology: Arc<Topology>,
    pub(crate) metrics: Metrics,
}

#[async_trait]
impl Handler for Advisories {
    async fn handle(&self, delivery: &Delivery) -> Disposition {
        let advisory = match Advisory::parse(&delivery.payload) {
            Ok(advisory) => advisory,
            Err(error) => return Disposition::term(format_args!("unreadable advisory: {error}")),
        };
        if !self.is_ours(&advisory) {
            tracing::debug!(
                stream = advisory.stream,
                consumer = advisory.consumer,
                sequence = advisory.sequence,
                "advisory of another's consumer ignored"
            );
            self.metrics.ignored.inc();
            return Disposition::Ack;
        }
        if is_done(&advisory) {
            self.metrics.ignored.inc();
            return Disposition::Ack;
        }
        match self.write(advisory).await {
            Ok(()) => Disposition::Ack,
            Err(error) => Disposition::retry(error),
        }
    }
}

/// Whether a message is gone because it was handled. LATER keeps a message until it is acknowledged; a server that is killed
/// then can find the message gone and its consumer's book a moment older, and takes it for deleted.
fn is_done(advisory: &Advisory) -> bool {
    advisory.stream == streams::LATER && advisory.cause == Cause::Removed
}

impl Advisories {
    fn is_ours(&self, advisory: &Advisory) -> bool {
        self.topology
            .consumer(&advisory.consumer)
            .is_some_and(|consumer| consumer.stream == advisory.stream)
    }

    /// Puts the dead letter into DLQ. An advisory that comes again makes the same one, which DLQ drops within its window and the
    /// store afterwards.
    async fn write(&self, advisory: Advisory) -> Result<(), StepError> {
        let message = self.mesh.message(&advisory.stream, advisory.sequence).await?;
        let dead_letter = origin::dead_letter(advisory, message.as_ref());
        match self.publish(&dead_letter).await {
            Err(error) if error.kind() == ErrorKind::TooLarge && !dead_letter.payload.is_empty() => {
                let without = DlqEntry {
                    payload: bytes::Bytes::new(),
                    payload_state: v1::DeadLetterPayload::TooLarge.into(),
                    headers: Vec::new(),
                    ..dead_letter
                };
                self.publish(&without).await?;
            }
            published => published?,
        }
        Ok(())
    }

    async fn publish(&self, dead_letter: &DlqEntry) -> Result<(), herald_mesh::Error> {
        let id = format!(
            "{}/{}/{}",
            dead_letter.stream, dead_letter.consumer, dead_letter.sequence
        );
        let published = self
            .mesh
            .publish_dead_letter(&dead_letter.stream, &dead_letter.consumer, &id, dead_letter)
            .await?;
        if published.duplicate {
            self.metrics.repeats.inc();
        }
        Ok(())
    }
}
