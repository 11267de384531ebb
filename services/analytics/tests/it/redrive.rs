//! Redrives of dead letters of analytics.

use herald_mesh::{
    Redrive, Subject,
    consumers::{self, ConsumerKind},
    streams,
};
use herald_model::{Channel, Lane, PostId, time::Timestamp};
use herald_proto::mesh_v1::{DeliveriesSettled, PostCreated, SettledChunk};
use prost::Message;

use crate::harness::{HOUR, Harness, wait_until};

/// Redrives a message twice.
async fn redrive(
    harness: &Harness,
    kind: ConsumerKind,
    subject: Subject,
    sequence: u64,
    body: &impl Message,
) {
    for round in [1, 2] {
        let redrive = Redrive {
            kind,
            dead_letter: sequence,
            round,
            subject,
            sequence,
            published_at: Timestamp::now(),
            payload: body.encode_to_vec().into(),
            trace_parent: None,
            trace_state: None,
            id: format!("dlq/{sequence}/redrive/{round}"),
        };
        let published = harness.mesh.redrive(&redrive).await.unwrap().sequence;
        let consumer = consumers::redrive(kind);
        wait_until(async || harness.mesh.ack_floor(streams::REDRIVE, consumer).await.unwrap() >= published)
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redriven_messages_are_counted_once_under_their_original_sequence() {
    let harness = Harness::start().await;
    let running = harness.run(harness.config(), harness.stores.totals.clone()).await;
    let post = PostCreated {
        author_key: 1,
        author_id: "ann".into(),
        accepted_at_us: HOUR,
        ..PostCreated::default()
    };
    let subject = Subject::PostCreated(Lane::Low);
    redrive(&harness, ConsumerKind::AnalyticsPosts, subject, 4_711, &post).await;
    let settled = DeliveriesSettled::from(SettledChunk {
        post_id: 4_711,
        author_key: 1,
        delivered_count: 10,
        accepted_at_us: HOUR,
        settled_at_us: HOUR,
        revision: 1,
        ..SettledChunk::default()
    });
    let subject = Subject::Settled(Channel::Push);
    redrive(&harness, ConsumerKind::AnalyticsEvents, subject, 99, &settled).await;
    running.stop().await;

    let post = harness
        .stores
        .totals
        .post_totals(PostId(4_711))
        .await
        .unwrap()
        .unwrap();
    assert_eq!((post.counts.posts, post.counts.push_delivered), (1, 10));
    let sums = harness.sums().await;
    assert_eq!((sums.posts, sums.push_delivered), (1, 10));
    assert!(harness.rows("posts").contains_key(&("POSTS".to_owned(), 4_711)));
    assert!(
        harness
            .rows("deliveries")
            .contains_key(&("EVENTS".to_owned(), 99))
    );
    for kind in ConsumerKind::ALL {
        let consumer = consumers::redrive(kind);
        assert_eq!(harness.mesh.pending(streams::REDRIVE, consumer).await.unwrap(), 0);
    }
}
