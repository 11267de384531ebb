//! Repairs publish the missing work to the right consumers.

use herald_audit::{FindingKind, Repaired, Scope};
use herald_mesh::Subject;
use herald_model::{Channel, ChunkId};
use herald_proto::mesh_v1::{PostCreated, TimelineChunk};
use herald_store::Outcome;

use crate::harness::{LANE, World, next_delivery};

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_post_is_redriven_to_archive_and_fanout_with_its_id() {
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
        let delivery = next_delivery(&world, consumer).await;
        assert_eq!(
            (delivery.subject, delivery.sequence),
            (Subject::PostCreated(LANE), post.id.0)
        );
        let again: PostCreated = delivery.decode().unwrap();
        assert_eq!(again.request_id, post.request_id);
    }
}

/// As after a restore: POSTS begins anew, and analytics had not come to the post.
#[tokio::test(flavor = "multi_thread")]
async fn a_post_that_analytics_has_not_counted_is_redriven_to_it() {
    let world = World::start().await;
    let post = world.accept_uncounted().await;
    world.archive(&post).await;
    world.plan(post.id, &[]).await;
    // Its message may still be counted.
    let (_, findings) = world.audit(Scope::All, false).await;
    assert_eq!(findings, []);
    world.drain().await;
    let (_, findings) = world.audit(Scope::All, true).await;
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert_eq!(
        (findings[0].kind, &findings[0].repaired),
        (FindingKind::Miscounted, &Repaired::Sent)
    );
    // While the message is on its way, the post is no finding.
    let (_, findings) = world.audit(Scope::All, true).await;
    assert_eq!(findings, []);
    let delivery = next_delivery(&world, "redrive-analytics-posts").await;
    assert_eq!(
        (delivery.subject, delivery.sequence),
        (Subject::PostCreated(LANE), post.id.0)
    );
}

/// As after a recovery of POSTS, or when POSTS was trimmed by age before fan-out came to the post.
#[tokio::test(flavor = "multi_thread")]
async fn a_post_that_only_the_archive_has_is_found_and_expanded() {
    let world = World::start().await;
    let post = world.accept().await;
    world.archive(&post).await;
    world.drain().await;
    let topology = herald_mesh::Topology::new(&herald_mesh::TopologyConfig::default()).unwrap();
    world
        .mesh
        .begin_anew(&topology, "POSTS", 2_000_000, 0)
        .await
        .unwrap();
    for scope in [Scope::All, Scope::Post(post.id), Scope::Since(post.accepted_at)] {
        let (summary, findings) = world.audit(scope, false).await;
        assert_eq!(summary.posts, 1, "{scope:?}");
        assert_eq!(
            summary.findings.get(&FindingKind::Unplanned),
            Some(&1),
            "{scope:?}: {findings:?}"
        );
    }
    let (_, findings) = world.audit(Scope::All, true).await;
    assert_eq!(findings[0].repaired, Repaired::Sent, "{findings:?}");
    let delivery = next_delivery(&world, "redrive-fanout").await;
    assert_eq!(
        (delivery.subject, delivery.sequence),
        (Subject::PostCreated(LANE), post.id.0)
    );
    let again: PostCreated = delivery.decode().unwrap();
    assert_eq!(again.request_id, post.request_id);

    // Deleted, it is owed to nobody.
    let deleted = herald_store::Archived::Deleted {
        post: post.id,
        at: post.accepted_at,
    };
    world.stores.posts.archive(&[deleted]).await.unwrap();
    world.drain().await;
    let (_, findings) = world.audit(Scope::All, false).await;
    assert_eq!(findings, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_entries_of_one_chunk_are_redriven_once() {
    let world = World::start().await;
    let post = world.accept().await;
    let recipients = world.intern_users(&[1, 2, 3]).await;
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
    world.add_totals(post.id, 3, 0).await;
    world.drain().await;
    let (summary, findings) = world.audit(Scope::All, true).await;
    assert_eq!(
        summary.findings.get(&FindingKind::Missing),
        Some(&3),
        "{findings:?}"
    );

    let delivery = next_delivery(&world, "redrive-timeline").await;
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
        "the chunk is redriven once for three missing entries"
    );

    // No findings after the delivery.
    world.put_on_timelines(post.id, &recipients).await;
    let (_, findings) = world.audit(Scope::All, true).await;
    assert_eq!(findings, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_extra_entry_is_reported_and_not_removed() {
    let world = World::start().await;
    let (post, _) = world.delivered_post(&[1]).await;
    world
        .put_on_timelines(post.id, &world.intern_users(&[2]).await)
        .await;
    world.drain().await;
    let (summary, findings) = world.audit(Scope::All, true).await;
    assert_eq!(summary.repaired, 0);
    assert!(
        matches!(&findings[..], [one] if one.kind == FindingKind::Extra
        && matches!(one.repaired, Repaired::Failed(_))),
        "{findings:?}"
    );
}
