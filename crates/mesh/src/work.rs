//! Handles one message on its task: runs the handler, extends the acknowledgement deadline, settles the message.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::Client;
use bytes::Bytes;
use futures::FutureExt as _;
use herald_failure::panic_reason;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::delay_queue::DelayQueue;
use crate::headers::OriginalMessage;
use crate::meta::Meta;
use crate::metrics::{ConsumerMetrics, RetryCause};
use crate::slot::Slot;
use crate::topology::ConsumerSpec;
use crate::trace::{Processed, Role};
use crate::{Delivery, Disposition, Handler, Wait, hops, trace};

/// Maximum length of a `+TERM` line with its reason, bytes.
const REASON_BYTES_MAX: usize = 512;

/// State shared by the tasks of one consumer.
pub(crate) struct Worker<H> {
    pub(crate) client: Client,
    /// The role in the spans.
    pub(crate) role: Role,
    /// Whether traces have the deliveries of the broker.
    pub(crate) broker_hops: bool,
    pub(crate) spec: ConsumerSpec,
    pub(crate) handler: Arc<H>,
    /// Delay queue for long retry delays; `None`: the consumer holds its messages.
    pub(crate) delay_queue: Option<Arc<DelayQueue>>,
    pub(crate) metrics: ConsumerMetrics,
    /// Cancelled when a shutdown exceeds its deadline.
    pub(crate) abort: CancellationToken,
}

/// The message being handled.
struct Job<'a> {
    reply: &'a async_nats::Subject,
    subject: &'a str,
    sequence: u64,
    /// Attempts over all copies, from 1.
    attempt: u64,
    /// What a span says of the message; `None` for a message whose headers are malformed.
    processed: Option<Processed<'a>>,
}

impl<H: Handler> Worker<H> {
    /// Handles a message and settles it. The caller releases the slot afterwards, unless the handler did so before.
    pub(crate) async fn process(&self, message: async_nats::Message, slot: Slot) {
        let Some(reply) = message.reply else {
            return tracing::error!(
                consumer = self.spec.name,
                "message ignored: it has no reply subject, so it can't be acknowledged"
            );
        };
        let Some(meta) = Meta::parse(&reply) else {
            return tracing::error!(consumer = self.spec.name, %reply, "message ignored: its reply subject is not one of JetStream");
        };
        let arrived = Instant::now();
        if meta.attempt > 1 {
            self.metrics.redeliveries.inc();
        }
        let mut job = Job {
            reply: &reply,
            subject: &message.subject,
            sequence: meta.sequence,
            attempt: meta.attempt,
            processed: None,
        };
        let headers = message.headers.as_ref();
        let origin = match OriginalMessage::parse(&message.subject, meta.sequence, meta.published_at, headers)
        {
            Ok(origin) => origin,
            Err(reason) => return self.term(&job, &reason).await,
        };
        job.attempt = job.attempt.saturating_add(origin.previous_attempts);
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
            delay_queue: self.delay_queue.clone(),
            slot,
        };
        let processed = Processed {
            role: self.role,
            subject: origin.subject,
            from: job.subject,
            consumer: &self.spec.name,
            sequence: meta.sequence,
            post: origin.sequence,
            delivery: meta.attempt,
            attempt: job.attempt,
            headers: delivery.headers.as_ref(),
        };
        if self.broker_hops {
            hops::record_delivery(&processed, &self.spec.stream, meta.published_at);
        }
        let span = if self.handler.handles_batches() {
            tracing::Span::none()
        } else {
            trace::process_span(&processed)
        };
        job.processed = Some(processed);
        async {
            if self
                .run_with_heartbeat(&job, self.run(&job, &delivery))
                .await
                .is_none()
            {
                tracing::warn!(
                    stream = self.spec.stream,
                    consumer = self.spec.name,
                    sequence = job.sequence,
                    attempt = job.attempt,
                    "message released: its handler did not finish before the shutdown deadline"
                );
                self.release(&reply).await;
            }
        }
        .instrument(span)
        .await;
        self.metrics
            .process_seconds
            .observe(arrived.elapsed().as_secs_f64());
    }

    /// Returns a message to the consumer for immediate redelivery.
    pub(crate) async fn release(&self, reply: &async_nats::Subject) {
        self.metrics.released.inc();
        self.send(reply, Bytes::from_static(b"-NAK")).await;
    }

    /// Runs `work` and extends the message's acknowledgement deadline three times per `ack_wait`. `None` after an
    /// abort.
    async fn run_with_heartbeat<T>(&self, job: &Job<'_>, work: impl Future<Output = T>) -> Option<T> {
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

    /// Runs the handler and settles the message with the handler's disposition.
    async fn run(&self, job: &Job<'_>, delivery: &Delivery) {
        let handled = AssertUnwindSafe(self.handler.handle(delivery))
            .catch_unwind()
            .await;
        let fault = if handled.is_err() {
            RetryCause::Panic
        } else {
            RetryCause::Permanent
        };
        let disposition = handled.unwrap_or_else(|panic| Disposition::fault(panic_reason(&*panic)));
        herald_failpoints::point!(format!("handled.{}", self.spec.name));

        let attempts_max = u64::from(self.spec.attempts_max);
        let fault_attempts_max = u64::from(self.spec.fault_attempts_max).min(attempts_max);
        let attempt = job.attempt;
        match disposition {
            Disposition::Ack => {
                self.metrics.acked.inc();
                self.send(job.reply, Bytes::from_static(b"+ACK")).await;
            }
            Disposition::Retry { after, reason } if attempt < attempts_max => {
                self.metrics.count_retry(RetryCause::Transient);
                self.retry(job, delivery, after, &reason).await;
            }
            Disposition::Fault { reason } if attempt < fault_attempts_max => {
                self.metrics.count_retry(fault);
                self.retry(job, delivery, None, &reason).await;
            }
            // Terminate the last attempt: the server's own advisory comes after `ack_wait` and has no reason.
            Disposition::Retry { reason, .. } => {
                self.term(job, &format!("{reason} (attempt {attempt} of {attempts_max})"))
                    .await;
            }
            Disposition::Fault { reason } => {
                self.term(job, &format!("{reason} (attempt {attempt}, permanent error)"))
                    .await;
            }
            Disposition::Wait(wait) => self.wait(job, delivery, wait).await,
            Disposition::Term { reason } => self.term(job, &reason).await,
        }
    }

    /// Stores the copy of a wait, then ends the message. Without the copy, the consumer holds the message.
    async fn wait(&self, job: &Job<'_>, delivery: &Delivery, wait: Wait) {
        let stored = match &self.delay_queue {
            Some(delay_queue) => {
                delay_queue
                    .store_wait(&self.spec, job.sequence, delivery, &wait)
                    .await
            }
            None => false,
        };
        let Wait {
            after,
            reason,
            failed,
            ..
        } = wait;
        if !stored {
            let attempts_max = u64::from(self.spec.attempts_max);
            if job.attempt < attempts_max {
                self.hold(job, after, &reason).await;
            } else {
                let reason = failed.unwrap_or(reason);
                self.term(
                    job,
                    &format!("{reason} (attempt {} of {attempts_max})", job.attempt),
                )
                .await;
            }
            return;
        }
        herald_failpoints::point!(format!("waiting.{}", self.spec.name));
        if let Some(reason) = failed {
            return self.term(job, &reason).await;
        }
        tracing::debug!(
            stream = self.spec.stream,
            consumer = self.spec.name,
            sequence = job.sequence,
            delay_ms = after.as_millis() as u64,
            reason,
            "message waits in the delay queue"
        );
        self.metrics.waiting.inc();
        self.send(job.reply, Bytes::from_static(b"+ACK")).await;
    }

    /// Keeps a waiting message in its consumer.
    async fn hold(&self, job: &Job<'_>, after: Duration, reason: &str) {
        tracing::warn!(
            stream = self.spec.stream,
            consumer = self.spec.name,
            sequence = job.sequence,
            attempt = job.attempt,
            delay_ms = after.as_millis() as u64,
            reason,
            "message waits in its consumer and spends an attempt: the delay queue can't take it"
        );
        self.metrics.count_retry(RetryCause::QueueFull);
        self.send(job.reply, nak(after)).await;
    }

    async fn retry(&self, job: &Job<'_>, delivery: &Delivery, after: Option<Duration>, reason: &str) {
        let delay = after.unwrap_or_else(|| self.spec.retry.random_delay(job.attempt));
        let postponed = match &self.delay_queue {
            Some(delay_queue) => {
                delay_queue
                    .postpone(&self.spec, job.sequence, delivery, delay)
                    .await
            }
            None => false,
        };
        let span = self.failure_span(job);
        trace::set_error(&span, reason);
        span.in_scope(|| {
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
        });
        // The delay queue publishes another copy, so this one is acknowledged.
        let settlement = if postponed {
            Bytes::from_static(b"+ACK")
        } else {
            nak(delay)
        };
        self.send(job.reply, settlement).await;
    }

    async fn term(&self, job: &Job<'_>, reason: &str) {
        let span = self.failure_span(job);
        trace::set_error(&span, reason);
        span.in_scope(|| {
            tracing::error!(
                stream = self.spec.stream,
                consumer = self.spec.name,
                subject = job.subject,
                sequence = job.sequence,
                attempt = job.attempt,
                reason,
                "message terminated"
            );
        });
        self.metrics.terminated.inc();
        self.send(job.reply, term(reason)).await;
    }

    /// The span of a failed attempt: that of the handler, or one of its own if the handler works in batches.
    fn failure_span(&self, job: &Job<'_>) -> tracing::Span {
        match &job.processed {
            Some(processed) if self.handler.handles_batches() => trace::process_span(processed),
            _ => tracing::Span::current(),
        }
    }

    async fn send(&self, reply: &async_nats::Subject, payload: Bytes) {
        if let Err(error) = self.client.publish(reply.clone(), payload).await {
            // The client is closed; the message is redelivered after ack_wait.
            tracing::warn!(stream = self.spec.stream, consumer = self.spec.name, %error, "acknowledgement or retry not sent; the message will be redelivered");
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

/// A `+TERM` with a reason, which the client's own `AckKind::Term` doesn't support.
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
        fn a_termination_is_one_short_line(reason in any::<String>()) {
            let line = term(&reason);
            let text = std::str::from_utf8(&line).unwrap();
            prop_assert!(text.starts_with("+TERM ") && text.len() <= REASON_BYTES_MAX);
            prop_assert!(!text.chars().any(char::is_control));
        }
    }
}
