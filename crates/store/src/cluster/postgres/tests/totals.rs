//! Tests of concurrent writers of the totals, and of leases.

use std::{sync::Arc, time::Duration};

use futures::future::join_all;
use herald_model::{Channel, ChunkId, PostId, UserKey};

use super::{connect, database};
use crate::{
    ChunkRef, Counted, Counts, ErrorKind, Fence, Leases as _, PostTotals, SettledCounts, Totals as _,
    TotalsBatch,
    cluster::postgres::{Postgres, PostgresLeases, PostgresTotals},
};

const LONG: Duration = Duration::from_mins(10);

struct Process {
    postgres: Postgres,
    totals: Arc<PostgresTotals>,
    leases: PostgresLeases,
}

impl Process {
    fn new(postgres: Postgres) -> Self {
        Self {
            totals: Arc::new(PostgresTotals::new(postgres.clone())),
            leases: PostgresLeases::new(postgres.clone()),
            postgres,
        }
    }

    async fn lease(&self, name: &str, duration: Duration) -> Fence {
        self.leases.acquire(name, name, duration).await.unwrap().unwrap()
    }
}

async fn two_processes() -> Option<[Process; 2]> {
    let url = database().await?;
    let first = connect(&url).await;
    first.migrate().await.unwrap();
    Some([Process::new(first), Process::new(connect(&url).await)])
}

fn batch(file: &str, sequences: impl IntoIterator<Item = u64>) -> TotalsBatch {
    TotalsBatch {
        stream: "EVENTS".into(),
        sequences: sequences.into_iter().collect(),
        file: file.into(),
        ..TotalsBatch::default()
    }
}

/// Each writer commits files that share posts, hours and pages of messages with those of the other one, in another order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_writers_count_everything_without_deadlocks() {
    const FILES: u64 = 40;
    let Some(processes) = two_processes().await else {
        return;
    };
    let writers = (0..2_u64).map(|writer| {
        let totals = Arc::clone(&processes[writer as usize].totals);
        let leases = &processes[writer as usize];
        async move {
            let owner = leases.lease(&format!("analytics/{writer}"), LONG).await;
            let commits = (0..FILES).map(|n| {
                let (totals, owner) = (Arc::clone(&totals), owner.clone());
                tokio::spawn(async move {
                    let counts = Counts {
                        timeline_delivered: 1,
                        push_dead: -1,
                        ..Counts::default()
                    };
                    let file = format!("{writer}-{n}");
                    let mut posts: Vec<_> = (1..=20).map(PostId).collect();
                    let mut hours: Vec<u32> = (100..110).collect();
                    if writer == 1 {
                        posts.reverse();
                        hours.reverse();
                    }
                    let post_totals = PostTotals {
                        author: UserKey(1),
                        counts,
                        timeline_latency_ms_max: n,
                        push_latency_ms_max: writer,
                    };
                    let sequence = 10 * (2 * n + writer);
                    let committed = TotalsBatch {
                        posts: posts.into_iter().map(|post| (post, post_totals)).collect(),
                        hours: hours.into_iter().map(|hour| (hour, counts)).collect(),
                        ..batch(&file, [9_000 - sequence, sequence])
                    };
                    totals.intend(&file, &owner).await.unwrap();
                    totals.commit(&committed).await.unwrap();
                    // A repetition changes nothing.
                    totals.commit(&committed).await.unwrap();
                })
            });
            for commit in join_all(commits).await {
                commit.unwrap();
            }
        }
    });
    join_all(writers).await;
    let totals = &processes[0].totals;
    assert_eq!(totals.intended().await.unwrap(), []);
    let count = 2 * FILES.cast_signed();
    for post in 1..=20 {
        let post = totals.post_totals(PostId(post)).await.unwrap().unwrap();
        assert_eq!(
            (post.counts.timeline_delivered, post.counts.push_dead),
            (count, -count)
        );
        assert_eq!(
            (post.timeline_latency_ms_max, post.push_latency_ms_max),
            (FILES - 1, 1)
        );
    }
    let hours = totals.hour_totals(0, u32::MAX).await.unwrap();
    assert_eq!(hours.len(), 10);
    assert!(hours.iter().all(|(_, counts)| counts.timeline_delivered == count));
    let sequences: Vec<u64> = (0..2 * FILES).map(|n| 10 * n).collect();
    assert!(
        totals
            .seen("EVENTS", &sequences)
            .await
            .unwrap()
            .into_iter()
            .all(|seen| seen)
    );
    assert_eq!(totals.seen("EVENTS", &[5, 9_001]).await.unwrap(), [false, false]);
    // The statistics of a backend appear when it is idle.
    let deadlocks: i64 =
        sqlx::query_scalar("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
            .fetch_one(processes[0].postgres.pool())
            .await
            .unwrap();
    assert_eq!(deadlocks, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_is_committed_or_abandoned() {
    let Some([writer, other]) = two_processes().await else {
        return;
    };
    let owner = writer.lease("analytics/a", LONG).await;
    for n in 0..20 {
        let file = n.to_string();
        writer.totals.intend(&file, &owner).await.unwrap();
        let batch = batch(&file, [n]);
        let (committed, abandoned) = tokio::join!(writer.totals.commit(&batch), other.totals.abandon(&file));
        let abandoned = abandoned.unwrap();
        match committed {
            Ok(()) => assert!(!abandoned),
            Err(error) => assert_eq!((error.kind(), abandoned), (ErrorKind::Fenced, true)),
        }
        assert_eq!(other.totals.seen("EVENTS", &[n]).await.unwrap(), [!abandoned]);
        other.totals.forget(&file).await.unwrap();
    }
    assert_eq!(writer.totals.intended().await.unwrap(), []);
}

#[tokio::test]
async fn files_of_a_writer_whose_lease_has_ended_are_orphaned() {
    let Some([writer, other]) = two_processes().await else {
        return;
    };
    let ended = writer.lease("analytics/a", LONG).await;
    writer.totals.intend("a", &ended).await.unwrap();
    super::end_leases(&writer.postgres).await;
    let held = other.lease("analytics/b", LONG).await;
    other.totals.intend("b", &held).await.unwrap();
    let intended = other.totals.intended().await.unwrap();
    let orphaned: Vec<_> = intended
        .iter()
        .map(|file| (&file.file[..], file.orphaned))
        .collect();
    assert_eq!(orphaned, [("a", true), ("b", false)]);
    assert_eq!((&intended[0].owner, &intended[1].owner), (&ended, &held));
    let refused = writer.totals.intend("c", &ended).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Fenced);
    // Its successor under the same name does not own the file of before.
    let next = other.lease("analytics/a", LONG).await;
    assert!(next.token > ended.token);
    assert!(other.totals.intended().await.unwrap()[0].orphaned);
    assert!(other.totals.abandon("a").await.unwrap());
    other.totals.forget("a").await.unwrap();
    assert!(!other.totals.abandon("a").await.unwrap());
}

#[tokio::test]
async fn a_refused_commit_changes_nothing() {
    let Some([process, _]) = two_processes().await else {
        return;
    };
    let owner = process.lease("analytics/a", LONG).await;
    let chunk = ChunkRef {
        post: PostId(5),
        channel: Channel::Push,
        chunk: ChunkId(u64::MAX),
    };
    let counted = |revision| Counted {
        revision,
        counts: SettledCounts {
            delivered: 4_000,
            ..SettledCounts::default()
        },
    };
    let commit = async |file: &str, sequences: &[u64], revision| {
        process.totals.intend(file, &owner).await.unwrap();
        let batch = TotalsBatch {
            chunks: vec![(chunk, counted(revision))],
            hours: vec![(
                1,
                Counts {
                    posts: 1,
                    ..Counts::default()
                },
            )],
            ..batch(file, sequences.iter().copied())
        };
        process.totals.commit(&batch).await.map_err(|error| error.kind())
    };
    assert_eq!(commit("a", &[1, 2], 3).await, Ok(()));
    assert_eq!(commit("b", &[2, 3], 4).await, Err(ErrorKind::Corrupt));
    assert_eq!(commit("c", &[4], 3).await, Err(ErrorKind::Conflict));
    assert_eq!(commit("d", &[5], 4).await, Ok(()));
    let seen = process.totals.seen("EVENTS", &[1, 2, 3, 4, 5]).await.unwrap();
    assert_eq!(seen, [true, true, false, false, true]);
    assert_eq!(process.totals.counted(&[chunk]).await.unwrap(), [counted(4)]);
    let hours = process.totals.hour_totals(0, 9).await.unwrap();
    assert_eq!(hours[0].1.posts, 2);
    let intended = process.totals.intended().await.unwrap();
    assert_eq!(intended.len(), 2, "{intended:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_taken_by_one_of_many() {
    let Some(processes) = two_processes().await else {
        return;
    };
    let mut last = 0;
    for _ in 0..5 {
        let taken = (0..16).map(|n| {
            let leases = &processes[n % 2].leases;
            async move { leases.acquire("redrive", &n.to_string(), LONG).await.unwrap() }
        });
        let taken: Vec<Fence> = join_all(taken).await.into_iter().flatten().collect();
        assert_eq!(taken.len(), 1);
        assert!(taken[0].token > last);
        last = taken[0].token;
        processes[0].leases.release(&taken[0]).await.unwrap();
        let refused = processes[0].leases.renew(&taken[0], LONG).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Fenced);
    }
}
