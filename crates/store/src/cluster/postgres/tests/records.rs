use std::{collections::BTreeSet, time::Duration};

use futures::future::join_all;
use herald_model::{Address, Lane, Post, PostId, PushContent, UserId, UserKey, time::Timestamp};

use super::open;
use crate::{
    Archived, Devices, Posts, Preferences, PreferencesChange, Users,
    cluster::{
        PostgresConfig,
        postgres::{PostgresDevices, PostgresPosts, PostgresPreferences, PostgresUsers},
    },
    embedded::devices::Codec,
};

const DAY: Duration = Duration::from_hours(24);

pub(super) fn post(id: u64, request_id: &str) -> Post {
    Post {
        id: PostId(id),
        author: UserKey(3),
        author_id: UserId::new("author").unwrap(),
        request_id: request_id.into(),
        text: format!("the text of {id}\0"),
        links: Vec::new(),
        media_urls: Vec::new(),
        lane: Lane::Normal,
        accepted_at: Timestamp::now(),
        push_ttl: DAY,
        push: PushContent::default(),
        deleted_at: None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn processes_that_intern_at_once_make_dense_keys() {
    let Some(postgres) = open().await else { return };
    // Each process has caches of its own.
    let processes: Vec<_> = (0..8).map(|_| PostgresUsers::new(&postgres, 1 << 20)).collect();
    let keys = join_all(processes.iter().enumerate().map(|(process, users)| async move {
        let mut keys = Vec::new();
        for round in 0..20 {
            let ids: Vec<_> = (0..10)
                .map(|n| UserId::new(format!("user {}", (round * 7 + n * 3 + process) % 100)).unwrap())
                .collect();
            keys.extend(ids.iter().cloned().zip(users.intern(&ids).await.unwrap()));
        }
        keys
    }))
    .await;
    let pairs: BTreeSet<_> = keys.into_iter().flatten().collect();
    let ids: BTreeSet<_> = pairs.iter().map(|(id, _)| id).collect();
    assert_eq!(ids.len(), pairs.len(), "an id has two keys");
    let keys: BTreeSet<_> = pairs.iter().map(|(_, key)| key.0).collect();
    assert!(keys.iter().copied().eq(1..=pairs.len() as u32));
    assert_eq!(
        processes[0].last_key().await.unwrap(),
        Some(UserKey(pairs.len() as u32))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_post_and_its_deletion_can_be_archived_at_once() {
    let Some(postgres) = open().await else { return };
    let posts = PostgresPosts::new(&postgres, &PostgresConfig::default(), DAY);
    let (created, deleted): (Vec<_>, Vec<_>) = (1..=64)
        .map(|id| {
            let deletion = Archived::Deleted {
                post: PostId(id),
                at: Timestamp(7),
            };
            (Archived::Created(post(id, &id.to_string())), deletion)
        })
        .unzip();
    let calls = created
        .chunks(8)
        .chain(deleted.chunks(16))
        .chain(created.chunks(32));
    join_all(calls.map(|entries| async { posts.archive(entries).await.unwrap() })).await;
    let ids: Vec<_> = (1..=64).map(PostId).collect();
    for found in posts.get(&ids).await.unwrap() {
        let found = found.unwrap();
        assert_eq!(found.deleted_at, Some(Timestamp(7)));
        assert!(found.text.ends_with('\0'));
    }
    let listed = posts.newest_by_author(UserKey(3), PostId(u64::MAX), 100);
    assert_eq!(listed.await.unwrap(), []);
}

#[tokio::test]
async fn first_since_finds_the_first_post_from_a_time_on() {
    let Some(postgres) = open().await else { return };
    let posts = PostgresPosts::new(&postgres, &PostgresConfig::default(), DAY);
    assert_eq!(
        posts.first_retained(PostId(0), Timestamp(0)).await.unwrap(),
        PostId(1)
    );
    let entries: Vec<_> = [2_u64, 3, 7, 8, 20]
        .into_iter()
        .map(|id| {
            Archived::Created(Post {
                accepted_at: Timestamp(id.cast_signed() * 10),
                ..post(id, &id.to_string())
            })
        })
        .collect();
    posts.archive(&entries).await.unwrap();
    for (moment, first) in [
        (0, 1..=2),
        (21, 3..=3),
        (75, 8..=8),
        (200, 9..=20),
        (201, 21..=21),
    ] {
        let found = posts
            .first_retained(PostId(0), Timestamp(moment))
            .await
            .unwrap()
            .0;
        assert!(first.contains(&found), "since {moment}: {found}");
    }
}

#[tokio::test]
async fn a_post_of_a_wrong_clock_is_no_older_than_those_before_it() {
    let Some(postgres) = open().await else { return };
    let posts = PostgresPosts::new(&postgres, &PostgresConfig::default(), DAY);
    // The clock of the gateway was behind for the posts 3 to 6, and ahead for the post 8.
    let times = [100, 110, 1, 2, 3, 4, 150, 999, 170, 180];
    let entries: Vec<_> = (1_u64..)
        .zip(times)
        .map(|(id, at)| {
            Archived::Created(Post {
                accepted_at: Timestamp(at),
                ..post(id, &id.to_string())
            })
        })
        .collect();
    posts.archive(&entries).await.unwrap();
    for (moment, first) in [(100, 1), (105, 2), (111, 7), (151, 8), (900, 8), (1_000, 11)] {
        let found = posts.first_retained(PostId(0), Timestamp(moment)).await.unwrap();
        assert_eq!(found, PostId(first), "since {moment}");
    }
    assert_eq!(
        posts.first_retained(PostId(8), Timestamp(0)).await.unwrap(),
        PostId(8)
    );
}

#[tokio::test]
async fn request_ids_are_trimmed_after_their_retention() {
    let Some(postgres) = open().await else { return };
    let posts = PostgresPosts::new(&postgres, &PostgresConfig::default(), DAY);
    let accepted = post(20, "r");
    let at = accepted.accepted_at;
    posts.archive(&[Archived::Created(accepted)]).await.unwrap();
    assert_eq!(posts.trim(at.plus(DAY)).await.unwrap(), 0);
    let find = async |now| posts.of_request_at(UserKey(3), "r", now).await.unwrap();
    assert_eq!(find(at.plus(DAY)).await, Some(PostId(20)));
    assert_eq!(find(at.plus(DAY * 2)).await, None);
    assert_eq!(posts.trim(at.plus(DAY * 2)).await.unwrap(), 1);
    assert_eq!(find(at).await, None);
}

#[tokio::test]
async fn a_database_above_its_limit_takes_no_new_posts() {
    let Some(postgres) = open().await else { return };
    let config = PostgresConfig {
        database_mb_max: 1,
        ..PostgresConfig::default()
    };
    let posts = PostgresPosts::new(&postgres, &config, DAY);
    // The first answer does not wait for the first sample.
    posts.capacity().await.unwrap();
    let error = loop {
        match posts.capacity().await {
            Ok(()) => tokio::time::sleep(Duration::from_millis(5)).await,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), crate::ErrorKind::Full);
    assert!(error.to_string().contains("database_mb_max"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn processes_that_change_one_user_at_once_lose_no_change() {
    let Some(postgres) = open().await else { return };
    let user = UserKey(7);
    let preferences: Vec<_> = (0..4).map(|_| PostgresPreferences::new(&postgres)).collect();
    let devices: Vec<_> = (0..4)
        .map(|_| PostgresDevices::new(&postgres, Codec::plain()))
        .collect();
    join_all((0..32_u32).map(|n| {
        let (preferences, devices) = (&preferences[n as usize % 4], &devices[n as usize % 4]);
        async move {
            let change = PreferencesChange {
                mute: vec![UserKey(n)],
                ..PreferencesChange::default()
            };
            preferences.update(user, &change).await.unwrap();
            let address = Address::Webhook {
                url: format!("https://example.com/{n}"),
                secret: vec![1; 24],
            };
            devices.register(user, address, Timestamp(1)).await.unwrap();
        }
    }))
    .await;
    assert_eq!(preferences[0].of(&[user]).await.unwrap()[0].muted.len(), 32);
    let registered = devices[0].of(&[user]).await.unwrap().remove(0);
    let ids: BTreeSet<_> = registered.iter().map(|device| device.id).collect();
    assert_eq!(ids.len(), 32);
    join_all(
        registered
            .iter()
            .map(|device| devices[1].unregister(user, device.id)),
    )
    .await;
    let all = PreferencesChange {
        muted: Some(Vec::new()),
        ..PreferencesChange::default()
    };
    preferences[1].update(user, &all).await.unwrap();
    let rows: i64 = sqlx::query_scalar(
        "SELECT (SELECT count(*) FROM herald.devices) + (SELECT count(*) FROM herald.preferences)",
    )
    .fetch_one(postgres.pool())
    .await
    .unwrap();
    assert_eq!(rows, 0, "rows of defaults are left");
}

/// A flag of a row that disagrees with the devices must not keep the start of a push process in a loop.
#[tokio::test]
async fn a_wrong_flag_does_not_stop_the_removal_of_web_push_devices() {
    let Some(postgres) = open().await else { return };
    let devices = PostgresDevices::new(&postgres, Codec::plain());
    let address = |user: u32| match user {
        2 => Address::Webhook {
            url: "https://a.example".into(),
            secret: vec![7],
        },
        _ => Address::WebPush {
            endpoint: format!("https://push.example/{user}"),
            p256dh: vec![4; 65],
            auth: vec![1; 16],
        },
    };
    for user in 1..=3 {
        devices
            .register(UserKey(user), address(user), Timestamp(1))
            .await
            .unwrap();
    }
    sqlx::query("UPDATE herald.devices SET has_web_push = true")
        .execute(postgres.pool())
        .await
        .unwrap();
    let removed = tokio::time::timeout(Duration::from_secs(30), devices.unregister_web_push());
    assert_eq!(removed.await.unwrap().unwrap(), 2);
    let left = devices.of(&[UserKey(1), UserKey(2), UserKey(3)]).await.unwrap();
    assert_eq!(left.iter().map(Vec::len).collect::<Vec<_>>(), [0, 1, 0]);
}
