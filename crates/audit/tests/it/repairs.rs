//! What is owed is sent again, to the consumers whose part is missing.

use herald_audit::{FindingKind, Repaired, Scope};
use herald_mesh::Subject;
use herald_model::{Channel, ChunkId};
use herald_proto::mesh_v1::{PostCreated, TimelineChunk};
use herald_store::Outcome;

use crate::harness::{LANE, World, next_of};

#[tokio::test(flavor = "multi_thread")]
async fn a_forgotten_post_is_archived_and_expanded_again_under_its_own_id() {
    let world = World::start().await;
    let post = world.accept().await;
    world.drain().await;
    let (summary, findings) = world.audit(Scope::All, true).await;
    assert!(
        findings.iter().all(|finding| finding.repaired == Repaired::Sent),
        "{findings:?}"
    );
    assert_eq!(summary.repaired, 2);
    for consumer in ["redrive-archive", "redrive-fanout"] {
        let delivery = next_of(&world, consumer).await;
        assert_eq!(
            (delivery.subject, delivery.sequence),
            (Subject::PostCreated(LANE), post.id.0)
        );
        let again: PostCreated = delivery.decode().unwrap();
        assert_eq!(again.request_id, post.request_id);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_entry_has_its_chunk_sent_again_once() {
    let world = World::start().await;
    let post = world.accept().await;
    let recipients = world.keys(&[1, 2, 3]).await;
    world.archive(&post).await;
    world.plan(post.id, &[(Channel::Timeline, &recipients)]).await;
    world
        .settle(
            post.id,
            Channel::Timeline,
            &recipients,
            Outcome::Delivered { count: 3 },
        )
        .await;
    world.count(post.id, 3, 0).await;
    world.drain().await;
    let (summary, findings) = world.audit(Scope::All, true).await;
    assert_eq!(
        summary.findings.get(&FindingKind::Missing),
        Some(&3),
        "{findings:?}"
    );

    let delivery = next_of(&world, "redrive-timeline").await;
    assert_eq!(delivery.subject, Subject::TimelineDeliver(LANE));
    let chunk: TimelineChunk = delivery.decode().unwrap();
    assert_eq!(
        (chunk.post_id, ChunkId(chunk.chunk_id)),
        (post.id.0, recipients.chunk_id())
    );
    assert_eq!(chunk.recipients, *recipients.as_bytes());
    assert_eq!(
        world.mesh.last_sequence("REDRIVE").await.unwrap(),
        1,
        "once, however many are missing"
    );

    // Once it is delivered, nothing is wrong.
    world.put_on_timelines(post.id, &recipients).await;
    let (_, findings) = world.audit(Scope::All, true).await;
    assert_eq!(findings, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_extra_is_told_and_left() {
    let world = World::start().await;
    let (post, _) = world.right(&[1]).await;
    world.put_on_timelines(post.id, &world.keys(&[2]).await).await;
    world.drain().await;
    let (summary, findings) = world.audit(Scope::All, true).await;
    assert_eq!(summary.repaired, 0);
    assert!(
        matches!(&findings[..], [one] if one.kind == FindingKind::Extra
        && matches!(one.repaired, Repaired::Failed(_))),
        "{findings:?}"
    );
}
