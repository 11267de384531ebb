//! An erasure on PostgreSQL and Redis.

use harness::{Process, run, until};
use herald_model::{PostId, UserId, time::Timestamp};
use herald_proto::v1;
use herald_runtime::config::SecretUrl;
use herald_store::{
    Erasure,
    cluster::{Cluster, Config},
};
use serde_json::Value;

use super::world::{AUTHOR, LIMIT, SECRET_TEXT, messages_with};
use crate::{HERALD, serve_cluster::World};

const ALL: &str = "gateway,archive,graph,fanout,timeline,push,analytics,deadletter";

async fn post(process: &Process, author: &str, text: &str) -> u64 {
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

/// Begins an erasure as if it had begun before: all processes have forgotten the user's key since.
async fn begin(store: &Cluster, user: &str) -> Erasure {
    let stores = store.stores();
    let cached_for = stores.users.cached_for();
    assert!(!cached_for.is_zero());
    let at = Timestamp::now().minus(2 * cached_for);
    let id = UserId::new(user).unwrap();
    let begun = stores.erasures.begin(&id, "operator", at);
    begun.await.unwrap().unwrap()
}

async fn until_complete(process: &Process) {
    until("the erasure is complete", LIMIT, || async {
        let listed = process.cli(&["user", "erasures"]).await;
        listed["erasures"][0]["complete_time"].is_string()
    })
    .await;
}

/// Erases a user with the deadletter process of these servers.
pub(crate) async fn erase(world: &World, gateway: &Process, user: &str) {
    let store = open(world).await;
    begin(&store, user).await;
    until_complete(gateway).await;
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_of_a_user_is_erased_from_a_cluster() {
    let Some(world) = World::start().await else { return };
    let process = world.serve(ALL, &[]).await;
    for (follower, author) in [("ann", AUTHOR), (AUTHOR, "eve")] {
        process.cli(&["follow", follower, author]).await;
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
    let begun = begin(&store, AUTHOR).await;
    until_complete(&process).await;

    let erasure = stores.erasures.get(begun.id).await.unwrap().unwrap();
    assert_eq!(erasure.user_id, None);
    let counts = erasure.counts;
    assert_eq!((counts.posts, counts.messages), (5, 5), "{counts:?}");
    assert_eq!((counts.follows, counts.timeline_entries), (2, 1), "{counts:?}");
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
