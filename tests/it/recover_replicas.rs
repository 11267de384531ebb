//! A cluster of three nats-servers that loses what it acknowledged: one server forgets it, and another one that has it is
//! away while the forgetful one elects a leader. Raft promises nothing then; Herald notices and recovers.

use std::time::Duration;

use async_nats::jetstream;
use futures::StreamExt as _;
use harness::{Herald, NatsCluster, Options, run, until, until_some};
use herald_proto::v1;
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::{HERALD, audit::audit, surface::http_get};

const LIMIT: Duration = Duration::from_mins(1);
const READERS: [&str; 2] = ["ann", "cid"];

struct World {
    herald: Herald,
    cluster: NatsCluster,
    _dir: TempDir,
}

impl World {
    /// A mesh with three replicas of each stream, in which the readers follow bob.
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let cluster = NatsCluster::start_direct(dir.path(), 3).await;
        let options = Options {
            arguments: vec!["--nats-url".into(), cluster.urls()],
            variables: vec![("HERALD_TOPOLOGY__REPLICAS".into(), "3".into())],
            ..Options::default()
        };
        let herald = Herald::start(HERALD, options).await;
        for reader in READERS {
            let follow = v1::Follow {
                follower_id: reader.into(),
                author_id: "bob".into(),
                notify: None,
            };
            let request = v1::FollowRequest { follow: Some(follow) };
            herald.clients().await.graph().follow(request).await.unwrap();
        }
        Self {
            herald,
            cluster,
            _dir: dir,
        }
    }

    /// Submits the post with a number. It is the same request each time.
    async fn submit(&self, number: u32) -> Result<u64, tonic::Status> {
        let request = v1::SubmitPostRequest {
            author_id: "bob".into(),
            request_id: format!("00000000-0000-4000-8000-{number:012}"),
            text: format!("post {number}"),
            ..Default::default()
        };
        let posts = self.herald.clients().await.posts().submit_post(request).await;
        posts.map(|posted| posted.into_inner().post_id)
    }

    /// Submits a post, again while a leader is elected. Returns the id.
    async fn post(&self, number: u32) -> u64 {
        until_some("a post is accepted", LIMIT, || async {
            match self.submit(number).await {
                Ok(id) => Some(id),
                Err(refused) if refused.code() == Code::Unavailable => None,
                Err(refused) => panic!("post {number}: {refused:?}"),
            }
        })
        .await
    }

    async fn settle(&self) {
        let clients = self.herald.clients().await;
        until("nothing is left to do", LIMIT, || async {
            let Ok(lag) = clients.mesh().get_lag(v1::GetLagRequest {}).await else {
                return false;
            };
            let streams = lag.into_inner().streams;
            let consumers = streams.iter().flat_map(|stream| &stream.consumers);
            consumers
                .map(|one| one.pending_count + one.ack_pending_count)
                .sum::<u64>()
                == 0
        })
        .await;
    }

    async fn stop(&mut self) {
        assert_eq!(self.herald.stop().await, 0, "{}", self.herald.log());
    }

    /// Waits until POSTS has lost all but the first two posts. A server that was stopped believes for a moment that it
    /// still leads the stream, and answers with what it has.
    async fn wait_lost(&self) {
        until("the cluster loses what it acknowledged", LIMIT, || async {
            let Ok(client) = self.cluster.client().await else {
                return false;
            };
            let stream = jetstream::new(client).get_stream("POSTS").await;
            stream.is_ok_and(|stream| stream.cached_info().state.last_sequence == 2)
        })
        .await;
    }

    /// One server forgets all posts but the first, which it has when this begins, together with one that was down
    /// meanwhile; the third one, which has everything, is stopped until they have a leader. `meanwhile` runs while a
    /// majority acknowledges what is lost. The second server is killed, not stopped: a stopped one could still read what
    /// was sent to it before. The first one keeps the other streams: servers that forget many at once can leave
    /// consumers without a leader for minutes, and what Herald does then is another test's business.
    async fn lose_tail(&mut self, meanwhile: impl AsyncFnOnce(&mut Self)) {
        self.cluster.wait_complete(None).await.unwrap();
        let forgetful = self.cluster.wait_leader("POSTS").await.unwrap();
        let (lagging, sound) = ((forgetful + 1) % 3, (forgetful + 2) % 3);
        let copy = self.cluster.copy_stream(forgetful, "POSTS").await;
        self.cluster.kill(lagging).await;
        self.cluster.wait_complete(Some(lagging)).await.unwrap();
        meanwhile(self).await;
        self.cluster.freeze(sound, true);
        self.cluster.kill(forgetful).await;
        self.cluster.put_store(forgetful, &copy);
        self.cluster.restart_together([lagging, forgetful]).await;
        self.cluster.wait_complete(Some(sound)).await.unwrap();
        // Without an entry of its new leader, the group would still elect the third server, which has the longer log.
        self.cluster.append_entry("POSTS", sound).await;
        self.cluster.freeze(sound, false);
    }

    async fn assert_refused(&self, why: &str) {
        until("the loss is noticed", LIMIT, || async {
            http_get(self.herald.http(), "/readyz").await.contains(why)
        })
        .await;
        let refused = self.submit(99).await.unwrap_err();
        let details = refused.get_error_details();
        let reason = details.error_info().map(|info| info.reason.clone());
        assert_eq!(reason.as_deref(), Some("STREAMS_DAMAGED"), "{refused:?}");
    }

    /// Stops the mesh, recovers it, starts it again and repairs what the audit finds.
    async fn recover(&mut self) -> Value {
        self.stop().await;
        let recovered = self.run_recovery(&self.cluster.urls()).await;
        self.herald.restart().await;
        self.settle().await;
        audit(&self.herald, &["--repair"]).await;
        self.settle().await;
        recovered
    }

    /// Recovers the stopped mesh. The recovery waits by itself while the cluster elects leaders.
    async fn run_recovery(&self, urls: &str) -> Value {
        let data = self.herald.data_dir();
        let data = data.to_str().unwrap();
        let arguments = [
            "recover",
            "--output",
            "json",
            "--data-dir",
            data,
            "--nats-url",
            urls,
        ];
        let done = run(HERALD, &arguments, &[("HERALD_TOPOLOGY__REPLICAS", "3")]).await;
        assert_eq!(done.code, 0, "{done:?}");
        serde_json::from_str(&done.stdout).unwrap()
    }

    /// The posts that an audit names, and why.
    async fn findings(&self) -> Vec<(u64, String)> {
        let (_, lines) = audit(&self.herald, &[]).await;
        let findings = lines.iter().map(|line| &line["finding"]);
        let findings = findings.filter(|finding| !finding.is_null());
        findings
            .map(|finding| {
                let kind = finding["kind"].as_str().unwrap();
                (finding["post_id"].as_u64().unwrap(), kind.to_owned())
            })
            .collect()
    }

    /// What each reader's timeline must become, newest first. The server that leads a consumer can know a new message
    /// later than the one that leads the stream, so a mesh that seems idle is no proof of a delivery.
    async fn assert_timelines(&self, posts: &[u64]) {
        for reader in READERS {
            until(&format!("{reader} has posts {posts:?}"), LIMIT, || async {
                let timeline = self.herald.cli(&["timeline", reader]).await;
                let entries = timeline["entries"].as_array().unwrap();
                let ids = entries.iter().map(|entry| entry["post_id"].as_u64().unwrap());
                ids.eq(posts.iter().copied())
            })
            .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn posts_that_a_cluster_lost_are_in_the_archive() {
    let mut world = World::start().await;
    assert_eq!((world.post(1).await, world.post(2).await), (1, 2));
    world.settle().await;
    world
        .lose_tail(async |world| {
            assert_eq!((world.post(3).await, world.post(4).await), (3, 4));
            world.settle().await;
        })
        .await;
    world.wait_lost().await;
    world
        .assert_refused("stream POSTS lost its newest messages")
        .await;

    let recovered = world.recover().await;
    assert_eq!(recovered["posts_lost"], 0, "{recovered}");
    assert_eq!(world.findings().await, []);
    world.assert_timelines(&[4, 3, 2, 1]).await;
    // The same request is the same post.
    assert_eq!(world.post(4).await, 4);
    let new = world.post(5).await;
    assert!(new >= 2_000_000, "{new}");
    world.settle().await;
    world.assert_timelines(&[new, 4, 3, 2, 1]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn posts_that_a_cluster_lost_before_they_were_archived_are_counted() {
    let mut world = World::start().await;
    assert_eq!((world.post(1).await, world.post(2).await), (1, 2));
    world.settle().await;
    world
        .lose_tail(async |world| {
            // The archive can't write.
            let failing = ("FAILPOINTS".to_owned(), "store.archive=return(error)".to_owned());
            world.stop().await;
            world.herald.options_mut().variables.push(failing);
            world.herald.restart().await;
            assert_eq!((world.post(3).await, world.post(4).await), (3, 4));
            // A start compares the streams with the store, and remembers what they have.
            world.stop().await;
            world.herald.restart().await;
        })
        .await;
    world.wait_lost().await;
    world
        .assert_refused("stream POSTS lost its newest messages")
        .await;

    let recovered = world.recover().await;
    assert_eq!(recovered["posts_lost"], 2, "{recovered}");
    assert_eq!(recovered["posts_lost_ids"], json!([3, 4]), "{recovered}");
    // They were delivered, but nothing has their text.
    let lost = [3, 4].map(|post| (post, "unarchived".to_owned()));
    assert_eq!(world.findings().await, lost);
    let new = world.post(4).await;
    assert!(new >= 2_000_000, "{new}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recovery_waits_until_the_servers_have_leaders() {
    let mut world = World::start().await;
    assert_eq!(world.post(1).await, 1);
    world.settle().await;
    world.stop().await;
    let broker = jetstream::new(world.cluster.client().await.unwrap());
    broker.delete_stream("POSTS").await.unwrap();
    drop(broker);
    let urls = world.cluster.urls();
    let urls: Vec<&str> = urls.split(',').collect();
    world.cluster.freeze(1, true);
    world.cluster.freeze(2, true);

    let observer = async_nats::connect(urls[0]).await.unwrap();
    let mut requests = observer.subscribe("$JS.API.STREAM.INFO.POSTS").await.unwrap();
    observer.flush().await.unwrap();
    let thaw = async {
        // The second request tells that the first one was in vain.
        for _ in 0..2 {
            requests.next().await.unwrap();
        }
        world.cluster.freeze(1, false);
        world.cluster.freeze(2, false);
    };
    let (recovered, ()) = tokio::join!(world.run_recovery(urls[0]), thaw);
    assert_eq!(
        recovered["problems"],
        json!(["stream POSTS is missing"]),
        "{recovered}"
    );
    world.herald.restart().await;
    let new = world.post(2).await;
    assert!(new >= 2_000_000, "{new}");
    world.assert_timelines(&[new, 1]).await;
    world.stop().await;
}
