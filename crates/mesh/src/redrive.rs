//! Publishes dead letters to DLQ, and redrives them to the consumer kind that failed.

use bytes::Bytes;
use herald_model::{PostScoped, time::Timestamp};

use crate::error::{Error, ErrorKind, Result};
use crate::publish::Outgoing;
use crate::topology::consumers::ConsumerKind;
use crate::{Mesh, Published, Subject, headers, trace};

/// A message to redrive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redrive {
    /// Consumer kind that failed; only its redrive consumer receives the message.
    pub kind: ConsumerKind,
    /// Dead letter id; 0 for a repair by an audit, which has no dead letter.
    pub dead_letter: u64,
    /// Number of this redrive of the dead letter, from 1.
    pub round: u32,
    /// Subject of the first publish.
    pub subject: Subject,
    /// Sequence of the first publish; for a post, its id.
    pub sequence: u64,
    /// Time of the first publish.
    pub published_at: Timestamp,
    /// Encoded message.
    pub payload: Bytes,
    /// W3C `traceparent` of the first publish, for a link.
    pub trace_parent: Option<String>,
    /// W3C `tracestate` of the first publish.
    pub trace_state: Option<String>,
    /// Message id; unique per redrive, because deduplication would drop a second redrive with the same id.
    pub id: String,
}

/// Identifies the redrive of a redriven message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Redriven {
    /// Dead letter id; 0 for a repair by an audit, which has no dead letter.
    pub dead_letter: u64,
    /// Number of this redrive of the dead letter, from 1.
    pub round: u32,
}

impl Redriven {
    /// Whether dead deliveries are retried too. A repair by an audit retries pending deliveries only.
    pub fn revives(&self) -> bool {
        self.dead_letter > 0
    }

    /// Parses the value of a `Herald-Redrive` header, `{dead_letter}/{round}`.
    pub fn parse(value: &str) -> Option<Self> {
        let (dead_letter, round) = value.split_once('/')?;
        Some(Self {
            dead_letter: dead_letter.parse().ok()?,
            round: round.parse().ok()?,
        })
    }
}

impl Mesh {
    /// Publishes a dead letter about a message of `stream` on which `consumer` failed, as [`Mesh::publish`] does.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when a name is not a valid subject token; otherwise as [`Mesh::publish`].
    pub async fn publish_dead_letter<M: prost::Message + PostScoped>(
        &self,
        stream: &str,
        consumer: &str,
        id: &str,
        dead_letter: &M,
    ) -> Result<Published> {
        for name in [stream, consumer] {
            if name.is_empty() || name.contains(|c: char| ".*>".contains(c) || c.is_whitespace()) {
                let message = format!("publish dead letter: {name:?} is not a stream or consumer name");
                return Err(Error::new(ErrorKind::Invalid, message));
            }
        }
        let to = format!("dlq.v1.{stream}.{consumer}");
        let span = trace::publish_span(self.role, Subject::DeadLetter, &to);
        if let Some(post) = dead_letter.post_id() {
            span.record("post_id", post);
        }
        self.send(Outgoing {
            headers: headers::with_type(Subject::DeadLetter),
            id: Some(id.into()),
            body: dead_letter.encode_to_vec().into(),
            repeatable: false,
            reserved_bytes: 0,
            is_post: false,
            span,
            to,
        })
        .await
    }

    /// Redrives a message to the consumer kind that failed, as [`Mesh::publish`] does. The handler receives the
    /// original subject, sequence and time, and [`Delivery::redrive`](crate::Delivery::redrive).
    ///
    /// Starts a new trace, linked to the first publish and to the current span.
    ///
    /// # Errors
    /// As [`Mesh::publish`]. [`ErrorKind::TooLarge`] only for a message of another publisher: [`Mesh::publish`]
    /// reserves space for the headers of a redrive. [`ErrorKind::Invalid`] for a wildcard subject.
    pub async fn redrive(&self, redrive: &Redrive) -> Result<Published> {
        if redrive.subject.is_wildcard() {
            let message = format!("redrive to {}: wildcard subject", redrive.subject);
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        let mut headers = headers::with_type(redrive.subject);
        for (name, value) in [
            (headers::TRACE_PARENT, &redrive.trace_parent),
            (headers::TRACE_STATE, &redrive.trace_state),
        ] {
            if let Some(value) = value {
                headers::add(&mut headers, name, value);
            }
        }
        let to = redrive.kind.subject();
        // Without telemetry, the headers keep the trace of the first publish.
        let span = trace::redrive_span(self.role, &to, &headers);
        headers.insert(headers::SUBJECT, redrive.subject.as_str());
        headers.insert(headers::SEQUENCE, redrive.sequence.to_string());
        headers.insert(headers::PUBLISHED_AT, redrive.published_at.0.to_string());
        headers.insert(
            headers::REDRIVE,
            format!("{}/{}", redrive.dead_letter, redrive.round),
        );
        self.send(Outgoing {
            to,
            headers,
            id: Some(redrive.id.clone()),
            body: redrive.payload.clone(),
            repeatable: false,
            reserved_bytes: 0,
            is_post: false,
            span,
        })
        .await
    }
}
