//! Reads a journal of fjall, batch by batch, without fjall.
//!
//! A batch is a start (tag 1, number of entries `u32`, sequence `u64`), its entries, and an end (tag 3, xxh3 of the
//! entries `u64`, `FJL\x03`). An entry is an item (tag 2, type `u8`, compression `u8`, keyspace `u64`, length of the key
//! `u16`, of the value `u32`, of the stored value `u32`, key, stored value) or clears a keyspace (tag 4, keyspace
//! `u64`). Numbers are little-endian. Zeros follow the last batch.

use std::ops::Range;

use xxhash_rust::xxh3::Xxh3;

const TRAILER: &[u8] = b"FJL\x03";

/// The unit in which the kernel writes a file.
const PAGE: usize = 4_096;

/// Zeros before the end of a page that show that the rest of the page was not written.
const ZEROS_MIN: usize = 16;

/// The batches of a journal.
pub(super) struct Scan {
    /// The places of all batches that are complete and have the right checksum.
    pub(super) batches: Vec<Range<usize>>,
    /// End of the batches before the first byte that can't be read.
    pub(super) readable: usize,
    pub(super) end: End,
}

/// What follows the batches that can be read from the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Nothing.
    Clean,
    /// What was being written when the machine or the process stopped. It was never durable.
    Torn,
    /// A batch that was written and can't be read any more.
    Damaged,
}

impl Scan {
    /// Reads a journal.
    ///
    /// After a loss of power, pages that were not synced are missing in any order; they read as zeros. After the end of
    /// the process, the last batch is cut off. All else that can't be read was changed after it was written. No value
    /// has a page of zeros: fjall compresses long values.
    pub(super) fn of(journal: &[u8]) -> Self {
        let mut batches = Vec::new();
        let mut readable = 0;
        while let Some(end) = batch_at(journal, readable) {
            batches.push(readable..end);
            readable = end;
        }
        let written = written(journal);
        if written <= readable {
            let end = End::Clean;
            return Self {
                batches,
                readable,
                end,
            };
        }
        let first_later = batches.len();
        let mut at = readable + 1;
        while at < written {
            match batch_at(journal, at) {
                Some(end) => {
                    batches.push(at..end);
                    at = end;
                }
                None => at += 1,
            }
        }
        let hole_end = batches.get(first_later).map_or(written, |later| later.start);
        let is_complete = hole_end < written || journal[..written].ends_with(TRAILER);
        let end = if is_complete && !has_lost_page(journal, readable..hole_end) {
            End::Damaged
        } else {
            End::Torn
        };
        Self {
            batches,
            readable,
            end,
        }
    }
}

/// The length of a journal without the zeros at its end. Compares pages: most of a new journal is zeros.
pub(super) fn written(journal: &[u8]) -> usize {
    let pages = journal.chunks(PAGE).enumerate();
    let last = pages.rev().find(|(_, page)| **page != [0; PAGE][..page.len()]);
    last.map_or(0, |(number, page)| {
        number * PAGE
            + page
                .iter()
                .rposition(|byte| *byte != 0)
                .map_or(0, |last| last + 1)
    })
}

/// Whether a page of the hole, or the rest of a page, was never written.
fn has_lost_page(journal: &[u8], hole: Range<usize>) -> bool {
    let first = hole.start / PAGE + 1;
    (first..=hole.end / PAGE).any(|page| {
        let end = page * PAGE;
        let zeros = journal[hole.start..end]
            .iter()
            .rev()
            .take_while(|byte| **byte == 0);
        zeros.count() >= ZEROS_MIN.min(end - hole.start)
    })
}

/// The end of the batch that starts at a place; `None` if there is no complete one with the right checksum.
fn batch_at(journal: &[u8], start: usize) -> Option<usize> {
    let mut reader = Reader { journal, at: start };
    if reader.u8()? != 1 {
        return None;
    }
    let entries = reader.u32()?;
    reader.skip(8)?;
    let mut checksum = Xxh3::new();
    for _ in 0..entries {
        let entry = reader.at;
        match reader.u8()? {
            2 => {
                reader.skip(1 + 1 + 8)?;
                let key = usize::from(reader.u16()?);
                reader.skip(4)?;
                let value = reader.u32()? as usize;
                reader.skip(key.checked_add(value)?)?;
            }
            4 => reader.skip(8)?,
            _ => return None,
        }
        checksum.update(&journal[entry..reader.at]);
    }
    if reader.u8()? != 3 || reader.u64()? != checksum.digest() {
        return None;
    }
    let trailer = reader.take(TRAILER.len())?;
    (trailer == TRAILER).then_some(reader.at)
}

struct Reader<'a> {
    journal: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let taken = self.journal.get(self.at..self.at.checked_add(bytes)?)?;
        self.at += bytes;
        Some(taken)
    }

    fn skip(&mut self, bytes: usize) -> Option<()> {
        self.take(bytes).map(drop)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes(self.take(2)?.try_into().ok()?))
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }
}
