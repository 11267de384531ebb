//! Appends runs to the tails of their buckets.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use redis::Value;

use super::{
    View,
    collector::{Load, Run},
    slots::SlotRange,
};
use crate::{Error, ErrorKind, Result, embedded::shared_error::SharedError};

/// Maximum number of runs that are written at a time: while Redis appends one, the next one is encoded.
const RUNS_IN_FLIGHT_MAX: usize = 2;

/// Number of deliveries from which on a run is encoded on a thread for blocking work.
const BLOCKING_PAIRS_MIN: usize = 16_384;

/// Time-out of the wait for replicas (`WAIT`), milliseconds.
const REPLICAS_TIMEOUT_MS: u64 = 2_000;

/// When the time to live of each bucket was last extended by this process.
///
/// Appending does not extend it, and one `EXPIRE` a block would double the commands. So each process extends it once a
/// day, and a tail that was made anew (by its first block after a merge) gets it with that block's answer.
#[derive(Default)]
pub(super) struct Extended(Mutex<Vec<u16>>);

impl Extended {
    /// Whether the bucket was not extended on this day yet. Marks it.
    fn mark(&self, bucket: u32, day: u16) -> bool {
        let mut days = self.0.lock();
        let index = bucket as usize;
        if days.len() <= index {
            days.resize(index + 1, 0);
        }
        std::mem::replace(&mut days[index], day) != day
    }

    fn forget(&self, bucket: u32) {
        if let Some(day) = self.0.lock().get_mut(bucket as usize) {
            *day = 0;
        }
    }
}

/// Writes runs until the collector is closed.
pub(super) async fn flush(view: Arc<View>) {
    let mut load = Load::new();
    let permits = Arc::new(tokio::sync::Semaphore::new(RUNS_IN_FLIGHT_MAX));
    while let Some(run) = view.collector.next(&mut load).await {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
            break;
        };
        let view = Arc::clone(&view);
        let writing = async move {
            write_run(&view, &run).await;
            view.collector.finish(run);
            drop(permit);
        };
        tokio::spawn(writing);
    }
    // All runs are written when all permits are back.
    drop(permits.acquire_many(RUNS_IN_FLIGHT_MAX as u32).await);
}

async fn write_run(view: &Arc<View>, run: &Arc<Run>) {
    let readable = append(view, run).await;
    if let Err(error) = &readable {
        tracing::warn!(
            error = crate::embedded::shared_error::with_sources(error),
            deliveries = run.buffer.pairs(),
            "could not write deliveries to the timelines"
        );
    }
    let share =
        |outcome: Result<()>| outcome.map_err(|e| SharedError::new("the timelines can't be written", &e));
    let readable = share(readable.map(|grown| {
        for bucket in grown {
            view.merger.request(bucket);
        }
    }));
    run.resolve_readable(readable.clone());
    let durable = match (readable, view.config.replicas_min) {
        (Ok(()), 1..) => share(replicate(view).await),
        (readable, _) => readable,
    };
    run.resolve_durable(durable);
    view.merger.wait_for_room().await;
}

/// Appends a run and returns the buckets to merge.
async fn append(view: &Arc<View>, run: &Arc<Run>) -> Result<Vec<u32>> {
    let blocks = encode(run).await?;
    let day = today();
    let mut commands = Vec::with_capacity(blocks.len());
    // The index in `blocks` of each command that appends.
    let mut appends = Vec::with_capacity(blocks.len());
    for (index, (bucket, block)) in blocks.iter().enumerate() {
        let keys = view.keys.bucket(*bucket);
        let mut push = redis::cmd("RPUSH");
        push.arg(&keys.tail).arg(block.as_slice());
        appends.push((commands.len(), index));
        commands.push((keys.slot, push));
        if view.extended.mark(*bucket, day) {
            for key in [&keys.tail, &keys.body] {
                let mut expire = redis::cmd("EXPIRE");
                expire.arg(key).arg(view.ttl_s);
                commands.push((keys.slot, expire));
            }
        }
    }
    let answers = match view.writer.pipeline(commands).await {
        Ok(answers) => answers,
        Err(error) => {
            for (bucket, _) in &blocks {
                view.extended.forget(*bucket);
            }
            return Err(error);
        }
    };
    let mut grown = Vec::new();
    let mut made = Vec::new();
    for (answer, index) in appends {
        let (bucket, block) = &blocks[index];
        let Value::Int(length) = answers[answer] else {
            return Err(Error::new(
                ErrorKind::Unavailable,
                "the answer of Redis to RPUSH is no number",
            ));
        };
        let length = usize::try_from(length).unwrap_or(0);
        if view.merger.is_due(*bucket, length, block.len()) {
            grown.push(*bucket);
        }
        // The second block too: the process that appended the first one may have died.
        if length <= 2 {
            let keys = view.keys.bucket(*bucket);
            let mut expire = redis::cmd("EXPIRE");
            expire.arg(&keys.tail).arg(view.ttl_s);
            made.push((keys.slot, expire));
        }
    }
    if !made.is_empty() {
        view.writer.pipeline(made).await?;
    }
    Ok(grown)
}

async fn encode(run: &Arc<Run>) -> Result<Vec<(u32, Vec<u8>)>> {
    if run.buffer.pairs() < BLOCKING_PAIRS_MIN {
        return encode_now(run);
    }
    let shared = Arc::clone(run);
    let encoding = tokio::task::spawn_blocking(move || encode_now(&shared));
    encoding
        .await
        .map_err(|e| Error::with_source(ErrorKind::Unavailable, "can't encode deliveries", e))?
}

fn encode_now(run: &Run) -> Result<Vec<(u32, Vec<u8>)>> {
    let mut blocks = Vec::new();
    run.buffer.blocks(|bucket, block| {
        blocks.push((bucket, block.to_vec()));
        Ok(())
    })?;
    Ok(blocks)
}

/// Waits until enough replicas of each primary have all writes.
async fn replicate(view: &View) -> Result<()> {
    for range in view.writer.refresh_ranges().await?.iter() {
        wait_for_replicas(view, *range).await?;
    }
    Ok(())
}

async fn wait_for_replicas(view: &View, range: SlotRange) -> Result<()> {
    let mut wait = redis::cmd("WAIT");
    wait.arg(view.config.replicas_min).arg(REPLICAS_TIMEOUT_MS);
    let answer = view.writer.run_once(range.first, wait).await?;
    match answer {
        Value::Int(replicas) if replicas >= i64::from(view.config.replicas_min) => Ok(()),
        _ => Err(Error::new(
            ErrorKind::Unavailable,
            format!(
                "fewer than {} replicas of Redis have the write within {REPLICAS_TIMEOUT_MS} ms: check the replicas, or lower \
                 timelines.replicas_min",
                view.config.replicas_min
            ),
        )),
    }
}

/// Days since 1970; from 1, because 0 stands for never.
fn today() -> u16 {
    let since = Duration::from_micros(u64::try_from(herald_model::time::Timestamp::now().0).unwrap_or(0));
    u16::try_from(since.as_secs() / 86_400 + 1).unwrap_or(u16::MAX)
}
