//! Going back in a stream.

use std::error::Error as StdError;
use std::time::Duration;

use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::DirectGetError;
use async_nats::{StatusCode, Subscriber};
use futures::{Stream, StreamExt as _, stream};
use herald_model::time::Timestamp;

use crate::error::{Error, ErrorKind, Result};
use crate::publish::Outgoing;
use crate::read::{found, found_by_leader};
use crate::{Mesh, Published, RawMessage, Subject, trace};

/// Messages, and bytes, asked for at a time.
const SCAN_BATCH: u64 = 2_048;
const SCAN_BYTES: usize = 4 << 20;
/// The status after the last message of a batch.
const END_OF_BATCH: u16 = 204;
/// How long the next message may take.
const SCAN_SILENCE_MAX: Duration = Duration::from_secs(10);

impl Mesh {
    /// A stream's messages from one sequence to another, both included, those on subjects that pass the filter. Ends after
    /// the first error. What comes is what the stream had when the scan began: it need not be as far as `to`.
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

    /// The sequence of the first message that a stream stored at this moment or later; the one after its last when there is
    /// none. Some twenty reads.
    pub async fn sequence_since(&self, stream: &str, at: Timestamp) -> Result<u64> {
        let handle = self.stream(stream).await?;
        let info = handle.get_info().await;
        let state = info
            .map_err(|error| Error::unavailable(format_args!("read stream {stream}"), error))?
            .state;
        // All below `low` are older; none at `high` or above is.
        let (mut low, mut high) = (state.first_sequence.max(1), state.last_sequence + 1);
        while low < high {
            let middle = low + (high - low) / 2;
            let next = handle.direct_get_next_for_subject(">", Some(middle)).await;
            match found(next, stream)? {
                Some(message) if message.sequence < high && message.published_at < at => {
                    low = message.sequence + 1;
                }
                // From here on there are only such ones, or none.
                _ => high = middle,
            }
        }
        Ok(low)
    }

    /// Publishes the payload of a message once more on its own subject, without an id and without its headers.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for a subject that isn't the mesh's, else as [`Mesh::publish`].
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
            spare_bytes: 0,
            span: trace::publish_span(subject, to),
        })
        .await
    }

    /// Lets a consumer deliver nothing until then; its workers wait. Server 2.11 or later.
    pub async fn pause(&self, stream: &str, consumer: &str, until: Timestamp) -> Result<()> {
        let until = time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(until.0) * 1_000);
        let until =
            until.map_err(|error| Error::with_source(ErrorKind::Invalid, "pause until then", error))?;
        let paused = self.stream(stream).await?.pause_consumer(consumer, until).await;
        paused.map(|_| ()).map_err(|error| {
            Error::unavailable(
                format_args!("pause consumer {consumer} of stream {stream}"),
                error,
            )
        })
    }

    /// Lets a paused consumer go on.
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

/// A scan under way. It asks the stream itself, batch by batch (ADR-31), and makes no consumer: a stream that keeps nothing
/// that was acknowledged would give a consumer's messages away.
struct Scan {
    mesh: Mesh,
    stream: String,
    filter: String,
    inbox: String,
    messages: Subscriber,
    next: u64,
    to: u64,
    /// A batch was asked for and has not ended.
    asked: bool,
    /// The replica that answered has no more. The leader may have some that it hasn't heard of yet.
    at_leader: bool,
    ended: bool,
}

impl Scan {
    async fn open(mesh: Mesh, stream: String, filter: Option<String>, from: u64, to: u64) -> Result<Self> {
        // By all servers: one that was cut off would end it before its time.
        let last = mesh.last_sequence(&stream).await?;
        let client = &mesh.publishing().client;
        let inbox = client.new_inbox();
        let messages = client.subscribe(inbox.clone()).await;
        let messages = messages.map_err(|error| unreadable(&stream, error))?;
        Ok(Self {
            mesh,
            stream,
            filter: filter.unwrap_or_else(|| ">".into()),
            inbox,
            messages,
            next: from.max(1),
            to: to.min(last),
            asked: false,
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
                return self.ask_leader().await;
            }
            if !self.asked {
                self.ask().await?;
            }
            let message = tokio::time::timeout(SCAN_SILENCE_MAX, self.messages.next()).await;
            let Ok(Some(message)) = message else {
                return Err(unreadable(&self.stream, "no answer"));
            };
            match message.status {
                None | Some(StatusCode::OK) => {
                    let message = StreamMessage::try_from(message).map_err(DirectGetError::from);
                    let Some(message) = found(message, &self.stream)? else {
                        continue;
                    };
                    self.next = message.sequence + 1;
                    if message.sequence <= self.to {
                        return Ok(Some(message));
                    }
                    return Ok(None);
                }
                Some(status) if status.as_u16() == END_OF_BATCH => {
                    self.asked = false;
                    let left = message
                        .headers
                        .as_ref()
                        .and_then(|headers| headers.get("Nats-Num-Pending"));
                    self.at_leader = left.is_none_or(|left| left.as_str() == "0");
                }
                Some(StatusCode::NOT_FOUND) => self.at_leader = true,
                Some(status) => {
                    let why = message.description.as_deref().unwrap_or_default();
                    return Err(unreadable(&self.stream, format!("{status} {why}")));
                }
            }
        }
    }

    /// The next message, from the one server that has them all.
    async fn ask_leader(&mut self) -> Result<Option<RawMessage>> {
        let stream = self.mesh.stream(&self.stream).await?;
        let message = stream
            .get_first_raw_message_by_subject(&self.filter, self.next)
            .await;
        let message = found_by_leader(message, &self.stream)?.filter(|message| message.sequence <= self.to);
        if let Some(message) = &message {
            self.next = message.sequence + 1;
        }
        Ok(message)
    }

    async fn ask(&mut self) -> Result<()> {
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
        sent.map_err(|error| unreadable(&self.stream, error))?;
        self.asked = true;
        Ok(())
    }
}

fn unreadable(stream: &str, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
    Error::unavailable(format_args!("read the messages of stream {stream}"), source)
}
