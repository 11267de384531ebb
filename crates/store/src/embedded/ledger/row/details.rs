//! Encoding of an outcome's details, the last part of its row.
//!
//! First come the done devices of pending recipients. Rows of earlier versions end there; otherwise the rest follows.
//! Failures are written once in a table, and named by their index: most devices of a chunk fail for the same few
//! reasons.

use std::collections::BTreeMap;

use herald_model::{DeviceId, UserKey, time::Timestamp, varint};

use super::{Cursor, malformed, write_set};
use crate::{
    DeviceFailure, DeviceRetry, FailedRecipient, OutcomeDetails, PendingRecipient, PushFailure, Result,
    SuppressedReason,
};

pub(super) fn write(out: &mut Vec<u8>, details: &OutcomeDetails) {
    let done: Vec<_> = details
        .pending
        .iter()
        .filter(|one| !one.done.is_empty())
        .collect();
    write_len(out, done.len());
    for one in done {
        varint::write(out, u64::from(one.user.0));
        write_len(out, one.done.len());
        for device in &one.done {
            varint::write(out, device.0);
        }
    }
    let pending = details.pending.iter();
    let waiting: Vec<_> = pending
        .filter(|one| !one.waiting.is_empty() || !one.failed.is_empty())
        .collect();
    if details.generation == 0
        && details.expires_at.is_none()
        && waiting.is_empty()
        && details.suppressed.is_empty()
        && details.failed.is_empty()
    {
        return;
    }
    varint::write(out, details.generation.into());
    varint::write(out, details.expires_at.map_or(0, |at| at.0.cast_unsigned()));
    let table = Table::of(details);
    write_len(out, table.failures.len());
    for failure in &table.failures {
        for text in [&failure.reason, &failure.host] {
            write_len(out, text.len());
            out.extend_from_slice(text.as_bytes());
        }
    }
    write_len(out, waiting.len());
    for one in waiting {
        varint::write(out, u64::from(one.user.0));
        write_len(out, one.waiting.len());
        for retry in &one.waiting {
            varint::write(out, retry.device.0);
            varint::write(out, retry.attempts.into());
            varint::write(out, retry.next_at.0.cast_unsigned());
            write_len(out, table.index(&retry.failure));
        }
        write_failures(out, &one.failed, &table);
    }
    write_len(out, details.suppressed.len());
    for (reason, users) in &details.suppressed {
        out.push(*reason as u8);
        write_set(out, users);
    }
    write_len(out, details.failed.len());
    for one in &details.failed {
        varint::write(out, u64::from(one.user.0));
        varint::write(out, one.generation.into());
        write_failures(out, &one.failures, &table);
    }
}

pub(super) fn read(cursor: &mut Cursor<'_>) -> Result<OutcomeDetails> {
    let mut pending: BTreeMap<UserKey, PendingRecipient> = BTreeMap::new();
    for _ in 0..cursor.read_count()? {
        let user = cursor.read_user()?;
        let done = read_list(cursor, |cursor| cursor.read_number().map(DeviceId))?;
        pending_entry(&mut pending, user).done = done;
    }
    let mut details = OutcomeDetails::default();
    if !cursor.0.is_empty() {
        details.generation = cursor.read_count()?;
        details.expires_at = match cursor.read_number()? {
            0 => None,
            at => Some(Timestamp(at.cast_signed())),
        };
        let table = read_list(cursor, |cursor| {
            Ok(PushFailure {
                reason: read_text(cursor)?,
                host: read_text(cursor)?,
            })
        })?;
        let failure = |index: u32| table.get(index as usize).cloned().ok_or_else(malformed);
        for _ in 0..cursor.read_count()? {
            let user = cursor.read_user()?;
            let waiting = read_list(cursor, |cursor| {
                Ok(DeviceRetry {
                    device: DeviceId(cursor.read_number()?),
                    attempts: cursor.read_count()?,
                    next_at: Timestamp(cursor.read_number()?.cast_signed()),
                    failure: failure(cursor.read_count()?)?,
                })
            })?;
            let entry = pending_entry(&mut pending, user);
            entry.waiting = waiting;
            entry.failed = read_failures(cursor, failure)?;
        }
        details.suppressed = read_list(cursor, |cursor| {
            let byte = cursor.read_byte()?;
            let mut reasons = SuppressedReason::ALL.into_iter();
            let reason = reasons
                .find(|reason| *reason as u8 == byte)
                .ok_or_else(malformed)?;
            Ok((reason, cursor.read_set()?))
        })?;
        details.failed = read_list(cursor, |cursor| {
            Ok(FailedRecipient {
                user: cursor.read_user()?,
                generation: cursor.read_count()?,
                failures: read_failures(cursor, failure)?,
            })
        })?;
    }
    details.pending = pending.into_values().collect();
    Ok(details)
}

/// The different failures of an outcome.
struct Table<'a> {
    failures: Vec<&'a PushFailure>,
}

impl<'a> Table<'a> {
    fn of(details: &'a OutcomeDetails) -> Self {
        let waiting = details.pending.iter().flat_map(|one| &one.waiting);
        let pending_failed = details.pending.iter().flat_map(|one| &one.failed);
        let failed = details.failed.iter().flat_map(|one| &one.failures);
        let mut failures: Vec<_> = waiting
            .map(|retry| &retry.failure)
            .chain(pending_failed.chain(failed).map(|failed| &failed.failure))
            .collect();
        failures.sort_unstable();
        failures.dedup();
        Self { failures }
    }

    fn index(&self, failure: &PushFailure) -> usize {
        self.failures.binary_search(&failure).unwrap_or_default()
    }
}

fn pending_entry(pending: &mut BTreeMap<UserKey, PendingRecipient>, user: UserKey) -> &mut PendingRecipient {
    pending.entry(user).or_insert_with(|| PendingRecipient::new(user))
}

fn write_failures(out: &mut Vec<u8>, failures: &[DeviceFailure], table: &Table<'_>) {
    write_len(out, failures.len());
    for failed in failures {
        // Device ids begin at 1.
        varint::write(out, failed.device.map_or(0, |device| device.0));
        write_len(out, table.index(&failed.failure));
    }
}

fn read_failures(
    cursor: &mut Cursor<'_>,
    failure: impl Fn(u32) -> Result<PushFailure>,
) -> Result<Vec<DeviceFailure>> {
    read_list(cursor, |cursor| {
        let device = cursor.read_number()?;
        Ok(DeviceFailure {
            device: (device != 0).then_some(DeviceId(device)),
            failure: failure(cursor.read_count()?)?,
        })
    })
}

fn write_len(out: &mut Vec<u8>, len: usize) {
    varint::write(out, len as u64);
}

fn read_list<'a, T>(
    cursor: &mut Cursor<'a>,
    mut read: impl FnMut(&mut Cursor<'a>) -> Result<T>,
) -> Result<Vec<T>> {
    let count = cursor.read_count()?;
    (0..count).map(|_| read(cursor)).collect()
}

fn read_text(cursor: &mut Cursor<'_>) -> Result<String> {
    let length = cursor.read_count()? as usize;
    let (bytes, after) = cursor.0.split_at_checked(length).ok_or_else(malformed)?;
    cursor.0 = after;
    String::from_utf8(bytes.to_vec()).map_err(|_| malformed())
}
