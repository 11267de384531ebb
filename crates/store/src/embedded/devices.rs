//! Devices: one row per user with all devices, because a user has few.

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use fjall::Keyspace;
use futures::executor::block_on;
use herald_model::{Address, Device, DeviceId, UserKey, time::Timestamp};
use prost::Message;

use super::{
    cache::Cache,
    database::{self, Database, map_err},
    group_commit::GroupCommit,
};
use crate::{DEVICES_PER_USER_MAX, Error, ErrorKind, Result};

/// Maximum number of changes in a batch.
const BATCH_CHANGES_MAX: usize = 4_096;

/// Key of the only row of `device_counter`.
const COUNTER: &[u8] = b"last";

/// The embedded engine's [`Devices`](crate::Devices).
pub(crate) struct EmbeddedDevices {
    tables: Arc<Tables>,
    writes: GroupCommit<Job, Option<Device>>,
}

struct Tables {
    database: Arc<Database>,
    /// user → [`Rows`].
    devices: Keyspace,
    /// The greatest device id in use.
    counter: Keyspace,
    cache: Cache<UserKey, Arc<[Device]>>,
}

enum Job {
    Register {
        user: UserKey,
        address: Address,
        now: Timestamp,
    },
    Unregister {
        user: UserKey,
        device: DeviceId,
    },
}

/// The stored devices of a user, oldest first.
#[derive(Clone, PartialEq, Message)]
struct Rows {
    #[prost(message, repeated, tag = "1")]
    devices: Vec<Row>,
}

/// A stored device.
#[derive(Clone, PartialEq, Message)]
struct Row {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(int64, tag = "2")]
    registered_at: i64,
    #[prost(oneof = "Stored", tags = "3, 4")]
    address: Option<Stored>,
}

/// A stored address.
#[derive(Clone, PartialEq, prost::Oneof)]
enum Stored {
    #[prost(message, tag = "3")]
    WebPush(WebPush),
    #[prost(message, tag = "4")]
    Webhook(Webhook),
}

#[derive(Clone, PartialEq, Message)]
struct WebPush {
    #[prost(string, tag = "1")]
    endpoint: String,
    #[prost(bytes = "vec", tag = "2")]
    p256dh: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    auth: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct Webhook {
    #[prost(string, tag = "1")]
    url: String,
    #[prost(bytes = "vec", tag = "2")]
    secret: Vec<u8>,
}

impl EmbeddedDevices {
    /// Opens the devices. `cache_bytes_max` bounds their cache.
    pub(crate) fn open(database: &Arc<Database>, cache_bytes_max: u64) -> Result<Self> {
        let tables = Arc::new(Tables {
            devices: database.keyspace("devices", database::options)?,
            counter: database.keyspace("device_counter", database::options)?,
            database: Arc::clone(database),
            cache: Cache::new("devices", cache_bytes_max, |_, devices: &Arc<[Device]>| {
                devices.iter().map(memory_bytes).sum()
            }),
        });
        let mut last = tables.last()?;
        let shared = Arc::clone(&tables);
        let writes = GroupCommit::start(
            "devices",
            BATCH_CHANGES_MAX,
            |_| 1,
            move |jobs| shared.run(&mut last, jobs),
        )?;
        Ok(Self { tables, writes })
    }
}

impl Tables {
    fn last(&self) -> Result<u64> {
        let Some(last) = self.counter.get(COUNTER).map_err(map_err)? else {
            return Ok(0);
        };
        let last = (*last)
            .try_into()
            .map_err(|_| Error::new(ErrorKind::Corrupt, "can't decode the counter of device ids"))?;
        Ok(u64::from_be_bytes(last))
    }

    fn devices_of(&self, user: UserKey) -> Result<Vec<Device>> {
        let Some(bytes) = self.devices.get(user.0.to_be_bytes()).map_err(map_err)? else {
            return Ok(Vec::new());
        };
        Rows::decode(&*bytes)
            .ok()
            .and_then(|rows| {
                rows.devices
                    .into_iter()
                    .map(|row| row.into_device(user))
                    .collect()
            })
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::Corrupt,
                    format!("can't decode the devices of user {user}"),
                )
            })
    }

    /// Applies a batch of changes. `last` is the greatest device id in use.
    fn run(&self, last: &mut u64, jobs: Vec<Job>) -> Result<Vec<Result<Option<Device>>>> {
        let mut users: HashMap<UserKey, Vec<Device>> = HashMap::new();
        let mut answers = Vec::with_capacity(jobs.len());
        for job in jobs {
            let (Job::Register { user, .. } | Job::Unregister { user, .. }) = job;
            let devices = match users.entry(user) {
                std::collections::hash_map::Entry::Occupied(loaded) => loaded.into_mut(),
                std::collections::hash_map::Entry::Vacant(missing) => missing.insert(self.devices_of(user)?),
            };
            answers.push(match job {
                Job::Register { user, address, now } => register(last, devices, user, address, now).map(Some),
                Job::Unregister { device, .. } => Ok(devices
                    .iter()
                    .position(|d| d.id == device)
                    .map(|at| devices.remove(at))),
            });
        }
        let mut batch = self.database.batch();
        for (user, devices) in &users {
            let key = user.0.to_be_bytes();
            if devices.is_empty() {
                batch.remove(&self.devices, key);
            } else {
                let rows = Rows {
                    devices: devices.iter().map(Row::from_device).collect(),
                };
                batch.insert(&self.devices, key, rows.encode_to_vec());
            }
        }
        batch.insert(&self.counter, COUNTER, last.to_be_bytes());
        let committed = block_on(self.database.commit(batch));
        for user in users.keys() {
            self.cache.invalidate(user);
        }
        committed.map(|()| answers)
    }
}

/// Adds a device, or updates the address of the device with the same URL.
fn register(
    last: &mut u64,
    devices: &mut Vec<Device>,
    user: UserKey,
    address: Address,
    now: Timestamp,
) -> Result<Device> {
    if let Some(existing) = devices.iter_mut().find(|d| d.address.url() == address.url()) {
        existing.address = address;
        return Ok(existing.clone());
    }
    if devices.len() >= DEVICES_PER_USER_MAX {
        return Err(Error::new(
            ErrorKind::LimitExceeded,
            format!("user {user} has {DEVICES_PER_USER_MAX} devices, the maximum: unregister one first"),
        ));
    }
    *last += 1;
    let device = Device {
        id: DeviceId(*last),
        user,
        address,
        registered_at: now,
    };
    devices.push(device.clone());
    Ok(device)
}

impl Row {
    fn from_device(device: &Device) -> Self {
        let address = match device.address.clone() {
            Address::WebPush {
                endpoint,
                p256dh,
                auth,
            } => Stored::WebPush(WebPush {
                endpoint,
                p256dh,
                auth,
            }),
            Address::Webhook { url, secret } => Stored::Webhook(Webhook { url, secret }),
        };
        Self {
            id: device.id.0,
            registered_at: device.registered_at.0,
            address: Some(address),
        }
    }

    fn into_device(self, user: UserKey) -> Option<Device> {
        let address = match self.address? {
            Stored::WebPush(WebPush {
                endpoint,
                p256dh,
                auth,
            }) => Address::WebPush {
                endpoint,
                p256dh,
                auth,
            },
            Stored::Webhook(Webhook { url, secret }) => Address::Webhook { url, secret },
        };
        Some(Device {
            id: DeviceId(self.id),
            user,
            address,
            registered_at: Timestamp(self.registered_at),
        })
    }
}

/// Approximate memory of a device, bytes.
fn memory_bytes(device: &Device) -> usize {
    size_of::<Device>()
        + match &device.address {
            Address::WebPush {
                endpoint,
                p256dh,
                auth,
            } => endpoint.len() + p256dh.len() + auth.len(),
            Address::Webhook { url, secret } => url.len() + secret.len(),
        }
}

#[async_trait]
impl crate::Devices for EmbeddedDevices {
    async fn register(&self, user: UserKey, address: Address, now: Timestamp) -> Result<Device> {
        self.writes
            .run(Job::Register { user, address, now })
            .await?
            .ok_or_else(|| Error::new(ErrorKind::Corrupt, "a registered device is missing"))
    }

    async fn unregister(&self, user: UserKey, device: DeviceId) -> Result<bool> {
        self.writes
            .run(Job::Unregister { user, device })
            .await
            .map(|removed| removed.is_some())
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Devices, embedded::testing::Store};

    fn webhook(url: &str, secret: u8) -> Address {
        Address::Webhook {
            url: url.into(),
            secret: vec![secret; 32],
        }
    }

    fn web_push(n: u8) -> Address {
        Address::WebPush {
            endpoint: format!("https://push.example/{n}"),
            p256dh: vec![n; 65],
            auth: vec![n; 16],
        }
    }

    fn open(store: &Store) -> EmbeddedDevices {
        EmbeddedDevices::open(store.database(), 1 << 20).unwrap()
    }

    #[tokio::test]
    async fn registering_a_url_again_keeps_its_id_and_time() {
        let store = Store::new();
        let devices = open(&store);
        let user = UserKey(7);
        let first = devices
            .register(user, webhook("https://a", 1), Timestamp(10))
            .await
            .unwrap();
        let other = devices.register(user, web_push(2), Timestamp(20)).await.unwrap();
        assert_eq!(
            devices.of(&[user, UserKey(8)]).await.unwrap(),
            [vec![first.clone(), other.clone()], vec![]]
        );
        let again = devices
            .register(user, webhook("https://a", 9), Timestamp(30))
            .await
            .unwrap();
        assert_eq!(
            again,
            Device {
                address: webhook("https://a", 9),
                ..first
            }
        );
        assert_eq!(devices.of(&[user]).await.unwrap(), [[again, other]]);
    }

    #[tokio::test]
    async fn ids_are_not_reused_after_a_restart() {
        let mut store = Store::new();
        let devices = open(&store);
        let a = devices
            .register(UserKey(1), web_push(1), Timestamp(1))
            .await
            .unwrap();
        let b = devices
            .register(UserKey(2), web_push(1), Timestamp(1))
            .await
            .unwrap();
        assert_ne!(a.id, b.id);
        assert!(!devices.unregister(UserKey(1), b.id).await.unwrap());
        assert!(devices.unregister(UserKey(2), b.id).await.unwrap());
        assert!(!devices.unregister(UserKey(2), b.id).await.unwrap());
        assert_eq!(devices.of(&[UserKey(2)]).await.unwrap(), [[]]);

        drop(devices);
        store.reopen();
        let devices = open(&store);
        assert_eq!(
            devices.of(&[UserKey(1), UserKey(2)]).await.unwrap(),
            [vec![a], vec![]]
        );
        let c = devices
            .register(UserKey(2), web_push(1), Timestamp(1))
            .await
            .unwrap();
        assert!(c.id > b.id);
    }

    #[tokio::test]
    async fn a_device_above_the_limit_is_refused() {
        let store = Store::new();
        let devices = open(&store);
        let registered = futures::future::join_all(
            (0..=DEVICES_PER_USER_MAX)
                .map(|n| devices.register(UserKey(1), webhook(&format!("https://{n}"), 1), Timestamp(1))),
        )
        .await;
        let refused: Vec<_> = registered.into_iter().filter_map(Result::err).collect();
        assert_eq!(refused.len(), 1);
        assert_eq!(refused[0].kind(), ErrorKind::LimitExceeded);
        assert_eq!(
            devices.of(&[UserKey(1)]).await.unwrap()[0].len(),
            DEVICES_PER_USER_MAX
        );
    }
}
