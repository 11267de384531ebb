use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use futures::future::{join, join_all};
use herald_model::{FollowVersion, UserKey, time::Timestamp};
use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::open;
use crate::{
    ErrorKind, FollowAction, FollowChange, FollowerCount, Follows,
    cluster::postgres::{Postgres, PostgresFollows},
};

const WEEK: Duration = Duration::from_hours(7 * 24);

fn graph(postgres: &Postgres) -> PostgresFollows {
    PostgresFollows::new(postgres, WEEK, 4 * WEEK)
}

fn change(author: u32, follower: u32, notify: Option<bool>) -> FollowChange {
    FollowChange {
        author: UserKey(author),
        follower: UserKey(follower),
        action: notify.map_or(FollowAction::Unfollow, |notify| FollowAction::Follow {
            notify: Some(notify),
        }),
    }
}

/// All followers of an author at a version with their notify settings, page by page.
async fn read(
    graph: &PostgresFollows,
    author: u32,
    at: Option<u64>,
    page_size: usize,
) -> crate::Result<BTreeMap<u32, bool>> {
    let mut all = BTreeMap::new();
    let mut after = None;
    loop {
        let at = at.map(FollowVersion);
        let page = graph.followers(UserKey(author), at, after, page_size).await?;
        assert_eq!(page.last, page.followers.iter().last());
        all.extend(page.followers.iter().map(|key| (key.0, false)));
        all.extend(page.notify.iter().map(|key| (key.0, true)));
        if page.complete {
            return Ok(all);
        }
        assert_eq!(page.followers.len() as usize, page_size);
        after = page.last;
    }
}

/// Changes of several authors, in no order, with repetitions.
fn some_changes(random: &mut SmallRng) -> Vec<FollowChange> {
    (0..random.random_range(1..60))
        .map(|_| {
            let notify = [None, Some(true), Some(false)][random.random_range(0..3)];
            change(random.random_range(1..5), random.random_range(1..80), notify)
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_writers_make_versions_without_gaps_that_read_the_same() {
    let Some(postgres) = open().await else { return };
    let graph = graph(&postgres);
    let writers = join_all((0..4).map(|seed| {
        let graph = &graph;
        async move {
            let mut random = SmallRng::seed_from_u64(seed);
            for _ in 0..40 {
                let changes = some_changes(&mut random);
                let effects = graph.apply(&changes).await.unwrap();
                assert_eq!(effects.len(), changes.len());
            }
        }
    }));
    // Reads versions while they are new, and again after all writes.
    let readers = async {
        let mut seen = HashMap::new();
        for round in 0..200_u32 {
            let author = 1 + round % 4;
            let count = graph.count(UserKey(author)).await.unwrap();
            let version = count.version.0;
            let now = read(&graph, author, Some(version), 16).await.unwrap();
            assert_eq!(now.len() as u64, count.followers);
            assert_eq!(
                now.values().filter(|notify| **notify).count() as u64,
                count.notify
            );
            seen.insert((author, version), now);
        }
        seen
    };
    let (_, seen) = join(writers, readers).await;
    for ((author, version), then) in seen {
        assert!(
            read(&graph, author, Some(version), 1_000).await.unwrap() == then,
            "version {version} of {author} changed"
        );
    }
    for author in 1..5 {
        let versions: (i64, Option<i64>) = sqlx::query_as(
            "SELECT count(DISTINCT version), max(version) FROM herald.follow_moments,
                LATERAL unnest(authors, versions) changed (author, version) WHERE author = $1",
        )
        .bind(i64::from(author))
        .fetch_one(postgres.pool())
        .await
        .unwrap();
        let count = graph.count(UserKey(author)).await.unwrap();
        assert_eq!(Some(versions.0), versions.1, "versions of {author} have gaps");
        assert_eq!(versions.0.cast_unsigned(), count.version.0);
        assert_eq!(
            read(&graph, author, None, 7).await.unwrap().len() as u64,
            count.followers
        );
        for follower in 1..80 {
            let following = graph.following(UserKey(follower), None, 10).await.unwrap();
            let now = read(&graph, author, None, 1_000).await.unwrap();
            let notify = following.iter().find(|f| f.author.0 == author).map(|f| f.notify);
            assert_eq!(notify, now.get(&follower).copied());
        }
    }
    let overlaps: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM herald.follow_edges a JOIN herald.follow_edges b USING (author, follower)
        WHERE a.since < b.since AND (a.until IS NULL OR a.until > b.since)",
    )
    .fetch_one(postgres.pool())
    .await
    .unwrap();
    assert_eq!(overlaps, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn writers_of_the_same_new_authors_do_not_deadlock() {
    let Some(postgres) = open().await else { return };
    // Each writer is a process of its own: one process would write the changes of concurrent calls in one transaction.
    join_all((0..8_u32).map(|writer| {
        let graph = graph(&postgres);
        async move {
            for round in 0..10 {
                let mut changes: Vec<_> = (0..50)
                    .map(|n| change(1 + round * 50 + n, 1_000 + writer, Some(false)))
                    .collect();
                if writer % 2 == 1 {
                    changes.reverse();
                }
                graph.apply(&changes).await.unwrap();
            }
        }
    }))
    .await;
    let graph = graph(&postgres);
    for author in 1..=500 {
        let count = graph.count(UserKey(author)).await.unwrap();
        assert_eq!((count.followers, count.version.0), (8, 8));
    }
    let deadlocks: i64 =
        sqlx::query_scalar("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
            .fetch_one(postgres.pool())
            .await
            .unwrap();
    assert_eq!(deadlocks, 0);
}

#[tokio::test]
async fn history_is_trimmed_before_the_ended_follows_that_timelines_need() {
    let Some(postgres) = open().await else { return };
    let graph = graph(&postgres);
    for follower in 1..=5 {
        graph.apply(&[change(1, follower, Some(false))]).await.unwrap();
    }
    graph.apply(&[change(1, 3, None)]).await.unwrap();
    let ended = async || -> i64 {
        sqlx::query_scalar("SELECT count(*) FROM herald.follow_edges WHERE until IS NOT NULL")
            .fetch_one(postgres.pool())
            .await
            .unwrap()
    };
    let now = Timestamp::now();
    assert_eq!(
        graph.trim(now).await.unwrap(),
        super::super::follows::Trimmed::default()
    );
    assert_eq!(read(&graph, 1, Some(5), 10).await.unwrap().len(), 5);

    let trimmed = graph.trim(now.plus(2 * WEEK)).await.unwrap();
    assert_eq!((trimmed.versions, trimmed.edges, ended().await), (6, 0, 1));
    for version in 0..6 {
        let error = read(&graph, 1, Some(version), 10).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::HistoryTrimmed);
    }
    assert_eq!(read(&graph, 1, Some(6), 10).await.unwrap().len(), 4);

    let trimmed = graph.trim(now.plus(5 * WEEK)).await.unwrap();
    assert_eq!((trimmed.versions, trimmed.edges, ended().await), (0, 1, 0));
    assert_eq!(read(&graph, 1, Some(6), 10).await.unwrap().len(), 4);
    assert_eq!(
        read(&graph, 1, Some(7), 10).await.unwrap_err().kind(),
        ErrorKind::UnknownVersion
    );
    assert_eq!(graph.count(UserKey(2)).await.unwrap(), FollowerCount::default());
}

#[tokio::test]
async fn follows_that_can_not_be_decoded_are_erased() {
    const DAMAGES: [&str; 4] = [
        "UPDATE herald.follow_edges SET author = author + 4294967296 WHERE follower = 5 AND author = 2",
        "UPDATE herald.follow_edges SET follower = follower + 4294967296 WHERE follower = 2 AND author = 5",
        "INSERT INTO herald.follow_edges (author, follower, since, notify) VALUES (5, 1, 0, true)",
        "UPDATE herald.follow_authors SET version = -1 WHERE author = 5",
    ];
    let Some(postgres) = open().await else { return };
    let graph = graph(&postgres);
    // What a damage adds stays without an erasure, so the damages are in one graph.
    for (round, damage) in DAMAGES.into_iter().enumerate() {
        // Users 1 and 2 follow 5, who follows 1, 2 and 3; user 4 follows 1.
        for (author, follower) in [(5, 1), (5, 2), (1, 5), (2, 5), (3, 5), (1, 4)] {
            graph
                .apply(&[change(author, follower, Some(true))])
                .await
                .unwrap();
        }
        let before = graph.count(UserKey(5)).await.unwrap().version;
        let damaged = sqlx::query(damage).execute(postgres.pool()).await.unwrap();
        assert_eq!(damaged.rows_affected(), 1, "{damage}");
        let followers = graph.followers(UserKey(5), None, None, 9).await.map(drop);
        let following = graph.following(UserKey(5), None, 9).await.map(drop);
        let failed = followers.and(following).unwrap_err();
        assert_eq!(failed.kind(), ErrorKind::Corrupt, "{damage}");

        let edges = 5 + u64::from(round == 2);
        for removed in [edges, 0] {
            assert_eq!(graph.erase(UserKey(5)).await.unwrap(), removed, "{damage}");
        }
        assert_eq!(read(&graph, 5, None, 9).await.unwrap(), BTreeMap::new());
        assert_eq!(graph.count(UserKey(5)).await.unwrap().followers, 0);
        for (user, follows) in [(5, 0), (1, 0), (2, 0), (4, 1)] {
            let left = graph.following(UserKey(user), None, 9).await.unwrap();
            assert_eq!(left.len(), follows, "of {user}: {damage}");
        }
        assert_eq!(read(&graph, 1, None, 9).await.unwrap(), [(4, true)].into());
        let earlier = read(&graph, 5, Some(before.0), 9).await.unwrap_err();
        assert_ne!(earlier.kind(), ErrorKind::Corrupt, "{damage}");
    }
}
