//! Erasures that are interrupted.

use harness::until;
use herald_mesh::streams;
use serde_json::Value;

use super::world::{AUTHOR, LIMIT, SECRET_TEXT, World};

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

        world.herald.options_mut().variables.clear();
        world.herald.restart().await;
        world.clients = world.herald.clients().await;
        until("the erasure is complete", LIMIT, || async {
            let listed = world.herald.cli(&["user", "erasures"]).await;
            listed["erasures"][0]["complete_time"].is_string()
        })
        .await;
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
