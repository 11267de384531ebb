//! Delivery counts by post and by hour, and the messages that they include.
//!
//! | keyspace | row |
//! |---|---|
//! | `totals_seen` | (stream, page) → one bit per message, for [`PAGE`](row::PAGE) messages |
//! | `totals_intents` | announced file → token and name of its writer's lease, 0 and nothing for an abandoned file; nothing for a file of an older version |
//! | `totals_posts` | post → author, counts, latencies |
//! | `totals_hours` | hour → counts |
//! | `totals_chunks` | (post, channel, chunk) → the counted revision and its counts |

pub(crate) mod row;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use async_trait::async_trait;
use fjall::{Keyspace, OwnedWriteBatch};
use futures::executor::block_on;
use herald_model::PostId;

use self::row::{
    Bits, PAGE, chunk_key, decode_chunk, decode_counts, decode_owner, decode_post, encode_chunk,
    encode_counts, encode_owner, encode_post, is_set, page_key, set_bit,
};
use super::{
    database::{self, Database, map_err},
    group_commit::GroupCommit,
    leases::EmbeddedLeases,
    trim_watermark::TrimWatermark,
};
use crate::{
    ChunkRef, Counted, Counts, Error, ErrorKind, Fence, IntendedFile, PostTotals, Result, TotalsBatch,
};

/// Maximum number of files in a batch.
const BATCH_FILES_MAX: usize = 64;

/// The embedded engine's [`Totals`](crate::Totals).
pub(crate) struct EmbeddedTotals {
    tables: Arc<Tables>,
    writes: GroupCommit<Job, bool>,
}

struct Tables {
    database: Arc<Database>,
    leases: Arc<EmbeddedLeases>,
    seen: Keyspace,
    intents: Keyspace,
    posts: Keyspace,
    hours: Keyspace,
    chunks: Keyspace,
    trim_watermark: TrimWatermark,
}

enum Job {
    Intend(String, Fence),
    Abandon(String),
    Forget(String),
    Commit(TotalsBatch),
}

/// The changes of the current batch, which can't be read from the keyspaces yet.
#[derive(Default)]
struct CommitBatch {
    /// Announced files with their writers; `None` for a cleared announcement.
    intents: BTreeMap<String, Option<Fence>>,
    seen: HashMap<Vec<u8>, Bits>,
    posts: BTreeMap<u64, PostTotals>,
    hours: BTreeMap<u32, Counts>,
    chunks: BTreeMap<ChunkRef, Counted>,
}

impl EmbeddedTotals {
    /// Opens the totals. `leases` are those of the writers.
    pub(crate) fn open(database: &Arc<Database>, leases: &Arc<EmbeddedLeases>) -> Result<Self> {
        let keyspace = |name| database.keyspace(name, database::options);
        let tables = Arc::new(Tables {
            seen: keyspace("totals_seen")?,
            intents: keyspace("totals_intents")?,
            posts: keyspace("totals_posts")?,
            hours: keyspace("totals_hours")?,
            chunks: keyspace("totals_chunks")?,
            trim_watermark: TrimWatermark::default(),
            database: Arc::clone(database),
            leases: Arc::clone(leases),
        });
        let shared = Arc::clone(&tables);
        let writes = GroupCommit::start("totals", BATCH_FILES_MAX, |_| 1, move |jobs| shared.run(jobs))?;
        Ok(Self { tables, writes })
    }

    /// Removes the chunk rows of all posts less than `before` and returns their number. The counts by post and hour
    /// stay.
    pub(crate) async fn trim(&self, before: PostId) -> Result<usize> {
        let Tables {
            database,
            chunks,
            trim_watermark,
            ..
        } = &*self.tables;
        trim_watermark.trim(database, chunks, before).await
    }

    /// The first post that may have counted chunks.
    pub(crate) fn first_post(&self) -> Result<PostId> {
        self.tables.trim_watermark.first_with_rows(&self.tables.chunks)
    }
}

impl Tables {
    /// Does a batch of jobs.
    fn run(&self, jobs: Vec<Job>) -> Result<Vec<Result<bool>>> {
        let mut pending = CommitBatch::default();
        let mut answers = Vec::with_capacity(jobs.len());
        for job in jobs {
            answers.push(match job {
                Job::Intend(file, owner) => self.leases.check(&owner).map(|()| {
                    pending.intents.insert(file, Some(owner));
                    true
                }),
                Job::Abandon(file) => self.owner(&pending, &file).map(|owner| {
                    let is_uncounted = owner.is_some();
                    if is_uncounted {
                        pending.intents.insert(file, Some(IntendedFile::NO_OWNER));
                    }
                    is_uncounted
                }),
                Job::Forget(file) => self.owner(&pending, &file).map(|owner| {
                    let is_abandoned = owner == Some(IntendedFile::NO_OWNER);
                    if is_abandoned {
                        pending.intents.insert(file, None);
                    }
                    is_abandoned
                }),
                Job::Commit(batch) => self.add(&mut pending, batch).map(|()| true),
            });
        }
        let mut batch = self.database.batch();
        self.write(&mut batch, pending);
        if !batch.is_empty() {
            block_on(self.database.commit(batch))?;
        }
        Ok(answers)
    }

    /// Adds the counts of a file to the batch. If all messages of the file were counted before, it adds nothing and
    /// keeps the announcement, so that the file is found as a leftover; if only some were, it fails. It reads all rows
    /// before it changes the batch, so that a row that can't be decoded fails only this job and not the whole batch.
    fn add(&self, pending: &mut CommitBatch, batch: TotalsBatch) -> Result<()> {
        let sequences: BTreeSet<_> = batch.sequences.iter().copied().collect();
        let mut pages: HashMap<Vec<u8>, Bits> = HashMap::new();
        let mut counted_before = 0;
        for sequence in &sequences {
            let key = page_key(&batch.stream, *sequence);
            let bits = match pages.entry(key) {
                std::collections::hash_map::Entry::Occupied(bits) => bits.into_mut(),
                std::collections::hash_map::Entry::Vacant(new) => {
                    let bits = match pending.seen.get(new.key()) {
                        Some(bits) => *bits,
                        None => self.bits(new.key())?,
                    };
                    new.insert(bits)
                }
            };
            counted_before += usize::from(is_set(bits, *sequence));
            set_bit(bits, *sequence);
        }
        if counted_before > 0 && counted_before == sequences.len() {
            return Ok(());
        }
        if counted_before > 0 {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "{counted_before} of the {} messages of the file {} were counted before",
                    sequences.len(),
                    batch.file
                ),
            ));
        }
        let owner = self.owner(pending, &batch.file)?;
        if owner.is_none_or(|owner| owner == IntendedFile::NO_OWNER) {
            return Err(Error::new(
                ErrorKind::Fenced,
                format!(
                    "the file {} is not announced: another writer has abandoned it",
                    batch.file
                ),
            ));
        }
        for (chunk, counted) in &batch.chunks {
            let existing = match pending.chunks.get(chunk) {
                Some(existing) => *existing,
                None => self.chunk(*chunk)?,
            };
            if existing.revision >= counted.revision {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!(
                        "revision {} of chunk {} of post {} was counted before",
                        counted.revision, chunk.chunk, chunk.post
                    ),
                ));
            }
        }
        let mut posts = BTreeMap::new();
        for (post, more) in batch.posts {
            let existing = match posts.get(&post.0).or_else(|| pending.posts.get(&post.0)) {
                Some(existing) => Some(*existing),
                None => self.post(post.0)?,
            };
            posts.insert(post.0, existing.map_or(more, |existing| merge(existing, more)));
        }
        let mut hours = BTreeMap::new();
        for (hour, more) in batch.hours {
            let mut counts = match hours.get(&hour).or_else(|| pending.hours.get(&hour)) {
                Some(existing) => *existing,
                None => self.hour(hour)?,
            };
            counts += more;
            hours.insert(hour, counts);
        }
        pending.chunks.extend(batch.chunks);
        pending.seen.extend(pages);
        pending.intents.insert(batch.file, None);
        pending.posts.extend(posts);
        pending.hours.extend(hours);
        Ok(())
    }

    fn write(&self, batch: &mut OwnedWriteBatch, pending: CommitBatch) {
        for (file, owner) in pending.intents {
            match owner {
                Some(owner) => batch.insert(&self.intents, file, encode_owner(&owner)),
                None => batch.remove(&self.intents, file),
            }
        }
        for (key, bits) in pending.seen {
            batch.insert(&self.seen, key, bits);
        }
        for (post, totals) in pending.posts {
            batch.insert(&self.posts, post.to_be_bytes(), encode_post(&totals));
        }
        for (hour, counts) in pending.hours {
            batch.insert(&self.hours, hour.to_be_bytes(), encode_counts(&counts));
        }
        for (chunk, counted) in pending.chunks {
            batch.insert(&self.chunks, chunk_key(chunk), encode_chunk(&counted));
        }
    }

    /// The owner of an announced file.
    fn owner(&self, pending: &CommitBatch, file: &str) -> Result<Option<Fence>> {
        if let Some(owner) = pending.intents.get(file) {
            return Ok(owner.clone());
        }
        let row = self.intents.get(file).map_err(map_err)?;
        row.map(|row| decode_owner(&row).ok_or_else(|| corrupt("totals_intents")))
            .transpose()
    }

    fn intended(&self, row: fjall::Guard) -> Result<IntendedFile> {
        let (file, owner) = row.into_inner().map_err(map_err)?;
        let file = String::from_utf8(file.to_vec()).map_err(|_| corrupt("totals_intents"))?;
        let owner = decode_owner(&owner).ok_or_else(|| corrupt("totals_intents"))?;
        let orphaned = self.leases.check(&owner).is_err();
        Ok(IntendedFile {
            file,
            owner,
            orphaned,
        })
    }

    fn bits(&self, key: &[u8]) -> Result<Bits> {
        let Some(bits) = self.seen.get(key).map_err(map_err)? else {
            return Ok([0; _]);
        };
        (*bits).try_into().map_err(|_| corrupt("totals_seen"))
    }

    fn post(&self, post: u64) -> Result<Option<PostTotals>> {
        let Some(bytes) = self.posts.get(post.to_be_bytes()).map_err(map_err)? else {
            return Ok(None);
        };
        decode_post(&bytes)
            .map(Some)
            .ok_or_else(|| corrupt("totals_posts"))
    }

    fn hour(&self, hour: u32) -> Result<Counts> {
        let Some(bytes) = self.hours.get(hour.to_be_bytes()).map_err(map_err)? else {
            return Ok(Counts::default());
        };
        decode_counts(&mut &*bytes).ok_or_else(|| corrupt("totals_hours"))
    }

    fn chunk(&self, chunk: ChunkRef) -> Result<Counted> {
        let Some(bytes) = self.chunks.get(chunk_key(chunk)).map_err(map_err)? else {
            return Ok(Counted::default());
        };
        decode_chunk(&bytes).ok_or_else(|| corrupt("totals_chunks"))
    }
}

fn merge(mut existing: PostTotals, more: PostTotals) -> PostTotals {
    existing.counts += more.counts;
    existing.timeline_latency_ms_max = existing.timeline_latency_ms_max.max(more.timeline_latency_ms_max);
    existing.push_latency_ms_max = existing.push_latency_ms_max.max(more.push_latency_ms_max);
    existing
}

fn corrupt(keyspace: &str) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!("can't decode a row of the keyspace {keyspace}"),
    )
}

#[async_trait]
impl crate::Totals for EmbeddedTotals {
    async fn seen(&self, stream: &str, sequences: &[u64]) -> Result<Vec<bool>> {
        let mut page: Option<(u64, Bits)> = None;
        sequences
            .iter()
            .map(|sequence| {
                let number = sequence / PAGE;
                let bits = match page {
                    Some((existing, bits)) if existing == number => bits,
                    _ => self.tables.bits(&page_key(stream, *sequence))?,
                };
                page = Some((number, bits));
                Ok(is_set(&bits, *sequence))
            })
            .collect()
    }

    async fn counted(&self, chunks: &[ChunkRef]) -> Result<Vec<Counted>> {
        chunks.iter().map(|chunk| self.tables.chunk(*chunk)).collect()
    }

    async fn intend(&self, file: &str, owner: &Fence) -> Result<()> {
        can_fail!("store.intend");
        let intended = self.writes.run(Job::Intend(file.into(), owner.clone())).await;
        intended.map(drop)
    }

    async fn intended(&self) -> Result<Vec<IntendedFile>> {
        let rows = self.tables.intents.iter();
        rows.map(|row| self.tables.intended(row)).collect()
    }

    async fn abandon(&self, file: &str) -> Result<bool> {
        self.writes.run(Job::Abandon(file.into())).await
    }

    async fn forget(&self, file: &str) -> Result<()> {
        self.writes.run(Job::Forget(file.into())).await.map(drop)
    }

    async fn commit(&self, batch: &TotalsBatch) -> Result<()> {
        can_fail!("store.count");
        let counted = self.writes.run(Job::Commit(batch.clone())).await;
        can_fail!("store.counted");
        counted.map(drop)
    }

    async fn post_totals(&self, post: PostId) -> Result<Option<PostTotals>> {
        self.tables.post(post.0)
    }

    async fn hour_totals(&self, start: u32, end: u32) -> Result<Vec<(u32, Counts)>> {
        if start >= end {
            return Ok(Vec::new());
        }
        self.tables
            .hours
            .range(start.to_be_bytes()..end.to_be_bytes())
            .map(|row| {
                let (key, bytes) = row.into_inner().map_err(map_err)?;
                let hour = (*key).try_into().map_err(|_| corrupt("totals_hours"))?;
                let counts = decode_counts(&mut &*bytes).ok_or_else(|| corrupt("totals_hours"))?;
                Ok((u32::from_be_bytes(hour), counts))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests;
