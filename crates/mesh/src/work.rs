//! One message on its task: the handler around which the rest is built.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use async_nats::Client;
use bytes::Bytes;
use futures::FutureExt as _;
use herald_model::time::Micros;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::headers::Origin;
use crate::topology::ConsumerSpec;
use crate::{Delivery, Handler, Settle, trace};

/// A reason goes into one protocol line and one advisory.
const REASON_BYTES_MAX: usize = 512;

/// What the tasks of one consumer share.
pub(crate) struct Worker<H> {
    pub(crate) client: Client,
    pub(crate) spec: ConsumerSpec,
    pub(crate) handler: Arc<H>,
    /// Cancelled when a shutdown takes too long.
    pub(crate) hurry: CancellationToken,
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
        let headers = message.headers.as_ref();
        let origin = match Origin::read(&message.subject, meta.sequence, meta.published_at, headers) {
            Ok(origin) => origin,
            Err(reason) => {
                return self
                    .settle(&reply, &meta, &message.subject, Settle::Term { reason })
                    .await;
            }
        };

        let span = trace::process_span(
            origin.subject,
            &message.subject,
            &self.spec.name,
            meta.attempt,
            headers,
        );
        let delivery = Delivery {
            subject: origin.subject,
            payload: message.payload,
            sequence: origin.sequence,
            attempt: meta.attempt,
            attempts_max: u64::from(self.spec.attempts_max),
            published_at: origin.published_at,
            redrive: origin.redrive,
            pending_count: meta.pending,
            headers: message.headers,
        };
        async {
            let settle = self.handle(&delivery, &reply).await;
            if let Some(settle) = settle {
                self.settle(&reply, &meta, &message.subject, settle).await;
            } else {
                tracing::warn!(
                    stream = self.spec.stream,
                    consumer = self.spec.name,
                    sequence = meta.sequence,
                    attempt = meta.attempt,
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

    /// Runs the handler and keeps the message from other workers meanwhile. `None`: it was told to hurry.
    async fn handle(&self, delivery: &Delivery, reply: &async_nats::Subject) -> Option<Settle> {
        let mut handling = std::pin::pin!(AssertUnwindSafe(self.handler.handle(delivery)).catch_unwind());
        loop {
            tokio::select! {
                biased;
                settle = &mut handling => return Some(settle.unwrap_or_else(|panic| {
                    Settle::fault(format_args!("panic: {}", panic_text(&*panic)))
                })),
                () = self.hurry.cancelled() => return None,
                () = tokio::time::sleep(self.spec.ack_wait / 3) => {
                    self.send(reply, Bytes::from_static(b"+WPI")).await;
                }
            }
        }
    }

    async fn settle(&self, reply: &async_nats::Subject, meta: &Meta, subject: &str, settle: Settle) {
        let attempts_max = u64::from(self.spec.attempts_max);
        let fault_attempts_max = u64::from(self.spec.fault_attempts_max).min(attempts_max);
        let attempt = meta.attempt;
        match settle {
            Settle::Ack => self.send(reply, Bytes::from_static(b"+ACK")).await,
            Settle::Retry { after, reason } if attempt < attempts_max => {
                self.retry(reply, meta, subject, after, &reason).await;
            }
            Settle::Fault { reason } if attempt < fault_attempts_max => {
                self.retry(reply, meta, subject, None, &reason).await;
            }
            // The server's own advisory of a last failure comes late and has no reason.
            Settle::Retry { reason, .. } => {
                let reason = format!("{reason} (attempt {attempt} of as many)");
                self.term(reply, meta, subject, &reason).await;
            }
            Settle::Fault { reason } => {
                let reason = format!("{reason} (attempt {attempt}, the last for a fault)");
                self.term(reply, meta, subject, &reason).await;
            }
            Settle::Term { reason } => self.term(reply, meta, subject, &reason).await,
        }
    }

    async fn retry(
        &self,
        reply: &async_nats::Subject,
        meta: &Meta,
        subject: &str,
        after: Option<Duration>,
        reason: &str,
    ) {
        let delay = after.unwrap_or_else(|| self.spec.retry.draw(meta.attempt));
        trace::fail(&tracing::Span::current(), reason);
        tracing::warn!(
            stream = self.spec.stream,
            consumer = self.spec.name,
            subject,
            sequence = meta.sequence,
            attempt = meta.attempt,
            delay_ms = delay.as_millis() as u64,
            reason,
            "message will be retried"
        );
        self.send(reply, nak(delay)).await;
    }

    async fn term(&self, reply: &async_nats::Subject, meta: &Meta, subject: &str, reason: &str) {
        trace::fail(&tracing::Span::current(), reason);
        tracing::error!(
            stream = self.spec.stream,
            consumer = self.spec.name,
            subject,
            sequence = meta.sequence,
            attempt = meta.attempt,
            reason,
            "message given up"
        );
        self.send(reply, term(reason)).await;
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

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message")
}

/// What a reply subject says: `$JS.ACK.[domain.account.]stream.consumer.attempt.sequence.consumer sequence.time.pending`
/// and perhaps more.
#[derive(Debug, PartialEq, Eq)]
struct Meta {
    attempt: u64,
    sequence: u64,
    published_at: Micros,
    pending: u64,
}

impl Meta {
    fn parse(reply: &str) -> Option<Self> {
        let rest = reply.strip_prefix("$JS.ACK.")?;
        let count = rest.split('.').count();
        let mut tokens = rest.split('.').skip(match count {
            7 => 2,
            9.. => 4,
            _ => return None,
        });
        let mut number = || tokens.next()?.parse::<u64>().ok();
        let (attempt, sequence, _consumer_sequence, nanos, pending) =
            (number()?, number()?, number()?, number()?, number()?);
        Some(Self {
            attempt,
            sequence,
            published_at: Micros(i64::try_from(nanos / 1_000).ok()?),
            pending,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn both_forms_of_reply_subjects_are_read() {
        let read = Some(Meta {
            attempt: 3,
            sequence: 100,
            published_at: Micros(1_790_230_470_084_404),
            pending: 42,
        });
        assert_eq!(
            Meta::parse("$JS.ACK.POSTS.archive.3.100.7.1790230470084404000.42"),
            read
        );
        assert_eq!(
            Meta::parse("$JS.ACK._.hash.POSTS.archive.3.100.7.1790230470084404000.42"),
            read
        );
        assert_eq!(
            Meta::parse("$JS.ACK.hub.hash.POSTS.archive.3.100.7.1790230470084404000.42.token.more"),
            read
        );
        assert_eq!(
            Meta::parse("$JS.ACK.POSTS.archive.3.100.7.1790230470084404000"),
            None
        );
        assert_eq!(
            Meta::parse("$JS.ACK.POSTS.archive.3.x.7.1790230470084404000.42"),
            None
        );
        assert_eq!(Meta::parse("_INBOX.abc"), None);
    }

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
