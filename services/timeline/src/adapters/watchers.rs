//! Tells watchers of chunks that are readable.
//!
//! Core NATS, so nobody acknowledges: a watcher that misses a chunk reads it later. Chunks that come together share a
//! message.

use herald_mesh::Mesh;
use herald_proto::mesh_v1::{LiveChunks, TimelineChunk};
use prost::Message as _;
use tokio::sync::mpsc;

/// Chunks that wait to be told of; more wait before it.
const QUEUE: usize = 256;
/// Bytes of recipients in one message, unless one chunk has more.
const MESSAGE_BYTES: usize = 64 << 10;

/// Takes in what became readable. Cloning shares it.
#[derive(Debug, Clone)]
pub(crate) struct Watchers {
    inbox: mpsc::Sender<TimelineChunk>,
}

impl Watchers {
    /// The way to the watchers, and its background work, which ends when the last clone is gone.
    pub(crate) fn new(mesh: Mesh) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (inbox, chunks) = mpsc::channel(QUEUE);
        (Self { inbox }, publish(mesh, chunks))
    }

    /// Has the watchers of a chunk told soon.
    pub(crate) async fn tell(&self, chunk: TimelineChunk) {
        if self.inbox.send(chunk).await.is_err() {
            tracing::debug!("watchers were not told of a chunk: the service ends");
        }
    }
}

async fn publish(mesh: Mesh, mut inbox: mpsc::Receiver<TimelineChunk>) {
    let mut chunks = Vec::with_capacity(QUEUE);
    while inbox.recv_many(&mut chunks, QUEUE).await > 0 {
        for message in messages(&mut chunks) {
            if let Err(error) = mesh.publish_live(message.encode_to_vec().into()).await {
                tracing::debug!(%error, chunks = message.chunks.len(), "watchers were not told of chunks");
            }
        }
    }
}

/// As few messages as hold these chunks.
fn messages(chunks: &mut Vec<TimelineChunk>) -> Vec<LiveChunks> {
    let mut messages = vec![LiveChunks::default()];
    let mut bytes = 0;
    for chunk in chunks.drain(..) {
        if bytes > 0 && bytes + chunk.recipients.len() > MESSAGE_BYTES {
            messages.push(LiveChunks::default());
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
    fn messages_are_few_and_not_large() {
        let chunk = |bytes: usize| TimelineChunk {
            recipients: vec![1; bytes].into(),
            ..TimelineChunk::default()
        };
        let sizes = |chunks: &[usize]| {
            let mut chunks = chunks.iter().map(|bytes| chunk(*bytes)).collect();
            let messages = messages(&mut chunks);
            assert!(chunks.is_empty());
            messages
                .iter()
                .map(|message| message.chunks.len())
                .collect::<Vec<_>>()
        };
        assert_eq!(sizes(&[10, 20, 30]), [3]);
        assert_eq!(sizes(&[MESSAGE_BYTES - 10, 10, 10]), [2, 1]);
        assert_eq!(sizes(&[10, MESSAGE_BYTES, 10]), [1, 1, 1]);
        assert_eq!(sizes(&[200_000, 200_000]), [1, 1]);
    }
}
