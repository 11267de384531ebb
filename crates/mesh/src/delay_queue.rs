//! The delay queue, stream LATER: takes messages with long retry delays, so that they don't occupy the consumer's
//! `ack_pending_max`. A message is stored as a schedule (NATS ADR-51); when it is due, the server publishes it to
//! LATER, and the [`Requeuer`] publishes it to its original stream.
//!
//! The server can't return it to the original stream: a schedule stays within its stream, and streams that refuse
//! messages when full can't have schedules. All other streams must refuse.

use std::time::Duration;

use async_nats::header;
use async_trait::async_trait;
use herald_model::time::Timestamp;
use time::{OffsetDateTime, PrimitiveDateTime};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::error::{Error, Result};
use crate::publish::Outgoing;
use crate::topology::{ConsumerSpec, DelayLimits, streams};
use crate::{Delivery, Disposition, Handler, Mesh, Subject, headers, trace};

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
        let stored = self.store(spec, sequence, delivery, delay).await;
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

    async fn store(
        &self,
        spec: &ConsumerSpec,
        sequence: u64,
        delivery: &Delivery,
        delay: Duration,
    ) -> Result<()> {
        let due = Timestamp::now().plus(delay.min(self.limits.delay_max));
        let to = format!("later.v1.wait.{}.{}.{sequence}", spec.stream, spec.name);
        let id = match delivery.header(headers::ID).or(delivery.id()) {
            Some(id) => id.to_owned(),
            None => format!("{}/{sequence}", spec.stream),
        };
        let mut headers = headers::with_type(delivery.subject);
        headers.insert(header::NATS_SCHEDULE, format!("@at {}", rfc3339(due)));
        headers.insert(
            header::NATS_SCHEDULE_TARGET,
            format!("later.v1.due.{}.{}", spec.stream, spec.name),
        );
        headers.insert(headers::SUBJECT, delivery.subject.as_str());
        headers.insert(headers::ATTEMPTS, delivery.attempt.to_string());
        headers.insert(headers::PUBLISHED_AT, delivery.published_at.0.to_string());
        headers.insert(headers::ID, id.as_str());
        let outgoing = Outgoing {
            span: trace::publish_span(Subject::Due, &to),
            to,
            headers,
            id: Some(copy_id(&id, delivery.attempt)),
            body: delivery.payload.clone(),
            reserved_bytes: 0,
        };
        self.mesh.send(outgoing).await?;
        Ok(())
    }

    /// Whether the stream supports schedules and is below its limit; false when it can't be read.
    async fn has_capacity(&self) -> bool {
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
        for name in [headers::ATTEMPTS, headers::PUBLISHED_AT, headers::ID] {
            if let Some(value) = delivery.header(name) {
                headers.insert(name, value);
            }
        }
        let outgoing = Outgoing {
            to: subject.as_str().into(),
            span: trace::publish_span(subject, subject.as_str()),
            headers,
            id: Some(copy_id(id, attempts)),
            body: delivery.payload.clone(),
            reserved_bytes: 0,
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

/// Message id of the copy that is made after this number of attempts.
fn copy_id(id: &str, attempts: u64) -> String {
    format!("{id}/later/{attempts}")
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
