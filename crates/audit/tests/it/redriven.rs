//! Failures of redriven messages, which REDRIVE may no longer have.

use herald_audit::{FindingKind, Scope};
use herald_mesh::{Disposition, Redrive, Subject, consumers::ConsumerKind, streams};
use herald_model::Post;
use herald_proto::mesh_v1::DlqEntry;
use prost::Message as _;

use crate::{
    findings::kinds,
    harness::{LANE, World},
};

/// Terminates a redriven post, so that there is an advisory about a message of REDRIVE. Returns the sequence there.
async fn failed_redrive(world: &World, post: &Post) -> u64 {
    let redrive = Redrive {
        kind: ConsumerKind::Archive,
        dead_letter: 7,
        round: 1,
        subject: Subject::PostCreated(LANE),
        sequence: post.id.0,
        published_at: post.accepted_at,
        payload: herald_posts::created_message(post).encode_to_vec().into(),
        trace_parent: None,
        trace_state: None,
        id: "dlq/7/redrive/1".into(),
    };
    let sent = world.mesh.redrive(&redrive).await.unwrap();
    let failed = Disposition::term("failed");
    world
        .settle_all("redrive-archive", failed, streams::ADVISORIES, 1)
        .await;
    sent.sequence
}

/// Publishes an entry to DLQ, as for a failure. Returns its sequence there.
async fn record_failure(world: &World, stream: &str, consumer: &str, sequence: u64) -> u64 {
    let entry = DlqEntry {
        stream: stream.into(),
        consumer: consumer.into(),
        sequence,
        ..DlqEntry::default()
    };
    let id = format!("{stream}/{consumer}/{sequence}");
    let published = world
        .mesh
        .publish_dead_letter(stream, consumer, &id, &entry)
        .await;
    published.unwrap().sequence
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redriven_message_that_an_erasure_deleted_is_no_finding() {
    let world = World::start().await;
    let (post, _) = world.delivered_post(&[1]).await;
    record_failure(&world, streams::POSTS, "archive", 1).await;
    let redriven = failed_redrive(&world, &post).await;
    let entry = record_failure(&world, streams::REDRIVE, "redrive-archive", redriven).await;
    record_failure(&world, streams::POSTS, "archive", 2).await;
    world.drain().await;
    // The dead letter of the redrive is not known.
    let (_, findings) = world.audit(Scope::All, false).await;
    assert_eq!(kinds(&findings), [FindingKind::Unrecorded]);

    for (stream, sequence) in [(streams::REDRIVE, redriven), (streams::DLQ, entry)] {
        world.mesh.delete_message(stream, sequence).await.unwrap();
    }
    let (_, findings) = world.audit(Scope::All, false).await;
    assert_eq!(findings, []);
}

/// What an audit finds after REDRIVE has lost a failed message, with or without its entry in DLQ. With `has_gap`, DLQ
/// has lost another entry, which was published just before the failure.
async fn findings_past_retention(is_recorded: bool, has_gap: bool) -> Vec<FindingKind> {
    let world = World::start().await;
    let (post, _) = world.delivered_post(&[1]).await;
    let erased = record_failure(&world, streams::POSTS, "archive", 1).await;
    record_failure(&world, streams::POSTS, "archive", 2).await;
    if has_gap {
        world.mesh.delete_message(streams::DLQ, erased).await.unwrap();
    }
    let redriven = failed_redrive(&world, &post).await;
    if is_recorded {
        record_failure(&world, streams::REDRIVE, "redrive-archive", redriven).await;
    }
    record_failure(&world, streams::POSTS, "archive", 3).await;
    world.drain().await;
    world
        .mesh
        .delete_message(streams::REDRIVE, redriven)
        .await
        .unwrap();
    let (_, findings) = world.audit(Scope::All, false).await;
    kinds(&findings)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_of_a_redriven_message_past_its_retention_is_recorded_in_dlq() {
    assert_eq!(findings_past_retention(true, false).await, []);
    assert_eq!(findings_past_retention(true, true).await, []);
    assert_eq!(
        findings_past_retention(false, false).await,
        [FindingKind::Unrecorded]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_removed_at_about_the_time_of_the_failure_may_be_its_entry() {
    // The servers of ADVISORIES and DLQ can have different clocks.
    assert_eq!(findings_past_retention(false, true).await, []);
}
