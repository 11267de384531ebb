//! Writing of chunk outcomes: each revision replaces the previous one.

use std::{collections::BTreeSet, time::Duration};

use herald_model::{Channel, ChunkId, PostId, Recipients, UserKey, time::Timestamp};
use parking_lot::{Mutex, MutexGuard};

use super::{
    Ledger,
    row::{self, OutcomeHead, RowKind},
};
use crate::{
    DeadMessage, DeviceFailure, Error, ErrorKind, ExpectedRevision, FailedRecipient, MarkedDead, Outcome,
    OutcomeDetails, RecordedOutcome, Result, Settlement,
    embedded::database::{Committed, map_err},
};

/// Number of locks. Chunks share locks; contention is rare.
const STRIPES: usize = 64;

/// Locks that allow one writer for each chunk at a time. A lock is held from reading a row until its replacement is
/// applied, never during an fsync: an applied row is readable, so the next writer continues from it and shares the
/// fsync.
pub(super) struct OutcomeLocks([Mutex<()>; STRIPES]);

impl Default for OutcomeLocks {
    fn default() -> Self {
        Self([const { Mutex::new(()) }; STRIPES])
    }
}

impl OutcomeLocks {
    /// Locks the outcome of a chunk.
    fn lock(&self, post: PostId, chunk: ChunkId) -> MutexGuard<'_, ()> {
        self.0[(post.0 ^ chunk.0) as usize % STRIPES].lock()
    }
}

impl Ledger {
    /// Records an outcome durably if the expected revision matches. Returns the chunk's revision.
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`] for another revision, [`ErrorKind::Invalid`] for a mixed outcome without a revision.
    pub(super) async fn record(&self, settlement: &Settlement) -> Result<u64> {
        if settlement.base == ExpectedRevision::Any
            && !matches!(settlement.outcome, Outcome::Delivered { .. })
        {
            return Err(Error::new(
                ErrorKind::Invalid,
                "a mixed outcome needs an expected revision",
            ));
        }
        let (revision, committed) = {
            let _lock = self.outcome_locks.lock(settlement.post, settlement.chunk);
            let row = self.outcome_row(settlement.post, settlement.channel, settlement.chunk)?;
            let before = row
                .as_deref()
                .map_or(Ok(OutcomeHead::default()), row::decode_head)?;
            if let ExpectedRevision::Revision(base) = settlement.base {
                expect_revision(settlement.chunk, before.revision, base)?;
            }
            self.replace(settlement, row.as_deref(), before)?
        };
        committed.await?;
        Ok(revision)
    }

    /// Durably writes the outcome of a chunk at `base` again, with the next revision, and returns that revision.
    ///
    /// # Errors
    /// [`ErrorKind::Claimed`] while another claim lasts, [`ErrorKind::Conflict`] for another revision.
    pub(super) async fn write_claim(
        &self,
        post: PostId,
        channel: Channel,
        chunk: ChunkId,
        base: u64,
        lease: Duration,
    ) -> Result<u64> {
        let (revision, committed) = {
            let _lock = self.outcome_locks.lock(post, chunk);
            self.claims.check_free(post, channel, chunk)?;
            let row = self.outcome_row(post, channel, chunk)?;
            let head = row
                .as_deref()
                .map_or(Ok(OutcomeHead::default()), row::decode_head)?;
            expect_revision(chunk, head.revision, base)?;
            let recorded = row.as_deref().map(row::decode_outcome).transpose()?;
            let outcome = recorded.map_or_else(all_pending, |recorded| recorded.outcome);
            let revision = base + 1;
            let mut batch = self.database.batch();
            batch.insert(
                &self.rows,
                row::chunk_key(post, RowKind::Outcome, channel, chunk),
                row::encode_outcome(revision, &outcome, head.delivered_at),
            );
            let committed = self.database.apply(batch)?;
            self.claims.insert(post, channel, chunk, revision, lease);
            (revision, committed)
        };
        if let Err(error) = committed.await {
            self.claims.release(post, channel, chunk, revision);
            return Err(error);
        }
        Ok(revision)
    }

    /// Durably marks the pending recipients of a dead message dead. `None` if its chunk is not planned.
    pub(super) async fn mark_pending_dead(
        &self,
        dead: &DeadMessage,
        at: Timestamp,
    ) -> Result<Option<MarkedDead>> {
        let DeadMessage {
            post,
            channel,
            chunk,
            generation,
        } = *dead;
        let planned = row::chunk_key(post, RowKind::Chunk, channel, chunk);
        let Some(planned) = self.rows.get(planned).map_err(map_err)? else {
            return Ok(None);
        };
        let recipients = row::decode_chunk(&planned)?.1.decode()?;
        let (marked_dead, committed) = {
            let _lock = self.outcome_locks.lock(post, chunk);
            let row = self.outcome_row(post, channel, chunk)?;
            let before = row
                .as_deref()
                .map_or(Ok(OutcomeHead::default()), row::decode_head)?;
            let recorded = row.as_deref().map(row::decode_outcome).transpose()?;
            let settlement = Settlement {
                post,
                channel,
                chunk,
                base: ExpectedRevision::Revision(before.revision),
                outcome: with_pending_dead(&recipients, recorded, generation),
                at,
                keep_claim: None,
            };
            let (revision, committed) = self.replace(&settlement, row.as_deref(), before)?;
            let counts = settlement.outcome.counts();
            let dead_recipients = match settlement.outcome {
                Outcome::Delivered { .. } => Recipients::default(),
                Outcome::Mixed { dead, .. } => dead,
            };
            let marked_dead = MarkedDead {
                dead_recipients,
                revision,
                counts,
            };
            (marked_dead, committed)
        };
        committed.await?;
        Ok(Some(marked_dead))
    }

    /// Replaces the outcome in `row` unless the new one is the same, and ends or keeps the claim of the chunk.
    /// Returns the revision. The caller must hold the chunk's lock.
    fn replace(
        &self,
        settlement: &Settlement,
        row: Option<&[u8]>,
        before: OutcomeHead,
    ) -> Result<(u64, Committed)> {
        let key = row::chunk_key(
            settlement.post,
            RowKind::Outcome,
            settlement.channel,
            settlement.chunk,
        );
        let delivered_at = delivered_at(&before, settlement);
        let mut batch = self.database.batch();
        if let Some(row) = row
            && delivered_at == before.delivered_at
            && row::decode_outcome(row)?.outcome == settlement.outcome
        {
            // The outcome is recorded but may not be durable yet. An empty batch is durable only after all earlier
            // writes.
            let committed = self.database.apply(batch)?;
            self.pass_claim(settlement, before.revision);
            return Ok((before.revision, committed));
        }
        let revision = before.revision + 1;
        let new = row::encode_outcome(revision, &settlement.outcome, delivered_at);
        batch.insert(&self.rows, key, new);
        let committed = self.database.apply(batch)?;
        self.pass_claim(settlement, revision);
        Ok((revision, committed))
    }

    /// Ends the claim of a settled chunk, or lets it go on at the new revision.
    fn pass_claim(&self, settlement: &Settlement, revision: u64) {
        let Settlement {
            post,
            channel,
            chunk,
            keep_claim,
            ..
        } = *settlement;
        match keep_claim {
            Some(lease) => self.claims.insert(post, channel, chunk, revision, lease),
            None => self.claims.end(post, channel, chunk),
        }
    }
}

/// Times of the first and the last delivery of a chunk after a settlement.
pub(crate) fn delivered_at(before: &OutcomeHead, settlement: &Settlement) -> Option<(Timestamp, Timestamp)> {
    let delivered = settlement.outcome.counts().delivered;
    match before.delivered_at {
        // No new delivery: the message was redelivered.
        Some(at) if delivered <= before.counts.delivered => Some(at),
        Some((first, last)) => Some((first.min(settlement.at), last.max(settlement.at))),
        None => (delivered > 0).then_some((settlement.at, settlement.at)),
    }
}

/// An outcome without a settled recipient.
pub(crate) fn all_pending() -> Outcome {
    Outcome::Mixed {
        delivered: Recipients::default(),
        suppressed: Recipients::default(),
        expired: Recipients::default(),
        dead: Recipients::default(),
        details: OutcomeDetails::default(),
    }
}

fn expect_revision(chunk: ChunkId, revision: u64, base: u64) -> Result<()> {
    if base == revision {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Conflict,
        format!("chunk {chunk} is at revision {revision}, expected {base}"),
    ))
}

/// A chunk's outcome after a message of this generation died. The pending recipients are dead, or delivered if a device
/// was reached; those that wait in a later generation stay pending.
pub(crate) fn with_pending_dead(
    recipients: &Recipients,
    recorded: Option<RecordedOutcome>,
    generation: u32,
) -> Outcome {
    let outcome = recorded.map_or_else(all_pending, |recorded| recorded.outcome);
    let Outcome::Mixed {
        delivered,
        suppressed,
        expired,
        dead,
        mut details,
    } = outcome
    else {
        return outcome;
    };
    let settled: BTreeSet<UserKey> = [&delivered, &suppressed, &expired, &dead]
        .into_iter()
        .flatten()
        .collect();
    let continues = details.generation > generation;
    let (mut reached, mut unreached): (BTreeSet<UserKey>, BTreeSet<UserKey>) = recipients
        .iter()
        .filter(|user| !settled.contains(user))
        .filter(|user| !continues || details.waiting(*user).is_empty())
        .partition(|user| details.pending(*user).is_some_and(|one| !one.done.is_empty()));
    for user in &unreached {
        let mut failures = Vec::new();
        if let Some(pending) = details.pending(*user) {
            failures.clone_from(&pending.failed);
            failures.extend(pending.waiting.iter().map(|retry| DeviceFailure {
                device: Some(retry.device),
                failure: retry.failure.clone(),
            }));
        }
        if generation == 0 && failures.is_empty() {
            continue;
        }
        let failed = FailedRecipient {
            user: *user,
            generation,
            failures,
        };
        match details.failed.binary_search_by_key(user, |one| one.user) {
            Ok(index) => details.failed[index] = failed,
            Err(index) => details.failed.insert(index, failed),
        }
    }
    details
        .pending
        .retain(|one| !reached.contains(&one.user) && !unreached.contains(&one.user));
    reached.extend(&delivered);
    unreached.extend(&dead);
    Outcome::Mixed {
        delivered: Recipients::from_sorted(reached),
        suppressed,
        expired,
        dead: Recipients::from_sorted(unreached),
        details,
    }
}
