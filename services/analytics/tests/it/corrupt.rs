//! A corrupt row of the store fails the messages that need it, and no other message of their batches.

use herald_analytics::Config;
use herald_mesh::{
    Redrive, Subject,
    consumers::{self, ConsumerKind},
    streams,
};
use herald_model::{Channel, PostId, time::Timestamp};
use herald_store::{ErrorKind, SettledCounts};

use crate::harness::{HOUR, Harness, NEXT_HOUR, settled, wait_until};

/// The post with a corrupt row.
const CORRUPT_POST: u64 = 107;
/// Hours from 1970 to [`HOUR`].
const CORRUPT_HOUR: u32 = 490_906;
/// The value of a corrupt row.
const GARBAGE: &[u8] = &[0xff];

/// A configuration that gathers all pending messages in one batch.
fn one_batch(harness: &Harness) -> Config {
    Config {
        batch_rows_max: 10_000,
        batch_age_ms_max: 500,
        ..harness.config()
    }
}

/// Redrives the messages of EVENTS with these sequences.
async fn redrive(harness: &Harness, sequences: impl IntoIterator<Item = u64>) {
    let mut last = 0;
    for sequence in sequences {
        let message = harness
            .mesh
            .message(streams::EVENTS, sequence)
            .await
            .unwrap()
            .unwrap();
        let redrive = Redrive {
            kind: ConsumerKind::AnalyticsEvents,
            dead_letter: sequence,
            round: 1,
            subject: Subject::parse(&message.subject).unwrap(),
            sequence,
            published_at: Timestamp::now(),
            payload: message.payload.clone(),
            trace_parent: None,
            trace_state: None,
            id: format!("dlq/{sequence}/redrive/1"),
        };
        last = harness.mesh.redrive(&redrive).await.unwrap().sequence;
    }
    let consumer = consumers::redrive(ConsumerKind::AnalyticsEvents);
    wait_until(async || harness.mesh.ack_floor(streams::REDRIVE, consumer).await.unwrap() >= last).await;
}

/// Counts an event of the corrupt post and an event of another post and hour, and corrupts a row. Then publishes 100
/// events, every tenth of the corrupt post, and 20 posts. `needs_row` returns whether an event `(post, chunk, hour)`
/// needs the corrupt row.
async fn check_corrupt_row(keyspace: &str, key: &[u8], needs_row: impl Fn(u64, u64, i64) -> bool) {
    let harness = Harness::start().await;
    let running = harness
        .run(one_batch(&harness), harness.stores.totals.clone())
        .await;
    harness.settle(CORRUPT_POST, Channel::Push, 1, HOUR).await;
    harness
        .settle(CORRUPT_POST + 1, Channel::Push, 1, NEXT_HOUR)
        .await;
    harness.wait_until_acknowledged().await;
    running.stop().await;
    let (harness, original) = harness.overwrite(keyspace, key, GARBAGE);

    let mut failed_sequences = Vec::new();
    for n in 0..100_u64 {
        let post = if n % 10 == 0 { CORRUPT_POST } else { 120 + n % 3 };
        let hour = if n % 4 == 0 { HOUR } else { NEXT_HOUR };
        let chunk = if post == CORRUPT_POST { 1 + n / 10 } else { n };
        // The whole state of the chunk; 10 deliveries of chunk 1 of the corrupt post are counted.
        let counts = SettledCounts {
            delivered: 20,
            ..SettledCounts::default()
        };
        harness
            .publish_revision(post, Channel::Push, chunk, hour, (2, counts))
            .await;
        if needs_row(post, chunk, hour) {
            failed_sequences.push(3 + n);
        }
    }
    for _ in 0..20 {
        harness.post(NEXT_HOUR).await;
    }
    assert!((1..=30).contains(&failed_sequences.len()), "{failed_sequences:?}");
    let running = harness
        .run(one_batch(&harness), harness.stores.totals.clone())
        .await;
    harness.wait_until_acknowledged().await;
    running.stop().await;

    let all = 100 * 20 + 10;
    let lost: u32 = failed_sequences
        .iter()
        .map(|sequence| if *sequence == 3 { 10 } else { 20 })
        .sum();
    let rows = harness.rows("deliveries");
    assert_eq!(rows.len(), 102 - failed_sequences.len());
    for sequence in &failed_sequences {
        assert!(
            !rows.contains_key(&("EVENTS".to_owned(), *sequence)),
            "{sequence}"
        );
    }
    assert_eq!(harness.rows("posts").len(), 20);
    let terminated = async || harness.mesh.last_sequence(streams::ADVISORIES).await.unwrap();
    wait_until(async || terminated().await == failed_sequences.len() as u64).await;
    let advisories = harness.termination_advisories().await;
    let reason = format!(
        "the store failed: can't decode a row of the keyspace {keyspace} (attempt 3, permanent error)"
    );
    assert!(
        advisories.iter().all(|advisory| advisory.contains(&reason)),
        "{advisories:#?}"
    );
    // The other messages were not redelivered.
    assert_eq!(harness.metric("herald_analytics_repeats_total") as u64, 0);
    let attempts = harness.metric("herald_analytics_isolated_total") as usize;
    assert_eq!(attempts, 3 * failed_sequences.len());
    assert_eq!(harness.stores.totals.intended().await.unwrap(), []);

    // After a repair and a redrive every message is counted once.
    let (harness, _) = harness.overwrite(keyspace, key, &original);
    assert_eq!(
        harness.sums().await.push_delivered,
        i64::from(all - lost),
        "without the failed events"
    );
    let running = harness
        .run(one_batch(&harness), harness.stores.totals.clone())
        .await;
    redrive(&harness, failed_sequences).await;
    running.stop().await;
    assert_eq!(harness.sums().await.push_delivered, i64::from(all));
    assert_eq!(harness.rows("deliveries").len(), 102);
    let post = harness
        .stores
        .totals
        .post_totals(PostId(CORRUPT_POST))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(post.counts.push_delivered, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn corrupt_totals_of_a_post_fail_its_events() {
    let needs_row = |post, _, _| post == CORRUPT_POST;
    Box::pin(check_corrupt_row(
        "totals_posts",
        &CORRUPT_POST.to_be_bytes(),
        needs_row,
    ))
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn corrupt_counts_of_a_chunk_fail_its_events() {
    let key = [&CORRUPT_POST.to_be_bytes()[..], &[1], &1_u64.to_be_bytes()].concat();
    let needs_row = |post, chunk, _| (post, chunk) == (CORRUPT_POST, 1);
    Box::pin(check_corrupt_row("totals_chunks", &key, needs_row)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn corrupt_totals_of_an_hour_fail_its_events() {
    let needs_row = |_, _, hour| hour == HOUR;
    Box::pin(check_corrupt_row(
        "totals_hours",
        &CORRUPT_HOUR.to_be_bytes(),
        needs_row,
    ))
    .await;
}

/// An event fails with one of its chunks; its other chunks are counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_corrupt_chunk_of_an_event_fails_no_other_chunk() {
    let harness = Harness::start().await;
    let running = harness
        .run(one_batch(&harness), harness.stores.totals.clone())
        .await;
    harness.settle(CORRUPT_POST, Channel::Push, 1, HOUR).await;
    harness.wait_until_acknowledged().await;
    running.stop().await;
    let key = [&CORRUPT_POST.to_be_bytes()[..], &[1], &1_u64.to_be_bytes()].concat();
    let (harness, original) = harness.overwrite("totals_chunks", &key, GARBAGE);

    let counts = SettledCounts {
        delivered: 20,
        ..SettledCounts::default()
    };
    let chunks = (1..=10).map(|chunk| settled(CORRUPT_POST, chunk, HOUR, (2, counts)));
    harness.publish_event(Channel::Push, chunks).await;
    harness.settle(CORRUPT_POST + 1, Channel::Push, 1, HOUR).await;
    let running = harness
        .run(one_batch(&harness), harness.stores.totals.clone())
        .await;
    harness.wait_until_acknowledged().await;
    running.stop().await;
    wait_until(async || harness.mesh.last_sequence(streams::ADVISORIES).await.unwrap() == 1).await;
    assert_eq!(harness.sums().await.push_delivered, 10 + 9 * 20 + 10);
    assert_eq!(harness.all_rows("deliveries").len(), 1 + 9 + 1);

    let (harness, _) = harness.overwrite("totals_chunks", &key, &original);
    let running = harness
        .run(one_batch(&harness), harness.stores.totals.clone())
        .await;
    redrive(&harness, [2]).await;
    running.stop().await;
    assert_eq!(harness.sums().await.push_delivered, 10 * 20 + 10);
    assert_eq!(harness.all_rows("deliveries").len(), 1 + 10 + 1);
}

/// The store keeps seen messages in pages of 4,096.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_corrupt_page_of_seen_messages_fails_its_messages() {
    let harness = Harness::start().await;
    let running = harness
        .run(one_batch(&harness), harness.stores.totals.clone())
        .await;
    harness.settle(1, Channel::Push, 1, HOUR).await;
    harness.wait_until_acknowledged().await;
    running.stop().await;
    let key = [&b"EVENTS"[..], &0_u64.to_be_bytes()].concat();
    let (harness, _) = harness.overwrite("totals_seen", &key, GARBAGE);

    for chunk in 2..5_000 {
        harness.settle(1, Channel::Push, chunk, HOUR).await;
    }
    let running = harness
        .run(one_batch(&harness), harness.stores.totals.clone())
        .await;
    harness.wait_until_acknowledged().await;
    running.stop().await;
    wait_until(async || harness.mesh.last_sequence(streams::ADVISORIES).await.unwrap() == 4_094).await;
    assert_eq!(harness.rows("deliveries").len(), 1 + 904);
    assert_eq!(harness.sums().await.push_delivered, 10 * 905);
    let seen = harness.stores.totals.seen("EVENTS", &[4_095]).await.unwrap_err();
    assert_eq!(seen.kind(), ErrorKind::Corrupt);
    assert_eq!(harness.metric("herald_analytics_repeats_total") as u64, 0);
}
