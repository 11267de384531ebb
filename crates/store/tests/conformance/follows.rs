//! The follow graph, against a model and under concurrent changes.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use herald_model::{FollowVersion, UserKey, time::Timestamp};
use herald_store::{
    ErrorKind, FollowAction, FollowChange, FollowEffect, FollowerCount, Following, Follows, Result,
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use crate::engine::Engine;

const WEEK: Duration = Duration::from_hours(7 * 24);

/// A follow that keeps the notify setting.
fn keep(author: u32, follower: u32) -> FollowChange {
    FollowChange {
        action: FollowAction::Follow { notify: None },
        ..change(author, follower, None)
    }
}

/// `None` unfollows.
fn change(author: u32, follower: u32, notify: Option<bool>) -> FollowChange {
    FollowChange {
        author: UserKey(author),
        follower: UserKey(follower),
        action: notify.map_or(FollowAction::Unfollow, |notify| FollowAction::Follow {
            notify: Some(notify),
        }),
    }
}

/// Reads all followers with their notify settings, page by page.
async fn read(
    follows: &dyn Follows,
    author: u32,
    at: Option<u64>,
    page_size: usize,
) -> Result<BTreeMap<u32, bool>> {
    let mut all = BTreeMap::new();
    let mut after = None;
    let mut version = at.map(FollowVersion);
    loop {
        let page = follows
            .followers(UserKey(author), version, after, page_size)
            .await?;
        assert_eq!(*version.get_or_insert(page.version), page.version);
        assert!(page.followers.len() as usize <= page_size);
        assert_eq!(page.last, page.followers.iter().last());
        for key in &page.followers {
            assert!(after < Some(key));
            all.insert(key.0, false);
        }
        for key in &page.notify {
            assert_eq!(
                all.insert(key.0, true),
                Some(false),
                "notifications without a follow"
            );
        }
        if page.complete {
            return Ok(all);
        }
        assert!(page.last.is_some(), "an incomplete page has followers");
        after = page.last;
    }
}

/// All authors whom a user follows, page by page.
async fn following(follows: &dyn Follows, follower: u32, page_size: usize) -> Vec<Following> {
    let mut all: Vec<Following> = Vec::new();
    loop {
        let after = all.last().map(|one| one.author);
        let page = follows
            .following(UserKey(follower), after, page_size)
            .await
            .unwrap();
        assert!(page.len() <= page_size);
        if page.is_empty() {
            return all;
        }
        all.extend(page);
    }
}

/// The reference implementation of the graph.
#[derive(Default)]
struct Model {
    /// author → the followers of each version.
    versions: HashMap<u32, Vec<BTreeMap<u32, bool>>>,
}

impl Model {
    fn versions_of(&mut self, author: u32) -> &mut Vec<BTreeMap<u32, bool>> {
        self.versions
            .entry(author)
            .or_insert_with(|| vec![BTreeMap::new()])
    }

    fn apply(&mut self, changes: &[FollowChange]) -> Vec<FollowEffect> {
        let mut now: BTreeMap<u32, BTreeMap<u32, bool>> = BTreeMap::new();
        let effects = changes
            .iter()
            .map(|c| {
                let followers = now
                    .entry(c.author.0)
                    .or_insert_with(|| self.versions_of(c.author.0).last().unwrap().clone());
                let before = followers.get(&c.follower.0).copied();
                match c.action {
                    FollowAction::Follow { notify } => {
                        let notify = notify.or(before).unwrap_or(false);
                        followers.insert(c.follower.0, notify);
                    }
                    FollowAction::Unfollow => {
                        followers.remove(&c.follower.0);
                    }
                }
                let after = followers.get(&c.follower.0).copied();
                FollowEffect {
                    changed: before != after,
                    notify: after == Some(true),
                }
            })
            .collect();
        for (author, followers) in now {
            let versions = self.versions_of(author);
            if versions.last() != Some(&followers) {
                versions.push(followers);
            }
        }
        effects
    }
}

/// Few enough keys for changes to overlap.
const KEYS: u32 = 6_000;

fn random_key(random: &mut StdRng) -> u32 {
    match random.random_range(0..10) {
        0 => u32::MAX,
        1 => u32::MAX - 1,
        _ => random.random_range(0..KEYS),
    }
}

/// Single changes, or many of one author.
fn random_changes(random: &mut StdRng) -> Vec<FollowChange> {
    let notify = |random: &mut StdRng| [None, Some(false), Some(true)][random.random_range(0..3)];
    if random.random_bool(0.5) {
        let count = random.random_range(1..40_u32);
        let one = |random: &mut StdRng| {
            let (author, follower) = (random.random_range(1..4), random_key(random));
            if random.random_bool(0.2) {
                keep(author, follower)
            } else {
                change(author, follower, notify(random))
            }
        };
        return (0..count).map(|_| one(random)).collect();
    }
    let (author, start) = (random.random_range(1..4), random.random_range(0..KEYS));
    let (step, count) = (random.random_range(1..6_u32), random.random_range(500..3_000_u32));
    let notify = notify(random);
    let one = |n| change(author, (start + n * step) % KEYS, notify);
    (0..count).map(one).collect()
}

pub async fn the_set_at_a_version_never_changes<E: Engine>(engine: &mut E) {
    let mut random = StdRng::seed_from_u64(7);
    let mut model = Model::default();
    let mut follows = engine.stores().follows;
    for step in 0..40 {
        let changes = random_changes(&mut random);
        let effects = follows.apply(&changes).await.unwrap();
        assert!(
            effects == model.apply(&changes),
            "the effects of step {step} differ"
        );
        for author in 1..4 {
            let versions = model.versions_of(author);
            let now = versions.last().unwrap();
            let expected = FollowerCount {
                followers: now.len() as u64,
                notify: now.values().filter(|notify| **notify).count() as u64,
                version: FollowVersion(versions.len() as u64 - 1),
            };
            assert_eq!(follows.count(UserKey(author)).await.unwrap(), expected);
        }
        let author = random.random_range(1..4);
        let versions = model.versions_of(author);
        let version = random.random_range(0..versions.len());
        let page_size = [50, 333, 2_000][step % 3];
        let found = read(&*follows, author, Some(version as u64), page_size)
            .await
            .unwrap();
        assert!(
            found == versions[version],
            "version {version} of author {author} changed"
        );

        let follower = random_key(&mut random);
        let expected: Vec<_> = (1..4)
            .filter_map(|author| {
                let notify = *model.versions_of(author).last()?.get(&follower)?;
                Some(Following {
                    author: UserKey(author),
                    notify,
                })
            })
            .collect();
        assert_eq!(following(&*follows, follower, 1 + step % 3).await, expected);
        if step == 20 {
            drop(follows);
            engine.reopen().await;
            follows = engine.stores().follows;
        }
    }
    for (author, versions) in &model.versions {
        for (version, followers) in versions.iter().enumerate() {
            let found = read(&*follows, *author, Some(version as u64), 4_096)
                .await
                .unwrap();
            assert!(
                found == *followers,
                "version {version} of author {author} changed"
            );
        }
        let found = read(&*follows, *author, None, 4_096).await.unwrap();
        assert!(found == *versions.last().unwrap());
    }
}

pub async fn the_last_change_of_an_edge_wins_and_no_change_makes_no_version<E: Engine>(engine: &mut E) {
    let follows = engine.stores().follows;
    let (on, off) = (Some(true), Some(false));
    let changes = [
        change(1, 5, on),
        change(1, 5, on),
        change(1, 5, off),
        change(2, 5, off),
        change(2, 5, None),
    ];
    let changed = async |changes: &[FollowChange]| -> Vec<bool> {
        let effects = follows.apply(changes).await.unwrap();
        effects.into_iter().map(|effect| effect.changed).collect()
    };
    assert_eq!(changed(&changes).await, [true, false, true, true, true]);
    assert_eq!(read(&*follows, 1, None, 10).await.unwrap(), [(5, false)].into());
    let version_of = async |author| follows.count(UserKey(author)).await.unwrap().version;
    assert_eq!(version_of(1).await, FollowVersion(1));
    assert_eq!(follows.count(UserKey(2)).await.unwrap(), FollowerCount::default());
    assert_eq!(
        changed(&[change(1, 5, off), change(1, 6, None)]).await,
        [false, false]
    );
    assert_eq!(version_of(1).await, FollowVersion(1));
    assert_eq!(follows.apply(&[]).await.unwrap(), []);
    assert_eq!(following(&*follows, 5, 10).await.len(), 1);
}

pub async fn a_follow_without_a_notify_setting_keeps_it<E: Engine>(engine: &mut E) {
    let follows = engine.stores().follows;
    let first = [change(1, 5, Some(true)), change(1, 6, Some(false))];
    follows.apply(&first).await.unwrap();
    // The last one unfollows first: its follow is new, without notifications.
    let changes = [keep(1, 5), keep(1, 6), keep(1, 7), change(1, 5, None), keep(1, 5)];
    let effect = |changed, notify| FollowEffect { changed, notify };
    assert_eq!(
        follows.apply(&changes[..3]).await.unwrap(),
        [effect(false, true), effect(false, false), effect(true, false)]
    );
    let expected = [(5, true), (6, false), (7, false)];
    assert_eq!(read(&*follows, 1, None, 10).await.unwrap(), expected.into());
    assert_eq!(
        follows.apply(&changes[3..]).await.unwrap(),
        [effect(true, false), effect(true, false)]
    );
}

pub async fn pages_end_at_their_limit<E: Engine>(engine: &mut E) {
    let follows = engine.stores().follows;
    let changes = [change(1, 3, Some(false)), change(1, u32::MAX, Some(true))];
    follows.apply(&changes).await.unwrap();
    let page = async |after: Option<u32>, limit| {
        let page = follows
            .followers(UserKey(1), None, after.map(UserKey), limit)
            .await
            .unwrap();
        let followers: Vec<_> = page.followers.iter().map(|key| key.0).collect();
        (followers, page.complete)
    };
    assert_eq!(page(None, 1).await, (vec![3], false));
    assert_eq!(page(Some(3), 1).await, (vec![u32::MAX], true));
    assert_eq!(page(None, 2).await, (vec![3, u32::MAX], true));
    assert_eq!(page(None, 0).await, (vec![], false));
    assert_eq!(page(Some(u32::MAX), 5).await, (vec![], true));
    let nobody = follows.followers(UserKey(9), None, None, 5).await.unwrap();
    assert!(nobody.complete && nobody.followers.is_empty() && nobody.last.is_none());
}

pub async fn a_version_reads_the_same_during_concurrent_writes<E: Engine>(engine: &mut E) {
    let both = [engine.stores().follows, engine.peer().await.follows];
    let writers = (0..4_u32).map(|writer| {
        let follows = both[writer as usize % 2].clone();
        tokio::spawn(async move {
            for n in 0..50 {
                let notify = [Some(true), Some(false), None][(n % 3) as usize];
                let changes: Vec<_> = (0..20)
                    .map(|k| change(1, (n * 7 + k * 11 + writer) % 300, notify))
                    .collect();
                follows.apply(&changes).await.unwrap();
            }
        })
    });
    let readers = (0..4_usize).map(|reader| {
        let (one, other) = (both[reader % 2].clone(), both[(reader + 1) % 2].clone());
        tokio::spawn(async move {
            for _ in 0..40 {
                let count = one.count(UserKey(1)).await.unwrap();
                let at = Some(count.version.0);
                let first = read(&*one, 1, at, 64).await.unwrap();
                assert_eq!(first.len() as u64, count.followers);
                let notify = first.values().filter(|notify| **notify).count() as u64;
                assert_eq!(notify, count.notify);
                assert_eq!(read(&*other, 1, at, 1_000).await.unwrap(), first);
            }
        })
    });
    for task in writers.chain(readers).collect::<Vec<_>>() {
        task.await.unwrap();
    }
}

pub async fn concurrent_changes_are_all_applied<E: Engine>(engine: &mut E) {
    let both = [engine.stores().follows, engine.peer().await.follows];
    // Overlapping authors in different orders, as batches of several clients have them.
    let calls = (0..24_u32).map(|n| {
        let follows = both[n as usize % 2].clone();
        tokio::spawn(async move {
            let mut changes: Vec<_> = (1..=8).map(|author| change(author, n, Some(true))).collect();
            changes.rotate_left(n as usize % 8);
            let effects = follows.apply(&changes).await.unwrap();
            assert!(effects.iter().all(|effect| effect.changed && effect.notify));
        })
    });
    for call in futures::future::join_all(calls).await {
        call.unwrap();
    }
    for author in 1..=8 {
        let counts = [
            both[0].count(UserKey(author)).await.unwrap(),
            both[1].count(UserKey(author)).await.unwrap(),
        ];
        assert_eq!(counts[0], counts[1]);
        assert_eq!((counts[0].followers, counts[0].notify), (24, 24));
        // An engine can make one version of several calls.
        assert!((1..=24).contains(&counts[0].version.0), "{counts:?}");
        assert_eq!(read(&*both[0], author, None, 10).await.unwrap().len(), 24);
    }
}

pub async fn old_versions_are_readable_until_they_are_trimmed<E: Engine>(engine: &mut E) {
    let stores = engine.stores();
    for follower in 1..=5 {
        stores
            .follows
            .apply(&[change(1, follower, Some(false))])
            .await
            .unwrap();
    }
    let now = Timestamp::now();
    stores.retention.trim(now).await.unwrap();
    assert_eq!(read(&*stores.follows, 1, Some(2), 10).await.unwrap().len(), 2);

    stores.retention.trim(now.plus(WEEK * 2)).await.unwrap();
    drop(stores);
    engine.reopen().await;
    let follows = engine.stores().follows;
    let kind_at = async |author, version| {
        let read = read(&*follows, author, Some(version), 10).await;
        read.err().map(|error| error.kind())
    };
    assert_eq!(kind_at(1, 4).await, Some(ErrorKind::HistoryTrimmed));
    assert_eq!(read(&*follows, 1, Some(5), 10).await.unwrap().len(), 5);
    follows.apply(&[change(1, 1, None)]).await.unwrap();
    assert_eq!(read(&*follows, 1, Some(5), 10).await.unwrap().len(), 5);
    assert_eq!(read(&*follows, 1, Some(6), 10).await.unwrap().len(), 4);
    assert_eq!(kind_at(1, 0).await, Some(ErrorKind::HistoryTrimmed));
    // Versions that this store never had.
    for (author, version) in [(1, 7), (2, 1), (1, u64::MAX)] {
        assert_eq!(kind_at(author, version).await, Some(ErrorKind::UnknownVersion));
    }
}

pub async fn many_followers_are_read_in_pages<E: Engine>(engine: &mut E) {
    const FOLLOWERS: u32 = 70_000;
    let follows = engine.stores().follows;
    let all: Vec<_> = (1..=FOLLOWERS)
        .map(|n| change(1, n * 3, Some(n % 10 == 0)))
        .collect();
    for part in all.chunks(10_000) {
        let effects = follows.apply(part).await.unwrap();
        assert!(effects.iter().all(|effect| effect.changed));
    }
    let version = follows.count(UserKey(1)).await.unwrap().version;
    follows
        .apply(&[change(1, 6, None), change(1, 7, Some(true))])
        .await
        .unwrap();
    for page_size in [4_096, 65_536, 1_000_000] {
        let found = read(&*follows, 1, Some(version.0), page_size).await.unwrap();
        assert_eq!(found.len(), FOLLOWERS as usize);
        let expected = (1..=FOLLOWERS).map(|n| (n * 3, n % 10 == 0));
        assert!(found.into_iter().eq(expected), "in pages of {page_size}");
    }
    let now = read(&*follows, 1, None, 50_000).await.unwrap();
    assert_eq!((now.get(&6), now.get(&7)), (None, Some(&true)));
}
