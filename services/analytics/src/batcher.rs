//! Gathers messages of one stream, and writes and counts their rows together.
//!
//! The way of a batch: leave out what was counted before ([`Totals::seen`]); for each file, leave out what is older than
//! what is counted of its chunk ([`Totals::counted`]), announce it ([`Totals::intend`]), write it, then count its rows,
//! mark their messages as seen and clear the announcement, all in one ([`Totals::commit`]); then tell the handler of each
//! message that has no other rows to wait for. A file that fails permanently is bisected, and counted without the
//! rows that cause the failure.
//!
//! *Invariant:* a row that is in a file whose announcement was cleared is in no other such file, and it is counted. A file
//! that was announced and whose rows were not counted is deleted before any of them can be written again: at once if that
//! works, else before the next batch, else at the next start.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use herald_failure::{Classified, isolate};
use herald_mesh::Disposition;
use herald_proto::EVENT_CHUNKS_MAX;
use herald_store::Totals;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::adapters::{Files, encode};
use crate::domain::{Entry, File, Place, Row, files};
use crate::error::CommitError;
use crate::metrics::Metrics;

/// A message, and whom to tell what became of it.
#[derive(Debug)]
pub(crate) struct Submission {
    pub(crate) sequence: u64,
    pub(crate) rows: Vec<Row>,
    pub(crate) settle: oneshot::Sender<Disposition>,
}

/// Writes the messages of one stream.
pub(crate) struct Batcher {
    pub(crate) stream: &'static str,
    /// Rows that are written together, and the messages that they come from, at most.
    pub(crate) rows_max: usize,
    pub(crate) messages_max: usize,
    pub(crate) age_max: Duration,
    pub(crate) totals: Arc<dyn Totals>,
    pub(crate) files: Files,
    pub(crate) metrics: Metrics,
    /// From here on nothing waits for more.
    pub(crate) abort: CancellationToken,
    /// Files that are being written, or may not have been counted; bounded by what one batch has, because nothing else is
    /// written while there are any.
    pub(crate) leftovers: Mutex<Vec<String>>,
}

/// Messages that are gathered. The same one can come twice while it waits.
#[derive(Default)]
pub(crate) struct Batch {
    messages: HashMap<u64, Gathered>,
    /// How many rows they have.
    rows: usize,
}

/// A message that waits for its rows.
struct Gathered {
    rows: Vec<Row>,
    /// How many of them are not settled yet.
    open: usize,
    /// How to settle it, as far as that is known.
    settle: Disposition,
    waiting: Vec<oneshot::Sender<Disposition>>,
}

impl Gathered {
    fn finish(self, settle: &Disposition) {
        for waiting in self.waiting {
            // A handler that was dropped meanwhile doesn't hear it; its message comes again and is known then.
            let _ = waiting.send(settle.clone());
        }
    }
}

impl Batch {
    fn add(&mut self, submission: Submission) {
        let Submission {
            sequence,
            rows,
            settle,
        } = submission;
        let message = self.messages.entry(sequence).or_insert_with(|| {
            self.rows += rows.len();
            Gathered {
                open: rows.len(),
                rows,
                settle: Disposition::Ack,
                waiting: Vec::new(),
            }
        });
        message.waiting.push(settle);
    }

    /// The rows of a message, to be settled one by one.
    fn take(&mut self, sequence: u64) -> impl Iterator<Item = Entry> + use<> {
        let message = self.messages.get_mut(&sequence);
        let rows = message
            .map(|message| std::mem::take(&mut message.rows))
            .unwrap_or_default();
        let count = rows.len();
        rows.into_iter().enumerate().map(move |(index, row)| Entry {
            place: Place {
                sequence,
                index,
                count,
            },
            row,
        })
    }

    /// Settles a row. With its last one a message is settled: acknowledged if all are.
    fn settle_row(&mut self, place: Place, settle: &Disposition) {
        let Some(message) = self.messages.get_mut(&place.sequence) else {
            return;
        };
        message.open -= 1;
        if matches!(message.settle, Disposition::Ack) {
            message.settle = settle.clone();
        }
        if message.open == 0 {
            let settle = message.settle.clone();
            self.settle(place.sequence, &settle);
        }
    }

    /// Settles a message.
    fn settle(&mut self, sequence: u64, settle: &Disposition) {
        if let Some(message) = self.messages.remove(&sequence) {
            message.finish(settle);
        }
    }

    /// Acknowledges rows.
    fn acknowledge(&mut self, entries: &[Entry]) {
        for entry in entries {
            self.settle_row(entry.place, &Disposition::Ack);
        }
    }

    fn settle_rest(&mut self, settle: &Disposition) {
        for (_, message) in self.messages.drain() {
            message.finish(settle);
        }
    }
}

impl Batcher {
    /// Works until every sender of the inbox is gone.
    pub(crate) async fn run(self, mut inbox: mpsc::Receiver<Submission>) {
        let mut arrived = Vec::with_capacity(self.rows_max);
        loop {
            let mut batch = Batch::default();
            if inbox.recv_many(&mut arrived, self.room(&batch)).await == 0 {
                return;
            }
            arrived.drain(..).for_each(|submission| batch.add(submission));
            self.gather(&mut batch, &mut arrived, &mut inbox).await;
            self.commit(batch).await;
        }
    }

    /// Adds what comes until the batch is full or old enough.
    async fn gather(
        &self,
        batch: &mut Batch,
        arrived: &mut Vec<Submission>,
        inbox: &mut mpsc::Receiver<Submission>,
    ) {
        let old = tokio::time::sleep(self.age_max);
        tokio::pin!(old);
        while batch.rows < self.rows_max && batch.messages.len() < self.messages_max {
            tokio::select! {
                biased;
                () = self.abort.cancelled() => match inbox.try_recv() {
                    Ok(submission) => batch.add(submission),
                    Err(_) => return,
                },
                () = &mut old => return,
                count = inbox.recv_many(arrived, self.room(batch)) => {
                    if count == 0 {
                        return;
                    }
                    arrived.drain(..).for_each(|submission| batch.add(submission));
                }
            }
        }
    }

    /// How many messages it may take without having many more rows than it should.
    fn room(&self, batch: &Batch) -> usize {
        let rows = self.rows_max.saturating_sub(batch.rows) / EVENT_CHUNKS_MAX;
        let messages = self.messages_max.saturating_sub(batch.messages.len());
        rows.min(messages).max(1)
    }

    async fn commit(&self, mut batch: Batch) {
        let started = Instant::now();
        let rows = batch.rows;
        match self.try_commit(&mut batch).await {
            Ok(()) => {
                tracing::debug!(
                    stream = self.stream,
                    rows,
                    ms = started.elapsed().as_millis() as u64,
                    "batch counted"
                );
            }
            Err(error) => {
                self.metrics.failures.inc();
                tracing::warn!(stream = self.stream, rows, left = batch.messages.len(), %error, "batch failed");
                batch.settle_rest(&error.into());
            }
        }
        self.metrics
            .commit_seconds
            .observe(started.elapsed().as_secs_f64());
    }

    /// A transient failure leaves the rest of the batch waiting. Messages and rows that fail permanently are settled as faults.
    async fn try_commit(&self, batch: &mut Batch) -> Result<(), Classified<CommitError>> {
        self.remove_leftovers().await?;
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
                    fresh.extend(batch.take(*sequence));
                }
            }
        }
        for file in files(self.stream, fresh) {
            self.commit_file(batch, file).await?;
        }
        Ok(())
    }

    async fn seen(&self, sequences: &[u64]) -> Result<Vec<bool>, CommitError> {
        Ok(self.totals.seen(self.stream, sequences).await?)
    }

    /// A row that fails permanently fails its message; the other rows of the file are counted.
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
                "rows can't be counted"
            );
        }
        for (index, reason) in written.failed {
            self.metrics.isolated.inc();
            batch.settle_row(file.entries[index].place, &Disposition::fault(reason));
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
        self.write(part).await
    }

    /// Reads the totals that a part of a failed file changes, so that no file is written in vain for a corrupt one.
    async fn read_totals(&self, part: &File) -> Result<(), CommitError> {
        self.totals.of_hours(part.hour, part.hour + 1).await?;
        for post in part.posts() {
            self.totals.of_post(post).await?;
        }
        Ok(())
    }

    /// Writes and counts a file, but for what tells nothing new.
    async fn write(&self, mut file: File) -> Result<(), CommitError> {
        // A part that failed may have left one.
        self.remove_leftovers().await?;
        // Only now: the file before may have told of the same chunks.
        let chunks = file.chunks();
        let counted = self.totals.counted(&chunks).await?;
        let rows = file.entries.len();
        file.follow(&mut chunks.into_iter().zip(counted).collect());
        let stale = rows - file.entries.len();
        if !file.entries.is_empty() {
            self.write_news(file).await?;
        }
        self.metrics.stale.inc_by(stale as u64);
        Ok(())
    }

    async fn write_news(&self, file: File) -> Result<(), CommitError> {
        let path = file.path();
        let (table, rows) = (file.table.as_str(), file.entries.len());
        // Before anything can go wrong, a panic included.
        self.leftovers.lock().push(path.clone());
        let written = self.announce_write_count(file, &path).await;
        if written.is_ok() {
            self.leftovers.lock().retain(|left| *left != path);
            self.metrics.written(table, rows);
        } else if let Err(error) = self.remove_leftovers().await {
            tracing::debug!(stream = self.stream, %error, "left over for now");
        }
        written
    }

    async fn announce_write_count(&self, file: File, path: &str) -> Result<(), CommitError> {
        let totals = file.totals(path);
        // Some milliseconds of work: not on the threads that answer calls.
        let bytes = tokio::task::spawn_blocking(move || encode(&file)).await??;
        self.totals.intend(path).await?;
        self.files.put(path, bytes).await?;
        self.totals.commit(&totals).await?;
        Ok(())
    }

    /// Deletes files of earlier failures, but those that were counted after all.
    async fn remove_leftovers(&self) -> Result<(), CommitError> {
        let leftovers = self.leftovers.lock().clone();
        if leftovers.is_empty() {
            return Ok(());
        }
        let removing = async {
            let intended = self.totals.intended().await?;
            for file in leftovers.iter().filter(|file| intended.contains(file)) {
                remove(file, &*self.totals, &self.files, &self.metrics).await?;
            }
            Ok(())
        };
        removing
            .await
            .map_err(|error| CommitError::Leftovers(Box::new(error)))?;
        self.leftovers.lock().retain(|left| !leftovers.contains(left));
        Ok(())
    }
}

/// Deletes what an earlier run announced and did not count. Nothing else may write meanwhile.
pub(crate) async fn remove_intended(
    totals: &dyn Totals,
    files: &Files,
    metrics: &Metrics,
) -> Result<(), CommitError> {
    for file in totals.intended().await? {
        remove(&file, totals, files, metrics).await?;
    }
    Ok(())
}

async fn remove(
    file: &str,
    totals: &dyn Totals,
    files: &Files,
    metrics: &Metrics,
) -> Result<(), CommitError> {
    files.delete(file).await?;
    totals.abandon(file).await?;
    metrics.leftovers.inc();
    tracing::info!(file, "file left over removed, its messages come again");
    Ok(())
}
