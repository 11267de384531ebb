//! Reads a range of a stream, republishes messages, and pauses consumers.

use std::error::Error as StdError;
use std::time::Duration;

use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::DirectGetError;
use async_nats::{StatusCode, Subscriber};
use futures::{Stream, StreamExt as _, stream};
use herald_model::time::Timestamp;

use crate::error::{Error, ErrorKind, Result};
use crate::publish::Outgoing;
use crate::read::{leader_message_if_found, message_if_found};
use crate::{Mesh, Published, RawMessage, Subject, trace};

/// Maximum number of messages and bytes per request.
const SCAN_BATCH: u64 = 2_048;
const SCAN_BYTES: usize = 4 << 20;
/// Status after the last message of a batch.
const END_OF_BATCH: u16 = 204;
/// Timeout of the next message.
const SCAN_SILENCE_MAX: Duration = Duration::from_secs(10);

impl Mesh {
    /// Reads the messages of a stream from one sequence to another, both inclusive, on subjects that match the filter.
    /// Returns the messages that the stream has when the scan starts, so the scan can end before `to`. Ends after the
    /// first error.
    pub fn scan(
        &self,
        stream: &str,
        filter: Option<&str>,
        from: u64,
        to: u64,
    ) -> impl Stream<Item = Result<RawMessage>> + Send + use<> {
        let (mesh, stream, filter) = (self.clone(), stream.to_owned(), filter.map(Into::into));
        let opening = async move { Scan::open(mesh, stream, filter, from, to).await };
        stream::once(opening).flat_map(|opened| match opened {
            Ok(scan) => stream::unfold(scan, async |mut scan| Some((scan.next().await?, scan))).left_stream(),
            Err(error) => stream::iter([Err(error)]).right_stream(),
        })
    }

    /// Sequence of the first message stored at `at` or later; the last sequence + 1 when there is none. A binary search
    /// of about twenty reads.
    pub async fn sequence_since(&self, stream: &str, at: Timestamp) -> Result<u64> {
        let handle = self.stream(stream).await?;
        let info = handle.get_info().await;
        let state = info
            .map_err(|error| Error::unavailable(format_args!("read stream {stream}"), error))?
            .state;
        // Messages below `low` are older than `at`; messages at `high` and above are not.
        let (mut low, mut high) = (state.first_sequence.max(1), state.last_sequence + 1);
        while low < high {
            let middle = low + (high - low) / 2;
            let next = handle.direct_get_next_for_subject(">", Some(middle)).await;
            match message_if_found(next, stream)? {
                Some(message) if message.sequence < high && message.published_at < at => {
                    low = message.sequence + 1;
                }
                // The next message is not older, or doesn't exist.
                _ => high = middle,
            }
        }
        Ok(low)
    }

    /// Publishes the payload of a message again on its own subject, without an id and without its headers.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for a subject outside the mesh; otherwise as [`Mesh::publish`].
    pub async fn republish(&self, message: &RawMessage) -> Result<Published> {
        let to = &message.subject;
        let subject = Subject::parse(to).ok_or_else(|| {
            Error::new(
                ErrorKind::Invalid,
                format!("republish to {to}: not a subject of the mesh"),
            )
        })?;
        self.send(Outgoing {
            to: to.clone(),
            headers: async_nats::HeaderMap::new(),
            id: None,
            body: message.payload.clone(),
            repeatable: false,
            reserved_bytes: 0,
            is_post: false,
            span: trace::publish_span(self.role, subject, to),
        })
        .await
    }

    /// Deletes a message from its stream, and overwrites its bytes on disk. Deleting it again changes nothing. The
    /// stream keeps its last sequence.
    ///
    /// Delete only a message that every consumer has settled: for a consumer that has not acknowledged it, nats-server
    /// publishes an advisory, which becomes a dead letter.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] when no server answers.
    pub async fn delete_message(&self, stream: &str, sequence: u64) -> Result<()> {
        let handle = self.stream(stream).await?;
        let Err(error) = handle.delete_message(sequence).await else {
            return Ok(());
        };
        match leader_message_if_found(handle.get_raw_message(sequence).await, stream)? {
            None => Ok(()),
            Some(_) => Err(Error::unavailable(
                format_args!("delete message {sequence} of stream {stream}"),
                error,
            )),
        }
    }

    /// Pauses the deliveries of a consumer until a time. Requires nats-server 2.11 or later.
    pub async fn pause(&self, stream: &str, consumer: &str, until: Timestamp) -> Result<()> {
        let until = time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(until.0) * 1_000);
        let until = until.map_err(|error| {
            Error::with_source(ErrorKind::Invalid, "pause consumer: time out of range", error)
        })?;
        let paused = self.stream(stream).await?.pause_consumer(consumer, until).await;
        paused.map(|_| ()).map_err(|error| {
            Error::unavailable(
                format_args!("pause consumer {consumer} of stream {stream}"),
                error,
            )
        })
    }

    /// Resumes a paused consumer.
    pub async fn resume(&self, stream: &str, consumer: &str) -> Result<()> {
        let resumed = self.stream(stream).await?.resume_consumer(consumer).await;
        resumed.map(|_| ()).map_err(|error| {
            Error::unavailable(
                format_args!("resume consumer {consumer} of stream {stream}"),
                error,
            )
        })
    }
}

/// A running scan. It uses batched direct gets (NATS ADR-31) and not a consumer: in a stream with work-queue retention,
/// a consumer would take the messages from the stream's own consumer.
struct Scan {
    mesh: Mesh,
    stream: String,
    filter: String,
    inbox: String,
    messages: Subscriber,
    next: u64,
    to: u64,
    /// Whether a batch is in flight.
    requested: bool,
    /// Whether the answering replica has no more messages. The leader may have more.
    at_leader: bool,
    ended: bool,
}

impl Scan {
    async fn open(mesh: Mesh, stream: String, filter: Option<String>, from: u64, to: u64) -> Result<Self> {
        // Asks every replica: a partitioned one may report a stale end.
        let last = mesh.last_sequence(&stream).await?;
        let client = &mesh.publishing().client;
        let inbox = client.new_inbox();
        let messages = client.subscribe(inbox.clone()).await;
        let messages = messages.map_err(|error| read_error(&stream, error))?;
        Ok(Self {
            mesh,
            stream,
            filter: filter.unwrap_or_else(|| ">".into()),
            inbox,
            messages,
            next: from.max(1),
            to: to.min(last),
            requested: false,
            at_leader: false,
            ended: from > to.min(last),
        })
    }

    /// The next message. After an error the scan has ended.
    async fn next(&mut self) -> Option<Result<RawMessage>> {
        if self.ended {
            return None;
        }
        let next = self.try_next().await;
        self.ended = !matches!(next, Ok(Some(_)));
        next.transpose()
    }

    async fn try_next(&mut self) -> Result<Option<RawMessage>> {
        loop {
            if self.next > self.to {
                return Ok(None);
            }
            if self.at_leader {
                return self.read_from_leader().await;
            }
            if !self.requested {
                self.request_batch().await?;
            }
            let message = tokio::time::timeout(SCAN_SILENCE_MAX, self.messages.next()).await;
            let Ok(Some(message)) = message else {
                return Err(read_error(&self.stream, "no answer"));
            };
            match message.status {
                None | Some(StatusCode::OK) => {
                    let message = StreamMessage::try_from(message).map_err(DirectGetError::from);
                    let Some(message) = message_if_found(message, &self.stream)? else {
                        continue;
                    };
                    self.next = message.sequence + 1;
                    if message.sequence <= self.to {
                        return Ok(Some(message));
                    }
                    return Ok(None);
                }
                Some(status) if status.as_u16() == END_OF_BATCH => {
                    self.requested = false;
                    let pending = message
                        .headers
                        .as_ref()
                        .and_then(|headers| headers.get("Nats-Num-Pending"));
                    self.at_leader = pending.is_none_or(|pending| pending.as_str() == "0");
                }
                Some(StatusCode::NOT_FOUND) => self.at_leader = true,
                Some(status) => {
                    let description = message.description.as_deref().unwrap_or_default();
                    return Err(read_error(&self.stream, format!("{status} {description}")));
                }
            }
        }
    }

    /// Reads the next message from the stream's leader.
    async fn read_from_leader(&mut self) -> Result<Option<RawMessage>> {
        let stream = self.mesh.stream(&self.stream).await?;
        let message = stream
            .get_first_raw_message_by_subject(&self.filter, self.next)
            .await;
        let message =
            leader_message_if_found(message, &self.stream)?.filter(|message| message.sequence <= self.to);
        if let Some(message) = &message {
            self.next = message.sequence + 1;
        }
        Ok(message)
    }

    async fn request_batch(&mut self) -> Result<()> {
        let batch = (self.to - self.next).saturating_add(1).min(SCAN_BATCH);
        let request = format!(
            "{{\"seq\":{},\"batch\":{batch},\"max_bytes\":{SCAN_BYTES},\"next_by_subj\":\"{}\"}}",
            self.next, self.filter
        );
        let subject = format!("$JS.API.DIRECT.GET.{}", self.stream);
        let client = &self.mesh.publishing().client;
        let sent = client
            .publish_with_reply(subject, self.inbox.clone(), request.into())
            .await;
        sent.map_err(|error| read_error(&self.stream, error))?;
        self.requested = true;
        Ok(())
    }
}

fn read_error(stream: &str, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
    Error::unavailable(format_args!("read the messages of stream {stream}"), source)
}
