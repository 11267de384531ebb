//! Finds the damaged tables of a database: fjall tells that one can't be read, and not which.
//!
//! The directory of a keyspace has the file `current`, with the number N of its newest list of tables, the list `vN`, and
//! `tables/ID`. The list is an archive, whose section `tables` has the levels (their number `u8`), of each level the runs
//! (`u8`), of each run the tables (`u32`), and of each table its id `u64`, the type of its checksum `u8` (0), the checksum
//! of its file `u128` (XXH3), and a sequence `u64`. Numbers are little-endian.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use xxhash_rust::xxh3::Xxh3;

/// Bytes that are read at once.
const BUFFER_BYTES: usize = 1 << 20;

/// The files of a database that can't be read, or whose content was changed since it was written. Reads all tables.
pub(super) fn damaged(database: &Path) -> Vec<PathBuf> {
    let mut damaged = Vec::new();
    let Ok(keyspaces) = fs::read_dir(database.join("keyspaces")) else {
        return damaged;
    };
    let mut keyspaces: Vec<PathBuf> = keyspaces.flatten().map(|entry| entry.path()).collect();
    keyspaces.sort_unstable();
    for keyspace in keyspaces
        .iter()
        .filter(|keyspace| keyspace.join("current").exists())
    {
        match listed(keyspace) {
            Ok(tables) => {
                let files = tables
                    .into_iter()
                    .map(|(id, sum)| (keyspace.join("tables").join(id.to_string()), sum));
                damaged.extend(files.filter_map(|(file, sum)| {
                    let is_sound = checksum(&file).is_ok_and(|found| found == sum);
                    (!is_sound).then_some(file)
                }));
            }
            Err(file) => damaged.push(file),
        }
    }
    damaged
}

/// The ids and checksums of the tables of a keyspace. The error is the file that can't be read.
fn listed(keyspace: &Path) -> Result<Vec<(u64, u128)>, PathBuf> {
    let current = keyspace.join("current");
    let number = fs::read(&current).ok();
    let number = number.and_then(|bytes| Some(u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?)));
    let list = keyspace.join(format!("v{}", number.ok_or(current)?));
    read_list(&list).map_err(|_| list)
}

fn read_list(list: &Path) -> io::Result<Vec<(u64, u128)>> {
    let archive = sfa::Reader::new(list).map_err(io::Error::other)?;
    let section = archive.toc().section(b"tables");
    let mut reader = section
        .ok_or_else(|| io::Error::other("no tables are listed"))?
        .buf_reader(list)
        .map_err(io::Error::other)?;
    let mut tables = Vec::new();
    for _level in 0..u8::from_le_bytes(bytes(&mut reader)?) {
        for _run in 0..u8::from_le_bytes(bytes(&mut reader)?) {
            for _table in 0..u32::from_le_bytes(bytes(&mut reader)?) {
                let id = u64::from_le_bytes(bytes(&mut reader)?);
                let [_type] = bytes(&mut reader)?;
                let checksum = u128::from_le_bytes(bytes(&mut reader)?);
                let _sequence: [u8; 8] = bytes(&mut reader)?;
                tables.push((id, checksum));
            }
        }
    }
    Ok(tables)
}

fn bytes<const N: usize>(reader: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    reader.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn checksum(file: &Path) -> io::Result<u128> {
    let mut reader = File::open(file)?;
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut hash = Xxh3::new();
    loop {
        let count = reader.read(&mut buffer)?;
        if count == 0 {
            return Ok(hash.digest128());
        }
        hash.update(&buffer[..count]);
    }
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;
    use herald_model::UserId;

    use super::*;
    use crate::{ErrorKind, embedded::Embedded};

    /// Each byte of a table of `records` that a start needs is missed by name, with the remedy.
    #[test]
    fn a_damaged_table_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let config = crate::embedded::Config {
            data_dir: dir.path().into(),
            ..crate::embedded::Config::default()
        };
        let store = Embedded::open(&config).unwrap();
        block_on(store.stores().users.intern(&[UserId::new("ann").unwrap()])).unwrap();
        // Tables, not only a journal.
        store.backup(&dir.path().join("copy")).unwrap();
        store.close().unwrap();
        drop(store);
        let config = crate::embedded::Config {
            data_dir: dir.path().join("copy"),
            ..config
        };
        let records = config.data_dir.join("records");
        assert_eq!(damaged(&records), Vec::<PathBuf>::new());
        let keyspaces = fs::read_dir(records.join("keyspaces")).unwrap();
        let tables =
            keyspaces.flat_map(|keyspace| fs::read_dir(keyspace.unwrap().path().join("tables")).unwrap());
        let table = tables.map(|table| table.unwrap().path()).next().unwrap();
        let mut content = fs::read(&table).unwrap();
        // In the trailer, which is read at the start.
        let last = content.len() - 20;
        content[last] ^= 1;
        fs::write(&table, content).unwrap();
        assert_eq!(damaged(&records), std::slice::from_ref(&table));
        let refused = Embedded::open(&config).err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::Corrupt);
        let told = refused.to_string();
        assert!(
            told.contains(table.to_str().unwrap())
                && told.contains("herald restore")
                && !told.contains("recover`"),
            "{told}"
        );
    }
}
