//! Users: ids and their keys.

use std::collections::HashMap;

use herald_model::{UserId, UserKey};

use crate::{engine::Engine, sample::user_ids};

fn keys(range: std::ops::Range<u32>) -> Vec<UserKey> {
    range.map(UserKey).collect()
}

pub async fn keys_are_dense_and_never_change<E: Engine>(engine: &mut E) {
    let users = engine.stores().users;
    assert_eq!(users.last_key().await.unwrap(), None);
    assert_eq!(users.find(&user_ids(0..3)).await.unwrap(), [None; 3]);
    assert_eq!(users.intern(&user_ids(0..10_000)).await.unwrap(), keys(1..10_001));
    assert_eq!(users.intern(&[]).await.unwrap(), []);
    assert_eq!(users.last_key().await.unwrap(), Some(UserKey(10_000)));
    drop(users);
    engine.reopen().await;

    let users = engine.stores().users;
    // Existing users, new users, and one of each twice.
    let mixed = [
        user_ids(5..8),
        user_ids(20_000..20_002),
        user_ids(6..7),
        user_ids(20_001..20_002),
    ]
    .concat();
    assert_eq!(
        users.intern(&mixed).await.unwrap(),
        [6, 7, 8, 10_001, 10_002, 7, 10_002].map(UserKey)
    );
    assert_eq!(users.intern(&mixed).await.unwrap()[4], UserKey(10_002));
    let some = [user_ids(0..1), user_ids(30_000..30_001)].concat();
    assert_eq!(users.find(&some).await.unwrap(), [Some(UserKey(1)), None]);
    let names = [0, 1, 10_002, 10_003].map(UserKey);
    let names = users.ids(&names);
    let (first, last) = (user_ids(0..1).remove(0), user_ids(20_001..20_002).remove(0));
    assert_eq!(names.await.unwrap(), [None, Some(first), Some(last), None]);
    assert_eq!(users.last_key().await.unwrap(), Some(UserKey(10_002)));
}

pub async fn concurrent_calls_get_the_same_keys<E: Engine>(engine: &mut E) {
    let both = [engine.stores().users, engine.peer().await.users];
    let calls = (0..16_u32).map(|n| {
        let users = both[n as usize % 2].clone();
        tokio::spawn(async move {
            let mut ids = user_ids(0..500);
            ids.rotate_left(31 * n as usize);
            let keys = users.intern(&ids).await.unwrap();
            // What was returned can be read at once.
            assert!(
                users
                    .find(&ids)
                    .await
                    .unwrap()
                    .into_iter()
                    .eq(keys.iter().copied().map(Some))
            );
            ids.into_iter().zip(keys).collect::<HashMap<_, _>>()
        })
    });
    let calls = futures::future::join_all(calls).await;
    let mut answers = calls.into_iter().map(|call| call.unwrap());
    let first = answers.next().unwrap();
    let mut used: Vec<_> = first.values().copied().collect();
    used.sort();
    assert_eq!(used, keys(1..501));
    assert!(answers.all(|answer| answer == first));
}

pub async fn ids_differ_by_their_bytes<E: Engine>(engine: &mut E) {
    let users = engine.stores().users;
    // Equal to others for some collations: case, accents, normal forms, trailing spaces, width.
    let ids = [
        "a", "A", "á", "a\u{301}", "a ", " a", "ａ", "ß", "ss", "1", "01", "%", "_", "'", "\\", "{1}",
    ];
    let ids: Vec<_> = ids.into_iter().map(|id| UserId::new(id).unwrap()).collect();
    let count = ids.len() as u32;
    assert_eq!(users.intern(&ids).await.unwrap(), keys(1..count + 1));
    let read = users.ids(&keys(1..count + 1)).await.unwrap();
    assert!(read.into_iter().flatten().eq(ids));
}

pub async fn long_ids_are_kept<E: Engine>(engine: &mut E) {
    let users = engine.stores().users;
    let ids: Vec<_> = [
        "x".repeat(128),
        "ä".repeat(64),
        "x".repeat(127) + "y",
        "👩\u{200d}💻".repeat(11),
    ]
    .into_iter()
    .map(|id| UserId::new(id).unwrap())
    .collect();
    let interned = users.intern(&ids).await.unwrap();
    assert_eq!(interned, keys(1..5));
    assert!(users.ids(&interned).await.unwrap().into_iter().flatten().eq(ids));
}
