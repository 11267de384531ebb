use super::*;
use crate::embedded::{Config, Embedded, TimelinesState, recover};

const USERS: u32 = 40;

fn open(dir: &Path) -> Result<Embedded> {
    Embedded::open(&Config {
        data_dir: dir.into(),
        ..Config::default()
    })
}

fn recovered(dir: &Path) -> Result<Vec<JournalReport>> {
    let recovery = recover(&Config {
        data_dir: dir.into(),
        ..Config::default()
    })?;
    assert_eq!(recovery.timelines, TimelinesState::Intact);
    Ok(recovery.journals)
}

fn user(n: u32) -> herald_model::UserId {
    herald_model::UserId::new(format!("user {n} {}", "x".repeat(100))).unwrap()
}

/// A store whose journal of `records` has a batch for each user. Returns the journal.
fn store(dir: &Path) -> PathBuf {
    let store = open(dir).unwrap();
    for n in 1..=USERS {
        futures::executor::block_on(store.stores().users.intern(&[user(n)])).unwrap();
    }
    store.close().unwrap();
    journals(&dir.join("records")).unwrap().pop().unwrap()
}

/// The users that are found, of all.
fn found(dir: &Path) -> Vec<u32> {
    let store = open(dir).unwrap();
    let ids: Vec<_> = (1..=USERS).map(user).collect();
    let keys = futures::executor::block_on(store.stores().users.find(&ids)).unwrap();
    store.close().unwrap();
    (1..=USERS)
        .zip(keys)
        .filter_map(|(n, key)| key.map(|_| n))
        .collect()
}

/// The places of the batches of a new store.
fn batches(journal: &Path) -> Vec<std::ops::Range<usize>> {
    Scan::of(&read(journal).unwrap()).batches
}

fn change(journal: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = read(journal).unwrap();
    change(&mut bytes);
    fs::write(journal, bytes).unwrap();
}

#[test]
fn a_flipped_bit_anywhere_is_refused_by_the_name_of_the_journal_and_recovered() {
    let dir = tempfile::tempdir().unwrap();
    let journal = store(dir.path());
    let all = batches(&journal);
    assert!(all.len() >= USERS as usize, "{}", all.len());
    let intact = read(&journal).unwrap();
    // The tenth last batch, and the last one: its tag, its number of entries, an entry's tag, lengths, the key or the
    // value, the checksum, the trailer.
    for batch in [&all[all.len() - 10], &all[all.len() - 1]] {
        let end = batch.len();
        for offset in [0, 1, 13, 16, 24, 26, 30, 36, end - 12, end - 4, end - 1] {
            // The end of the last batch can't be told from one that was being written.
            if batch.end == all[all.len() - 1].end && offset >= end - 4 {
                continue;
            }
            fs::write(&journal, &intact).unwrap();
            change(&journal, |bytes| bytes[batch.start + offset] ^= 0x40);
            let refused = open(dir.path())
                .err()
                .unwrap_or_else(|| panic!("{offset} is not seen"));
            assert_eq!(refused.kind(), ErrorKind::Corrupt);
            let message = refused.to_string();
            for part in [journal.to_str().unwrap(), "herald recover --data-dir"] {
                assert!(message.contains(part), "{part}: {message}");
            }
            assert_eq!(
                fs::metadata(&journal).unwrap().len(),
                intact.len() as u64,
                "nothing is cut off"
            );
        }
    }
    fs::write(&journal, &intact).unwrap();
    change(&journal, |bytes| bytes[all[all.len() - 10].start + 16] ^= 0x40);
    let reports = recovered(dir.path()).unwrap();
    let [report] = &reports[..] else {
        panic!("{reports:?}")
    };
    assert_eq!((report.database, report.batches_kept), ("records", all.len() - 1));
    assert_eq!(report.bytes_lost, all[all.len() - 10].len());
    assert!(report.kept_at.as_ref().is_some_and(|kept| kept.exists()));
    let kept = found(dir.path());
    assert_eq!(kept.len(), USERS as usize - 1, "{kept:?}");
    assert_eq!(recovered(dir.path()).unwrap(), []);
}

#[test]
fn the_end_that_was_being_written_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let journal = store(dir.path());
    let all = batches(&journal);
    let intact = read(&journal).unwrap();
    let last = all[all.len() - 1].clone();
    // Cut off at any place, by the end of the process or of the machine.
    for at in [
        last.start + 1,
        last.start + 13,
        last.start + 30,
        last.end - 4,
        last.end - 1,
    ] {
        for zeros in [0, 1_000] {
            fs::write(&journal, [&intact[..at], &vec![0; zeros][..]].concat()).unwrap();
            assert_eq!(found(dir.path()), (1..USERS).collect::<Vec<_>>(), "{at}");
        }
    }
}

#[test]
fn pages_that_were_not_written_are_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    let journal = store(dir.path());
    let intact = read(&journal).unwrap();
    let all = batches(&journal);
    assert!(all[all.len() - 1].end > 4_096, "the journal has two pages");
    // The first page was written in part, the second one whole.
    let cut = all.iter().rfind(|batch| batch.end < 4_000).unwrap();
    for lost in [cut.end..4_096, cut.start + 20..4_096] {
        fs::write(&journal, &intact).unwrap();
        change(&journal, |bytes| bytes[lost.clone()].fill(0));
        let kept = found(dir.path());
        assert_eq!(kept, (1..=kept.len() as u32).collect::<Vec<_>>());
        assert!(!kept.is_empty() && kept.len() < USERS as usize);
    }
}

#[test]
fn an_open_store_is_not_recovered() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(recovered(dir.path()).unwrap_err().kind(), ErrorKind::Invalid);
    let store = open(dir.path()).unwrap();
    assert_eq!(recovered(dir.path()).unwrap_err().kind(), ErrorKind::Locked);
    store.close().unwrap();
}
