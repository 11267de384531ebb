//! Devices: one row per user with all devices, because a user has few.

pub(crate) mod change;
mod codec;
mod row;
mod storage_keys;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use fjall::{Keyspace, Readable};
use futures::{executor::block_on, future::join_all};
use herald_model::{
    Address, Device, DeviceId, Disabled, FailingStreak, Registration, UserKey, time::Timestamp,
};

pub(crate) use self::codec::Codec;
use self::{
    change::{Applied, Change},
    row::memory_bytes,
    storage_keys::{IN_USE, name_of},
};
use super::{
    blocking::read_blocking,
    cache::Cache,
    database::{self, Database, map_err},
    group_commit::GroupCommit,
};
use crate::{Error, ErrorKind, Result};

/// Maximum number of changes in a batch.
const BATCH_CHANGES_MAX: usize = 4_096;

/// Key in `device_counter` of the greatest device id in use.
pub(crate) const COUNTER: &[u8] = b"last";

/// Key in `device_counter` of the VAPID public key of the Web Push devices.
pub(crate) const VAPID_KEY: &[u8] = b"vapid";

/// The embedded engine's [`Devices`](crate::Devices).
pub(crate) struct EmbeddedDevices {
    tables: Arc<Tables>,
    writes: GroupCommit<(UserKey, Change), Applied>,
}

struct Tables {
    database: Arc<Database>,
    /// user → [`Rows`].
    devices: Keyspace,
    /// [`COUNTER`] and [`VAPID_KEY`].
    counter: Keyspace,
    cache: Cache<UserKey, Arc<[Device]>>,
    codec: Codec,
    /// Whether the current storage key is recorded, or there is none.
    is_key_recorded: AtomicBool,
}

impl EmbeddedDevices {
    /// Opens the devices, without those whose keys are lost. `cache_bytes_max` bounds their cache.
    /// [`Invalid`](ErrorKind::Invalid) if `codec` lacks a key that devices are encrypted with.
    pub(crate) fn open(database: &Arc<Database>, cache_bytes_max: u64, codec: Codec) -> Result<Self> {
        let tables = Arc::new(Tables {
            devices: database.keyspace("devices", database::options)?,
            counter: database.keyspace("device_counter", database::options)?,
            database: Arc::clone(database),
            cache: Cache::new("devices", cache_bytes_max, |_, devices: &Arc<[Device]>| {
                devices.iter().map(memory_bytes).sum()
            }),
            codec,
            is_key_recorded: AtomicBool::new(false),
        });
        tables.remove_lost()?;
        tables.check_keys()?;
        let mut last_id = tables.last_id()?;
        let shared = Arc::clone(&tables);
        let writes = GroupCommit::start(
            "devices",
            BATCH_CHANGES_MAX,
            |_| 1,
            move |jobs| shared.run(&mut last_id, jobs),
        )?;
        Ok(Self { tables, writes })
    }

    async fn change(&self, user: UserKey, change: Change) -> Result<Applied> {
        self.writes.run((user, change)).await
    }

    /// Runs a read of all devices on the blocking thread pool.
    async fn read_all<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Tables) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let tables = Arc::clone(&self.tables);
        read_blocking("the devices", move || read(&tables)).await
    }
}

impl Tables {
    fn last_id(&self) -> Result<u64> {
        let Some(last) = self.counter.get(COUNTER).map_err(map_err)? else {
            return Ok(0);
        };
        let last = (*last)
            .try_into()
            .map_err(|_| Error::new(ErrorKind::Corrupt, "can't decode the counter of device ids"))?;
        Ok(u64::from_be_bytes(last))
    }

    fn devices_of(&self, user: UserKey) -> Result<Vec<Device>> {
        match self.devices.get(user.0.to_be_bytes()).map_err(map_err)? {
            Some(row) => self.codec.decode(user, &row),
            None => Ok(Vec::new()),
        }
    }

    /// The number of devices of a user, some of which can be unreadable; one if even their number is.
    fn count_of(&self, user: UserKey) -> Result<u64> {
        match self.devices.get(user.0.to_be_bytes()).map_err(map_err) {
            Ok(row) => Ok(row.map_or(0, |row| Codec::count(&row))),
            Err(error) if error.kind() == ErrorKind::Corrupt => Ok(1),
            Err(error) => Err(error),
        }
    }

    /// The users with a Web Push device, ascending.
    fn web_push_users(&self) -> impl Iterator<Item = Result<UserKey>> {
        let rows = self.database.snapshot().iter(&self.devices);
        rows.filter_map(|row| {
            let read = || {
                let (key, row) = row.into_inner().map_err(map_err)?;
                let user = user_of(&key)?;
                Ok(Codec::has_web_push(user, &row)?.then_some(user))
            };
            read().transpose()
        })
    }

    /// Applies a batch of changes. `last_id` is the greatest device id in use. A user whose row can't be read fails only
    /// its own changes.
    fn run(&self, last_id: &mut u64, jobs: Vec<(UserKey, Change)>) -> Result<Vec<Result<Applied>>> {
        let last_id_before = *last_id;
        let mut users: HashMap<UserKey, Vec<Device>> = HashMap::new();
        let mut changed: HashSet<UserKey> = HashSet::new();
        let mut answers = Vec::with_capacity(jobs.len());
        for (user, change) in jobs {
            if matches!(change, Change::Erase) && !users.contains_key(&user) {
                let applied = self.count_of(user).map(|changed| Applied {
                    changed,
                    device: None,
                });
                if applied.as_ref().is_ok_and(|applied| applied.changed > 0) {
                    users.insert(user, Vec::new());
                    changed.insert(user);
                }
                answers.push(applied);
                continue;
            }
            let devices = match users.entry(user) {
                Entry::Occupied(loaded) => Ok(loaded.into_mut()),
                Entry::Vacant(missing) => self.devices_of(user).map(|devices| missing.insert(devices)),
            };
            let applied = devices.and_then(|devices| change::apply(change, user, devices, last_id));
            if applied.as_ref().is_ok_and(|applied| applied.changed > 0) {
                changed.insert(user);
            }
            answers.push(applied);
        }
        if changed.is_empty() {
            return Ok(answers);
        }
        let mut batch = self.database.batch();
        for user in &changed {
            let key = user.0.to_be_bytes();
            match users.get(user) {
                Some(devices) if !devices.is_empty() => {
                    batch.insert(&self.devices, key, self.codec.encode(devices)?);
                }
                _ => batch.remove(&self.devices, key),
            }
        }
        if *last_id != last_id_before {
            batch.insert(&self.counter, COUNTER, last_id.to_be_bytes());
        }
        let key = self.codec.keys().current();
        let key = key.filter(|_| !self.is_key_recorded.load(Ordering::Acquire));
        if let Some(key) = key {
            batch.insert(&self.counter, name_of(key), IN_USE);
        }
        let committed = block_on(self.database.commit(batch));
        for user in &changed {
            self.cache.invalidate(user);
        }
        committed?;
        self.is_key_recorded.store(true, Ordering::Release);
        Ok(answers)
    }
}

/// The user whose key is the key of a row.
fn user_of(key: &[u8]) -> Result<UserKey> {
    let key = key
        .try_into()
        .map_err(|_| Error::new(ErrorKind::Corrupt, "can't decode the key of a user's devices"))?;
    Ok(UserKey(u32::from_be_bytes(key)))
}

#[async_trait]
impl crate::Devices for EmbeddedDevices {
    async fn register(&self, user: UserKey, address: Address, now: Timestamp) -> Result<Device> {
        let change = Change::Register {
            address,
            keep_secret: false,
            now,
        };
        self.change(user, change).await?.registered()
    }

    async fn register_webhook(
        &self,
        user: UserKey,
        url: String,
        new_secret: Vec<u8>,
        now: Timestamp,
    ) -> Result<Device> {
        let change = Change::register_webhook(url, new_secret, now);
        self.change(user, change).await?.registered()
    }

    async fn rotate_secret(
        &self,
        user: UserKey,
        device: DeviceId,
        secret: Vec<u8>,
        previous_expires_at: Timestamp,
    ) -> Result<Option<Device>> {
        let change = Change::RotateSecret {
            device,
            secret,
            previous_expires_at,
        };
        Ok(self.change(user, change).await?.webhook())
    }

    async fn enable(&self, user: UserKey, device: DeviceId) -> Result<Option<Device>> {
        Ok(self.change(user, Change::Enable(device)).await?.device)
    }

    async fn unregister(&self, user: UserKey, device: DeviceId) -> Result<bool> {
        Ok(self.change(user, Change::Unregister(device)).await?.changed > 0)
    }

    async fn erase(&self, user: UserKey) -> Result<u64> {
        Ok(self.change(user, Change::Erase).await?.changed)
    }

    async fn unregister_current(&self, registration: Registration) -> Result<bool> {
        let change = Change::UnregisterCurrent(registration);
        Ok(self.change(registration.user, change).await?.changed > 0)
    }

    async fn disable(&self, registration: Registration, disabled: Disabled) -> Result<bool> {
        let change = Change::Disable(registration, disabled);
        Ok(self.change(registration.user, change).await?.changed > 0)
    }

    async fn record_failure(
        &self,
        registration: Registration,
        now: Timestamp,
    ) -> Result<Option<FailingStreak>> {
        let change = Change::RecordFailure(registration, now);
        let device = self.change(registration.user, change).await?.device;
        Ok(device.and_then(|device| device.failing))
    }

    async fn record_success(&self, registration: Registration) -> Result<()> {
        let change = Change::RecordSuccess(registration);
        self.change(registration.user, change).await.map(drop)
    }

    async fn of(&self, users: &[UserKey]) -> Result<Vec<Vec<Device>>> {
        users
            .iter()
            .map(|user| {
                let devices = self.tables.cache.get_or_load(*user, |user| {
                    self.tables.devices_of(*user).map(|d| Some(d.into()))
                })?;
                Ok(devices.as_deref().map(<[_]>::to_vec).unwrap_or_default())
            })
            .collect()
    }

    async fn has_web_push(&self) -> Result<bool> {
        self.read_all(|tables| Ok(tables.web_push_users().next().transpose()?.is_some()))
            .await
    }

    async fn vapid_key(&self) -> Result<Option<Vec<u8>>> {
        let key = self.tables.counter.get(VAPID_KEY).map_err(map_err)?;
        Ok(key.map(|key| key.to_vec()))
    }

    async fn set_vapid_key(&self, public_key: &[u8]) -> Result<()> {
        let mut batch = self.tables.database.batch();
        batch.insert(&self.tables.counter, VAPID_KEY, public_key);
        self.tables.database.commit(batch).await
    }

    async fn unregister_web_push(&self) -> Result<u64> {
        let users: Vec<UserKey> = self.read_all(|tables| tables.web_push_users().collect()).await?;
        let mut removed = 0;
        for users in users.chunks(BATCH_CHANGES_MAX) {
            let changes = users
                .iter()
                .map(|user| self.change(*user, Change::UnregisterWebPush));
            for applied in join_all(changes).await {
                match applied {
                    Ok(applied) => removed += applied.changed,
                    // Logged where it was read. Devices that can't be read get no pushes.
                    Err(error) if error.kind() == ErrorKind::Corrupt => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(removed)
    }
}
