//! Whole and interrupted moves, and what is there after them.

use herald_model::{Channel, FollowVersion, PostId, Recipients, UserId, UserKey, time::Timestamp};
use herald_store::{
    ChunkPlan, ErrorKind, SlicePlan, Stores, cluster::Cluster, embedded::Embedded, migrate::compare,
};

use crate::{
    DAY,
    fill::{USERS, fill_source},
    posts::{QUIET, follow},
    world::World,
};

/// Users on whose timelines a rebuild from PostgreSQL differs from the embedded timelines.
async fn differing_rebuilds(old: &Stores, new: &Stores) -> Vec<(u32, Vec<u64>, Vec<u64>)> {
    let users: Vec<_> = (1..=USERS).map(UserKey).collect();
    new.timelines.rebuild(&users).await.unwrap();
    let (before, after) = (
        old.timelines.read(&users).await.unwrap(),
        new.timelines.read(&users).await.unwrap(),
    );
    let posts = |posts: Vec<PostId>| posts.into_iter().map(|post| post.0).collect::<Vec<_>>();
    users
        .iter()
        .zip(before.into_iter().zip(after))
        .filter(|(_, (before, after))| before.posts != after.posts)
        .map(|(user, (before, after))| (user.0, posts(before.posts), posts(after.posts)))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_store_with_rows_of_every_kind_is_the_same_after_the_move() {
    let Some(world) = World::start().await else { return };
    fill_source(&world).await;
    let moved = world.migrate().await.unwrap();
    assert!(!moved.was_finished);
    for part in &moved.parts {
        assert!(
            part.rows > 0,
            "{} has no rows: the store of this test lacks them",
            part.name
        );
    }
    let refused = Embedded::open(&world.from()).err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::Invalid);
    let again = world.migrate().await.unwrap();
    assert!(again.was_finished);
    assert_eq!(again.parts, moved.parts);

    let source = world.open_moved_source().await;
    let cluster = Cluster::open(&world.to).await.unwrap();
    let (old, new) = (source.stores(), cluster.stores());
    let compared = compare(&old, &new, None).await.unwrap();
    assert_eq!(compared.users, u64::from(USERS));
    assert_eq!((compared.dead_letters, compared.operations), (8, 2));
    // Every version that the embedded store can read.
    for author in 1..=USERS {
        let current = old.follows.count(UserKey(author)).await.unwrap().version.0;
        for version in (0..=current).map(FollowVersion) {
            let read = async |stores: &Stores| {
                let page = stores
                    .follows
                    .followers(UserKey(author), Some(version), None, 1_000);
                page.await.map_err(|error| error.kind())
            };
            assert_eq!(
                read(&old).await,
                read(&new).await,
                "author {author} at {version:?}"
            );
        }
    }
    // Nothing that was used is used again.
    let device = async |stores: &Stores| {
        let url = "https://c".to_owned();
        let device = stores
            .devices
            .register_webhook(UserKey(12), url, vec![1; 32], Timestamp(1));
        device.await.unwrap().id
    };
    assert_eq!(device(&new).await, device(&old).await);
    let intern = async |stores: &Stores| stores.users.intern(&[UserId::new("new").unwrap()]).await.unwrap();
    assert_eq!(intern(&new).await, intern(&old).await);
    let erase = async |stores: &Stores| {
        let id = UserId::new("user-250").unwrap();
        let erasure = stores.erasures.begin(&id, "ops", Timestamp(1)).await.unwrap();
        erasure.unwrap().id
    };
    assert_eq!(erase(&new).await, erase(&old).await);
    let token = new
        .leases
        .acquire("analytics", "b", DAY)
        .await
        .unwrap()
        .unwrap()
        .token;
    let old_token = old
        .leases
        .acquire("analytics", "b", DAY)
        .await
        .unwrap()
        .unwrap()
        .token;
    assert!(token >= old_token, "{token} {old_token}");
    let orphans = new.totals.intended().await.unwrap();
    assert!(orphans.iter().all(|file| file.orphaned), "{orphans:?}");
    // A claim ended with the process that had it.
    let chunk = old.ledger.audit(PostId(32)).await.unwrap().unwrap();
    let chunk = chunk
        .chunks
        .iter()
        .find(|chunk| chunk.channel == Channel::Push)
        .unwrap();
    let revision = chunk.recorded.as_ref().unwrap().revision;
    new.ledger
        .claim(PostId(32), Channel::Push, chunk.chunk, revision, DAY)
        .await
        .unwrap();
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn timelines_that_are_lost_after_the_move_are_made_again_entry_by_entry() {
    let Some(world) = World::start().await else { return };
    fill_source(&world).await;
    world.migrate().await.unwrap();
    world.flush_redis().await;

    let source = world.open_moved_source().await;
    let cluster = Cluster::open(&world.to).await.unwrap();
    let differing = differing_rebuilds(&source.stores(), &cluster.stores()).await;
    // What is planned or backfilled and not delivered yet is there too; what is dead is not.
    let with = |posts: &[u64], more: &[u64]| {
        let mut posts = [posts, more].concat();
        posts.sort_unstable();
        posts
    };
    let expected: Vec<_> = differing
        .iter()
        .map(|(user, before, _)| {
            let more: &[u64] = match user {
                7 => &[21],
                10 | 11 => &[34],
                299 => &[30, 33],
                _ => &[],
            };
            (*user, before.clone(), with(before, more))
        })
        .collect();
    assert_eq!(differing, expected);
    assert_eq!(
        differing.iter().map(|one| one.0).collect::<Vec<_>>(),
        [7, 10, 11, 299]
    );
    cluster.close().await;
}

/// Plans a slice of post 40, whose author is 3, and returns its recipients.
async fn plan_half(stores: &Stores, slice: u32, after: Option<UserKey>, limit: usize) -> Recipients {
    let page = stores.follows.followers(UserKey(3), None, after, limit);
    let page = page.await.unwrap();
    let plan = SlicePlan {
        post: PostId(40),
        author: UserKey(3),
        slice,
        version: page.version,
        chunks: vec![ChunkPlan {
            channel: Channel::Timeline,
            recipients: page.followers.clone(),
        }],
        next_after: if page.complete { None } else { page.last },
    };
    stores.ledger.plan(plan).await.unwrap();
    page.followers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_post_that_is_half_planned_and_not_archived_reaches_all_rebuilt_timelines() {
    let Some(world) = World::start().await else { return };
    let store = Embedded::open(&world.from()).unwrap();
    let stores = store.stores();
    let ids: Vec<_> = (1..=20)
        .map(|user| UserId::new(format!("user-{user}")).unwrap())
        .collect();
    stores.users.intern(&ids).await.unwrap();
    follow(&stores, 3, 5..15, QUIET).await;
    let first = plan_half(&stores, 0, None, 4).await;
    store.close().unwrap();
    drop((stores, store));
    world.migrate().await.unwrap();

    let cluster = Cluster::open(&world.to).await.unwrap();
    let stores = cluster.stores();
    let second = plan_half(&stores, 1, first.iter().last(), 100).await;
    assert_eq!((first.len(), second.len()), (4, 6));
    let users: Vec<UserKey> = first.iter().chain(second.iter()).collect();
    stores.timelines.rebuild(&users).await.unwrap();
    for (user, timeline) in users.iter().zip(stores.timelines.read(&users).await.unwrap()) {
        assert_eq!(timeline.posts, [PostId(40)], "user {user}");
    }
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_move_that_is_broken_off_anywhere_goes_on() {
    let Some(world) = World::start().await else { return };
    fill_source(&world).await;
    let mut runs = 0;
    // Each run goes a little further than the one before.
    while world.break_off(3 + runs).await {
        runs += 1;
        assert!(runs < 500, "the move makes no progress");
        let refused = Cluster::open(&world.to).await.err();
        if let Some(refused) = refused {
            assert_eq!(refused.kind(), ErrorKind::Invalid, "{refused}");
        }
        // The reader of the interrupted run ends at its next batch.
        let refused = loop {
            match Embedded::open(&world.from()).err() {
                Some(error) if error.kind() == ErrorKind::Locked => tokio::task::yield_now().await,
                other => break other,
            }
        };
        assert_eq!(refused.map(|error| error.kind()), Some(ErrorKind::Invalid));
    }
    assert!(runs > 10, "only {runs} runs were interrupted");
    let source = world.open_moved_source().await;
    let cluster = Cluster::open(&world.to).await.unwrap();
    compare(&source.stores(), &cluster.stores(), None).await.unwrap();
    cluster.close().await;
}
