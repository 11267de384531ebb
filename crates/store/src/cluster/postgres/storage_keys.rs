//! The keys that devices are encrypted with: a row in `settings` for each, and their rotation.
//!
//! # Invariants
//!
//! - The row of a key is committed with or before the first device that is encrypted with it, and is `forgotten` after the
//!   last one was encrypted with another key. So a process that has the keys of all other rows can read all devices.
//! - A rotation retires all keys but one, and nobody writes with a key that was retired, not even after its end: a process
//!   that was forgotten must not bring its key back. Each write of devices holds an advisory lock, shared, and reads the rows under it;
//!   the begin of a rotation holds it alone. So once a rotation has begun, nobody writes with a retired key.

use async_trait::async_trait;
use herald_model::UserKey;
use sqlx::PgConnection;

use super::{Attempt, Postgres, devices::PostgresDevices, keys};
use crate::{
    Error, ErrorKind, Result,
    encryption::{Keyring, Resealed, StorageKeyId, StorageKeys, log_lost, missing, no_key},
};

/// Key of the advisory lock: "herald" and a number, as that of migrations.
pub(super) const LOCK: i64 = 0x6865_7261_6c64_0002;

/// Reads the rows as `storage_key/ID=STATE`, in a statement that reads something else too.
macro_rules! rows {
    () => {
        "ARRAY(SELECT name || '=' || convert_from(value, 'UTF8') FROM herald.settings WHERE name LIKE 'storage_key/%')"
    };
}
pub(super) use rows;

/// Users whose devices are removed in a transaction.
const USERS_PER_BATCH: i64 = 500;

const PREFIX: &str = "storage_key/";

/// What devices a key has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Devices are encrypted with it. Processes that read them may still write devices as they are.
    InUse,
    /// All devices are encrypted with it, or will be by the rotation that has begun.
    Required,
    /// A rotation has begun: no more devices are encrypted with it.
    Retired,
    /// No device is encrypted with it.
    Forgotten,
}

/// The keys of a store.
#[derive(Debug, Default)]
pub(super) struct StoredKeys(Vec<(StorageKeyId, State)>);

impl StoredKeys {
    pub(super) fn parse(rows: &[String]) -> Result<Self> {
        let keys = rows.iter().map(|row| {
            let (key, state) = row
                .strip_prefix(PREFIX)
                .and_then(|row| row.split_once('='))
                .ok_or_else(|| Error::new(ErrorKind::Corrupt, "can't decode the storage keys in use"))?;
            let key = key
                .parse()
                .map_err(|reason: String| Error::new(ErrorKind::Corrupt, reason))?;
            let state = match state {
                "in use" => State::InUse,
                "required" => State::Required,
                "retired" => State::Retired,
                "forgotten" => State::Forgotten,
                _ => {
                    return Err(Error::new(
                        ErrorKind::Corrupt,
                        "can't decode the state of a storage key",
                    ));
                }
            };
            Ok((key, state))
        });
        keys.collect::<Result<_>>().map(Self)
    }

    /// Checks that a process with these keys may write devices. Returns its key if it must be recorded before.
    pub(super) fn check_writer(&self, keys: &Keyring) -> Result<Option<StorageKeyId>> {
        let Some(current) = keys.current() else {
            // An installation changes over: first all its processes can read what is encrypted, then they encrypt.
            let can_read = |(key, state): &(StorageKeyId, State)| *state == State::InUse && keys.has(*key);
            if self.0.iter().all(can_read) {
                return Ok(None);
            }
            return Err(self.other_key("this process has no storage key"));
        };
        match self.0.iter().find(|(key, _)| *key == current) {
            None => Ok(Some(current)),
            Some((_, State::InUse | State::Required)) => Ok(None),
            Some(_) => Err(self.other_key(&format!(
                "the storage key {current} of this process was retired by `herald key rotate-storage`"
            ))),
        }
    }

    /// The error of a process that must not write.
    fn other_key(&self, why: &str) -> Error {
        let is_used = |state| matches!(state, State::InUse | State::Required);
        let used = self.0.iter().filter(|(_, state)| is_used(*state));
        let used: Vec<String> = used.map(|(key, _)| key.to_string()).collect();
        Error::new(
            ErrorKind::Unavailable,
            format!(
                "devices can't be changed: {why}, and those of the store are encrypted with {}: set store.encryption.key to \
                 it, and restart the process",
                used.join(" or "),
            ),
        )
    }

    /// The keys that devices can be encrypted with.
    fn in_use(&self) -> Vec<StorageKeyId> {
        let with_devices = self.0.iter().filter(|(_, state)| *state != State::Forgotten);
        with_devices.map(|(key, _)| *key).collect()
    }
}

/// Records a key, unless it is there.
pub(super) async fn record(connection: &mut PgConnection, key: StorageKeyId) -> Attempt<()> {
    const SQL: &str = "
        INSERT INTO herald.settings (name, value) VALUES ('storage_key/' || $1, convert_to('in use', 'UTF8'))
        ON CONFLICT (name) DO NOTHING";
    sqlx::query(SQL).bind(key.to_string()).execute(connection).await?;
    Ok(())
}

async fn read(postgres: &Postgres) -> Result<StoredKeys> {
    let rows: Vec<String> = postgres
        .call("read which storage keys are in use", || async {
            let rows = sqlx::query_scalar(concat!("SELECT ", rows!())).fetch_one(postgres.pool());
            Ok(rows.await?)
        })
        .await?;
    StoredKeys::parse(&rows)
}

impl PostgresDevices {
    /// The keys of the store. [`Invalid`](ErrorKind::Invalid) if this process lacks one.
    async fn readable_keys(&self) -> Result<StoredKeys> {
        let stored = read(&self.postgres).await?;
        let mut lacking = stored.in_use();
        lacking.retain(|key| !self.codec.keys().has(*key));
        if lacking.is_empty() {
            Ok(stored)
        } else {
            Err(missing(&lacking))
        }
    }

    /// Removes the devices whose keys are lost of the next users. Returns the last of these users and the number of
    /// devices; `None` after the last user.
    async fn remove_lost_after(&self, after: i64) -> Result<Option<(i64, u64)>> {
        const NEXT: &str = "
            SELECT user_key, devices FROM herald.devices WHERE user_key > $1 ORDER BY user_key LIMIT $2 FOR UPDATE";
        const WRITE: &str = "UPDATE herald.devices SET devices = $2, has_web_push = $3 WHERE user_key = $1";
        const DELETE: &str = "DELETE FROM herald.devices WHERE user_key = $1";
        self.postgres
            .call("remove devices whose storage key is lost", || async {
                let mut transaction = self.postgres.begin().await?;
                let rows: Vec<(i64, Vec<u8>)> = sqlx::query_as(NEXT)
                    .bind(after)
                    .bind(USERS_PER_BATCH)
                    .fetch_all(&mut *transaction)
                    .await?;
                let last = rows.last().map(|(user, _)| *user);
                let mut removed = 0;
                for (user, row) in rows {
                    let Some(left) = self.codec.without_lost(&row) else {
                        continue;
                    };
                    removed += left.removed;
                    let statement = if left.row.is_empty() {
                        sqlx::query(DELETE).bind(user)
                    } else {
                        sqlx::query(WRITE)
                            .bind(user)
                            .bind(left.row)
                            .bind(left.has_web_push)
                    };
                    statement.execute(&mut *transaction).await?;
                }
                transaction.commit().await?;
                Ok(last.map(|last| (last, removed)))
            })
            .await
    }

    /// Records the key of this process, if it has one: before devices are written past [`PostgresDevices`].
    pub(crate) async fn record_key(&self) -> Result<()> {
        let Some(key) = self.codec.keys().current() else {
            return Ok(());
        };
        self.postgres
            .call("record the storage key", || async {
                let mut transaction = self.postgres.begin().await?;
                record(&mut transaction, key).await?;
                Ok(transaction.commit().await?)
            })
            .await
    }
}

#[async_trait]
impl StorageKeys for PostgresDevices {
    async fn remove_lost(&self) -> Result<u64> {
        const RETIRE: &str = "
            UPDATE herald.settings SET value = convert_to('retired', 'UTF8')
            WHERE name = ANY($1) AND value <> convert_to('forgotten', 'UTF8')";
        const FORGET: &str = "
            UPDATE herald.settings SET value = convert_to('forgotten', 'UTF8') WHERE name = ANY($1)";
        let lost = self.codec.keys().lost();
        let mut in_use = self.in_use().await?;
        in_use.retain(|key| lost.contains(key));
        if in_use.is_empty() {
            return Ok(0);
        }
        if self.codec.keys().current().is_none() {
            return Err(no_key());
        }
        let names: Vec<String> = in_use.iter().map(|key| format!("{PREFIX}{key}")).collect();
        // Whoever has such a key still must not write with it any more.
        self.postgres
            .call("retire lost storage keys", || async {
                let mut transaction = self.postgres.begin().await?;
                sqlx::query("SELECT pg_advisory_xact_lock($1)")
                    .bind(LOCK)
                    .execute(&mut *transaction)
                    .await?;
                sqlx::query(RETIRE)
                    .bind(&names)
                    .execute(&mut *transaction)
                    .await?;
                Ok(transaction.commit().await?)
            })
            .await?;
        let (mut removed, mut after) = (0, -1);
        while let Some((last, devices)) = self.remove_lost_after(after).await? {
            (after, removed) = (last, removed + devices);
        }
        self.postgres
            .call("forget lost storage keys", || async {
                sqlx::query(FORGET)
                    .bind(&names)
                    .execute(self.postgres.pool())
                    .await?;
                Ok(())
            })
            .await?;
        log_lost(&in_use, removed);
        Ok(removed)
    }

    async fn check(&self) -> Result<()> {
        let allowed = self.readable_keys().await?.check_writer(self.codec.keys());
        allowed
            .map(drop)
            .map_err(|error| Error::new(ErrorKind::Invalid, error.to_string()))
    }

    async fn in_use(&self) -> Result<Vec<StorageKeyId>> {
        Ok(read(&self.postgres).await?.in_use())
    }

    async fn begin_rotation(&self) -> Result<(StorageKeyId, u64)> {
        const RETIRE: &str = "
            UPDATE herald.settings SET value = convert_to('retired', 'UTF8')
            WHERE name LIKE 'storage_key/%' AND name <> 'storage_key/' || $1
                AND value IN (convert_to('in use', 'UTF8'), convert_to('required', 'UTF8'))";
        const USE: &str = "
            INSERT INTO herald.settings (name, value) VALUES ('storage_key/' || $1, convert_to('required', 'UTF8'))
            ON CONFLICT (name) DO UPDATE SET value = excluded.value";
        let key = self.codec.keys().current().ok_or_else(no_key)?;
        self.readable_keys().await?;
        let users: i64 = self
            .postgres
            .call("begin the rotation of the storage key", || async {
                let mut transaction = self.postgres.begin().await?;
                sqlx::query("SELECT pg_advisory_xact_lock($1)")
                    .bind(LOCK)
                    .execute(&mut *transaction)
                    .await?;
                for statement in [RETIRE, USE] {
                    sqlx::query(statement)
                        .bind(key.to_string())
                        .execute(&mut *transaction)
                        .await?;
                }
                let users = sqlx::query_scalar("SELECT count(*) FROM herald.devices")
                    .fetch_one(&mut *transaction)
                    .await?;
                transaction.commit().await?;
                Ok(users)
            })
            .await?;
        Ok((key, keys::number(users)?))
    }

    async fn reseal(&self, after: Option<UserKey>, limit: usize) -> Result<Resealed> {
        const NEXT: &str = "
            SELECT user_key, devices FROM herald.devices WHERE user_key > $1 ORDER BY user_key LIMIT $2";
        const LOCKED: &str = "
            SELECT user_key, devices FROM herald.devices WHERE user_key = ANY($1) ORDER BY user_key FOR UPDATE";
        const WRITE: &str = "
            UPDATE herald.devices AS stored SET devices = sealed.devices
            FROM unnest($1::bigint[], $2::bytea[]) AS sealed (user_key, devices)
            WHERE stored.user_key = sealed.user_key";
        let after = after.map_or(-1, |after| i64::from(after.0));
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.postgres
            .call("encrypt devices with the new storage key", || async {
                let mut transaction = self.postgres.begin().await?;
                let rows: Vec<(i64, Vec<u8>)> = sqlx::query_as(NEXT)
                    .bind(after)
                    .bind(limit)
                    .fetch_all(&mut *transaction)
                    .await?;
                let mut page = Resealed {
                    last: rows.last().map(|(user, _)| keys::user(*user)).transpose()?,
                    users: rows.len() as u64,
                    ..Resealed::default()
                };
                let others = rows.into_iter().filter(|(_, row)| !self.codec.is_sealed(row));
                let others: Vec<i64> = others.map(|(user, _)| user).collect();
                if others.is_empty() {
                    return Ok(page);
                }
                // A later rotation must not have retired this key.
                let (_, in_use): (String, Vec<String>) = sqlx::query_as(concat!(
                    "SELECT lock::text, ",
                    rows!(),
                    " FROM pg_advisory_xact_lock_shared($1) AS lock"
                ))
                .bind(LOCK)
                .fetch_one(&mut *transaction)
                .await?;
                StoredKeys::parse(&in_use)?.check_writer(self.codec.keys())?;
                let rows: Vec<(i64, Vec<u8>)> = sqlx::query_as(LOCKED)
                    .bind(&others)
                    .fetch_all(&mut *transaction)
                    .await?;
                let (mut users, mut sealed) = (Vec::new(), Vec::new());
                for (user, row) in rows {
                    match self.codec.decode(keys::user(user)?, &row) {
                        Ok(devices) => {
                            users.push(user);
                            sealed.push(self.codec.encode(&devices)?);
                        }
                        Err(_) => page.unreadable.push(keys::user(user)?),
                    }
                }
                sqlx::query(WRITE)
                    .bind(&users)
                    .bind(&sealed)
                    .execute(&mut *transaction)
                    .await?;
                transaction.commit().await?;
                page.resealed = users.len() as u64;
                Ok(page)
            })
            .await
    }

    async fn end_rotation(&self) -> Result<Vec<StorageKeyId>> {
        const SQL: &str = "
            UPDATE herald.settings SET value = convert_to('forgotten', 'UTF8')
            WHERE name LIKE 'storage_key/%' AND value = convert_to('retired', 'UTF8')
            RETURNING name || '=retired'";
        let forgotten: Vec<String> = self
            .postgres
            .call("end the rotation of the storage key", || async {
                Ok(sqlx::query_scalar(SQL).fetch_all(self.postgres.pool()).await?)
            })
            .await?;
        Ok(StoredKeys::parse(&forgotten)?.in_use())
    }
}
