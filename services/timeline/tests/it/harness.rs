//! Starts nats-server, the embedded store and the timeline service.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use herald_local_nats::Server;
use herald_mesh::{
    ConsumeOptions, Delivery, Disposition, Handler, Mesh, Redrive, Requeuer, Subject, Topology,
    TopologyConfig, Workers,
    consumers::{self, ConsumerKind},
    streams,
};
use herald_model::{
    Channel, FollowVersion, Lane, Post, PostId, PushContent, Recipients, UserId, UserKey, time::Timestamp,
};
use herald_proto::mesh_v1::{DeliveriesSettled, PostCreated, SettledChunk, TimelineChunk};
use herald_runtime::metrics::Shared;
use herald_store::{
    Archived, ChannelCounts, ChunkPlan, RecordedOutcome, SlicePlan, Stores,
    embedded::{self, Embedded},
};
use herald_timeline::{Config, Deps, Error, Metrics, run};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::faulty::FaultyTimelines;

/// Timeout of [`until`].
const TIMEOUT: Duration = Duration::from_secs(30);

pub(crate) struct World {
    pub(crate) mesh: Mesh,
    pub(crate) stores: Stores,
    pub(crate) timelines: Arc<FaultyTimelines>,
    topology: Arc<Topology>,
    shutdown: CancellationToken,
    pub(crate) service: JoinHandle<Result<(), Error>>,
    _store: Embedded,
    _data: TempDir,
    _server: Server,
}

/// Acknowledges every message.
struct AckAll;

#[async_trait]
impl Handler for AckAll {
    async fn handle(&self, _: &Delivery) -> Disposition {
        Disposition::Ack
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap()).await
    }

    /// Starts on the store in `data`.
    pub(crate) async fn start_in(data: TempDir) -> Self {
        Self::start_with(data, Config::default()).await
    }

    pub(crate) async fn start_with(data: TempDir, service: Config) -> Self {
        Self::start_with_topology(data, service, |_| {}).await
    }

    /// Starts with this maximum number of attempts.
    pub(crate) async fn start_with_attempts(attempts_max: u32) -> Self {
        let data = tempfile::tempdir().unwrap();
        Self::start_with_topology(data, Config::default(), |config| {
            config.consumers.timeline.attempts_max = attempts_max;
        })
        .await
    }

    async fn start_with_topology(
        data: TempDir,
        service: Config,
        change: impl FnOnce(&mut TopologyConfig),
    ) -> Self {
        let server = Server::start(herald_local_nats::Config::default()).await.unwrap();
        let mesh = Mesh::connect(&herald_mesh::Config::at(server.client_url()))
            .await
            .unwrap();
        let mut config = TopologyConfig::default();
        config.consumers = config.consumers.each(|policy| {
            policy.retry.delay_ms_base = 10;
            policy.retry.delay_ms_max = 50;
        });
        change(&mut config);
        let topology = Arc::new(Topology::new(&config).unwrap());
        mesh.ensure(&topology).await.unwrap();
        let store = open(&data.path().join("store"));
        let stores = store.stores();
        let timelines = FaultyTimelines::new(stores.timelines.clone());
        let shutdown = CancellationToken::new();
        let deps = Deps {
            mesh: mesh.clone(),
            topology: topology.clone(),
            lanes: herald_model::Lane::ALL.into(),
            timelines: timelines.clone(),
            ledger: stores.ledger.clone(),
            posts: stores.posts.clone(),
            metrics: Shared::new().register(Metrics::new),
        };
        Self {
            topology,
            service: tokio::spawn(run(service, deps, shutdown.clone())),
            mesh,
            stores,
            timelines,
            shutdown,
            _store: store,
            _data: data,
            _server: server,
        }
    }

    /// Archives a post of user 9.
    pub(crate) async fn archive(&self, post: PostId) {
        self.accept(post).await;
        let mut workers = Workers::new(self.mesh.clone(), self.topology.clone(), &self.shutdown);
        workers
            .spawn(consumers::ARCHIVE, Arc::new(AckAll), ConsumeOptions::default())
            .unwrap();
        tokio::spawn(workers.join());
        self.settled(streams::POSTS, consumers::ARCHIVE, post.0).await;
    }

    /// Stores a post of user 9 in the archive and in POSTS, where the archive consumer has not acknowledged it yet.
    pub(crate) async fn accept(&self, post: PostId) {
        let post = Post {
            id: post,
            author: UserKey(9),
            author_id: UserId::new("author").unwrap(),
            request_id: format!("request {post}"),
            text: "text".into(),
            links: Vec::new(),
            media_urls: Vec::new(),
            lane: Lane::Normal,
            accepted_at: Timestamp::now(),
            push_ttl: Duration::from_hours(1),
            push: PushContent::default(),
            deleted_at: None,
        };
        let last = post.id.0;
        let archived = Archived::Created(post);
        self.stores.posts.archive(&[archived]).await.unwrap();
        // The archive watermark is the ack floor of the archive consumer, so POSTS needs this many acknowledged
        // messages.
        for n in 1..=last {
            let id = format!("post {n}");
            let subject = Subject::PostCreated(Lane::Normal);
            self.mesh
                .publish(subject, Some(&id), &PostCreated::default())
                .await
                .unwrap();
        }
    }

    /// Writes the plan of a chunk, as fan-out does.
    pub(crate) async fn plan(&self, post: PostId, users: &Recipients) -> TimelineChunk {
        let plan = SlicePlan {
            post,
            author: UserKey(1),
            slice: 0,
            version: FollowVersion(1),
            chunks: vec![ChunkPlan {
                channel: Channel::Timeline,
                recipients: users.clone(),
            }],
            next_after: None,
        };
        self.stores.ledger.plan(plan).await.unwrap();
        TimelineChunk {
            post_id: post.0,
            author_key: 9,
            accepted_at_us: Timestamp::now().0,
            chunk_id: users.chunk_id().0,
            recipients: users.as_bytes().clone(),
            recipient_count: users.len(),
        }
    }

    /// Runs the consumer of LATER, as the push service does.
    pub(crate) fn run_requeuer(&self) {
        let mut workers = Workers::new(self.mesh.clone(), self.topology.clone(), &self.shutdown);
        let requeuer = Arc::new(Requeuer::new(self.mesh.clone()));
        workers
            .spawn(consumers::LATER, requeuer, ConsumeOptions::default())
            .unwrap();
        tokio::spawn(workers.join());
    }

    /// Plans and publishes a chunk; returns its stream sequence.
    pub(crate) async fn publish(&self, post: PostId, users: &Recipients) -> u64 {
        let chunk = self.plan(post, users).await;
        let subject = Subject::TimelineDeliver(Lane::Normal);
        self.mesh.publish(subject, None, &chunk).await.unwrap().sequence
    }

    /// Redrives a chunk, as the deadletter service does, and waits until it is settled.
    pub(crate) async fn redrive(&self, sequence: u64, chunk: &TimelineChunk) {
        let redrive = Redrive {
            kind: ConsumerKind::Timeline,
            dead_letter: 1,
            round: 1,
            subject: Subject::TimelineDeliver(Lane::Normal),
            sequence,
            published_at: Timestamp::now(),
            payload: prost::Message::encode_to_vec(chunk).into(),
            trace_parent: None,
            trace_state: None,
            id: format!("dlq/{sequence}/redrive/1"),
        };
        let published = self.mesh.redrive(&redrive).await.unwrap().sequence;
        let consumer = consumers::redrive(ConsumerKind::Timeline);
        self.settled(streams::REDRIVE, consumer, published).await;
    }

    /// Waits until the messages of a consumer up to `sequence` are acknowledged or terminated.
    pub(crate) async fn settled(&self, stream: &str, consumer: &str, sequence: u64) {
        until(async || self.mesh.ack_floor(stream, consumer).await.unwrap() >= sequence).await;
    }

    pub(crate) async fn counts(&self, post: PostId) -> ChannelCounts {
        self.stores.ledger.counts(post).await.unwrap().unwrap().timeline
    }

    pub(crate) async fn outcome(&self, post: PostId, users: &Recipients) -> Option<RecordedOutcome> {
        let outcome = self
            .stores
            .ledger
            .outcome(post, Channel::Timeline, users.chunk_id());
        outcome.await.unwrap()
    }

    /// The users whose timeline has the post.
    pub(crate) async fn users_with(&self, post: PostId, users: &Recipients) -> Vec<u32> {
        let mut with_post = Vec::new();
        for user in users {
            let newest = self.stores.timelines.newest(user, None, 10).await.unwrap();
            with_post.extend(newest.posts.contains(&post).then_some(user.0));
        }
        with_post
    }

    /// The only chunk of the last event.
    pub(crate) async fn last_event(&self) -> SettledChunk {
        let event = self.events().await.pop().unwrap();
        let [chunk] = event.chunks[..] else {
            panic!("{event:?}")
        };
        chunk
    }

    /// All events published so far.
    pub(crate) async fn events(&self) -> Vec<DeliveriesSettled> {
        let mut events = Vec::new();
        for sequence in 1..=self.mesh.last_sequence(streams::EVENTS).await.unwrap() {
            let message = self.mesh.message(streams::EVENTS, sequence).await.unwrap();
            events.push(message.unwrap().decode().unwrap());
        }
        events
    }

    /// The advisories of messages terminated so far.
    pub(crate) async fn reasons(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        for sequence in 1..=self.mesh.last_sequence(streams::ADVISORIES).await.unwrap() {
            let message = self.mesh.message(streams::ADVISORIES, sequence).await.unwrap();
            reasons.push(String::from_utf8(message.unwrap().payload.to_vec()).unwrap());
        }
        reasons
    }
}

fn open(data: &Path) -> Embedded {
    Embedded::open(&embedded::Config {
        data_dir: data.into(),
        disk_free_mb_min: 0,
        ..embedded::Config::default()
    })
    .unwrap()
}

/// Creates a store with a corrupt ledger row: the outcome of the timeline chunk with these recipients.
pub(crate) fn with_corrupt_outcome(post: PostId, recipients: &Recipients) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("store");
    open(&data).close().unwrap();
    let records = fjall::Database::builder(data.join("records")).open().unwrap();
    let rows = records
        .keyspace("ledger", fjall::KeyspaceCreateOptions::default)
        .unwrap();
    // The key of an outcome of the timeline channel.
    let key = [
        &post.0.to_be_bytes()[..],
        &[1, 0],
        &recipients.chunk_id().0.to_be_bytes(),
    ]
    .concat();
    rows.insert(key, [0xff]).unwrap();
    records.persist(fjall::PersistMode::SyncAll).unwrap();
    dir
}

pub(crate) fn users(keys: impl IntoIterator<Item = u32>) -> Recipients {
    Recipients::from_sorted(keys.into_iter().map(UserKey))
}

/// Waits until a condition is true; panics after [`TIMEOUT`].
pub(crate) async fn until(mut condition: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    let mut interval = tokio::time::interval(Duration::from_millis(5));
    while !condition().await {
        assert!(
            started.elapsed() < TIMEOUT,
            "the condition was not true within {TIMEOUT:?}"
        );
        interval.tick().await;
    }
}
