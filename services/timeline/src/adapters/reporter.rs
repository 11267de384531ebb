//! Tells analytics what became of chunks.
//!
//! The chunks of one run of the store are recorded together, and those that come while an event is on its way share the
//! next one: a thousand small chunks are some twenty messages and not a thousand.

use herald_mesh::{Mesh, Subject};
use herald_model::Channel;
use herald_proto::{
    EVENT_CHUNKS_MAX,
    mesh_v1::{DeliveriesSettled, SettledChunk},
};
use tokio::sync::{mpsc, oneshot};
use tracing::Span;

use crate::error::DeliverError;

/// Takes in what to tell.
#[derive(Debug, Clone)]
pub(crate) struct Reporter {
    /// There are no more than chunks in flight.
    inbox: mpsc::UnboundedSender<Report>,
}

#[derive(Debug)]
struct Report {
    chunk: SettledChunk,
    /// The handling that it came of.
    span: Span,
    told: oneshot::Sender<Result<(), String>>,
}

impl Reporter {
    /// A reporter, and its background work, which ends when the last clone of the reporter is gone.
    pub(crate) fn new(mesh: Mesh) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (inbox, reports) = mpsc::unbounded_channel();
        (Self { inbox }, publish(mesh, reports))
    }

    /// Tells what became of a chunk, and waits until EVENTS has it.
    pub(crate) async fn report(&self, chunk: SettledChunk) -> Result<(), DeliverError> {
        let (told, outcome) = oneshot::channel();
        let report = Report {
            chunk,
            span: Span::current(),
            told,
        };
        let gone = || DeliverError::Event("the reporter is gone".into());
        self.inbox.send(report).map_err(|_| gone())?;
        outcome.await.map_err(|_| gone())?.map_err(DeliverError::Event)
    }
}

async fn publish(mesh: Mesh, mut inbox: mpsc::UnboundedReceiver<Report>) {
    let mut reports = Vec::with_capacity(EVENT_CHUNKS_MAX);
    while inbox.recv_many(&mut reports, EVENT_CHUNKS_MAX).await > 0 {
        // Of handlers that were dropped meanwhile: their chunks come again.
        reports.retain(|report| !report.told.is_closed());
        if reports.is_empty() {
            continue;
        }
        let event = DeliveriesSettled {
            chunks: reports.iter().map(|report| report.chunk).collect(),
        };
        let spans: Vec<Span> = reports.iter().map(|report| report.span.clone()).collect();
        let id = event.message_id();
        let subject = Subject::Settled(Channel::Timeline);
        let published = mesh.publish_for(subject, Some(&id), &event, &spans).await;
        let outcome = published.map(drop).map_err(|error| error.to_string());
        if outcome.is_err() {
            // It took its time to fail. Whoever waits behind it would wait as long for the same.
            while let Ok(report) = inbox.try_recv() {
                reports.push(report);
            }
        }
        for report in reports.drain(..) {
            let _ = report.told.send(outcome.clone());
        }
    }
}
