//! A configuration that is out of bounds.

use herald_fanout::{Config, Error};

use crate::harness::World;

#[tokio::test]
async fn the_service_refuses_to_start() {
    let config = Config {
        slice_recipients_max: 0,
        ..Config::default()
    };
    let mut world = World::start(config).await;
    let ended = (&mut world.service).await.unwrap();
    assert!(matches!(ended, Err(Error::Config(_))), "{ended:?}");
}
