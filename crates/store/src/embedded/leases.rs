//! Leases. Who holds which is in memory: the lock on the data directory keeps a second process out, so all leases end
//! with the process. The tokens are on disk (`leases`: `next_token` → `u64`), so that none is used again.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use fjall::Keyspace;
use parking_lot::Mutex;

use super::database::{self, Committed, Database, map_err};
use crate::{Error, ErrorKind, Fence, Result};

/// Key in `leases` of the next token.
pub(crate) const NEXT_TOKEN: &str = "next_token";
/// Number of leases in memory at which those that ended long ago are forgotten.
const HELD_MAX: usize = 1_024;
/// Time after its end for which a lease can still be renewed.
const ENDED_KEEP: Duration = Duration::from_hours(1);

/// The embedded engine's [`Leases`](crate::Leases).
pub(crate) struct EmbeddedLeases {
    database: Arc<Database>,
    rows: Keyspace,
    state: Mutex<State>,
}

struct State {
    next_token: u64,
    held: HashMap<String, Held>,
}

struct Held {
    holder: String,
    token: u64,
    ends_at: Instant,
}

impl EmbeddedLeases {
    /// Opens the leases; none is held.
    pub(crate) fn open(database: &Arc<Database>) -> Result<Self> {
        let rows = database.keyspace("leases", database::options)?;
        let next_token =
            match rows.get(NEXT_TOKEN).map_err(map_err)? {
                None => 1,
                Some(token) => u64::from_be_bytes((*token).try_into().map_err(|_| {
                    Error::new(ErrorKind::Corrupt, "can't decode the next token of the leases")
                })?),
            };
        Ok(Self {
            database: Arc::clone(database),
            rows,
            state: Mutex::new(State {
                next_token,
                held: HashMap::new(),
            }),
        })
    }

    /// Checks that a lease has not ended.
    ///
    /// # Errors
    /// [`ErrorKind::Fenced`] if it has ended or has another holder.
    pub(crate) fn check(&self, fence: &Fence) -> Result<()> {
        let state = self.state.lock();
        match state.held.get(&fence.name) {
            Some(held) if held.token == fence.token && Instant::now() < held.ends_at => Ok(()),
            _ => Err(fenced(fence)),
        }
    }

    /// Takes a lease and returns its token, with the write that keeps the token from being used again.
    fn take(&self, name: &str, holder: &str, duration: Duration) -> Result<Option<(u64, Committed)>> {
        let mut state = self.state.lock();
        let now = Instant::now();
        if let Some(held) = state.held.get(name)
            && held.holder != holder
            && now < held.ends_at
        {
            return Ok(None);
        }
        let token = state.next_token;
        let mut batch = self.database.batch();
        batch.insert(&self.rows, NEXT_TOKEN, (token + 1).to_be_bytes());
        let committed = self.database.apply(batch)?;
        state.next_token += 1;
        if state.held.len() >= HELD_MAX {
            state.held.retain(|_, held| now < held.ends_at + ENDED_KEEP);
        }
        let held = Held {
            holder: holder.into(),
            token,
            ends_at: now + duration,
        };
        state.held.insert(name.into(), held);
        Ok(Some((token, committed)))
    }
}

fn fenced(fence: &Fence) -> Error {
    Error::new(
        ErrorKind::Fenced,
        format!("holding {} of the lease {} has ended", fence.token, fence.name),
    )
}

#[async_trait]
impl crate::Leases for EmbeddedLeases {
    async fn acquire(&self, name: &str, holder: &str, duration: Duration) -> Result<Option<Fence>> {
        let Some((token, committed)) = self.take(name, holder, duration)? else {
            return Ok(None);
        };
        committed.await?;
        Ok(Some(Fence {
            name: name.into(),
            token,
        }))
    }

    async fn renew(&self, fence: &Fence, duration: Duration) -> Result<()> {
        let mut state = self.state.lock();
        match state.held.get_mut(&fence.name) {
            Some(held) if held.token == fence.token => {
                held.ends_at = Instant::now() + duration;
                Ok(())
            }
            _ => Err(fenced(fence)),
        }
    }

    async fn release(&self, fence: &Fence) -> Result<()> {
        let mut state = self.state.lock();
        if state
            .held
            .get(&fence.name)
            .is_some_and(|held| held.token == fence.token)
        {
            state.held.remove(&fence.name);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Leases, embedded::testing::Store};

    const LONG: Duration = Duration::from_mins(10);

    fn open(store: &Store) -> EmbeddedLeases {
        EmbeddedLeases::open(store.database()).unwrap()
    }

    #[tokio::test]
    async fn a_lease_has_one_holder_and_each_holding_a_greater_token() {
        let store = Store::new();
        let leases = open(&store);
        let first = leases.acquire("audit", "a", LONG).await.unwrap().unwrap();
        assert_eq!(leases.acquire("audit", "b", LONG).await.unwrap(), None);
        let other = leases.acquire("redrive", "b", LONG).await.unwrap().unwrap();
        leases.check(&first).unwrap();
        leases.check(&other).unwrap();

        let again = leases.acquire("audit", "a", LONG).await.unwrap().unwrap();
        assert!(again.token > first.token);
        assert_eq!(leases.check(&first).unwrap_err().kind(), ErrorKind::Fenced);
        let refused = leases.renew(&first, LONG).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Fenced);
        leases.release(&first).await.unwrap();
        leases.check(&again).unwrap();

        leases.release(&again).await.unwrap();
        assert_eq!(leases.check(&again).unwrap_err().kind(), ErrorKind::Fenced);
        let refused = leases.renew(&again, LONG).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Fenced);
        let next = leases.acquire("audit", "b", LONG).await.unwrap().unwrap();
        assert!(next.token > again.token);
    }

    #[tokio::test]
    async fn an_ended_lease_is_renewed_unless_it_has_a_newer_holder() {
        let store = Store::new();
        let leases = open(&store);
        let first = leases
            .acquire("audit", "a", Duration::ZERO)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(leases.check(&first).unwrap_err().kind(), ErrorKind::Fenced);
        leases.renew(&first, LONG).await.unwrap();
        leases.check(&first).unwrap();
        leases.renew(&first, Duration::ZERO).await.unwrap();
        let second = leases.acquire("audit", "b", LONG).await.unwrap().unwrap();
        let refused = leases.renew(&first, LONG).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Fenced);
        leases.check(&second).unwrap();
    }

    #[tokio::test]
    async fn a_restart_ends_all_leases_and_uses_no_token_again() {
        let mut store = Store::new();
        let leases = open(&store);
        let before = leases.acquire("audit", "a", LONG).await.unwrap().unwrap();
        drop(leases);
        store.reopen();
        let leases = open(&store);
        assert_eq!(leases.check(&before).unwrap_err().kind(), ErrorKind::Fenced);
        let after = leases.acquire("audit", "b", LONG).await.unwrap().unwrap();
        assert!(after.token > before.token);
    }

    #[tokio::test]
    async fn leases_that_ended_long_ago_take_no_memory() {
        let store = Store::new();
        let leases = open(&store);
        let held = leases.acquire("audit", "a", LONG).await.unwrap().unwrap();
        let past = Instant::now().checked_sub(2 * ENDED_KEEP).unwrap();
        for number in 0..2 * HELD_MAX {
            let name = format!("analytics/{number}");
            leases.acquire(&name, "a", LONG).await.unwrap().unwrap();
            leases.state.lock().held.get_mut(&name).unwrap().ends_at = past;
        }
        assert!(leases.state.lock().held.len() <= HELD_MAX);
        leases.check(&held).unwrap();
    }
}
