//! A row of the store that can't be read costs the messages that need it, and no other of their batches.

use herald_analytics::Config;
use herald_mesh::{
    Redrive, Subject,
    consumers::{self, ConsumerKind},
    streams,
};
use herald_model::{Channel, PostId, time::Timestamp};
use herald_store::{ErrorKind, SettledCounts};

use crate::harness::{HOUR, Harness, NEXT_HOUR, settled, until};

/// The post whose row is corrupt.
const ILL: u64 = 107;
/// Hours from 1970 to [`HOUR`].
const ILL_HOUR: u32 = 490_906;
/// What stands in a corrupt row.
const GARBAGE: &[u8] = &[0xff];

/// All that is there in one batch.
fn one_batch(harness: &Harness) -> Config {
    Config {
        batch_rows_max: 10_000,
        batch_age_ms_max: 500,
        ..harness.config()
    }
}

/// Sends the messages of EVENTS with these sequences once more.
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
    until(async || harness.mesh.ack_floor(streams::REDRIVE, consumer).await.unwrap() >= last).await;
}

/// Counts an event of the ill post, one of another and of another hour, and a post; corrupts a row; then has 100 events,
/// every tenth of the ill post, and 20 posts counted. `ill` tells which events need the row, of those `(post, chunk, hour)`.
async fn a_corrupt_row_costs_what_needs_it(
    keyspace: &str,
    key: &[u8],
    what: &str,
    ill: impl Fn(u64, u64, i64) -> bool,
) {
    let harness = Harness::start().await;
    let running = harness
        .run(one_batch(&harness), harness.stores.totals.clone())
        .await;
    harness.settle(ILL, Channel::Push, 1, HOUR).await;
    harness.settle(ILL + 1, Channel::Push, 1, NEXT_HOUR).await;
    harness.acknowledged().await;
    running.stop().await;
    let (harness, sound) = harness.overwrite(keyspace, key, GARBAGE);

    let mut ill_sequences = Vec::new();
    for n in 0..100_u64 {
        let post = if n % 10 == 0 { ILL } else { 120 + n % 3 };
        let hour = if n % 4 == 0 { HOUR } else { NEXT_HOUR };
        let chunk = if post == ILL { 1 + n / 10 } else { n };
        // All of the chunk: of chunk 1 of the ill post 10 are counted.
        let counts = SettledCounts {
            delivered: 20,
            ..SettledCounts::default()
        };
        harness.tell(post, Channel::Push, chunk, hour, (2, counts)).await;
        if ill(post, chunk, hour) {
            ill_sequences.push(3 + n);
        }
    }
    for _ in 0..20 {
        harness.post(NEXT_HOUR).await;
    }
    assert!((1..=30).contains(&ill_sequences.len()), "{ill_sequences:?}");
    let running = harness
        .run(one_batch(&harness), harness.stores.totals.clone())
        .await;
    harness.acknowledged().await;
    running.stop().await;

    let all = 100 * 20 + 10;
    let lost: u32 = ill_sequences
        .iter()
        .map(|sequence| if *sequence == 3 { 10 } else { 20 })
        .sum();
    let rows = harness.rows("deliveries");
    assert_eq!(rows.len(), 102 - ill_sequences.len());
    for sequence in &ill_sequences {
        assert!(
            !rows.contains_key(&("EVENTS".to_owned(), *sequence)),
            "{sequence}"
        );
    }
    assert_eq!(harness.rows("posts").len(), 20);
    let given_up = async || harness.mesh.last_sequence(streams::ADVISORIES).await.unwrap();
    until(async || given_up().await == ill_sequences.len() as u64).await;
    let given_up = harness.given_up().await;
    let reason = format!("the store failed: a row of {what} can't be read (attempt 3, the last for a fault)");
    assert!(
        given_up.iter().all(|advisory| advisory.contains(&reason)),
        "{given_up:#?}"
    );
    // The others did not even come again.
    assert_eq!(harness.metric("herald_analytics_repeats_total") as u64, 0);
    let attempts = harness.metric("herald_analytics_isolated_total") as usize;
    assert_eq!(attempts, 3 * ill_sequences.len());
    assert_eq!(
        harness.stores.totals.intended().await.unwrap(),
        Vec::<String>::new()
    );

    // Whoever mends it redrives them: then all are counted, once.
    let (harness, _) = harness.overwrite(keyspace, key, &sound);
    assert_eq!(
        harness.sums().await.push_delivered,
        i64::from(all - lost),
        "without the ill ones"
    );
    let running = harness
        .run(one_batch(&harness), harness.stores.totals.clone())
        .await;
    redrive(&harness, ill_sequences).await;
    running.stop().await;
    assert_eq!(harness.sums().await.push_delivered, i64::from(all));
    assert_eq!(harness.rows("deliveries").len(), 102);
    let post = harness.stores.totals.of_post(PostId(ILL)).await.unwrap().unwrap();
    assert_eq!(post.counts.push_delivered, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn totals_of_a_post_that_are_corrupt_cost_its_events() {
    let ill = |post, _, _| post == ILL;
    Box::pin(a_corrupt_row_costs_what_needs_it(
        "totals_posts",
        &ILL.to_be_bytes(),
        "totals of a post",
        ill,
    ))
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_of_a_chunk_that_are_corrupt_cost_its_events() {
    let key = [&ILL.to_be_bytes()[..], &[1], &1_u64.to_be_bytes()].concat();
    let ill = |post, chunk, _| (post, chunk) == (ILL, 1);
    Box::pin(a_corrupt_row_costs_what_needs_it(
        "totals_chunks",
        &key,
        "a chunk's counts",
        ill,
    ))
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn totals_of_an_hour_that_are_corrupt_cost_its_events() {
    let ill = |_, _, hour| hour == HOUR;
    Box::pin(a_corrupt_row_costs_what_needs_it(
        "totals_hours",
        &ILL_HOUR.to_be_bytes(),
        "totals of an hour",
        ill,
    ))
    .await;
}

/// An event fails with one of its chunks, and the others of it are counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_corrupt_chunk_of_an_event_costs_no_other() {
    let harness = Harness::start().await;
    let running = harness
        .run(one_batch(&harness), harness.stores.totals.clone())
        .await;
    harness.settle(ILL, Channel::Push, 1, HOUR).await;
    harness.acknowledged().await;
    running.stop().await;
    let key = [&ILL.to_be_bytes()[..], &[1], &1_u64.to_be_bytes()].concat();
    let (harness, sound) = harness.overwrite("totals_chunks", &key, GARBAGE);

    let counts = SettledCounts {
        delivered: 20,
        ..SettledCounts::default()
    };
    let chunks = (1..=10).map(|chunk| settled(ILL, chunk, HOUR, (2, counts)));
    harness.tell_all(Channel::Push, chunks).await;
    harness.settle(ILL + 1, Channel::Push, 1, HOUR).await;
    let running = harness
        .run(one_batch(&harness), harness.stores.totals.clone())
        .await;
    harness.acknowledged().await;
    running.stop().await;
    until(async || harness.mesh.last_sequence(streams::ADVISORIES).await.unwrap() == 1).await;
    assert_eq!(harness.sums().await.push_delivered, 10 + 9 * 20 + 10);
    assert_eq!(harness.all_rows("deliveries").len(), 1 + 9 + 1);

    let (harness, _) = harness.overwrite("totals_chunks", &key, &sound);
    let running = harness
        .run(one_batch(&harness), harness.stores.totals.clone())
        .await;
    redrive(&harness, [2]).await;
    running.stop().await;
    assert_eq!(harness.sums().await.push_delivered, 10 * 20 + 10);
    assert_eq!(harness.all_rows("deliveries").len(), 1 + 10 + 1);
}

/// Which messages were seen is kept by pages of 4,096.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_of_what_was_seen_that_is_corrupt_costs_its_messages() {
    let harness = Harness::start().await;
    let running = harness
        .run(one_batch(&harness), harness.stores.totals.clone())
        .await;
    harness.settle(1, Channel::Push, 1, HOUR).await;
    harness.acknowledged().await;
    running.stop().await;
    let key = [&b"EVENTS"[..], &0_u64.to_be_bytes()].concat();
    let (harness, _) = harness.overwrite("totals_seen", &key, GARBAGE);

    for chunk in 2..5_000 {
        harness.settle(1, Channel::Push, chunk, HOUR).await;
    }
    let running = harness
        .run(one_batch(&harness), harness.stores.totals.clone())
        .await;
    harness.acknowledged().await;
    running.stop().await;
    until(async || harness.mesh.last_sequence(streams::ADVISORIES).await.unwrap() == 4_094).await;
    assert_eq!(harness.rows("deliveries").len(), 1 + 904);
    assert_eq!(harness.sums().await.push_delivered, 10 * 905);
    let seen = harness.stores.totals.seen("EVENTS", &[4_095]).await.unwrap_err();
    assert_eq!(seen.kind(), ErrorKind::Corrupt);
    assert_eq!(harness.metric("herald_analytics_repeats_total") as u64, 0);
}
