//! Starts nats-server, the embedded store, a push sink and the push service; dropping the harness stops them.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use herald_local_nats::Server;
use herald_mesh::{
    Mesh, Redrive, RetryDelay, Subject, Topology, TopologyConfig,
    consumers::{self, ConsumerKind},
    streams,
};
use herald_model::{
    Address, Channel, Device, FollowVersion, Lane, Post, PostId, PushContent, Recipients, UserId, UserKey,
    time::Timestamp,
};
use herald_proto::{mesh_v1, v1};
use herald_push::{Config, Deps, Error, Metrics, Vapid, run};
use herald_push_endpoint::Policy;
use herald_push_sink::Running;
use herald_runtime::metrics::Shared;
use herald_store::{
    Archived, ChannelCounts, ChunkPlan, RecipientStatus, SlicePlan, Stores,
    embedded::{self, Embedded},
};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Timeout of [`until`].
const TIMEOUT: Duration = Duration::from_secs(30);

/// The author of all posts.
pub(crate) const AUTHOR: &str = "author";

pub(crate) struct Herald {
    pub(crate) mesh: Mesh,
    pub(crate) stores: Stores,
    pub(crate) sink: Running,
    pub(crate) vapid: Vapid,
    pub(crate) metrics: Shared,
    topology: Arc<Topology>,
    config: Config,
    shutdown: CancellationToken,
    pub(crate) service: Option<JoinHandle<Result<(), Error>>>,
    _store: Embedded,
    _server: Server,
    _data: TempDir,
}

/// A published chunk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Published {
    pub(crate) post: PostId,
    pub(crate) sequence: u64,
}

pub(crate) fn local() -> Config {
    Config {
        endpoints: Policy {
            allow_http: true,
            allow_private: true,
        },
        retry_delay_ms_base: 1_000,
        ..Config::default()
    }
}

/// Opens the store in a directory; creates it if it does not exist.
pub(crate) fn open(data: &TempDir) -> Embedded {
    Embedded::open(&embedded::Config {
        data_dir: data.path().join("store"),
        disk_free_mb_min: 0,
        ..embedded::Config::default()
    })
    .unwrap()
}

impl Herald {
    /// Starts everything, with a push service that may call loopback addresses.
    pub(crate) async fn start() -> Self {
        Self::start_with(local(), TopologyConfig::default()).await
    }

    pub(crate) async fn start_with(config: Config, topology: TopologyConfig) -> Self {
        let mut herald = Box::pin(Self::prepare(config, topology)).await;
        herald.serve();
        herald
    }

    /// Starts everything except the push service.
    pub(crate) async fn prepare(config: Config, topology: TopologyConfig) -> Self {
        Box::pin(Self::prepare_in(tempfile::tempdir().unwrap(), config, topology)).await
    }

    /// Starts everything except the push service, on the store in `data`.
    pub(crate) async fn prepare_in(data: TempDir, config: Config, topology: TopologyConfig) -> Self {
        let server = Server::start(herald_local_nats::Config::default()).await.unwrap();
        let mesh = Mesh::connect(&herald_mesh::Config::at(server.client_url()))
            .await
            .unwrap();
        let retry = RetryDelay {
            delay_ms_base: 20,
            delay_ms_max: 50,
        };
        let consumers = topology.consumers.each(|policy| policy.retry = retry);
        let topology = Arc::new(
            Topology::new(&TopologyConfig {
                consumers,
                ..topology
            })
            .unwrap(),
        );
        mesh.ensure(&topology).await.unwrap();
        let store = open(&data);
        let vapid = Vapid::load(&config, data.path()).unwrap();
        let sink = Running::start().await.unwrap();
        sink.expect_vapid_key(vapid.public_key().to_vec());
        Self {
            mesh,
            stores: store.stores(),
            sink,
            vapid,
            metrics: Shared::new(),
            topology,
            config,
            shutdown: CancellationToken::new(),
            service: None,
            _store: store,
            _server: server,
            _data: data,
        }
    }

    pub(crate) fn serve(&mut self) {
        let deps = Deps {
            mesh: self.mesh.clone(),
            topology: self.topology.clone(),
            lanes: herald_model::Lane::ALL.into(),
            users: self.stores.users.clone(),
            devices: self.stores.devices.clone(),
            preferences: self.stores.preferences.clone(),
            posts: self.stores.posts.clone(),
            ledger: self.stores.ledger.clone(),
            vapid: self.vapid.clone(),
            metrics: self.metrics.register(Metrics::new),
        };
        self.service = Some(tokio::spawn(run(
            self.config.clone(),
            deps,
            self.shutdown.clone(),
        )));
    }

    /// Makes the delay queue refuse messages, as on a server without schedules. Call it before [`serve`](Self::serve).
    pub(crate) fn disable_delay_queue(&mut self) {
        let mut topology = Topology::clone(&self.topology);
        for consumer in &mut topology.consumers {
            if let Some(limits) = &mut consumer.delay_limits {
                limits.bytes_max = 0;
            }
        }
        self.topology = Arc::new(topology);
    }

    /// Shuts the service down and waits until it has ended.
    pub(crate) async fn stop(&mut self) {
        self.shutdown.cancel();
        self.service.take().unwrap().await.unwrap().unwrap();
    }

    pub(crate) async fn user(&self, id: &str) -> UserKey {
        self.stores
            .users
            .intern(&[UserId::new(id).unwrap()])
            .await
            .unwrap()[0]
    }

    /// Registers a webhook of this name for a user.
    pub(crate) async fn webhook(&self, user: UserKey, name: &str) -> Device {
        let webhook = self.sink.webhook(name);
        let address = Address::Webhook {
            url: webhook.url,
            secret: webhook.secret_bytes,
        };
        self.stores
            .devices
            .register(user, address, Timestamp::now())
            .await
            .unwrap()
    }

    /// Registers a browser of this name for a user.
    pub(crate) async fn browser(&self, user: UserKey, name: &str) -> Device {
        let subscription = self.sink.subscription(name);
        let address = Address::WebPush {
            endpoint: subscription.endpoint,
            p256dh: subscription.p256dh,
            auth: subscription.auth,
        };
        self.stores
            .devices
            .register(user, address, Timestamp::now())
            .await
            .unwrap()
    }

    /// Publishes an accepted post without archiving it.
    pub(crate) async fn post(&self, text: &str) -> PostId {
        let created = mesh_v1::PostCreated {
            author_key: self.user(AUTHOR).await.0,
            author_id: AUTHOR.into(),
            text: text.into(),
            links: vec!["https://example.com/".into()],
            lane: v1::Lane::Normal.into(),
            accepted_at_us: Timestamp::now().0,
            ..mesh_v1::PostCreated::default()
        };
        let published = self
            .mesh
            .publish(Subject::PostCreated(Lane::Normal), None, &created)
            .await
            .unwrap();
        PostId(published.sequence)
    }

    /// Archives a post.
    pub(crate) async fn archive(&self, post: PostId, text: &str) {
        let post = Post {
            id: post,
            author: self.user(AUTHOR).await,
            author_id: UserId::new(AUTHOR).unwrap(),
            request_id: format!("request-{post}"),
            text: text.into(),
            links: vec![],
            media_urls: vec![],
            lane: Lane::Normal,
            accepted_at: Timestamp::now(),
            push_ttl: Duration::from_hours(1),
            push: PushContent::default(),
            deleted_at: None,
        };
        self.stores
            .posts
            .archive(&[Archived::Created(post)])
            .await
            .unwrap();
    }

    /// Deletes a post in the archive.
    pub(crate) async fn delete(&self, post: PostId) {
        self.stores
            .posts
            .archive(&[Archived::Deleted {
                post,
                at: Timestamp::now(),
            }])
            .await
            .unwrap();
    }

    /// Plans and publishes a chunk that expires in an hour.
    pub(crate) async fn push(&self, post: PostId, users: &[UserKey]) -> Published {
        self.push_until(post, users, Timestamp::now().plus(Duration::from_hours(1)))
            .await
    }

    pub(crate) async fn push_until(
        &self,
        post: PostId,
        users: &[UserKey],
        expires_at: Timestamp,
    ) -> Published {
        let recipients = Recipients::from_sorted(users.iter().copied());
        assert_eq!(recipients.len() as usize, users.len(), "the users must ascend");
        let chunk = ChunkPlan {
            channel: Channel::Push,
            recipients: recipients.clone(),
        };
        let plan = SlicePlan {
            post,
            author: UserKey(1),
            slice: 0,
            version: FollowVersion(1),
            chunks: vec![chunk],
            next_after: None,
        };
        self.stores.ledger.plan(plan).await.unwrap();
        let message = mesh_v1::PushChunk {
            post_id: post.0,
            author_key: self.user(AUTHOR).await.0,
            accepted_at_us: Timestamp::now().0,
            chunk_id: recipients.chunk_id().0,
            recipients: recipients.as_bytes().clone(),
            recipient_count: recipients.len(),
            expires_at_us: expires_at.0,
            retry_generation: 0,
        };
        let id = format!("{post}/push/{}", recipients.chunk_id());
        let subject = Subject::PushDeliver(Lane::Normal);
        let published = self.mesh.publish(subject, Some(&id), &message).await.unwrap();
        Published {
            post,
            sequence: published.sequence,
        }
    }

    /// Waits until no recipient of a chunk is pending and all messages are acknowledged or terminated, and returns the
    /// counts of the post.
    pub(crate) async fn settled(&self, chunk: Published) -> ChannelCounts {
        until(async || self.counts(chunk.post).await.pending == 0).await;
        let last = self.mesh.last_sequence(streams::PUSH).await.unwrap();
        self.acknowledged(last).await;
        self.counts(chunk.post).await
    }

    /// Number of messages in the delay queue.
    pub(crate) async fn delayed_count(&self) -> u64 {
        let lag = self.mesh.lag(&self.topology).await.unwrap();
        lag.iter()
            .filter(|lag| lag.stream == streams::LATER)
            .map(|lag| lag.message_count)
            .sum()
    }

    /// What the ledger has about the recipients of a post.
    pub(crate) async fn recipients(&self, post: PostId) -> Vec<RecipientStatus> {
        let ledger = &self.stores.ledger;
        let listed = ledger.recipients(post, Channel::Push, None, None, 1_000).await;
        listed.unwrap()
    }

    /// Waits until the messages of the normal lane up to `sequence` are acknowledged or terminated.
    pub(crate) async fn acknowledged(&self, sequence: u64) {
        let consumer = consumers::push(Lane::Normal);
        until(async || self.mesh.ack_floor(streams::PUSH, consumer).await.unwrap() >= sequence).await;
    }

    pub(crate) async fn counts(&self, post: PostId) -> ChannelCounts {
        let counts = self.stores.ledger.counts(post).await.unwrap().unwrap().push;
        let sum = counts.delivered + counts.suppressed + counts.expired + counts.pending + counts.dead;
        assert_eq!(counts.targeted, sum);
        counts
    }

    /// The chunks of all events published so far.
    pub(crate) async fn events(&self) -> Vec<mesh_v1::SettledChunk> {
        let mut events = Vec::new();
        for sequence in 1..=self.mesh.last_sequence(streams::EVENTS).await.unwrap() {
            let message = self
                .mesh
                .message(streams::EVENTS, sequence)
                .await
                .unwrap()
                .unwrap();
            let event: mesh_v1::DeliveriesSettled = message.decode().unwrap();
            events.extend(event.chunks);
        }
        events
    }

    /// The advisories of messages terminated so far.
    pub(crate) async fn reasons(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        for sequence in 1..=self.mesh.last_sequence(streams::ADVISORIES).await.unwrap() {
            let message = self
                .mesh
                .message(streams::ADVISORIES, sequence)
                .await
                .unwrap()
                .unwrap();
            reasons.push(String::from_utf8(message.payload.to_vec()).unwrap());
        }
        reasons
    }

    /// Redrives the message of a chunk, as the deadletter service does.
    pub(crate) async fn redrive(&self, chunk: Published, round: u32) -> u64 {
        let message = self
            .mesh
            .message(streams::PUSH, chunk.sequence)
            .await
            .unwrap()
            .unwrap();
        let redrive = Redrive {
            kind: ConsumerKind::Push,
            dead_letter: 1,
            round,
            subject: Subject::PushDeliver(Lane::Normal),
            sequence: chunk.sequence,
            published_at: Timestamp::now(),
            payload: message.payload,
            trace_parent: None,
            trace_state: None,
            id: format!("dlq/1/redrive/{round}"),
        };
        self.mesh.redrive(&redrive).await.unwrap().sequence
    }

    /// Whether the redriven message of this sequence is acknowledged or terminated.
    pub(crate) async fn redriven(&self, sequence: u64) -> bool {
        let consumer = consumers::redrive(ConsumerKind::Push);
        self.mesh.ack_floor(streams::REDRIVE, consumer).await.unwrap() >= sequence
    }

    /// Number of pushes that each device received.
    pub(crate) fn received(&self) -> HashMap<String, usize> {
        let mut received = HashMap::new();
        for entry in self.sink.entries() {
            *received.entry(entry.name).or_default() += 1;
        }
        received
    }
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

/// The counts as `[delivered, suppressed, expired, pending, dead]`.
pub(crate) fn numbers(counts: ChannelCounts) -> [u64; 5] {
    [
        counts.delivered,
        counts.suppressed,
        counts.expired,
        counts.pending,
        counts.dead,
    ]
}
