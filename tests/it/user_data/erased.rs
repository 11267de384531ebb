//! What is left after an erasure.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::future::join_all;
use harness::{Clients, until};
use herald_mesh::{consumers, streams};
use herald_model::{Lane, PostId, UserKey, time::Timestamp};
use herald_proto::v1;
use herald_runtime::config::Secret;
use herald_store::embedded::{self, Embedded};
use serde_json::Value;
use tonic::Code;

use super::world::{AUTHOR, LIMIT, SECRET_TEXT, World, files_with};

/// Submits posts until it is stopped; returns the ids of the accepted ones.
async fn keep_posting(clients: Clients, author: String, text: &str, stop: Arc<AtomicBool>) -> Vec<u64> {
    let mut accepted = Vec::new();
    let lanes = [v1::Lane::High, v1::Lane::Normal, v1::Lane::Low];
    while !stop.load(Ordering::Relaxed) {
        let request = v1::SubmitPostRequest {
            author_id: author.clone(),
            text: format!("{text} {}", accepted.len()),
            lane: lanes[accepted.len() % lanes.len()].into(),
            ..v1::SubmitPostRequest::default()
        };
        let posted = clients.posts().submit_post(request).await;
        accepted.push(posted.unwrap().into_inner().post_id);
    }
    accepted
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_of_a_user_is_erased_while_posts_are_in_flight() {
    let mut world = World::start().await;
    let posts = world.fill().await;
    let (stop_author, stop_others) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let writing = |author: &str, text: &'static str, stop: &Arc<AtomicBool>| {
        let (clients, author, stop) = (world.clients.clone(), author.to_owned(), stop.clone());
        tokio::spawn(keep_posting(clients, author, text, stop))
    };
    let authors: Vec<_> = (0..2)
        .map(|_| writing(AUTHOR, SECRET_TEXT, &stop_author))
        .collect();
    let others: Vec<_> = ["eve", "dora"]
        .into_iter()
        .map(|author| writing(author, "of others", &stop_others))
        .collect();
    let newest = || async {
        let request = v1::ListPostsRequest {
            author_id: AUTHOR.into(),
            ..v1::ListPostsRequest::default()
        };
        let listed = world.clients.posts().list_posts(request).await.unwrap();
        listed.into_inner().posts.len()
    };
    until("posts are in flight", LIMIT, || async { newest().await > 20 }).await;
    stop_author.store(true, Ordering::Relaxed);
    let mut of_author = vec![posts.shown, posts.deleted];
    for accepted in join_all(authors).await {
        of_author.extend(accepted.unwrap());
    }

    // The others go on while it runs.
    let erased = world.erase().await;
    stop_others.store(true, Ordering::Relaxed);
    let mut of_others = vec![posts.of_eve];
    for accepted in join_all(others).await {
        of_others.extend(accepted.unwrap());
    }
    let counts = &erased["counts"];
    assert_eq!(counts["post_count"], of_author.len(), "{erased}");
    assert_eq!(counts["message_count"], of_author.len(), "{erased}");
    assert_eq!(
        (&counts["device_count"], &counts["follow_count"]),
        (&1.into(), &3.into()),
        "{erased}"
    );
    assert!(counts["timeline_entry_count"].as_u64().unwrap() >= 1, "{erased}");
    assert_eq!(erased["user_id"], Value::Null, "{erased}");

    world.assert_sound().await;
    assert_nothing_is_left(&world, &of_author).await;
    for post in &of_others {
        let got = world
            .clients
            .posts()
            .get_post(v1::GetPostRequest { post_id: *post })
            .await;
        assert!(got.is_ok(), "post {post} of another author: {got:?}");
    }
    let again = world.run(&["user", "erase", AUTHOR, "--yes"]).await;
    assert!(again.stderr.contains("there is no such user"), "{again:?}");

    assert_eq!(world.herald.stop().await, 0);
    assert_store_is_clean(&world, &of_author).await;
    world.herald.restart().await;
    world.clients = world.herald.clients().await;
    world.assert_sound().await;
}

/// Neither the texts nor the id of the user can be read from anywhere.
async fn assert_nothing_is_left(world: &World, posts: &[u64]) {
    for text in [SECRET_TEXT, AUTHOR] {
        assert_eq!(world.messages_with(text).await, [], "{text}");
        // Deleted messages are overwritten.
        let nats = world.herald.data_dir().join("nats");
        assert_eq!(files_with(&nats, text), Vec::<String>::new(), "{text}");
    }
    let batches = posts.chunks(100).map(|ids| v1::BatchGetPostsRequest {
        post_ids: ids.to_vec(),
    });
    for request in batches {
        let expected = request.post_ids.clone();
        let got = world
            .clients
            .posts()
            .batch_get_posts(request)
            .await
            .unwrap()
            .into_inner();
        assert_eq!(got.missing_post_ids, expected);
    }
    let exported = world.run(&["user", "export", AUTHOR]).await;
    assert!(exported.stderr.contains("there is no such user"), "{exported:?}");
    for arguments in [
        &["timeline", AUTHOR][..],
        &["device", "list", AUTHOR],
        &["posts", "list", AUTHOR],
        &["timeline", "ann"],
        &["dlq", "list"],
        &["dlq", "log"],
        &["user", "erasures"],
    ] {
        let answer = world.herald.cli(arguments).await.to_string();
        assert!(!answer.contains(SECRET_TEXT), "{arguments:?}: {answer}");
        let answers_with_id = arguments.contains(&AUTHOR);
        assert!(
            answers_with_id || !answer.contains(AUTHOR),
            "{arguments:?}: {answer}"
        );
        assert!(
            !answer.contains("127.0.0.1"),
            "an endpoint: {arguments:?}: {answer}"
        );
    }
    let request = v1::ListFollowingRequest {
        follower_id: "ann".into(),
        ..v1::ListFollowingRequest::default()
    };
    let following = world.clients.graph().list_following(request).await.unwrap();
    let following = format!("{:?}", following.into_inner());
    assert!(!following.contains(AUTHOR), "{following}");
    // What names the key is nameless.
    for post in posts.iter().take(3) {
        let delivery = world
            .herald
            .cli(&["delivery", &post.to_string()])
            .await
            .to_string();
        assert!(!delivery.contains(AUTHOR), "{delivery}");
    }
}

/// No read of the store, which no process has open, returns a text or the id.
async fn assert_store_is_clean(world: &World, posts: &[u64]) {
    let mut config = embedded::Config {
        data_dir: world.herald.data_dir(),
        ..embedded::Config::default()
    };
    let key = std::fs::read_to_string(config.data_dir.join("storage.key")).unwrap();
    config.encryption.key = Secret::new(key.trim());
    let store = Embedded::open(&config).unwrap();
    let stores = store.stores();
    let ids: Vec<_> = posts.iter().map(|post| PostId(*post)).collect();
    let archived = stores.posts.get(&ids).await.unwrap();
    for post in archived {
        let post = post.expect("what is left of an erased post");
        assert!(post.is_erased(), "{post:?}");
        let text = format!("{post:?}");
        assert!(!text.contains(SECRET_TEXT) && !text.contains(AUTHOR), "{text}");
    }
    let last = stores.users.last_key().await.unwrap().unwrap();
    let keys: Vec<_> = (1..=last.0).map(UserKey).collect();
    for id in stores.users.ids(&keys).await.unwrap() {
        assert_ne!(id.expect("each key has an id").as_str(), AUTHOR);
    }
    drop(stores);
    store.close().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erased_user_comes_back_as_a_new_one_with_nothing_of_the_old() {
    let world = World::start().await;
    world.fill().await;
    world.erase().await;
    let post = world.post(AUTHOR, "after the erasure").await;
    world.herald.cli(&["follow", AUTHOR, "dora"]).await;
    world.herald.cli(&["follow", "ann", AUTHOR]).await;
    let second = world.post(AUTHOR, "for ann").await;
    until("no consumer has messages left", LIMIT, || world.clients.is_idle()).await;

    let exported = world.run(&["user", "export", AUTHOR]).await;
    let records: Vec<Value> = exported
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let kinds: Vec<_> = records
        .iter()
        .map(|record| record["kind"].as_str().unwrap())
        .collect();
    assert_eq!(
        kinds,
        ["user", "preferences", "following", "follower", "post", "post"],
        "{exported:?}"
    );
    assert_eq!(records[1]["push_enabled"], true);
    assert_eq!(records[2]["user_id"], "dora");
    assert_eq!(
        (&records[4]["post_id"], &records[5]["post_id"]),
        (&post.into(), &second.into())
    );
    let timeline = world.herald.cli(&["timeline", "ann"]).await;
    let entries = timeline["entries"].as_array().unwrap();
    assert!(
        entries.iter().any(|entry| entry["post_id"] == second),
        "{timeline}"
    );
    assert!(!timeline.to_string().contains(SECRET_TEXT), "{timeline}");
    world.assert_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erasure_waits_for_a_message_that_a_consumer_has_not_settled() {
    let world = World::start().await;
    world.fill().await;
    let mesh = world.mesh().await;
    let consumer = consumers::fanout(Lane::Normal);
    let end = Timestamp::now().plus(Duration::from_hours(1));
    mesh.pause(streams::POSTS, consumer, end).await.unwrap();
    let post = world.post(AUTHOR, &format!("{SECRET_TEXT} unsettled")).await;

    let begun = world.run(&["user", "erase", AUTHOR, "--yes", "--no-wait"]).await;
    assert_eq!(begun.code, 0, "{begun:?}");
    assert!(begun.stdout.contains("is running"), "{begun:?}");
    // The post is deleted at once, its message waits.
    until("the post is deleted", LIMIT, || async {
        let got = world
            .clients
            .posts()
            .get_post(v1::GetPostRequest { post_id: post })
            .await;
        got.is_err_and(|status| status.code() == Code::NotFound)
    })
    .await;
    let listed = world.herald.cli(&["user", "erasures"]).await;
    assert_eq!(listed["erasures"][0]["complete_time"], Value::Null, "{listed}");
    assert_eq!(listed["erasures"][0]["user_id"], AUTHOR, "{listed}");
    let kept = world.messages_with(SECRET_TEXT).await;
    assert!(kept.contains(&("POSTS".into(), post)), "{kept:?}");

    mesh.resume(streams::POSTS, consumer).await.unwrap();
    until("the erasure is complete", LIMIT, || async {
        let listed = world.herald.cli(&["user", "erasures"]).await;
        listed["erasures"][0]["complete_time"].is_string()
    })
    .await;
    assert_eq!(world.messages_with(SECRET_TEXT).await, []);
    world.assert_sound().await;
    let dead_letters = world.herald.cli(&["dlq", "list"]).await;
    assert_eq!(
        dead_letters["dead_letters"],
        serde_json::json!([]),
        "{dead_letters}"
    );
}
