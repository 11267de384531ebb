//! Erasures of users.

use std::collections::HashSet;

use herald_local_stores::until;
use herald_model::{PostId, UserId, UserKey, time::Timestamp};
use herald_store::{ErasedCounts, Erasure, ErasureId, ErrorKind, Forgotten, Stores};

use crate::{engine::Engine, sample::user_ids};

const NOW: Timestamp = Timestamp(1_000_000);

async fn begin(stores: &Stores, id: &UserId) -> Option<Erasure> {
    stores.erasures.begin(id, "ops", NOW).await.unwrap()
}

async fn key(stores: &Stores, id: &UserId) -> Option<UserKey> {
    stores.users.find(std::slice::from_ref(id)).await.unwrap()[0]
}

async fn id(stores: &Stores, key: UserKey) -> UserId {
    stores.users.ids(&[key]).await.unwrap().remove(0).unwrap()
}

pub async fn a_user_is_forgotten_and_comes_back_as_another<E: Engine>(engine: &mut E) {
    let stores = engine.stores();
    let users = user_ids(0..3);
    let [ann, bob, cid] = &users[..] else {
        unreachable!()
    };
    assert_eq!(begin(&stores, ann).await, None, "there are no users");
    stores.users.intern(&users[..2]).await.unwrap();
    // Both directions are cached now.
    assert_eq!(key(&stores, ann).await, Some(UserKey(1)));
    assert_eq!(id(&stores, UserKey(1)).await, *ann);

    let erasure = begin(&stores, ann).await.unwrap();
    let expected = Erasure {
        id: erasure.id,
        user: UserKey(1),
        user_id: Some(ann.clone()),
        actor: "ops".into(),
        requested_at: NOW,
        forgotten: None,
        completed_at: None,
        counts: ErasedCounts::default(),
    };
    assert_eq!(erasure, expected);
    assert_eq!(key(&stores, ann).await, None);
    let placeholder = id(&stores, UserKey(1)).await;
    assert!(placeholder.is_placeholder(), "{placeholder}");
    assert_eq!(begin(&stores, &placeholder).await, None);
    // The one that runs.
    assert_eq!(begin(&stores, ann).await, Some(expected.clone()));
    assert_eq!(begin(&stores, cid).await, None);
    assert_eq!(key(&stores, bob).await, Some(UserKey(2)));
    let peer = engine.peer().await;
    assert_eq!(key(&peer, ann).await, None);
    assert_eq!(id(&peer, UserKey(1)).await, placeholder);
    assert_eq!(begin(&peer, ann).await, Some(expected.clone()));
    drop((stores, peer));
    engine.reopen().await;

    let stores = engine.stores();
    assert_eq!(key(&stores, ann).await, None);
    assert_eq!(id(&stores, UserKey(1)).await, placeholder);
    assert_eq!(stores.users.last_key().await.unwrap(), Some(UserKey(2)));
    let again = [ann.clone(), bob.clone(), ann.clone()];
    assert_eq!(stores.users.intern(&again).await.unwrap(), [3, 2, 3].map(UserKey));
    assert_eq!(id(&stores, UserKey(3)).await, *ann);
    // The user has a new key now, so this is another erasure.
    let second = begin(&stores, ann).await.unwrap();
    assert!(second.id > erasure.id);
    assert_eq!(second.user, UserKey(3));
    assert_eq!(
        stores.erasures.running().await.unwrap(),
        [expected, second.clone()]
    );
    assert_eq!(begin(&stores, ann).await, Some(second), "the newest one");
    assert_ne!(id(&stores, UserKey(3)).await, placeholder);
}

pub async fn every_process_forgets_a_user<E: Engine>(engine: &mut E) {
    let stores = engine.stores();
    let peer = engine.peer().await;
    let users = user_ids(0..2);
    let [ann, bob] = &users[..] else { unreachable!() };
    stores.users.intern(&users).await.unwrap();
    for process in [&stores, &peer] {
        until("both users are cached", async || {
            process.users.find(&users).await.unwrap();
            users.iter().all(|id| process.users.cached_key(id).is_some())
        })
        .await;
    }
    let key_use = peer.users.use_keys();
    let erasure = begin(&stores, ann).await.unwrap();
    assert_eq!(key(&stores, ann).await, None);
    let erasures = &stores.erasures;
    until("the user is in no cache", async || {
        peer.users.cached_key(ann).is_none()
    })
    .await;
    assert!(
        !erasures.is_forgotten(erasure.id).await.unwrap(),
        "a call uses the key"
    );
    drop(key_use);
    until("every process has forgotten the user", async || {
        erasures.is_forgotten(erasure.id).await.unwrap()
    })
    .await;
    assert_eq!(peer.users.cached_key(ann), None);
    assert_eq!(key(&peer, ann).await, None);
    assert!(id(&peer, UserKey(1)).await.is_placeholder());
    assert_eq!(key(&peer, bob).await, Some(UserKey(2)));

    let forgotten = |at, last_post| Forgotten {
        at: Timestamp(at),
        last_post: PostId(last_post),
    };
    assert_eq!(erasures.get(erasure.id).await.unwrap().unwrap().forgotten, None);
    // The first one stays.
    for (at, last_post) in [(8, 70), (9, 90)] {
        let forgotten = forgotten(at, last_post);
        erasures.record_forgotten(erasure.id, &forgotten).await.unwrap();
    }
    let missing = erasures.record_forgotten(ErasureId(99), &forgotten(8, 70)).await;
    assert_eq!(missing.unwrap_err().kind(), ErrorKind::Invalid);
    let first = Some(forgotten(8, 70));
    assert_eq!(erasures.running().await.unwrap()[0].forgotten, first);
    erasures.complete(erasure.id, NOW).await.unwrap();
    drop((stores, peer));
    engine.reopen().await;
    let erasures = engine.stores().erasures;
    assert_eq!(erasures.get(erasure.id).await.unwrap().unwrap().forgotten, first);
}

pub async fn a_post_that_comes_late_begins_another_erasure<E: Engine>(engine: &mut E) {
    let stores = engine.stores();
    let users = user_ids(0..2);
    stores.users.intern(&users).await.unwrap();
    let again = async |stores: &Stores, user: u32, post: u64| {
        let begun = stores
            .erasures
            .begin_again(UserKey(user), PostId(post), "archive", NOW);
        begun.await.unwrap()
    };
    assert_eq!(again(&stores, 1, 5).await, None, "the user is not erased");
    assert_eq!(again(&stores, 3, 5).await, None, "there is no such user");
    let first = begin(&stores, &users[0]).await.unwrap();
    assert_eq!(
        again(&stores, 1, 5).await,
        None,
        "the erasure reads POSTS only when every process has forgotten the user"
    );
    let forgotten = |last_post| Forgotten {
        at: NOW,
        last_post: PostId(last_post),
    };
    let erasures = stores.erasures.clone();
    erasures.record_forgotten(first.id, &forgotten(70)).await.unwrap();
    assert_eq!(again(&stores, 1, 70).await, None, "POSTS had the post then");

    let second = again(&stores, 1, 71).await.unwrap();
    let expected = Erasure {
        id: second.id,
        user_id: second.user_id.clone(),
        actor: "archive".into(),
        ..first.clone()
    };
    assert_eq!(second, expected);
    assert!(second.id > first.id);
    assert!(second.user_id.as_ref().unwrap().is_placeholder());
    let peer = engine.peer().await;
    assert_eq!(again(&peer, 1, 99).await, None, "the second one runs");
    until("no process has to forget the user again", async || {
        erasures.is_forgotten(second.id).await.unwrap()
    })
    .await;
    erasures
        .record_forgotten(second.id, &forgotten(99))
        .await
        .unwrap();
    for erasure in [first.id, second.id] {
        erasures.complete(erasure, NOW).await.unwrap();
    }
    drop((stores, peer, erasures));
    engine.reopen().await;

    let stores = engine.stores();
    assert_eq!(
        stores.erasures.get(second.id).await.unwrap().unwrap().user_id,
        None
    );
    assert!(id(&stores, UserKey(1)).await.is_placeholder());
    let third = again(&stores, 1, 99).await.expect("no erasure of the user runs");
    assert_eq!(stores.erasures.running().await.unwrap(), [third]);
}

pub async fn an_erasure_counts_and_ends_without_the_id<E: Engine>(engine: &mut E) {
    let stores = engine.stores();
    let users = user_ids(0..5);
    stores.users.intern(&users).await.unwrap();
    let mut begun = Vec::new();
    for user in &users {
        begun.push(begin(&stores, user).await.unwrap());
    }
    let erasures = stores.erasures.clone();
    let counts = ErasedCounts {
        posts: 1,
        follows: 2,
        devices: 3,
        timeline_entries: 4,
        messages: 5,
        dead_letters: 6,
    };
    let third = begun[2].id;
    erasures.add(third, &counts).await.unwrap();
    erasures
        .add(
            third,
            &ErasedCounts {
                posts: 10,
                ..ErasedCounts::default()
            },
        )
        .await
        .unwrap();
    erasures.complete(third, Timestamp(7)).await.unwrap();
    erasures.complete(third, Timestamp(9)).await.unwrap();
    let completed = Erasure {
        user_id: None,
        completed_at: Some(Timestamp(7)),
        counts: ErasedCounts { posts: 11, ..counts },
        ..begun[2].clone()
    };
    assert_eq!(erasures.get(third).await.unwrap(), Some(completed.clone()));
    begun[2] = completed;
    for call in [
        erasures.add(ErasureId(99), &counts).await,
        erasures.complete(ErasureId(99), NOW).await,
    ] {
        assert_eq!(call.unwrap_err().kind(), ErrorKind::Invalid);
    }
    assert_eq!(erasures.get(ErasureId(99)).await.unwrap(), None);
    drop((stores, erasures));
    engine.reopen().await;

    let stores = engine.stores();
    assert_eq!(
        begin(&stores, &users[2]).await,
        None,
        "nothing is known of the user"
    );
    let erasures = stores.erasures;
    let mut running = begun.clone();
    running.remove(2);
    assert_eq!(erasures.running().await.unwrap(), running);
    let newest_first: Vec<_> = begun.iter().rev().cloned().collect();
    assert_eq!(erasures.list(None, 10).await.unwrap(), newest_first);
    assert_eq!(erasures.list(None, 2).await.unwrap(), newest_first[..2]);
    let rest = erasures.list(Some(newest_first[1].id), usize::MAX).await.unwrap();
    assert_eq!(rest, newest_first[2..]);
}

pub async fn users_who_come_back_all_the_time_keep_nothing<E: Engine>(engine: &mut E) {
    let both = [engine.stores(), engine.peer().await];
    let users = user_ids(0..4);
    let calls = (0..16_usize).map(|n| {
        let (stores, users) = (both[n % 2].clone(), users.clone());
        tokio::spawn(async move {
            for round in 0..20 {
                let user = &users[(n + round) % 4];
                if n < 8 {
                    stores.users.intern(&users).await.unwrap();
                } else if let Some(erasure) = begin(&stores, user).await {
                    // In this process it is gone at once, or has come back with another key.
                    assert_ne!(key(&stores, user).await, Some(erasure.user));
                }
            }
        })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap();
    }
    drop(both);
    engine.reopen().await;
    let stores = engine.stores();
    let last = stores.users.last_key().await.unwrap().unwrap();
    let keys: Vec<_> = (1..=last.0).map(UserKey).collect();
    let ids = stores.users.ids(&keys).await.unwrap();
    let ids: Vec<_> = ids
        .into_iter()
        .map(|id| id.expect("each key has an id"))
        .collect();
    assert_eq!(ids.iter().collect::<HashSet<_>>().len(), ids.len(), "{ids:?}");
    let found = stores.users.find(&ids).await.unwrap();
    assert!(found.into_iter().flatten().eq(keys.iter().copied()));
    let erased = stores.erasures.list(None, usize::MAX).await.unwrap();
    let erased: HashSet<_> = erased.iter().map(|erasure| erasure.user).collect();
    assert!(!erased.is_empty());
    for (key, id) in keys.iter().zip(&ids) {
        assert_eq!(id.is_placeholder(), erased.contains(key), "{key} {id}");
    }
}
