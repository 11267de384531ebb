//! Posts are accepted while the store can't be reached, and none of them twice.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use async_nats::{
    HeaderMap,
    header::{NATS_EXPECTED_LAST_SEQUENCE, NATS_MESSAGE_ID},
    jetstream::{self, context::PublishErrorKind},
};
use async_trait::async_trait;
use futures::FutureExt as _;
use herald_mesh::TopologyConfig;
use herald_model::{Post, PostId, UserId, UserKey, time::Timestamp};
use herald_proto::v1;
use herald_store::{Archived, ErrorKind, KeyUse, Posts, Result, Stores, Users};
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::{
    harness::{Setup, World, reason, submit, wait_until},
    quotas::with_quota,
    startup::post,
};

/// A store that can be away.
#[derive(Default)]
struct Switch(AtomicBool);

impl Switch {
    fn check(&self) -> Result<()> {
        if self.0.load(Ordering::SeqCst) {
            return Err(herald_store::Error::new(
                ErrorKind::Unavailable,
                "the database is away",
            ));
        }
        Ok(())
    }

    fn turn(&self, away: bool) {
        self.0.store(away, Ordering::SeqCst);
    }
}

struct AwayPosts(Arc<dyn Posts>, Arc<Switch>);

#[async_trait]
impl Posts for AwayPosts {
    async fn archive(&self, entries: &[Archived]) -> Result<()> {
        self.1.check()?;
        self.0.archive(entries).await
    }

    async fn get(&self, posts: &[PostId]) -> Result<Vec<Option<Post>>> {
        self.1.check()?;
        self.0.get(posts).await
    }

    async fn newest_by_author(&self, author: UserKey, up_to: PostId, limit: usize) -> Result<Vec<PostId>> {
        self.1.check()?;
        self.0.newest_by_author(author, up_to, limit).await
    }

    async fn find_by_request(&self, author: UserKey, request_id: &str) -> Result<Option<PostId>> {
        self.1.check()?;
        self.0.find_by_request(author, request_id).await
    }

    /// As of an engine that can't be reached.
    async fn capacity(&self) -> Result<()> {
        Ok(())
    }

    async fn last(&self) -> Result<Option<PostId>> {
        self.1.check()?;
        self.0.last().await
    }

    async fn first_since(&self, moment: Timestamp) -> Result<PostId> {
        self.1.check()?;
        self.0.first_since(moment).await
    }

    async fn list(&self, after: Option<PostId>, limit: usize) -> Result<Vec<PostId>> {
        self.1.check()?;
        self.0.list(after, limit).await
    }

    async fn of_author(&self, author: UserKey, after: Option<PostId>, limit: usize) -> Result<Vec<PostId>> {
        self.1.check()?;
        self.0.of_author(author, after, limit).await
    }

    async fn erase_texts(&self, posts: &[PostId]) -> Result<u64> {
        self.1.check()?;
        self.0.erase_texts(posts).await
    }

    async fn erase_damaged(&self, author: UserKey, posts: &[PostId], at: Timestamp) -> Result<Vec<PostId>> {
        self.1.check()?;
        self.0.erase_damaged(author, posts, at).await
    }
}

struct AwayUsers(Arc<dyn Users>, Arc<Switch>);

#[async_trait]
impl Users for AwayUsers {
    async fn find(&self, ids: &[UserId]) -> Result<Vec<Option<UserKey>>> {
        self.1.check()?;
        self.0.find(ids).await
    }

    async fn intern(&self, ids: &[UserId]) -> Result<Vec<UserKey>> {
        self.1.check()?;
        self.0.intern(ids).await
    }

    async fn ids(&self, keys: &[UserKey]) -> Result<Vec<Option<UserId>>> {
        self.1.check()?;
        self.0.ids(keys).await
    }

    async fn last_key(&self) -> Result<Option<UserKey>> {
        self.1.check()?;
        self.0.last_key().await
    }

    fn cached_key(&self, id: &UserId) -> Option<UserKey> {
        self.0.cached_key(id)
    }

    fn use_keys(&self) -> KeyUse {
        self.0.use_keys()
    }
}

/// Request ids.
const BEFORE: &str = "6b1e7f0c-1f5d-4a3e-9d55-0c7f6b1b2a10";
const CHOSEN: &str = "6b1e7f0c-1f5d-4a3e-9d55-0c7f6b1b2a11";

fn request(text: &str, request_id: &str) -> v1::SubmitPostRequest {
    v1::SubmitPostRequest {
        request_id: request_id.into(),
        ..submit("107", text)
    }
}

/// Starts a gateway whose broker forgets a request after two seconds, and the switch that takes the store away.
async fn start() -> (World, Arc<Switch>) {
    start_with(Setup::default().config).await
}

async fn start_with(config: herald_gateway::Config) -> (World, Arc<Switch>) {
    let switch = Arc::new(Switch::default());
    let (posts, users) = (switch.clone(), switch.clone());
    let world = World::start_with(Setup {
        config,
        topology: TopologyConfig {
            dedupe_window_seconds: 2,
            ..TopologyConfig::default()
        },
        wrap_posts: Some(Box::new(|inner| Arc::new(AwayPosts(inner, posts)))),
        wrap_users: Some(Box::new(|inner| Arc::new(AwayUsers(inner, users)))),
        ..Setup::default()
    })
    .await;
    (world, switch)
}

/// The message id by which the broker knows a post for the dedupe window.
struct BrokerId {
    broker: jetstream::Context,
    subject: String,
    headers: HeaderMap,
}

impl BrokerId {
    async fn of(world: &World, post_id: u64) -> Self {
        let client = async_nats::connect(world.server.client_url()).await.unwrap();
        let broker = jetstream::new(client);
        let stream = broker.get_stream("POSTS").await.unwrap();
        let message = stream.get_raw_message(post_id).await.unwrap();
        let id = message.headers.get(NATS_MESSAGE_ID).expect("a message id");
        let mut headers = HeaderMap::new();
        headers.insert(NATS_MESSAGE_ID, id.clone());
        headers.insert(NATS_EXPECTED_LAST_SEQUENCE, u64::MAX.to_string().as_str());
        Self {
            broker,
            subject: message.subject.to_string(),
            headers,
        }
    }

    /// Asks with a message that the broker never stores: it looks for the message id before it compares the sequence.
    async fn wait_until_forgotten(&self) {
        wait_until("the broker has forgotten the post", async || {
            let (subject, headers) = (self.subject.clone(), self.headers.clone());
            let sent = self
                .broker
                .publish_with_headers(subject, headers, "".into())
                .await;
            match sent.unwrap().await {
                Ok(known) => {
                    assert!(known.duplicate, "{known:?}");
                    false
                }
                Err(refused) => {
                    assert_eq!(refused.kind(), PublishErrorKind::WrongLastSequence, "{refused}");
                    true
                }
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn posts_are_accepted_once_while_the_store_is_away() {
    let (world, switch) = start().await;
    let send = async |request| world.posts().submit_post(request).await;
    let before = send(request("before", BEFORE)).await.unwrap().into_inner();
    BrokerId::of(&world, before.post_id)
        .await
        .wait_until_forgotten()
        .await;
    switch.turn(true);

    // A known author, with a request id of the gateway or of the caller.
    let generated = send(submit("107", "generated")).await.unwrap().into_inner();
    assert!(!generated.duplicate);
    let mut chosen = None;
    wait_until("a request of the caller is accepted", async || {
        chosen = send(request("chosen", CHOSEN)).await.ok();
        chosen.is_some()
    })
    .await;
    let chosen = chosen.unwrap().into_inner();
    BrokerId::of(&world, chosen.post_id)
        .await
        .wait_until_forgotten()
        .await;

    // Requests that the broker has forgotten get their posts back.
    for (text, id, post) in [
        ("before", BEFORE, before.post_id),
        ("chosen", CHOSEN, chosen.post_id),
    ] {
        let mut again = None;
        wait_until("a repeated request is answered", async || {
            again = send(request(text, id)).await.ok();
            again.is_some()
        })
        .await;
        let again = again.unwrap().into_inner();
        assert_eq!((again.post_id, again.duplicate), (post, true));
    }
    let reused = send(request("other", BEFORE)).await.unwrap_err();
    assert_eq!(reason(&reused), "REQUEST_ID_REUSED");

    // So is an author whose key the gateway does not know, also with a request id, and also once the broker has
    // forgotten.
    let stranger = |text: &str, request_id: &str| v1::SubmitPostRequest {
        request_id: request_id.into(),
        ..submit("stranger", text)
    };
    send(stranger("generated", "")).await.unwrap();
    let unknown = send(stranger("chosen", CHOSEN)).await.unwrap().into_inner();
    assert!(!unknown.duplicate);
    let again = send(stranger("chosen", CHOSEN)).await.unwrap().into_inner();
    assert_eq!((again.post_id, again.duplicate), (unknown.post_id, true));
    BrokerId::of(&world, unknown.post_id)
        .await
        .wait_until_forgotten()
        .await;
    let mut again = None;
    wait_until("a repeated request is answered", async || {
        again = send(stranger("chosen", CHOSEN)).await.ok();
        again.is_some()
    })
    .await;
    assert_eq!(again.unwrap().into_inner().post_id, unknown.post_id);

    // What needs the store is answered when it is back.
    let list = v1::ListPostsRequest {
        author_id: "107".into(),
        ..v1::ListPostsRequest::default()
    };
    let read = world.posts().list_posts(list).await.unwrap_err();
    let get = v1::GetPostRequest {
        post_id: before.post_id,
    };
    let got = world.posts().get_post(get).await.unwrap_err();
    for status in [read, got] {
        assert_eq!(
            (status.code(), reason(&status).as_str()),
            (Code::Unavailable, "STORE_UNAVAILABLE")
        );
        assert!(status.get_details_retry_info().is_some(), "{status:?}");
    }

    switch.turn(false);
    world.wait_until_archived().await;
    let found = world.key("stranger").await;
    let archived = world.stores.posts.get(&[PostId(unknown.post_id)]).await.unwrap();
    assert_eq!(archived[0].as_ref().unwrap().author, found);
    // The key is known now, and the store finds the request by it.
    let again = send(stranger("chosen", CHOSEN)).await.unwrap().into_inner();
    assert_eq!((again.post_id, again.duplicate), (unknown.post_id, true));
    let again = send(request("chosen", CHOSEN)).await.unwrap().into_inner();
    assert_eq!((again.post_id, again.duplicate), (chosen.post_id, true));
    world.stop().await.unwrap();
}

/// POSTS is empty beside a store with posts: new posts would have the ids of old ones.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_another_stream_is_refused_when_it_is_back() {
    let switch = Arc::new(Switch::default());
    let (posts, before) = (switch.clone(), switch.clone());
    let before = |stores: Stores| {
        async move {
            let old = Archived::Created(post(9));
            stores.posts.archive(&[old]).await.unwrap();
            before.turn(true);
        }
        .boxed()
    };
    let world = World::start_with(Setup {
        wrap_posts: Some(Box::new(|inner| Arc::new(AwayPosts(inner, posts)))),
        before: Some(Box::new(before)),
        await_ready: false,
        ..Setup::default()
    })
    .await;
    let mut refused = None;
    wait_until("the gateway serves calls", async || {
        let answer = world.posts().submit_post(submit("107", "text")).await;
        refused = answer
            .err()
            .filter(|status| status.message().contains("POSTS is empty"));
        refused.is_some()
    })
    .await;
    assert_eq!(reason(&refused.unwrap()), "STREAMS_DAMAGED");
    assert_eq!(world.readiness.failing()[0].name, "streams");
    switch.turn(false);
    wait_until("the streams are compared with the store", async || {
        let failing = world.readiness.failing();
        failing
            .iter()
            .any(|check| check.reason.contains("message 9 was seen in it"))
    })
    .await;
    let refused = world
        .posts()
        .submit_post(submit("107", "text"))
        .await
        .unwrap_err();
    assert_eq!(reason(&refused), "STREAMS_DAMAGED");
    world.stop().await.unwrap();
}

/// POSTS was made again or purged within the retention of request ids, so it does not tell whether a request was
/// accepted.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_only_the_store_can_tell_waits_for_it() {
    let (world, switch) = start().await;
    let send = async |request| world.posts().submit_post(request).await;
    let before = send(request("before", BEFORE)).await.unwrap().into_inner();
    wait_until("the post is archived", async || {
        let archived = world.stores.posts.get(&[PostId(before.post_id)]).await.unwrap();
        archived[0].is_some()
    })
    .await;
    let id = BrokerId::of(&world, before.post_id).await;
    let stream = id.broker.get_stream("POSTS").await.unwrap();
    stream.purge().await.unwrap();
    id.wait_until_forgotten().await;
    switch.turn(true);
    for _ in 0..3 {
        let refused = send(request("before", BEFORE)).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    }
    send(submit("107", "generated")).await.unwrap();
    switch.turn(false);
    let mut again = None;
    wait_until("the repeated request is answered", async || {
        again = send(request("before", BEFORE)).await.ok();
        again.is_some()
    })
    .await;
    let again = again.unwrap().into_inner();
    assert_eq!((again.post_id, again.duplicate), (before.post_id, true));
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn posts_beyond_the_quota_pass_while_the_store_is_away() {
    let (world, switch) = start_with(with_quota(1)).await;
    world.post("107", "the only one").await;
    world.wait_until_archived().await;
    let refused = world
        .posts()
        .submit_post(submit("107", "more"))
        .await
        .unwrap_err();
    assert_eq!(reason(&refused), "QUOTA_EXCEEDED");
    switch.turn(true);
    for n in 0..5 {
        let author = format!("new-{n}");
        world.post(&author, "first").await;
        world.post(&author, "second").await;
    }
    // Posts wait for the archive, so the gateway has noticed: an author who is known to have no room may post too.
    wait_until("posts pass", async || {
        world.posts().submit_post(submit("107", "away")).await.is_ok()
    })
    .await;
    switch.turn(false);
    world.wait_until_archived().await;
    wait_until("the quota counts again", async || {
        world
            .posts()
            .submit_post(submit("107", "back"))
            .await
            .is_err_and(|refused| reason(&refused) == "QUOTA_EXCEEDED")
    })
    .await;
    world.stop().await.unwrap();
}
