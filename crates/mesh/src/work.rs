//! One message on its task: the handler around which the rest is built.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, HeaderMap};
use bytes::Bytes;
use futures::FutureExt as _;
use herald_failure::panic_reason;
use herald_model::time::Micros;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::headers::{self, Origin};
use crate::later::WaitingRoom;
use crate::meta::Meta;
use crate::topology::ConsumerSpec;
use crate::{Delivery, Handler, Mesh, Settle, trace};

/// A reason goes into one protocol line and one advisory.
const REASON_BYTES_MAX: usize = 512;

/// What the tasks of one consumer share.
pub(crate) struct Worker<H> {
    pub(crate) mesh: Mesh,
    pub(crate) client: Client,
    pub(crate) spec: ConsumerSpec,
    pub(crate) handler: Arc<H>,
    /// Where messages wait that this consumer may not hold for long.
    pub(crate) room: Option<WaitingRoom>,
    /// Cancelled when a shutdown takes too long.
    pub(crate) hurry: CancellationToken,
}

/// A message in hand.
pub(crate) struct Job<'a> {
    reply: &'a async_nats::Subject,
    pub(crate) subject: &'a str,
    pub(crate) sequence: u64,
    pub(crate) published_at: Micros,
    /// Messages that the consumer had left.
    pub(crate) pending: u64,
    /// Over all copies.
    pub(crate) attempt: u64,
}

/// What becomes of a message after an attempt.
#[derive(Debug)]
pub(crate) enum Verdict {
    Done,
    /// It comes again; without a time after the consumer's own delay.
    Again {
        after: Option<Duration>,
        reason: String,
    },
    Never {
        reason: String,
    },
}

impl<H: Handler> Worker<H> {
    /// Handles a message and settles it.
    pub(crate) async fn work(&self, message: async_nats::Message, permit: OwnedSemaphorePermit) {
        let Some(reply) = message.reply else {
            return tracing::error!(consumer = self.spec.name, "a message without a reply subject");
        };
        let Some(meta) = Meta::parse(&reply) else {
            return tracing::error!(consumer = self.spec.name, %reply, "a reply subject that is not jetstream's");
        };
        let mut job = Job {
            reply: &reply,
            subject: &message.subject,
            sequence: meta.sequence,
            published_at: meta.published_at,
            pending: meta.pending,
            attempt: meta.attempt,
        };
        if let Some(to) = headers::subject_of_batch(&message.subject) {
            return self
                .kept(&job, self.batch(&job, to, &message.payload, &permit))
                .await;
        }
        let headers = message.headers.as_ref();
        let origin = match Origin::read(job.subject, job.sequence, job.published_at, headers) {
            Ok(origin) => origin,
            Err(reason) => return self.term(&job, &reason).await,
        };
        job.attempt += origin.attempts_before;
        if origin.redrive.is_some() {
            if let Some(reason) = headers.and_then(|headers| headers::get(headers, headers::GIVEN_UP)) {
                return self.term(&job, reason).await;
            }
            if let Some(wait) = headers.and_then(headers::wait) {
                // Once: the clocks of two workers may differ, and each wait takes a delivery.
                if !wait.is_zero() && meta.attempt == 1 {
                    return self.send(&reply, nak(wait)).await;
                }
                // The first delivery was for the wait, as a rule. If not, it has one attempt more than others.
                job.attempt -= u64::from(meta.attempt > 1);
            }
        }

        let span = trace::process_span(
            origin.subject,
            &message.subject,
            &self.spec.name,
            job.attempt,
            headers,
        );
        let delivery = self.delivery(origin, message.payload, &job, message.headers);
        self.kept(&job, self.run(&job, &delivery)).instrument(span).await;
    }

    /// What the handler gets of a message.
    pub(crate) fn delivery(
        &self,
        origin: Origin,
        payload: Bytes,
        job: &Job<'_>,
        headers: Option<HeaderMap>,
    ) -> Delivery {
        Delivery {
            subject: origin.subject,
            payload,
            sequence: origin.sequence,
            attempt: job.attempt,
            attempts_max: u64::from(self.spec.attempts_max),
            published_at: origin.published_at,
            redrive: origin.redrive,
            pending_count: job.pending,
            headers,
        }
    }

    /// Gives a message back, for any worker, at once.
    pub(crate) async fn give_back(&self, reply: &async_nats::Subject) {
        self.send(reply, Bytes::from_static(b"-NAK")).await;
    }

    /// Does something with a message that is kept from other workers meanwhile; gives it back when it was told to hurry.
    async fn kept(&self, job: &Job<'_>, work: impl Future<Output = ()>) {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                biased;
                () = &mut work => return,
                () = self.hurry.cancelled() => break,
                () = tokio::time::sleep(self.spec.ack_wait / 3) => {
                    self.send(job.reply, Bytes::from_static(b"+WPI")).await;
                }
            }
        }
        tracing::warn!(
            stream = self.spec.stream,
            consumer = self.spec.name,
            sequence = job.sequence,
            attempt = job.attempt,
            "message given back: its handler did not finish before the shutdown"
        );
        self.give_back(job.reply).await;
    }

    /// Runs the handler, and settles as it says.
    async fn run(&self, job: &Job<'_>, delivery: &Delivery) {
        let settle = self.handle(delivery).await;
        herald_failpoints::point!(format!("handled.{}", self.spec.name));
        self.settle(job, Some(delivery), self.verdict(settle, job.attempt))
            .await;
    }

    /// Runs the handler.
    pub(crate) async fn handle(&self, delivery: &Delivery) -> Settle {
        AssertUnwindSafe(self.handler.handle(delivery))
            .catch_unwind()
            .await
            .unwrap_or_else(|panic| Settle::fault(panic_reason(&*panic)))
    }

    /// What the handler's word means after so many attempts.
    pub(crate) fn verdict(&self, settle: Settle, attempt: u64) -> Verdict {
        let attempts_max = u64::from(self.spec.attempts_max);
        let fault_attempts_max = u64::from(self.spec.fault_attempts_max).min(attempts_max);
        match settle {
            Settle::Ack => Verdict::Done,
            Settle::Retry { after, reason } if attempt < attempts_max => Verdict::Again { after, reason },
            Settle::Fault { reason } if attempt < fault_attempts_max => {
                Verdict::Again { after: None, reason }
            }
            // The server's own advisory of a last failure comes late and has no reason.
            Settle::Retry { reason, .. } => Verdict::Never {
                reason: format!("{reason} (attempt {attempt} of as many)"),
            },
            Settle::Fault { reason } => Verdict::Never {
                reason: format!("{reason} (attempt {attempt}, the last for a fault)"),
            },
            Settle::Term { reason } => Verdict::Never { reason },
        }
    }

    /// Tells the server. A long wait may be spent elsewhere, by what there is to deliver.
    pub(crate) async fn settle(&self, job: &Job<'_>, delivery: Option<&Delivery>, verdict: Verdict) {
        match verdict {
            Verdict::Done => self.send(job.reply, Bytes::from_static(b"+ACK")).await,
            Verdict::Again { after, reason } => self.retry(job, delivery, after, &reason).await,
            Verdict::Never { reason } => self.term(job, &reason).await,
        }
    }

    async fn retry(&self, job: &Job<'_>, delivery: Option<&Delivery>, after: Option<Duration>, reason: &str) {
        let delay = after.unwrap_or_else(|| self.spec.retry.draw(job.attempt));
        let postponed = match (&self.room, delivery) {
            (Some(room), Some(delivery)) => room.postpone(&self.spec, job.sequence, delivery, delay).await,
            _ => false,
        };
        trace::fail(&tracing::Span::current(), reason);
        tracing::warn!(
            stream = self.spec.stream,
            consumer = self.spec.name,
            subject = job.subject,
            sequence = job.sequence,
            attempt = job.attempt,
            delay_ms = delay.as_millis() as u64,
            postponed,
            reason,
            "message will be retried"
        );
        // Postponed, it comes again as another message, and this one is done.
        let settled = if postponed {
            Bytes::from_static(b"+ACK")
        } else {
            nak(delay)
        };
        self.send(job.reply, settled).await;
    }

    pub(crate) async fn term(&self, job: &Job<'_>, reason: &str) {
        trace::fail(&tracing::Span::current(), reason);
        tracing::error!(
            stream = self.spec.stream,
            consumer = self.spec.name,
            subject = job.subject,
            sequence = job.sequence,
            attempt = job.attempt,
            reason,
            "message given up"
        );
        self.send(job.reply, term(reason)).await;
    }

    async fn send(&self, reply: &async_nats::Subject, payload: Bytes) {
        if let Err(error) = self.client.publish(reply.clone(), payload).await {
            // The connection was closed for good; the message comes again after ack_wait.
            tracing::warn!(stream = self.spec.stream, consumer = self.spec.name, %error, "message not settled");
        }
    }
}

fn nak(delay: Duration) -> Bytes {
    if delay.is_zero() {
        Bytes::from_static(b"-NAK")
    } else {
        format!("-NAK {{\"delay\":{}}}", delay.as_nanos()).into()
    }
}

/// The client's own TERM can't carry a reason.
fn term(reason: &str) -> Bytes {
    one_line("+TERM ", reason).into()
}

/// A reason as it fits into a protocol line or a header, after this.
pub(crate) fn one_line(start: &str, reason: &str) -> String {
    let mut line = String::with_capacity(start.len() + reason.len().min(REASON_BYTES_MAX));
    line.push_str(start);
    for c in reason.chars() {
        if line.len() + c.len_utf8() > REASON_BYTES_MAX {
            break;
        }
        line.push(if c.is_control() { ' ' } else { c });
    }
    line
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_reason_is_one_short_line(reason in any::<String>()) {
            let line = term(&reason);
            let text = std::str::from_utf8(&line).unwrap();
            prop_assert!(text.starts_with("+TERM ") && text.len() <= REASON_BYTES_MAX);
            prop_assert!(!text.chars().any(char::is_control));
        }
    }
}
