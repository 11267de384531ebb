//! A nats-server with the streams, and an embedded store.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::TryStreamExt as _;
use herald_local_nats::{Config as ServerConfig, Server};
use herald_mesh::{
    Config, ConsumeOptions, ConsumerSpec, Delivery, Disposition, Handler, Mesh, Redrive, Subject, Topology,
    TopologyConfig, consumers::ConsumerKind, streams,
};
use herald_model::{Lane, Post, PostId, UserId, UserKey, time::Timestamp};
use herald_proto::{mesh_v1, v1};
use herald_store::{
    Archived, Cause, DeadLetter, DeadLetterId, DeadLetterState, Erasure, MessageRef, Payload,
    embedded::{self, Embedded},
};
use herald_user_data::UserData;
use prost::Message as _;
use tempfile::TempDir;
use tokio_util::sync::{CancellationToken, DropGuard};

pub(crate) const LIMIT: Duration = Duration::from_mins(1);
pub(crate) const AUTHOR: &str = "marmalade";
pub(crate) const OTHER: &str = "quince";

pub(crate) struct World {
    pub(crate) user_data: UserData,
    stop: CancellationToken,
    stopped: DropGuard,
    store: Embedded,
    server: Server,
    dir: TempDir,
}

fn open(dir: &TempDir) -> Embedded {
    let config = embedded::Config {
        data_dir: dir.path().to_owned(),
        ..embedded::Config::default()
    };
    Embedded::open(&config).unwrap()
}

/// Settles each message.
struct Settle;

#[async_trait]
impl Handler for Settle {
    async fn handle(&self, _: &Delivery) -> Disposition {
        Disposition::Ack
    }
}

impl World {
    pub(crate) async fn start() -> Self {
        let dir = TempDir::new().unwrap();
        let server = Server::start(ServerConfig::default()).await.unwrap();
        let mesh = Mesh::connect(&Config::at(server.client_url())).await.unwrap();
        let topology = Arc::new(Topology::new(&TopologyConfig::default()).unwrap());
        mesh.ensure(&topology).await.unwrap();
        let store = open(&dir);
        let stop = CancellationToken::new();
        Self {
            user_data: UserData {
                mesh,
                topology,
                stores: store.stores(),
            },
            stopped: stop.clone().drop_guard(),
            stop,
            store,
            server,
            dir,
        }
    }

    /// Makes a post in the archive undecodable, while the store is closed.
    pub(crate) fn damage(self, post: PostId) -> Self {
        let Self {
            user_data:
                UserData {
                    mesh,
                    topology,
                    stores,
                },
            stop,
            stopped,
            store,
            server,
            dir,
        } = self;
        drop(stores);
        store.close().unwrap();
        drop(store);
        {
            let database = fjall::Database::builder(dir.path().join("records"))
                .open()
                .unwrap();
            let posts = database
                .keyspace("posts", fjall::KeyspaceCreateOptions::default)
                .unwrap();
            let key = post.0.to_be_bytes();
            assert!(posts.get(key).unwrap().is_some(), "post {post} is in the archive");
            posts.insert(key, [0xff; 3]).unwrap();
            database.persist(fjall::PersistMode::SyncAll).unwrap();
        }
        let store = open(&dir);
        Self {
            user_data: UserData {
                mesh,
                topology,
                stores: store.stores(),
            },
            stop,
            stopped,
            store,
            server,
            dir,
        }
    }

    /// Publishes and archives a post; without the key of its author, as a gateway does while the store is away.
    pub(crate) async fn post(&self, author: &str, has_key: bool) -> Post {
        let id = UserId::new(author).unwrap();
        let keys = self.user_data.stores.users.intern(&[id]).await.unwrap();
        let message = mesh_v1::PostCreated {
            author_key: if has_key { keys[0].0 } else { 0 },
            author_id: author.into(),
            request_id: "request".into(),
            text: "text".into(),
            lane: v1::Lane::Normal.into(),
            accepted_at_us: Timestamp::now().0,
            ..mesh_v1::PostCreated::default()
        };
        let subject = Subject::PostCreated(Lane::Normal);
        let published = self
            .user_data
            .mesh
            .publish(subject, None, &message)
            .await
            .unwrap();
        let payload = message.encode_to_vec().into();
        let entry = herald_posts::entry(subject, published.sequence, payload).unwrap();
        let Archived::Created(mut post) = entry else {
            panic!("a post")
        };
        post.author = keys[0];
        let entry = Archived::Created(post.clone());
        self.user_data.stores.posts.archive(&[entry]).await.unwrap();
        post.author = UserKey(message.author_key);
        post
    }

    /// Publishes a copy of a post to REDRIVE.
    pub(crate) async fn redrive(&self, post: &Post) {
        let redrive = Redrive {
            kind: ConsumerKind::Archive,
            dead_letter: 0,
            round: 0,
            subject: Subject::PostCreated(post.lane),
            sequence: post.id.0,
            published_at: post.accepted_at,
            payload: herald_posts::created_message(post).encode_to_vec().into(),
            trace_parent: None,
            trace_state: None,
            id: format!("redrive/{}", post.id),
        };
        self.user_data.mesh.redrive(&redrive).await.unwrap();
    }

    /// Publishes a dead letter of a post to DLQ, and writes it to the store.
    pub(crate) async fn dead_letter(&self, post: &Post) {
        let subject = Subject::PostCreated(post.lane).to_string();
        let entry = mesh_v1::DlqEntry {
            stream: streams::POSTS.into(),
            consumer: "archive".into(),
            kind: "archive".into(),
            sequence: post.id.0,
            original_sequence: post.id.0,
            subject: subject.clone(),
            payload: herald_posts::created_message(post).encode_to_vec().into(),
            payload_state: v1::DeadLetterPayload::Kept.into(),
            post_id: post.id.0,
            author_key: post.author.0,
            published_at_us: post.accepted_at.0,
            ..mesh_v1::DlqEntry::default()
        };
        let id = format!("POSTS/archive/{}", post.id);
        let published = self
            .user_data
            .mesh
            .publish_dead_letter(streams::POSTS, "archive", &id, &entry)
            .await
            .unwrap();
        let at = Timestamp::now();
        let dead_letter = DeadLetter {
            id: DeadLetterId(published.sequence),
            origin: MessageRef {
                stream: streams::POSTS.into(),
                consumer: "archive".into(),
                sequence: post.id.0,
            },
            kind: "archive".into(),
            original_sequence: post.id.0,
            subject,
            message_type: "herald.mesh.v1.PostCreated".into(),
            cause: Cause::Terminated,
            reason: "failed".into(),
            group: 7,
            group_reason: "failed".into(),
            attempts: 1,
            published_at: post.accepted_at,
            first_failed_at: at,
            last_failed_at: at,
            stored_at: at,
            post: Some(post.id),
            author: Some(post.author).filter(|author| *author != herald_posts::NO_KEY),
            channel: None,
            chunk: None,
            lane: Some(post.lane),
            recipients: 0,
            trace_id: String::new(),
            pushes_expire_at: None,
            payload: Payload::Kept,
            payload_bytes: entry.payload.len() as u64,
            state: DeadLetterState::Open,
            round: 0,
            redrive: None,
            operations: Vec::new(),
            redrive_sequence: 0,
            updated_at: at,
        };
        let inserted = self.user_data.stores.dead_letters.insert(&[dead_letter]).await;
        assert!(inserted.unwrap()[0].new);
    }

    /// Settles all messages of all consumers, from now on.
    pub(crate) fn settle_all(&self) {
        self.settle(|_| true);
    }

    /// Settles all messages of some consumers, from now on.
    pub(crate) fn settle(&self, selects: impl Fn(&ConsumerSpec) -> bool) {
        for spec in self
            .user_data
            .topology
            .consumers
            .iter()
            .filter(|one| selects(one))
        {
            let (mesh, spec, stop) = (self.user_data.mesh.clone(), spec.clone(), self.stop.clone());
            tokio::spawn(async move {
                mesh.consume(&spec, Arc::new(Settle), ConsumeOptions::default(), stop)
                    .await
            });
        }
    }

    pub(crate) async fn begin(&self) -> Erasure {
        let id = UserId::new(AUTHOR).unwrap();
        self.user_data.begin(&id, "operator").await.unwrap().unwrap()
    }

    /// The sequences of the messages of a stream.
    pub(crate) async fn sequences(&self, stream: &str) -> Vec<u64> {
        let messages = self.user_data.mesh.scan(stream, None, 1, u64::MAX);
        let sequences = messages.map_ok(|message| message.sequence);
        sequences.try_collect().await.unwrap()
    }

    /// Waits until the archive has the deletion of a post.
    pub(crate) async fn until_deleted(&self, post: PostId) {
        let waiting = async {
            let mut ticks = tokio::time::interval(Duration::from_millis(20));
            loop {
                ticks.tick().await;
                let posts = self.user_data.stores.posts.get(&[post]).await.unwrap();
                if posts.into_iter().flatten().any(|post| post.deleted_at.is_some()) {
                    return;
                }
            }
        };
        tokio::time::timeout(LIMIT, waiting).await.unwrap();
    }
}
