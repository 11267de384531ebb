//! Repairs timelines after a loss: delivers again what was delivered since.
//!
//! One process repairs at a time, the holder of a lease. A repair changes nothing that is right, so two holders would
//! only do it twice, and no write needs the lease's fence.

use std::{sync::Arc, time::Duration};

use herald_model::{Recipients, UserKey};

use super::{View, read::Need, rebuild::rebuild, records::Redelivery, state::Loss};
use crate::{Fence, Leases, Result, embedded::timelines::pair};

/// Name of the lease.
const LEASE: &str = "timelines-repair";

/// Duration of the lease. A process that died is replaced within it.
const LEASE_DURATION: Duration = Duration::from_secs(30);

/// Interval at which open losses are looked for.
const INTERVAL: Duration = Duration::from_secs(1);

/// Interval at which the drowning users are counted.
const COUNT_INTERVAL: Duration = Duration::from_hours(1);

/// Maximum number of users whose followed authors are counted in one statement.
const COUNTED_USERS: i64 = 20_000;

/// Difference of the clocks of workers and PostgreSQL that a repair tolerates, with the five seconds within which a
/// repeated delivery does not move the time in the ledger.
const CLOCK_MARGIN_US: i64 = 10_000_000;

/// Time from the record of a backfill to its delivery that a repair tolerates.
const BACKFILL_MARGIN_US: i64 = 3_600_000_000;

/// Repairs losses, and counts drowning users, until the task is aborted.
pub(super) async fn run(view: Arc<View>, leases: Arc<dyn Leases>, holder: String) {
    let mut counted = None;
    loop {
        let count_due = view.config.following_max > 0
            && counted.is_none_or(|at: tokio::time::Instant| at.elapsed() > COUNT_INTERVAL);
        if count_due || !view.monitor.open().is_empty() {
            match work(&view, leases.as_ref(), &holder, count_due).await {
                Ok(true) if count_due => counted = Some(tokio::time::Instant::now()),
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "could not repair timelines");
                    tokio::time::sleep(10 * INTERVAL).await;
                }
            }
        }
        // Those who don't get the lease look again later.
        let jitter = view.jitter_ms(500);
        tokio::time::sleep(INTERVAL + Duration::from_millis(jitter)).await;
    }
}

/// Does what is due if no other process does. Returns whether this process had the lease.
async fn work(view: &View, leases: &dyn Leases, holder: &str, count: bool) -> Result<bool> {
    let Some(fence) = leases.acquire(LEASE, holder, LEASE_DURATION).await? else {
        return Ok(false);
    };
    let working = async {
        for loss in view.state.open_losses().await? {
            repair(view, &loss).await?;
        }
        view.monitor.set_open(view.state.open_losses().await?);
        if count {
            count_drowning(view).await?;
        }
        Ok(true)
    };
    let outcome = tokio::select! {
        outcome = working => outcome,
        lost = keep(leases, &fence) => lost.map(|()| false),
    };
    leases.release(&fence).await?;
    outcome
}

/// Extends the lease until that fails.
async fn keep(leases: &dyn Leases, fence: &Fence) -> Result<()> {
    loop {
        tokio::time::sleep(LEASE_DURATION / 3).await;
        leases.renew(fence, LEASE_DURATION).await?;
    }
}

/// Delivers again what was delivered since a loss, and rebuilds the timelines that were rebuilt since for users who came
/// back.
pub(super) async fn repair(view: &View, loss: &Loss) -> Result<()> {
    let since = loss.since - CLOCK_MARGIN_US;
    let deliver = |redeliveries| deliver_again(view, loss, redeliveries);
    view.records.delivered_since(since, deliver).await?;
    view.records
        .backfilled_since(loss.since - BACKFILL_MARGIN_US, deliver)
        .await?;
    for user in view.state.returned_since(since).await? {
        if loss.range.contains(view.slot(user)) {
            rebuild(view, user, Need::Return).await?;
        }
    }
    view.state.close_loss(loss.id).await?;
    tracing::info!(loss = loss.id, "repaired timelines after a loss of Redis");
    Ok(())
}

async fn deliver_again(view: &View, loss: &Loss, redeliveries: Vec<Redelivery>) -> Result<()> {
    let mut waiting = Vec::new();
    for Redelivery { post, recipients } in redeliveries {
        let mut bucket = None;
        let mut lost = false;
        let of_shard = |user: &UserKey| {
            if bucket != Some(pair::group(*user)) {
                bucket = Some(pair::group(*user));
                lost = loss.range.contains(view.slot(*user));
            }
            lost
        };
        let recipients = recipients.iter().filter(|user| !view.is_erased(*user));
        let recipients = Recipients::from_sorted(recipients.filter(of_shard));
        if post.0 >= view.oldest() && !recipients.is_empty() {
            waiting.push(view.collector.put(pair::check(post)?, &recipients).await?);
        }
    }
    for accepted in waiting {
        accepted.readable.await?;
        accepted.durable.await?;
    }
    Ok(())
}

async fn count_drowning(view: &View) -> Result<()> {
    let last = view.state.last_follower().await?.unwrap_or(0);
    let mut after = -1;
    while after < last {
        let up_to = after + COUNTED_USERS;
        view.state
            .count_drowning(after, up_to, view.config.following_max)
            .await?;
        after = up_to;
    }
    Ok(())
}
