//! Copies of the engine's data, made while it runs.
//!
//! Each database is copied as it was at one moment. The moments follow each other in the order in which a delivery goes
//! backwards through them: totals and dead letters, which are made of outcomes; the records with the ledger, which has
//! the outcomes; the timelines. So a copy counts nothing that its ledger doesn't have, and has nothing delivered in the
//! ledger that its timelines don't have. What the copy lacks because its moment was earlier, an audit finds and repairs.

use std::{
    fs::{self, File},
    path::Path,
};

use fjall::{Keyspace, PersistMode, Readable as _};

use super::{Config, Embedded, database::map_err, dir::io_error};
use crate::{Error, ErrorKind, Result};

/// Rows that are copied between two reports of the progress.
const REPORT_ROWS: u64 = 65_536;

impl Embedded {
    /// Copies all data into a new data directory, while writes go on. Reports the number of rows copied so far. Returns
    /// the number of rows. Memory is bounded; the copy takes about as much disk space as the data.
    ///
    /// Blocks the thread. [`Invalid`](ErrorKind::Invalid) if the directory exists and is not empty. A directory in which
    /// a copy failed is of no use: remove it.
    pub fn backup(&self, to: &Path, progress: &mut dyn FnMut(u64)) -> Result<u64> {
        let failed = |error| io_error(format!("can't use the directory {}", to.display()), error);
        if to.exists() && fs::read_dir(to).map_err(failed)?.next().is_some() {
            let message = format!("the directory {} is not empty", to.display());
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        // Makes all keyspaces with their options.
        let config = Config {
            data_dir: to.into(),
            ..Config::default()
        };
        Self::open(&config)?.close()?;
        let sources = [
            ("totals", self.databases.totals.fjall()),
            ("dead_letters", self.databases.dead_letters.fjall()),
            ("records", self.databases.records.fjall()),
            ("timelines", self.timelines.fjall()),
        ];
        let mut rows = 0;
        for (name, source) in sources {
            copy(source, &to.join(name), &mut rows, progress)?;
        }
        File::open(to).and_then(|dir| dir.sync_all()).map_err(failed)?;
        Ok(rows)
    }
}

fn copy(source: &fjall::Database, to: &Path, rows: &mut u64, progress: &mut dyn FnMut(u64)) -> Result<()> {
    let snapshot = source.snapshot();
    let target = fjall::Database::builder(to)
        .worker_threads(1)
        .open()
        .map_err(map_err)?;
    for name in source.list_keyspace_names() {
        let open = |database: &fjall::Database| -> Result<Keyspace> {
            database
                .keyspace(&name, super::database::options)
                .map_err(map_err)
        };
        let (from, to) = (open(source)?, open(&target)?);
        // A new store has rows of its own, such as counters. A journaled `clear` would be repeated at the next start, after
        // the rows were ingested.
        for row in to.iter() {
            to.remove(row.key().map_err(map_err)?).map_err(map_err)?;
        }
        let mut ingestion = to.start_ingestion().map_err(map_err)?;
        for row in snapshot.iter(&from) {
            let (key, value) = row.into_inner().map_err(map_err)?;
            ingestion.write(key, value).map_err(map_err)?;
            *rows += 1;
            if *rows % REPORT_ROWS == 0 {
                progress(*rows);
            }
        }
        ingestion.finish().map_err(map_err)?;
    }
    target.persist(PersistMode::SyncAll).map_err(map_err)
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicBool, AtomicU64, Ordering},
        },
        time::Duration,
    };

    use herald_model::{
        Channel, FollowVersion, Lane, Post, PostId, PushContent, Recipients, UserId, UserKey, time::Timestamp,
    };

    use super::*;
    use crate::{Archived, ChunkPlan, SlicePlan, Stores};

    fn open(dir: &Path) -> Embedded {
        Embedded::open(&Config {
            data_dir: dir.into(),
            ..Config::default()
        })
        .unwrap()
    }

    /// Archives, plans and delivers one post.
    async fn deliver(stores: &Stores, id: u64) {
        let post = Post {
            id: PostId(id),
            author: UserKey(1),
            author_id: UserId::new("author").unwrap(),
            request_id: format!("request {id}"),
            text: "text".into(),
            links: Vec::new(),
            media_urls: Vec::new(),
            lane: Lane::Normal,
            accepted_at: Timestamp::now(),
            push_ttl: Duration::from_hours(1),
            push: PushContent::default(),
            deleted_at: None,
        };
        stores.posts.archive(&[Archived::Created(post)]).await.unwrap();
        let recipients = Recipients::from_sorted([UserKey(2), UserKey(3)]);
        let plan = SlicePlan {
            post: PostId(id),
            author: UserKey(1),
            slice: 0,
            version: FollowVersion(1),
            chunks: vec![ChunkPlan {
                channel: Channel::Timeline,
                recipients: recipients.clone(),
            }],
            next_after: None,
        };
        let delivered = stores.timelines.deliver(PostId(id), recipients).await.unwrap();
        delivered.durable.await.unwrap();
        stores.ledger.plan(plan).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_copy_made_during_writes_is_whole() {
        let (dir, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let store = Arc::new(open(dir.path()));
        let stores = store.stores();
        let ids = [UserId::new("ann").unwrap(), UserId::new("bob").unwrap()];
        let keys = stores.users.intern(&ids).await.unwrap();
        for id in 1..=20 {
            deliver(&stores, id).await;
        }
        let (written, stop) = (Arc::new(AtomicU64::new(20)), Arc::new(AtomicBool::default()));
        let writer = tokio::spawn({
            let (stores, written, stop) = (stores.clone(), Arc::clone(&written), Arc::clone(&stop));
            async move {
                while !stop.load(Ordering::Relaxed) {
                    let id = written.load(Ordering::Relaxed) + 1;
                    deliver(&stores, id).await;
                    written.store(id, Ordering::Relaxed);
                }
            }
        });
        let before = written.load(Ordering::Relaxed);
        let to = copy.path().join("copy");
        let rows = tokio::task::spawn_blocking({
            let (store, to) = (Arc::clone(&store), to.clone());
            move || store.backup(&to, &mut |_| ())
        });
        assert!(rows.await.unwrap().unwrap() > 60);
        let after = written.load(Ordering::Relaxed) + 1;
        stop.store(true, Ordering::Relaxed);
        writer.await.unwrap();

        let refused = store.backup(&to, &mut |_| ()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Invalid);
        let copied = open(&to);
        let stores = copied.stores();
        assert_eq!(stores.users.intern(&ids).await.unwrap(), keys);
        let planned = stores.ledger.posts(None, usize::MAX).await.unwrap();
        let last = planned.len() as u64;
        assert!((before..=after).contains(&last), "{before} {last} {after}");
        assert_eq!(planned, (1..=last).map(PostId).collect::<Vec<_>>());
        let archived = stores.posts.list(None, usize::MAX).await.unwrap();
        assert!(
            archived.starts_with(&planned),
            "the archive has each planned post"
        );
        for user in [2, 3] {
            let page = stores.timelines.newest(UserKey(user), None, 800).await.unwrap();
            let shown: Vec<_> = page.posts.into_iter().rev().collect();
            // What the ledger has planned was delivered before.
            assert!(shown.starts_with(&planned), "{shown:?}");
        }
        // The copy takes writes.
        deliver(&stores, 1_000_000).await;
        copied.close().unwrap();
    }
}
