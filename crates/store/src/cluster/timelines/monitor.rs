//! Notices when Redis has lost writes.
//!
//! Each shard (the slots of one primary; all slots of a server that is no cluster) has a *beat*: the time of PostgreSQL's
//! clock, written each second, and recorded in PostgreSQL with the primary's run id once Redis has acknowledged it. Redis
//! applies, persists and replicates writes in their order; so what was written before a beat that is there, is there too.
//!
//! | at the next look | means |
//! |---|---|
//! | the beat is missing | the shard was flushed, so each timeline is rebuilt when it is read; or a fail-over to a replica that had no beat yet |
//! | the beat is older than the recorded one | a fail-over to a stale replica, or a restart from an old file: writes since that beat are lost |
//! | another run id | a restart or a fail-over: writes since the recorded beat may be lost |
//!
//! A repair delivers again what the ledger has. A delivery that is recorded in the ledger after the repair has read it
//! could be lost with the view; so its worker asks afterwards whether a loss was recorded since the delivery, and then
//! delivers again (`Timelines::is_intact`).
//!
//! Every process looks; the first one that notices records the loss. Until it is repaired (`repair`), every process
//! answers reads of the shard with a rebuild.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::RwLock;
use redis::Value;

use super::{
    View,
    merge::read_value,
    script::ScriptCall,
    server::info_value,
    slots::SlotRange,
    state::{Loss, Shard},
    whole,
};
use crate::{Error, ErrorKind, Result};

/// Interval of beats.
pub(super) const INTERVAL: Duration = Duration::from_secs(1);

/// Looks after which the slots of a cluster are read again.
const LOOKS_PER_REFRESH: u32 = 10;

/// What this process knows of losses.
#[derive(Default)]
pub(super) struct Monitor {
    open: RwLock<Vec<Loss>>,
    /// Number of recorded losses, open and repaired ones. May be older than what PostgreSQL has.
    losses: AtomicU64,
}

impl Monitor {
    /// Whether timelines of a slot may lack entries.
    pub(super) fn is_suspect(&self, slot: u16) -> bool {
        self.open.read().iter().any(|loss| loss.range.contains(slot))
    }

    /// The losses that are not repaired.
    pub(super) fn open(&self) -> Vec<Loss> {
        self.open.read().clone()
    }

    /// The number of losses that this process knows to be recorded.
    pub(super) fn losses(&self) -> u64 {
        self.losses.load(Ordering::Acquire)
    }

    pub(super) fn set_losses(&self, losses: u64) {
        self.losses.store(losses, Ordering::Release);
    }

    pub(super) fn set_open(&self, losses: Vec<Loss>) {
        *self.open.write() = losses;
    }
}

/// Looks at all shards each second until the task is aborted.
pub(super) async fn run(view: Arc<View>) {
    let mut looks = 0;
    let mut failing = false;
    loop {
        tokio::time::sleep(INTERVAL).await;
        looks += 1;
        let looked = look(&view, looks % LOOKS_PER_REFRESH == 0 || failing).await;
        if let Err(error) = &looked
            && !failing
        {
            tracing::warn!(%error, "could not check whether Redis has lost timelines");
        }
        failing = looked.is_err();
    }
}

/// Looks at all shards once.
pub(super) async fn look(view: &View, refresh: bool) -> Result<()> {
    view.monitor.set_losses(view.state.losses().await?);
    view.monitor.set_open(view.state.open_losses().await?);
    let ranges = if refresh {
        view.reader.refresh_ranges().await?
    } else {
        view.reader.ranges()
    };
    // What was acknowledged is read before the beats are.
    let shards = view.state.shards().await?;
    let mut outcome = Ok(());
    let mut lost = false;
    for range in ranges.iter() {
        let seen = shards.iter().find(|shard| shard.range.first == range.first);
        // A shard that is down does not hide the others.
        match look_at(view, *range, seen).await {
            Ok(found) => lost |= found,
            Err(error) => outcome = Err(error),
        }
    }
    if lost {
        view.monitor.set_open(view.state.open_losses().await?);
    }
    outcome
}

/// Looks at a shard. Returns whether there is a loss.
async fn look_at(view: &View, range: SlotRange, seen: Option<&Shard>) -> Result<bool> {
    if seen.is_none() && view.state.is_new().await? {
        whole::mark(view, range).await?;
    }
    let now = view.state.server_time().await?;
    let acknowledged = seen.map(|seen| seen.beat);
    let beat = write_beat(view, range, acknowledged, now, seen.is_none()).await?;
    // The run id after the beat: a beat on another primary must not be recorded with the id of the one before.
    let info = view.reader.info(range, "server").await?;
    let run_id = info_value(&info, "run_id").unwrap_or_default();
    let Some(seen) = seen else {
        let shard = Shard {
            range,
            run_id: run_id.into(),
            beat: now,
        };
        view.state.record_shard(&shard).await?;
        return Ok(false);
    };
    let since = match beat {
        Beat::Written if seen.run_id == run_id => {
            view.state.acknowledge_beat(seen, now).await?;
            if seen.range != range {
                let shard = Shard {
                    range,
                    ..seen.clone()
                };
                view.state.record_shard(&shard).await?;
            }
            return Ok(false);
        }
        // A replica that has not even the first beat can have timelines; so the beat can be missing without a flush.
        Beat::Written | Beat::Missing => seen.beat,
        Beat::Older(beat) => beat,
    };
    let recorded = view.state.record_loss(seen, run_id, since, now).await?;
    if recorded {
        tracing::warn!(
            first_slot = range.first,
            last_slot = range.last,
            flushed = matches!(beat, Beat::Missing),
            lost_s_max = (now - since) / 1_000_000,
            "Redis was restarted, failed over or flushed: timelines are rebuilt"
        );
        write_beat(view, range, None, now, true).await?;
    }
    // Another process may have been first.
    Ok(true)
}

enum Beat {
    Written,
    Older(i64),
    Missing,
}

async fn write_beat(
    view: &View,
    range: SlotRange,
    acknowledged: Option<i64>,
    now: i64,
    force: bool,
) -> Result<Beat> {
    let key = view.keys.beat(range.first);
    let call = ScriptCall {
        script: &view.scripts.beat,
        keys: &[&key, &view.keys.whole(range.first)],
        arguments: vec![
            acknowledged
                .map_or(String::new(), |beat| beat.to_string())
                .into_bytes(),
            now.to_string().into_bytes(),
            view.ttl_s.to_string().into_bytes(),
            if force { b"1".to_vec() } else { b"0".to_vec() },
        ],
    };
    let answer: Value = view
        .reader
        .run_script(range.first, &call, "look for lost timelines")
        .await?;
    let (beat, written): (String, i64) = read_value(answer)?;
    if written == 1 {
        return Ok(Beat::Written);
    }
    if beat.is_empty() {
        return Ok(Beat::Missing);
    }
    let beat = beat.parse().map_err(|_| {
        Error::new(
            ErrorKind::Corrupt,
            format!("the key {key} of Redis is no time: delete it"),
        )
    })?;
    Ok(Beat::Older(beat))
}
