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
async fn a_trim_counts_the_versions_that_it_removes() {
    let store = Store::new();
    let graph = open(&store);
    for follower in 1..=5 {
        graph.apply(&[change(1, follower, Some(false))]).await.unwrap();
    }
    let now = Timestamp::now();
    assert_eq!(graph.trim(now).await.unwrap(), 0);
    assert_eq!(graph.trim(now.plus(WEEK * 2)).await.unwrap(), 5);
}

/// Users 1 and 2 follow 5, who follows 1, 2 and 3; user 4 follows 1.
async fn small_graph() -> (Store, EmbeddedFollows) {
    let store = Store::new();
    let graph = open(&store);
    for (author, follower) in [(5, 1), (5, 2), (1, 5), (2, 5), (3, 5), (1, 4)] {
        graph
            .apply(&[change(author, follower, Some(true))])
            .await
            .unwrap();
    }
    (store, graph)
}

async fn damage(graph: &EmbeddedFollows, rows: &fjall::Keyspace, key: &[u8]) {
    assert!(rows.contains_key(key).unwrap());
    let mut batch = graph.tables.database.batch();
    batch.insert(rows, key, b"\xff\xff\xff");
    graph.tables.database.commit(batch).await.unwrap();
}

/// The authors whom a user follows.
async fn authors(graph: &EmbeddedFollows, user: u32) -> Vec<u32> {
    let following = graph.following(UserKey(user), None, 9).await.unwrap();
    following.iter().map(|following| following.author.0).collect()
}

async fn assert_erased(graph: &EmbeddedFollows, removed: u64) {
    assert_eq!(graph.erase(UserKey(5)).await.unwrap(), removed);
    assert_eq!(graph.erase(UserKey(5)).await.unwrap(), 0);
    assert_eq!(read(graph, 5, None, 9).await.unwrap(), BTreeMap::new());
    for (user, follows) in [(5, vec![]), (1, vec![]), (2, vec![]), (4, vec![1])] {
        assert_eq!(authors(graph, user).await, follows, "of {user}");
    }
    let trimmed = read(graph, 5, Some(2), 9).await.unwrap_err();
    assert_eq!(trimmed.kind(), ErrorKind::HistoryTrimmed);
    // Versions of others stay.
    assert_eq!(read(graph, 3, Some(1), 9).await.unwrap().len(), 1);
    assert_eq!(read(graph, 3, None, 9).await.unwrap().len(), 0);
}

#[tokio::test]
async fn followers_that_can_not_be_decoded_are_erased() {
    for damages_count in [false, true] {
        let (_store, graph) = small_graph().await;
        if damages_count {
            damage(&graph, &graph.tables.counts, &5_u32.to_be_bytes()).await;
        } else {
            damage(&graph, &graph.tables.blocks, &pair_key(5, 0)).await;
        }
        let failed = graph.apply(&[change(5, 1, None)]).await.unwrap_err();
        assert_eq!(failed.kind(), ErrorKind::Corrupt);
        assert_erased(&graph, 5).await;
        assert_eq!(graph.count(UserKey(5)).await.unwrap().followers, 0);
        assert_eq!(read(&graph, 1, None, 9).await.unwrap(), [(4, true)].into());
    }
}

#[tokio::test]
async fn a_follow_that_can_not_be_decoded_is_erased() {
    let (_store, graph) = small_graph().await;
    damage(&graph, &graph.tables.following, &pair_key(5, 2)).await;
    let failed = graph.following(UserKey(5), None, 9).await.unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::Corrupt);
    assert_erased(&graph, 5).await;
    assert_eq!(read(&graph, 1, None, 9).await.unwrap(), [(4, true)].into());
    assert_eq!(read(&graph, 2, None, 9).await.unwrap(), BTreeMap::new());
}

#[tokio::test]
async fn damaged_followers_of_an_author_fail_only_those_who_need_them() {
    let (_store, graph) = small_graph().await;
    damage(&graph, &graph.tables.blocks, &pair_key(1, 0)).await;
    // In one batch.
    let others = (10..20).map(|follower| [change(2, follower, Some(true))]);
    let calls: Vec<_> = others.chain([[change(1, 6, Some(true))]]).collect();
    let mut applied = futures::future::join_all(calls.iter().map(|call| graph.apply(call))).await;
    let damaged = applied.pop().unwrap();
    assert_eq!(damaged.unwrap_err().kind(), ErrorKind::Corrupt);
    for applied in applied {
        assert!(applied.unwrap()[0].changed);
    }
    assert_eq!(read(&graph, 2, None, 99).await.unwrap().len(), 11);

    assert_erased(&graph, 5).await;
    assert_eq!(read(&graph, 2, None, 99).await.unwrap().len(), 10);
    let kept = read(&graph, 1, None, 9).await.unwrap_err();
    assert_eq!(kept.kind(), ErrorKind::Corrupt);
}
