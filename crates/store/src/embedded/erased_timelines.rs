//! The users whose timelines were erased: the keyspace `erased_timelines` of `records/`, user → nothing. It is not in
//! `timelines/`, because those can be made again from the ledger, which still has the deliveries.

use std::{collections::HashSet, sync::Arc};

use fjall::Keyspace;
use herald_model::UserKey;
use parking_lot::RwLock;

use super::database::{self, Database, map_err};
use crate::{Error, ErrorKind, Result};

/// Name of the keyspace.
pub(crate) const KEYSPACE: &str = "erased_timelines";

/// The users, of whom there are few.
pub(super) struct ErasedTimelines {
    database: Arc<Database>,
    rows: Keyspace,
    users: RwLock<HashSet<UserKey>>,
}

impl ErasedTimelines {
    pub(super) fn open(database: &Arc<Database>) -> Result<Self> {
        let rows = database.keyspace(KEYSPACE, database::options)?;
        let users = rows.iter().map(|row| decode(&row.key().map_err(map_err)?));
        Ok(Self {
            users: RwLock::new(users.collect::<Result<_>>()?),
            rows,
            database: Arc::clone(database),
        })
    }

    pub(super) fn contains(&self, user: UserKey) -> bool {
        self.users.read().contains(&user)
    }

    /// Adds a user. Durable on return.
    pub(super) fn add(&self, user: UserKey) -> Result<()> {
        let mut batch = self.database.batch();
        batch.insert(&self.rows, user.0.to_be_bytes(), []);
        futures::executor::block_on(self.database.commit(batch))?;
        self.users.write().insert(user);
        Ok(())
    }
}

fn decode(key: &[u8]) -> Result<UserKey> {
    let user = key.try_into().map_err(|_| {
        let message = "can't decode the key of a user whose timeline was erased";
        Error::new(ErrorKind::Corrupt, message)
    })?;
    Ok(UserKey(u32::from_be_bytes(user)))
}
