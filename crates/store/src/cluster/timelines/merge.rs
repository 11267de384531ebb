//! Merging of a bucket's tail into its body.
//!
//! A merge reads tail and body, merges in memory and writes with `scripts/write.lua`, which refuses the write if the body
//! has another generation or the tail other blocks than were read. So a merge can end at any point, and of several merges
//! of a bucket one wins; the others have done nothing.

use std::{
    collections::{HashSet, VecDeque},
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::Duration,
};

use herald_model::UserKey;
use parking_lot::Mutex;
use redis::Value;
use tokio::sync::Notify;

use super::{TimelinesConfig, View, erased, field::Field, script::ScriptCall};
use crate::{
    Error, ErrorKind, Result,
    embedded::timelines::{block, pair},
};

/// Minimum number of blocks that are merged because of their size.
const BLOCKS_MIN: usize = 8;

/// Maximum number of blocks that one merge takes.
pub(super) const BLOCKS_MAX: usize = 8_192;

/// Number of buckets waiting for a merge from which on the flusher waits too.
const WAITING_MAX: usize = 4_096;

/// Which buckets are merged when.
pub(super) struct Merger {
    blocks: usize,
    bytes: usize,
    /// Differs in each process, so that usually one process merges a bucket.
    jitter: RandomState,
    state: Mutex<Queue>,
    work: Notify,
    room: Notify,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<u32>,
    /// The buckets that wait or are being merged.
    known: HashSet<u32>,
    closing: bool,
}

impl Merger {
    pub(super) fn new(config: &TimelinesConfig) -> Self {
        Self {
            blocks: config.merge_blocks,
            bytes: config.merge_bytes,
            jitter: RandomState::new(),
            state: Mutex::default(),
            work: Notify::new(),
            room: Notify::new(),
        }
    }

    /// Whether a tail of `length` blocks is to be merged; `block` is the size of its newest block, bytes.
    pub(super) fn is_due(&self, bucket: u32, length: usize, block: usize) -> bool {
        // Up to a quarter more.
        let jitter = (self.jitter.hash_one(bucket) % 256) as usize;
        let with_jitter = |limit: usize| limit.saturating_add(limit.saturating_mul(jitter) / 1_024);
        length >= with_jitter(self.blocks)
            || length >= BLOCKS_MIN && length.saturating_mul(block) >= with_jitter(self.bytes)
    }

    /// Merges a bucket soon.
    pub(super) fn request(&self, bucket: u32) {
        let mut state = self.state.lock();
        if !state.closing && state.known.insert(bucket) {
            state.waiting.push_back(bucket);
            drop(state);
            self.work.notify_one();
        }
    }

    /// Waits until fewer than [`WAITING_MAX`] buckets wait for a merge.
    pub(super) async fn wait_for_room(&self) {
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            {
                let state = self.state.lock();
                if state.closing || state.waiting.len() < WAITING_MAX {
                    return;
                }
            }
            room.await;
        }
    }

    async fn next(&self) -> Option<u32> {
        loop {
            {
                let mut state = self.state.lock();
                if state.closing {
                    return None;
                }
                if let Some(bucket) = state.waiting.pop_front() {
                    if !state.waiting.is_empty() {
                        self.work.notify_one();
                    }
                    return Some(bucket);
                }
            }
            self.work.notified().await;
        }
    }

    fn done(&self, bucket: u32) {
        self.state.lock().known.remove(&bucket);
        self.room.notify_waiters();
    }

    pub(super) fn close(&self) {
        self.state.lock().closing = true;
        self.work.notify_one();
        self.room.notify_waiters();
    }
}

/// Merges buckets until closed. Several of these tasks run.
pub(super) async fn run(view: Arc<View>) {
    while let Some(bucket) = view.merger.next().await {
        if let Err(error) = merge(&view, bucket).await {
            tracing::warn!(%error, bucket, "could not merge timelines");
            // The next append requests the merge again.
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        view.merger.done(bucket);
    }
    // Wakes the next task.
    view.merger.work.notify_one();
}

/// What a bucket has in its tail and body.
pub(super) struct Bucket {
    /// Generation of the body, empty if there is none.
    pub(super) generation: Vec<u8>,
    blocks: Vec<Vec<u8>>,
    fields: Vec<(u8, Field)>,
}

impl Bucket {
    /// Number of blocks.
    pub(super) fn blocks(&self) -> usize {
        self.blocks.len()
    }
}

/// Merges the tail of a bucket into its body. Returns whether it was written: another merge can have come first.
pub(super) async fn merge(view: &View, bucket: u32) -> Result<bool> {
    let read = read_bucket(view, bucket).await?;
    if read.blocks.is_empty() {
        return Ok(false);
    }
    can_fail!("store.timelines.merge");
    merge_with(view, bucket, read, None).await
}

/// Merges what was read of a bucket. With `erase`, the timeline of this user is removed, and the body gets a new epoch.
pub(super) async fn merge_with(
    view: &View,
    bucket: u32,
    read: Bucket,
    erase: Option<UserKey>,
) -> Result<bool> {
    let oldest = view.oldest();
    let mut pairs = Vec::new();
    for block in &read.blocks {
        block::decode_pairs(block, &mut pairs)?;
    }
    pairs.sort_unstable();
    pairs.dedup();
    let mut written = Vec::new();
    let mut fields = read.fields;
    for posts in pairs.chunk_by(|a, b| pair::user_in_group(*a) == pair::user_in_group(*b)) {
        let index = pair::user_in_group(posts[0]);
        let found = fields.iter().position(|(of, _)| *of == index);
        let mut field = found.map_or_else(Field::empty, |at| fields.swap_remove(at).1);
        let mut posts = posts.iter().map(|p| pair::post(*p)).collect();
        if view.is_erased(pair::user(bucket, index)) {
            field = erased::nothing();
        } else {
            field.add(&mut posts, oldest, view.config.entries_max);
        }
        written.push((index, field));
    }
    if let Some(user) = erase {
        written.retain(|(index, _)| *index != pair::index(user));
        written.push((pair::index(user), erased::nothing()));
    }
    let epoch = erase.map(|_| view.new_generation());
    let mut fields = encode(&written);
    fields.extend(epoch.map(|epoch| (b"e".to_vec(), epoch)));
    write_fields(view, bucket, &read.generation, &read.blocks, fields).await
}

pub(super) async fn read_bucket(view: &View, bucket: u32) -> Result<Bucket> {
    let keys = view.keys.bucket(bucket);
    let mut generation = redis::cmd("HGET");
    generation.arg(&keys.body).arg("g");
    let mut tail = redis::cmd("LRANGE");
    tail.arg(&keys.tail).arg(0).arg(BLOCKS_MAX - 1);
    let mut body = redis::cmd("HGETALL");
    body.arg(&keys.body);
    // The generation first: if the rest is newer, the write is refused.
    let commands = [generation, tail, body];
    let answers = view
        .writer
        .pipeline(commands.into_iter().map(|cmd| (keys.slot, cmd)).collect())
        .await?;
    let [generation, tail, body]: [Value; 3] = answers.try_into().map_err(|_| unexpected())?;
    let blocks: Vec<Vec<u8>> = read_value(tail)?;
    let generation: Option<Vec<u8>> = read_value(generation)?;
    let rows: Vec<(Vec<u8>, Vec<u8>)> = read_value(body)?;
    let mut fields = Vec::with_capacity(rows.len());
    for (name, value) in rows {
        if let Some(index) = read_index(&name) {
            fields.push((index, Field::decode(&value)?));
        }
    }
    Ok(Bucket {
        generation: generation.unwrap_or_default(),
        blocks,
        fields,
    })
}

/// Writes fields, and removes blocks, if the bucket is as it was read.
pub(super) async fn write(
    view: &View,
    bucket: u32,
    generation: &[u8],
    blocks: &[Vec<u8>],
    fields: &[(u8, Field)],
) -> Result<bool> {
    write_fields(view, bucket, generation, blocks, encode(fields)).await
}

/// The names and values of fields.
fn encode(fields: &[(u8, Field)]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let encoded = fields
        .iter()
        .map(|(index, field)| (index.to_string().into_bytes(), field.encode()));
    encoded.collect()
}

async fn write_fields(
    view: &View,
    bucket: u32,
    generation: &[u8],
    blocks: &[Vec<u8>],
    fields: Vec<(Vec<u8>, Vec<u8>)>,
) -> Result<bool> {
    let keys = view.keys.bucket(bucket);
    let mut hash = sha1_smol::Sha1::new();
    for block in blocks {
        hash.update(block);
    }
    let mut arguments = vec![
        generation.to_vec(),
        view.new_generation(),
        view.ttl_s.to_string().into_bytes(),
        blocks.len().to_string().into_bytes(),
        hash.digest().to_string().into_bytes(),
    ];
    for (name, value) in fields {
        arguments.extend([name, value]);
    }
    let call = ScriptCall {
        script: &view.scripts.write,
        keys: &[&keys.body, &keys.tail],
        arguments,
    };
    match view
        .writer
        .run_script(keys.slot, &call, "write a timeline")
        .await?
    {
        Value::Int(written) => Ok(written == 1),
        _ => Err(unexpected()),
    }
}

/// The user's index of the name of a field; `None` for the names of generation and epoch.
fn read_index(name: &[u8]) -> Option<u8> {
    std::str::from_utf8(name).ok()?.parse().ok()
}

pub(super) fn read_value<T: redis::FromRedisValue>(value: Value) -> Result<T> {
    redis::from_redis_value(value).map_err(|e| {
        Error::with_source(
            ErrorKind::Corrupt,
            "an answer of Redis has another type than expected: another program uses keys that begin with herald:",
            e,
        )
    })
}

fn unexpected() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "Redis gave another number of answers than expected",
    )
}
