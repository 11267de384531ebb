//! Waits for users: a watch can begin before anything has named its user, and a read never makes one.
//!
//! All awaited ids are looked up together, each second while there are any, so many watches of unknown ids cost the
//! store a few calls a second.

use std::{collections::HashMap, future::pending, sync::Arc, time::Duration};

use herald_model::{UserId, UserKey};
use herald_store::Users;
use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};

/// Interval of the lookups: what a watch adds to the latency of the first post of a new user.
const INTERVAL: Duration = Duration::from_secs(1);
/// Maximum number of ids in one lookup.
const LOOKUP_MAX: usize = 1_000;

/// The users that watches wait for; at most as many as there are watches. Clones share them.
#[derive(Clone)]
pub(crate) struct Arrivals(Arc<Inner>);

struct Inner {
    users: Arc<dyn Users>,
    awaited: Mutex<Awaited>,
}

/// *Invariant:* one task looks the ids up while there are any.
#[derive(Default)]
struct Awaited {
    ids: HashMap<UserId, watch::Sender<Option<UserKey>>>,
    is_looked_up: bool,
}

/// The arrival of one user.
pub(crate) struct Arrival(watch::Receiver<Option<UserKey>>);

impl Arrival {
    /// Waits until the user has a key. Cancel safe.
    pub(crate) async fn key(&mut self) -> UserKey {
        if let Ok(key) = self.0.wait_for(Option::is_some).await
            && let Some(key) = *key
        {
            return key;
        }
        // Only the end of the process drops the sender of an awaited user.
        pending().await
    }
}

impl Arrivals {
    pub(crate) fn new(users: Arc<dyn Users>) -> Self {
        Self(Arc::new(Inner {
            users,
            awaited: Mutex::default(),
        }))
    }

    /// Begins to wait for a user.
    pub(crate) fn of(&self, user: UserId) -> Arrival {
        let mut awaited = self.0.awaited.lock();
        if !std::mem::replace(&mut awaited.is_looked_up, true) {
            tokio::spawn(self.clone().look_up());
        }
        let sender = awaited
            .ids
            .entry(user)
            .or_insert_with(|| watch::Sender::new(None));
        Arrival(sender.subscribe())
    }

    /// Looks up the awaited users until there are none.
    async fn look_up(self) {
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let ids: Vec<UserId> = {
                let mut awaited = self.0.awaited.lock();
                awaited.ids.retain(|_, sender| sender.receiver_count() > 0);
                if awaited.ids.is_empty() {
                    awaited.is_looked_up = false;
                    return;
                }
                awaited.ids.keys().cloned().collect()
            };
            for ids in ids.chunks(LOOKUP_MAX) {
                match self.0.users.find(ids).await {
                    Ok(keys) => self.announce(ids, &keys),
                    Err(error) => {
                        tracing::debug!(%error, "users that watches wait for not looked up; retrying");
                    }
                }
            }
        }
    }

    fn announce(&self, ids: &[UserId], keys: &[Option<UserKey>]) {
        let mut awaited = self.0.awaited.lock();
        for (id, key) in ids.iter().zip(keys).filter(|(_, key)| key.is_some()) {
            if let Some(sender) = awaited.ids.remove(id) {
                sender.send_replace(*key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use async_trait::async_trait;
    use herald_store::{KeyUse, Result};

    use super::*;

    /// Every user has the key 1. Counts the lookups.
    #[derive(Default)]
    struct Known(AtomicU64);

    #[async_trait]
    impl Users for Known {
        async fn intern(&self, _: &[UserId]) -> Result<Vec<UserKey>> {
            unreachable!("a read makes no user")
        }

        async fn find(&self, ids: &[UserId]) -> Result<Vec<Option<UserKey>>> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Ok(ids
                .iter()
                .map(|id| (id.as_str() != "nobody").then_some(UserKey(1)))
                .collect())
        }

        async fn ids(&self, _: &[UserKey]) -> Result<Vec<Option<UserId>>> {
            unreachable!("no key is read")
        }

        async fn last_key(&self) -> Result<Option<UserKey>> {
            unreachable!("no key is read")
        }

        fn cached_key(&self, _: &UserId) -> Option<UserKey> {
            None
        }

        fn use_keys(&self) -> KeyUse {
            KeyUse::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn all_ids_are_looked_up_once_a_second_by_one_task() {
        let known = Arc::new(Known::default());
        let arrivals = Arrivals::new(known.clone());
        // The last awaited user arrives again and again, before the next lookup would see that there is none.
        for number in 0..10 {
            let user = UserId::new(format!("user-{number}")).unwrap();
            assert_eq!(arrivals.of(user).key().await, UserKey(1));
        }
        let nobody = arrivals.of(UserId::new("nobody").unwrap());
        let before = known.0.load(Ordering::Relaxed);
        tokio::time::sleep(INTERVAL * 10).await;
        assert!(known.0.load(Ordering::Relaxed) - before <= 11);
        drop(nobody);
    }
}
