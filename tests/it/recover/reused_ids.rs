//! A broker that lost posts which no mark remembers, and gave their ids again before the streams were compared.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::*;

/// Where a nats-server keeps the messages of POSTS; the state of consumers is elsewhere.
fn messages_of_posts(server: &Path) -> PathBuf {
    let account = entries(&server.join("jetstream/jetstream"))
        .find(|dir| dir.join("streams/POSTS").exists())
        .unwrap();
    account.join("streams/POSTS/msgs")
}

async fn submit(world: &World, text: &str) -> tonic::Result<u64> {
    let request = v1::SubmitPostRequest {
        author_id: "bob".into(),
        text: text.into(),
        ..Default::default()
    };
    let posted = world.clients().await.posts().submit_post(request).await?;
    Ok(posted.into_inner().post_id)
}

/// The consumers have kept their state, so nobody is sent the posts with the known ids: no dead letter tells of them.
#[tokio::test(flavor = "multi_thread")]
async fn ids_that_were_given_twice_before_any_check_are_found_and_renamed() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(ServerConfig::in_dir(dir.path())).await.unwrap();
    let url = server.client_url();
    let at_server = ("HERALD_NATS__URL".to_owned(), url.clone());
    let mut world = World::start_with(Options {
        variables: vec![at_server],
        ..Options::default()
    })
    .await;
    assert_eq!(world.post(&["one"]).await, [1]);
    world.stop().await;
    // A start compares the streams, and marks post 1.
    world.herald.restart().await;
    world.stop().await;
    server.stop().await.unwrap();
    let messages = messages_of_posts(dir.path());
    let saved = dir.path().join("saved");
    parts::copy(&messages, &saved);
    server.restart().await.unwrap();

    // Posts 2 and 3 are archived and delivered, and get no mark.
    let unmarked = ("FAILPOINTS".to_owned(), "store.mark=return(error)".to_owned());
    world.herald.options_mut().variables.push(unmarked);
    world.herald.restart().await;
    assert_eq!(world.post(&["two", "three"]).await, [2, 3]);
    server.stop().await.unwrap();
    fs::remove_dir_all(&messages).unwrap();
    parts::copy(&saved, &messages);
    server.restart().await.unwrap();
    let broker = jetstream::new(async_nats::connect(&url).await.unwrap());
    let stream = broker.get_stream("POSTS").await.unwrap();
    assert_eq!(stream.cached_info().state.last_sequence, 1);
    let first = stream.get_raw_message(1).await.unwrap();
    let first = PostCreated::decode(first.payload).unwrap();
    for (text, id) in [("other two", 2), ("other three", 3), ("four", 4)] {
        let post = PostCreated {
            request_id: text.into(),
            text: text.into(),
            ..first.clone()
        };
        let published = broker.publish("post.v1.created.normal", post.encode_to_vec().into());
        assert_eq!(published.await.unwrap().await.unwrap().sequence, id);
    }
    until("the other posts are noticed", LIMIT, || async {
        let ready = http_get(world.herald.http(), "/readyz").await;
        ready.contains("used their sequences again: message 2 is another one than post 2 of the store")
    })
    .await;
    let refused = submit(&world, "refused").await.unwrap_err();
    let details = refused.get_error_details();
    let reason = details.error_info().map(|info| info.reason.clone());
    assert_eq!(reason.as_deref(), Some("STREAMS_DAMAGED"), "{refused:?}");
    world.stop().await;

    // A start that could write marks doesn't move them past the posts in question.
    world.herald.options_mut().variables.pop();
    let at_server = [("HERALD_NATS__URL", url.as_str())];
    let data = world.herald.data_dir();
    let data = data.to_str().unwrap();
    let up = [
        "up",
        "--grpc",
        "127.0.0.1:0",
        "--operator-grpc",
        "127.0.0.1:0",
        "--http",
        "127.0.0.1:0",
        "--data-dir",
        data,
    ];
    let refused = run(HERALD, &up, &at_server).await;
    assert_ne!(refused.code, 0, "{refused:?}");
    assert!(refused.stderr.contains("herald recover"), "{refused:?}");

    let recovered = world.recover_on(&[], &at_server).await;
    let renamed = recovered["posts_renamed"].as_array().unwrap();
    let numbers = |name| renamed.iter().map(move |post| post[name].as_u64().unwrap());
    assert_eq!(numbers("told_id").collect::<Vec<_>>(), [2, 3], "{recovered}");
    let ids: Vec<u64> = numbers("id").collect();
    let again = world.recover_on(&["--dry-run"], &at_server).await;
    assert_eq!(problems(&again), Vec::<&str>::new(), "{again}");
    world.herald.restart().await;
    world.settle().await;
    world.repair().await;
    world.assert_timelines(&[ids[1], ids[0], 4, 3, 2, 1]).await;
    let new = world.post(&["five"]).await;
    assert!(new[0] >= 2_000_000, "{new:?}");
    world.stop().await;
}
