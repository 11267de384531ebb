//! Writing what became of a chunk: each outcome is made from the one before.

use std::collections::BTreeSet;

use herald_model::{Channel, ChunkId, PostId, Recipients, UserKey, time::Timestamp};
use parking_lot::{Mutex, MutexGuard};

use super::{
    Ledger,
    row::{self, Head, Kind},
};
use crate::{
    Error, ErrorKind, ExpectedRevision, MarkedDead, Outcome, RecordedOutcome, Result, Settlement,
    embedded::database::{Committed, map_err},
};

/// Locks that writers of outcomes share; two of them seldom meet.
const STRIPES: usize = 64;

/// One writer a chunk at a time. A lock is held from reading a row to applying the next one, never over an fsync: what is
/// applied can be read, so the next writer goes on from it, and both wait for the disk together.
pub(super) struct Writers([Mutex<()>; STRIPES]);

impl Default for Writers {
    fn default() -> Self {
        Self([const { Mutex::new(()) }; STRIPES])
    }
}

impl Writers {
    /// Keeps others from writing a chunk's outcome.
    fn lock(&self, post: PostId, chunk: ChunkId) -> MutexGuard<'_, ()> {
        self.0[(post.0 ^ chunk.0) as usize % STRIPES].lock()
    }
}

impl Ledger {
    /// Records an outcome once it is allowed, durably; answers with the chunk's revision.
    pub(super) async fn record(&self, settlement: &Settlement) -> Result<u64> {
        if settlement.base == ExpectedRevision::Any
            && !matches!(settlement.outcome, Outcome::Delivered { .. })
        {
            return Err(Error::new(
                ErrorKind::Invalid,
                "only the delivery of a whole chunk needs no base",
            ));
        }
        let (revision, committed) = {
            let _writer = self.writers.lock(settlement.post, settlement.chunk);
            let row = self.outcome_row(settlement.post, settlement.channel, settlement.chunk)?;
            let before = row.as_deref().map_or(Ok(Head::default()), row::decode_head)?;
            if let ExpectedRevision::Revision(base) = settlement.base
                && base != before.revision
            {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!(
                        "chunk {} is at revision {}, not {base}",
                        settlement.chunk, before.revision
                    ),
                ));
            }
            self.replace(settlement, row.as_deref(), before)?
        };
        committed.await?;
        Ok(revision)
    }

    /// Makes all pending recipients of a planned chunk dead, durably.
    pub(super) async fn give_up(
        &self,
        post: PostId,
        channel: Channel,
        chunk: ChunkId,
        at: Timestamp,
    ) -> Result<Option<MarkedDead>> {
        let planned = row::chunk_key(post, Kind::Chunk, channel, chunk);
        let Some(planned) = self.rows.get(planned).map_err(map_err)? else {
            return Ok(None);
        };
        let recipients = row::decode_chunk(&planned)?.1.decode()?;
        let (marked_dead, committed) = {
            let _writer = self.writers.lock(post, chunk);
            let row = self.outcome_row(post, channel, chunk)?;
            let before = row.as_deref().map_or(Ok(Head::default()), row::decode_head)?;
            let recorded = row.as_deref().map(row::decode_outcome).transpose()?;
            let settlement = Settlement {
                post,
                channel,
                chunk,
                base: ExpectedRevision::Revision(before.revision),
                outcome: marked_dead(&recipients, recorded),
                at,
            };
            let (revision, committed) = self.replace(&settlement, row.as_deref(), before)?;
            let counts = settlement.outcome.counts();
            let owed = match settlement.outcome {
                Outcome::Delivered { .. } => Recipients::default(),
                Outcome::Mixed { dead, .. } => dead,
            };
            let marked_dead = MarkedDead {
                owed,
                revision,
                counts,
            };
            (marked_dead, committed)
        };
        committed.await?;
        Ok(Some(marked_dead))
    }

    /// Writes an outcome over what was read, if that changes anything; answers with the revision. Whoever calls it holds
    /// the chunk's lock.
    fn replace(&self, settlement: &Settlement, row: Option<&[u8]>, before: Head) -> Result<(u64, Committed)> {
        let key = row::chunk_key(
            settlement.post,
            Kind::Outcome,
            settlement.channel,
            settlement.chunk,
        );
        let delivered_at = delivered_at(&before, settlement);
        let mut batch = self.database.batch();
        if let Some(row) = row
            && delivered_at == before.delivered_at
            && row::decode_outcome(row)?.outcome == settlement.outcome
        {
            // Recorded before, but perhaps not durable yet: what is committed after it makes it so.
            return Ok((before.revision, self.database.apply(batch)?));
        }
        let revision = before.revision + 1;
        let new = row::encode_outcome(revision, &settlement.outcome, delivered_at);
        batch.insert(&self.rows, key, new);
        Ok((revision, self.database.apply(batch)?))
    }
}

/// When the first and the last of a chunk were delivered, given what was known before.
fn delivered_at(before: &Head, settlement: &Settlement) -> Option<(Timestamp, Timestamp)> {
    let delivered = settlement.outcome.counts().delivered;
    match before.delivered_at {
        // The same again, or less: the message came once more.
        Some(at) if delivered <= before.counts.delivered => Some(at),
        Some((first, last)) => Some((first.min(settlement.at), last.max(settlement.at))),
        None => (delivered > 0).then_some((settlement.at, settlement.at)),
    }
}

/// A chunk's outcome with nobody pending.
fn marked_dead(recipients: &Recipients, recorded: Option<RecordedOutcome>) -> Outcome {
    let outcome = recorded.map_or_else(
        || Outcome::Mixed {
            delivered: Recipients::default(),
            suppressed: Recipients::default(),
            expired: Recipients::default(),
            dead: Recipients::default(),
            partial: Vec::new(),
        },
        |recorded| recorded.outcome,
    );
    let Outcome::Mixed {
        delivered,
        suppressed,
        expired,
        dead,
        partial,
    } = outcome
    else {
        return outcome;
    };
    let settled: BTreeSet<UserKey> = [&delivered, &suppressed, &expired, &dead]
        .into_iter()
        .flatten()
        .collect();
    let (mut reached, mut lost): (BTreeSet<UserKey>, BTreeSet<UserKey>) = recipients
        .iter()
        .filter(|user| !settled.contains(user))
        .partition(|user| {
            partial
                .iter()
                .any(|one| one.user == *user && !one.done.is_empty())
        });
    reached.extend(&delivered);
    lost.extend(&dead);
    Outcome::Mixed {
        delivered: Recipients::from_sorted(reached),
        suppressed,
        expired,
        dead: Recipients::from_sorted(lost),
        partial: Vec::new(),
    }
}
