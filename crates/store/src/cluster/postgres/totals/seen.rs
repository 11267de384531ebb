//! The messages that the totals include: a bit each.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::{PgConnection, PgExecutor};

use crate::{Error, ErrorKind, cluster::postgres::Attempt, embedded::totals::row::PAGE};

/// Bytes in a row.
const PAGE_BYTES: usize = PAGE as usize / 8;

/// Rows of one stream by number.
pub(super) struct Pages(BTreeMap<i64, Vec<u8>>);

impl Pages {
    fn of(rows: Vec<(i64, Vec<u8>)>) -> Attempt<Self> {
        if rows.iter().any(|(_, bits)| bits.len() != PAGE_BYTES) {
            return Err(Error::new(
                ErrorKind::Corrupt,
                "a row of the table totals_seen has a wrong length",
            )
            .into());
        }
        Ok(Self(rows.into_iter().collect()))
    }

    /// Whether a message is counted.
    pub(super) fn has(&self, sequence: u64) -> bool {
        let (byte, bit) = position(sequence);
        self.0
            .get(&page(sequence))
            .is_some_and(|bits| bits[byte] & bit != 0)
    }

    /// Marks messages as counted.
    pub(super) fn add(&mut self, sequences: impl IntoIterator<Item = u64>) {
        for sequence in sequences {
            let (byte, bit) = position(sequence);
            let bits = self.0.entry(page(sequence));
            bits.or_insert_with(|| vec![0; PAGE_BYTES])[byte] |= bit;
        }
    }

    /// Writes the rows. The caller has locked them.
    pub(super) async fn write(&self, connection: &mut PgConnection, stream: &str) -> Attempt<()> {
        const SQL: &str = "
            UPDATE herald.totals_seen t SET bits = p.bits, changed_at = now()
            FROM unnest($2::bigint[], $3::bytea[]) AS p (page, bits)
            WHERE t.stream = $1 AND t.page = p.page";
        let (numbers, bits): (Vec<i64>, Vec<&[u8]>) = self
            .0
            .iter()
            .map(|(number, bits)| (*number, bits.as_slice()))
            .unzip();
        sqlx::query(SQL)
            .bind(stream)
            .bind(numbers)
            .bind(bits)
            .execute(connection)
            .await?;
        Ok(())
    }
}

fn page(sequence: u64) -> i64 {
    (sequence / PAGE).cast_signed()
}

/// The byte and the bit of a message in its row.
fn position(sequence: u64) -> (usize, u8) {
    let at = (sequence % PAGE) as usize;
    (at / 8, 1 << (at % 8))
}

fn numbers<'a>(sequences: impl IntoIterator<Item = &'a u64>) -> Vec<i64> {
    let numbers: BTreeSet<i64> = sequences.into_iter().map(|sequence| page(*sequence)).collect();
    numbers.into_iter().collect()
}

/// Reads the rows of messages.
pub(super) async fn read(executor: impl PgExecutor<'_>, stream: &str, sequences: &[u64]) -> Attempt<Pages> {
    const SQL: &str = "SELECT page, bits FROM herald.totals_seen WHERE stream = $1 AND page = ANY($2)";
    let rows = sqlx::query_as(SQL)
        .bind(stream)
        .bind(numbers(sequences))
        .fetch_all(executor)
        .await?;
    Pages::of(rows)
}

/// Locks the rows of messages, and inserts those that are missing.
pub(super) async fn lock(
    connection: &mut PgConnection,
    stream: &str,
    sequences: &BTreeSet<u64>,
) -> Attempt<Pages> {
    const INSERT: &str = "
        INSERT INTO herald.totals_seen (stream, page, bits)
        SELECT $1, page, $3 FROM unnest($2::bigint[]) AS p (page)
        ON CONFLICT DO NOTHING";
    const LOCK: &str = "
        SELECT page, bits FROM herald.totals_seen WHERE stream = $1 AND page = ANY($2)
        ORDER BY page FOR UPDATE";
    let numbers = numbers(sequences);
    sqlx::query(INSERT)
        .bind(stream)
        .bind(&numbers)
        .bind(&[0_u8; PAGE_BYTES][..])
        .execute(&mut *connection)
        .await?;
    let rows = sqlx::query_as(LOCK)
        .bind(stream)
        .bind(&numbers)
        .fetch_all(connection)
        .await?;
    Pages::of(rows)
}
