//! The service refuses a configuration out of bounds.

use herald_deadletter::{Config, Error, run};
use tokio_util::sync::CancellationToken;

use crate::harness::Harness;

#[tokio::test]
async fn a_value_out_of_bounds_is_refused_at_the_start() {
    let harness = Harness::start().await;
    let (deps, _) = harness.deps().await;
    let config = Config {
        redrives_max: 0,
        ..Config::default()
    };
    let ended = run(config, deps, CancellationToken::new()).await;
    assert!(matches!(ended, Err(Error::Config(_))), "{ended:?}");
}
