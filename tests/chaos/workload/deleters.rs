//! Authors who delete what they wrote: at once, while it is fanned out and pushed, or some seconds later. Most insist on an
//! answer; some are gone before it comes, and then the post may be deleted or not.

use std::time::Duration;

use herald_proto::v1;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{Posted, Worker, author, due::Due};

/// One post in so many is deleted.
const SHARE: u32 = 8;
/// So long after it was accepted at most; half of them within an eighth of it.
const AGE_MAX: Duration = Duration::from_secs(10);
/// How long those wait who don't insist: some calls are answered in less.
const IMPATIENCE_MS: u64 = 20;

/// Deletes posts until it is stopped.
pub(super) async fn delete(worker: Worker) {
    let mut random = StdRng::seed_from_u64(worker.seed);
    let mut due = Due::default();
    while !worker.stopped() {
        let age = |random: &mut StdRng| AGE_MAX.mul_f64(random.random::<f64>().powi(3));
        for post in due.take(&worker.journal, &mut random, SHARE, age) {
            // What is due when the load ends stays.
            if worker.stopped() {
                return;
            }
            worker.journal.deletes(post.id);
            if random.random_ratio(1, 4) {
                let patience = Duration::from_millis(random.random_range(0..IMPATIENCE_MS));
                try_once(&worker, &post, patience).await;
                continue;
            }
            insist(&worker, &post).await;
            worker.journal.deleted(post.id);
            if random.random_ratio(1, 4) {
                insist(&worker, &post).await;
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn insist(worker: &Worker, post: &Posted) {
    let request = request(post);
    worker
        .insist("DeletePost", |clients| {
            let request = request.clone();
            async move { clients.posts().delete_post(request).await.map(drop) }
        })
        .await;
}

async fn try_once(worker: &Worker, post: &Posted, patience: Duration) {
    let mut posts = worker.clients.posts();
    let answer = tokio::time::timeout(patience, posts.delete_post(request(post))).await;
    if matches!(answer, Ok(Ok(_))) {
        worker.journal.deleted(post.id);
    }
}

fn request(post: &Posted) -> v1::DeletePostRequest {
    v1::DeletePostRequest {
        post_id: post.id,
        author_id: author(post.author),
    }
}
