//! Writers: each post is retried with its request id until it is accepted, and some requests are repeated later.

use std::time::Duration;

use herald_proto::v1;
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::time::MissedTickBehavior;

use super::{AUTHORS, AcceptedPost, CALL_LIMIT, Worker, author, second_requests::SecondRequests};
use crate::world::DEDUPE_WINDOW;

/// One post in this many is by the big author.
const BIG_AUTHOR_SHARE: u32 = 20;
/// One post in this many is submitted again.
const REPEATED_SHARE: u32 = 4;

/// Submits posts at an interval until the load stops.
pub(super) async fn write_posts(worker: Worker, writer: usize, pace: Duration) {
    let mut random = StdRng::seed_from_u64(worker.seed);
    let mut ticks = tokio::time::interval(pace);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut n = 0;
    while !worker.stopped() {
        ticks.tick().await;
        let author = if random.random_ratio(1, BIG_AUTHOR_SHARE) {
            0
        } else {
            random.random_range(1..AUTHORS)
        };
        let text = format!("post {n} of writer {writer}");
        n += 1;
        let request_id = uuid::Builder::from_random_bytes(random.random())
            .into_uuid()
            .to_string();
        let started = worker.journal.next_time();
        let lane = random.random_range(1..=3);
        let id = submit(&worker, author, &text, &request_id, lane).await;
        let ended = worker.journal.next_time();
        worker.journal.record_post(AcceptedPost {
            id,
            author,
            text,
            lane,
            request_id,
            started,
            ended,
        });
    }
}

/// Repeats accepted requests within and after the dedupe window; the answer must be the same post.
pub(super) async fn repeat_requests(worker: Worker) {
    let mut random = StdRng::seed_from_u64(worker.seed);
    let mut scheduled = SecondRequests::default();
    while !worker.stopped() {
        let wait = |random: &mut StdRng| DEDUPE_WINDOW.mul_f64(random.random_range(0.0..2.0));
        for post in scheduled.take_due(&worker.journal, &mut random, REPEATED_SHARE, wait) {
            let id = submit(&worker, post.author, &post.text, &post.request_id, post.lane).await;
            if id != post.id {
                worker.journal.record_violation(format!(
                    "a repeated request was accepted twice: request {} of author {} is post {} and post {id}",
                    post.request_id, post.author, post.id
                ));
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn submit(worker: &Worker, of: usize, text: &str, request_id: &str, lane: i32) -> u64 {
    let request = v1::SubmitPostRequest {
        request_id: request_id.into(),
        author_id: author(of),
        text: text.into(),
        lane,
        ..Default::default()
    };
    worker
        .retry_until_answered("SubmitPost", |clients| {
            let mut call = tonic::Request::new(request.clone());
            call.set_timeout(CALL_LIMIT);
            async move { Ok(clients.posts().submit_post(call).await?.into_inner().post_id) }
        })
        .await
}
