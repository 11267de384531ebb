use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

/// `entries_max` of the tested timelines.
const ENTRIES_MAX: usize = 6;

#[derive(Debug, Clone)]
enum Step {
    Deliver(u64, BTreeSet<u32>),
    /// Waits until all deliveries are durable.
    Flush,
    Reopen,
    Merge,
    Compact,
    SetOldest(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // Few users, so that they repeat, on both sides of the boundaries of groups, partitions and shards.
    let user = prop_oneof![
        0_u32..6,
        62_u32..67,
        254_u32..258,
        16_382_u32..16_387,
        Just(u32::MAX)
    ];
    let step = prop_oneof![
        10 => (1_u64..60, prop::collection::btree_set(user, 1..14)).prop_map(|(post, users)| Step::Deliver(post, users)),
        4 => Just(Step::Flush),
        1 => Just(Step::Reopen),
        2 => Just(Step::Merge),
        1 => Just(Step::Compact),
        1 => (1_u64..30).prop_map(Step::SetOldest),
    ];
    prop::collection::vec(step, 1..50)
}

#[derive(Default)]
struct Model {
    timelines: BTreeMap<u32, BTreeSet<u64>>,
    oldest: u64,
}

impl Model {
    fn newest(&self, user: u32) -> Vec<u64> {
        let posts = self.timelines.get(&user).into_iter().flatten().rev();
        posts
            .copied()
            .filter(|post| *post >= self.oldest)
            .take(ENTRIES_MAX)
            .collect()
    }

    fn check(&self, timelines: &EmbeddedTimelines, durable: bool) -> std::result::Result<(), TestCaseError> {
        for user in self.timelines.keys().copied().chain([7, 100_000]) {
            let expected = self.newest(user);
            prop_assert_eq!(
                newest(timelines, user, None, usize::MAX),
                expected.clone(),
                "user {}",
                user
            );
            if let Some(before) = expected.get(1) {
                let rest: Vec<u64> = expected.iter().skip(2).take(2).copied().collect();
                prop_assert_eq!(newest(timelines, user, Some(*before), 2), rest);
            }
        }
        if durable {
            let mut users: Vec<u32> = self.timelines.keys().copied().chain([7, 100_000]).collect();
            for _ in 0..2 {
                let expected: Vec<_> = users.iter().map(|user| self.newest(*user)).collect();
                prop_assert_eq!(read(timelines, &users), expected);
                // In any order, with repeats.
                users.rotate_left(1);
                users.insert(0, users[users.len() / 2]);
            }
        }
        Ok(())
    }
}

/// The whole timelines of users, posts newest first.
fn read(timelines: &EmbeddedTimelines, users: &[u32]) -> Vec<Vec<u64>> {
    let users: Vec<UserKey> = users.iter().copied().map(UserKey).collect();
    let found = timelines.shared.read(&users).unwrap();
    assert!(found.iter().all(|one| one.complete));
    let newest_first = |one: TimelineEntries| one.posts.iter().rev().map(|p| p.0).collect();
    found.into_iter().map(newest_first).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn timelines_behave_like_a_map_of_sets(
        steps in steps(),
        small_run_pairs_max in prop_oneof![Just(0_usize), Just(12), Just(1_000)],
        merge_blocks_min in prop_oneof![Just(0_u32), Just(u32::MAX)],
    ) {
        let dir = tempfile::tempdir().unwrap();
        let config = Config {
            flush_interval_ms: 1,
            run_pairs_max: 40,
            small_run_pairs_max,
            entries_max: ENTRIES_MAX,
            merge_blocks_min,
            ..Config::default()
        };
        let mut timelines = open(dir.path(), &config);
        let mut model = Model::default();
        let mut waiting = Vec::new();
        for step in steps {
            match step {
                Step::Deliver(post, users) => {
                    let durable = block_on(timelines.deliver(PostId(post), recipients(users.iter().copied()))).unwrap().durable;
                    waiting.push(durable);
                    for user in users {
                        model.timelines.entry(user).or_default().insert(post);
                    }
                }
                Step::Flush => waiting.drain(..).for_each(|durable| block_on(durable).unwrap()),
                Step::Reopen => {
                    waiting.clear();
                    drop(timelines);
                    timelines = open(dir.path(), &config);
                }
                Step::Merge => timelines.merge_all().unwrap(),
                Step::Compact => timelines.shared.disk.runs().major_compact().unwrap(),
                Step::SetOldest(post) => {
                    timelines.raise_oldest_kept(PostId(post)).unwrap();
                    model.oldest = model.oldest.max(post);
                }
            }
            model.check(&timelines, waiting.is_empty())?;
        }
        for durable in waiting {
            block_on(durable).unwrap();
        }
        model.check(&timelines, true)?;
    }
}
