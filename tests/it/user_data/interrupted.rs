//! Erasures that are interrupted.

use std::time::Duration;

use harness::until;
use herald_mesh::{Subject, consumers, streams};
use herald_model::{Lane, time::Timestamp};
use herald_proto::{mesh_v1::PostCreated, v1};
use serde_json::Value;

use super::world::{AUTHOR, LIMIT, SECRET_TEXT, World};

/// Starts the server again, without failpoints, and waits until the newest erasure is complete.
async fn complete_after_restart(world: &mut World) {
    world.herald.options_mut().variables.clear();
    world.herald.restart().await;
    world.clients = world.herald.clients().await;
    until("the erasure is complete", LIMIT, || async {
        let listed = world.herald.cli(&["user", "erasures"]).await;
        listed["erasures"][0]["complete_time"].is_string()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erasure_goes_on_after_the_process_was_killed_in_the_middle() {
    for point in [
        "erasure.forgotten",
        "erasure.posts-deleted",
        "erasure.messages-deleted",
        "erasure.texts-erased",
    ] {
        let kill = ("FAILPOINTS".to_owned(), format!("{point}=return(kill)"));
        let mut world = World::start_with(vec![kill]).await;
        world.fill().await;
        let interrupted = world.run(&["user", "erase", AUTHOR, "--yes"]).await;
        assert_ne!(interrupted.code, 0, "{point}: {interrupted:?}");
        world.herald.exited().await;

        complete_after_restart(&mut world).await;
        let listed = world.herald.cli(&["user", "erasures"]).await;
        assert_eq!(
            listed["erasures"].as_array().unwrap().len(),
            1,
            "{point}: {listed}"
        );
        assert_eq!(listed["erasures"][0]["user_id"], Value::Null, "{point}: {listed}");
        assert_eq!(world.messages_with(SECRET_TEXT).await, [], "{point}");
        assert_eq!(world.messages_with(AUTHOR).await, [], "{point}");
        world.assert_sound().await;
    }
}

/// While the store is away, posts are accepted without the author's key. The archive gives them the key of the new user.
#[tokio::test(flavor = "multi_thread")]
async fn posts_without_a_key_are_erased_although_the_erasure_was_killed_when_their_messages_were_gone() {
    let kill = (
        "FAILPOINTS".to_owned(),
        "erasure.messages-deleted=return(kill)".to_owned(),
    );
    let mut world = World::start_with(vec![kill]).await;
    world.fill().await;
    let mesh = world.mesh().await;
    let end = Timestamp::now().plus(Duration::from_hours(1));
    mesh.pause(streams::POSTS, consumers::ARCHIVE, end).await.unwrap();
    let keyless = PostCreated {
        author_id: AUTHOR.into(),
        request_id: "00000000-0000-4000-8000-000000000001".into(),
        text: SECRET_TEXT.into(),
        lane: v1::Lane::Normal.into(),
        accepted_at_us: Timestamp::now().0,
        push_ttl_seconds: 60,
        ..PostCreated::default()
    };
    let published = mesh.publish(Subject::PostCreated(Lane::Normal), Some("post/keyless"), &keyless);
    published.await.unwrap();
    let erasing = world.run(&["user", "erase", AUTHOR, "--yes", "--no-wait"]).await;
    assert_eq!(erasing.code, 0, "{erasing:?}");
    world.herald.cli(&["follow", AUTHOR, "eve"]).await;
    mesh.resume(streams::POSTS, consumers::ARCHIVE).await.unwrap();
    world.herald.exited().await;

    complete_after_restart(&mut world).await;
    let exported = world.run(&["user", "export", AUTHOR]).await;
    assert_eq!(exported.code, 0, "{exported:?}");
    assert!(!exported.stdout.contains(SECRET_TEXT), "{exported:?}");
    world.assert_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_whose_newest_messages_were_deleted_are_sound_after_a_crash() {
    let mut world = World::start().await;
    world.fill().await;
    world.assert_sound().await;
    let mesh = world.mesh().await;
    let last = mesh.last_sequence(streams::POSTS).await.unwrap();
    // As if all of them were of erased users.
    for sequence in 1..=last {
        mesh.delete_message(streams::POSTS, sequence).await.unwrap();
    }
    assert_eq!(mesh.last_sequence(streams::POSTS).await.unwrap(), last);
    world.herald.kill().await;
    world.herald.restart().await;
    world.clients = world.herald.clients().await;
    let next = world.post("eve", "after the crash").await;
    assert!(next > last, "{next} is not above {last}");
    world.assert_sound().await;
}
