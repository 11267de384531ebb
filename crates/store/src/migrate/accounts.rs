//! Users, devices, preferences.

use prost::Message as _;

use super::{
    part::{Batches, Part},
    source::{Source, corrupt, rows_after, undecodable, user_of},
    table::{Table, Type},
};
use crate::{
    Result,
    embedded::{database::map_err, devices, preferences},
};

pub(super) const USERS: Part = Part {
    name: "users",
    tables: &[&USERS_TABLE],
    estimate: |source| source.user_ids.approximate_len() as u64,
    read: read_users,
};

pub(super) const DEVICES: Part = Part {
    name: "devices",
    tables: &[&DEVICES_TABLE, &SETTINGS_TABLE],
    estimate: |source| source.devices.approximate_len() as u64,
    read: read_devices,
};

pub(super) const PREFERENCES: Part = Part {
    name: "preferences",
    tables: &[&PREFERENCES_TABLE],
    estimate: |source| source.preferences.approximate_len() as u64,
    read: read_preferences,
};

static USERS_TABLE: Table = Table {
    name: "users",
    columns: &[("key", Type::Bigint), ("id", Type::Text)],
    key: 1,
    replaces: false,
    only: "",
};

static DEVICES_TABLE: Table = Table {
    name: "devices",
    columns: &[
        ("user_key", Type::Bigint),
        ("devices", Type::Bytea),
        ("has_web_push", Type::Boolean),
    ],
    key: 1,
    replaces: false,
    only: "",
};

/// A push process that was started on the empty database has recorded its key: that of the devices counts.
static SETTINGS_TABLE: Table = Table {
    name: "settings",
    columns: &[("name", Type::Text), ("value", Type::Bytea)],
    key: 1,
    replaces: true,
    only: "name = 'vapid_key'",
};

static PREFERENCES_TABLE: Table = Table {
    name: "preferences",
    columns: &[("user_key", Type::Bigint), ("preferences", Type::Bytea)],
    key: 1,
    replaces: false,
    only: "",
};

fn read_users(source: &Source, after: Option<&[u8]>, out: &mut Batches) -> Result<()> {
    for row in rows_after(&source.user_ids, after) {
        let (key, id) = row?;
        let user = user_of(&key, "user_ids")?;
        let id = std::str::from_utf8(&id)
            .ok()
            .and_then(|id| herald_model::UserId::from_stored(id).ok())
            .ok_or_else(|| undecodable(format!("user {user}"), "user_ids"))?;
        let back = source.user_keys.get(id.as_str()).map_err(map_err)?;
        if back.as_deref() != Some(&key[..]) {
            return Err(corrupt(
                format!("user {user}"),
                "the keyspace user_keys has another key for this user's id",
            ));
        }
        out.rows(0).push([user.0.into(), id.into_string().into()]);
        out.end_row(&key)?;
    }
    Ok(())
}

fn read_devices(source: &Source, after: Option<&[u8]>, out: &mut Batches) -> Result<()> {
    let mut last = after.map(<[u8]>::to_vec);
    for row in rows_after(&source.devices, after) {
        let (key, row) = row?;
        let user = user_of(&key, "devices")?;
        let devices = devices::row::Rows::decode(&row[..])
            .ok()
            .and_then(|rows| rows.into_devices(user))
            .ok_or_else(|| undecodable(format!("the devices of user {user}"), "devices"))?;
        let has_web_push = devices.iter().any(devices::change::is_web_push);
        out.rows(0)
            .push([user.0.into(), row.to_vec().into(), has_web_push.into()]);
        out.end_row(&key)?;
        last = Some(key.to_vec());
    }
    // The key of the devices' Web Push subscriptions, after the last user. A position of five bytes is after it.
    if last.as_ref().is_none_or(|last| last.len() == 4)
        && let Some(key) = source.device_counter.get(devices::VAPID_KEY).map_err(map_err)?
    {
        out.rows(1)
            .push(["vapid_key".to_owned().into(), key.to_vec().into()]);
        out.end_rows(0, &[0xff; 5])?;
    }
    Ok(())
}

fn read_preferences(source: &Source, after: Option<&[u8]>, out: &mut Batches) -> Result<()> {
    for row in rows_after(&source.preferences, after) {
        let (key, row) = row?;
        let user = user_of(&key, "preferences")?;
        preferences::Row::decode(&row[..])
            .ok()
            .and_then(preferences::Row::into_preferences)
            .ok_or_else(|| undecodable(format!("the preferences of user {user}"), "preferences"))?;
        out.rows(0).push([user.0.into(), row.to_vec().into()]);
        out.end_row(&key)?;
    }
    Ok(())
}
