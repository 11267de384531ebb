//! Devices: one row a user with all devices, because a user has few. They are not cached: a device that was unregistered
//! must get no push from any process.

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use herald_model::{
    Address, Device, DeviceId, Disabled, FailingStreak, Registration, UserKey, time::Timestamp,
};

use super::{
    Postgres, keys,
    storage_keys::{self, StoredKeys, rows},
};
use crate::{
    ErrorKind, Result,
    embedded::devices::{
        Codec,
        change::{self, Applied, Change, is_web_push},
    },
};

/// Name in `settings` of the VAPID public key.
const VAPID_KEY: &str = "vapid_key";

/// Number of users whose Web Push devices are removed between two reads.
const WEB_PUSH_USERS_MAX: i64 = 1_000;

const OF: &str = "SELECT user_key, devices FROM herald.devices WHERE user_key = ANY($1)";

/// Keeps a rotation of the storage key from beginning, and takes the next device id for a registration.
const BEGIN: &str = "
    SELECT lock::text, CASE WHEN $2 THEN nextval('herald.device_ids') END
    FROM pg_advisory_xact_lock_shared($1) AS lock";

/// Reads a user's row and locks it; makes an empty one if there is none. Reads which storage keys are in use.
const LOCK: &str = concat!(
    "
    INSERT INTO herald.devices AS stored (user_key, devices, has_web_push) VALUES ($1, '', false)
    ON CONFLICT (user_key) DO UPDATE SET devices = stored.devices
    RETURNING devices, ",
    rows!()
);

/// The cluster engine's [`Devices`](crate::Devices).
pub(crate) struct PostgresDevices {
    pub(super) postgres: Postgres,
    pub(super) codec: Arc<Codec>,
}

impl PostgresDevices {
    pub(crate) fn new(postgres: &Postgres, codec: Codec) -> Self {
        Self {
            postgres: postgres.clone(),
            codec: Arc::new(codec),
        }
    }

    async fn change(&self, user: UserKey, change: Change) -> Result<Applied> {
        // Most changes record the success of a push to a device that does not fail: they change nothing.
        if !matches!(change, Change::Register { .. }) {
            let mut devices = self.read(&[user]).await?.remove(&user).unwrap_or_default();
            let applied = change::apply(change.clone(), user, &mut devices, &mut 0)?;
            if applied.changed == 0 {
                return Ok(applied);
            }
        }
        self.postgres
            .call("change the devices of a user", || async {
                let mut transaction = self.postgres.begin().await?;
                let (_, next): (String, Option<i64>) = sqlx::query_as(BEGIN)
                    .bind(storage_keys::LOCK)
                    .bind(matches!(change, Change::Register { .. }))
                    .fetch_one(&mut *transaction)
                    .await?;
                // Not in one statement with the lock: it reads the keys as they are when it begins.
                let (row, in_use): (Vec<u8>, Vec<String>) = sqlx::query_as(LOCK)
                    .bind(i64::from(user.0))
                    .fetch_one(&mut *transaction)
                    .await?;
                let new_key = StoredKeys::parse(&in_use)?.check_writer(self.codec.keys())?;
                let mut devices = self.codec.decode(user, &row)?;
                let mut last_id = next.map(keys::number).transpose()?.unwrap_or(1).saturating_sub(1);
                let applied = change::apply(change.clone(), user, &mut devices, &mut last_id)?;
                if applied.changed == 0 {
                    return Ok(applied);
                }
                if let Some(key) = new_key {
                    storage_keys::record(&mut transaction, key).await?;
                }
                let row = self.codec.encode(&devices)?;
                let statement = if devices.is_empty() {
                    sqlx::query("DELETE FROM herald.devices WHERE user_key = $1").bind(i64::from(user.0))
                } else {
                    sqlx::query(
                        "UPDATE herald.devices SET devices = $2, has_web_push = $3 WHERE user_key = $1",
                    )
                    .bind(i64::from(user.0))
                    .bind(row)
                    .bind(devices.iter().any(is_web_push))
                };
                statement.execute(&mut *transaction).await?;
                transaction.commit().await?;
                Ok(applied)
            })
            .await
    }

    /// The number of devices of a user, some of which can be unreadable; one if even their number is.
    async fn count(&self, user: UserKey) -> Result<u64> {
        let row: Result<Option<Vec<u8>>> = self
            .postgres
            .call("count the devices of a user", || async {
                let row = sqlx::query_scalar("SELECT devices FROM herald.devices WHERE user_key = $1")
                    .bind(i64::from(user.0))
                    .fetch_optional(self.postgres.pool());
                Ok(row.await?)
            })
            .await;
        match row {
            Ok(row) => Ok(row.map_or(0, |row| Codec::count(&row))),
            Err(error) if error.kind() == ErrorKind::Corrupt => Ok(1),
            Err(error) => Err(error),
        }
    }

    async fn read(&self, users: &[UserKey]) -> Result<HashMap<UserKey, Vec<Device>>> {
        let keys: Vec<i64> = users.iter().map(|user| user.0.into()).collect();
        let rows: Vec<(i64, Vec<u8>)> = self
            .postgres
            .call("read devices", || async {
                Ok(sqlx::query_as(OF)
                    .bind(&keys)
                    .fetch_all(self.postgres.pool())
                    .await?)
            })
            .await?;
        rows.into_iter()
            .map(|(user, row)| {
                let user = keys::user(user)?;
                Ok((user, self.codec.decode(user, &row)?))
            })
            .collect()
    }
}

#[async_trait]
impl crate::Devices for PostgresDevices {
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
        let devices = self.count(user).await?;
        self.postgres
            .call("remove the devices of a user", || async {
                let remove = sqlx::query("DELETE FROM herald.devices WHERE user_key = $1");
                let remove = remove.bind(i64::from(user.0));
                remove.execute(self.postgres.pool()).await?;
                Ok(())
            })
            .await?;
        Ok(devices)
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
        let found = self.read(users).await?;
        Ok(users
            .iter()
            .map(|user| found.get(user).cloned().unwrap_or_default())
            .collect())
    }

    async fn has_web_push(&self) -> Result<bool> {
        const HAS: &str = "SELECT EXISTS (SELECT FROM herald.devices WHERE has_web_push)";
        self.postgres
            .call("look for Web Push devices", || async {
                Ok(sqlx::query_scalar(HAS).fetch_one(self.postgres.pool()).await?)
            })
            .await
    }

    async fn vapid_key(&self) -> Result<Option<Vec<u8>>> {
        self.postgres
            .call("read the VAPID public key", || async {
                let key = sqlx::query_scalar("SELECT value FROM herald.settings WHERE name = $1")
                    .bind(VAPID_KEY)
                    .fetch_optional(self.postgres.pool());
                Ok(key.await?)
            })
            .await
    }

    async fn set_vapid_key(&self, public_key: &[u8]) -> Result<()> {
        const SET: &str = "
            INSERT INTO herald.settings (name, value) VALUES ($1, $2)
            ON CONFLICT (name) DO UPDATE SET value = excluded.value";
        self.postgres
            .call("record the VAPID public key", || async {
                let set = sqlx::query(SET).bind(VAPID_KEY).bind(public_key);
                set.execute(self.postgres.pool()).await?;
                Ok(())
            })
            .await
    }

    async fn unregister_web_push(&self) -> Result<u64> {
        const USERS: &str = "
            SELECT user_key FROM herald.devices WHERE has_web_push AND user_key > $1 ORDER BY user_key LIMIT $2";
        let (mut removed, mut after) = (0, -1);
        loop {
            let users: Vec<i64> = self
                .postgres
                .call("list the users with Web Push devices", || async {
                    let users = sqlx::query_scalar(USERS)
                        .bind(after)
                        .bind(WEB_PUSH_USERS_MAX)
                        .fetch_all(self.postgres.pool());
                    Ok(users.await?)
                })
                .await?;
            let Some(last) = users.last() else {
                return Ok(removed);
            };
            after = *last;
            for user in users {
                match self.change(keys::user(user)?, Change::UnregisterWebPush).await {
                    Ok(applied) => removed += applied.changed,
                    // Logged where it was read. Devices that can't be read get no pushes.
                    Err(error) if error.kind() == ErrorKind::Corrupt => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }
}
