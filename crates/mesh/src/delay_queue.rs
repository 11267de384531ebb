//! The delay queue, stream LATER: takes messages with long retry delays and messages that wait
//! ([`Disposition::Wait`]), so that they don't occupy the consumer's `ack_pending_max`. A message is stored as a schedule
//! (NATS ADR-51); when it is due, the server publishes it to LATER, and the [`Requeuer`] publishes it to its original
//! stream.
//!
//! The server can't return it to the original stream: a schedule stays within its stream, and streams that refuse
//! messages when full can't have schedules. All other streams must refuse.

use std::time::Duration;

use async_nats::header;
use async_trait::async_trait;
use bytes::Bytes;
use herald_model::time::Timestamp;
use time::{OffsetDateTime, PrimitiveDateTime};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::error::{Error, Result};
use crate::publish::Outgoing;
use crate::topology::{ConsumerSpec, DelayLimits, streams};
use crate::{Delivery, Disposition, Handler, Mesh, Subject, Wait, headers, trace};

/// How long a capacity check is cached.
const CAPACITY_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The delay queue of one consumer.
#[derive(Debug)]
pub(crate) struct DelayQueue {
    mesh: Mesh,
    limits: DelayLimits,
    /// Time and result of the last capacity check.
    capacity: Mutex<Option<(Instant, bool)>>,
}

impl DelayQueue {
    /// The delay queue of a consumer; `None` when the consumer holds its messages.
    pub(crate) fn for_consumer(mesh: &Mesh, spec: &ConsumerSpec) -> Option<Self> {
        Some(Self {
            mesh: mesh.clone(),
            limits: spec.delay_limits?,
            capacity: Mutex::new(None),
        })
    }

    /// Stores a copy of a message that is redelivered after this delay. Returns false when the delay is short, the
    /// delay queue is full, or storing failed; the consumer then holds the message. The copy continues the attempt
    /// count, and replaces the copy of an earlier attempt whose acknowledgement was lost.
    pub(crate) async fn postpone(
        &self,
        spec: &ConsumerSpec,
        sequence: u64,
        delivery: &Delivery,
        delay: Duration,
    ) -> bool {
        if delay <= self.limits.hold_max || !self.has_capacity().await {
            return false;
        }
        let id = base_id(spec, sequence, delivery);
        let copy = DelayedCopy {
            token: sequence.to_string(),
            message_id: copy_id(&id, delivery.waits(), delivery.attempt),
            id,
            attempts: delivery.attempt,
            waits: delivery.waits(),
            payload: delivery.payload.clone(),
            delay,
        };
        self.try_store(spec, sequence, delivery, copy).await
    }

    /// Stores the copy of a wait. Returns false when the delay queue is full or storing failed. The copy keeps the
    /// number of failed attempts, and replaces the copy of an earlier wait of the same message.
    pub(crate) async fn store_wait(
        &self,
        spec: &ConsumerSpec,
        sequence: u64,
        delivery: &Delivery,
        wait: &Wait,
    ) -> bool {
        if !self.has_capacity().await {
            return false;
        }
        let id = base_id(spec, sequence, delivery);
        let copy = DelayedCopy {
            token: subject_token(&id),
            message_id: wait_id(&id, wait.number),
            id,
            attempts: if delivery.redrive.is_some() {
                0
            } else {
                delivery.attempt.saturating_sub(1)
            },
            waits: wait.number,
            payload: wait.payload.clone().unwrap_or_else(|| delivery.payload.clone()),
            delay: wait.after,
        };
        self.try_store(spec, sequence, delivery, copy).await
    }

    async fn try_store(
        &self,
        spec: &ConsumerSpec,
        sequence: u64,
        delivery: &Delivery,
        copy: DelayedCopy,
    ) -> bool {
        let stored = self.store(spec, delivery, copy).await;
        if let Err(error) = &stored {
            tracing::warn!(
                stream = spec.stream,
                consumer = spec.name,
                sequence,
                %error,
                "message not stored in the delay queue; it waits in its consumer"
            );
        }
        stored.is_ok()
    }

    async fn store(&self, spec: &ConsumerSpec, delivery: &Delivery, copy: DelayedCopy) -> Result<()> {
        let due = Timestamp::now().plus(copy.delay.min(self.limits.delay_max));
        let to = format!("later.v1.wait.{}.{}.{}", spec.stream, spec.name, copy.token);
        let mut headers = headers::with_type(delivery.subject);
        headers.insert(header::NATS_SCHEDULE, format!("@at {}", rfc3339(due)));
        headers.insert(
            header::NATS_SCHEDULE_TARGET,
            format!("later.v1.due.{}.{}", spec.stream, spec.name),
        );
        headers.insert(headers::SUBJECT, delivery.subject.as_str());
        headers.insert(headers::ATTEMPTS, copy.attempts.to_string());
        headers.insert(headers::PUBLISHED_AT, delivery.published_at.0.to_string());
        headers.insert(headers::ID, copy.id.as_str());
        headers.insert(headers::COPY, copy.message_id.as_str());
        let first = delivery.header(headers::FIRST_TRACE_PARENT);
        if let Some(first) = first.or(delivery.trace_parent()) {
            headers::add(&mut headers, headers::FIRST_TRACE_PARENT, first);
        }
        if copy.waits > 0 {
            headers.insert(headers::WAITS, copy.waits.to_string());
        }
        let outgoing = Outgoing {
            span: trace::publish_span(self.mesh.role, Subject::Due, &to),
            to,
            headers,
            id: Some(copy.message_id),
            body: copy.payload,
            repeatable: false,
            reserved_bytes: 0,
            is_post: false,
        };
        self.mesh.send(outgoing).await?;
        Ok(())
    }

    /// Whether the stream supports schedules and is below its limit; false when it can't be read.
    pub(crate) async fn has_capacity(&self) -> bool {
        let mut capacity = self.capacity.lock().await;
        if let Some((at, has_capacity)) = *capacity
            && at.elapsed() < CAPACITY_CHECK_INTERVAL
        {
            return has_capacity;
        }
        let has_capacity = match self.mesh.delay_queue_bytes().await {
            Ok(bytes) => bytes.is_some_and(|bytes| bytes < self.limits.bytes_max),
            Err(error) => {
                tracing::warn!(stream = streams::LATER, %error, "delay queue can't be read");
                false
            }
        };
        *capacity = Some((Instant::now(), has_capacity));
        has_capacity
    }
}

/// A copy of a message in the delay queue.
struct DelayedCopy {
    /// Last token of the subject. The delay queue holds one copy a subject: a newer one replaces it.
    token: String,
    /// Message id of the first publish.
    id: String,
    /// Message id of the copy.
    message_id: String,
    /// Attempts to continue from.
    attempts: u64,
    waits: u32,
    payload: Bytes,
    delay: Duration,
}

/// Handler of the consumer [`LATER`](crate::consumers::LATER): publishes due messages to their original subjects. Each
/// service whose consumers use the delay queue runs it.
#[derive(Debug, Clone)]
pub struct Requeuer {
    mesh: Mesh,
}

impl Requeuer {
    /// A requeuer that publishes to this mesh.
    pub fn new(mesh: Mesh) -> Self {
        Self { mesh }
    }
}

#[async_trait]
impl Handler for Requeuer {
    async fn handle(&self, delivery: &Delivery) -> Disposition {
        let subject = delivery.header(headers::SUBJECT).and_then(Subject::parse);
        let attempts = delivery.header(headers::ATTEMPTS).and_then(|n| n.parse().ok());
        let (Some(subject), Some(attempts), Some(id)) = (subject, attempts, delivery.header(headers::ID))
        else {
            return Disposition::term("missing or malformed origin headers");
        };
        let mut headers = headers::with_type(subject);
        for name in [
            headers::ATTEMPTS,
            headers::PUBLISHED_AT,
            headers::ID,
            headers::WAITS,
            headers::FIRST_TRACE_PARENT,
        ] {
            if let Some(value) = delivery.header(name) {
                headers.insert(name, value);
            }
        }
        let outgoing = Outgoing {
            to: subject.as_str().into(),
            span: trace::publish_span(self.mesh.role, subject, subject.as_str()),
            headers,
            // Copies of earlier versions don't name their id.
            id: Some(match delivery.header(headers::COPY) {
                Some(id) => id.to_owned(),
                None => copy_id(id, 0, attempts),
            }),
            body: delivery.payload.clone(),
            repeatable: false,
            reserved_bytes: 0,
            is_post: false,
        };
        match self.mesh.send(outgoing).await {
            Ok(_) => Disposition::Ack,
            Err(error) => Disposition::retry(error),
        }
    }
}

impl Mesh {
    /// Whether the server supports message schedules: nats-server 2.12 or later.
    pub(crate) fn has_schedules(&self) -> bool {
        self.consuming().client.is_server_compatible(2, 12, 0)
    }

    /// Bytes in the delay queue; `None` when its stream doesn't support schedules and would only store them.
    async fn delay_queue_bytes(&self) -> Result<Option<u64>> {
        let what = || format!("read stream {}", streams::LATER);
        let stream = self
            .publishing()
            .jetstream
            .get_stream(streams::LATER)
            .await
            .map_err(|error| Error::unavailable(what(), error))?;
        let info = stream.cached_info();
        Ok(info.config.allow_message_schedules.then_some(info.state.bytes))
    }
}

/// Message id of the first publish of a message.
fn base_id(spec: &ConsumerSpec, sequence: u64, delivery: &Delivery) -> String {
    match delivery.header(headers::ID).or(delivery.id()) {
        Some(id) => id.to_owned(),
        None => format!("{}/{sequence}", spec.stream),
    }
}

/// Message id of the copy that is made after this number of waits and attempts.
fn copy_id(id: &str, waits: u32, attempts: u64) -> String {
    match waits {
        0 => format!("{id}/later/{attempts}"),
        _ => format!("{}/later/{attempts}", wait_id(id, waits)),
    }
}

/// Message id of the copy that a wait makes.
fn wait_id(id: &str, number: u32) -> String {
    format!("{id}/wait/{number}")
}

/// A token of a subject for the waits of the message with this id.
fn subject_token(id: &str) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let token: String = id.chars().map(|c| if allowed(c) { c } else { '-' }).collect();
    format!("id-{token}")
}

fn rfc3339(at: Timestamp) -> String {
    // A timestamp out of range becomes the latest date.
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(at.0) * 1_000)
        .unwrap_or(PrimitiveDateTime::MAX.assume_utc());
    let (year, month, day) = (at.year(), u8::from(at.month()), at.day());
    let (hour, minute, second, micros) = at.to_hms_micro();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_is_formatted_as_rfc_3339() {
        assert_eq!(
            rfc3339(Timestamp(1_790_230_470_084_404)),
            "2026-09-24T06:14:30.084404Z"
        );
        assert_eq!(
            rfc3339(Timestamp(1_790_230_470_000_000)),
            "2026-09-24T06:14:30.000000Z"
        );
        assert!(rfc3339(Timestamp(i64::MAX)).starts_with("9999-12-31T"));
    }
}
