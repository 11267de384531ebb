//! A server, a store, and the service.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use herald_local_nats::Server;
use herald_mesh::{
    ConsumeOptions, Delivery, Disposition, Handler, Mesh, Redrive, Subject, Topology, TopologyConfig,
    Workers,
    consumers::{self, ConsumerKind},
    streams,
};
use herald_model::{
    Channel, FollowVersion, Lane, Post, PostId, Recipients, UserId, UserKey, time::Timestamp,
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

use crate::faulty::Faulty;

/// How long a condition may take to come true.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct World {
    pub(crate) mesh: Mesh,
    pub(crate) stores: Stores,
    pub(crate) timelines: Arc<Faulty>,
    topology: Arc<Topology>,
    shutdown: CancellationToken,
    pub(crate) service: JoinHandle<Result<(), Error>>,
    _store: Embedded,
    _data: TempDir,
    _server: Server,
}

/// Has archived whatever comes.
struct Archivist;

#[async_trait]
impl Handler for Archivist {
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

    /// On the store that is in this directory.
    pub(crate) async fn start_in(data: TempDir) -> Self {
        Self::start_with(data, Config::default()).await
    }

    pub(crate) async fn start_with(data: TempDir, service: Config) -> Self {
        let server = Server::start(herald_local_nats::Config::default()).await.unwrap();
        let mesh = Mesh::connect(&herald_mesh::Config::at(server.client_url()))
            .await
            .unwrap();
        let mut config = TopologyConfig::default();
        config.consumers = config.consumers.each(|policy| {
            policy.retry.delay_ms_base = 10;
            policy.retry.delay_ms_max = 50;
        });
        let topology = Arc::new(Topology::new(&config).unwrap());
        mesh.ensure(&topology).await.unwrap();
        let store = open(&data.path().join("store"));
        let stores = store.stores();
        let timelines = Faulty::new(stores.timelines.clone());
        let shutdown = CancellationToken::new();
        let deps = Deps {
            mesh: mesh.clone(),
            topology: topology.clone(),
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
        let post = Post {
            id: post,
            author: UserKey(9),
            author_id: UserId::new("author").unwrap(),
            request_id: format!("request {post}"),
            text: "text".into(),
            links: Vec::new(),
            media_urls: Vec::new(),
            lane: Lane::Normal,
            follow_version: FollowVersion(1),
            accepted_at: Timestamp::now(),
            push_ttl: Duration::from_hours(1),
            deleted_at: None,
        };
        let last = post.id.0;
        let archived = Archived::Created(post);
        self.stores.posts.archive(&[archived]).await.unwrap();
        // POSTS has as many messages, and the archive consumer has acknowledged them.
        for n in 1..=last {
            let id = format!("post {n}");
            let subject = Subject::PostCreated(Lane::Normal);
            self.mesh
                .publish(subject, Some(&id), &PostCreated::default())
                .await
                .unwrap();
        }
        let mut workers = Workers::new(self.mesh.clone(), self.topology.clone(), &self.shutdown);
        let options = ConsumeOptions::default();
        workers
            .spawn(consumers::ARCHIVE, Arc::new(Archivist), options)
            .unwrap();
        tokio::spawn(workers.join());
        self.settled(streams::POSTS, consumers::ARCHIVE, last).await;
    }

    /// Plans a chunk of a post, as fan-out does.
    pub(crate) async fn plan(&self, post: PostId, users: &Recipients) -> TimelineChunk {
        let plan = SlicePlan {
            post,
            slice: 0,
            chunks: vec![ChunkPlan {
                channel: Channel::Timeline,
                recipients: users.clone(),
            }],
            last: true,
        };
        self.stores.ledger.plan(&plan).await.unwrap().await.unwrap();
        TimelineChunk {
            post_id: post.0,
            author_key: 9,
            accepted_at_us: Timestamp::now().0,
            chunk_id: users.chunk_id().0,
            recipients: users.as_bytes().clone(),
            recipient_count: users.len(),
        }
    }

    /// Plans and publishes a chunk; answers with its sequence.
    pub(crate) async fn publish(&self, post: PostId, users: &Recipients) -> u64 {
        let chunk = self.plan(post, users).await;
        let subject = Subject::TimelineDeliver(Lane::Normal);
        self.mesh.publish(subject, None, &chunk).await.unwrap().sequence
    }

    /// Redrives a chunk, as the dead letters' service does.
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

    /// Waits until a consumer's messages up to this one are acknowledged or terminated.
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

    /// Who of these has a post.
    pub(crate) async fn have(&self, post: PostId, users: &Recipients) -> Vec<u32> {
        let mut have = Vec::new();
        for user in users {
            let newest = self.stores.timelines.newest(user, None, 10).await.unwrap();
            have.extend(newest.contains(&post).then_some(user.0));
        }
        have
    }

    /// What the last event tells of; of one chunk.
    pub(crate) async fn last_event(&self) -> SettledChunk {
        let event = self.events().await.pop().unwrap();
        let [chunk] = event.chunks[..] else {
            panic!("{event:?}")
        };
        chunk
    }

    /// All events so far.
    pub(crate) async fn events(&self) -> Vec<DeliveriesSettled> {
        let mut events = Vec::new();
        for sequence in 1..=self.mesh.last_sequence(streams::EVENTS).await.unwrap() {
            let message = self.mesh.message(streams::EVENTS, sequence).await.unwrap();
            events.push(message.unwrap().decode().unwrap());
        }
        events
    }

    /// The advisories of messages given up so far.
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

/// A directory with a store in which the ledger's outcome of a chunk can't be read, as a broken disk leaves it.
pub(crate) fn with_corrupt_outcome(post: PostId, recipients: &Recipients) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("store");
    open(&data).close().unwrap();
    let records = fjall::Database::builder(data.join("records")).open().unwrap();
    let rows = records
        .keyspace("ledger", fjall::KeyspaceCreateOptions::default)
        .unwrap();
    // An outcome of the timeline channel.
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

/// Waits until a condition is true.
pub(crate) async fn until(mut condition: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    let mut again = tokio::time::interval(Duration::from_millis(5));
    while !condition().await {
        assert!(
            begun.elapsed() < PATIENCE,
            "it did not come true within {PATIENCE:?}"
        );
        again.tick().await;
    }
}
