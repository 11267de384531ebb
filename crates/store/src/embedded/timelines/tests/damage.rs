use std::fs;

use herald_model::{Channel, FollowVersion, PostId, Recipients, UserKey, time::Timestamp};

use super::*;
use crate::{
    ChunkPlan, ExpectedRevision, Outcome, Settlement, SlicePlan, Stores,
    embedded::{self, Embedded, recover},
};

const USERS: u32 = 20_000;
const POSTS: u64 = 6;

fn config(dir: &Path) -> embedded::Config {
    embedded::Config {
        data_dir: dir.into(),
        timelines: Config {
            // Tables only, no rows in the journal.
            small_run_pairs_max: 0,
            flush_interval_ms: 1,
            merge_blocks_min: u32::MAX,
            ..Config::default()
        },
        ..embedded::Config::default()
    }
}

async fn plan(stores: &Stores, post: u64, recipients: &Recipients) {
    let plan = SlicePlan {
        post: PostId(post),
        author: UserKey(1),
        slice: 0,
        version: FollowVersion(1),
        chunks: vec![ChunkPlan {
            channel: Channel::Timeline,
            recipients: recipients.clone(),
        }],
        next_after: None,
    };
    stores.ledger.plan(plan).await.unwrap();
}

async fn settle(stores: &Stores, post: u64, recipients: &Recipients) {
    let settlement = Settlement {
        post: PostId(post),
        channel: Channel::Timeline,
        chunk: recipients.chunk_id(),
        base: ExpectedRevision::Any,
        outcome: Outcome::Delivered {
            count: recipients.len(),
        },
        at: Timestamp::now(),
        keep_claim: None,
    };
    stores.ledger.settle(&settlement).await.unwrap();
}

/// A store in which all users have all posts, but the last post, which only user 7 has by a backfill.
async fn fill(dir: &Path) {
    let store = Embedded::open(&config(dir)).unwrap();
    let stores = store.stores();
    let everyone = recipients(1..=USERS);
    for post in 1..=POSTS {
        plan(&stores, post, &everyone).await;
        let delivered = stores
            .timelines
            .deliver(PostId(post), everyone.clone())
            .await
            .unwrap();
        delivered.durable.await.unwrap();
        settle(&stores, post, &everyone).await;
    }
    let backfilled = [PostId(POSTS + 1)];
    let delivered = stores
        .timelines
        .deliver(backfilled[0], recipients([7]))
        .await
        .unwrap();
    delivered.durable.await.unwrap();
    stores
        .ledger
        .record_backfill(&backfilled, &recipients([7]))
        .await
        .unwrap();
    drop(stores);
    store.close().unwrap();
}

/// Flips a bit in the middle of the largest table of timelines.
fn flip_a_bit(dir: &Path) {
    let mut tables = Vec::new();
    for keyspace in fs::read_dir(dir.join("timelines/keyspaces")).unwrap() {
        let Ok(found) = fs::read_dir(keyspace.unwrap().path().join("tables")) else {
            continue;
        };
        tables.extend(found.map(|table| table.unwrap().path()));
    }
    let table = tables
        .into_iter()
        .max_by_key(|path| fs::metadata(path).unwrap().len())
        .unwrap();
    let mut bytes = fs::read(&table).unwrap();
    let middle = bytes.len() / 3;
    bytes[middle] ^= 1;
    fs::write(&table, bytes).unwrap();
}

/// The users whose timeline can't be read. All others have all posts.
async fn unreadable(stores: &Stores) -> Vec<u32> {
    let mut unreadable = Vec::new();
    for user in (1..=USERS).step_by(50).chain([7]) {
        match stores.timelines.newest(UserKey(user), None, 100).await {
            Ok(page) => {
                let last = if user == 7 { POSTS + 1 } else { POSTS };
                let all: Vec<PostId> = (1..=last).rev().map(PostId).collect();
                assert!(page.posts == all && !page.rebuilding, "{user}: {page:?}");
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
                assert!(error.to_string().contains("herald rebuild timelines"), "{error}");
                unreadable.push(user);
            }
        }
    }
    unreadable
}

#[tokio::test]
async fn timelines_with_a_damaged_table_are_rebuilt_from_the_ledger() {
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path()).await;
    flip_a_bit(dir.path());
    let store = Embedded::open(&config(dir.path())).unwrap();
    let stores = store.stores();
    let damaged = unreadable(&stores).await;
    assert!(
        !damaged.is_empty() && damaged.len() < USERS as usize / 100,
        "{}",
        damaged.len()
    );

    // Delivered before the rebuild, and settled after it.
    let late = recipients([1, 2]);
    plan(&stores, POSTS + 2, &late).await;
    let delivered = stores.timelines.deliver(PostId(POSTS + 2), late).await.unwrap();
    let losses = delivered.losses;
    delivered.durable.await.unwrap();
    assert!(stores.timelines.is_intact(losses).await.unwrap());

    let all: Vec<UserKey> = (1..=USERS).map(UserKey).collect();
    let mut rebuilt = 0;
    for page in all.chunks(64) {
        rebuilt += stores.timelines.rebuild(page).await.unwrap().entries;
    }
    // Once, for all users, and with the pending delivery.
    assert_eq!(rebuilt, u64::from(USERS) * POSTS + 1 + 2);
    assert!(!stores.timelines.is_intact(losses).await.unwrap());
    let newest = stores.timelines.newest(UserKey(2), None, 1).await.unwrap();
    assert_eq!(newest.posts, [PostId(POSTS + 2)]);
    assert_eq!(
        stores.timelines.read(&[UserKey(7)]).await.unwrap()[0].posts.len(),
        POSTS as usize + 1
    );
    drop(stores);
    store.close().unwrap();
    drop(store);

    let store = Embedded::open(&config(dir.path())).unwrap();
    let stores = store.stores();
    let again = stores.timelines.newest(UserKey(USERS), None, 100).await.unwrap();
    assert_eq!((again.posts.len(), again.rebuilding), (POSTS as usize, false));
    let check = store.timelines().shared.disk.check();
    check.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn timelines_are_recovered_while_the_store_is_closed_and_rebuilt_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path()).await;
    assert!(recover(&config(dir.path())).unwrap().is_intact());
    flip_a_bit(dir.path());
    let recovery = recover(&config(dir.path())).unwrap();
    assert!(recovery.timelines == TimelinesState::Damaged && recovery.journals.is_empty());
    // The rebuild is interrupted at once, and repeated.
    Embedded::open(&config(dir.path())).unwrap().close().unwrap();
    let store = Embedded::open(&config(dir.path())).unwrap();
    assert!(dir.path().join("damaged/timelines.1").exists());
    let rebuilding = async || {
        store
            .stores()
            .timelines
            .newest(UserKey(1), None, 1)
            .await
            .unwrap()
            .rebuilding
    };
    let done = tokio::time::timeout(Duration::from_mins(1), async {
        while rebuilding().await {
            tokio::task::yield_now().await;
        }
    });
    done.await.unwrap();
    assert_eq!(unreadable(&store.stores()).await, Vec::<u32>::new());
    store.close().unwrap();
    drop(store);
    assert!(recover(&config(dir.path())).unwrap().is_intact());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_from_the_ledger_brings_no_erased_timeline_back() {
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path()).await;
    let store = Embedded::open(&config(dir.path())).unwrap();
    // One of its entries is merged, the other ones are not.
    store.timelines().merge_all().unwrap();
    let late = recipients([6, 7]);
    let delivered = store.stores().timelines.deliver(PostId(POSTS + 2), late).await;
    delivered.unwrap().durable.await.unwrap();
    let removed = store.stores().timelines.erase(UserKey(6)).await.unwrap();
    assert_eq!(removed, POSTS + 1);
    let on_disk = |user| {
        let mut posts = Vec::new();
        let disk = &store.timelines().shared.disk;
        disk.posts_of(UserKey(user), &mut posts).unwrap();
        posts.len() as u64
    };
    assert_eq!((on_disk(6), on_disk(7)), (0, POSTS + 2));
    store.close().unwrap();
    drop(store);
    request_rebuild(dir.path()).unwrap();

    let store = Embedded::open(&config(dir.path())).unwrap();
    let timelines = store.stores().timelines;
    let done = tokio::time::timeout(Duration::from_mins(1), async {
        while timelines.newest(UserKey(1), None, 1).await.unwrap().rebuilding {
            tokio::task::yield_now().await;
        }
    });
    done.await.unwrap();
    assert_eq!(timelines.newest(UserKey(6), None, 100).await.unwrap().posts, []);
    let read = timelines.read(&[5, 6, 7].map(UserKey)).await.unwrap();
    let found: Vec<_> = read
        .iter()
        .map(|one| (one.posts.len() as u64, one.complete))
        .collect();
    assert_eq!(found, [(POSTS, true), (0, false), (POSTS + 1, true)]);
}
