//! Clients in other languages, generated from `proto/`.

use harness::{Herald, Options, run};

use crate::HERALD;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "downloads Go modules and Maven artifacts"]
async fn clients_in_go_and_java_are_generated_and_call_the_server() {
    let herald = Herald::start(HERALD, Options::default()).await;
    for (language, post_id) in [("go", 1), ("java", 2)] {
        let script = format!("{}/../examples/{language}/run", env!("CARGO_MANIFEST_DIR"));
        let done = run(&script, &[], &[("HERALD_SERVER", &herald.url())]).await;
        assert_eq!(done.code, 0, "{language}: {done:?}");
        let expected = format!("accepted as post {post_id}\nrefused: text must not be empty\n");
        // Maven adds escape sequences.
        assert!(done.stdout.contains(&expected), "{language}: {done:?}");
    }
}
