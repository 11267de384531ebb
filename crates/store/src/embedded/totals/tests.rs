use std::time::Duration;

use herald_model::{Channel, ChunkId, UserKey};

use super::*;
use crate::{Leases as _, SettledCounts, Totals, embedded::testing::Store};

const LEASE: Duration = Duration::from_mins(10);

fn open(store: &Store) -> EmbeddedTotals {
    let leases = Arc::new(EmbeddedLeases::open(store.database()).unwrap());
    EmbeddedTotals::open(store.database(), &leases).unwrap()
}

/// Announces a file under a lease with its name.
async fn intend(totals: &EmbeddedTotals, file: &str) -> Fence {
    let leases = &totals.tables.leases;
    let owner = leases.acquire(file, "writer", LEASE).await.unwrap().unwrap();
    totals.intend(file, &owner).await.unwrap();
    owner
}

/// Announces the file of a batch and commits the batch.
async fn commit(totals: &EmbeddedTotals, batch: &TotalsBatch) -> Result<()> {
    intend(totals, &batch.file).await;
    totals.commit(batch).await
}

/// The announced files.
async fn intended(totals: &EmbeddedTotals) -> Vec<String> {
    let files = totals.intended().await.unwrap();
    files.into_iter().map(|file| file.file).collect()
}

fn batch(file: &str, sequences: &[u64]) -> TotalsBatch {
    let counts = Counts {
        posts: 1,
        timeline_delivered: i64::try_from(sequences.len()).unwrap(),
        timeline_dead: -1,
        push_dead: 3,
        ..Counts::default()
    };
    TotalsBatch {
        stream: "EVENTS".into(),
        sequences: sequences.to_vec(),
        file: file.into(),
        posts: vec![(
            PostId(5),
            PostTotals {
                author: UserKey(9),
                counts,
                timeline_latency_ms_max: sequences[0],
                push_latency_ms_max: 7,
            },
        )],
        hours: vec![(100, counts), (102, counts)],
        chunks: Vec::new(),
    }
}

#[tokio::test]
async fn a_trim_removes_what_is_counted_of_older_posts() {
    let store = Store::new();
    let totals = open(&store);
    let chunk = |post, channel| ChunkRef {
        post: PostId(post),
        channel,
        chunk: ChunkId(u64::MAX - post),
    };
    let chunks = [
        chunk(5, Channel::Timeline),
        chunk(5, Channel::Push),
        chunk(300, Channel::Push),
    ];
    let counted = Counted {
        revision: 1,
        counts: SettledCounts {
            delivered: 4_000,
            ..SettledCounts::default()
        },
    };
    let counts = TotalsBatch {
        chunks: chunks.map(|chunk| (chunk, counted)).to_vec(),
        ..batch("a", &[1])
    };
    commit(&totals, &counts).await.unwrap();
    assert_eq!(totals.trim(PostId(300)).await.unwrap(), 2);
    assert_eq!(
        totals.counted(&chunks).await.unwrap(),
        [Counted::default(), Counted::default(), counted]
    );
}

#[tokio::test]
async fn a_corrupt_row_fails_only_the_commits_that_use_it() {
    let store = Store::new();
    let totals = open(&store);
    let valid = |n: u64| TotalsBatch {
        posts: vec![(PostId(6), batch("", &[n]).posts[0].1)],
        ..batch(&n.to_string(), &[n])
    };
    totals.tables.posts.insert(5_u64.to_be_bytes(), [0xff]).unwrap();
    intend(&totals, "corrupt").await;
    let all: Vec<_> = (0..50).map(valid).collect();
    let corrupt = batch("corrupt", &[1_000, 1_001]);
    let (valid, corrupt) = futures::join!(
        futures::future::join_all(all.iter().map(|batch| commit(&totals, batch))),
        totals.commit(&corrupt)
    );
    assert_eq!(corrupt.unwrap_err().kind(), ErrorKind::Corrupt);
    valid.into_iter().for_each(Result::unwrap);
    let seen = totals.seen("EVENTS", &[0, 49, 1_000, 1_001]).await.unwrap();
    assert_eq!(seen, [true, true, false, false]);
    let post = totals.post_totals(PostId(6)).await.unwrap().unwrap();
    assert_eq!(post.counts.timeline_delivered, 50);
    let hours = totals.hour_totals(0, u32::MAX).await.unwrap();
    assert!(
        hours.iter().all(|(_, counts)| counts.timeline_delivered == 50),
        "{hours:?}"
    );
    assert_eq!(intended(&totals).await, ["corrupt"], "the announcement stays");
}

#[tokio::test]
async fn a_file_is_orphaned_when_its_writer_is_gone_and_not_counted_once_abandoned() {
    let mut store = Store::new();
    let totals = open(&store);
    let owner = intend(&totals, "a").await;
    let announced = |orphaned| IntendedFile {
        file: "a".into(),
        owner: owner.clone(),
        orphaned,
    };
    assert_eq!(totals.intended().await.unwrap(), [announced(false)]);
    totals.tables.leases.release(&owner).await.unwrap();
    assert_eq!(totals.intended().await.unwrap(), [announced(true)]);
    let refused = totals.intend("b", &owner).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Fenced);

    assert!(totals.abandon("a").await.unwrap());
    let refused = totals.commit(&batch("a", &[1, 2])).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Fenced);
    assert_eq!(totals.seen("EVENTS", &[1]).await.unwrap(), [false]);
    totals.forget("a").await.unwrap();

    // A commit that is repeated after its answer was lost.
    commit(&totals, &batch("c", &[1, 2])).await.unwrap();
    totals.commit(&batch("c", &[1, 2])).await.unwrap();

    let owner = intend(&totals, "d").await;
    totals.tables.leases.check(&owner).unwrap();
    drop(totals);
    store.reopen();
    let totals = open(&store);
    let files = totals.intended().await.unwrap();
    assert!(files.len() == 1 && files[0].orphaned, "{files:?}");
    assert_eq!(files[0].owner, owner);
}

#[tokio::test]
async fn an_announcement_of_an_older_herald_is_orphaned() {
    let store = Store::new();
    let totals = open(&store);
    totals.tables.intents.insert("old", []).unwrap();
    let files = totals.intended().await.unwrap();
    assert_eq!((files[0].file.as_str(), files[0].orphaned), ("old", true));
    assert!(totals.abandon("old").await.unwrap());
    totals.forget("old").await.unwrap();
    assert_eq!(intended(&totals).await, [""; 0]);
}
