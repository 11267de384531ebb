//! How far each stream of the broker was when Herald last looked.

use async_trait::async_trait;
use herald_model::time::Timestamp;

use crate::Result;

/// The newest message of a stream that Herald has seen. A stream that ends before it, or that has another message with
/// its sequence, has lost messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamMark {
    /// Name of the stream.
    pub stream: String,
    /// Sequence of the message.
    pub sequence: u64,
    /// When the stream stored the message, by the broker's clock.
    pub published_at: Timestamp,
}

/// The marks of all streams.
#[async_trait]
pub trait StreamMarks: Send + Sync {
    /// Records marks. One with a smaller sequence than the recorded one of its stream changes nothing.
    async fn record(&self, marks: &[StreamMark]) -> Result<()>;

    /// Reads all marks, by name of stream.
    async fn all(&self) -> Result<Vec<StreamMark>>;
}
