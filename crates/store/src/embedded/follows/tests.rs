use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;

use super::*;
use crate::{FollowAction, Follows, embedded::testing::Store};

const WEEK: Duration = Duration::from_hours(7 * 24);

fn open(store: &Store) -> EmbeddedFollows {
    EmbeddedFollows::open(store.database(), WEEK, 1 << 20).unwrap()
}

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
    graph: &EmbeddedFollows,
    author: u32,
    at: Option<u64>,
    page_size: usize,
) -> Result<BTreeMap<u32, bool>> {
    let mut all = BTreeMap::new();
    let mut after = None;
    loop {
        let page = graph
            .followers(UserKey(author), at.map(FollowVersion), after, page_size)
            .await?;
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
        assert_eq!(page.followers.len() as usize, page_size);
        after = page.last;
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

#[derive(Debug, Clone)]
enum Step {
    /// Single changes.
    Few(Vec<FollowChange>),
    /// Many changes: follower = (start + n * step) modulo, one author or two.
    Many {
        author: u32,
        start: u32,
        step: u32,
        count: u32,
        notify: Option<bool>,
    },
    /// A read at a version (as a fraction of all versions) with a page size.
    Read {
        author: u32,
        version: f64,
        page_size: usize,
    },
    Following {
        follower: u32,
        page_size: usize,
    },
    Reopen,
}

/// Few enough keys for changes to overlap, and enough for blocks to split.
const KEYS: u32 = 12_000;

fn key() -> impl Strategy<Value = u32> {
    prop_oneof![8 => 0..KEYS, 1 => Just(u32::MAX), 1 => Just(u32::MAX - 1)]
}

fn notify() -> impl Strategy<Value = Option<bool>> {
    prop_oneof![Just(None), Just(Some(false)), Just(Some(true))]
}

fn few() -> impl Strategy<Value = FollowChange> {
    (
        1_u32..4,
        key(),
        prop_oneof![3 => notify().prop_map(Some), 1 => Just(None)],
    )
        .prop_map(|(author, follower, notify)| match notify {
            Some(notify) => change(author, follower, notify),
            None => keep(author, follower),
        })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => prop::collection::vec(few(), 1..40).prop_map(Step::Few),
        3 => (1_u32..4, 0..KEYS, 1_u32..6, 1_000_u32..5_000, notify())
            .prop_map(|(author, start, step, count, notify)| Step::Many { author, start, step, count, notify }),
        4 => (1_u32..4, 0.0..1.0, prop_oneof![7_usize..100, 1_000_usize..5_000])
            .prop_map(|(author, version, page_size)| Step::Read { author, version, page_size }),
        1 => (key(), 1_usize..4).prop_map(|(follower, page_size)| Step::Following { follower, page_size }),
        1 => Just(Step::Reopen),
    ]
}

async fn run(steps: Vec<Step>) {
    let mut store = Store::new();
    let mut graph = open(&store);
    let mut model = Model::default();
    for step in steps {
        let changes: Vec<_> = match step {
            Step::Few(changes) => changes,
            Step::Many {
                author,
                start,
                step,
                count,
                notify,
            } => (0..count)
                .map(|n| change(author, (start + n * step) % KEYS, notify))
                .collect(),
            Step::Read {
                author,
                version,
                page_size,
            } => {
                let versions = model.versions_of(author);
                let version = (version * versions.len() as f64) as usize;
                let found = read(&graph, author, Some(version as u64), page_size)
                    .await
                    .unwrap();
                assert!(
                    found == versions[version],
                    "version {version} of {author} changed"
                );
                continue;
            }
            Step::Following { follower, page_size } => {
                let mut found = Vec::new();
                loop {
                    let after = found.last().map(|f: &Following| f.author);
                    let page = graph
                        .following(UserKey(follower), after, page_size)
                        .await
                        .unwrap();
                    if page.is_empty() {
                        break;
                    }
                    found.extend(page);
                }
                let expected: Vec<_> = (0..4)
                    .filter_map(|author| {
                        let notify = *model.versions_of(author).last()?.get(&follower)?;
                        Some(Following {
                            author: UserKey(author),
                            notify,
                        })
                    })
                    .collect();
                assert_eq!(found, expected);
                continue;
            }
            Step::Reopen => {
                drop(graph);
                store.reopen();
                graph = open(&store);
                continue;
            }
        };
        assert!(
            graph.apply(&changes).await.unwrap() == model.apply(&changes),
            "the effects differ"
        );
        for author in 1..4 {
            let versions = model.versions_of(author);
            let now = versions.last().unwrap();
            let count = graph.count(UserKey(author)).await.unwrap();
            assert_eq!(count.version.0, versions.len() as u64 - 1);
            assert_eq!(count.followers, now.len() as u64);
            assert_eq!(
                count.notify,
                now.values().filter(|notify| **notify).count() as u64
            );
        }
    }
    for (author, versions) in &model.versions {
        for (version, followers) in versions.iter().enumerate() {
            assert!(read(&graph, *author, Some(version as u64), 4_096).await.unwrap() == *followers);
        }
        assert!(read(&graph, *author, None, 4_096).await.unwrap() == *versions.last().unwrap());
        let blocks = graph.tables.blocks.prefix(author.to_be_bytes()).count() as u64;
        assert_eq!(
            graph
                .tables
                .count(&graph.tables.database.snapshot(), *author)
                .unwrap()
                .blocks,
            blocks
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn the_set_at_a_version_never_changes(steps in prop::collection::vec(step(), 5..40)) {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(run(steps));
    }
}

#[tokio::test]
async fn the_last_change_of_an_edge_wins_and_no_change_makes_no_version() {
    let store = Store::new();
    let graph = open(&store);
    let (on, off) = (Some(true), Some(false));
    let changes = [
        change(1, 5, on),
        change(1, 5, on),
        change(1, 5, off),
        change(2, 5, off),
        change(2, 5, None),
    ];
    let changed = async |changes: &[FollowChange]| -> Vec<bool> {
        let effects = graph.apply(changes).await.unwrap();
        effects.into_iter().map(|effect| effect.changed).collect()
    };
    assert_eq!(changed(&changes).await, [true, false, true, true, true]);
    assert_eq!(read(&graph, 1, None, 10).await.unwrap(), [(5, false)].into());
    assert_eq!(graph.count(UserKey(1)).await.unwrap().version, FollowVersion(1));
    assert_eq!(graph.count(UserKey(2)).await.unwrap(), FollowerCount::default());
    assert_eq!(
        changed(&[change(1, 5, off), change(1, 6, None)]).await,
        [false, false]
    );
    assert_eq!(graph.count(UserKey(1)).await.unwrap().version, FollowVersion(1));
    assert_eq!(graph.apply(&[]).await.unwrap(), []);
}

#[tokio::test]
async fn a_follow_without_a_notify_setting_keeps_it() {
    let store = Store::new();
    let graph = open(&store);
    graph
        .apply(&[change(1, 5, Some(true)), change(1, 6, Some(false))])
        .await
        .unwrap();
    // The last one unfollows first: its follow is new, without notifications.
    let changes = [keep(1, 5), keep(1, 6), keep(1, 7), change(1, 5, None), keep(1, 5)];
    let effect = |changed, notify| FollowEffect { changed, notify };
    assert_eq!(
        graph.apply(&changes[..3]).await.unwrap(),
        [effect(false, true), effect(false, false), effect(true, false)]
    );
    let expected = [(5, true), (6, false), (7, false)];
    assert_eq!(read(&graph, 1, None, 10).await.unwrap(), expected.into());
    assert_eq!(
        graph.apply(&changes[3..]).await.unwrap(),
        [effect(true, false), effect(true, false)]
    );
}

#[tokio::test]
async fn pages_end_at_their_limit() {
    let store = Store::new();
    let graph = open(&store);
    graph
        .apply(&[change(1, 3, Some(false)), change(1, u32::MAX, Some(true))])
        .await
        .unwrap();
    let page = |after: Option<u32>, limit| {
        let page = graph.followers(UserKey(1), None, after.map(UserKey), limit);
        async move {
            let page = page.await.unwrap();
            (
                page.followers.iter().map(|k| k.0).collect::<Vec<_>>(),
                page.complete,
            )
        }
    };
    assert_eq!(page(None, 1).await, (vec![3], false));
    assert_eq!(page(Some(3), 1).await, (vec![u32::MAX], true));
    assert_eq!(page(None, 2).await, (vec![3, u32::MAX], true));
    assert_eq!(page(None, 0).await, (vec![], false));
    assert_eq!(page(Some(u32::MAX), 5).await, (vec![], true));
}

#[tokio::test]
async fn old_versions_are_readable_until_they_are_trimmed() {
    let mut store = Store::new();
    let graph = open(&store);
    for follower in 1..=5 {
        graph.apply(&[change(1, follower, Some(false))]).await.unwrap();
    }
    let now = Timestamp::now();
    assert_eq!(graph.trim(now).await.unwrap(), 0);
    assert_eq!(read(&graph, 1, Some(2), 10).await.unwrap().len(), 2);

    assert_eq!(graph.trim(now.plus(WEEK * 2)).await.unwrap(), 5);
    drop(graph);
    store.reopen();
    let graph = open(&store);
    assert_eq!(
        read(&graph, 1, Some(4), 10).await.unwrap_err().kind(),
        ErrorKind::HistoryTrimmed
    );
    assert_eq!(read(&graph, 1, Some(5), 10).await.unwrap().len(), 5);
    graph.apply(&[change(1, 1, None)]).await.unwrap();
    assert_eq!(read(&graph, 1, Some(5), 10).await.unwrap().len(), 5);
    assert_eq!(read(&graph, 1, Some(6), 10).await.unwrap().len(), 4);
    assert_eq!(
        read(&graph, 1, Some(0), 10).await.unwrap_err().kind(),
        ErrorKind::HistoryTrimmed
    );
    assert_eq!(
        read(&graph, 1, Some(7), 10).await.unwrap_err().kind(),
        ErrorKind::Corrupt
    );
    assert_eq!(
        read(&graph, 2, Some(1), 10).await.unwrap_err().kind(),
        ErrorKind::Corrupt
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_version_reads_the_same_during_concurrent_writes() {
    let store = Store::new();
    let graph = Arc::new(open(&store));
    let writers = (0..4_u32).map(|writer| {
        let graph = Arc::clone(&graph);
        tokio::spawn(async move {
            for n in 0..50 {
                let notify = [Some(true), Some(false), None][(n % 3) as usize];
                let changes: Vec<_> = (0..20)
                    .map(|k| change(1, (n * 7 + k * 11 + writer) % 300, notify))
                    .collect();
                graph.apply(&changes).await.unwrap();
            }
        })
    });
    let readers = (0..4).map(|_| {
        let graph = Arc::clone(&graph);
        tokio::spawn(async move {
            for _ in 0..100 {
                let count = graph.count(UserKey(1)).await.unwrap();
                let at = Some(count.version.0);
                let first = read(&graph, 1, at, 64).await.unwrap();
                assert_eq!(first.len() as u64, count.followers);
                assert_eq!(
                    first.values().filter(|notify| **notify).count() as u64,
                    count.notify
                );
                assert_eq!(read(&graph, 1, at, 1_000).await.unwrap(), first);
            }
        })
    });
    for task in writers.chain(readers).collect::<Vec<_>>() {
        task.await.unwrap();
    }
}
