//! A configuration that is out of bounds.

use herald_deadletter::{Config, Error, run};
use tokio_util::sync::CancellationToken;

use crate::harness::Harness;

#[tokio::test]
async fn the_service_refuses_to_start() {
    let harness = Harness::start().await;
    let (deps, _) = harness.deps().await;
    let config = Config {
        redrives_max: 0,
        ..Config::default()
    };
    let ended = run(config, deps, CancellationToken::new()).await;
    assert!(matches!(ended, Err(Error::Config(_))), "{ended:?}");
}
