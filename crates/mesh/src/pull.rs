//! The loop that pulls a consumer's messages.
//!
//! The loops of async-nats don't fit. `messages()` prefetches, so messages can time out before a handler gets them.
//! `batch()` and `fetch()` subscribe again for each batch, aren't woken after a heartbeat, and don't report how many
//! messages of an expired request are missing. This loop sends the pull requests itself, with one inbox, and counts the
//! requested messages.
//!
//! *Invariant:* every requested message has a permit, acquired before the request is sent. The permit moves to the
//! message's task as its [`Slot`], or is released when the server reports the end of the request.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{Message, StatusCode, Subscriber};
use futures::StreamExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::delay_queue::DelayQueue;
use crate::error::{ErrorKind, Result};
use crate::retry::RetryDelay;
use crate::slot::Slot;
use crate::topology::ConsumerSpec;
use crate::work::Worker;
use crate::{ConsumeOptions, Handler, Mesh};

/// Time after which the server expires a pull request.
const PULL_EXPIRES: Duration = Duration::from_secs(30);
/// Interval of the server's heartbeats for a pull request.
const PULL_HEARTBEAT: Duration = Duration::from_secs(5);
/// Without a message or heartbeat for this long, the server has lost the pull requests.
const SILENCE_MAX: Duration = Duration::from_secs(12);
/// Without a pull request and with few free permits: how long to wait for more permits before the next request.
const LINGER: Duration = Duration::from_millis(5);
/// Timeout for the remaining messages of an ended session, and for aborted handlers.
const DRAIN_MAX: Duration = Duration::from_secs(2);
/// Delay before a new session after a failure.
const RESTART: RetryDelay = RetryDelay {
    delay_ms_base: 100,
    delay_ms_max: 5_000,
};

/// Why a session, the pull requests of one subscription, ended.
enum SessionEnd {
    Shutdown,
    Paused,
    Reconnected,
    Lost(String),
}

pub(crate) struct Puller<H> {
    mesh: Mesh,
    worker: Arc<Worker<H>>,
    options: ConsumeOptions,
    shutdown: CancellationToken,
    subject: String,
    permits: Arc<Semaphore>,
    tasks: TaskTracker,
    /// Whether a message arrived since the last failure.
    received: bool,
}

impl<H: Handler> Puller<H> {
    pub(crate) fn new(
        mesh: Mesh,
        spec: ConsumerSpec,
        handler: Arc<H>,
        mut options: ConsumeOptions,
        shutdown: CancellationToken,
    ) -> Self {
        options.batch_max = options.batch_max.min(options.in_flight_max);
        Self {
            subject: format!("$JS.API.CONSUMER.MSG.NEXT.{}.{}", spec.stream, spec.name),
            worker: Arc::new(Worker {
                client: mesh.consuming().client.clone(),
                role: mesh.role,
                broker_hops: mesh.broker_hops,
                delay_queue: DelayQueue::for_consumer(&mesh, &spec).map(Arc::new),
                metrics: mesh.inner.metrics.of_consumer(&spec.name),
                spec,
                handler,
                abort: CancellationToken::new(),
            }),
            permits: Arc::new(Semaphore::new(options.in_flight_max)),
            tasks: TaskTracker::new(),
            received: false,
            mesh,
            options,
            shutdown,
        }
    }

    pub(crate) async fn run(mut self) -> Result<()> {
        let mut failures = 0;
        let result = loop {
            if !self.wait_until_runnable().await {
                break Ok(());
            }
            let reason = match self.run_session().await {
                SessionEnd::Shutdown => break Ok(()),
                SessionEnd::Paused | SessionEnd::Reconnected => {
                    failures = 0;
                    continue;
                }
                SessionEnd::Lost(reason) => reason,
            };
            failures = if std::mem::take(&mut self.received) {
                1
            } else {
                failures + 1
            };
            let spec = &self.worker.spec;
            tracing::warn!(
                stream = spec.stream,
                consumer = spec.name,
                failures,
                reason,
                "pull session lost; it will be restarted"
            );
            let wait = tokio::time::sleep(RESTART.random_delay(failures));
            if self.shutdown.run_until_cancelled(wait).await.is_none() {
                break Ok(());
            }
            if !self.wait_until_runnable().await {
                break Ok(());
            }
            let spec = &self.worker.spec;
            let Some(ensured) = self
                .shutdown
                .run_until_cancelled(self.mesh.restore_consumer(spec))
                .await
            else {
                break Ok(());
            };
            match ensured {
                Ok(()) => {}
                Err(error) if matches!(error.kind(), ErrorKind::Conflict | ErrorKind::Invalid) => {
                    break Err(error);
                }
                Err(error) => {
                    tracing::warn!(stream = spec.stream, consumer = spec.name, %error, "consumer is not there yet");
                }
            }
        };
        self.drain().await;
        result
    }

    /// Waits until the connection is up and there is no pause; false at the shutdown.
    async fn wait_until_runnable(&mut self) -> bool {
        let runnable = async {
            if let Some(paused) = &mut self.options.paused {
                // A closed channel ends the pause.
                if paused.wait_for(|paused| !paused).await.is_err() {
                    self.options.paused = None;
                }
            }
            self.mesh.consuming().wait_until_up().await;
        };
        self.shutdown.run_until_cancelled(runnable).await.is_some()
    }

    /// Pulls with one subscription until the session ends, then receives the remaining messages.
    async fn run_session(&mut self) -> SessionEnd {
        let mut epoch = self.mesh.consuming().epoch();
        let inbox = self.worker.client.new_inbox();
        let mut messages = match self.worker.client.subscribe(inbox.clone()).await {
            Ok(messages) => messages,
            Err(error) => return SessionEnd::Lost(format!("subscribe: {error}")),
        };
        let mut requested = self.no_permits();
        let end = self.pull(&inbox, &mut messages, &mut requested, &mut epoch).await;
        self.receive_rest(&mut messages, &mut requested, &end).await;
        end
    }

    async fn pull(
        &mut self,
        inbox: &str,
        messages: &mut Subscriber,
        requested: &mut OwnedSemaphorePermit,
        epoch: &mut watch::Receiver<u64>,
    ) -> SessionEnd {
        let batch_max = self.options.batch_max;
        // A request for few messages costs as much as one for many: with fewer free permits than this, wait for more.
        let step = (batch_max / 2).min(self.options.in_flight_max / 4).max(1);
        let requested_min = (batch_max / 2).max(1);

        let shutdown = self.shutdown.clone();
        let mut shutdown = std::pin::pin!(shutdown.cancelled());
        let mut paused = self.options.paused.clone();
        let mut received_at = Instant::now();
        let mut silence = std::pin::pin!(tokio::time::sleep(SILENCE_MAX));
        let mut few_since: Option<Instant> = None;

        loop {
            let idle = requested.num_permits() == 0;
            // Number of free permits to wait for.
            let mut permits_wanted = None;
            let mut linger = None;
            if requested.num_permits() < requested_min {
                let free = self.permits.available_permits().min(batch_max);
                if idle && free > 0 {
                    linger = Some(few_since.get_or_insert_with(Instant::now).elapsed());
                } else {
                    few_since = None;
                }
                if free >= step || linger.is_some_and(|waited| waited >= LINGER) {
                    if idle {
                        received_at = Instant::now();
                    }
                    if let Err(reason) = self.request(inbox, free, requested).await {
                        return SessionEnd::Lost(reason);
                    }
                    continue;
                }
                permits_wanted = Some(if idle && free == 0 { 1 } else { step });
            }

            let message = tokio::select! {
                biased;
                () = &mut shutdown => return SessionEnd::Shutdown,
                message = messages.next() => message,
                _ = epoch.changed() => return SessionEnd::Reconnected,
                () = wait_for_pause(&mut paused) => return SessionEnd::Paused,
                () = &mut silence => {
                    let now = Instant::now();
                    let until = received_at + SILENCE_MAX;
                    if !idle && now >= until {
                        return SessionEnd::Lost(format!("no message or heartbeat for {} s", SILENCE_MAX.as_secs()));
                    }
                    silence.as_mut().reset(if until > now { until } else { now + SILENCE_MAX });
                    continue;
                }
                _ = self.permits.acquire_many(permits_wanted.unwrap_or(1) as u32), if permits_wanted.is_some() => {
                    continue;
                }
                () = tokio::time::sleep(LINGER), if linger.is_some() => continue,
            };
            let Some(message) = message else {
                return SessionEnd::Lost("subscription closed".into());
            };
            received_at = Instant::now();
            if let Some(reason) = self.receive(message, requested).await {
                return SessionEnd::Lost(reason);
            }
        }
    }

    /// Requests this many messages, after acquiring their permits.
    async fn request(
        &self,
        inbox: &str,
        count: usize,
        requested: &mut OwnedSemaphorePermit,
    ) -> Result<(), String> {
        let Ok(permit) = self.permits.clone().try_acquire_many_owned(count as u32) else {
            return Ok(());
        };
        requested.merge(permit);
        let request = format!(
            "{{\"batch\":{count},\"expires\":{},\"idle_heartbeat\":{}}}",
            PULL_EXPIRES.as_nanos(),
            PULL_HEARTBEAT.as_nanos()
        );
        let sent =
            self.worker
                .client
                .publish_with_reply(self.subject.clone(), inbox.to_owned(), request.into());
        match tokio::time::timeout(SILENCE_MAX, sent).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(format!("pull: {error}")),
            Err(_) => Err("pull: send timed out".into()),
        }
    }

    /// Receives a message or a status. Returns the reason if the pull requests are lost.
    async fn receive(&mut self, message: Message, requested: &mut OwnedSemaphorePermit) -> Option<String> {
        let status = message.status.unwrap_or(StatusCode::OK);
        if status == StatusCode::OK {
            self.received = true;
            if let Some(permit) = requested.split(1) {
                let worker = self.worker.clone();
                let slot = Slot::new(permit);
                self.tasks.spawn(async move {
                    worker.process(message, slot.clone()).await;
                    slot.release();
                });
            } else if let Some(reply) = &message.reply {
                // A late message of a request that was counted as ended.
                self.worker.release(reply).await;
            }
            return None;
        }
        if status == StatusCode::IDLE_HEARTBEAT {
            return None;
        }
        let description = message.description.as_deref().unwrap_or_default();
        if status == StatusCode::TIMEOUT
            || status == StatusCode::NOT_FOUND
            || status == StatusCode::REQUEST_TERMINATED
        {
            let missing = message
                .headers
                .as_ref()
                .and_then(|headers| headers.get("Nats-Pending-Messages"));
            // The consumer was deleted or moved, and all pull requests with it.
            let lost = ["Consumer", "Leadership", "Server Shutdown", "Exceeded"]
                .iter()
                .any(|start| description.starts_with(start));
            if !lost && let Some(missing) = missing.and_then(|missing| missing.as_str().parse::<usize>().ok())
            {
                drop(requested.split(missing.min(requested.num_permits())));
                return None;
            }
        }
        Some(format!("{status} {description}"))
    }

    /// Receives the remaining messages of an ended subscription. The server drops the pull requests when the
    /// subscription ends; messages sent before that would otherwise be redelivered only after `ack_wait`.
    async fn receive_rest(
        &mut self,
        messages: &mut Subscriber,
        requested: &mut OwnedSemaphorePermit,
        end: &SessionEnd,
    ) {
        let until = Instant::now() + DRAIN_MAX;
        if !matches!(tokio::time::timeout_at(until, messages.drain()).await, Ok(Ok(()))) {
            return;
        }
        while let Ok(Some(message)) = tokio::time::timeout_at(until, messages.next()).await {
            if !matches!(end, SessionEnd::Shutdown) {
                self.receive(message, requested).await;
            } else if let (StatusCode::OK, Some(reply)) =
                (message.status.unwrap_or(StatusCode::OK), &message.reply)
            {
                self.worker.release(reply).await;
            }
        }
    }

    /// Waits for running handlers, and aborts them after `drain_seconds`.
    async fn drain(&self) {
        let spec = &self.worker.spec;
        self.tasks.close();
        if !self.tasks.is_empty() {
            tracing::debug!(
                stream = spec.stream,
                consumer = spec.name,
                running = self.tasks.len(),
                "waiting for running handlers"
            );
        }
        if tokio::time::timeout(spec.drain, self.tasks.wait()).await.is_err() {
            self.worker.abort.cancel();
            // A handler that blocks its thread can't be aborted.
            if tokio::time::timeout(DRAIN_MAX, self.tasks.wait()).await.is_err() {
                tracing::error!(
                    stream = spec.stream,
                    consumer = spec.name,
                    running = self.tasks.len(),
                    "handlers still run after the shutdown deadline: they block their threads and can't be aborted"
                );
            }
        }
        // Messages whose acknowledgement is lost are redelivered.
        let connection = self.mesh.consuming();
        if !connection.is_up() || connection.flush().await.is_err() {
            tracing::warn!(
                stream = spec.stream,
                consumer = spec.name,
                "last acknowledgements not sent; their messages will be redelivered"
            );
        }
    }

    fn no_permits(&self) -> OwnedSemaphorePermit {
        // Acquiring 0 permits fails only on a closed semaphore; this one is never closed.
        self.permits
            .clone()
            .try_acquire_many_owned(0)
            .unwrap_or_else(|_| unreachable!("the semaphore is never closed"))
    }
}

/// Waits until a pause starts; forever without a pause channel.
async fn wait_for_pause(paused: &mut Option<watch::Receiver<bool>>) {
    if let Some(paused) = paused
        && paused.wait_for(|paused| *paused).await.is_ok()
    {
        return;
    }
    std::future::pending::<()>().await;
}
