//! An invalid configuration.

use herald_fanout::{Config, Error};

use crate::harness::World;

#[tokio::test]
async fn the_service_does_not_start_with_settings_out_of_bounds() {
    let config = Config {
        slice_recipients_max: 0,
        ..Config::default()
    };
    let mut world = World::start(config).await;
    let ended = (&mut world.service).await.unwrap();
    assert!(matches!(ended, Err(Error::Config(_))), "{ended:?}");
}
