//! Streams that lost messages and stores that are older than the streams: they are noticed, and `herald recover` goes on.

mod parts;
mod reused_ids;

use std::{fs, time::Duration};

use async_nats::jetstream;
use harness::{Clients, Herald, Options, Output, run, until};
use herald_local_nats::{Config as ServerConfig, Server};
use herald_proto::{mesh_v1::PostCreated, v1};
use prost::Message as _;
use serde_json::Value;
use tonic::Code;
use tonic_types::StatusExt as _;

use self::parts::{Part, entries};
use crate::{
    HERALD,
    audit::{audit, pause},
    surface::http_get,
};

const LIMIT: Duration = Duration::from_mins(1);
const READERS: [&str; 3] = ["ann", "cid", "dora"];

struct World {
    herald: Herald,
}

impl World {
    /// A mesh in which the readers follow bob.
    async fn start() -> Self {
        Self::start_with(Options::default()).await
    }

    async fn start_with(options: Options) -> Self {
        let herald = Herald::start(HERALD, options).await;
        let clients = herald.clients().await;
        for reader in READERS {
            let follow = v1::Follow {
                follower_id: reader.into(),
                author_id: "bob".into(),
                notify: None,
            };
            let request = v1::FollowRequest { follow: Some(follow) };
            clients.graph().follow(request).await.unwrap();
        }
        Self { herald }
    }

    async fn clients(&self) -> Clients {
        self.herald.clients().await
    }

    /// Posts and waits until nothing is left to do. Returns the ids.
    async fn post(&self, texts: &[&str]) -> Vec<u64> {
        let mut ids = Vec::new();
        for text in texts {
            let posted = self
                .herald
                .cli(&["post", "--author", "bob", "--text", text])
                .await;
            ids.push(posted["post_id"].as_u64().unwrap());
        }
        self.settle().await;
        ids
    }

    async fn settle(&self) {
        let clients = self.clients().await;
        until("nothing is left to do", LIMIT, || clients.is_idle()).await;
    }

    async fn stop(&mut self) {
        assert_eq!(self.herald.stop().await, 0, "{}", self.herald.log());
    }

    /// What each reader's timeline must be, newest first.
    async fn assert_timelines(&self, posts: &[u64]) {
        for reader in READERS {
            let timeline = self.herald.cli(&["timeline", reader]).await;
            let entries = timeline["entries"].as_array().unwrap();
            let found: Vec<u64> = entries
                .iter()
                .map(|entry| entry["post_id"].as_u64().unwrap())
                .collect();
            assert_eq!(found, posts, "{reader}: {timeline}");
        }
    }

    async fn recover(&self, arguments: &[&str]) -> Value {
        self.recover_on(arguments, &[]).await
    }

    /// What a dry run finds, which is at least one problem.
    async fn find(&self) -> Value {
        let data = self.herald.data_dir();
        let data = data.to_str().unwrap();
        let arguments = ["recover", "--dry-run", "--output", "json", "--data-dir", data];
        let done = run(HERALD, &arguments, &[]).await;
        assert_eq!(done.code, 1, "{done:?}");
        assert!(done.stderr.contains("nothing was changed"), "{done:?}");
        serde_json::from_str(&done.stdout).unwrap()
    }

    async fn recover_on(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Value {
        let data = self.herald.data_dir();
        let mut all = vec![
            "recover",
            "--output",
            "json",
            "--data-dir",
            data.to_str().unwrap(),
        ];
        all.extend(arguments);
        let done = run(HERALD, &all, variables).await;
        let result: Value = serde_json::from_str(&done.stdout).unwrap();
        let finds_something = arguments.contains(&"--dry-run") && !problems(&result).is_empty();
        assert_eq!(done.code, i32::from(finds_something), "{done:?}");
        result
    }

    /// Starts `herald up` on the data directory, which it must refuse.
    async fn refused(&self) -> Output {
        let data = self.herald.data_dir();
        let arguments = [
            "up",
            "--grpc",
            "127.0.0.1:0",
            "--operator-grpc",
            "127.0.0.1:0",
            "--http",
            "127.0.0.1:0",
            "--nats-port",
            "0",
            "--data-dir",
        ];
        let mut all = arguments.to_vec();
        all.push(data.to_str().unwrap());
        let done = run(HERALD, &all, &[]).await;
        assert_ne!(done.code, 0, "{done:?}");
        done
    }

    /// Repairs what an audit finds, and asserts that the next one finds nothing. Returns the number of findings.
    async fn repair(&self) -> usize {
        let (_, lines) = audit(&self.herald, &["--repair"]).await;
        let unrepaired: Vec<_> = lines
            .iter()
            .filter(|line| !line["finding"].is_null() && line["finding"]["repaired"] != true)
            .collect();
        assert!(unrepaired.is_empty(), "{unrepaired:?}");
        self.settle().await;
        self.assert_clean().await;
        lines.iter().filter(|line| !line["finding"].is_null()).count()
    }

    async fn assert_clean(&self) {
        let (done, lines) = audit(&self.herald, &[]).await;
        assert_eq!(done.code, 0, "{lines:?}");
    }

    async fn open_dead_letters(&self) -> usize {
        let page = self.herald.cli(&["dlq", "list", "--state", "open"]).await;
        page["dead_letters"].as_array().unwrap().len()
    }

    async fn broker(&self) -> jetstream::Context {
        jetstream::new(self.herald.broker().await)
    }
}

fn problems(result: &Value) -> Vec<&str> {
    let problems = result["problems"].as_array().unwrap();
    problems.iter().map(|problem| problem.as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_comes_back_older_is_refused_and_recovered() {
    let mut world = World::start().await;
    assert_eq!(world.post(&["one", "two"]).await, [1, 2]);
    world.stop().await;
    let backup = Part::Broker.save(&world.herald.data_dir());
    world.herald.restart().await;
    assert_eq!(world.post(&["three", "four"]).await, [3, 4]);
    world.stop().await;
    backup.restore(&world.herald.data_dir());

    let refused = world.refused().await;
    assert!(refused.stderr.contains("herald recover"), "{refused:?}");
    let found = world.find().await;
    assert!(
        problems(&found)
            .contains(&"stream POSTS lost its newest messages: it ends at 2, and message 4 was seen in it"),
        "{found}"
    );
    assert_eq!(found["recovered"], false);
    // A dry run changed nothing.
    assert_eq!(world.find().await, found);

    let recovered = world.recover(&[]).await;
    assert_eq!(
        (&recovered["posts_archived"], &recovered["posts_lost"]),
        (&0.into(), &0.into())
    );
    let again = world.recover(&["--dry-run"]).await;
    assert_eq!(problems(&again), Vec::<&str>::new(), "{again}");

    world.herald.restart().await;
    // Everything was delivered before: the store knows that.
    world.assert_clean().await;
    let new = world.post(&["five"]).await;
    assert!(new[0] >= 2_000_000, "{new:?}");
    world.assert_timelines(&[new[0], 4, 3, 2, 1]).await;
    world.assert_clean().await;
    world.stop().await;
}

/// A broker that lost its tail and took posts before anybody noticed: the sequences name two posts each.
#[tokio::test(flavor = "multi_thread")]
async fn posts_that_were_accepted_under_known_ids_get_new_ones() {
    // The archive gives up a post with a known id at the first attempt.
    let attempts = "HERALD_TOPOLOGY__CONSUMERS__ARCHIVE__FAULT_ATTEMPTS_MAX";
    let mut world = World::start_with(Options {
        variables: vec![(attempts.into(), "1".into())],
        ..Options::default()
    })
    .await;
    assert_eq!(world.post(&["one", "two", "three"]).await, [1, 2, 3]);
    let broker = world.broker().await;
    let stream = broker.get_stream("POSTS").await.unwrap();
    let message = |id| stream.get_raw_message(id);
    let other = message(1).await.unwrap();
    let config = stream.cached_info().config.clone();
    world.stop().await;
    drop(broker);

    world.herald.restart().await;
    let broker = world.broker().await;
    // POSTS is made again as it was at message 1, and three other posts take its next sequences.
    let clients = world.clients().await;
    broker.delete_stream("POSTS").await.unwrap();
    until("posts are refused", LIMIT, || async {
        let request = v1::SubmitPostRequest {
            author_id: "bob".into(),
            text: "refused".into(),
            ..Default::default()
        };
        let refused = clients.posts().submit_post(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
        let details = refused.get_error_details();
        details
            .error_info()
            .is_some_and(|info| info.reason == "STREAMS_DAMAGED")
    })
    .await;
    let ready = http_get(world.herald.http(), "/readyz").await;
    assert!(ready.contains("stream POSTS is missing"), "{ready}");
    broker.create_stream(config).await.unwrap();
    for request_id in ["a", "b", "c", "d"] {
        let decoded = PostCreated::decode(other.payload.clone()).unwrap();
        let post = PostCreated {
            request_id: request_id.into(),
            text: request_id.into(),
            ..decoded
        };
        let published = broker
            .publish("post.v1.created.normal", post.encode_to_vec().into())
            .await
            .unwrap();
        published.await.unwrap();
    }
    until("the other posts are noticed", LIMIT, || async {
        let ready = http_get(world.herald.http(), "/readyz").await;
        ready.contains("used their sequences again")
    })
    .await;
    until("the archive has given them up", LIMIT, || async {
        world.open_dead_letters().await == 3
    })
    .await;
    world.stop().await;

    let recovered = world.recover(&[]).await;
    assert_eq!(recovered["dead_letters_discarded"], 3, "{recovered}");
    let renamed = recovered["posts_renamed"].as_array().unwrap();
    let told: Vec<_> = renamed
        .iter()
        .map(|post| post["told_id"].as_u64().unwrap())
        .collect();
    assert_eq!(told, [1, 2, 3], "{recovered}");
    let ids: Vec<_> = renamed.iter().map(|post| post["id"].as_u64().unwrap()).collect();
    // The fourth one has an id of its own, which it keeps. The running archive may have written it before.
    assert!(recovered["posts_archived"].as_u64().unwrap() <= 1, "{recovered}");
    world.herald.restart().await;
    assert_eq!(world.open_dead_letters().await, 0);
    world.settle().await;
    world.repair().await;
    world
        .assert_timelines(&[ids[2], ids[1], ids[0], 4, 3, 2, 1])
        .await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_comes_back_older_is_refused_and_recovered() {
    let mut world = World::start().await;
    assert_eq!(world.post(&["one", "two"]).await, [1, 2]);
    world.stop().await;
    let backup = Part::Store.save(&world.herald.data_dir());
    world.herald.restart().await;
    // A follower and versions that the restored store doesn't have.
    let clients = world.clients().await;
    let follow = v1::Follow {
        follower_id: "eve".into(),
        author_id: "bob".into(),
        notify: None,
    };
    let request = v1::FollowRequest { follow: Some(follow) };
    clients.graph().follow(request).await.unwrap();
    assert_eq!(world.post(&["three", "four"]).await, [3, 4]);
    world.stop().await;
    backup.restore(&world.herald.data_dir());

    let refused = world.refused().await;
    assert!(
        refused.stderr.contains("the store is older than the streams"),
        "{refused:?}"
    );
    let recovered = world.recover(&[]).await;
    assert_eq!(recovered["posts_archived"], 2, "{recovered}");
    world.herald.restart().await;
    // The posts are in the store, on no timeline, and not counted: an audit says so.
    assert_eq!(world.repair().await, 4);
    world.assert_timelines(&[4, 3, 2, 1]).await;
    let new = world.post(&["five"]).await;
    world.assert_timelines(&[new[0], 4, 3, 2, 1]).await;
    world.assert_clean().await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_deleted_while_running_is_made_again() {
    let mut world = World::start().await;
    world.post(&["one"]).await;
    let broker = world.broker().await;
    let before = broker
        .get_stream("TIMELINE")
        .await
        .unwrap()
        .cached_info()
        .state
        .last_sequence;
    let streams = [
        "TIMELINE",
        "PUSH",
        "SLICES",
        "EVENTS",
        "LATER",
        "ADVISORIES",
        "DLQ",
        "REDRIVE",
    ];
    for stream in streams {
        broker.delete_stream(stream).await.unwrap();
    }
    until("the streams are there again", LIMIT, || async {
        let ready = http_get(world.herald.http(), "/readyz").await;
        let mut found = true;
        for stream in streams {
            found &= broker.get_stream(stream).await.is_ok();
        }
        found && !ready.contains("\"ready\":false")
    })
    .await;
    let log = world.herald.log();
    assert!(log.contains("stream was missing and is made again"), "{log}");
    world.post(&["two"]).await;
    world.assert_timelines(&[2, 1]).await;
    let after = broker
        .get_stream("TIMELINE")
        .await
        .unwrap()
        .cached_info()
        .state
        .first_sequence;
    assert!(after > before, "{before} {after}");
    world.assert_clean().await;
    world.stop().await;
}

/// A message that its stream can't read any more, before it was delivered.
#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_in_a_stream_costs_no_delivery() {
    let mut world = World::start().await;
    world.post(&["one"]).await;
    pause(&world.herald, "2100-01-01T00:00:00Z").await;
    world
        .herald
        .cli(&["post", "--author", "bob", "--text", "two"])
        .await;
    let broker = world.broker().await;
    until("the post is planned", LIMIT, || async {
        let stream = broker.get_stream("TIMELINE").await.unwrap();
        stream.cached_info().state.messages == 2
    })
    .await;
    drop(broker);
    world.stop().await;
    let streams = world.herald.data_dir().join("nats/jetstream/jetstream");
    let account = entries(&streams)
        .find(|dir| dir.join("streams/TIMELINE").exists())
        .unwrap();
    let block = entries(&account.join("streams/TIMELINE/msgs"))
        .find(|file| file.extension().is_some_and(|extension| extension == "blk"))
        .unwrap();
    let mut bytes = fs::read(&block).unwrap();
    // A record ends with a checksum of eight bytes.
    let last = bytes.len() - 9;
    bytes[last] ^= 1;
    fs::write(&block, bytes).unwrap();
    world.herald.restart().await;
    pause(&world.herald, "").await;
    world.settle().await;
    world.repair().await;
    world.assert_timelines(&[2, 1]).await;
    world.stop().await;
}

/// Where others make the streams, what is wrong with them is told by the readiness, and posts are refused.
#[tokio::test(flavor = "multi_thread")]
async fn streams_that_others_damage_are_told_until_they_are_recovered() {
    let server = Server::start(ServerConfig::default()).await.unwrap();
    let url = server.client_url();
    let at_server = ("HERALD_NATS__URL".to_owned(), url.clone());
    let mut world = World::start_with(Options {
        variables: vec![at_server],
        ..Options::default()
    })
    .await;
    world.post(&["one", "two"]).await;
    world.stop().await;
    let verify = ("HERALD_NATS__TOPOLOGY".to_owned(), "verify".to_owned());
    world.herald.options_mut().variables.push(verify);
    world.herald.restart().await;
    let broker = jetstream::new(async_nats::connect(&url).await.unwrap());
    let events = broker
        .get_stream("EVENTS")
        .await
        .unwrap()
        .cached_info()
        .config
        .clone();
    broker.delete_stream("EVENTS").await.unwrap();
    let told = async |reason: &str| {
        until("the readiness tells", LIMIT, || async {
            http_get(world.herald.http(), "/readyz").await.contains(reason)
        })
        .await;
    };
    told("stream EVENTS is missing").await;
    let request = v1::SubmitPostRequest {
        author_id: "bob".into(),
        text: "refused".into(),
        ..Default::default()
    };
    let refused = world
        .clients()
        .await
        .posts()
        .submit_post(request)
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    let anew = jetstream::stream::Config {
        first_sequence: None,
        ..events
    };
    broker.create_stream(anew).await.unwrap();
    told("stream EVENTS lost its newest messages").await;
    world.herald.kill().await;

    world.herald.options_mut().variables.pop();
    let recovered = world.recover_on(&[], &[("HERALD_NATS__URL", &url)]).await;
    assert_eq!(recovered["streams"][0]["name"], "EVENTS", "{recovered}");
    world.herald.restart().await;
    let new = world.post(&["three"]).await;
    world.assert_timelines(&[new[0], 2, 1]).await;
    world.assert_clean().await;
    world.stop().await;
}
