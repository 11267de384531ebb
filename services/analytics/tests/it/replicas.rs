//! Several instances on one store, one broker and one directory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use herald_store::{Counts, Fence, IntendedFile, Leases, Result, Totals, TotalsBatch};
use tokio::sync::watch;

use crate::forward_totals::forward_totals;
use crate::harness::{Harness, wait_until};
use crate::once::{assert_counted_once, assert_sums, publish};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_instances_count_each_message_once() {
    let harness = Harness::start().await;
    let first = harness.run(harness.config(), harness.stores.totals.clone()).await;
    let second = harness.run(harness.config(), harness.stores.totals.clone()).await;
    publish(&harness).await;
    harness.wait_until_acknowledged().await;
    first.stop().await;
    second.stop().await;
    assert_counted_once(&harness).await;
}

/// Totals whose commits wait until the test opens them, and leases that the test cuts off: a paused process.
struct Paused {
    totals: Arc<dyn Totals>,
    leases: Arc<dyn Leases>,
    pause: watch::Sender<bool>,
    commits: AtomicUsize,
}

impl Paused {
    async fn wait(&self) {
        self.pause.subscribe().wait_for(|paused| !paused).await.unwrap();
    }
}

forward_totals!(Paused, totals, {
    async fn commit(&self, batch: &TotalsBatch) -> Result<()> {
        self.commits.fetch_add(1, Ordering::SeqCst);
        self.wait().await;
        self.totals.commit(batch).await
    }
});

#[async_trait]
impl Leases for Paused {
    async fn acquire(&self, name: &str, holder: &str, duration: Duration) -> Result<Option<Fence>> {
        self.leases.acquire(name, holder, duration).await
    }

    async fn renew(&self, fence: &Fence, duration: Duration) -> Result<()> {
        self.wait().await;
        self.leases.renew(fence, duration).await
    }

    async fn release(&self, fence: &Fence) -> Result<()> {
        self.leases.release(fence).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_instance_does_not_count_a_file_that_another_has_abandoned() {
    let harness = Harness::start().await;
    publish(&harness).await;
    let paused = Arc::new(Paused {
        totals: harness.stores.totals.clone(),
        leases: harness.stores.leases.clone(),
        pause: watch::Sender::new(true),
        commits: AtomicUsize::new(0),
    });
    let first = harness
        .run_with(harness.config(), paused.clone(), paused.clone())
        .await;
    // Both streams have written a file, and are about to count it.
    wait_until(async || paused.commits.load(Ordering::SeqCst) == 2).await;
    let written = harness.stores.totals.intended().await.unwrap();
    assert_eq!(written.len(), 2);
    let path = |file: &IntendedFile| harness.files_dir().join(&file.file);
    assert!(written.iter().all(|file| path(file).exists()));

    let second = harness.run(harness.config(), harness.stores.totals.clone()).await;
    wait_until(async || {
        let intended = harness.stores.totals.intended().await.unwrap();
        written
            .iter()
            .all(|file| !intended.contains(file) && !path(file).exists())
    })
    .await;
    paused.pause.send_replace(false);
    harness.wait_until_acknowledged().await;
    first.stop().await;
    second.stop().await;
    assert_counted_once(&harness).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_deletion_is_done_again() {
    let harness = Harness::start().await;
    let (leases, totals) = (&harness.stores.leases, &harness.stores.totals);
    let gone = leases.acquire("analytics/gone", "gone", Duration::from_mins(5));
    let gone = gone.await.unwrap().unwrap();
    totals.intend("posts/lost.parquet", &gone).await.unwrap();
    leases.release(&gone).await.unwrap();
    // A directory that is not empty can't be deleted as a file.
    let path = harness.files_dir().join("posts/lost.parquet");
    std::fs::create_dir_all(path.join("blocking")).unwrap();

    let running = harness.run(harness.config(), totals.clone()).await;
    wait_until(async || {
        let listed = totals.intended().await.unwrap();
        listed.iter().all(|file| file.owner != gone)
    })
    .await;
    std::fs::remove_dir_all(&path).unwrap();
    std::fs::write(&path, "rows that are not counted").unwrap();
    wait_until(async || totals.intended().await.unwrap().is_empty()).await;
    assert!(!path.exists(), "the file is left");
    running.stop().await;
}

/// How another instance overtakes a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Overtaking {
    /// It counts the same messages.
    All,
    /// It counts half of the messages, which are posts.
    Half,
    /// It counts the same revisions of the chunks from other messages, as of duplicated events.
    Chunks,
}

/// Totals in which another instance counts something right before some of the commits.
struct Overtaken {
    totals: Arc<dyn Totals>,
    /// The lease of the other instance.
    other: Fence,
    overtaking: Overtaking,
    commits: AtomicUsize,
    is_done: AtomicBool,
}

impl Overtaken {
    fn other_batch(&self, batch: &TotalsBatch) -> TotalsBatch {
        let mut other = TotalsBatch {
            file: format!("other/{}", batch.file),
            ..batch.clone()
        };
        match self.overtaking {
            Overtaking::All => {}
            Overtaking::Half => {
                other.sequences.truncate(batch.sequences.len() / 2);
                // The id of a post is its sequence.
                other.posts.retain(|(post, _)| other.sequences.contains(&post.0));
                other.hours[0].1 = Counts {
                    posts: i64::try_from(other.posts.len()).unwrap(),
                    ..Counts::default()
                };
            }
            Overtaking::Chunks => other
                .sequences
                .iter_mut()
                .for_each(|sequence| *sequence += 1 << 32),
        }
        other
    }
}

forward_totals!(Overtaken, totals, {
    async fn commit(&self, batch: &TotalsBatch) -> Result<()> {
        let table = if self.overtaking == Overtaking::Half {
            "posts/"
        } else {
            "deliveries/"
        };
        let applies = batch.file.starts_with(table) && batch.sequences.len() > 1;
        // Every second time: the commit that follows an overtaken one is not overtaken.
        if applies && self.commits.fetch_add(1, Ordering::SeqCst).is_multiple_of(2) {
            let other = self.other_batch(batch);
            self.totals.intend(&other.file, &self.other).await?;
            self.totals.commit(&other).await?;
            self.is_done.store(true, Ordering::SeqCst);
        }
        self.totals.commit(batch).await
    }
});

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_and_chunks_that_another_instance_has_counted_are_not_counted_again() {
    for overtaking in [Overtaking::All, Overtaking::Half, Overtaking::Chunks] {
        let harness = Harness::start().await;
        publish(&harness).await;
        let leases = &harness.stores.leases;
        let other = leases
            .acquire("analytics/other", "other", Duration::from_mins(5))
            .await;
        let totals = Arc::new(Overtaken {
            totals: harness.stores.totals.clone(),
            other: other.unwrap().unwrap(),
            overtaking,
            commits: AtomicUsize::new(0),
            is_done: AtomicBool::new(false),
        });
        let running = harness.run(harness.config(), totals.clone()).await;
        harness.wait_until_acknowledged().await;
        running.stop().await;
        assert!(totals.is_done.load(Ordering::SeqCst), "{overtaking:?}");
        assert!(
            harness.metric("herald_analytics_overtaken_total") > 0.0,
            "{overtaking:?}"
        );
        let failures = harness.metric("herald_analytics_failures_total");
        assert!(failures.abs() < f64::EPSILON, "{overtaking:?}: {failures}");
        assert_sums(&harness).await;
        // The files of the other instance are not written; no row is in two files.
        let rows = harness.rows("posts").len() + harness.rows("deliveries").len();
        assert!(rows < 120 + 200, "{overtaking:?}");
    }
}
