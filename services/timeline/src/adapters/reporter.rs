//! Publishes the outcomes of chunks for analytics.
//!
//! Chunks reported while an event is being published share the next event, so that a thousand small chunks need some
//! twenty messages.

use std::sync::Arc;

use herald_mesh::{Mesh, Subject};
use herald_model::Channel;
use herald_proto::{
    EVENT_CHUNKS_MAX,
    mesh_v1::{DeliveriesSettled, SettledChunk},
};
use tokio::sync::{mpsc, oneshot};
use tracing::Span;

use crate::error::DeliverError;

/// A handle of the publisher of events. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Reporter {
    /// Bounded by the chunks in flight: each of them has at most one report.
    inbox: mpsc::UnboundedSender<Report>,
}

#[derive(Debug)]
struct Report {
    chunk: SettledChunk,
    /// The span of the handler.
    span: Span,
    result: oneshot::Sender<Result<(), Arc<herald_mesh::Error>>>,
}

impl Reporter {
    /// Creates a reporter and its background task. The task ends after the last clone of the reporter is dropped.
    pub(crate) fn new(mesh: Mesh) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (inbox, reports) = mpsc::unbounded_channel();
        (Self { inbox }, publish_reports(mesh, reports))
    }

    /// Publishes the outcome of a chunk, and waits until it is stored in EVENTS.
    pub(crate) async fn report(&self, chunk: SettledChunk) -> Result<(), DeliverError> {
        let (result, published) = oneshot::channel();
        let report = Report {
            chunk,
            span: Span::current(),
            result,
        };
        self.inbox
            .send(report)
            .map_err(|_| DeliverError::PublisherStopped)?;
        published
            .await
            .map_err(|_| DeliverError::PublisherStopped)?
            .map_err(DeliverError::Event)
    }
}

async fn publish_reports(mesh: Mesh, mut inbox: mpsc::UnboundedReceiver<Report>) {
    let mut reports = Vec::with_capacity(EVENT_CHUNKS_MAX);
    while inbox.recv_many(&mut reports, EVENT_CHUNKS_MAX).await > 0 {
        // The chunk of a handler that was dropped meanwhile is redelivered.
        reports.retain(|report| !report.result.is_closed());
        if reports.is_empty() {
            continue;
        }
        let event = DeliveriesSettled {
            chunks: reports.iter().map(|report| report.chunk).collect(),
        };
        let spans: Vec<Span> = reports.iter().map(|report| report.span.clone()).collect();
        let id = event.message_id();
        let subject = Subject::Settled(Channel::Timeline);
        let published = mesh.publish_with_links(subject, Some(&id), &event, &spans).await;
        let outcome = published.map(drop).map_err(Arc::new);
        if outcome.is_err() {
            // Fail the queued reports too: each of them would probably wait for the same timeout.
            while let Ok(report) = inbox.try_recv() {
                reports.push(report);
            }
        }
        for report in reports.drain(..) {
            let _ = report.result.send(outcome.clone());
        }
    }
}
