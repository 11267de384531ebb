//! One message on its task: the handler around which the rest is built.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use async_nats::Client;
use bytes::Bytes;
use futures::FutureExt as _;
use herald_failure::panic_reason;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::delay_queue::DelayQueue;
use crate::headers::OriginalMessage;
use crate::meta::Meta;
use crate::topology::ConsumerSpec;
use crate::{Delivery, Disposition, Handler, trace};

/// A reason goes into one protocol line and one advisory.
const REASON_BYTES_MAX: usize = 512;

/// What the tasks of one consumer share.
pub(crate) struct Worker<H> {
    pub(crate) client: Client,
    pub(crate) spec: ConsumerSpec,
    pub(crate) handler: Arc<H>,
    /// Where messages wait that this consumer may not hold for long.
    pub(crate) delay_queue: Option<DelayQueue>,
    /// Cancelled when a shutdown takes too long.
    pub(crate) abort: CancellationToken,
}

/// A message in hand.
struct Job<'a> {
    reply: &'a async_nats::Subject,
    subject: &'a str,
    sequence: u64,
    /// Over all copies.
    attempt: u64,
}

impl<H: Handler> Worker<H> {
    /// Handles a message and settles it.
    pub(crate) async fn work(&self, message: async_nats::Message) {
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
            attempt: meta.attempt,
        };
        let headers = message.headers.as_ref();
        let origin = match OriginalMessage::read(&message.subject, meta.sequence, meta.published_at, headers)
        {
            Ok(origin) => origin,
            Err(reason) => return self.term(&job, &reason).await,
        };
        job.attempt += origin.attempts_before;

        let span = trace::process_span(
            origin.subject,
            &message.subject,
            &self.spec.name,
            job.attempt,
            headers,
        );
        let delivery = Delivery {
            subject: origin.subject,
            payload: message.payload,
            sequence: origin.sequence,
            attempt: job.attempt,
            attempts_max: u64::from(self.spec.attempts_max),
            published_at: origin.published_at,
            redrive: origin.redrive,
            pending_count: meta.pending,
            headers: message.headers,
        };
        async {
            if self.keep(&job, self.run(&job, &delivery)).await.is_none() {
                tracing::warn!(
                    stream = self.spec.stream,
                    consumer = self.spec.name,
                    sequence = job.sequence,
                    attempt = job.attempt,
                    "message given back: its handler did not finish before the shutdown"
                );
                self.give_back(&reply).await;
            }
        }
        .instrument(span)
        .await;
    }

    /// Gives a message back, for any worker, at once.
    pub(crate) async fn give_back(&self, reply: &async_nats::Subject) {
        self.send(reply, Bytes::from_static(b"-NAK")).await;
    }

    /// Keeps a message from other workers while something is done with it. `None`: it was told to abort.
    async fn keep<T>(&self, job: &Job<'_>, work: impl Future<Output = T>) -> Option<T> {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return Some(done),
                () = self.abort.cancelled() => return None,
                () = tokio::time::sleep(self.spec.ack_wait / 3) => {
                    self.send(job.reply, Bytes::from_static(b"+WPI")).await;
                }
            }
        }
    }

    /// Runs the handler, and settles as it says.
    async fn run(&self, job: &Job<'_>, delivery: &Delivery) {
        let settle = AssertUnwindSafe(self.handler.handle(delivery))
            .catch_unwind()
            .await
            .unwrap_or_else(|panic| Disposition::fault(panic_reason(&*panic)));
        herald_failpoints::point!(format!("handled.{}", self.spec.name));

        let attempts_max = u64::from(self.spec.attempts_max);
        let fault_attempts_max = u64::from(self.spec.fault_attempts_max).min(attempts_max);
        let attempt = job.attempt;
        match settle {
            Disposition::Ack => self.send(job.reply, Bytes::from_static(b"+ACK")).await,
            Disposition::Retry { after, reason } if attempt < attempts_max => {
                self.retry(job, delivery, after, &reason).await;
            }
            Disposition::Fault { reason } if attempt < fault_attempts_max => {
                self.retry(job, delivery, None, &reason).await;
            }
            // The server's own advisory of a last failure comes late and has no reason.
            Disposition::Retry { reason, .. } => {
                self.term(job, &format!("{reason} (attempt {attempt} of as many)"))
                    .await;
            }
            Disposition::Fault { reason } => {
                self.term(
                    job,
                    &format!("{reason} (attempt {attempt}, the last for a fault)"),
                )
                .await;
            }
            Disposition::Term { reason } => self.term(job, &reason).await,
        }
    }

    async fn retry(&self, job: &Job<'_>, delivery: &Delivery, after: Option<Duration>, reason: &str) {
        let delay = after.unwrap_or_else(|| self.spec.retry.draw(job.attempt));
        let postponed = match &self.delay_queue {
            Some(delay_queue) => {
                delay_queue
                    .postpone(&self.spec, job.sequence, delivery, delay)
                    .await
            }
            None => false,
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

    async fn term(&self, job: &Job<'_>, reason: &str) {
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
    let mut line = String::with_capacity(reason.len().min(REASON_BYTES_MAX) + 8);
    line.push_str("+TERM ");
    for c in reason.chars() {
        if line.len() + c.len_utf8() > REASON_BYTES_MAX {
            break;
        }
        line.push(if c.is_control() { ' ' } else { c });
    }
    line.into()
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
