//! Deliveries whose message is in flight, redriven or delayed are not lost.

use std::time::Duration;

use herald_audit::{FindingKind, Scope};
use herald_mesh::{
    Disposition, Redrive, Subject, Topology, TopologyConfig, Wait, consumers::ConsumerKind, streams,
};
use herald_model::{Channel, DeviceId, Recipients, time::Timestamp};
use herald_proto::mesh_v1::{PushChunk, TimelineChunk};
use herald_store::{DeviceRetry, Outcome, OutcomeDetails, PendingRecipient, PushFailure};
use prost::Message as _;

use crate::{
    findings::{kinds, none},
    harness::{LANE, World},
};

#[tokio::test(flavor = "multi_thread")]
async fn redriven_chunks_are_in_flight() {
    let world = World::start().await;
    let mut redrives = Vec::new();
    for number in [1, 2] {
        let post = world.accept().await;
        let recipients = world.intern_users(&[number]).await;
        world.archive(&post).await;
        world.plan(post.id, &[(Channel::Timeline, &recipients)]).await;
        let chunk = TimelineChunk::new(post.id, world.author, post.accepted_at, &recipients);
        redrives.push(Redrive {
            kind: ConsumerKind::Timeline,
            dead_letter: number.into(),
            round: 1,
            subject: Subject::TimelineDeliver(LANE),
            sequence: 1,
            published_at: post.accepted_at,
            payload: chunk.encode_to_vec().into(),
            trace_parent: None,
            trace_state: None,
            id: format!("dlq/{number}/redrive/1"),
        });
    }
    world.drain().await;
    for redrive in &redrives {
        world.mesh.redrive(redrive).await.unwrap();
    }
    let (summary, findings) = world.audit(Scope::All, false).await;
    assert_eq!(findings, []);
    assert_eq!(summary.timeline.pending, 2);

    world.drain().await;
    let (_, findings) = world.audit(Scope::All, false).await;
    assert_eq!(kinds(&findings), [FindingKind::Lost, FindingKind::Lost]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delayed_push_is_not_lost() {
    let world = World::start().await;
    let post = world.accept().await;
    let recipients = world.intern_users(&[1, 2]).await;
    world.archive(&post).await;
    world.plan(post.id, &[(Channel::Push, &recipients)]).await;
    let expires_at = post.accepted_at.plus(post.push_ttl);
    let chunk = PushChunk::new(post.id, world.author, post.accepted_at, expires_at, &recipients);
    world
        .mesh
        .publish(Subject::PushDeliver(LANE), None, &chunk)
        .await
        .unwrap();
    let later = Disposition::retry_after(Duration::from_mins(10), "retry after 600 s");
    world.settle_all("push-normal", later, streams::LATER, 1).await;
    world.drain().await;
    let (summary, findings) = world.audit(Scope::All, false).await;
    assert_eq!(findings, []);
    assert_eq!(summary.push.pending, 2);
}

/// Of three recipients one is delivered, one waits in a copy of the message, and one was not tried yet.
#[tokio::test(flavor = "multi_thread")]
async fn a_recipient_that_waits_for_its_retry_is_not_lost() {
    let world = World::start().await;
    let post = world.accept().await;
    let recipients = world.intern_users(&[1, 2, 3]).await;
    world.archive(&post).await;
    world.plan(post.id, &[(Channel::Push, &recipients)]).await;
    let users: Vec<_> = recipients.iter().collect();
    let outcome = Outcome::Mixed {
        delivered: Recipients::from_sorted([users[0]]),
        suppressed: none(),
        expired: none(),
        dead: none(),
        details: OutcomeDetails {
            generation: 1,
            pending: vec![PendingRecipient {
                waiting: vec![DeviceRetry {
                    device: DeviceId(5),
                    attempts: 1,
                    next_at: Timestamp::now(),
                    failure: PushFailure::new("webhook status 503", "hooks.example.com"),
                }],
                ..PendingRecipient::new(users[1])
            }],
            ..OutcomeDetails::default()
        },
    };
    world.settle(post.id, Channel::Push, &recipients, outcome).await;
    let expires_at = post.accepted_at.plus(post.push_ttl);
    let chunk = PushChunk::new(post.id, world.author, post.accepted_at, expires_at, &recipients);
    let published = world.mesh.publish(Subject::PushDeliver(LANE), None, &chunk).await;
    published.unwrap();
    let copy = PushChunk {
        retry_generation: 1,
        ..chunk
    };
    let wait = Disposition::Wait(Wait {
        after: Duration::from_mins(10),
        number: 1,
        payload: Some(copy.encode_to_vec().into()),
        reason: "push is pending".into(),
        failed: None,
    });
    world.settle_all("push-normal", wait, streams::LATER, 1).await;
    world.drain().await;
    let (summary, findings) = world.audit(Scope::Post(post.id), false).await;
    let lost = findings
        .iter()
        .filter(|finding| finding.kind == FindingKind::Lost);
    assert_eq!(lost.count(), 0, "{findings:?}");
    assert_eq!((summary.push.pending, summary.push.delivered), (2, 1));
}

/// After `max_deliver` is lowered, the message no longer counts as pending. Server 2.15.2 was seen to send an advisory
/// in this case; other versions don't. Nothing handles the advisory in this test, so the delivery is lost and must be
/// reported.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_dropped_by_a_lowered_max_deliver_is_reported() {
    let world = World::start().await;
    let post = world.accept().await;
    let recipients = world.intern_users(&[1]).await;
    world.archive(&post).await;
    world.plan(post.id, &[(Channel::Timeline, &recipients)]).await;
    let chunk = TimelineChunk::new(post.id, world.author, post.accepted_at, &recipients);
    world
        .mesh
        .publish(Subject::TimelineDeliver(LANE), None, &chunk)
        .await
        .unwrap();
    let again = Disposition::retry_after(Duration::ZERO, "not yet");
    let tried = async || world.deliveries_of("timeline-normal").await >= 4;
    world.settle_until("timeline-normal", again, tried).await;

    let mut config = TopologyConfig::default();
    config.consumers.timeline.attempts_max = 3;
    config.consumers.timeline.fault_attempts_max = 3;
    world.mesh.ensure(&Topology::new(&config).unwrap()).await.unwrap();
    world.drain().await;
    let (_, findings) = world.audit(Scope::All, false).await;
    assert!(kinds(&findings).contains(&FindingKind::Lost), "{findings:?}");
}
