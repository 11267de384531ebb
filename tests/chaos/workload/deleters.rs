//! Authors who delete their posts, during fan-out and push or some seconds later. Most retry until they get an answer;
//! some cancel the call, and then the post may be deleted or not.

use std::time::Duration;

use herald_proto::v1;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{AcceptedPost, Worker, author, second_requests::SecondRequests};

/// One post in this many is deleted.
const SHARE: u32 = 8;
/// Maximum age of a post at its deletion; half of the deletions come within an eighth of it.
const AGE_MAX: Duration = Duration::from_secs(10);
/// Maximum timeout of a cancelled call, milliseconds; some calls are answered within it.
const CANCEL_AFTER_MS_MAX: u64 = 20;

/// Deletes posts until the load stops.
pub(super) async fn delete_posts(worker: Worker) {
    let mut random = StdRng::seed_from_u64(worker.seed);
    let mut scheduled = SecondRequests::default();
    while !worker.stopped() {
        let age = |random: &mut StdRng| AGE_MAX.mul_f64(random.random::<f64>().powi(3));
        for post in scheduled.take_due(&worker.journal, &mut random, SHARE, age) {
            // The remaining posts stay undeleted.
            if worker.stopped() {
                return;
            }
            worker.journal.start_deletion(post.id);
            if random.random_ratio(1, 4) {
                let timeout = Duration::from_millis(random.random_range(0..CANCEL_AFTER_MS_MAX));
                try_once(&worker, &post, timeout).await;
                continue;
            }
            retry_until_answered(&worker, &post).await;
            worker.journal.record_deletion(post.id);
            if random.random_ratio(1, 4) {
                retry_until_answered(&worker, &post).await;
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn retry_until_answered(worker: &Worker, post: &AcceptedPost) {
    let request = request(post);
    worker
        .retry_until_answered("DeletePost", |clients| {
            let request = request.clone();
            async move { clients.posts().delete_post(request).await.map(drop) }
        })
        .await;
}

async fn try_once(worker: &Worker, post: &AcceptedPost, timeout: Duration) {
    let mut posts = worker.clients.posts();
    let answer = tokio::time::timeout(timeout, posts.delete_post(request(post))).await;
    if matches!(answer, Ok(Ok(_))) {
        worker.journal.record_deletion(post.id);
    }
}

fn request(post: &AcceptedPost) -> v1::DeletePostRequest {
    v1::DeletePostRequest {
        post_id: post.id,
        author_id: author(post.author),
        any_author: false,
    }
}
