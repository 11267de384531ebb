//! Redriven messages that travel together: for the server, the worker and its acknowledgements a message costs as much as
//! what it carries, and letters are small and many.
//!
//! A batch is tried once. Whichever of its messages isn't done then goes on by itself, with its attempts so far, and only
//! when all of those are stored is the batch acknowledged. So nothing that a message needs (its delay, its attempts, its
//! advisory) is different from what it would be if it had come by itself, and the others don't wait for it.
//!
//! *Invariant:* when a consumer's floor has passed a batch, each of its messages is done, or in the stream by itself. For a
//! batch that its worker had to give up that is so when the advisory of it is acknowledged.

use std::collections::HashMap;

use async_nats::{HeaderMap, HeaderName, HeaderValue, header};
use bytes::Bytes;
use futures::future::try_join_all;
use futures::stream::{FuturesUnordered, StreamExt as _, TryStreamExt as _};
use herald_model::time::Micros;
use herald_proto::id_of_all;
use herald_proto::mesh_v1::{Header, RedriveBatch, RedrivenMessage};
use prost::Message as _;
use tokio::sync::OwnedSemaphorePermit;
use tracing::Instrument as _;

use crate::error::{Error, ErrorKind, Result};
use crate::headers::{self, Origin};
use crate::publish::Outgoing;
use crate::topology::{consumers::Kind, streams};
use crate::work::{Job, Verdict, Worker, one_line};
use crate::{Handler, Mesh, Published, RawMessage, Redrive, Redriven, Settle, trace};

/// Messages that may travel together.
pub const BATCH_MESSAGES_MAX: usize = 64;
/// Bytes that may: a larger message goes by itself, where it gains nothing from company.
pub const BATCH_BYTES_MAX: usize = 128 << 10;

/// One message of a batch.
#[derive(Debug, Clone)]
struct Part {
    headers: HeaderMap,
    payload: Bytes,
}

/// One that goes on by itself.
struct Alone {
    part: Part,
    /// Attempts it has had.
    attempts: u64,
    verdict: Verdict,
    /// Of its attempt.
    span: tracing::Span,
}

impl Mesh {
    /// Publishes dead letters of one kind as [`Mesh::redrive`] does, but together: 1 to [`BATCH_MESSAGES_MAX`] of them, of
    /// [`BATCH_BYTES_MAX`] in all. Each has a trace of its own.
    ///
    /// # Errors
    /// As [`Mesh::redrive`], for all of them at once: one that is refused may be so because of any of them.
    pub async fn redrive_together(&self, redrives: &[&Redrive]) -> Result<Published> {
        let Some(first) = redrives.first() else {
            return Err(Error::new(ErrorKind::Invalid, "redrive a batch of nothing"));
        };
        if redrives.len() > BATCH_MESSAGES_MAX || redrives.iter().any(|one| one.kind != first.kind) {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "redrive {} together: not so many, or of several kinds",
                    redrives.len()
                ),
            ));
        }
        let mut messages = Vec::with_capacity(redrives.len());
        let mut spans = Vec::with_capacity(redrives.len());
        for redrive in redrives {
            let mut message = redrive.outgoing()?;
            message
                .headers
                .insert(header::NATS_MESSAGE_ID, redrive.id.as_str());
            trace::inject(&message.span, &mut message.headers);
            messages.push(RedrivenMessage {
                headers: listed(&message.headers),
                payload: message.body,
            });
            spans.push(message.span);
        }
        let to = first.kind.batch_subject();
        let mut headers = HeaderMap::new();
        headers.insert(headers::TYPE, "herald.mesh.v1.RedriveBatch");
        let sent = self
            .send(Outgoing {
                span: trace::batch_span(&to, &spans),
                to,
                headers,
                id: Some(id_of_all(redrives.iter().map(|redrive| redrive.id.clone()))),
                body: RedriveBatch { messages }.encode_to_vec().into(),
                spare_bytes: 0,
            })
            .await;
        if let Err(error) = &sent {
            for span in &spans {
                trace::fail(span, &error.to_string());
            }
        }
        sent
    }

    /// Lets each message of a batch that was given up as a whole go on by itself.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for what isn't one, see [`RawMessage::is_batch`]; else as [`Mesh::redrive`], and then some may
    /// be there already.
    pub async fn redrive_apart(&self, batch: &RawMessage) -> Result<()> {
        let Some((to, parts)) = batch.batch() else {
            let message = format!(
                "take message {} on {} apart: not a batch",
                batch.sequence, batch.subject
            );
            return Err(Error::new(ErrorKind::Invalid, message));
        };
        self.send_apart(to, parts.into_iter().map(|part| part.untried(1)).collect())
            .await
    }

    /// The messages of a kind that are in REDRIVE by themselves, above a sequence: where the last of each letter and round
    /// is.
    pub async fn redriven_apart(&self, kind: Kind, above: u64) -> Result<HashMap<Redriven, u64>> {
        let subject = kind.subject();
        self.scan(streams::REDRIVE, Some(&subject), above + 1, u64::MAX)
            .try_filter_map(|message| {
                let redriven = message.redriven();
                std::future::ready(Ok(redriven.map(|redriven| (redriven, message.sequence))))
            })
            .try_collect()
            .await
    }

    async fn send_apart(&self, to: &str, alone: Vec<Alone>) -> Result<()> {
        let sends = alone.into_iter().map(|alone| {
            let span = alone.span.clone();
            let message = span.in_scope(|| alone.outgoing(to));
            self.send(message).instrument(span)
        });
        try_join_all(sends).await?;
        Ok(())
    }
}

impl RawMessage {
    /// Whether redriven messages travel in it together, and can be read.
    pub fn is_batch(&self) -> bool {
        self.batch().is_some()
    }

    /// The messages that travel in it, each with its subject and sequence; itself if it isn't a batch.
    pub fn apart(self) -> Vec<Self> {
        let Some((_, parts)) = self.batch() else {
            return vec![self];
        };
        let part = |part: Part| Self {
            headers: part.headers,
            payload: part.payload,
            subject: self.subject.clone(),
            ..self
        };
        parts.into_iter().map(part).collect()
    }

    /// Where its messages go by themselves, and these.
    fn batch(&self) -> Option<(&str, Vec<Part>)> {
        let to = headers::subject_of_batch(&self.subject)?;
        Some((to, read(&self.payload).ok()?))
    }
}

impl<H: Handler> Worker<H> {
    /// Handles the messages of a batch, as many at a time as there are permits besides its own, and settles it.
    pub(crate) async fn batch(
        &self,
        job: &Job<'_>,
        to: &str,
        payload: &Bytes,
        permit: &OwnedSemaphorePermit,
    ) {
        let parts = match read(payload) {
            Ok(parts) => parts,
            Err(reason) => return self.term(job, &reason).await,
        };
        let alone = if job.attempt > 1 {
            // Perhaps because of one of these.
            let had = job.attempt - 1;
            parts.into_iter().map(|part| part.untried(had)).collect()
        } else {
            self.try_each(job, parts, permit).await
        };
        let alone = if herald_failpoints::sabotaged!("batch.forget-undone") {
            Vec::new()
        } else {
            alone
        };
        let sent = self.mesh.send_apart(to, alone).await;
        herald_failpoints::point!(format!("handled.{}", self.spec.name));
        let settle = sent.map_or_else(Settle::retry, |()| Settle::Ack);
        self.settle(job, None, self.verdict(settle, job.attempt)).await;
    }

    /// Tries each once. Those that aren't done.
    async fn try_each(&self, job: &Job<'_>, parts: Vec<Part>, permit: &OwnedSemaphorePermit) -> Vec<Alone> {
        let mut left = parts.into_iter();
        let mut running = FuturesUnordered::new();
        let mut alone = Vec::new();
        let mut own_is_free = true;
        loop {
            while left.len() > 0 {
                let more = permit.semaphore().clone().try_acquire_owned().ok();
                let own = more.is_none() && std::mem::take(&mut own_is_free);
                if more.is_none() && !own {
                    break;
                }
                let Some(part) = left.next() else { break };
                running.push(async move {
                    let outcome = self.try_one(job, part).await;
                    drop(more);
                    (outcome, own)
                });
            }
            let Some((outcome, own)) = running.next().await else {
                return alone;
            };
            own_is_free |= own;
            alone.extend(outcome);
        }
    }

    async fn try_one(&self, job: &Job<'_>, part: Part) -> Option<Alone> {
        let origin = match Origin::read(job.subject, job.sequence, job.published_at, Some(&part.headers)) {
            Ok(origin) => origin,
            Err(reason) => {
                return Some(Alone {
                    verdict: Verdict::Never { reason },
                    ..part.untried(job.attempt)
                });
            }
        };
        let attempt = job.attempt;
        let headers = Some(&part.headers);
        let span = trace::process_span(origin.subject, job.subject, &self.spec.name, attempt, headers);
        let delivery = self.delivery(origin, part.payload.clone(), job, headers.cloned());
        let settle = self.handle(&delivery).instrument(span.clone()).await;
        let verdict = self.verdict(settle, attempt);
        let reason = match &verdict {
            Verdict::Done => return None,
            Verdict::Again { reason, .. } | Verdict::Never { reason } => reason,
        };
        trace::fail(&span, reason);
        span.in_scope(|| {
            tracing::warn!(
                stream = self.spec.stream,
                consumer = self.spec.name,
                subject = job.subject,
                sequence = job.sequence,
                attempt,
                reason,
                "message leaves its batch"
            );
        });
        let verdict = match verdict {
            Verdict::Again { after, reason } => Verdict::Again {
                after: Some(after.unwrap_or_else(|| self.spec.retry.draw(attempt))),
                reason,
            },
            other => other,
        };
        Some(Alone {
            part,
            attempts: attempt,
            verdict,
            span,
        })
    }
}

impl Part {
    /// By itself, after so many attempts, to be tried at once.
    fn untried(self, attempts: u64) -> Alone {
        Alone {
            part: self,
            attempts,
            verdict: Verdict::Again {
                after: None,
                reason: String::new(),
            },
            span: tracing::Span::current(),
        }
    }
}

impl Alone {
    fn outgoing(self, to: &str) -> Outgoing {
        let Part { mut headers, payload } = self.part;
        let id = headers
            .get(header::NATS_MESSAGE_ID)
            .map(|id| id.as_str().to_owned());
        headers.insert(headers::ATTEMPTS, self.attempts.to_string());
        match self.verdict {
            Verdict::Again {
                after: Some(after), ..
            } => {
                headers.insert(headers::NOT_BEFORE, Micros::now().plus(after).0.to_string());
            }
            Verdict::Never { reason } => {
                headers::add(&mut headers, headers::GIVEN_UP, &one_line("", &reason));
            }
            Verdict::Again { after: None, .. } | Verdict::Done => {}
        }
        Outgoing {
            span: trace::apart_span(to),
            to: to.into(),
            headers,
            id,
            body: payload,
            spare_bytes: 0,
        }
    }
}

fn listed(headers: &HeaderMap) -> Vec<Header> {
    let values = headers
        .iter()
        .flat_map(|(name, values)| values.iter().map(move |value| (name, value)));
    let header = |(name, value): (&HeaderName, &HeaderValue)| Header {
        name: name.to_string(),
        value: value.as_str().to_owned(),
    };
    values.map(header).collect()
}

/// The messages of a batch; the error is why nobody can make sense of it.
fn read(payload: &Bytes) -> std::result::Result<Vec<Part>, String> {
    let batch =
        RedriveBatch::decode(payload.clone()).map_err(|error| format!("undecodable batch: {error}"))?;
    if batch.messages.is_empty() {
        return Err("a batch of nothing".into());
    }
    let part = |message: RedrivenMessage| {
        let mut headers = HeaderMap::new();
        for Header { name, value } in message.headers {
            let malformed = || format!("malformed header {name:?} in a batch");
            let value = value.parse::<HeaderValue>().map_err(|_| malformed())?;
            let name = name.parse::<HeaderName>().map_err(|_| malformed())?;
            headers.append(name, value);
        }
        Ok(Part {
            headers,
            payload: message.payload,
        })
    };
    batch.messages.into_iter().map(part).collect()
}
