//! Publishes readable chunks to watchers.
//!
//! Core NATS has no acknowledgements: a watcher that misses a chunk reads it from the timeline later. Chunks queued at
//! the same time share a message.

use herald_mesh::Mesh;
use herald_proto::mesh_v1::{LiveUpdates, TimelineChunk};
use prost::Message as _;
use tokio::sync::mpsc;

/// Capacity of the queue of chunks; a full queue blocks the sender.
const QUEUE_CHUNKS_MAX: usize = 256;
/// Limit of the recipients of one message, bytes; a single chunk may exceed it.
const MESSAGE_BYTES_MAX: usize = 64 << 10;

/// A handle of the publisher to watchers. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Watchers {
    inbox: mpsc::Sender<TimelineChunk>,
}

impl Watchers {
    /// Creates a handle and its background task. The task ends after the last clone of the handle is dropped.
    pub(crate) fn new(mesh: Mesh) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (inbox, chunks) = mpsc::channel(QUEUE_CHUNKS_MAX);
        (Self { inbox }, publish_chunks(mesh, chunks))
    }

    /// Queues a chunk for publication.
    pub(crate) async fn notify(&self, chunk: TimelineChunk) {
        if self.inbox.send(chunk).await.is_err() {
            tracing::debug!("chunk not published to watchers: the publisher has stopped");
        }
    }
}

async fn publish_chunks(mesh: Mesh, mut inbox: mpsc::Receiver<TimelineChunk>) {
    let mut chunks = Vec::with_capacity(QUEUE_CHUNKS_MAX);
    while inbox.recv_many(&mut chunks, QUEUE_CHUNKS_MAX).await > 0 {
        for message in pack(&mut chunks) {
            if let Err(error) = mesh.publish_live(message.encode_to_vec().into()).await {
                tracing::debug!(%error, chunks = message.chunks.len(), "chunks not published to watchers");
            }
        }
    }
}

/// Packs the chunks into as few messages as [`MESSAGE_BYTES_MAX`] allows.
fn pack(chunks: &mut Vec<TimelineChunk>) -> Vec<LiveUpdates> {
    let mut messages = vec![LiveUpdates::default()];
    let mut bytes = 0;
    for chunk in chunks.drain(..) {
        if bytes > 0 && bytes + chunk.recipients.len() > MESSAGE_BYTES_MAX {
            messages.push(LiveUpdates::default());
            bytes = 0;
        }
        bytes += chunk.recipients.len();
        if let Some(message) = messages.last_mut() {
            message.chunks.push(chunk);
        }
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_packed_up_to_the_limit() {
        let chunk = |bytes: usize| TimelineChunk {
            recipients: vec![1; bytes].into(),
            ..TimelineChunk::default()
        };
        let sizes = |chunks: &[usize]| {
            let mut chunks = chunks.iter().map(|bytes| chunk(*bytes)).collect();
            let messages = pack(&mut chunks);
            assert!(chunks.is_empty());
            messages
                .iter()
                .map(|message| message.chunks.len())
                .collect::<Vec<_>>()
        };
        assert_eq!(sizes(&[10, 20, 30]), [3]);
        assert_eq!(sizes(&[MESSAGE_BYTES_MAX - 10, 10, 10]), [2, 1]);
        assert_eq!(sizes(&[10, MESSAGE_BYTES_MAX, 10]), [1, 1, 1]);
        assert_eq!(sizes(&[200_000, 200_000]), [1, 1]);
    }
}
