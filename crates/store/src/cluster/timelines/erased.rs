//! Users whose timelines were erased. PostgreSQL has their list, and each process reads what is new of it in its
//! samples.
//!
//! The records from which a timeline is made still have the deliveries of an erased user, so these rules keep them
//! away:
//!
//! - An erasure is recorded, then the timeline is removed from Redis. Its field stays, partial and without posts, and
//!   the body gets a new epoch. A rebuild looks for the record after it has read the epoch, so one that has not seen
//!   the record is refused by its write, and begins anew.
//! - A process that knows the user shows nothing, and leaves the user's entries out of merges. A process that does not
//!   know the user finds the partial field, rebuilds the timeline, and learns of the erasure by that.

use std::collections::HashSet;

use herald_model::UserKey;

use super::{
    View,
    field::{Field, State},
    merge::{BLOCKS_MAX, merge_with, read_bucket},
    read::timeline,
    state::ViewState,
};
use crate::{Error, ErrorKind, Result, cluster::postgres::keys, embedded::timelines::pair};

/// Overlap of the times that two samples read, 10 minutes: a transaction can be committed after one with a later time.
const OVERLAP_US: i64 = 600_000_000;

/// Maximum number of attempts at a bucket that something else writes to, such as a merge.
const ATTEMPTS_MAX: u32 = 100;

/// The users whose timelines this process knows to be erased.
#[derive(Default)]
pub(super) struct ErasedUsers {
    users: HashSet<UserKey>,
    /// When the newest of them was erased, by PostgreSQL's clock.
    newest: i64,
}

impl ErasedUsers {
    pub(super) fn contains(&self, user: UserKey) -> bool {
        self.users.contains(&user)
    }
}

/// Reads the users whose timelines were erased since the last sample.
pub(super) async fn sample(view: &View) -> Result<()> {
    let since = view.erased.read().newest.saturating_sub(OVERLAP_US);
    let found = view.state.erased_since(since).await?;
    let mut erased = view.erased.write();
    for (user, at) in found {
        erased.users.insert(user);
        erased.newest = erased.newest.max(at);
    }
    Ok(())
}

/// Whether the timeline of a user is erased, as PostgreSQL knows.
pub(super) async fn is_erased(view: &View, user: UserKey) -> Result<bool> {
    if view.is_erased(user) {
        return Ok(true);
    }
    let is_erased = view.state.is_erased(user).await?;
    if is_erased {
        view.erased.write().users.insert(user);
    }
    Ok(is_erased)
}

/// Erases a timeline, and returns the number of entries that it had.
pub(super) async fn erase(view: &View, user: UserKey) -> Result<u64> {
    let removed = timeline(view, &view.writer, user).await?.posts.len();
    view.state.erase(user).await?;
    view.erased.write().users.insert(user);
    can_fail!("store.timelines.erase");
    let bucket = pair::group(user);
    for _ in 0..ATTEMPTS_MAX {
        let read = read_bucket(view, bucket).await?;
        let is_all = read.blocks() < BLOCKS_MAX;
        if merge_with(view, bucket, read, Some(user)).await? && is_all {
            return Ok(removed as u64);
        }
        tokio::task::yield_now().await;
    }
    Err(Error::new(
        ErrorKind::Unavailable,
        "can't erase a timeline: other processes write to its bucket all the time",
    ))
}

/// The field of an erased timeline.
pub(super) fn nothing() -> Field {
    Field {
        state: State::Partial,
        posts: Vec::new(),
    }
}

impl ViewState {
    /// Records that the timeline of a user is erased, and removes what is known of the user's reads.
    async fn erase(&self, user: UserKey) -> Result<()> {
        const ERASE: &str =
            "INSERT INTO herald.timelines_erased (user_key) VALUES ($1) ON CONFLICT DO NOTHING";
        const ACTIVITY: &str = "DELETE FROM herald.timelines_activity WHERE user_key = $1";
        const DROWNING: &str = "DELETE FROM herald.timelines_drowning WHERE user_key = $1";
        self.postgres()
            .call("record that a timeline is erased", async || {
                let mut transaction = self.postgres().begin().await?;
                for sql in [ERASE, ACTIVITY, DROWNING] {
                    sqlx::query(sql)
                        .bind(i64::from(user.0))
                        .execute(&mut *transaction)
                        .await?;
                }
                Ok(transaction.commit().await?)
            })
            .await
    }

    async fn is_erased(&self, user: UserKey) -> Result<bool> {
        const SQL: &str = "SELECT EXISTS (SELECT FROM herald.timelines_erased WHERE user_key = $1)";
        self.postgres()
            .call("look for an erased timeline", async || {
                let erased = sqlx::query_scalar(SQL)
                    .bind(i64::from(user.0))
                    .fetch_one(self.postgres().pool());
                Ok(erased.await?)
            })
            .await
    }

    /// The users who were erased at a time of PostgreSQL's clock or later, with the time of each.
    async fn erased_since(&self, since: i64) -> Result<Vec<(UserKey, i64)>> {
        const SQL: &str = "SELECT user_key, erased_at FROM herald.timelines_erased WHERE erased_at >= $1";
        let rows: Vec<(i64, i64)> = self
            .postgres()
            .call("read the erased timelines", async || {
                Ok(sqlx::query_as(SQL)
                    .bind(since)
                    .fetch_all(self.postgres().pool())
                    .await?)
            })
            .await?;
        rows.into_iter()
            .map(|(user, at)| Ok((keys::user(user)?, at)))
            .collect()
    }
}
