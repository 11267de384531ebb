//! Gathers messages of one stream into batches, and writes and counts the rows of a batch together.
//!
//! Steps of a batch: skip messages that were counted before ([`Totals::seen`]). Then for each file: skip rows that are
//! not newer than the counted revision of their chunk ([`Totals::counted`]), announce the file ([`Totals::intend`]),
//! write it, and in one commit count its rows, mark their messages as seen and clear the announcement
//! ([`Totals::commit`]). Each message is settled after its last row. A file that fails permanently is bisected, and
//! counted without the rows that cause the failure.
//!
//! Any number of instances write files, each under a lease of its own. A message that is redelivered to another instance
//! while this one still has it is counted by the first commit. The other commit fails; its instance deletes the file,
//! reads again what is counted, and writes the rest.
//!
//! *Invariant:* a row in a file whose announcement was cleared is counted, and is in no other such file. An instance
//! deletes its uncounted files before it writes another ([`uncounted`](crate::uncounted)). The files of an instance that
//! died are deleted by another one.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use herald_failure::{Classified, isolate};
use herald_mesh::{Disposition, MessageLink, batch_span};
use herald_proto::EVENT_CHUNKS_MAX;
use herald_store::{ErrorKind, Fence, Totals};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::adapters::{FileStore, encode};
use crate::domain::{Entry, File, Row, RowPosition, group_into_files};
use crate::error::CommitError;
use crate::metrics::Metrics;
use crate::uncounted::{Leftovers, is_announced};

/// Maximum number of times that a file is written again at once because another instance counted some of its rows.
const OVERTAKEN_MAX: usize = 3;

/// Bounds of the delay between two attempts at a batch that waits for the store; it doubles.
const WAIT_MIN: Duration = Duration::from_millis(200);
const WAIT_MAX: Duration = Duration::from_secs(2);

/// A message, and the channel that receives its disposition.
#[derive(Debug)]
pub(crate) struct Submission {
    pub(crate) sequence: u64,
    pub(crate) rows: Vec<Row>,
    pub(crate) link: Option<MessageLink>,
    pub(crate) reply: oneshot::Sender<Disposition>,
}

/// Writes the messages of one stream.
pub(crate) struct Batcher {
    pub(crate) stream: &'static str,
    pub(crate) consumer: String,
    /// Maximum number of rows of a batch. The last message may exceed it by its rows.
    pub(crate) rows_max: usize,
    /// Maximum number of messages of a batch.
    pub(crate) messages_max: usize,
    /// Maximum time that a batch waits for more messages.
    pub(crate) age_max: Duration,
    pub(crate) totals: Arc<dyn Totals>,
    pub(crate) files: FileStore,
    pub(crate) metrics: Metrics,
    /// Cancelled at shutdown: from then on a batch is committed without waiting for more messages.
    pub(crate) flush: CancellationToken,
    /// The lease of this instance, which owns the files.
    pub(crate) owner: Fence,
    /// Announced files that may not be counted.
    pub(crate) leftovers: Leftovers,
}

/// The messages of a batch, by sequence. A message that is redelivered while it waits is gathered once.
#[derive(Default)]
pub(crate) struct Batch {
    messages: HashMap<u64, GatheredMessage>,
    /// Number of rows of all messages.
    rows: usize,
    links: Vec<MessageLink>,
}

/// A message with rows that are not settled yet.
struct GatheredMessage {
    rows: Vec<Row>,
    /// Number of rows that are not settled yet.
    unsettled: usize,
    /// Disposition of the message so far: the first one that isn't `Ack`, else `Ack`.
    disposition: Disposition,
    replies: Vec<oneshot::Sender<Disposition>>,
}

impl GatheredMessage {
    fn finish(self, disposition: &Disposition) {
        for reply in self.replies {
            // The message of a dropped handler is redelivered, and is skipped then if it was counted.
            let _ = reply.send(disposition.clone());
        }
    }
}

impl Batch {
    fn add(&mut self, submission: Submission) {
        let Submission {
            sequence,
            rows,
            link,
            reply,
        } = submission;
        self.links.extend(link);
        let message = self.messages.entry(sequence).or_insert_with(|| {
            self.rows += rows.len();
            GatheredMessage {
                unsettled: rows.len(),
                rows,
                disposition: Disposition::Ack,
                replies: Vec::new(),
            }
        });
        message.replies.push(reply);
    }

    /// The rows of a message; each of them must be settled.
    fn rows_of(&self, sequence: u64) -> impl Iterator<Item = Entry> + use<> {
        let message = self.messages.get(&sequence);
        let rows = message.map(|message| message.rows.clone()).unwrap_or_default();
        let count = rows.len();
        rows.into_iter().enumerate().map(move |(index, row)| Entry {
            position: RowPosition {
                sequence,
                index,
                count,
            },
            row,
        })
    }

    /// Settles a row. The last row settles the message, with `Ack` if every row has `Ack`.
    fn settle_row(&mut self, position: RowPosition, disposition: &Disposition) {
        let Some(message) = self.messages.get_mut(&position.sequence) else {
            return;
        };
        message.unsettled -= 1;
        if matches!(message.disposition, Disposition::Ack) {
            message.disposition = disposition.clone();
        }
        if message.unsettled == 0 {
            let disposition = message.disposition.clone();
            self.settle(position.sequence, &disposition);
        }
    }

    fn settle(&mut self, sequence: u64, disposition: &Disposition) {
        if let Some(message) = self.messages.remove(&sequence) {
            message.finish(disposition);
        }
    }

    fn acknowledge(&mut self, entries: &[Entry]) {
        for entry in entries {
            self.settle_row(entry.position, &Disposition::Ack);
        }
    }

    /// Begins anew with the messages that are not settled.
    fn restart(&mut self) {
        for message in self.messages.values_mut() {
            message.unsettled = message.rows.len();
            message.disposition = Disposition::Ack;
        }
    }

    fn settle_rest(&mut self, disposition: &Disposition) {
        for (_, message) in self.messages.drain() {
            message.finish(disposition);
        }
    }
}

impl Batcher {
    /// Commits batches until every sender of the inbox is dropped.
    pub(crate) async fn run(self, mut inbox: mpsc::Receiver<Submission>) {
        let mut received = Vec::with_capacity(self.rows_max);
        loop {
            let mut batch = Batch::default();
            if inbox.recv_many(&mut received, self.capacity(&batch)).await == 0 {
                return;
            }
            received.drain(..).for_each(|submission| batch.add(submission));
            self.gather(&mut batch, &mut received, &mut inbox).await;
            let span = batch_span(
                "analytics",
                self.stream,
                &self.consumer,
                batch.messages.len(),
                &batch.links,
            );
            self.commit(batch).instrument(span).await;
        }
    }

    /// Adds messages to the batch until it is full or `age_max` has passed.
    async fn gather(
        &self,
        batch: &mut Batch,
        received: &mut Vec<Submission>,
        inbox: &mut mpsc::Receiver<Submission>,
    ) {
        let timeout = tokio::time::sleep(self.age_max);
        tokio::pin!(timeout);
        while batch.rows < self.rows_max && batch.messages.len() < self.messages_max {
            tokio::select! {
                biased;
                () = self.flush.cancelled() => match inbox.try_recv() {
                    Ok(submission) => batch.add(submission),
                    Err(_) => return,
                },
                () = &mut timeout => return,
                count = inbox.recv_many(received, self.capacity(batch)) => {
                    if count == 0 {
                        return;
                    }
                    received.drain(..).for_each(|submission| batch.add(submission));
                }
            }
        }
    }

    /// Number of messages that fit into the batch, at least 1, if each has the maximum number of rows.
    fn capacity(&self, batch: &Batch) -> usize {
        let rows = self.rows_max.saturating_sub(batch.rows) / EVENT_CHUNKS_MAX;
        let messages = self.messages_max.saturating_sub(batch.messages.len());
        rows.min(messages).max(1)
    }

    /// Commits a batch and settles its messages. While the store is away, the batch waits here: heartbeats keep its
    /// messages, and they spend no attempt.
    async fn commit(&self, mut batch: Batch) {
        let started = Instant::now();
        let rows = batch.rows;
        let mut delay = WAIT_MIN;
        let committed = loop {
            match self.try_commit(&mut batch).await {
                Err(Classified::Transient(error)) if error.is_store_away() && !self.flush.is_cancelled() => {
                    if delay == WAIT_MIN {
                        tracing::warn!(stream = self.stream, rows, %error, "batch waits for the store");
                    }
                }
                committed => break committed,
            }
            self.flush.run_until_cancelled(tokio::time::sleep(delay)).await;
            delay = (2 * delay).min(WAIT_MAX);
            batch.restart();
        };
        match committed {
            Ok(()) => {
                tracing::debug!(
                    stream = self.stream,
                    rows,
                    ms = started.elapsed().as_millis() as u64,
                    "batch committed"
                );
            }
            Err(error) => {
                self.metrics.failures.inc();
                let messages = batch.messages.len();
                tracing::warn!(stream = self.stream, rows, messages, %error, "batch failed, messages will be retried");
                batch.settle_rest(&error.into());
            }
        }
        self.metrics
            .commit_seconds
            .observe(started.elapsed().as_secs_f64());
    }

    /// Commits a batch. Messages and rows that fail permanently are settled as faults. After a transient error the rest
    /// of the batch is not settled.
    async fn try_commit(&self, batch: &mut Batch) -> Result<(), Classified<CommitError>> {
        self.delete_leftovers().await?;
        let mut sequences: Vec<u64> = batch.messages.keys().copied().collect();
        sequences.sort_unstable();
        let read = isolate(sequences.len(), true, |part| self.seen(&sequences[part])).await;
        for (index, reason) in read.failed {
            self.metrics.isolated.inc();
            batch.settle(sequences[index], &Disposition::fault(reason));
        }
        if let Some(failure) = read.stopped {
            return Err(failure);
        }
        let mut fresh = Vec::with_capacity(batch.rows);
        for (part, seen) in read.done {
            for (sequence, seen) in sequences[part].iter().zip(seen) {
                if seen {
                    self.metrics.repeats.inc();
                    batch.settle(*sequence, &Disposition::Ack);
                } else {
                    fresh.extend(batch.rows_of(*sequence));
                }
            }
        }
        for file in group_into_files(self.stream, fresh) {
            self.commit_file(batch, file).await?;
        }
        Ok(())
    }

    async fn seen(&self, sequences: &[u64]) -> Result<Vec<bool>, CommitError> {
        Ok(self.totals.seen(self.stream, sequences).await?)
    }

    /// Commits a file. A row that fails permanently fails its message; the other rows of the file are counted.
    async fn commit_file(&self, batch: &mut Batch, file: File) -> Result<(), Classified<CommitError>> {
        let rows = file.entries.len();
        let written = isolate(rows, true, |part| self.write_part(&file, part)).await;
        for (part, ()) in written.done {
            batch.acknowledge(&file.entries[part]);
        }
        if let Some((_, reason)) = written.failed.first() {
            self.metrics.failures.inc();
            let failed = written.failed.len();
            tracing::warn!(
                stream = self.stream,
                rows,
                failed,
                reason,
                "rows not counted because of a permanent error; their messages will be retried or dead-lettered"
            );
        }
        for (index, reason) in written.failed {
            self.metrics.isolated.inc();
            batch.settle_row(file.entries[index].position, &Disposition::fault(reason));
        }
        written.stopped.map_or(Ok(()), Err)
    }

    async fn write_part(&self, file: &File, part: Range<usize>) -> Result<(), CommitError> {
        let is_whole = part.len() == file.entries.len();
        let part = File {
            entries: file.entries[part].to_vec(),
            ..*file
        };
        if !is_whole {
            self.read_totals(&part).await?;
        }
        self.write_new_rows(part).await
    }

    /// Reads the totals that a part of a failed file changes, so that corrupt totals fail before the file is written.
    async fn read_totals(&self, part: &File) -> Result<(), CommitError> {
        self.totals.hour_totals(part.hour, part.hour + 1).await?;
        for post in part.posts() {
            self.totals.post_totals(post).await?;
        }
        Ok(())
    }

    /// Writes and counts a file without its stale rows.
    async fn write_new_rows(&self, file: File) -> Result<(), CommitError> {
        let mut overtaken = 0;
        loop {
            // A previous part of the file may have failed after its announcement.
            self.delete_leftovers().await?;
            let mut file = file.clone();
            if overtaken > 0 {
                let sequences = file.sequences();
                let seen = self.totals.seen(self.stream, &sequences).await?;
                file.drop_seen_rows(&sequences, &seen);
            }
            // Not read earlier, because the previous file may contain the same chunks.
            let chunks = file.chunks();
            let counted = self.totals.counted(&chunks).await?;
            let rows = file.entries.len();
            file.drop_stale_rows(&mut chunks.into_iter().zip(counted).collect());
            let stale = rows - file.entries.len();
            let written = if file.entries.is_empty() {
                Ok(())
            } else {
                self.write_file(file).await
            };
            match written {
                Err(CommitError::Overtaken) if overtaken < OVERTAKEN_MAX => {
                    overtaken += 1;
                    self.metrics.overtaken.inc();
                }
                written => {
                    self.metrics.stale.inc_by(stale as u64);
                    return written;
                }
            }
        }
    }

    async fn write_file(&self, file: File) -> Result<(), CommitError> {
        let path = file.path(rand::random());
        let (table, rows) = (file.table.as_str(), file.entries.len());
        // Recorded first, so that a failure or a panic leaves no file unrecorded.
        self.leftovers.add(&path);
        let written = self.announce_write_count(file, &path).await;
        if written.is_ok() {
            self.leftovers.remove(&path);
            self.metrics.count_file(table, rows);
        } else if let Err(error) = self.delete_leftovers().await {
            tracing::debug!(stream = self.stream, %error, "uncounted file not deleted, will be retried");
        }
        written
    }

    async fn announce_write_count(&self, file: File, path: &str) -> Result<(), CommitError> {
        let totals = file.totals(path);
        let sequences = file.sequences();
        // Encoding takes milliseconds, so it runs off the threads that serve calls.
        let bytes = tokio::task::spawn_blocking(move || encode(&file)).await??;
        self.totals.intend(path, &self.owner).await?;
        self.files.put(path, bytes).await?;
        self.leftovers.set_may_be_counted(path, true);
        let uncounted = match self.totals.commit(&totals).await {
            // If another instance has counted all messages of the file, the commit changes nothing.
            Ok(()) => is_announced(&*self.totals, path)
                .await?
                .then_some(CommitError::Overtaken),
            Err(error) => match error.kind() {
                ErrorKind::Fenced => Some(error.into()),
                ErrorKind::Conflict => Some(CommitError::Overtaken),
                // The commit also fails so if another instance has counted some of the messages.
                ErrorKind::Corrupt if self.seen(&sequences).await?.contains(&true) => {
                    Some(CommitError::Overtaken)
                }
                // It is not known whether the rows are counted.
                _ => return Err(error.into()),
            },
        };
        uncounted.map_or(Ok(()), |error| {
            self.leftovers.set_may_be_counted(path, false);
            Err(error)
        })
    }

    /// Deletes the uncounted files of earlier failures.
    async fn delete_leftovers(&self) -> Result<(), CommitError> {
        let deleting = self.leftovers.delete(&*self.totals, &self.files, &self.metrics);
        deleting
            .await
            .map_err(|error| CommitError::Leftovers(Box::new(error)))
    }
}
