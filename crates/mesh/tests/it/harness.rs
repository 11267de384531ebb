//! Test fixture: a real server with the mesh on it, and scripted handlers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use herald_local_nats::{Config as ServerConfig, Server};
use herald_mesh::{
    Config, ConsumeOptions, ConsumerSpec, Delivery, Disposition, Handler, Mesh, Result, RetryDelay, Subject,
    Topology, TopologyConfig, Workers, streams,
};
use herald_model::Lane;
use herald_proto::mesh_v1::TimelineChunk;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Timeout of every wait.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

pub(crate) const SUBJECT: Subject = Subject::TimelineDeliver(Lane::Normal);
pub(crate) const CONSUMER: &str = "timeline-normal";

pub(crate) struct Fixture {
    pub(crate) server: Server,
    pub(crate) mesh: Mesh,
    pub(crate) topology: Topology,
}

async fn start_server() -> (Server, Mesh) {
    let server = Server::start(ServerConfig::default()).await.unwrap();
    let mesh = Mesh::connect(&Config::at(server.client_url())).await.unwrap();
    (server, mesh)
}

impl Fixture {
    /// Starts a server with the default topology and short retry delays.
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| ()).await
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut TopologyConfig)) -> Self {
        crate::trace::spans();
        let (server, mesh) = start_server().await;
        let retry = RetryDelay {
            delay_ms_base: 20,
            delay_ms_max: 100,
        };
        let mut config = TopologyConfig::default();
        config.consumers = config.consumers.each(|policy| policy.retry = retry);
        change(&mut config);
        let topology = Topology::new(&config).unwrap();
        mesh.ensure(&topology).await.unwrap();
        Self {
            server,
            mesh,
            topology,
        }
    }

    /// Starts a server without streams.
    pub(crate) async fn start_empty() -> Self {
        let (server, mesh) = start_server().await;
        Self {
            server,
            mesh,
            topology: Topology::new(&TopologyConfig::default()).unwrap(),
        }
    }

    pub(crate) fn consumer(&self) -> &ConsumerSpec {
        self.topology.consumer(CONSUMER).unwrap()
    }

    /// Publishes chunks of these posts.
    pub(crate) async fn publish(&self, posts: impl IntoIterator<Item = u64>) {
        let chunks: Vec<_> = posts.into_iter().map(chunk).collect();
        let sent = chunks.iter().map(|chunk| self.mesh.publish(SUBJECT, None, chunk));
        futures::future::try_join_all(sent).await.unwrap();
    }

    /// Starts a worker on the timeline consumer.
    pub(crate) fn spawn_worker(
        &self,
        handler: Arc<ScriptedHandler>,
        options: ConsumeOptions,
    ) -> RunningWorker {
        let shutdown = CancellationToken::new();
        let (mesh, consumer, stop) = (self.mesh.clone(), self.consumer().clone(), shutdown.clone());
        let task = tokio::spawn(async move { mesh.consume(&consumer, handler, options, stop).await });
        RunningWorker { shutdown, task }
    }

    /// A JetStream client outside the mesh.
    pub(crate) async fn jetstream(&self) -> async_nats::jetstream::Context {
        async_nats::jetstream::new(async_nats::connect(self.server.client_url()).await.unwrap())
    }

    /// Waits until the timeline consumer has acknowledged every message.
    pub(crate) async fn wait_until_settled(&self) {
        let sequence = self.mesh.last_sequence(streams::TIMELINE).await.unwrap();
        until("all messages are acknowledged", async || {
            self.mesh
                .ack_floor(streams::TIMELINE, CONSUMER)
                .await
                .is_ok_and(|floor| floor == sequence)
        })
        .await;
    }

    /// The stored advisories: subject without the advisory prefix, and body.
    pub(crate) async fn advisories(&self) -> Vec<(String, String)> {
        let last = self.mesh.last_sequence(streams::ADVISORIES).await.unwrap();
        let mut all = Vec::new();
        for sequence in 1..=last {
            let message = self
                .mesh
                .message(streams::ADVISORIES, sequence)
                .await
                .unwrap()
                .unwrap();
            let subject = message
                .subject
                .strip_prefix("$JS.EVENT.ADVISORY.CONSUMER.")
                .unwrap();
            all.push((
                subject.to_owned(),
                String::from_utf8(message.payload.to_vec()).unwrap(),
            ));
        }
        all
    }
}

pub(crate) struct RunningWorker {
    pub(crate) shutdown: CancellationToken,
    task: JoinHandle<Result<()>>,
}

impl RunningWorker {
    /// Stops the worker and waits until it has drained.
    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(LIMIT, self.task)
            .await
            .expect("drains within the timeout")
            .unwrap()
            .unwrap();
    }
}

/// Running workers, one handler per consumer.
pub(crate) struct RunningWorkers {
    workers: Workers,
    shutdown: CancellationToken,
}

impl RunningWorkers {
    pub(crate) fn new<H: Handler>(
        fixture: &Fixture,
        consumers: impl IntoIterator<Item = (&'static str, Arc<H>)>,
    ) -> Self {
        let shutdown = CancellationToken::new();
        let topology: Arc<Topology> = Arc::new(fixture.topology.clone());
        let mut workers = Workers::new(fixture.mesh.clone(), topology, &shutdown);
        for (consumer, handler) in consumers {
            workers
                .spawn(consumer, handler, ConsumeOptions::default())
                .unwrap();
        }
        Self { workers, shutdown }
    }

    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(LIMIT, self.workers.join())
            .await
            .expect("drains within the timeout")
            .unwrap();
    }
}

type HandleFn = dyn Fn(Delivery) -> BoxFuture<'static, Disposition> + Send + Sync;

/// A handler that records each delivery and then runs the test's function.
pub(crate) struct ScriptedHandler {
    deliveries: mpsc::UnboundedSender<Delivery>,
    handle: Box<HandleFn>,
}

impl ScriptedHandler {
    pub(crate) fn new<F>(handle: impl Fn(Delivery) -> F + Send + Sync + 'static) -> (Arc<Self>, Deliveries)
    where
        F: Future<Output = Disposition> + Send + 'static,
    {
        let (sender, receiver) = mpsc::unbounded_channel();
        (
            Arc::new(Self {
                deliveries: sender,
                handle: Box::new(move |delivery| Box::pin(handle(delivery))),
            }),
            Deliveries { receiver },
        )
    }

    /// Acknowledges every delivery.
    pub(crate) fn acks() -> (Arc<Self>, Deliveries) {
        Self::new(|_| std::future::ready(Disposition::Ack))
    }

    /// Acknowledges a delivery per permit of the gate, and records the maximum number of concurrent deliveries.
    pub(crate) fn gated(gate: &Arc<Semaphore>) -> (Arc<Self>, Deliveries, Arc<AtomicUsize>) {
        let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (handler, seen) = Self::new({
            let (gate, most) = (gate.clone(), most.clone());
            move |_| {
                let (gate, running, most) = (gate.clone(), running.clone(), most.clone());
                async move {
                    most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    gate.acquire().await.unwrap().forget();
                    running.fetch_sub(1, Ordering::SeqCst);
                    Disposition::Ack
                }
            }
        });
        (handler, seen, most)
    }
}

#[async_trait]
impl Handler for ScriptedHandler {
    async fn handle(&self, delivery: &Delivery) -> Disposition {
        let _ = self.deliveries.send(delivery.clone());
        (self.handle)(delivery.clone()).await
    }
}

/// Deliveries recorded by a [`ScriptedHandler`].
pub(crate) struct Deliveries {
    receiver: mpsc::UnboundedReceiver<Delivery>,
}

impl Deliveries {
    pub(crate) async fn next(&mut self) -> Delivery {
        tokio::time::timeout(LIMIT, self.receiver.recv())
            .await
            .expect("a delivery within the timeout")
            .unwrap()
    }

    /// Deliveries recorded and not read yet.
    pub(crate) fn rest(&mut self) -> Vec<Delivery> {
        std::iter::from_fn(|| self.receiver.try_recv().ok()).collect()
    }

    /// Waits until these posts were delivered; returns the number of deliveries per post.
    pub(crate) async fn posts(&mut self, wanted: impl IntoIterator<Item = u64>) -> BTreeMap<u64, usize> {
        let wanted: Vec<_> = wanted.into_iter().collect();
        let mut counts = BTreeMap::new();
        while !wanted.iter().all(|post| counts.contains_key(post)) {
            *counts.entry(post(&self.next().await)).or_default() += 1;
        }
        counts
    }
}

pub(crate) fn post(delivery: &Delivery) -> u64 {
    delivery.decode::<TimelineChunk>().unwrap().post_id
}

pub(crate) fn chunk(post_id: u64) -> TimelineChunk {
    TimelineChunk {
        post_id,
        recipients: vec![1; 200].into(),
        recipient_count: 200,
        ..TimelineChunk::default()
    }
}

/// Waits until a condition holds.
pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, wait)
        .await
        .unwrap_or_else(|_| panic!("timeout: {what}"));
}
