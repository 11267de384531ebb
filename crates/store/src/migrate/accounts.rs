//! Users and their erasures, devices, preferences, API keys.

use prost::Message as _;

use super::{
    part::{Batches, Part},
    source::{Source, corrupt, named, rows_after, undecodable, user_of},
    table::{Table, Type},
};
use crate::{
    Result,
    embedded::{api_keys, database::map_err, devices, erased_timelines, erasures, preferences},
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

pub(super) const API_KEYS: Part = Part {
    name: "api_keys",
    tables: &[&API_KEYS_TABLE],
    estimate: |source| source.api_keys.approximate_len() as u64,
    read: read_api_keys,
};

pub(super) const ERASURES: Part = Part {
    name: "erasures",
    tables: &[&ERASURES_TABLE],
    estimate: |source| source.erasures.approximate_len() as u64,
    read: read_erasures,
};

pub(super) const ERASED_TIMELINES: Part = Part {
    name: "erased timelines",
    tables: &[&ERASED_TIMELINES_TABLE],
    estimate: |source| source.erased_timelines.approximate_len() as u64,
    read: read_erased_timelines,
};

static ERASURES_TABLE: Table = Table {
    name: "erasures",
    columns: &[
        ("id", Type::Bigint),
        ("user_key", Type::Bigint),
        ("user_id", Type::Text),
        ("actor", Type::Text),
        ("requested_at", Type::Bigint),
        ("forgotten_at", Type::Bigint),
        ("last_post", Type::Bigint),
        ("completed_at", Type::Bigint),
        ("posts", Type::Bigint),
        ("follows", Type::Bigint),
        ("devices", Type::Bigint),
        ("timeline_entries", Type::Bigint),
        ("messages", Type::Bigint),
        ("dead_letters", Type::Bigint),
    ],
    key: 1,
    replaces: false,
    only: "",
};

static ERASED_TIMELINES_TABLE: Table = Table {
    name: "timelines_erased",
    columns: &[("user_key", Type::Bigint)],
    key: 1,
    replaces: false,
    only: "",
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
        ("devices", Type::Sealed),
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

static API_KEYS_TABLE: Table = Table {
    name: "api_keys",
    columns: &[
        ("id", Type::Bigint),
        ("name", Type::Text),
        ("secret_hash", Type::Bytea),
        ("scopes", Type::Integer),
        ("created_at", Type::Bigint),
        ("expires_at", Type::Bigint),
        ("revoked_at", Type::Bigint),
    ],
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
        let devices = named(source.devices_from.decode(user, &row), || {
            format!("the devices of user {user}")
        })?;
        let sealed = source.devices_to.encode(&devices)?;
        let has_web_push = devices.iter().any(devices::change::is_web_push);
        out.rows(0)
            .push([user.0.into(), sealed.into(), has_web_push.into()]);
        out.add_devices(user, devices);
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

fn read_api_keys(source: &Source, after: Option<&[u8]>, out: &mut Batches) -> Result<()> {
    for row in rows_after(&source.api_keys, after) {
        let (id, row) = row?;
        let key = api_keys::decode(&id, &row).map_err(|_| undecodable("an API key", "api_keys"))?;
        out.rows(0).push([
            key.id.0.into(),
            key.name.into(),
            key.secret_hash.to_vec().into(),
            key.scopes.bits().into(),
            key.created_at.0.into(),
            key.expires_at.map(|at| at.0).into(),
            key.revoked_at.map(|at| at.0).into(),
        ]);
        out.end_row(&id)?;
    }
    Ok(())
}

fn read_erasures(source: &Source, after: Option<&[u8]>, out: &mut Batches) -> Result<()> {
    for row in rows_after(&source.erasures, after) {
        let (id, row) = row?;
        let erasure = erasures::decode_id(&id)
            .and_then(|id| erasures::decode(id, &row))
            .map_err(|_| undecodable("an erasure", erasures::KEYSPACE))?;
        let counts = erasure.counts;
        let last_post = erasure
            .forgotten
            .map(|forgotten| forgotten.last_post.0.cast_signed());
        out.rows(0).push([
            erasure.id.0.into(),
            erasure.user.0.into(),
            erasure.user_id.map(herald_model::UserId::into_string).into(),
            erasure.actor.into(),
            erasure.requested_at.0.into(),
            erasure.forgotten.map(|forgotten| forgotten.at.0).into(),
            last_post.into(),
            erasure.completed_at.map(|at| at.0).into(),
            counts.posts.into(),
            counts.follows.into(),
            counts.devices.into(),
            counts.timeline_entries.into(),
            counts.messages.into(),
            counts.dead_letters.into(),
        ]);
        out.end_row(&id)?;
    }
    Ok(())
}

fn read_erased_timelines(source: &Source, after: Option<&[u8]>, out: &mut Batches) -> Result<()> {
    for row in rows_after(&source.erased_timelines, after) {
        let (key, _) = row?;
        let user = user_of(&key, erased_timelines::KEYSPACE)?;
        out.rows(0).push([user.0.into()]);
        out.end_row(&key)?;
    }
    Ok(())
}
