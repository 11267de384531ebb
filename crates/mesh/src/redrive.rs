//! Dead letters: into their stream, and back to those who had given them up.

use bytes::Bytes;
use herald_model::time::Timestamp;

use crate::error::{Error, ErrorKind, Result};
use crate::publish::Outgoing;
use crate::topology::consumers::ConsumerKind;
use crate::{Mesh, Published, Subject, headers, trace};

/// A dead letter on its second way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redrive {
    /// The consumers that had given it up: only they get it.
    pub kind: ConsumerKind,
    /// The dead letter's number; 0 when there is none, because an audit sends it.
    pub dead_letter: u64,
    /// How often it was redriven, this time included.
    pub round: u32,
    /// The subject it had.
    pub subject: Subject,
    /// The sequence it had: of a post, its id.
    pub sequence: u64,
    /// When it was published the first time.
    pub published_at: Timestamp,
    /// The encoded message.
    pub payload: Bytes,
    /// The trace of its first time, to link to.
    pub trace_parent: Option<String>,
    /// What belongs to the trace.
    pub trace_state: Option<String>,
    /// Its message id; another one each round, as the dedupe window would swallow it.
    pub id: String,
}

/// That a message is a dead letter on its second way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Redriven {
    /// The dead letter's number; 0 when there is none, because an audit sends it.
    pub dead_letter: u64,
    /// How often it was redriven, this time included.
    pub round: u32,
}

impl Redriven {
    /// Whether somebody wants the dead to be tried again: an audit only sends what is owed anyway.
    pub fn revives(&self) -> bool {
        self.dead_letter > 0
    }

    /// Reads the value of a `Herald-Redrive` header.
    pub fn parse(value: &str) -> Option<Self> {
        let (dead_letter, round) = value.split_once('/')?;
        Some(Self {
            dead_letter: dead_letter.parse().ok()?,
            round: round.parse().ok()?,
        })
    }
}

impl Mesh {
    /// Publishes a dead letter about a message of this stream that this consumer gave up, as [`Mesh::publish`] does.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when the names can't stand in a subject, else as [`Mesh::publish`].
    pub async fn publish_dead_letter<M: prost::Message>(
        &self,
        stream: &str,
        consumer: &str,
        id: &str,
        dead_letter: &M,
    ) -> Result<Published> {
        for name in [stream, consumer] {
            if name.is_empty() || name.contains(|c: char| ".*>".contains(c) || c.is_whitespace()) {
                let message = format!("publish a dead letter of {name:?}: not a name");
                return Err(Error::new(ErrorKind::Invalid, message));
            }
        }
        let to = format!("dlq.v1.{stream}.{consumer}");
        self.send(Outgoing {
            headers: headers::typed(Subject::DeadLetter),
            id: Some(id.into()),
            body: dead_letter.encode_to_vec().into(),
            spare_bytes: 0,
            span: trace::publish_span(Subject::DeadLetter, &to),
            to,
        })
        .await
    }

    /// Publishes a dead letter for those consumers only that had given it up, as [`Mesh::publish`] does. They get it as it
    /// was the first time, with [`Delivery::redrive`](crate::Delivery::redrive).
    ///
    /// It begins a trace of its own, linked to the first one and to the current one.
    ///
    /// What [`Mesh::publish`] has published always fits once more, with the headers that tell what it was: it left room for
    /// them.
    ///
    /// # Errors
    /// As [`Mesh::publish`]; [`ErrorKind::TooLarge`] only for what somebody else has published without leaving that room.
    /// [`ErrorKind::Invalid`] for a subject that is a family.
    pub async fn redrive(&self, redrive: &Redrive) -> Result<Published> {
        if redrive.subject.is_family() {
            let message = format!("redrive to {}: not one subject", redrive.subject);
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        let mut headers = headers::typed(redrive.subject);
        for (name, value) in [
            (headers::TRACE_PARENT, &redrive.trace_parent),
            (headers::TRACE_STATE, &redrive.trace_state),
        ] {
            if let Some(value) = value {
                headers::add(&mut headers, name, value);
            }
        }
        let to = redrive.kind.subject();
        // Without telemetry the first trace goes on: whoever reads the headers finds it.
        let span = trace::redrive_span(&to, &headers);
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
            spare_bytes: 0,
            span,
        })
        .await
    }
}
