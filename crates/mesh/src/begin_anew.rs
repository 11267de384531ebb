//! Lets a stream begin anew above the sequences of all messages that it had.

use std::time::Duration;

use async_nats::jetstream::{
    ErrorCode,
    context::{DeleteStreamErrorKind, GetStreamErrorKind},
    stream::{self, ConsumerErrorKind},
};
use tokio::time::Instant;

use crate::Mesh;
use crate::ensure::patiently;
use crate::error::{Error, ErrorKind, Result};
use crate::topology::Topology;

/// How long [`Mesh::begin_anew`] waits for a cluster that elects leaders, as it does after a loss.
const UNAVAILABLE_MAX: Duration = Duration::from_mins(1);
/// Messages that are published, and removed, to use up the sequences of lost ones.
const FILLERS_MAX: u64 = 100_000;

impl Mesh {
    /// Makes a stream again with the same configuration, without its messages and consumers, so that its next message has
    /// `sequence`. It forgets the message ids of its dedupe window, too: a purge would not, and messages that are
    /// published again would be dropped. Messages up to `keep` stay, if the gap up to `sequence` is small; their consumers
    /// read them again. Returns the number of removed messages. Waits for up to a minute while the server can't do it now.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] when the wait was not enough. The stream can be missing then.
    pub async fn begin_anew(
        &self,
        topology: &Topology,
        stream: &str,
        sequence: u64,
        keep: u64,
    ) -> Result<u64> {
        let until = Instant::now() + UNAVAILABLE_MAX;
        let what = || format!("let stream {stream} begin at {sequence}");
        let jetstream = &self.consuming().jetstream;
        let found = patiently(until, async || {
            jetstream
                .get_stream(stream)
                .await
                .map_err(|error| match error.kind() {
                    GetStreamErrorKind::JetStream(error) => Error::jetstream(what(), error),
                    _ => Error::unavailable(what(), error),
                })
        });
        let found = found.await?;
        let info = found.cached_info().clone();
        if keep > 0 && sequence.saturating_sub(info.state.last_sequence) <= FILLERS_MAX {
            let mut removed = 0;
            patiently(until, async || {
                self.advance(topology, stream, sequence, keep, &mut removed).await
            })
            .await?;
            for consumer in topology.consumers_of(stream) {
                patiently(until, async || {
                    match found.delete_consumer(&consumer.name).await {
                        Err(error) if !is_missing_consumer(&error.kind()) => {
                            return Err(Error::unavailable(what(), error));
                        }
                        _ => {}
                    }
                    self.ensure_consumer(consumer).await
                })
                .await?;
            }
            return Ok(removed);
        }
        // The answer to a request can be lost, so each is repeated by itself: the next attempt finds its effect.
        patiently(until, async || match jetstream.delete_stream(stream).await {
            Err(error) if !is_missing_stream(&error.kind()) => Err(Error::unavailable(what(), error)),
            _ => Ok(()),
        })
        .await?;
        let wanted = stream::Config {
            first_sequence: (sequence > 1).then_some(sequence),
            ..info.config
        };
        patiently(until, async || {
            let made = jetstream.create_stream(wanted.clone()).await;
            made.map_err(|error| Error::unavailable(what(), error))
        })
        .await?;
        for consumer in topology.consumers_of(stream) {
            patiently(until, async || self.ensure_consumer(consumer).await).await?;
        }
        Ok(info.state.messages)
    }

    /// Removes the messages after `keep` and adds their number to `removed`, and uses up all sequences below `sequence`. A
    /// purge could only do so without any message left. Can be repeated.
    async fn advance(
        &self,
        topology: &Topology,
        stream: &str,
        sequence: u64,
        keep: u64,
        removed: &mut u64,
    ) -> Result<()> {
        let what = || format!("let stream {stream} go on at {sequence}");
        let jetstream = &self.consuming().jetstream;
        let pattern = topology.stream(stream).and_then(|spec| spec.subjects.first());
        let filler = pattern
            .map(|pattern| pattern.replace('>', "filler"))
            .ok_or_else(|| Error::new(ErrorKind::Invalid, format!("{}: it has no subject", what())))?;
        let Some(mut range) = self.sequences(stream).await? else {
            return Err(Error::new(
                ErrorKind::Unavailable,
                format!("{}: it is missing", what()),
            ));
        };
        let handle = self.stream(stream).await?;
        for later in (keep + 1).max(range.first)..=range.last {
            // A message that is gone already is as good.
            *removed += u64::from(handle.delete_message(later).await.unwrap_or(false));
        }
        while range.last + 1 < sequence {
            let stored = jetstream
                .publish(filler.clone(), "".into())
                .await
                .map_err(|error| Error::unavailable(what(), error))?
                .await
                .map_err(|error| Error::unavailable(what(), error))?;
            range.last = stored.sequence;
        }
        let purged = handle.purge().filter(filler).await;
        purged.map_err(|error| Error::unavailable(what(), error))?;
        Ok(())
    }
}

fn is_missing_stream(kind: &DeleteStreamErrorKind) -> bool {
    matches!(kind, DeleteStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND)
}

fn is_missing_consumer(kind: &ConsumerErrorKind) -> bool {
    matches!(kind, ConsumerErrorKind::JetStream(error) if error.error_code() == ErrorCode::CONSUMER_NOT_FOUND)
}
