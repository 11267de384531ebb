//! The caches of users of all processes: a user whom one process erases is forgotten by all of them.
//!
//! A process that caches users has a row in `herald.users_caches`. Every second it reads the erasures that are new to
//! it and removes their users from its cache; once no call uses their keys any more ([`Uses`]), its row says that it
//! has seen them. An erasure knows that every process has forgotten its user once each row has seen it or has ended. A process uses its cache for [`LEASE`] after
//! the begin of the round in which it last wrote its row, and the row ends later than that.
//!
//! *Invariant:* a row is committed before the lease begins, and nothing that was read before is cached. So an erasure
//! whose check misses the row is committed before each read that the lease caches.
//!
//! *Assumption:* the clock of the database is not set forward by more than [`margin`] during a lease, neither by hand
//! nor by a failover to another server. The clock of a process counts the time for which its machine is suspended: else
//! the process goes on with its cache after the row has ended.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use herald_model::UserId;
use tokio::time::{MissedTickBehavior, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Attempt, Postgres, keys, leases::microseconds};
use crate::{
    Error, ErrorKind, Result,
    users_cache::{UsersCache, Uses},
};

/// Time for which a process uses its cache without being able to write its row.
pub(super) const LEASE: Duration = Duration::from_mins(1);

/// Interval between two readings of the new erasures.
const READ_INTERVAL: Duration = Duration::from_secs(1);

/// Erasures read at once.
const PAGE: usize = 1_000;

/// Time-out of the last round at the end, and of the removal of the row.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// Time between the end of a lease and that of its row: for clocks that run at other speeds.
fn margin(lease: Duration) -> Duration {
    lease / 12
}

/// The newest erasure that was read; 0 and 0 if there was none. Its user shows that it is still the same erasure: after
/// a failover to a standby that was behind, ids are used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    erasure: i64,
    user: i64,
}

/// Keeps the cache of a process up to date.
pub(super) struct CacheKeeper {
    postgres: Postgres,
    cache: Arc<UsersCache>,
    process: String,
    lease: Duration,
    seen: Option<Seen>,
    /// Newly seen erasures, oldest first, and the calls that can use the keys of their users still.
    in_use: VecDeque<(Seen, Uses)>,
    /// The newest erasure whose user's key no call uses.
    unused: Option<Seen>,
    /// Begin of the last round that wrote the row, and what it wrote.
    recorded: Option<(Instant, Seen)>,
}

impl CacheKeeper {
    pub(super) fn new(postgres: &Postgres, cache: &Arc<UsersCache>, lease: Duration) -> Self {
        Self {
            postgres: postgres.clone(),
            cache: Arc::clone(cache),
            process: Uuid::new_v4().to_string(),
            lease,
            seen: None,
            in_use: VecDeque::new(),
            unused: None,
            recorded: None,
        }
    }

    /// Runs rounds until it is stopped; then the cache is not used any more. Failures are logged once they have cost
    /// the lease.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(READ_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let started = Instant::now();
        let mut is_reported = false;
        let rounds = async {
            while stop.run_until_cancelled(ticks.tick()).await.is_some() {
                match self.round().await {
                    Ok(()) if is_reported => {
                        is_reported = false;
                        tracing::info!("users are cached again");
                    }
                    Err(error)
                        if !is_reported && !self.cache.has_lease() && started.elapsed() >= self.lease =>
                    {
                        is_reported = true;
                        tracing::warn!(
                            %error,
                            "users are not cached: every lookup reads the database; this process can't keep its row of \
                             herald.users_caches up to date; retrying"
                        );
                    }
                    Ok(()) | Err(_) => {}
                }
            }
        };
        // A round that was cancelled could write its row after the row was removed.
        let stopped = async {
            stop.cancelled().await;
            tokio::time::sleep(STOP_TIMEOUT).await;
        };
        tokio::select! {
            () = rounds => {}
            () = stopped => {}
        }
        self.cache.end_lease();
        if self.recorded.is_some() {
            // A row that stays ends by itself.
            let _ = timeout(STOP_TIMEOUT, self.remove()).await;
        }
    }

    /// Forgets the users of new erasures. Writes the row, and extends the lease, if there were some or if it is time.
    pub(super) async fn round(&mut self) -> Result<()> {
        let begun = Instant::now();
        let newest = self.forget_erased().await?;
        let Some(seen) = self.unused_up_to(newest) else {
            return Ok(());
        };
        let is_recorded = self.recorded.is_some_and(|(at, recorded)| {
            recorded == seen && begun.saturating_duration_since(at) < self.lease / 6
        });
        if !is_recorded {
            self.record(seen).await?;
            self.cache.extend_lease(begun + self.lease);
            self.recorded = Some((begun, seen));
        }
        Ok(())
    }

    /// The newest seen erasure whose user's key no call uses any more; `None` if there is none yet.
    fn unused_up_to(&mut self, seen: Seen) -> Option<Seen> {
        let last = self.in_use.back().map(|(last, _)| *last).or(self.unused);
        if last != Some(seen) {
            self.in_use.push_back((seen, self.cache.uses()));
        }
        while let Some((seen, _)) = self.in_use.pop_front_if(|(_, uses)| uses.have_ended()) {
            self.unused = Some(seen);
        }
        self.unused
    }

    async fn forget_erased(&mut self) -> Result<Seen> {
        loop {
            let Some(seen) = self.seen else {
                let newest = self.newest().await?;
                self.cache.forget_all();
                self.seen = Some(newest);
                return Ok(newest);
            };
            let erased = self.erased_from(seen).await?;
            let is_last_page = erased.len() < PAGE;
            let mut erased = erased.into_iter().peekable();
            if seen.erasure > 0 && erased.next_if(|(erasure, ..)| *erasure == seen).is_none() {
                self.seen = None;
                continue;
            }
            for (erasure, id) in erased {
                match id {
                    Some(id) => self.cache.forget(&id, keys::user(erasure.user)?),
                    // The erasure is complete: who it was is not known any more.
                    None => self.cache.forget_all(),
                }
                self.seen = Some(erasure);
            }
            if is_last_page {
                return Ok(self.seen.unwrap_or(seen));
            }
        }
    }

    async fn newest(&self) -> Result<Seen> {
        const NEWEST: &str = "SELECT id, user_key FROM herald.erasures ORDER BY id DESC LIMIT 1";
        let newest: Option<(i64, i64)> = self
            .postgres
            .call("read the newest erasure", || async {
                Ok(sqlx::query_as(NEWEST)
                    .fetch_optional(self.postgres.pool())
                    .await?)
            })
            .await?;
        let (erasure, user) = newest.unwrap_or_default();
        Ok(Seen { erasure, user })
    }

    /// The erasures from one on. Their ids ascend in the order of their commits, because each is drawn under the lock
    /// of the counter of users.
    async fn erased_from(&self, seen: Seen) -> Result<Vec<(Seen, Option<UserId>)>> {
        const ERASED: &str =
            "SELECT id, user_key, user_id FROM herald.erasures WHERE id >= $1 ORDER BY id LIMIT $2";
        let rows: Vec<(i64, i64, Option<String>)> = self
            .postgres
            .call("read the new erasures", || async {
                let erased = sqlx::query_as(ERASED).bind(seen.erasure).bind(keys::limit(PAGE));
                Ok(erased.fetch_all(self.postgres.pool()).await?)
            })
            .await?;
        rows.into_iter()
            .map(|(erasure, user, id)| {
                let id = id.map(UserId::from_stored).transpose().map_err(|_| {
                    let message = format!("the id of the user of erasure {erasure} is malformed");
                    Error::new(ErrorKind::Corrupt, message)
                })?;
                Ok((Seen { erasure, user }, id))
            })
            .collect()
    }

    /// Writes the row, and removes those of processes that ended long ago.
    async fn record(&self, seen: Seen) -> Result<()> {
        const RECORD: &str = "
            WITH ended AS (
                DELETE FROM herald.users_caches WHERE process IN (
                    SELECT process FROM herald.users_caches
                    WHERE ends_at < clock_timestamp() - interval '1 hour' AND process <> $1
                    FOR UPDATE SKIP LOCKED
                )
            )
            INSERT INTO herald.users_caches (process, seen, ends_at)
            VALUES ($1, $2, clock_timestamp() + $3 * interval '1 microsecond')
            ON CONFLICT (process) DO UPDATE SET seen = excluded.seen, ends_at = excluded.ends_at";
        let duration = microseconds(self.lease + margin(self.lease));
        self.postgres
            .call("record which erasures this process has seen", || async {
                let record = sqlx::query(RECORD)
                    .bind(&self.process)
                    .bind(seen.erasure)
                    .bind(duration);
                record.execute(self.postgres.pool()).await?;
                Ok(())
            })
            .await
    }

    async fn remove(&self) -> Attempt<()> {
        sqlx::query("DELETE FROM herald.users_caches WHERE process = $1")
            .bind(&self.process)
            .execute(self.postgres.pool())
            .await?;
        Ok(())
    }
}
