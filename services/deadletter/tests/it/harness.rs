//! A server, a store, a worker that does as it is told, and the service.

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
use herald_model::{Channel, Lane, PostId, Recipients, UserId, UserKey, time::Timestamp};
use herald_proto::{
    mesh_v1::{DlqEntry, PushChunk},
    v1::{self, dead_letter_service_client::DeadLetterServiceClient},
};
use herald_runtime::metrics::Shared;
use herald_store::{
    ChunkPlan, OperationId, SlicePlan, Stores,
    embedded::{self, Embedded},
};
use prost::Message as _;
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel as Connection;

pub(crate) type Client = DeadLetterServiceClient<Connection>;

/// What the worker does with its messages.
#[derive(Debug, Clone)]
pub(crate) enum Verdict {
    Ack,
    Term(&'static str),
    /// As the message deserves.
    By(fn(&Delivery) -> Disposition),
}

/// A message that the worker got.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Seen {
    pub(crate) subject: Subject,
    pub(crate) sequence: u64,
    pub(crate) dead_letter: Option<(u64, u32)>,
    pub(crate) payload: Vec<u8>,
}

/// A worker that does as it is told.
pub(crate) struct Script {
    verdict: Mutex<Verdict>,
    seen: Mutex<Vec<Seen>>,
}

#[async_trait]
impl Handler for Script {
    async fn handle(&self, delivery: &Delivery) -> Disposition {
        let redrive = delivery.redrive;
        self.seen.lock().unwrap().push(Seen {
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
            Verdict::By(judge) => judge(delivery),
        }
    }
}

pub(crate) struct Harness {
    pub(crate) mesh: Mesh,
    pub(crate) nats: async_nats::Client,
    pub(crate) stores: Stores,
    pub(crate) shared: Shared,
    script: Arc<Script>,
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
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), Error>>,
}

impl Running {
    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
    }

    /// As a crash does: nothing is finished.
    pub(crate) async fn abort(self) {
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled());
    }
}

impl Harness {
    pub(crate) async fn start() -> Self {
        Self::start_in(TempDir::new().unwrap()).await
    }

    /// On the store that is in this directory.
    pub(crate) async fn start_in(dir: TempDir) -> Self {
        let server = Server::start(herald_local_nats::Config {
            // The streams' limits, whatever the disk has free: a test uses next to nothing.
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
        let script = Arc::new(Script {
            verdict: Mutex::new(Verdict::Ack),
            seen: Mutex::default(),
        });
        let worker_stop = CancellationToken::new();
        let mut workers = Workers::new(mesh.clone(), topology.clone(), &worker_stop);
        for consumer in [
            consumers::push(Lane::High),
            consumers::push(Lane::Normal),
            consumers::redrive(ConsumerKind::Push),
        ] {
            workers
                .spawn(consumer, script.clone(), ConsumeOptions::default())
                .unwrap();
        }
        tokio::spawn(workers.join());
        Self {
            nats: async_nats::connect(server.client_url()).await.unwrap(),
            mesh,
            stores: store.stores(),
            shared,
            script,
            topology,
            metrics,
            worker_stop,
            _store: store,
            _dir: dir,
            _server: server,
        }
    }

    pub(crate) async fn run(&self) -> Running {
        // What an aborted service had given to the store's thread is done all the same, but not after the next one has begun:
        // after a crash there is no such thread.
        self.stores.dead_letters.sent(OperationId(0), &[]).await.unwrap();
        let (deps, address) = self.deps().await;
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(run(Config::default(), deps, shutdown.clone()));
        Running {
            client: Client::connect(address).await.unwrap(),
            shutdown,
            task,
        }
    }

    /// What the service needs, and where it will serve.
    pub(crate) async fn deps(&self) -> (Deps, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let stores = self.stores.clone();
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
            auditor,
            listener,
            metrics: self.metrics.clone(),
        };
        (deps, address)
    }

    /// What the worker does from now on.
    pub(crate) fn tell(&self, verdict: Verdict) {
        *self.script.verdict.lock().unwrap() = verdict;
    }

    /// Nobody works any more.
    pub(crate) fn stop_worker(&self) {
        self.worker_stop.cancel();
    }

    /// What the worker got so far, in order of the dead letters.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        let mut seen = self.script.seen.lock().unwrap().clone();
        seen.sort_by_key(|seen| (seen.dead_letter, seen.sequence));
        seen
    }

    /// The dead letters that the worker got, with their rounds.
    pub(crate) fn redriven(&self) -> Vec<(u64, u32)> {
        self.seen()
            .into_iter()
            .filter_map(|seen| seen.dead_letter)
            .collect()
    }

    /// Plans a chunk of these users for a post, and what its message carries.
    pub(crate) async fn plan(&self, post: u64, users: &[&str]) -> PushChunk {
        let ids: Vec<_> = users.iter().map(|user| UserId::new(*user).unwrap()).collect();
        let mut keys = self.stores.users.intern(&ids).await.unwrap();
        keys.sort_unstable();
        let recipients = Recipients::from_sorted(keys);
        let plan = SlicePlan {
            post: PostId(post),
            slice: 0,
            chunks: vec![ChunkPlan {
                channel: Channel::Push,
                recipients: recipients.clone(),
            }],
            last: true,
        };
        self.stores.ledger.plan(&plan).await.unwrap().await.unwrap();
        chunk(post, self.author().await, &recipients)
    }

    pub(crate) async fn author(&self) -> UserKey {
        let author = UserId::new("author").unwrap();
        self.stores.users.intern(&[author]).await.unwrap()[0]
    }

    /// Publishes a chunk as fan-out does.
    pub(crate) async fn publish(&self, chunk: &PushChunk) -> u64 {
        let id = format!("{}/push/{:016x}", chunk.post_id, chunk.chunk_id);
        self.mesh
            .publish(Subject::PushDeliver(Lane::Normal), Some(&id), chunk)
            .await
            .unwrap()
            .sequence
    }

    /// Puts dead letters about messages of these sequences into DLQ, as advisories do, and waits until they can be seen.
    pub(crate) async fn fill(&self, client: &Client, sequences: std::ops::RangeInclusive<u64>) {
        let count = sequences.clone().count() as u64;
        let before = total(client).await;
        let author = self.author().await;
        let publishing = sequences.map(async |sequence| {
            self.publish_dead_letter(&body(author, sequence), &sequence.to_string())
                .await;
        });
        futures::future::join_all(publishing).await;
        until(async || total(client).await == before + count).await;
    }

    pub(crate) async fn publish_dead_letter(&self, body: &DlqEntry, id: &str) {
        self.mesh
            .publish_dead_letter(&body.stream, &body.consumer, id, body)
            .await
            .unwrap();
    }

    /// Publishes an advisory as the server does.
    pub(crate) async fn advise(&self, stream: &str, consumer: &str, sequence: u64, reason: Option<&str>) {
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

    /// What `/metrics` says of one name, labels and all added up.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let text = self.shared.encode();
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

/// Opens the store in a directory, making it when it isn't there.
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
    }
}

/// A dead letter about a chunk of post `sequence`, for one recipient.
pub(crate) fn body(author: UserKey, sequence: u64) -> DlqEntry {
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
        reason: format!("push gave up: webhook status 503: {sequence}"),
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

/// Dead letters that pass, oldest first.
pub(crate) async fn list(client: &Client, filter: v1::DeadLetterFilter) -> Vec<v1::DeadLetter> {
    let request = v1::ListDeadLettersRequest {
        filter: Some(filter),
        oldest_first: true,
        page_size: 1_000,
        ..Default::default()
    };
    let answer = client.clone().list_dead_letters(request).await.unwrap();
    answer.into_inner().dead_letters
}

pub(crate) async fn all(client: &Client) -> Vec<v1::DeadLetter> {
    list(client, v1::DeadLetterFilter::default()).await
}

pub(crate) async fn in_state(client: &Client, state: v1::DeadLetterState) -> Vec<u64> {
    let filter = v1::DeadLetterFilter {
        state: state.into(),
        ..Default::default()
    };
    let dead_letters = list(client, filter).await;
    dead_letters
        .into_iter()
        .map(|dead_letter| dead_letter.dead_letter_id)
        .collect()
}

async fn total(client: &Client) -> u64 {
    let mut client = client.clone();
    let groups = client.list_groups(v1::ListGroupsRequest::default()).await;
    groups.unwrap().into_inner().dead_letter_count
}

pub(crate) async fn get(client: &Client, dead_letter_id: u64) -> v1::GetDeadLetterResponse {
    let request = v1::GetDeadLetterRequest { dead_letter_id };
    client
        .clone()
        .get_dead_letter(request)
        .await
        .unwrap()
        .into_inner()
}

/// Waits until there are so many dead letters, and gives them, oldest first.
pub(crate) async fn dead_letters(client: &Client, count: usize) -> Vec<v1::DeadLetter> {
    until(async || all(client).await.len() >= count).await;
    let dead_letters = all(client).await;
    assert_eq!(dead_letters.len(), count, "{dead_letters:#?}");
    dead_letters
}

pub(crate) fn ids(dead_letter_ids: impl IntoIterator<Item = u64>) -> v1::DeadLetterSelection {
    v1::DeadLetterSelection {
        dead_letter_ids: dead_letter_ids.into_iter().collect(),
        ..Default::default()
    }
}

pub(crate) fn everything() -> v1::DeadLetterSelection {
    v1::DeadLetterSelection {
        all: true,
        ..Default::default()
    }
}

/// Redrives, and gives the outcome.
pub(crate) async fn redrive(
    client: &Client,
    selection: v1::DeadLetterSelection,
    failures_max: Option<u32>,
) -> Result<v1::Redrive, tonic::Status> {
    let request = v1::RedriveDeadLettersRequest {
        selection: Some(selection),
        failures_max,
        ..Default::default()
    };
    let mut request = tonic::Request::new(request);
    request
        .metadata_mut()
        .insert("herald-actor", "ops@host".parse().unwrap());
    let mut progress = client.clone().redrive_dead_letters(request).await?.into_inner();
    let mut last = None;
    while let Some(answer) = progress.message().await? {
        last = answer.redrive;
    }
    Ok(last.expect("an outcome"))
}

/// Begins a redrive of everything, and doesn't wait for its end.
pub(crate) async fn begin(client: &Client) {
    let request = v1::RedriveDeadLettersRequest {
        selection: Some(everything()),
        ..Default::default()
    };
    let progress = client.clone().redrive_dead_letters(request).await.unwrap();
    progress.into_inner().message().await.unwrap().unwrap();
}

/// Waits until it is so, for at most 30 s.
pub(crate) async fn until(is_so: impl AsyncFn() -> bool) {
    let deadline = Timestamp::now().plus(Duration::from_secs(30));
    let mut turn = tokio::time::interval(Duration::from_millis(5));
    while !is_so().await {
        assert!(Timestamp::now() < deadline, "not so within 30 s");
        turn.tick().await;
    }
}
