//! Preferences: one row per user, absent if they are the defaults.

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use fjall::Keyspace;
use futures::executor::block_on;
use herald_model::{Preferences, Recipients, UserKey};
use prost::Message;

use super::{
    cache::Cache,
    database::{self, Database, map_err},
    group_commit::GroupCommit,
};
use crate::{Error, ErrorKind, MUTED_AUTHORS_MAX, PreferencesChange, Result};

/// Maximum number of changes in a batch.
const BATCH_CHANGES_MAX: usize = 4_096;

/// The embedded engine's [`Preferences`](crate::Preferences).
pub(crate) struct EmbeddedPreferences {
    tables: Arc<Tables>,
    writes: GroupCommit<(UserKey, Change), Preferences>,
}

/// A change of one user's preferences.
enum Change {
    Update(PreferencesChange),
    /// Removes the row, also if it can't be decoded.
    Erase,
}

struct Tables {
    database: Arc<Database>,
    /// user → [`Row`].
    preferences: Keyspace,
    cache: Cache<UserKey, Arc<Preferences>>,
}

/// The stored preferences of a user.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Row {
    #[prost(bool, tag = "1")]
    push_disabled: bool,
    /// Encoded as [`Recipients`].
    #[prost(bytes = "bytes", tag = "2")]
    muted: bytes::Bytes,
    #[prost(uint32, tag = "3")]
    muted_count: u32,
}

impl EmbeddedPreferences {
    /// Opens the preferences. `cache_bytes_max` bounds their cache.
    pub(crate) fn open(database: &Arc<Database>, cache_bytes_max: u64) -> Result<Self> {
        let tables = Arc::new(Tables {
            preferences: database.keyspace("preferences", database::options)?,
            database: Arc::clone(database),
            cache: Cache::new(
                "preferences",
                cache_bytes_max,
                |_, preferences: &Arc<Preferences>| size_of::<Preferences>() + 8 * preferences.muted.len(),
            ),
        });
        let shared = Arc::clone(&tables);
        let writes = GroupCommit::start(
            "preferences",
            BATCH_CHANGES_MAX,
            |_| 1,
            move |jobs| shared.run(jobs),
        )?;
        Ok(Self { tables, writes })
    }
}

impl Tables {
    fn preferences_of(&self, user: UserKey) -> Result<Preferences> {
        let Some(bytes) = self.preferences.get(user.0.to_be_bytes()).map_err(map_err)? else {
            return Ok(Preferences::default());
        };
        decode(user, &bytes)
    }

    /// Applies a batch of changes. A user whose row can't be read fails only its own changes.
    fn run(&self, jobs: Vec<(UserKey, Change)>) -> Result<Vec<Result<Preferences>>> {
        let mut users: HashMap<UserKey, Preferences> = HashMap::new();
        let mut answers = Vec::with_capacity(jobs.len());
        for (user, change) in jobs {
            let after = match change {
                Change::Erase => Ok(Preferences::default()),
                Change::Update(change) => {
                    let before = users.get(&user).cloned();
                    let before = before.map_or_else(|| self.preferences_of(user), Ok);
                    before.and_then(|before| apply_change(user, before, change))
                }
            };
            answers.push(after.inspect(|after| {
                users.insert(user, after.clone());
            }));
        }
        if users.is_empty() {
            return Ok(answers);
        }
        let mut batch = self.database.batch();
        for (user, preferences) in &users {
            let key = user.0.to_be_bytes();
            if *preferences == Preferences::default() {
                batch.remove(&self.preferences, key);
            } else {
                batch.insert(
                    &self.preferences,
                    key,
                    Row::from_preferences(preferences).encode_to_vec(),
                );
            }
        }
        let committed = block_on(self.database.commit(batch));
        for user in users.keys() {
            self.cache.invalidate(user);
        }
        committed.map(|()| answers)
    }
}

/// Decodes the row of `user`.
pub(crate) fn decode(user: UserKey, row: &[u8]) -> Result<Preferences> {
    let preferences = Row::decode(row).ok().and_then(Row::into_preferences);
    preferences.ok_or_else(|| {
        Error::new(
            ErrorKind::Corrupt,
            format!("can't decode the preferences of user {user}"),
        )
    })
}

/// The preferences of `user` after a change.
///
/// [`LimitExceeded`](ErrorKind::LimitExceeded) if they would have more than [`MUTED_AUTHORS_MAX`] muted authors.
pub(crate) fn apply_change(
    user: UserKey,
    mut preferences: Preferences,
    change: PreferencesChange,
) -> Result<Preferences> {
    preferences.push_enabled = change.push_enabled.unwrap_or(preferences.push_enabled);
    if let Some(muted) = change.muted {
        preferences.muted = muted.into_iter().collect();
    }
    preferences.muted.extend(change.mute);
    for author in &change.unmute {
        preferences.muted.remove(author);
    }
    if preferences.muted.len() > MUTED_AUTHORS_MAX {
        return Err(Error::new(
            ErrorKind::LimitExceeded,
            format!("user {user} can't mute more than {MUTED_AUTHORS_MAX} authors: unmute some first"),
        ));
    }
    Ok(preferences)
}

impl Row {
    pub(crate) fn from_preferences(preferences: &Preferences) -> Self {
        let muted = Recipients::from_sorted(preferences.muted.iter().copied());
        Self {
            push_disabled: !preferences.push_enabled,
            muted: muted.as_bytes().clone(),
            muted_count: muted.len(),
        }
    }

    pub(crate) fn into_preferences(self) -> Option<Preferences> {
        let muted = Recipients::decode(self.muted, self.muted_count).ok()?;
        Some(Preferences {
            push_enabled: !self.push_disabled,
            muted: muted.iter().collect(),
        })
    }
}

#[async_trait]
impl crate::Preferences for EmbeddedPreferences {
    async fn of(&self, users: &[UserKey]) -> Result<Vec<Preferences>> {
        users
            .iter()
            .map(|user| {
                let preferences = self.tables.cache.get_or_load(*user, |user| {
                    self.tables.preferences_of(*user).map(|p| Some(p.into()))
                })?;
                Ok(preferences.as_deref().cloned().unwrap_or_default())
            })
            .collect()
    }

    async fn update(&self, user: UserKey, change: &PreferencesChange) -> Result<Preferences> {
        self.writes.run((user, Change::Update(change.clone()))).await
    }

    async fn erase(&self, user: UserKey) -> Result<()> {
        self.writes.run((user, Change::Erase)).await.map(drop)
    }
}
