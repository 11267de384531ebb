//! The examples of the README, run as they stand there.

use harness::{Herald, Options, output};

use crate::HERALD;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

#[tokio::test(flavor = "multi_thread")]
async fn posts_are_submitted_from_other_languages() {
    let herald = Herald::start(HERALD, Options::default()).await;
    let address = herald.url().trim_start_matches("http://").to_owned();
    for (post_id, example) in [(1, "examples/python/run"), (2, "examples/grpcurl/run")] {
        let script = format!("{ROOT}/{example}");
        let done = output("bash", &[&script], &[("HERALD_ADDRESS", &address)]).await;
        assert_eq!(done.code, 0, "{example}:\n{}{}", done.stdout, done.stderr);
        let post = herald.cli(&["delivery", &post_id.to_string()]).await;
        assert_eq!(post["post_id"], post_id, "{example} printed {}", done.stdout);
    }
}
