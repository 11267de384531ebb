//! A copy of the store while it is in use.

use std::{
    fs::{self, File},
    path::Path,
};

use fjall::{Keyspace, Readable as _, Snapshot};

use super::{Config, Embedded, contents::DATABASES, database::map_err, dir::io_error, timelines};
use crate::{Error, ErrorKind, Result, encryption::Encryption};

/// What a backup copied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backup {
    /// Number of rows.
    pub rows: u64,
    /// Bytes of their keys and values.
    pub bytes: u64,
}

impl Embedded {
    /// Copies the store into a new directory, while it is in use. The copy is a data directory: it can be opened as it is.
    /// It has the state of one moment, of all databases together, between the call and its return. Writes wait for that
    /// moment only, some milliseconds, or as long as a flush of timelines takes; merges of timelines wait until their copy
    /// is complete.
    ///
    /// Blocks the thread; memory is bounded. `target` must not exist: it appears when the copy is complete and durable,
    /// and what an interruption leaves is `target` with `.partial` appended, which a repetition replaces. Devices
    /// stay encrypted with the keys of the store. Streams, the VAPID key, storage keys and Parquet files are not in the
    /// store and not copied.
    pub fn backup(&self, target: &Path) -> Result<Backup> {
        if target.exists() {
            let message = format!("{} exists: name a new directory for the backup", target.display());
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        let mut name = target.file_name().unwrap_or_default().to_owned();
        name.push(".partial");
        let partial = target.with_file_name(name);
        let failed = |what: &str, error| io_error(format!("can't {what} {}", partial.display()), error);
        if partial.exists() {
            fs::remove_dir_all(&partial).map_err(|e| failed("remove", e))?;
        }
        let copied = self.copy_to(&partial).inspect_err(|_| {
            // A repetition tries again.
            let _ = fs::remove_dir_all(&partial);
        })?;
        let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty());
        fs::rename(&partial, target)
            .and_then(|()| File::open(parent.unwrap_or(Path::new(".")))?.sync_all())
            .map_err(|e| failed("rename", e))?;
        Ok(copied)
    }

    fn copy_to(&self, partial: &Path) -> Result<Backup> {
        // Makes all keyspaces, with their options.
        let copy = Self::open(&Config {
            data_dir: partial.into(),
            // Rows are copied as they are.
            encryption: Encryption::default(),
            ..self.config.clone()
        })?;
        let mut copied = Backup::default();
        let timelines = self.timelines.freeze();
        // Before the snapshots: a rebuild that ends meanwhile removes its mark.
        timelines::copy_mark(self.path(), partial)?;
        let sources = self.fjall();
        let snapshots = {
            // A flush can take long, and other writes wait for nothing meanwhile.
            let _no_flush = timelines.stop_flushes();
            let _no_writes = self.databases.gate.write();
            sources.map(fjall::Database::snapshot)
        };
        for ((source, target), snapshot) in sources.into_iter().zip(copy.fjall()).zip(snapshots) {
            for name in source.list_keyspace_names() {
                let open = |database: &fjall::Database| {
                    database
                        .keyspace(&name, fjall::KeyspaceCreateOptions::default)
                        .map_err(map_err)
                };
                copy_rows(&snapshot, &open(source)?, &open(target)?, &mut copied)?;
            }
        }
        copy.close()?;
        Ok(copied)
    }

    /// The databases, in the order of [`DATABASES`].
    pub(super) fn fjall(&self) -> [&fjall::Database; DATABASES.len()] {
        let databases = &self.databases;
        [
            databases.records.fjall(),
            databases.dead_letters.fjall(),
            databases.totals.fjall(),
            self.timelines.fjall(),
        ]
    }
}

/// Copies the rows of a keyspace as sorted tables.
fn copy_rows(snapshot: &Snapshot, source: &Keyspace, target: &Keyspace, copied: &mut Backup) -> Result<()> {
    let mut rows = snapshot.iter(source).peekable();
    if rows.peek().is_none() {
        return Ok(());
    }
    let mut ingestion = target.start_ingestion().map_err(map_err)?;
    for row in rows {
        let (key, value) = row.into_inner().map_err(map_err)?;
        copied.rows += 1;
        copied.bytes += (key.len() + value.len()) as u64;
        ingestion.write(key, value).map_err(map_err)?;
    }
    // Syncs the tables, their directory and the manifest.
    ingestion.finish().map_err(map_err)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    use futures::executor::block_on;
    use herald_model::{
        Channel, FollowVersion, Lane, Post, PostId, PushContent, Recipients, UserId, UserKey, time::Timestamp,
    };

    use super::*;
    use crate::{Archived, ChunkPlan, ExpectedRevision, Outcome, Settlement, SlicePlan, Stores, TotalsBatch};

    const USERS: u32 = 500;

    fn config(dir: &Path) -> Config {
        Config {
            data_dir: dir.into(),
            timelines: timelines::Config {
                // Tables and rows in the journal, and merges.
                small_run_pairs_max: USERS as usize / 2,
                flush_interval_ms: 1,
                merge_blocks_min: 1,
                merge_busy_percent: 100,
                ..timelines::Config::default()
            },
            ..Config::default()
        }
    }

    fn recipients(post: u64) -> Recipients {
        Recipients::from_sorted((1..=if post.is_multiple_of(2) { USERS } else { 9 }).map(UserKey))
    }

    /// Accepts a post and does all that follows, step by step, in all databases.
    async fn do_post(stores: &Stores, post: u64) {
        let author_id = UserId::new(format!("author {post}")).unwrap();
        let author = stores
            .users
            .intern(std::slice::from_ref(&author_id))
            .await
            .unwrap()[0];
        let archived = Post {
            id: PostId(post),
            author,
            author_id,
            request_id: format!("request {post}"),
            text: "text".into(),
            links: Vec::new(),
            media_urls: Vec::new(),
            lane: Lane::Normal,
            accepted_at: Timestamp::now(),
            push_ttl: std::time::Duration::from_hours(1),
            push: PushContent::default(),
            deleted_at: None,
        };
        stores
            .posts
            .archive(&[Archived::Created(archived)])
            .await
            .unwrap();
        let recipients = recipients(post);
        let plan = SlicePlan {
            post: PostId(post),
            author,
            slice: 0,
            version: FollowVersion(1),
            chunks: vec![ChunkPlan {
                channel: Channel::Timeline,
                recipients: recipients.clone(),
            }],
            next_after: None,
        };
        stores.ledger.plan(plan).await.unwrap();
        let delivered = stores
            .timelines
            .deliver(PostId(post), recipients.clone())
            .await
            .unwrap();
        delivered.durable.await.unwrap();
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
        let owner = stores
            .leases
            .acquire("analytics/one", "one", crate::LEASE_DURATION)
            .await;
        let batch = TotalsBatch {
            stream: "EVENTS".into(),
            sequences: vec![post],
            file: format!("file {post}"),
            ..TotalsBatch::default()
        };
        stores
            .totals
            .intend(&batch.file, &owner.unwrap().unwrap())
            .await
            .unwrap();
        stores.totals.commit(&batch).await.unwrap();
    }

    /// The steps that a store has of a post.
    async fn steps(stores: &Stores, post: u64) -> [bool; 5] {
        let author_id = UserId::new(format!("author {post}")).unwrap();
        let last = recipients(post).iter().last().unwrap();
        let counts = stores.ledger.counts(PostId(post)).await.unwrap();
        let timeline = stores.timelines.newest(last, None, usize::MAX).await.unwrap();
        let is_delivered = timeline.posts.contains(&PostId(post));
        let settled = counts.as_ref().map_or(0, |counts| counts.timeline.delivered);
        // Whether the flush of a delivery or its plan is in the copy does not depend on the order of the reads.
        assert!(
            counts.is_some() || !is_delivered,
            "{post} is delivered without a plan"
        );
        [
            stores.users.find(&[author_id]).await.unwrap()[0].is_some(),
            stores.posts.get(&[PostId(post)]).await.unwrap()[0].is_some(),
            is_delivered,
            settled == u64::from(recipients(post).len()),
            stores.totals.seen("EVENTS", &[post]).await.unwrap()[0],
        ]
    }

    #[test]
    fn a_backup_during_writes_has_the_state_of_one_moment() {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(&config(&dir.path().join("data"))).unwrap();
        let stores = store.stores();
        let (done, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        let wait_for = |post| {
            while done.load(Ordering::SeqCst) < post {
                std::thread::yield_now();
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for post in 1.. {
                    block_on(do_post(&stores, post));
                    done.store(post, Ordering::SeqCst);
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                }
            });
            wait_for(20);
            for round in 1..=3 {
                let target = dir.path().join(format!("backup {round}"));
                let before = done.load(Ordering::SeqCst);
                let backup = store.backup(&target).unwrap();
                let after = done.load(Ordering::SeqCst);
                assert!(backup.rows > before && backup.bytes > 0, "{backup:?}");
                assert_eq!(store.backup(&target).unwrap_err().kind(), ErrorKind::Invalid);
                wait_for(after + 3);

                let copy = Embedded::open(&config(&target)).unwrap();
                let copied = copy.stores();
                let mut has_all = true;
                for post in 1..=after + 3 {
                    let steps = block_on(steps(&copied, post));
                    let made = steps.iter().take_while(|made| **made).count();
                    assert!(
                        !steps[made..].contains(&true),
                        "post {post} lacks an earlier step: {steps:?}"
                    );
                    assert!(
                        has_all || made == 0,
                        "post {post} follows one that lacks steps: {steps:?}"
                    );
                    has_all = made == steps.len();
                    assert!(
                        has_all || post > before,
                        "post {post} was done before the backup: {steps:?}"
                    );
                    assert!(
                        made == 0 || post <= after + 1,
                        "post {post} was begun after the backup: {steps:?}"
                    );
                }
                copy.close().unwrap();
            }
            stop.store(true, Ordering::SeqCst);
        });
        store.close().unwrap();
    }
}
