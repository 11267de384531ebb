//! A broker, a store, and helpers that put posts into a chosen state.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use herald_audit::{Auditor, Event, Finding, Limits, Scope, Summary};
use herald_local_nats::{Config as ServerConfig, Server};
use herald_mesh::{
    Config, ConsumeOptions, Delivery, Disposition, Handler, Mesh, Subject, Topology, TopologyConfig, streams,
};
use herald_model::{
    Channel, FollowVersion, Lane, Post, PostId, PushContent, Recipients, UserId, UserKey, time::Timestamp,
};
use herald_proto::mesh_v1::PostCreated;
use herald_store::{
    Archived, ChunkPlan, Counts, ExpectedRevision, Outcome, PostTotals, Settlement, SlicePlan, Stores,
    TotalsBatch,
    embedded::{self, Embedded},
};
use tempfile::TempDir;
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

pub(crate) const LIMIT: Duration = Duration::from_secs(30);
pub(crate) const LANE: Lane = Lane::Normal;

pub(crate) struct World {
    pub(crate) mesh: Mesh,
    pub(crate) topology: Arc<Topology>,
    pub(crate) stores: Stores,
    pub(crate) auditor: Auditor,
    pub(crate) author: UserKey,
    _engine: Embedded,
    server: Server,
    _dir: TempDir,
}

pub(crate) fn user(number: u32) -> UserId {
    UserId::new(format!("user{number}")).unwrap()
}

fn open(dir: &TempDir, limits: &Limits) -> Embedded {
    Embedded::open(&embedded::Config {
        data_dir: dir.path().join("data"),
        timelines: embedded::timelines::Config {
            entries_max: limits.timeline_entries_max,
            ..embedded::timelines::Config::default()
        },
        ..embedded::Config::default()
    })
    .unwrap()
}

/// Creates a data directory with one corrupt row.
pub(crate) fn with_corrupt_row(database: &str, keyspace: &str, key: &[u8]) -> TempDir {
    let dir = TempDir::new().unwrap();
    open(&dir, &Limits::default()).close().unwrap();
    let database = fjall::Database::builder(dir.path().join("data").join(database))
        .open()
        .unwrap();
    let rows = database
        .keyspace(keyspace, fjall::KeyspaceCreateOptions::default)
        .unwrap();
    rows.insert(key, [0xff]).unwrap();
    database.persist(fjall::PersistMode::SyncAll).unwrap();
    dir
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::start_with(Limits::default()).await
    }

    /// Starts with a store that has the same limits as the auditor.
    pub(crate) async fn start_with(limits: Limits) -> Self {
        Self::start_in(TempDir::new().unwrap(), limits).await
    }

    /// Starts with the store in a directory.
    pub(crate) async fn start_in(dir: TempDir, limits: Limits) -> Self {
        let server = Server::start(ServerConfig::default()).await.unwrap();
        let mesh = Mesh::connect(&Config::at(server.client_url())).await.unwrap();
        let topology = Arc::new(Topology::new(&TopologyConfig::default()).unwrap());
        mesh.ensure(&topology).await.unwrap();
        let engine = open(&dir, &limits);
        let stores = engine.stores();
        let author = stores
            .users
            .intern(&[UserId::new("author").unwrap()])
            .await
            .unwrap()[0];
        let auditor = Auditor {
            mesh: mesh.clone(),
            topology: topology.clone(),
            users: stores.users.clone(),
            posts: stores.posts.clone(),
            timelines: stores.timelines.clone(),
            ledger: stores.ledger.clone(),
            totals: stores.totals.clone(),
            dead_letters: stores.dead_letters.clone(),
            limits,
        };
        Self {
            mesh,
            topology,
            stores,
            auditor,
            author,
            _engine: engine,
            server,
            _dir: dir,
        }
    }

    /// The keys of users; interns new users. New users get keys in the order of `numbers`.
    pub(crate) async fn intern_users(&self, numbers: &[u32]) -> Recipients {
        let ids: Vec<_> = numbers.iter().map(|number| user(*number)).collect();
        let mut keys = self.stores.users.intern(&ids).await.unwrap();
        keys.sort_unstable();
        Recipients::from_sorted(keys)
    }

    /// Publishes a post to POSTS, and counts it.
    pub(crate) async fn accept(&self) -> Post {
        let post = self.accept_uncounted().await;
        let counts = Counts {
            posts: 1,
            ..Counts::default()
        };
        self.commit_totals("TEST_POSTS", post.id, counts).await;
        post
    }

    /// Publishes a post to POSTS.
    pub(crate) async fn accept_uncounted(&self) -> Post {
        let now = Timestamp::now();
        let message = PostCreated {
            author_key: self.author.0,
            author_id: "author".into(),
            request_id: uuid::Uuid::new_v4().to_string(),
            text: "hello".into(),
            accepted_at_us: now.0,
            push_ttl_seconds: 3_600,
            ..PostCreated::default()
        };
        let published = self
            .mesh
            .publish(Subject::PostCreated(LANE), None, &message)
            .await
            .unwrap();
        Post {
            id: PostId(published.sequence),
            author: self.author,
            author_id: UserId::new("author").unwrap(),
            request_id: message.request_id,
            text: message.text,
            links: Vec::new(),
            media_urls: Vec::new(),
            lane: LANE,
            accepted_at: now,
            push_ttl: Duration::from_hours(1),
            push: PushContent::default(),
            deleted_at: None,
        }
    }

    pub(crate) async fn archive(&self, post: &Post) {
        self.stores
            .posts
            .archive(&[Archived::Created(post.clone())])
            .await
            .unwrap();
    }

    pub(crate) async fn plan(&self, post: PostId, chunks: &[(Channel, &Recipients)]) {
        let chunks = chunks.iter().map(|(channel, recipients)| ChunkPlan {
            channel: *channel,
            recipients: (*recipients).clone(),
        });
        let plan = SlicePlan {
            post,
            author: self.author,
            slice: 0,
            version: FollowVersion(1),
            chunks: chunks.collect(),
            next_after: None,
        };
        self.stores.ledger.plan(plan).await.unwrap();
    }

    pub(crate) async fn put_on_timelines(&self, post: PostId, recipients: &Recipients) {
        self.stores
            .timelines
            .deliver(post, recipients.clone())
            .await
            .unwrap()
            .durable
            .await
            .unwrap();
    }

    pub(crate) async fn settle(
        &self,
        post: PostId,
        channel: Channel,
        recipients: &Recipients,
        outcome: Outcome,
    ) {
        let base = match outcome {
            Outcome::Delivered { .. } => ExpectedRevision::Any,
            Outcome::Mixed { .. } => ExpectedRevision::Revision(0),
        };
        let settlement = Settlement {
            post,
            channel,
            chunk: recipients.chunk_id(),
            base,
            outcome,
            at: Timestamp::now(),
            keep_claim: None,
        };
        self.stores.ledger.settle(&settlement).await.unwrap();
    }

    /// Adds delivered counts to the totals of a post.
    pub(crate) async fn add_totals(&self, post: PostId, timeline: i64, push: i64) {
        let counts = Counts {
            timeline_delivered: timeline,
            push_delivered: push,
            ..Counts::default()
        };
        self.commit_totals("TEST", post, counts).await;
    }

    async fn commit_totals(&self, stream: &str, post: PostId, counts: Counts) {
        let totals = PostTotals {
            author: self.author,
            counts,
            timeline_latency_ms_max: 0,
            push_latency_ms_max: 0,
        };
        let batch = TotalsBatch {
            stream: stream.into(),
            sequences: vec![post.0],
            file: format!("{stream}-{post}"),
            posts: vec![(post, totals)],
            ..TotalsBatch::default()
        };
        let leases = &self.stores.leases;
        let owner = leases
            .acquire("analytics/test", "test", LIMIT)
            .await
            .unwrap()
            .unwrap();
        self.stores.totals.intend(&batch.file, &owner).await.unwrap();
        self.stores.totals.commit(&batch).await.unwrap();
    }

    /// Creates a post that is delivered to the timelines of some users, without discrepancies.
    pub(crate) async fn delivered_post(&self, numbers: &[u32]) -> (Post, Recipients) {
        let post = self.accept().await;
        let recipients = self.intern_users(numbers).await;
        self.archive(&post).await;
        self.plan(post.id, &[(Channel::Timeline, &recipients)]).await;
        self.put_on_timelines(post.id, &recipients).await;
        let count = recipients.len();
        self.settle(
            post.id,
            Channel::Timeline,
            &recipients,
            Outcome::Delivered { count },
        )
        .await;
        self.add_totals(post.id, count.into(), 0).await;
        (post, recipients)
    }

    /// Removes all messages before a post from POSTS, as the stream limits do.
    pub(crate) async fn purge_before(&self, post: PostId) {
        let client = async_nats::connect(self.server.client_url()).await.unwrap();
        let broker = async_nats::jetstream::new(client);
        let posts = broker.get_stream(streams::POSTS).await.unwrap();
        posts.purge().sequence(post.0).await.unwrap();
    }

    /// Acknowledges all messages of all consumers without processing them.
    pub(crate) async fn drain(&self) {
        let stop = CancellationToken::new();
        let mut consuming = JoinSet::new();
        for spec in self.topology.consumers.clone() {
            let (mesh, stop) = (self.mesh.clone(), stop.clone());
            consuming.spawn(async move {
                mesh.consume(
                    &spec,
                    Arc::new(FixedHandler(Disposition::Ack)),
                    ConsumeOptions::default(),
                    stop,
                )
                .await
            });
        }
        let drained = async {
            loop {
                let lag = self.mesh.lag(&self.topology).await.unwrap();
                let mut consumers = lag.iter().flat_map(|stream| &stream.consumers);
                if consumers.all(|consumer| consumer.outstanding_count() == 0) {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(LIMIT, drained).await.unwrap();
        stop.cancel();
        while let Some(ended) = consuming.join_next().await {
            ended.unwrap().unwrap();
        }
    }

    /// Runs an audit and collects its findings.
    pub(crate) async fn audit(&self, scope: Scope, repair: bool) -> (Summary, Vec<Finding>) {
        let (events, mut receiver) = mpsc::channel(16);
        let collecting = async {
            let mut findings = Vec::new();
            while let Some(event) = receiver.recv().await {
                if let Event::Finding(finding) = event {
                    findings.push(finding);
                }
            }
            findings
        };
        let auditing = async {
            let summary = self.auditor.run(scope, repair, &events).await.unwrap();
            drop(events);
            summary
        };
        tokio::time::timeout(LIMIT, async { tokio::join!(auditing, collecting) })
            .await
            .unwrap()
    }
}

/// Settles all messages with one disposition.
struct FixedHandler(Disposition);

#[async_trait]
impl Handler for FixedHandler {
    async fn handle(&self, _: &Delivery) -> Disposition {
        self.0.clone()
    }
}

impl World {
    /// Settles all messages of a consumer with one disposition until a stream has a number of messages.
    pub(crate) async fn settle_all(
        &self,
        consumer: &str,
        disposition: Disposition,
        stream: &str,
        messages: u64,
    ) {
        let reached = async || self.mesh.last_sequence(stream).await.unwrap() >= messages;
        self.settle_until(consumer, disposition, reached).await;
    }

    /// Number of deliveries of a consumer.
    pub(crate) async fn deliveries_of(&self, consumer: &str) -> u64 {
        let lag = self.mesh.lag(&self.topology).await.unwrap();
        let mut consumers = lag.iter().flat_map(|stream| &stream.consumers);
        consumers
            .find(|found| found.consumer == consumer)
            .unwrap()
            .delivered_count
    }

    /// Settles all messages of a consumer with one disposition until a condition holds.
    pub(crate) async fn settle_until(
        &self,
        consumer: &str,
        disposition: Disposition,
        mut holds: impl AsyncFnMut() -> bool,
    ) {
        let stop = CancellationToken::new();
        let spec = self.topology.consumer(consumer).unwrap().clone();
        let (mesh, stopped) = (self.mesh.clone(), stop.clone());
        let handler = Arc::new(FixedHandler(disposition));
        let consuming = tokio::spawn(async move {
            mesh.consume(&spec, handler, ConsumeOptions::default(), stopped)
                .await
        });
        let reached = async {
            while !holds().await {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(LIMIT, reached).await.unwrap();
        stop.cancel();
        consuming.await.unwrap().unwrap();
    }
}

/// Receives and acknowledges the next message of a consumer.
pub(crate) async fn next_delivery(world: &World, consumer: &str) -> Delivery {
    struct Forward(mpsc::Sender<Delivery>);

    #[async_trait]
    impl Handler for Forward {
        async fn handle(&self, delivery: &Delivery) -> Disposition {
            self.0.send(delivery.clone()).await.unwrap();
            Disposition::Ack
        }
    }

    let (sender, mut receiver) = mpsc::channel(16);
    let stop = CancellationToken::new();
    let spec = world.topology.consumer(consumer).unwrap().clone();
    let (mesh, stopped) = (world.mesh.clone(), stop.clone());
    let consuming = tokio::spawn(async move {
        mesh.consume(
            &spec,
            Arc::new(Forward(sender)),
            ConsumeOptions::default(),
            stopped,
        )
        .await
    });
    let delivery = tokio::time::timeout(LIMIT, receiver.recv())
        .await
        .unwrap()
        .unwrap();
    stop.cancel();
    consuming.await.unwrap().unwrap();
    delivery
}
