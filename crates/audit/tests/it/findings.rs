//! Discrepancies are reported; correct posts and work in flight are not.

use std::time::Duration;

use herald_audit::{Error, Event, FindingKind, Limits, Repaired, Scope};
use herald_mesh::{Disposition, Subject, streams};
use herald_model::{Channel, FollowVersion, PostId, Recipients, UserKey, time::Timestamp};
use herald_proto::mesh_v1::TimelineChunk;
use herald_store::{ExpectedRevision, Outcome, OutcomeDetails, Settlement, SlicePlan};

use crate::harness::{LANE, World, next_delivery, user, with_corrupt_row};

pub(crate) fn kinds(findings: &[herald_audit::Finding]) -> Vec<FindingKind> {
    findings.iter().map(|finding| finding.kind).collect()
}

pub(crate) fn none() -> Recipients {
    Recipients::from_sorted([])
}

#[tokio::test(flavor = "multi_thread")]
async fn delivered_posts_have_no_findings() {
    let world = World::start().await;
    for _ in 0..3 {
        world.delivered_post(&[1, 2, 3]).await;
    }
    world.drain().await;
    let (summary, findings) = world.audit(Scope::All, false).await;
    assert_eq!(findings, []);
    assert_eq!(
        (
            summary.posts,
            summary.timeline.targeted,
            summary.timeline.delivered
        ),
        (3, 9, 9)
    );
    assert_eq!((summary.timeline_entries, summary.finding_count()), (9, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_that_retention_removed_is_no_finding() {
    for (post_age_max, expected) in [
        (None, vec![FindingKind::Unarchived, FindingKind::Unplanned]),
        (Some(Duration::ZERO), vec![]),
    ] {
        let limits = Limits {
            post_age_max,
            ..Limits::default()
        };
        let world = World::start_with(limits).await;
        world.delivered_post(&[1]).await;
        // As a post that POSTS still has and the archive has no more.
        world.accept().await;
        world.drain().await;
        let (_, findings) = world.audit(Scope::All, false).await;
        assert_eq!(kinds(&findings), expected, "{post_age_max:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_accepted_post_that_was_lost_is_reported() {
    let world = World::start().await;
    world.delivered_post(&[1]).await;
    let post = world.accept().await;
    // In flight until a consumer acknowledges the post.
    let (summary, findings) = world.audit(Scope::All, false).await;
    assert_eq!(findings, []);
    assert_eq!(summary.planning_posts, 1);

    world.drain().await;
    let (_, findings) = world.audit(Scope::All, false).await;
    assert_eq!(
        kinds(&findings),
        [FindingKind::Unarchived, FindingKind::Unplanned]
    );
    assert!(
        findings
            .iter()
            .all(|finding| finding.post == Some(post.id) && finding.repaired == Repaired::NotRequested)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_chunk_is_reported_for_each_recipient() {
    let world = World::start().await;
    world.delivered_post(&[1, 2]).await;
    let post = world.accept().await;
    let recipients = world.intern_users(&[1, 2]).await;
    world.archive(&post).await;
    world.plan(post.id, &[(Channel::Timeline, &recipients)]).await;
    let chunk = TimelineChunk::new(post.id, world.author, post.accepted_at, &recipients);
    world
        .mesh
        .publish(Subject::TimelineDeliver(LANE), None, &chunk)
        .await
        .unwrap();
    let (summary, findings) = world.audit(Scope::All, false).await;
    assert_eq!(findings, []);
    assert_eq!(summary.timeline.pending, 2);
    assert_eq!(summary.oldest_pending_at, Some(post.accepted_at));

    // The message is acknowledged without a delivery.
    world.drain().await;
    let (_, findings) = world.audit(Scope::Post(post.id), false).await;
    assert_eq!(kinds(&findings), [FindingKind::Lost, FindingKind::Lost]);
    let users: Vec<_> = findings
        .iter()
        .map(|finding| finding.user.clone().unwrap())
        .collect();
    assert_eq!(users, [user(1), user(2)]);
    assert!(
        findings
            .iter()
            .all(|finding| finding.chunk == Some(recipients.chunk_id()))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn slices_of_a_post_at_different_follow_versions_are_reported() {
    let world = World::start().await;
    for (versions, expected) in [([1, 1], vec![]), ([1, 2], vec![FindingKind::Inconsistent])] {
        let post = world.accept().await;
        world.archive(&post).await;
        for (slice, version) in (0..).zip(versions) {
            let plan = SlicePlan {
                post: post.id,
                author: world.author,
                slice,
                version: FollowVersion(version),
                chunks: Vec::new(),
                next_after: (slice == 0).then_some(UserKey(9)),
            };
            world.stores.ledger.plan(plan).await.unwrap();
        }
        let (_, findings) = world.audit(Scope::Post(post.id), false).await;
        assert_eq!(kinds(&findings), expected, "{versions:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_and_extra_entries_are_reported() {
    let world = World::start().await;
    world.delivered_post(&[1, 2, 3]).await;
    let post = world.accept().await;
    let planned = world.intern_users(&[1, 2]).await;
    world.archive(&post).await;
    world.plan(post.id, &[(Channel::Timeline, &planned)]).await;
    // The second user is planned but has no entry; the third has an entry without a plan.
    world
        .put_on_timelines(post.id, &world.intern_users(&[1, 3]).await)
        .await;
    world
        .settle(
            post.id,
            Channel::Timeline,
            &planned,
            Outcome::Delivered { count: 2 },
        )
        .await;
    world.add_totals(post.id, 2, 0).await;
    world.drain().await;

    let (_, mut findings) = world.audit(Scope::All, false).await;
    findings.sort_by_key(|finding| finding.kind);
    assert_eq!(kinds(&findings), [FindingKind::Missing, FindingKind::Extra]);
    assert_eq!(findings[0].user, Some(user(2)));
    assert_eq!(findings[1].user, Some(user(3)));
    assert!(findings.iter().all(|finding| finding.post == Some(post.id)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backfilled_entry_is_not_extra() {
    let world = World::start().await;
    let (post, _) = world.delivered_post(&[1]).await;
    let newcomer = world.intern_users(&[9]).await;
    world
        .stores
        .ledger
        .record_backfill(&[post.id], &newcomer)
        .await
        .unwrap();
    world.put_on_timelines(post.id, &newcomer).await;
    world.drain().await;
    let (summary, findings) = world.audit(Scope::All, false).await;
    assert_eq!(findings, []);
    assert_eq!(summary.backfilled, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_trimmed_from_a_full_timeline_are_not_missing() {
    let limits = Limits {
        timeline_entries_max: 5,
        ..Limits::default()
    };
    let world = World::start_with(limits).await;
    for _ in 0..8 {
        world.delivered_post(&[1]).await;
    }
    world.drain().await;
    let (summary, findings) = world.audit(Scope::All, false).await;
    assert_eq!(findings, []);
    assert_eq!((summary.posts, summary.timeline_entries), (8, 8));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_advisory_without_a_dead_letter_is_reported() {
    let world = World::start().await;
    world.delivered_post(&[1]).await;
    let terminate = Disposition::term("terminated by the test");
    world
        .settle_all("fanout-normal", terminate, streams::ADVISORIES, 1)
        .await;
    // The advisory is in flight.
    let (_, findings) = world.audit(Scope::All, false).await;
    assert_eq!(findings, []);
    // The advisory is acknowledged without a dead letter.
    world.drain().await;
    let (_, findings) = world.audit(Scope::All, true).await;
    assert_eq!(kinds(&findings), [FindingKind::Unrecorded]);
    assert!(findings[0].detail.contains("fanout-normal"), "{findings:?}");
    // The repair publishes the advisory again.
    assert_eq!(findings[0].repaired, Repaired::Sent);
    assert_eq!(world.mesh.last_sequence(streams::ADVISORIES).await.unwrap(), 2);
    let again = next_delivery(&world, "deadletter").await;
    assert_eq!(again.subject, Subject::Terminated);
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_recipients_without_a_dead_letter_are_reported() {
    let world = World::start().await;
    let post = world.accept().await;
    let recipients = world.intern_users(&[1, 2, 3]).await;
    world.archive(&post).await;
    world.plan(post.id, &[(Channel::Push, &recipients)]).await;
    let outcome = Outcome::Mixed {
        delivered: world.intern_users(&[1, 2]).await,
        suppressed: none(),
        expired: none(),
        dead: world.intern_users(&[3]).await,
        details: OutcomeDetails::default(),
    };
    world.settle(post.id, Channel::Push, &recipients, outcome).await;
    world.drain().await;
    let (summary, mut findings) = world.audit(Scope::All, false).await;
    findings.sort_by_key(|finding| finding.kind);
    // Analytics received no event either.
    assert_eq!(
        kinds(&findings),
        [FindingKind::Unexplained, FindingKind::Miscounted]
    );
    assert_eq!(findings[0].deliveries, 1);
    assert_eq!(
        (summary.push.targeted, summary.push.delivered, summary.push.dead),
        (3, 2, 1)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn inconsistent_states_are_reported() {
    let world = World::start().await;
    let (post, recipients) = world.delivered_post(&[1, 2]).await;
    // User 2 is in two final states, and user 7 was not planned.
    let outcome = Outcome::Mixed {
        delivered: world.intern_users(&[1, 2]).await,
        suppressed: world.intern_users(&[2]).await,
        expired: world.intern_users(&[7]).await,
        dead: none(),
        details: OutcomeDetails::default(),
    };
    let settlement = Settlement {
        post: post.id,
        channel: Channel::Timeline,
        chunk: recipients.chunk_id(),
        base: ExpectedRevision::Revision(1),
        outcome,
        at: Timestamp::now(),
        keep_claim: None,
    };
    world.stores.ledger.settle(&settlement).await.unwrap();
    world.drain().await;
    let (_, findings) = world.audit(Scope::All, false).await;
    assert!(
        kinds(&findings).contains(&FindingKind::Inconsistent),
        "{findings:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn posts_before_the_scope_are_not_checked() {
    let world = World::start().await;
    let old = world.accept().await;
    let (new, _) = world.delivered_post(&[1]).await;
    world.drain().await;
    let (summary, findings) = world.audit(Scope::Since(new.accepted_at), false).await;
    assert_eq!((summary.posts, findings), (1, Vec::new()));
    let (_, findings) = world.audit(Scope::Post(old.id), false).await;
    assert_eq!(findings.len(), 2);
    let (summary, findings) = world.audit(Scope::Since(Timestamp(0)), false).await;
    assert_eq!((summary.posts, findings.len()), (2, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn posts_removed_from_the_stream_are_checked_by_the_ledger() {
    let limits = Limits {
        work_share: 0.5,
        ..Limits::default()
    };
    let world = World::start_with(limits).await;
    let _before_scope = world.delivered_post(&[1]).await;
    let (only_in_ledger, _) = world.delivered_post(&[1]).await;
    let (in_stream, _) = world.delivered_post(&[1]).await;
    world.drain().await;
    world.purge_before(in_stream.id).await;
    let (summary, findings) = world.audit(Scope::Since(only_in_ledger.accepted_at), false).await;
    assert_eq!((summary.posts, findings), (2, Vec::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_post_or_a_dropped_receiver_ends_an_audit() {
    let world = World::start().await;
    world.delivered_post(&[1]).await;
    let (events, receiver) = tokio::sync::mpsc::channel::<Event>(1);
    let unknown = world
        .auditor
        .run(Scope::Post(PostId(99)), false, &events)
        .await
        .unwrap_err();
    assert!(matches!(unknown, Error::UnknownPost(PostId(99))), "{unknown}");
    drop(receiver);
    world.accept().await;
    world.drain().await;
    let abandoned = world.auditor.run(Scope::All, false, &events).await.unwrap_err();
    assert!(matches!(abandoned, Error::Abandoned), "{abandoned}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_post_of_the_archive_is_reported_and_other_posts_are_checked() {
    let dir = with_corrupt_row("records", "posts", &2_u64.to_be_bytes());
    let world = World::start_in(dir, Limits::default()).await;
    world.delivered_post(&[1, 2]).await;
    let corrupt = world.accept().await;
    world.plan(corrupt.id, &[]).await;
    let lost = world.accept().await;
    world.plan(lost.id, &[]).await;
    world.drain().await;
    let (summary, findings) = world.audit(Scope::All, false).await;
    let found: Vec<_> = findings
        .iter()
        .map(|finding| (finding.kind, finding.post))
        .collect();
    assert_eq!(
        found,
        [
            (FindingKind::Inconsistent, Some(corrupt.id)),
            (FindingKind::Unarchived, Some(lost.id)),
        ]
    );
    assert!(
        findings[0]
            .detail
            .starts_with("the post in the archive can't be read: ")
    );
    assert_eq!(summary.posts, 3);
}

/// Corrupt rows of one post must not prevent findings about other posts.
#[tokio::test(flavor = "multi_thread")]
async fn corrupt_rows_are_reported_and_other_posts_are_checked() {
    // An outcome of a push chunk of post 1, and the totals of post 2.
    let outcome = [&1_u64.to_be_bytes()[..], &[1, 1], &77_u64.to_be_bytes()].concat();
    let totals = 2_u64.to_be_bytes();
    for ((database, keyspace), key, corrupt, detail) in [
        (
            ("records", "ledger"),
            &outcome[..],
            1,
            "the post's rows in the ledger can't be read: ",
        ),
        (
            ("totals", "totals_posts"),
            &totals[..],
            2,
            "the post's totals can't be read: ",
        ),
    ] {
        let limits = Limits::default();
        let world = World::start_in(with_corrupt_row(database, keyspace, key), limits).await;
        for post in 1..=2 {
            if post == corrupt {
                let post = world.accept_uncounted().await;
                world.archive(&post).await;
                world.plan(post.id, &[]).await;
            } else {
                world.delivered_post(&[1, 2]).await;
            }
        }
        let lost = world.accept().await;
        world.drain().await;
        let (summary, findings) = world.audit(Scope::All, false).await;
        let found: Vec<_> = findings
            .iter()
            .map(|finding| (finding.kind, finding.post))
            .collect();
        assert_eq!(
            found,
            [
                (FindingKind::Inconsistent, Some(PostId(corrupt))),
                (FindingKind::Unarchived, Some(lost.id)),
                (FindingKind::Unplanned, Some(lost.id)),
            ]
        );
        assert!(findings[0].detail.starts_with(detail), "{findings:?}");
        assert_eq!((summary.posts, summary.timeline.delivered), (3, 2));
        let (_, findings) = world.audit(Scope::Post(PostId(corrupt)), false).await;
        assert_eq!(kinds(&findings), [FindingKind::Inconsistent]);
    }
}
