//! An invalid configuration.

use herald_mesh::TopologyConfig;
use herald_push::{Config, Error};

use crate::harness::{Herald, local};

#[tokio::test]
async fn the_service_does_not_start_with_settings_out_of_bounds() {
    let config = Config {
        sends_max: 0,
        ..local()
    };
    let mut herald = Herald::prepare(config, TopologyConfig::default()).await;
    herald.serve();
    let ended = herald.service.take().unwrap().await.unwrap();
    assert!(matches!(ended, Err(Error::Config(_))), "{ended:?}");
}
