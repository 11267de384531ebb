//! Long waits: a message that a consumer would hold for minutes waits in the stream LATER instead, as a schedule that the
//! server turns into a message when its time has come. A worker of LATER puts that back where it came from.
//!
//! It can't go back by itself: the server schedules only within one stream, and not in one that refuses what is too much,
//! which all others must.

use std::time::Duration;

use async_nats::header;
use async_trait::async_trait;
use herald_model::time::Timestamp;
use time::{OffsetDateTime, PrimitiveDateTime};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::error::{Error, Result};
use crate::publish::Outgoing;
use crate::topology::{ConsumerSpec, Waits, streams};
use crate::{Delivery, Disposition, Handler, Mesh, Subject, headers, trace};

/// How long an answer to whether there is room is believed.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Where the messages of one consumer wait.
#[derive(Debug)]
pub(crate) struct DelayQueue {
    mesh: Mesh,
    waits: Waits,
    /// When it was looked at, and whether there was room.
    seen: Mutex<Option<(Instant, bool)>>,
}

impl DelayQueue {
    /// That of this consumer, if it has one.
    pub(crate) fn of(mesh: &Mesh, spec: &ConsumerSpec) -> Option<Self> {
        Some(Self {
            mesh: mesh.clone(),
            waits: spec.waits?,
            seen: Mutex::new(None),
        })
    }

    /// Stores a message to come again after this delay, if that is long enough and there is room. The stored one goes on
    /// counting the attempts; one that waits already, because an earlier attempt's acknowledgement was lost, is replaced.
    pub(crate) async fn postpone(
        &self,
        spec: &ConsumerSpec,
        sequence: u64,
        delivery: &Delivery,
        delay: Duration,
    ) -> bool {
        if delay <= self.waits.hold_max || !self.has_room().await {
            return false;
        }
        let stored = self.store(spec, sequence, delivery, delay).await;
        if let Err(error) = &stored {
            tracing::warn!(
                stream = spec.stream,
                consumer = spec.name,
                sequence,
                %error,
                "message held: it could not be put off"
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
        let due = Timestamp::now().plus(delay.min(self.waits.wait_max));
        let to = format!("later.v1.wait.{}.{}.{sequence}", spec.stream, spec.name);
        let id = match delivery.header(headers::ID).or(delivery.id()) {
            Some(id) => id.to_owned(),
            None => format!("{}/{sequence}", spec.stream),
        };
        let mut headers = headers::typed(delivery.subject);
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
            spare_bytes: 0,
        };
        self.mesh.send(outgoing).await?;
        Ok(())
    }

    /// Whether the stream takes schedules, and is below its limit; no, when it doesn't say.
    async fn has_room(&self) -> bool {
        let mut seen = self.seen.lock().await;
        if let Some((at, room)) = *seen
            && at.elapsed() < LOOK_INTERVAL
        {
            return room;
        }
        let room = match self.mesh.delay_queue().await {
            Ok(bytes) => bytes.is_some_and(|bytes| bytes < self.waits.bytes_max),
            Err(error) => {
                tracing::warn!(stream = streams::LATER, %error, "delay queue not found");
                false
            }
        };
        *seen = Some((Instant::now(), room));
        room
    }
}

/// The handler of the consumer [`LATER`](crate::consumers::LATER): puts what has waited long enough back where it came
/// from. Whoever works on the messages that wait runs it too.
#[derive(Debug, Clone)]
pub struct Requeuer {
    mesh: Mesh,
}

impl Requeuer {
    /// Puts back on this mesh.
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
            return Disposition::term("a message that does not say where it came from");
        };
        let mut headers = headers::typed(subject);
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
            spare_bytes: 0,
        };
        match self.mesh.send(outgoing).await {
            Ok(_) => Disposition::Ack,
            Err(error) => Disposition::retry(error),
        }
    }
}

impl Mesh {
    /// Whether the server that this is connected to knows schedules.
    pub(crate) fn has_schedules(&self) -> bool {
        self.consuming().client.is_server_compatible(2, 12, 0)
    }

    /// The bytes in the delay queue; `None` when it takes no schedules, where they would only be stored.
    async fn delay_queue(&self) -> Result<Option<u64>> {
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

/// The id of the message that takes another one's place after so many attempts.
fn copy_id(id: &str, attempts: u64) -> String {
    format!("{id}/later/{attempts}")
}

fn rfc3339(at: Timestamp) -> String {
    // Beyond what has a date there is no wait either.
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
    fn a_moment_is_written_as_the_server_reads_it() {
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
