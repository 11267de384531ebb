//! Encoding of the keys and numbers in the keyspaces of the timelines.

use herald_model::UserKey;

use crate::{Error, ErrorKind, Result};

/// Encodes a key of `runs`.
pub(super) fn run_key(group: u32, run: u64) -> [u8; 12] {
    let mut key = [0; 12];
    key[..4].copy_from_slice(&group.to_be_bytes());
    key[4..].copy_from_slice(&run.to_be_bytes());
    key
}

/// Decodes the group and the run of a key of `runs`.
pub(super) fn read_run_key(key: &[u8]) -> Result<(u32, u64)> {
    let (group, run) = key.split_first_chunk::<4>().ok_or_else(malformed)?;
    let run = run.try_into().map_err(|_| malformed())?;
    Ok((u32::from_be_bytes(*group), u64::from_be_bytes(run)))
}

/// Decodes the user of a key of `merged`.
pub(super) fn read_user_key(key: &[u8]) -> Result<UserKey> {
    key.try_into()
        .map(|key| UserKey(u32::from_be_bytes(key)))
        .map_err(|_| malformed())
}

/// Decodes a value of `state`.
pub(super) fn decode_number(value: &[u8]) -> Result<u64> {
    value.try_into().map(u64::from_be_bytes).map_err(|_| malformed())
}

pub(super) fn malformed() -> Error {
    Error::new(
        ErrorKind::Corrupt,
        "a key or number of the timelines is malformed",
    )
}
