//! How fast it is, sink and broker and store included. Run it alone, optimised:
//! `cargo test --release -p herald-push --test it throughput -- --ignored --nocapture`

use std::time::Instant;

use herald_model::UserKey;

use crate::harness::Herald;

const CHUNKS: usize = 40;
const RECIPIENTS: usize = 512;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn throughput() {
    for kind in ["webhook", "web_push"] {
        let herald = Herald::start().await;
        let mut users: Vec<UserKey> = Vec::new();
        for number in 0..RECIPIENTS {
            let user = herald.user(&number.to_string()).await;
            match kind {
                "webhook" => herald.webhook(user, &number.to_string()).await,
                _ => herald.browser(user, &number.to_string()).await,
            };
            users.push(user);
        }
        let begun = Instant::now();
        let mut last = None;
        for _ in 0..CHUNKS {
            let post = herald.post("hello").await;
            last = Some(herald.push(post, &users).await);
        }
        herald.sink.wait_for((CHUNKS * RECIPIENTS) as u64).await;
        herald.settled(last.unwrap()).await;
        let seconds = begun.elapsed().as_secs_f64();
        let summary = herald.sink.summary();
        println!(
            "{kind}: {:.0} pushes/s, {summary:?}",
            (CHUNKS * RECIPIENTS) as f64 / seconds
        );
        assert_eq!(summary.duplicates, 0);
    }
}
