//! A server, a mesh on it, and handlers that do as they are told.

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

/// How long anything may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

pub(crate) const SUBJECT: Subject = Subject::TimelineDeliver(Lane::Normal);
pub(crate) const CONSUMER: &str = "timeline-normal";

pub(crate) struct Fixture {
    pub(crate) server: Server,
    pub(crate) mesh: Mesh,
    pub(crate) topology: Topology,
}

impl Fixture {
    /// A server with the mesh on it, and quick retries.
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| ()).await
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut TopologyConfig)) -> Self {
        crate::trace::spans();
        let server = Server::start(ServerConfig::default()).await.unwrap();
        let mesh = Mesh::connect(&Config::at(server.client_url())).await.unwrap();
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

    pub(crate) fn consumer(&self) -> &ConsumerSpec {
        self.topology.consumer(CONSUMER).unwrap()
    }

    /// Publishes chunks of these posts.
    pub(crate) async fn publish(&self, posts: impl IntoIterator<Item = u64>) {
        let chunks: Vec<_> = posts.into_iter().map(chunk).collect();
        let sent = chunks.iter().map(|chunk| self.mesh.publish(SUBJECT, None, chunk));
        futures::future::try_join_all(sent).await.unwrap();
    }

    /// A worker on the timeline consumer.
    pub(crate) fn work(&self, handler: Arc<Script>, options: ConsumeOptions) -> Work {
        let shutdown = CancellationToken::new();
        let (mesh, consumer, stop) = (self.mesh.clone(), self.consumer().clone(), shutdown.clone());
        let task = tokio::spawn(async move { mesh.consume(&consumer, handler, options, stop).await });
        Work { shutdown, task }
    }

    /// JetStream as any client sees it.
    pub(crate) async fn jetstream(&self) -> async_nats::jetstream::Context {
        async_nats::jetstream::new(async_nats::connect(self.server.client_url()).await.unwrap())
    }

    /// Waits until the timeline consumer has nothing left.
    pub(crate) async fn settled(&self) {
        let sequence = self.mesh.last_sequence(streams::TIMELINE).await.unwrap();
        until("all is acknowledged", async || {
            self.mesh
                .ack_floor(streams::TIMELINE, CONSUMER)
                .await
                .is_ok_and(|floor| floor == sequence)
        })
        .await;
    }

    /// The advisories stored so far: what comes after the name of the consumer's advisory, and the body.
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

pub(crate) struct Work {
    pub(crate) shutdown: CancellationToken,
    task: JoinHandle<Result<()>>,
}

impl Work {
    /// Ends it, and waits until it has drained.
    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(LIMIT, self.task)
            .await
            .expect("drains in time")
            .unwrap()
            .unwrap();
    }
}

/// Workers on these consumers, one handler each.
pub(crate) struct Crew {
    workers: Workers,
    shutdown: CancellationToken,
}

impl Crew {
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
            .expect("drains in time")
            .unwrap();
    }
}

type Act = dyn Fn(Delivery) -> BoxFuture<'static, Disposition> + Send + Sync;

/// A handler that tells of each delivery, then does what the test says.
pub(crate) struct Script {
    seen: mpsc::UnboundedSender<Delivery>,
    act: Box<Act>,
}

impl Script {
    pub(crate) fn new<F>(act: impl Fn(Delivery) -> F + Send + Sync + 'static) -> (Arc<Self>, Seen)
    where
        F: Future<Output = Disposition> + Send + 'static,
    {
        let (seen, deliveries) = mpsc::unbounded_channel();
        (
            Arc::new(Self {
                seen,
                act: Box::new(move |delivery| Box::pin(act(delivery))),
            }),
            Seen { deliveries },
        )
    }

    /// Acknowledges all.
    pub(crate) fn acks() -> (Arc<Self>, Seen) {
        Self::new(|_| std::future::ready(Disposition::Ack))
    }

    /// Acknowledges each that is let through, and counts how many were handled at a time at most.
    pub(crate) fn gated(gate: &Arc<Semaphore>) -> (Arc<Self>, Seen, Arc<AtomicUsize>) {
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
impl Handler for Script {
    async fn handle(&self, delivery: &Delivery) -> Disposition {
        let _ = self.seen.send(delivery.clone());
        (self.act)(delivery.clone()).await
    }
}

/// The deliveries that a [`Script`] got.
pub(crate) struct Seen {
    deliveries: mpsc::UnboundedReceiver<Delivery>,
}

impl Seen {
    pub(crate) async fn next(&mut self) -> Delivery {
        tokio::time::timeout(LIMIT, self.deliveries.recv())
            .await
            .expect("a delivery in time")
            .unwrap()
    }

    /// Those that were seen already.
    pub(crate) fn rest(&mut self) -> Vec<Delivery> {
        std::iter::from_fn(|| self.deliveries.try_recv().ok()).collect()
    }

    /// Waits until these posts came, and counts how often.
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
        .unwrap_or_else(|_| panic!("not in time: {what}"));
}
