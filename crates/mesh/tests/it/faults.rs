use std::collections::BTreeSet;
use std::time::Duration;

use herald_mesh::{ConsumeOptions, streams};
use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{CONSUMER, Fixture, SUBJECT, ScriptedHandler, chunk, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_under_load_loses_nothing() {
    restart_under_load(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_under_load_loses_nothing() {
    restart_under_load(true).await;
}

/// Publishes with ids while a worker consumes and the server restarts three times: each acknowledged publish is stored
/// once, handled at least once, and acknowledged.
async fn restart_under_load(crash: bool) {
    const POSTS: u64 = 3_000;
    // A message in flight at a restart is redelivered after this.
    let mut fixture = Fixture::start_with(|config| config.consumers.timeline.ack_wait_seconds = 2).await;
    let (handler, mut seen) = ScriptedHandler::acks();
    let worker = fixture.spawn_worker(handler, ConsumeOptions::default());

    let mesh = fixture.mesh.clone();
    let publishing = tokio::spawn(async move {
        let mut sequences = BTreeSet::new();
        for first in (1..=POSTS).step_by(50) {
            let chunks: Vec<_> = (first..first + 50)
                .map(|post| (post.to_string(), chunk(post)))
                .collect();
            let sent = chunks
                .iter()
                .map(|(id, chunk)| mesh.publish(SUBJECT, Some(id), chunk));
            for published in futures::future::join_all(sent).await {
                sequences.insert(published.unwrap().sequence);
            }
        }
        sequences
    });
    for goal in [500, 1_200, 2_000] {
        until("more messages are stored", async || {
            fixture
                .mesh
                .last_sequence(streams::TIMELINE)
                .await
                .is_ok_and(|last| last >= goal)
        })
        .await;
        if crash {
            fixture.server.kill().await.unwrap();
        }
        fixture.server.restart().await.unwrap();
    }
    let sequences = publishing.await.unwrap();
    assert!(sequences.into_iter().eq(1..=POSTS), "each is stored once");
    seen.posts(1..=POSTS).await;
    fixture.wait_until_settled().await;
    worker.stop().await;
    assert!(fixture.mesh.is_connected());
}

#[tokio::test]
async fn an_idle_worker_pulls_again_as_soon_as_the_server_is_back() {
    let mut fixture = Fixture::start().await;
    let (handler, mut seen) = ScriptedHandler::acks();
    let worker = fixture.spawn_worker(handler, ConsumeOptions::default());
    fixture.publish([1]).await;
    seen.posts([1]).await;
    fixture.wait_until_settled().await;
    fixture.server.restart().await.unwrap();
    until("the mesh is connected", async || fixture.mesh.is_connected()).await;
    let back = tokio::time::Instant::now();
    fixture.publish([2]).await;
    seen.posts([2]).await;
    // Long before a missing heartbeat is detected.
    assert!(back.elapsed() < Duration::from_secs(5), "{:?}", back.elapsed());
    fixture.wait_until_settled().await;
    worker.stop().await;
}

/// A frozen machine closes no connection; another server of its cluster may be well.
#[tokio::test]
async fn a_silent_server_is_left() {
    let fixture = Fixture::start().await;
    let pid = i32::try_from(fixture.server.pid())
        .ok()
        .and_then(Pid::from_raw)
        .unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    until("the mesh is disconnected", async || !fixture.mesh.is_connected()).await;
    kill_process(pid, Signal::CONT).unwrap();
    until("the mesh is connected", async || fixture.mesh.is_connected()).await;
}

#[tokio::test]
async fn a_shutdown_needs_no_server() {
    let mut fixture = Fixture::start().await;
    let (handler, mut seen) = ScriptedHandler::acks();
    let worker = fixture.spawn_worker(handler, ConsumeOptions::default());
    fixture.publish([1]).await;
    seen.posts([1]).await;
    fixture.server.kill().await.unwrap();
    until("the mesh is disconnected", async || !fixture.mesh.is_connected()).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_deleted_consumer_is_created_again() {
    let fixture = Fixture::start().await;
    let (handler, mut seen) = ScriptedHandler::acks();
    let worker = fixture.spawn_worker(handler, ConsumeOptions::default());
    fixture.publish([1]).await;
    seen.posts([1]).await;
    let jetstream = fixture.jetstream().await;
    jetstream
        .delete_consumer_from_stream(CONSUMER, streams::TIMELINE)
        .await
        .unwrap();
    fixture.publish([2]).await;
    seen.posts([2]).await;
    fixture.wait_until_settled().await;
    worker.stop().await;
}

#[tokio::test]
async fn a_worker_can_start_before_its_stream_and_consumer_exist() {
    let fixture = Fixture::start().await;
    fixture
        .jetstream()
        .await
        .delete_stream(streams::TIMELINE)
        .await
        .unwrap();
    let (handler, mut seen) = ScriptedHandler::acks();
    let worker = fixture.spawn_worker(handler, ConsumeOptions::default());
    fixture.mesh.ensure(&fixture.topology).await.unwrap();
    fixture.publish([1]).await;
    seen.posts([1]).await;
    fixture.wait_until_settled().await;
    worker.stop().await;
}
