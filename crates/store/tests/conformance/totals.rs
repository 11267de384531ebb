//! Delivery counts and the announced files of analytics.

use std::time::Duration;

use herald_model::{Channel, ChunkId, PostId, UserKey};
use herald_store::{
    ChunkRef, Counted, Counts, ErrorKind, Fence, PostTotals, SettledCounts, Stores, Totals, TotalsBatch,
};

use crate::{
    engine::Engine,
    sample::{eventually, lease},
};

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

/// Announces the file and commits it.
async fn write(totals: &dyn Totals, owner: &Fence, batch: &TotalsBatch) -> herald_store::Result<()> {
    totals.intend(&batch.file, owner).await.unwrap();
    totals.commit(batch).await
}

async fn announced(totals: &dyn Totals) -> Vec<String> {
    let mut files: Vec<_> = totals
        .intended()
        .await
        .unwrap()
        .into_iter()
        .map(|one| one.file)
        .collect();
    files.sort();
    files
}

async fn delivered(totals: &dyn Totals, post: u64) -> i64 {
    totals
        .post_totals(PostId(post))
        .await
        .unwrap()
        .unwrap()
        .counts
        .timeline_delivered
}

async fn analytics(stores: &Stores) -> Fence {
    lease(stores, "analytics/one").await
}

pub async fn a_commit_counts_marks_seen_and_clears_the_announcement<E: Engine>(engine: &mut E) {
    {
        let stores = engine.stores();
        let (totals, owner) = (&*stores.totals, analytics(&stores).await);
        totals.intend("a", &owner).await.unwrap();
        totals.intend("b", &owner).await.unwrap();
        // Announcing a file again changes nothing.
        totals.intend("b", &owner).await.unwrap();
        assert_eq!(announced(totals).await, ["a", "b"]);
        totals.commit(&batch("a", &[4_095, 4_096, 70_000])).await.unwrap();
        assert_eq!(announced(totals).await, ["b"]);
        totals.commit(&batch("b", &[1, 2])).await.unwrap();
    }
    engine.reopen().await;
    let totals = engine.stores().totals;
    assert_eq!(announced(&*totals).await, [""; 0]);
    let sequences = [0, 1, 2, 3, 4_095, 4_096, 4_097, 70_000];
    let seen = totals.seen("EVENTS", &sequences).await.unwrap();
    assert_eq!(seen, [false, true, true, false, true, true, false, true]);
    assert_eq!(totals.seen("POSTS", &[1]).await.unwrap(), [false]);
    let post = totals.post_totals(PostId(5)).await.unwrap().unwrap();
    assert_eq!(
        (post.author, post.counts.posts, post.counts.timeline_delivered),
        (UserKey(9), 2, 5)
    );
    assert_eq!(
        (post.timeline_latency_ms_max, post.push_latency_ms_max),
        (4_095, 7)
    );
    assert_eq!(post.counts.timeline_dead, -2);
    assert_eq!(totals.post_totals(PostId(6)).await.unwrap(), None);
    let hours = totals.hour_totals(100, 102).await.unwrap();
    assert_eq!(hours.len(), 1);
    assert_eq!(
        (hours[0].0, hours[0].1.push_dead, hours[0].1.timeline_dead),
        (100, 6, -2)
    );
    let all: Vec<_> = totals
        .hour_totals(0, u32::MAX)
        .await
        .unwrap()
        .iter()
        .map(|hour| hour.0)
        .collect();
    assert_eq!(all, [100, 102]);
    assert_eq!(totals.hour_totals(5, 2).await.unwrap(), []);
}

pub async fn no_message_is_counted_twice<E: Engine>(engine: &mut E) {
    let stores = engine.stores();
    let (totals, owner) = (&*stores.totals, analytics(&stores).await);
    write(totals, &owner, &batch("a", &[1, 2])).await.unwrap();
    // The same messages in another file: the file is a leftover.
    write(totals, &owner, &batch("again", &[2, 1])).await.unwrap();
    assert_eq!(announced(totals).await, ["again"]);
    let error = write(totals, &owner, &batch("b", &[2, 3])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert_eq!(totals.seen("EVENTS", &[3]).await.unwrap(), [false]);
    assert_eq!(delivered(totals, 5).await, 2);
    // The same sequences of another stream are other messages.
    let other = TotalsBatch {
        stream: "POSTS".into(),
        ..batch("c", &[1, 2])
    };
    write(totals, &owner, &other).await.unwrap();
    assert_eq!(delivered(totals, 5).await, 4);
    assert!(totals.abandon("again").await.unwrap());
    totals.forget("again").await.unwrap();
    assert_eq!(announced(totals).await, ["b"]);
}

pub async fn concurrent_commits_are_all_counted<E: Engine>(engine: &mut E) {
    let (stores, peer) = (engine.stores(), engine.peer().await);
    let owner = analytics(&stores).await;
    let calls = (0..50_u64).map(|n| {
        let totals = [&stores, &peer][n as usize % 2].totals.clone();
        let owner = owner.clone();
        tokio::spawn(async move {
            let batch = TotalsBatch {
                // In another order than the neighbours'.
                hours: batch("", &[n])
                    .hours
                    .into_iter()
                    .cycle()
                    .skip(n as usize % 2)
                    .take(2)
                    .collect(),
                ..batch(&n.to_string(), &[2 * n, 2 * n + 1])
            };
            write(&*totals, &owner, &batch).await.unwrap();
            // A commit that is repeated, as after a lost answer.
            totals.commit(&batch).await.unwrap();
        })
    });
    for call in futures::future::join_all(calls).await {
        call.unwrap();
    }
    for totals in [&stores.totals, &peer.totals] {
        assert_eq!(delivered(&**totals, 5).await, 100);
        let hours = totals.hour_totals(100, 103).await.unwrap();
        let hours: Vec<_> = hours
            .into_iter()
            .map(|(hour, counts)| (hour, counts.timeline_delivered))
            .collect();
        assert_eq!(hours, [(100, 50), (102, 50)]);
        assert_eq!(announced(&**totals).await, [""; 0]);
    }
}

pub async fn a_revision_is_counted_once<E: Engine>(engine: &mut E) {
    let chunk = |post, channel| ChunkRef {
        post: PostId(post),
        channel,
        chunk: ChunkId(u64::MAX - post),
    };
    let counted = |revision, dead| Counted {
        revision,
        counts: SettledCounts {
            delivered: 4_000,
            dead,
            ..SettledCounts::default()
        },
    };
    let of = |file: &str, sequence, chunks: &[(ChunkRef, Counted)]| TotalsBatch {
        chunks: chunks.to_vec(),
        ..batch(file, &[sequence])
    };
    let (a, b, c) = (
        chunk(5, Channel::Timeline),
        chunk(5, Channel::Push),
        chunk(300, Channel::Push),
    );
    {
        let stores = engine.stores();
        let (totals, owner) = (&*stores.totals, analytics(&stores).await);
        let first = [(a, counted(1, 7)), (b, counted(2, 1))];
        write(totals, &owner, &of("a", 1, &first)).await.unwrap();
        let second = [(a, counted(3, 0)), (c, counted(1, 0))];
        write(totals, &owner, &of("b", 2, &second)).await.unwrap();
        let refused = write(totals, &owner, &of("c", 3, &first)).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Conflict);
        assert_eq!(totals.seen("EVENTS", &[3]).await.unwrap(), [false]);
    }
    engine.reopen().await;
    let totals = engine.stores().totals;
    let found = totals.counted(&[a, b, c, chunk(9, Channel::Push)]).await.unwrap();
    assert_eq!(
        found,
        [counted(3, 0), counted(2, 1), counted(1, 0), Counted::default()]
    );
}

pub async fn a_file_of_a_writer_that_is_gone_is_orphaned<E: Engine>(engine: &mut E) {
    let stores = engine.stores();
    let (totals, leases) = (&*stores.totals, &*stores.leases);
    let (gone, here) = (
        lease(&stores, "analytics/gone").await,
        lease(&stores, "analytics/here").await,
    );
    totals.intend("lost", &gone).await.unwrap();
    totals.intend("kept", &here).await.unwrap();
    let orphaned = async || {
        let files = totals.intended().await.unwrap();
        let orphaned = files.into_iter().filter(|file| file.orphaned);
        orphaned.map(|file| (file.file, file.owner)).collect::<Vec<_>>()
    };
    assert_eq!(orphaned().await, []);
    // Its lease ends without a release, as that of a process that was killed.
    leases.renew(&gone, Duration::from_millis(50)).await.unwrap();
    let found = eventually("the lease ends", async || {
        Some(orphaned().await).filter(|found| !found.is_empty())
    })
    .await;
    assert_eq!(found, [("lost".to_owned(), gone.clone())]);
    // The writer comes back under the same name: the file of its earlier life stays orphaned.
    let back = lease(&stores, "analytics/gone").await;
    assert_eq!(orphaned().await, [("lost".to_owned(), gone)]);
    totals.intend("new", &back).await.unwrap();
    assert!(totals.abandon("lost").await.unwrap());
    totals.forget("lost").await.unwrap();
    assert_eq!(announced(totals).await, ["kept", "new"]);
    assert_eq!(orphaned().await, []);
}

pub async fn an_abandoned_file_is_not_committed<E: Engine>(engine: &mut E) {
    let (stores, peer) = (engine.stores(), engine.peer().await);
    let owner = analytics(&stores).await;
    stores.totals.intend("a", &owner).await.unwrap();
    assert!(peer.totals.abandon("a").await.unwrap());
    // The writer was only slow. Its messages are redelivered to another one.
    let refused = stores.totals.commit(&batch("a", &[1, 2])).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Fenced);
    assert_eq!(
        stores.totals.seen("EVENTS", &[1, 2]).await.unwrap(),
        [false, false]
    );
    assert_eq!(stores.totals.post_totals(PostId(5)).await.unwrap(), None);
    write(&*peer.totals, &owner, &batch("b", &[1, 2])).await.unwrap();
    assert_eq!(delivered(&*stores.totals, 5).await, 2);
}

/// A deletion can be interrupted, and a call can be repeated because its answer was lost.
pub async fn an_abandoned_file_is_listed_until_it_is_forgotten<E: Engine>(engine: &mut E) {
    let (stores, peer) = (engine.stores(), engine.peer().await);
    let (totals, owner) = (&*stores.totals, analytics(&stores).await);
    totals.intend("a", &owner).await.unwrap();
    for _ in 0..2 {
        assert!(totals.abandon("a").await.unwrap());
        let listed = peer.totals.intended().await.unwrap();
        assert_eq!(listed.len(), 1);
        assert!(listed[0].orphaned && listed[0].file == "a", "{listed:?}");
    }
    let refused = totals.commit(&batch("a", &[1, 2])).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Fenced);
    for _ in 0..2 {
        peer.totals.forget("a").await.unwrap();
        assert_eq!(announced(totals).await, [""; 0]);
        assert!(!totals.abandon("a").await.unwrap());
    }
    // What is announced or committed is not forgotten.
    totals.intend("b", &owner).await.unwrap();
    peer.totals.forget("b").await.unwrap();
    totals.commit(&batch("b", &[1, 2])).await.unwrap();
    peer.totals.forget("b").await.unwrap();
    assert!(!totals.abandon("b").await.unwrap());
    assert_eq!(totals.seen("EVENTS", &[1, 2]).await.unwrap(), [true, true]);
}

pub async fn a_fenced_writer_announces_nothing<E: Engine>(engine: &mut E) {
    let stores = engine.stores();
    let before = stores
        .leases
        .acquire("analytics/one", "a", Duration::from_hours(1))
        .await
        .unwrap()
        .unwrap();
    let now = stores
        .leases
        .acquire("analytics/one", "a", Duration::from_hours(1))
        .await
        .unwrap()
        .unwrap();
    let refused = stores.totals.intend("a", &before).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Fenced);
    stores.totals.intend("b", &now).await.unwrap();
    stores.leases.release(&now).await.unwrap();
    let refused = stores.totals.intend("c", &now).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Fenced);
    assert_eq!(announced(&*stores.totals).await, ["b"]);
}
