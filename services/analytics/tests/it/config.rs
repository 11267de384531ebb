//! Validation of the configuration.

use herald_analytics::{Config, Error, run};
use tokio_util::sync::CancellationToken;

use crate::harness::Harness;

#[tokio::test]
async fn an_invalid_configuration_is_refused() {
    let harness = Harness::start().await;
    let totals = harness.stores.totals.clone();
    let (deps, _) = harness.deps(harness.mesh.clone(), totals).await;
    let config = Config {
        batch_rows_max: 0,
        ..harness.config()
    };
    let ended = run(config, deps, CancellationToken::new()).await;
    assert!(matches!(ended, Err(Error::Config(_))), "{ended:?}");
}
