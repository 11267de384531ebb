//! A store and posts for the tests.

use std::time::Duration;

use herald_model::{Lane, Post, PostId, PushContent, UserId, UserKey, time::Timestamp};
use herald_store::{
    Archived,
    embedded::{Config, Embedded},
};
use tempfile::TempDir;

/// An empty store, and its directory.
pub(crate) fn store() -> (TempDir, Embedded) {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(&Config {
        data_dir: dir.path().into(),
        disk_free_mb_min: 0,
        ..Config::default()
    });
    (dir, store.unwrap())
}

/// A post of an author.
pub(crate) fn post(id: u64, author: UserKey) -> Archived {
    Archived::Created(Post {
        id: PostId(id),
        author,
        author_id: UserId::new("ann").unwrap(),
        request_id: format!("request {id}"),
        text: "text".into(),
        links: Vec::new(),
        media_urls: Vec::new(),
        lane: Lane::Normal,
        accepted_at: Timestamp::now(),
        push_ttl: Duration::from_hours(1),
        push: PushContent::default(),
        deleted_at: None,
    })
}
