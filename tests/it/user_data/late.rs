//! Posts that NATS stores when the erasure of their author is complete: their publish had failed.

use harness::until;
use herald_mesh::{Mesh, RawMessage, Subject, streams};
use herald_model::Lane;
use herald_proto::{mesh_v1::PostCreated, v1};
use serde_json::Value;
use tonic::Code;

use super::{
    cluster,
    world::{AUTHOR, LIMIT, SECRET_TEXT, World, files_with, messages_with},
};
use crate::serve_cluster;

/// The message of a post of the author that was accepted.
pub(crate) async fn message(mesh: &Mesh, post: u64) -> PostCreated {
    let message: RawMessage = mesh.message(streams::POSTS, post).await.unwrap().unwrap();
    message.decode().unwrap()
}

/// Publishes a post like this one, and returns its id.
pub(crate) async fn publish(mesh: &Mesh, like: &PostCreated, text: &str) -> u64 {
    let late = PostCreated {
        text: text.into(),
        request_id: format!("request of {text}"),
        ..like.clone()
    };
    let id = format!(
        "post-of/{}/{}/{}",
        late.author_key, late.author_id, late.request_id
    );
    let published = mesh.publish(Subject::PostCreated(Lane::Normal), Some(&id), &late);
    published.await.unwrap().sequence
}

/// The erasures, newest first, once none runs and there are this many at least.
pub(crate) async fn complete(erasures: impl AsyncFn() -> Value, count: usize) -> Vec<Value> {
    let is_complete = |erasure: &Value| erasure["complete_time"].is_string();
    let listed = async || erasures().await["erasures"].as_array().unwrap().clone();
    until("all erasures are complete", LIMIT, async || {
        let listed = listed().await;
        listed.len() >= count && listed.iter().all(is_complete)
    })
    .await;
    listed().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_that_comes_after_the_erasure_is_erased_too() {
    let world = World::start().await;
    let posts = world.fill().await;
    let mesh = world.mesh().await;
    let like = message(&mesh, posts.shown).await;
    world.erase().await;
    // The id is that of a new user, whose posts stay.
    let of_new_user = world.post(AUTHOR, "of the new user").await;
    let mut late = Vec::new();
    for number in 0..3 {
        late.push(publish(&mesh, &like, &format!("{SECRET_TEXT} late {number}")).await);
    }
    until("no consumer has messages left", LIMIT, || world.clients.is_idle()).await;
    // One erasure can have found them all, or the last ones came when it had read POSTS.
    let newest = world.herald.cli(&["user", "erasures"]).await;
    let count = newest["erasures"].as_array().unwrap().len();
    assert!((2..=4).contains(&count), "{newest}");
    let erasures = complete(async || world.herald.cli(&["user", "erasures"]).await, count).await;
    let (again, first) = erasures.split_at(count - 1);
    assert_eq!(first[0]["counts"]["post_count"], 2, "{first:?}");
    let sum = |name: &str| -> u64 {
        let counts = again.iter().map(|erasure| erasure["counts"][name].as_u64());
        counts.map(Option::unwrap).sum()
    };
    assert_eq!((sum("post_count"), sum("message_count")), (3, 3), "{again:?}");
    for erasure in again {
        assert_eq!(erasure["user_id"], Value::Null, "{erasure}");
        assert!(
            erasure["actor"].as_str().unwrap().starts_with("archive: "),
            "{erasure}"
        );
    }

    assert_eq!(world.messages_with(SECRET_TEXT).await, []);
    let nats = world.herald.data_dir().join("nats");
    assert_eq!(files_with(&nats, SECRET_TEXT), Vec::<String>::new());
    for post in late {
        let request = v1::GetPostRequest { post_id: post };
        let got = world.clients.posts().get_post(request).await;
        assert_eq!(got.unwrap_err().code(), Code::NotFound, "{post}");
    }
    let request = v1::GetPostRequest { post_id: of_new_user };
    assert!(world.clients.posts().get_post(request).await.is_ok());
    world.assert_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_that_comes_after_the_erasure_is_erased_too_in_a_cluster() {
    let Some(world) = serve_cluster::World::start().await else {
        return;
    };
    let (url, process) = (world.nats.client_url(), world.serve(cluster::ALL, &[]).await);
    // An archive process of its own can have the author in its cache.
    let archive = world.serve("archive", &[]).await;
    let mesh = Mesh::connect(&herald_mesh::Config::at(&url)).await.unwrap();
    let clients = process.clients().await;
    let shown = cluster::post(&process, AUTHOR, SECRET_TEXT).await;
    let like = message(&mesh, shown).await;
    until("no consumer has messages left", LIMIT, || clients.is_idle()).await;
    cluster::erase(&process, AUTHOR).await;

    for count in 2..4 {
        let late = publish(&mesh, &like, &format!("{SECRET_TEXT} late {count}")).await;
        let erasures = complete(async || process.cli(&["user", "erasures"]).await, count).await;
        assert_eq!(erasures[0]["counts"]["post_count"], 1, "{erasures:?}");
        let request = v1::GetPostRequest { post_id: late };
        let got = clients.posts().get_post(request).await;
        assert_eq!(got.unwrap_err().code(), Code::NotFound, "{late}");
    }
    let client = async_nats::connect(&url).await.unwrap();
    assert_eq!(messages_with(&url, client, SECRET_TEXT).await, []);
    until("no consumer has messages left", LIMIT, || clients.is_idle()).await;
    let audit = process.cli(&["audit"]).await;
    assert_eq!(audit["summary"]["finding_count"], 0, "{audit}");
    drop(archive);
}
