//! An erasure on PostgreSQL and Redis.

use std::time::Duration;

use harness::{Process, run, until};
use herald_mesh::{Mesh, consumers, streams};
use herald_model::{Lane, PostId, UserId, UserKey, time::Timestamp};
use herald_proto::v1;
use herald_runtime::config::SecretUrl;
use herald_store::{
    ErasureId, ErrorKind,
    cluster::{Cluster, Config},
};
use serde_json::Value;
use tonic::Code;

use super::world::{AUTHOR, LIMIT, SECRET_TEXT, messages_with};
use crate::{HERALD, serve_cluster::World};

/// The database of [`World`].
pub(super) const DATABASE: &str = "herald";
pub(super) const ALL: &str = "gateway,archive,graph,fanout,timeline,push,analytics,deadletter";

pub(super) async fn post(process: &Process, author: &str, text: &str) -> u64 {
    let request = v1::SubmitPostRequest {
        author_id: author.into(),
        text: text.into(),
        ..v1::SubmitPostRequest::default()
    };
    let posted = process.clients().await.posts().submit_post(request).await;
    posted.unwrap().into_inner().post_id
}

/// The store of the processes.
async fn open(world: &World) -> Cluster {
    let variables = world.variables();
    let url = |name: &str| {
        let found = variables.iter().find(|(variable, _)| variable == name);
        SecretUrl::new(&found.unwrap().1)
    };
    let mut config = Config {
        url: url("HERALD_STORE__URL"),
        ..Config::default()
    };
    config.postgres.connections_max = 4;
    config.timelines.url = url("HERALD_TIMELINES__URL");
    Cluster::open(&config).await.unwrap()
}

async fn until_complete(process: &Process) {
    until("the erasure is complete", LIMIT, || async {
        let listed = process.cli(&["user", "erasures"]).await;
        listed["erasures"][0]["complete_time"].is_string()
    })
    .await;
}

/// Erases a user with the deadletter process of these servers.
pub(crate) async fn erase(gateway: &Process, user: &str) {
    gateway.cli(&["user", "erase", user, "--yes"]).await;
}

/// Begins an erasure; returns with the first answer.
async fn begin(process: &Process, user: &str) -> Value {
    process.cli(&["user", "erase", user, "--yes", "--no-wait"]).await
}

/// A process with a cache of users that has seen no erasure, and its right to use its cache.
async fn add_silent_process(world: &World, duration: &str) {
    let row = format!(
        "INSERT INTO herald.users_caches VALUES ('silent', 0, clock_timestamp() + interval '{duration}')"
    );
    world.postgres.run_in(DATABASE, &row).await.unwrap();
}

/// Whether a condition on `herald.users_caches` holds for some row.
async fn has_cache(world: &World, condition: &str) -> bool {
    let check = format!(
        "DO $$ BEGIN IF NOT EXISTS (SELECT FROM herald.users_caches WHERE {condition}) THEN RAISE 'none'; END IF; \
         END $$"
    );
    world.postgres.run_in(DATABASE, &check).await.is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_of_a_user_is_erased_from_a_cluster() {
    let Some(world) = World::start().await else { return };
    let process = world.serve(ALL, &[]).await;
    for (follower, author) in [("ann", AUTHOR), (AUTHOR, "eve")] {
        process.cli(&["follow", follower, author]).await;
    }
    for user in [AUTHOR, "eve"] {
        let device = ["device", "add", user, "--webhook", "https://example.com/"];
        process.cli(&device).await;
        process.cli(&["prefs", "set", user, "--mute", "mallory"]).await;
    }
    let clients = process.clients().await;
    let mut posts = Vec::new();
    for number in 0..5 {
        posts.push(post(&process, AUTHOR, &format!("{SECRET_TEXT} {number}")).await);
    }
    let of_eve = post(&process, "eve", "of eve").await;
    until("no consumer has messages left", LIMIT, || clients.is_idle()).await;

    let store = open(&world).await;
    let stores = store.stores();
    let users = [AUTHOR, "eve"].map(|user| UserId::new(user).unwrap());
    let keys = stores.users.find(&users).await.unwrap();
    let [author, eve] = [keys[0].unwrap(), keys[1].unwrap()];
    let post = posts[2];
    for damage in [
        format!("posts SET body = '\\xffffff' WHERE id = {post}"),
        format!("devices SET devices = '\\xffffff' WHERE user_key = {author}"),
        format!("preferences SET preferences = '\\xffffff' WHERE user_key = {author}"),
        format!("follow_edges SET author = author + 4294967296 WHERE follower = {author}"),
    ] {
        let damage = format!("UPDATE herald.{damage}");
        world.postgres.run_in(DATABASE, &damage).await.unwrap();
    }
    let read = (
        stores.devices.of(&[author]).await.map(drop),
        stores.preferences.of(&[author]).await.map(drop),
        stores.follows.following(author, None, 9).await.map(drop),
    );
    for read in [read.0, read.1, read.2] {
        assert_eq!(read.unwrap_err().kind(), ErrorKind::Corrupt);
    }
    let erased = process.cli(&["user", "erase", AUTHOR, "--yes"]).await;
    assert!(erased["forget_time"].is_string(), "{erased}");
    let id = ErasureId(erased["erasure_id"].as_u64().unwrap());

    let erasure = stores.erasures.get(id).await.unwrap().unwrap();
    assert_eq!(erasure.user_id, None);
    let counts = erasure.counts;
    assert_eq!((counts.posts, counts.messages), (5, 5), "{counts:?}");
    assert_eq!((counts.follows, counts.timeline_entries), (2, 1), "{counts:?}");
    assert_eq!(counts.devices, 1, "{counts:?}");
    let users = [author, eve];
    let devices = stores.devices.of(&users).await.unwrap();
    assert_eq!([devices[0].len(), devices[1].len()], [0, 1]);
    let preferences = stores.preferences.of(&users).await.unwrap();
    assert_eq!([preferences[0].muted.len(), preferences[1].muted.len()], [0, 1]);
    assert_eq!(stores.follows.following(author, None, 9).await.unwrap(), []);
    assert_eq!(stores.follows.count(author).await.unwrap().followers, 0);
    let ids: Vec<_> = posts.iter().map(|post| PostId(*post)).collect();
    for left in stores.posts.get(&ids).await.unwrap() {
        assert!(left.unwrap().is_erased());
    }
    for text in [SECRET_TEXT, AUTHOR] {
        let client = async_nats::connect(world.nats.client_url()).await.unwrap();
        assert_eq!(
            messages_with(&world.nats.client_url(), client, text).await,
            [],
            "{text}"
        );
    }
    let timeline = process.cli(&["timeline", "ann"]).await;
    assert_eq!(timeline["entries"], serde_json::json!([]), "{timeline}");
    let other = process.cli(&["posts", "get", &of_eve.to_string()]).await;
    assert_ne!(other["posts"], Value::Null, "{other}");
    until("no consumer has messages left", LIMIT, || clients.is_idle()).await;
    let audit = process.cli(&["audit"]).await;
    assert_eq!(audit["summary"]["finding_count"], 0, "{audit}");
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_that_another_process_accepts_after_the_answer_stays() {
    let Some(world) = World::start().await else { return };
    let (one, two) = tokio::join!(world.serve(ALL, &[]), world.serve(ALL, &[]));
    one.cli(&["follow", "ann", AUTHOR]).await;
    let mut of_old = Vec::new();
    for process in [&one, &two] {
        // The key is cached in each process.
        of_old.push(post(process, AUTHOR, SECRET_TEXT).await);
        of_old.push(post(process, AUTHOR, SECRET_TEXT).await);
    }
    let begun = begin(&one, AUTHOR).await;
    assert!(begun["forget_time"].is_string(), "{begun}");

    let listed = two.cli(&["posts", "list", AUTHOR]).await;
    assert_eq!(listed["posts"], serde_json::json!([]), "{listed}");
    let of_new = post(&two, AUTHOR, "of the new user").await;
    two.cli(&["follow", "ann", AUTHOR]).await;
    until_complete(&one).await;
    let clients = one.clients().await;
    until("no consumer has messages left", LIMIT, || clients.is_idle()).await;

    for process in [&one, &two] {
        for old in &of_old {
            let got = process.clients().await.posts();
            let got = got.clone().get_post(v1::GetPostRequest { post_id: *old }).await;
            assert_eq!(got.unwrap_err().code(), Code::NotFound, "post {old}");
        }
        let listed = process.cli(&["posts", "list", AUTHOR]).await;
        let posts = listed["posts"].as_array().unwrap();
        assert_eq!(posts.len(), 1, "{listed}");
        assert_eq!(
            (&posts[0]["post_id"], &posts[0]["text"]),
            (&of_new.into(), &"of the new user".into())
        );
    }
    let following = one.cli(&["user", "erasures"]).await;
    assert_eq!(
        following["erasures"][0]["counts"]["post_count"],
        of_old.len(),
        "{following}"
    );
    let client = async_nats::connect(world.nats.client_url()).await.unwrap();
    assert_eq!(
        messages_with(&world.nats.client_url(), client, SECRET_TEXT).await,
        []
    );
    let audit = two.cli(&["audit"]).await;
    assert_eq!(audit["summary"]["finding_count"], 0, "{audit}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erasure_is_answered_when_the_cache_of_a_silent_process_has_ended() {
    let Some(world) = World::start().await else { return };
    let process = world.serve(ALL, &[]).await;
    post(&process, AUTHOR, SECRET_TEXT).await;
    add_silent_process(&world, "20 seconds").await;
    let operators = process.operator_url();
    let erasing = tokio::spawn(async move {
        let server = ("HERALD_OPERATOR_SERVER", operators.as_str());
        let erase = ["user", "erase", AUTHOR, "--yes", "--no-wait", "--output", "json"];
        run(HERALD, &erase, &[server]).await
    });
    until("the other process has seen the erasure", LIMIT, || {
        has_cache(&world, "seen > 0")
    })
    .await;
    let listed = process.cli(&["user", "erasures"]).await;
    assert_eq!(listed["erasures"][0]["forget_time"], Value::Null, "{listed}");
    assert!(has_cache(&world, "process = 'silent' AND ends_at > clock_timestamp()").await);
    let begun = erasing.await.unwrap();
    let begun: Value = serde_json::from_str(&begun.stdout).unwrap();
    assert!(begun["forget_time"].is_string(), "{begun}");
    assert!(has_cache(&world, "process = 'silent' AND ends_at <= clock_timestamp()").await);
    until_complete(&process).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erasure_whose_process_is_killed_before_the_id_is_forgotten_goes_on() {
    let Some(world) = World::start().await else { return };
    let (mut one, two) = tokio::join!(world.serve(ALL, &[]), world.serve(ALL, &[]));
    let old = post(&one, AUTHOR, SECRET_TEXT).await;
    let clients = two.clients().await;
    until("no consumer has messages left", LIMIT, || clients.is_idle()).await;
    add_silent_process(&world, "1 hour").await;
    let operators = one.operator_url();
    let erasing = tokio::spawn(async move {
        let server = ("HERALD_OPERATOR_SERVER", operators.as_str());
        run(HERALD, &["user", "erase", AUTHOR, "--yes"], &[server]).await
    });
    // Then the row of the process that is killed does not hold it up.
    let waits = "seen = 0 AND process <> 'silent'";
    until(
        "the erasure waits for the silent process alone",
        LIMIT,
        || async { has_cache(&world, "seen > 0").await && !has_cache(&world, waits).await },
    )
    .await;
    one.kill().await;
    let interrupted = erasing.await.unwrap();
    assert_ne!(interrupted.code, 0, "{interrupted:?}");
    assert!(interrupted.stderr.contains("goes on"), "{interrupted:?}");
    let listed = two.cli(&["user", "erasures"]).await;
    assert_eq!(listed["erasures"][0]["forget_time"], Value::Null, "{listed}");
    assert_eq!(listed["erasures"][0]["complete_time"], Value::Null, "{listed}");

    let gone = "DELETE FROM herald.users_caches WHERE process = 'silent'";
    world.postgres.run_in(DATABASE, gone).await.unwrap();
    // Asking again waits in the same way.
    let again = begin(&two, AUTHOR).await;
    assert!(again["forget_time"].is_string(), "{again}");
    until_complete(&two).await;
    let got = two.clients().await.posts();
    let got = got.clone().get_post(v1::GetPostRequest { post_id: old }).await;
    assert_eq!(got.unwrap_err().code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn posts_follows_and_devices_are_removed_before_messages_are_settled() {
    let Some(world) = World::start().await else { return };
    let process = world.serve(ALL, &[]).await;
    let device = ["device", "add", AUTHOR, "--webhook", "https://example.com/"];
    process.cli(&device).await;
    process.cli(&["follow", "ann", AUTHOR]).await;
    process.cli(&["follow", AUTHOR, "eve"]).await;
    let clients = process.clients().await;
    until("no consumer has messages left", LIMIT, || clients.is_idle()).await;
    let store = open(&world).await;
    let stores = store.stores();
    let keys = stores.users.find(&[UserId::new(AUTHOR).unwrap()]).await.unwrap();
    let author: UserKey = keys[0].unwrap();
    assert_eq!(stores.devices.of(&[author]).await.unwrap()[0].len(), 1);

    let mesh = Mesh::connect(&herald_mesh::Config::at(world.nats.client_url()))
        .await
        .unwrap();
    let consumer = consumers::fanout(Lane::Normal);
    let end = Timestamp::now().plus(Duration::from_hours(1));
    mesh.pause(streams::POSTS, consumer, end).await.unwrap();
    let unsettled = post(&process, AUTHOR, SECRET_TEXT).await;
    begin(&process, AUTHOR).await;
    until("the post is deleted", LIMIT, || async {
        let got = clients
            .posts()
            .get_post(v1::GetPostRequest { post_id: unsettled })
            .await;
        got.is_err_and(|status| status.code() == Code::NotFound)
    })
    .await;
    assert_eq!(stores.devices.of(&[author]).await.unwrap()[0], []);
    assert_eq!(stores.follows.count(author).await.unwrap().followers, 0);
    assert_eq!(stores.follows.following(author, None, 10).await.unwrap(), []);
    let listed = process.cli(&["user", "erasures"]).await;
    assert_eq!(listed["erasures"][0]["complete_time"], Value::Null, "{listed}");
    mesh.resume(streams::POSTS, consumer).await.unwrap();
    until_complete(&process).await;
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_has_the_timeline_that_redis_lost() {
    let Some(world) = World::start().await else { return };
    let process = world.serve(ALL, &[]).await;
    process.cli(&["follow", AUTHOR, "eve"]).await;
    let clients = process.clients().await;
    let posted = post(&process, "eve", "of eve").await;
    until("no consumer has messages left", LIMIT, || clients.is_idle()).await;
    world.redis.flush().await.unwrap();
    let operator = process.operator_url();
    let arguments = ["user", "export", AUTHOR, "--operator-server", &operator];
    let exported = run(HERALD, &arguments, &[]).await;
    let entry = format!("{{\"kind\":\"timeline_entry\",\"post_id\":{posted}}}");
    assert!(exported.stdout.contains(&entry), "{exported:?}");
}
