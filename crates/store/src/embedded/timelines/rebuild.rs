//! Rebuilding of all timelines from the ledger, after a part of `timelines/` can't be read any more.
//!
//! The file `rebuild-timelines` in the data directory says that timelines are incomplete: `begun` until the damaged data
//! is removed, then `cleared` until every delivery of the ledger is written again. A rebuild that is interrupted is
//! repeated at the next start. A damaged table also ends fjall's compaction, and with it the process: so a start that
//! finds `begun` moves the directory away before fjall opens it.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use herald_model::{PostId, Recipients, UserKey};

use super::Shared;
use crate::{
    Durable, ErrorKind, Result,
    embedded::{
        blocking::read_blocking,
        contents::Contents,
        dir::{io_error, move_to_damaged, write_durably},
        ledger::Ledger,
    },
};

const FILE: &str = "rebuild-timelines";
const BEGUN: &str = "begun\n";
const CLEARED: &str = "cleared\n";

/// Posts of the ledger that are read at a time.
const PAGE: usize = 64;

/// Whether the timelines are being rebuilt.
pub(super) struct Rebuilding {
    /// The data directory.
    dir: PathBuf,
    /// The timelines lack deliveries of the ledger.
    active: AtomicBool,
    /// Number of rebuilds that this process began.
    begun: AtomicU64,
    /// One rebuild at a time.
    running: tokio::sync::Mutex<()>,
    ledger: OnceLock<Arc<Ledger>>,
}

/// Asks the next start for a rebuild.
pub(in crate::embedded) fn request(data_dir: &Path) -> Result<()> {
    mark(data_dir, BEGUN)
}

/// Removes what can't be read, if a rebuild was begun. Call it before the timelines are opened.
pub(in crate::embedded) fn prepare(data_dir: &Path) -> Result<()> {
    if read_mark(data_dir)?.as_deref() != Some(BEGUN) {
        return Ok(());
    }
    if let Some(kept_at) = move_to_damaged(data_dir, "timelines")? {
        tracing::warn!(
            kept_at = %kept_at.display(),
            "damaged timelines were moved away: they are rebuilt from the ledger"
        );
    }
    Contents::forget(data_dir, "timelines")?;
    mark(data_dir, CLEARED)
}

/// Lets a copy of the timelines continue a rebuild, if they are incomplete.
pub(in crate::embedded) fn copy_mark(data_dir: &Path, to: &Path) -> Result<()> {
    match read_mark(data_dir)? {
        Some(_) => mark(to, CLEARED),
        None => Ok(()),
    }
}

impl Rebuilding {
    pub(super) fn open(data_dir: &Path) -> Result<Self> {
        Ok(Self {
            dir: data_dir.into(),
            active: AtomicBool::new(read_mark(data_dir)?.is_some()),
            begun: AtomicU64::new(0),
            running: tokio::sync::Mutex::default(),
            ledger: OnceLock::new(),
        })
    }

    /// The data directory.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn is_active(&self) -> bool {
        self.active.load(Ordering::Acquire)
    }

    /// Number of losses of this process.
    pub(super) fn losses(&self) -> u64 {
        self.begun.load(Ordering::Acquire)
    }

    /// Sets the ledger from which timelines are rebuilt.
    pub(super) fn attach(&self, ledger: Arc<Ledger>) {
        // A second ledger is never attached.
        let _ = self.ledger.set(ledger);
    }
}

impl Shared {
    /// Rebuilds all timelines if one of these users can't be read. Returns the number of entries; `None` if all can.
    pub(super) async fn rebuild(self: &Arc<Self>, users: &[UserKey]) -> Result<Option<u64>> {
        if !self.is_damaged(users).await? {
            return Ok(None);
        }
        let _running = self.rebuilding.running.lock().await;
        // Another call may have rebuilt them meanwhile.
        if !self.is_damaged(users).await? {
            return Ok(None);
        }
        tracing::warn!("timelines can't be read: all timelines are rebuilt from the ledger");
        let shared = Arc::clone(self);
        read_blocking("the timelines", move || shared.begin()).await?;
        self.write_again().await.map(Some)
    }

    async fn is_damaged(self: &Arc<Self>, users: &[UserKey]) -> Result<bool> {
        let (shared, users) = (Arc::clone(self), users.to_vec());
        let read = read_blocking("the timelines", move || shared.read(&users)).await;
        match read {
            Ok(_) => Ok(false),
            Err(error) if error.kind() == ErrorKind::Corrupt => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Removes all timelines.
    fn begin(&self) -> Result<()> {
        let rebuilding = &self.rebuilding;
        mark(&rebuilding.dir, BEGUN)?;
        rebuilding.active.store(true, Ordering::Release);
        let _no_flush = self.clearing.write();
        // What is flushed before is lost; whoever delivered it asks for losses after settling it.
        rebuilding.begun.fetch_add(1, Ordering::AcqRel);
        self.merger.clear(&self.disk)?;
        mark(&rebuilding.dir, CLEARED)
    }

    /// Finishes a rebuild that an earlier process began.
    pub(super) async fn finish_rebuild(&self) -> Result<u64> {
        let _running = self.rebuilding.running.lock().await;
        if !self.rebuilding.is_active() {
            return Ok(0);
        }
        self.write_again().await
    }

    /// Delivers again what the ledger has.
    async fn write_again(&self) -> Result<u64> {
        let Some(ledger) = self.rebuilding.ledger.get() else {
            return Ok(0);
        };
        let mut entries = 0;
        let mut unreadable = 0_u64;
        let mut after = self.disk.oldest().checked_sub(1).map(PostId);
        loop {
            let ledger = Arc::clone(ledger);
            let page = read_blocking("the deliveries in the ledger", move || {
                let posts = ledger.posts_after(after, PAGE)?.into_iter();
                Ok(posts
                    .map(|post| (post, ledger.timeline_deliveries(post)))
                    .collect::<Vec<_>>())
            });
            let page = page.await?;
            let Some((last, _)) = page.last() else { break };
            after = Some(*last);
            let mut written: Vec<Durable> = Vec::new();
            for (post, deliveries) in page {
                let deliveries = match deliveries {
                    Ok(deliveries) => deliveries,
                    Err(error) if error.kind() == ErrorKind::Corrupt => {
                        tracing::error!(post_id = post.0, %error, "can't rebuild timelines with a post");
                        unreadable += 1;
                        continue;
                    }
                    Err(error) => return Err(error),
                };
                for recipients in deliveries.iter().filter(|recipients| !recipients.is_empty()) {
                    self.space.check()?;
                    written.push(self.intake.put(post.0, recipients).await?);
                    entries += u64::from(recipients.len());
                }
            }
            for durable in written {
                durable.await?;
            }
        }
        let path = self.rebuilding.dir.join(FILE);
        fs::remove_file(&path).map_err(|e| io_error(format!("can't remove {}", path.display()), e))?;
        self.rebuilding.active.store(false, Ordering::Release);
        tracing::info!(
            entries,
            unreadable_posts = unreadable,
            "all timelines are rebuilt"
        );
        Ok(entries)
    }
}

impl super::Merger {
    /// Removes all rows, without reading them.
    fn clear(&self, disk: &super::disk::Disk) -> Result<()> {
        let _merging = self.merging.lock();
        self.forget_blocks();
        disk.clear()
    }
}

/// Recipients of one post.
pub(in crate::embedded) type Deliveries = Vec<Recipients>;

fn mark(data_dir: &Path, state: &str) -> Result<()> {
    write_durably(data_dir, FILE, state)
        .map_err(|e| io_error(format!("can't write {}", data_dir.join(FILE).display()), e))
}

fn read_mark(data_dir: &Path) -> Result<Option<String>> {
    let path = data_dir.join(FILE);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(io_error(format!("can't read {}", path.display()), e)),
    }
}
