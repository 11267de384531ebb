//! An invalid configuration.

use herald_timeline::{Config, Error};

use crate::harness::World;

#[tokio::test]
async fn the_service_does_not_start_with_settings_out_of_bounds() {
    let config = Config {
        backfill_posts_max: 801,
        ..Config::default()
    };
    let mut world = World::start_with(tempfile::tempdir().unwrap(), config).await;
    let ended = (&mut world.service).await.unwrap();
    assert!(matches!(ended, Err(Error::Config(_))), "{ended:?}");
}
