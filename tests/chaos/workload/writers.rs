//! Writers: each post is retried with its request id until it is accepted, and some are sent again long after.

use std::time::Duration;

use herald_proto::v1;
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::time::MissedTickBehavior;

use super::{AUTHORS, CALL_LIMIT, Posted, Worker, author, due::Due};
use crate::world::DEDUPE_WINDOW;

/// The big author writes one post in so many.
const BIG_AUTHOR_SHARE: u32 = 20;
/// One post in so many is sent again.
const REPEATED_SHARE: u32 = 4;

/// Posts at a pace until it is stopped.
pub(super) async fn write(worker: Worker, writer: usize, pace: Duration) {
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
        let started = worker.journal.now();
        let id = submit(&worker, author, &text, &request_id, random.random_range(1..=3)).await;
        let ended = worker.journal.now();
        worker.journal.posted(Posted {
            id,
            author,
            text,
            request_id,
            started,
            ended,
        });
    }
}

/// Sends accepted posts again, when the broker has just forgotten them and when it hasn't: it must be the same post.
pub(super) async fn repeat(worker: Worker) {
    let mut random = StdRng::seed_from_u64(worker.seed);
    let mut due = Due::default();
    while !worker.stopped() {
        let wait = |random: &mut StdRng| DEDUPE_WINDOW.mul_f64(random.random_range(0.0..2.0));
        for post in due.take(&worker.journal, &mut random, REPEATED_SHARE, wait) {
            let id = submit(&worker, post.author, &post.text, &post.request_id, 2).await;
            if id != post.id {
                worker.journal.wrong(format!(
                    "a repeated request was accepted a second time: {} of author {} was post {} and is {id}",
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
        .insist("SubmitPost", |clients| {
            let mut call = tonic::Request::new(request.clone());
            call.set_timeout(CALL_LIMIT);
            async move { Ok(clients.posts().submit_post(call).await?.into_inner().post_id) }
        })
        .await
}
