//! The loop that pulls a consumer's messages.
//!
//! async-nats has three: `messages()` pulls ahead of what is polled, so messages time out unseen; `batch()` and
//! `fetch()` subscribe anew for each batch, stop being woken after a heartbeat, and don't tell how many messages a pull
//! that ended early still owes. So this one sends the pull requests itself, all with one inbox, and counts.
//!
//! *Invariant:* every message asked for has a permit, taken before the request was sent. A permit passes from the request
//! to the message's task, or back when the server says that the request has ended.

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
use crate::topology::ConsumerSpec;
use crate::work::Worker;
use crate::{ConsumeOptions, Handler, Mesh};

/// How long the server keeps a pull that finds no message.
const PULL_EXPIRES: Duration = Duration::from_secs(30);
/// How often the server says that a pull is still there.
const PULL_HEARTBEAT: Duration = Duration::from_secs(5);
/// A server that says nothing for this long has forgotten the pulls.
const SILENCE_MAX: Duration = Duration::from_secs(12);
/// When there is no pull, and room for only a few messages: how long to wait for more room.
const LINGER: Duration = Duration::from_millis(5);
/// How long the rest of an ended session may take to arrive.
const DRAIN_MAX: Duration = Duration::from_secs(2);
/// Between two attempts to start again.
const RESTART: RetryDelay = RetryDelay {
    delay_ms_base: 100,
    delay_ms_max: 5_000,
};

/// Why the pulls of one subscription ended.
enum Ended {
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
    /// Messages arrived since the last failure.
    heard: bool,
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
                delay_queue: DelayQueue::of(&mesh, &spec),
                spec,
                handler,
                abort: CancellationToken::new(),
            }),
            permits: Arc::new(Semaphore::new(options.in_flight_max)),
            tasks: TaskTracker::new(),
            heard: false,
            mesh,
            options,
            shutdown,
        }
    }

    pub(crate) async fn run(mut self) -> Result<()> {
        let mut failures = 0;
        let result = loop {
            if !self.until_wanted().await {
                break Ok(());
            }
            let why = match self.session().await {
                Ended::Shutdown => break Ok(()),
                Ended::Paused | Ended::Reconnected => {
                    failures = 0;
                    continue;
                }
                Ended::Lost(why) => why,
            };
            failures = if std::mem::take(&mut self.heard) {
                1
            } else {
                failures + 1
            };
            let spec = &self.worker.spec;
            tracing::warn!(
                stream = spec.stream,
                consumer = spec.name,
                failures,
                reason = why,
                "pull again"
            );
            let wait = tokio::time::sleep(RESTART.draw(failures));
            if self.shutdown.run_until_cancelled(wait).await.is_none() {
                break Ok(());
            }
            if !self.until_wanted().await {
                break Ok(());
            }
            let spec = &self.worker.spec;
            let Some(ensured) = self
                .shutdown
                .run_until_cancelled(self.mesh.ensure_consumer(spec))
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
                    tracing::warn!(stream = spec.stream, consumer = spec.name, %error, "consumer not there yet");
                }
            }
        };
        self.drain().await;
        result
    }

    /// Waits until there is a connection and no pause; false at the shutdown.
    async fn until_wanted(&mut self) -> bool {
        let wanted = async {
            if let Some(paused) = &mut self.options.paused {
                // A pause whose owner is gone is over.
                if paused.wait_for(|paused| !paused).await.is_err() {
                    self.options.paused = None;
                }
            }
            self.mesh.consuming().up().await;
        };
        self.shutdown.run_until_cancelled(wanted).await.is_some()
    }

    /// Pulls with one subscription for as long as it can be used, and takes in what arrived.
    async fn session(&mut self) -> Ended {
        let mut epoch = self.mesh.consuming().epoch();
        let inbox = self.worker.client.new_inbox();
        let mut messages = match self.worker.client.subscribe(inbox.clone()).await {
            Ok(messages) => messages,
            Err(error) => return Ended::Lost(format!("subscribe: {error}")),
        };
        let mut asked = self.no_permits();
        let ended = self.pull(&inbox, &mut messages, &mut asked, &mut epoch).await;
        self.take_in_rest(&mut messages, &mut asked, &ended).await;
        ended
    }

    async fn pull(
        &mut self,
        inbox: &str,
        messages: &mut Subscriber,
        asked: &mut OwnedSemaphorePermit,
        epoch: &mut watch::Receiver<u64>,
    ) -> Ended {
        let batch_max = self.options.batch_max;
        // A request for a few at a time costs as much as one for many: with less room than this, wait for more.
        let step = (batch_max / 2).min(self.options.in_flight_max / 4).max(1);
        let asked_min = (batch_max / 2).max(1);

        let shutdown = self.shutdown.clone();
        let mut shutdown = std::pin::pin!(shutdown.cancelled());
        let mut paused = self.options.paused.clone();
        let mut heard_at = Instant::now();
        let mut silence = std::pin::pin!(tokio::time::sleep(SILENCE_MAX));
        let mut few_since: Option<Instant> = None;

        loop {
            let starved = asked.num_permits() == 0;
            // How much room to wait for.
            let mut room_wanted = None;
            let mut linger = None;
            if asked.num_permits() < asked_min {
                let room = self.permits.available_permits().min(batch_max);
                if starved && room > 0 {
                    linger = Some(few_since.get_or_insert_with(Instant::now).elapsed());
                } else {
                    few_since = None;
                }
                if room >= step || linger.is_some_and(|waited| waited >= LINGER) {
                    if starved {
                        heard_at = Instant::now();
                    }
                    if let Err(why) = self.ask(inbox, room, asked).await {
                        return Ended::Lost(why);
                    }
                    continue;
                }
                room_wanted = Some(if starved && room == 0 { 1 } else { step });
            }

            let message = tokio::select! {
                biased;
                () = &mut shutdown => return Ended::Shutdown,
                message = messages.next() => message,
                _ = epoch.changed() => return Ended::Reconnected,
                () = is_paused(&mut paused) => return Ended::Paused,
                () = &mut silence => {
                    let now = Instant::now();
                    let until = heard_at + SILENCE_MAX;
                    if !starved && now >= until {
                        return Ended::Lost(format!("the server said nothing for {} s", SILENCE_MAX.as_secs()));
                    }
                    silence.as_mut().reset(if until > now { until } else { now + SILENCE_MAX });
                    continue;
                }
                _ = self.permits.acquire_many(room_wanted.unwrap_or(1) as u32), if room_wanted.is_some() => continue,
                () = tokio::time::sleep(LINGER), if linger.is_some() => continue,
            };
            let Some(message) = message else {
                return Ended::Lost("the subscription was closed".into());
            };
            heard_at = Instant::now();
            if let Some(why) = self.take_in(message, asked).await {
                return Ended::Lost(why);
            }
        }
    }

    /// Asks for this many messages; there is room for them.
    async fn ask(&self, inbox: &str, count: usize, asked: &mut OwnedSemaphorePermit) -> Result<(), String> {
        let Ok(permit) = self.permits.clone().try_acquire_many_owned(count as u32) else {
            return Ok(());
        };
        asked.merge(permit);
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
            Err(_) => Err("pull: the connection takes nothing".into()),
        }
    }

    /// Takes in a message, or the server's word on a pull. Returns why the pulls are lost, if they are.
    async fn take_in(&mut self, message: Message, asked: &mut OwnedSemaphorePermit) -> Option<String> {
        let status = message.status.unwrap_or(StatusCode::OK);
        if status == StatusCode::OK {
            self.heard = true;
            if let Some(permit) = asked.split(1) {
                let worker = self.worker.clone();
                self.tasks.spawn(async move {
                    worker.work(message).await;
                    drop(permit);
                });
            } else if let Some(reply) = &message.reply {
                // Of a pull that was counted as ended.
                self.worker.give_back(reply).await;
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
            let owed = message
                .headers
                .as_ref()
                .and_then(|headers| headers.get("Nats-Pending-Messages"));
            // The consumer is gone or moved: so are all pulls, whatever this one owes.
            let lost = ["Consumer", "Leadership", "Server Shutdown", "Exceeded"]
                .iter()
                .any(|start| description.starts_with(start));
            if !lost && let Some(owed) = owed.and_then(|owed| owed.as_str().parse::<usize>().ok()) {
                drop(asked.split(owed.min(asked.num_permits())));
                return None;
            }
        }
        Some(format!("{status} {description}"))
    }

    /// Takes in what the ended subscription still brings. The server forgets the pulls of a subscription that is gone;
    /// what it sent before it knew would otherwise wait for `ack_wait`.
    async fn take_in_rest(
        &mut self,
        messages: &mut Subscriber,
        asked: &mut OwnedSemaphorePermit,
        ended: &Ended,
    ) {
        let until = Instant::now() + DRAIN_MAX;
        if !matches!(tokio::time::timeout_at(until, messages.drain()).await, Ok(Ok(()))) {
            return;
        }
        while let Ok(Some(message)) = tokio::time::timeout_at(until, messages.next()).await {
            if !matches!(ended, Ended::Shutdown) {
                self.take_in(message, asked).await;
            } else if let (StatusCode::OK, Some(reply)) =
                (message.status.unwrap_or(StatusCode::OK), &message.reply)
            {
                self.worker.give_back(reply).await;
            }
        }
    }

    /// Waits for the running handlers.
    async fn drain(&self) {
        let spec = &self.worker.spec;
        self.tasks.close();
        if !self.tasks.is_empty() {
            tracing::debug!(
                stream = spec.stream,
                consumer = spec.name,
                running = self.tasks.len(),
                "drain"
            );
        }
        if tokio::time::timeout(spec.ack_wait, self.tasks.wait())
            .await
            .is_err()
        {
            self.worker.abort.cancel();
            // A handler that blocks its thread can't be hurried.
            if tokio::time::timeout(DRAIN_MAX, self.tasks.wait()).await.is_err() {
                tracing::error!(
                    stream = spec.stream,
                    consumer = spec.name,
                    running = self.tasks.len(),
                    "handlers hang"
                );
            }
        }
        // What doesn't arrive comes again.
        let connection = self.mesh.consuming();
        if !connection.is_up() || connection.flush().await.is_err() {
            tracing::warn!(
                stream = spec.stream,
                consumer = spec.name,
                "last acknowledgements not sent"
            );
        }
    }

    fn no_permits(&self) -> OwnedSemaphorePermit {
        // Taking none can only fail on a closed semaphore, which this one never is.
        self.permits
            .clone()
            .try_acquire_many_owned(0)
            .unwrap_or_else(|_| unreachable!("the semaphore is never closed"))
    }
}

/// Ends when a pause begins.
async fn is_paused(paused: &mut Option<watch::Receiver<bool>>) {
    if let Some(paused) = paused
        && paused.wait_for(|paused| *paused).await.is_ok()
    {
        return;
    }
    std::future::pending::<()>().await;
}
