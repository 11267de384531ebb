//! The test harness: nats-server, store, a scripted worker, and the service.

mod client;
pub(crate) mod failing_store;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use herald_audit::{Auditor, Limits};
use herald_deadletter::{Config, Deps, Error, Metrics, run};
use herald_local_nats::Server;
use herald_mesh::{
    ConsumeOptions, Delivery, Disposition, Handler, Mesh, Subject, Topology, TopologyConfig, Workers,
    consumers::{self, ConsumerKind},
};
use herald_model::{Channel, FollowVersion, Lane, PostId, Recipients, UserId, UserKey, time::Timestamp};
use herald_proto::{
    mesh_v1::{DlqEntry, PushChunk},
    v1,
};
use herald_runtime::metrics::Shared;
use herald_store::{
    ChunkPlan, OperationId, SlicePlan, Stores,
    embedded::{self, Embedded},
};
use herald_user_data::UserData;
use prost::Message as _;
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

pub(crate) use self::client::{
    Client, begin_redrive, dead_letters, get, in_state, list, list_all, redrive, select_all, select_ids,
    total, total_of, until,
};

/// The reason of [`dlq_entry`], without its number.
const REASON: &str = "push failed: webhook status 503";

/// The disposition that the scripted worker returns.
#[derive(Debug, Clone)]
pub(crate) enum Verdict {
    Ack,
    Term(&'static str),
    /// Computed from the delivery.
    Decide(fn(&Delivery) -> Disposition),
}

/// A message that the scripted worker received.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Received {
    pub(crate) subject: Subject,
    pub(crate) sequence: u64,
    pub(crate) dead_letter: Option<(u64, u32)>,
    pub(crate) payload: Vec<u8>,
}

/// A worker that returns the disposition set by the test, and records its messages.
pub(crate) struct ScriptedWorker {
    verdict: Mutex<Verdict>,
    received: Mutex<Vec<Received>>,
}

#[async_trait]
impl Handler for ScriptedWorker {
    async fn handle(&self, delivery: &Delivery) -> Disposition {
        let redrive = delivery.redrive;
        self.received.lock().unwrap().push(Received {
            subject: delivery.subject,
            sequence: delivery.sequence,
            dead_letter: redrive.map(|redriven| (redriven.dead_letter, redriven.round)),
            payload: delivery.payload.to_vec(),
        });
        if let Err(unreadable) = delivery.decode::<PushChunk>() {
            return unreadable;
        }
        match self.verdict.lock().unwrap().clone() {
            Verdict::Ack => Disposition::Ack,
            Verdict::Term(reason) => Disposition::term(reason),
            Verdict::Decide(decide) => decide(delivery),
        }
    }
}

pub(crate) struct Harness {
    pub(crate) mesh: Mesh,
    pub(crate) nats: async_nats::Client,
    pub(crate) stores: Stores,
    pub(crate) shared: Shared,
    worker: Arc<ScriptedWorker>,
    topology: Arc<Topology>,
    metrics: Metrics,
    worker_stop: CancellationToken,
    _store: Embedded,
    _dir: TempDir,
    _server: Server,
}

/// A running service.
pub(crate) struct Running {
    pub(crate) client: Client,
    pub(crate) address: String,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), Error>>,
}

impl Running {
    pub(crate) async fn new(
        address: String,
        shutdown: CancellationToken,
        task: JoinHandle<Result<(), Error>>,
    ) -> Self {
        Self {
            client: Client::connect(address.clone()).await.unwrap(),
            address,
            shutdown,
            task,
        }
    }

    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
    }

    /// Aborts the service without a shutdown, as a crash does.
    pub(crate) async fn abort(self) {
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled());
    }
}

impl Harness {
    pub(crate) async fn start() -> Self {
        Self::start_in(TempDir::new().unwrap()).await
    }

    /// Starts with the store in this directory.
    pub(crate) async fn start_in(dir: TempDir) -> Self {
        let server = Server::start(herald_local_nats::Config {
            // Allow the full limits of the streams on a small disk: a test stores very little.
            max_file_bytes: Some(1 << 40),
            ..herald_local_nats::Config::default()
        })
        .await
        .unwrap();
        let mesh = Mesh::connect(&herald_mesh::Config::at(server.client_url()))
            .await
            .unwrap();
        let mut config = TopologyConfig::default();
        for policy in [
            &mut config.consumers.push,
            &mut config.consumers.redrive,
            &mut config.consumers.deadletter,
        ] {
            policy.ack_wait_seconds = 2;
            policy.retry.delay_ms_base = 10;
            policy.retry.delay_ms_max = 100;
        }
        let topology = Arc::new(Topology::new(&config).unwrap());
        mesh.ensure(&topology).await.unwrap();
        let store = open(&dir);
        let shared = Shared::new();
        let metrics = shared.register(Metrics::new);
        let worker = Arc::new(ScriptedWorker {
            verdict: Mutex::new(Verdict::Ack),
            received: Mutex::default(),
        });
        let worker_stop = CancellationToken::new();
        let mut workers = Workers::new(mesh.clone(), topology.clone(), &worker_stop);
        for consumer in [
            consumers::push(Lane::High),
            consumers::push(Lane::Normal),
            consumers::redrive(ConsumerKind::Push),
        ] {
            workers
                .spawn(consumer, worker.clone(), ConsumeOptions::default())
                .unwrap();
        }
        tokio::spawn(workers.join());
        Self {
            nats: async_nats::connect(server.client_url()).await.unwrap(),
            mesh,
            stores: store.stores(),
            shared,
            worker,
            topology,
            metrics,
            worker_stop,
            _store: store,
            _dir: dir,
            _server: server,
        }
    }

    pub(crate) async fn run(&self) -> Running {
        // Wait until the store's thread has finished the writes of an aborted service: after a real crash there would
        // be none.
        self.stores.dead_letters.sent(OperationId(0), &[]).await.unwrap();
        let (deps, address) = self.deps().await;
        let shutdown = CancellationToken::new();
        let config = Config {
            lease_seconds: 2,
            ..Config::default()
        };
        let task = tokio::spawn(run(config, deps, shutdown.clone()));
        Running::new(address, shutdown, task).await
    }

    /// The dependencies of the service, and the address of its gRPC server.
    pub(crate) async fn deps(&self) -> (Deps, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let stores = self.stores.clone();
        let user_data = UserData {
            mesh: self.mesh.clone(),
            topology: self.topology.clone(),
            stores: stores.clone(),
        };
        let auditor = Auditor {
            mesh: self.mesh.clone(),
            topology: self.topology.clone(),
            users: stores.users.clone(),
            posts: stores.posts,
            timelines: stores.timelines,
            ledger: stores.ledger.clone(),
            totals: stores.totals,
            dead_letters: stores.dead_letters.clone(),
            limits: Limits::default(),
        };
        let deps = Deps {
            mesh: self.mesh.clone(),
            topology: self.topology.clone(),
            users: stores.users,
            ledger: stores.ledger,
            dead_letters: stores.dead_letters,
            leases: stores.leases,
            retention: stores.retention,
            auditor,
            user_data,
            listener: listener.into(),
            metrics: self.metrics.clone(),
        };
        (deps, address)
    }

    /// Sets the disposition that the worker returns.
    pub(crate) fn set_verdict(&self, verdict: Verdict) {
        *self.worker.verdict.lock().unwrap() = verdict;
    }

    /// Stops the worker.
    pub(crate) fn stop_worker(&self) {
        self.worker_stop.cancel();
    }

    /// The messages that the worker has received, sorted by dead letter.
    pub(crate) fn received(&self) -> Vec<Received> {
        let mut received = self.worker.received.lock().unwrap().clone();
        received.sort_by_key(|one| (one.dead_letter, one.sequence));
        received
    }

    /// The dead letters that the worker has received, with their rounds.
    pub(crate) fn redriven(&self) -> Vec<(u64, u32)> {
        self.received()
            .into_iter()
            .filter_map(|one| one.dead_letter)
            .collect()
    }

    /// Plans a push chunk of these users for a post, and returns the payload of its message.
    pub(crate) async fn plan(&self, post: u64, users: &[&str]) -> PushChunk {
        let ids: Vec<_> = users.iter().map(|user| UserId::new(*user).unwrap()).collect();
        let mut keys = self.stores.users.intern(&ids).await.unwrap();
        keys.sort_unstable();
        let recipients = Recipients::from_sorted(keys);
        let plan = SlicePlan {
            post: PostId(post),
            author: self.author().await,
            slice: 0,
            version: FollowVersion(1),
            chunks: vec![ChunkPlan {
                channel: Channel::Push,
                recipients: recipients.clone(),
            }],
            next_after: None,
        };
        self.stores.ledger.plan(plan).await.unwrap();
        chunk(post, self.author().await, &recipients)
    }

    pub(crate) async fn author(&self) -> UserKey {
        let author = UserId::new("author").unwrap();
        self.stores.users.intern(&[author]).await.unwrap()[0]
    }

    /// Publishes a chunk as fan-out does, and returns its sequence.
    pub(crate) async fn publish(&self, chunk: &PushChunk) -> u64 {
        let id = format!("{}/push/{:016x}", chunk.post_id, chunk.chunk_id);
        self.mesh
            .publish(Subject::PushDeliver(Lane::Normal), Some(&id), chunk)
            .await
            .unwrap()
            .sequence
    }

    /// Publishes DLQ entries about messages of these sequences, and waits until their dead letters are listed.
    pub(crate) async fn create_dead_letters(
        &self,
        client: &Client,
        sequences: std::ops::RangeInclusive<u64>,
    ) {
        let count = sequences.clone().count() as u64;
        // Only those of `dlq_entry`: others may be indexed meanwhile.
        let created = v1::DeadLetterFilter {
            reason: REASON.into(),
            ..Default::default()
        };
        let before = total_of(client, created.clone()).await;
        let author = self.author().await;
        let publishing = sequences.map(async |sequence| {
            self.publish_dead_letter(&dlq_entry(author, sequence), &sequence.to_string())
                .await;
        });
        futures::future::join_all(publishing).await;
        until(async || total_of(client, created.clone()).await == before + count).await;
    }

    pub(crate) async fn publish_dead_letter(&self, entry: &DlqEntry, id: &str) {
        self.mesh
            .publish_dead_letter(&entry.stream, &entry.consumer, id, entry)
            .await
            .unwrap();
    }

    /// Publishes an advisory as the server does.
    pub(crate) async fn publish_advisory(
        &self,
        stream: &str,
        consumer: &str,
        sequence: u64,
        reason: Option<&str>,
    ) {
        let (subject, kind) = match reason {
            Some(_) => ("MSG_TERMINATED", "terminated"),
            None => ("MAX_DELIVERIES", "max_deliver"),
        };
        let json = serde_json::json!({
            "type": format!("io.nats.jetstream.advisory.v1.{kind}"), "id": "x",
            "timestamp": "2026-01-31T08:00:00.5Z", "stream": stream, "consumer": consumer,
            "stream_seq": sequence, "deliveries": 3, "reason": reason.unwrap_or_default(),
        });
        let subject = format!("$JS.EVENT.ADVISORY.CONSUMER.{subject}.{stream}.{consumer}");
        self.nats.publish(subject, json.to_string().into()).await.unwrap();
        self.nats.flush().await.unwrap();
    }

    /// The value of a metric, summed over its labels.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let text = self.shared.open_metrics();
        let lines = text
            .lines()
            .filter(|line| line.split([' ', '{']).next() == Some(name));
        lines
            .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64)
            .sum()
    }
}

impl Drop for Harness {
    fn drop(&mut self) {
        self.worker_stop.cancel();
    }
}

/// Opens the store in a directory, and creates it if it is missing.
pub(crate) fn open(dir: &TempDir) -> Embedded {
    Embedded::open(&embedded::Config {
        data_dir: dir.path().join("data"),
        ..embedded::Config::default()
    })
    .unwrap()
}

pub(crate) fn chunk(post: u64, author: UserKey, recipients: &Recipients) -> PushChunk {
    PushChunk {
        post_id: post,
        author_key: author.0,
        accepted_at_us: Timestamp::now().0,
        chunk_id: recipients.chunk_id().0,
        recipients: recipients.as_bytes().clone(),
        recipient_count: recipients.len(),
        expires_at_us: Timestamp::now().plus(Duration::from_mins(5)).0,
        retry_generation: 0,
    }
}

/// A DLQ entry about a push chunk of post `sequence` for one recipient.
pub(crate) fn dlq_entry(author: UserKey, sequence: u64) -> DlqEntry {
    let recipients = Recipients::from_sorted([UserKey(7)]);
    let chunk = chunk(sequence, author, &recipients);
    DlqEntry {
        stream: "PUSH".into(),
        consumer: "push-normal".into(),
        kind: "push".into(),
        sequence,
        original_sequence: sequence,
        subject: "push.v1.deliver.normal".into(),
        message_type: "herald.mesh.v1.PushChunk".into(),
        message_id: format!("{sequence}/push"),
        payload: chunk.encode_to_vec().into(),
        payload_state: v1::DeadLetterPayload::Kept.into(),
        cause: v1::DeadLetterCause::Terminated.into(),
        reason: format!("{REASON}: {sequence}"),
        attempt_count: 20,
        published_at_us: 1_769_846_300_000_000,
        failed_at_us: 1_769_846_400_000_000 + i64::try_from(sequence).unwrap(),
        post_id: sequence,
        author_key: author.0,
        channel: v1::Channel::Push.into(),
        chunk_id: chunk.chunk_id,
        recipient_count: 1,
        accepted_at_us: chunk.accepted_at_us,
        lane: v1::Lane::Normal.into(),
        ..DlqEntry::default()
    }
}
