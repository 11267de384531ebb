//! The journals of the databases: checked before fjall reads them, and recovered if they are damaged.
//!
//! fjall takes some damage for the end of a journal, such as a flipped bit in a length, and drops what follows, although
//! it was acknowledged. So each journal is read before. Damage is refused, and [`recover`](super::recover()) is the remedy.

mod active;
mod scan;
#[cfg(test)]
mod tests;

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
};

pub(crate) use self::active::ActiveJournal;
use self::scan::{End, Scan};
use super::{
    contents::DATABASES,
    dir::{io_error, unused_in_damaged},
};
use crate::{Error, ErrorKind, Result};

/// What was recovered of a damaged journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalReport {
    /// The database.
    pub database: &'static str,
    /// The journal, which has only what could be read once it is recovered.
    pub journal: PathBuf,
    /// Where the damaged journal is kept; `None` before it is recovered.
    pub kept_at: Option<PathBuf>,
    /// Number of batches that are kept. All writes of a batch belong together.
    pub batches_kept: usize,
    /// Number of bytes that could not be read. They had at least one batch, which is lost.
    pub bytes_lost: usize,
}

/// Recovers the damaged journals of the store in a data directory that is not open. `[]` if none is damaged.
pub(super) fn recover(data_dir: &Path) -> Result<Vec<JournalReport>> {
    for_each_damaged(data_dir, |report, bytes, scan| {
        replace(data_dir, report, bytes, scan)
    })
}

/// The damaged journals, as they would be recovered.
pub(super) fn inspect(data_dir: &Path) -> Result<Vec<JournalReport>> {
    for_each_damaged(data_dir, |report, _, _| Ok(report))
}

fn for_each_damaged(
    data_dir: &Path,
    mut handle: impl FnMut(JournalReport, &[u8], &Scan) -> Result<JournalReport>,
) -> Result<Vec<JournalReport>> {
    let mut reports = Vec::new();
    for database in DATABASES {
        if !data_dir.join(database).exists() {
            continue;
        }
        let journals = journals(&data_dir.join(database))?;
        for (place, journal) in journals.iter().enumerate() {
            let bytes = read(journal)?;
            let scan = Scan::of(&bytes);
            if is_damaged(&scan, place + 1 == journals.len()) {
                let kept: usize = scan.batches.iter().map(ExactSizeIterator::len).sum();
                let report = JournalReport {
                    database,
                    journal: journal.clone(),
                    kept_at: None,
                    batches_kept: scan.batches.len(),
                    bytes_lost: scan::written(&bytes) - kept,
                };
                reports.push(handle(report, &bytes, &scan)?);
            }
        }
    }
    Ok(reports)
}

/// Checks the journals of a database before it is opened. Cuts off what was never durable.
pub(super) fn check(data_dir: &Path, database: &str) -> Result<()> {
    let dir = data_dir.join(database);
    if !dir.exists() {
        return Ok(());
    }
    let journals = journals(&dir)?;
    for (place, journal) in journals.iter().enumerate() {
        let scan = Scan::of(&read(journal)?);
        if is_damaged(&scan, place + 1 == journals.len()) {
            return Err(refusal(data_dir, journal, &scan));
        }
        if scan.end == End::Torn {
            cut(journal, scan.readable)?;
        }
    }
    Ok(())
}

/// All journals but the newest were synced before the next one was made.
fn is_damaged(scan: &Scan, is_newest: bool) -> bool {
    scan.end == End::Damaged || (scan.end == End::Torn && !is_newest)
}

fn refusal(data_dir: &Path, journal: &Path, scan: &Scan) -> Error {
    let later = scan
        .batches
        .iter()
        .filter(|batch| batch.start >= scan.readable)
        .count();
    Error::new(
        ErrorKind::Corrupt,
        format!(
            "the journal {} is damaged at byte {}: its disk changed or lost what was written; {} batches before and {later} \
             after the damage can be read: restore the data directory from a backup, or run `herald recover --data-dir {}`, \
             which keeps them and gives up what is damaged",
            journal.display(),
            scan.readable,
            scan.batches.len() - later,
            data_dir.display(),
        ),
    )
}

fn cut(journal: &Path, readable: usize) -> Result<()> {
    tracing::info!(
        journal = %journal.display(),
        at = readable,
        "cut off the end of a journal, which was being written when herald ended and was not acknowledged"
    );
    let cut = File::options().write(true).open(journal).and_then(|file| {
        file.set_len(readable as u64)?;
        file.sync_all()
    });
    cut.map_err(|error| io_error(format!("can't cut the journal {}", journal.display()), error))
}

fn replace(data_dir: &Path, report: JournalReport, bytes: &[u8], scan: &Scan) -> Result<JournalReport> {
    let journal = &*report.journal;
    let database = report.database;
    let written = scan::written(bytes);
    let failed = |error| io_error(format!("can't recover the journal {}", journal.display()), error);
    let name = journal.file_name().unwrap_or_default().to_string_lossy();
    let kept_at = unused_in_damaged(data_dir, &format!("{database}-{name}"))?;
    (|| {
        // The journal stays in place until its replacement is complete.
        write(&kept_at, [&bytes[..written]].into_iter())?;
        let new = journal.with_extension("jnl-recovered");
        write(&new, scan.batches.iter().map(|batch| &bytes[batch.clone()]))?;
        fs::rename(&new, journal)?;
        for changed in [&kept_at, journal] {
            File::open(changed.parent().unwrap_or(data_dir))?.sync_all()?;
        }
        Ok(())
    })()
    .map_err(failed)?;
    Ok(JournalReport {
        kept_at: Some(kept_at),
        ..report
    })
}

fn write<'a>(path: &Path, parts: impl Iterator<Item = &'a [u8]>) -> std::io::Result<()> {
    let mut file = std::io::BufWriter::new(File::create(path)?);
    for part in parts {
        file.write_all(part)?;
    }
    file.into_inner()?.sync_all()
}

/// The journals of a database, the oldest first.
fn journals(dir: &Path) -> Result<Vec<PathBuf>> {
    let failed = |error| io_error(format!("can't read the directory {}", dir.display()), error);
    let mut journals = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let number = path.file_name().and_then(|name| name.to_str());
        let number = number.and_then(|name| name.strip_suffix(".jnl")?.parse::<u64>().ok());
        if let Some(number) = number {
            journals.push((number, path));
        }
    }
    journals.sort_unstable();
    Ok(journals.into_iter().map(|(_, path)| path).collect())
}

fn read(journal: &Path) -> Result<Vec<u8>> {
    fs::read(journal)
        .map_err(|error| io_error(format!("can't read the journal {}", journal.display()), error))
}
