//! Writes the entries of DLQ to the store and marks the deliveries of their chunks dead.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use herald_mesh::{Delivery, Disposition, Handler, streams};
use herald_model::time::Timestamp;
use herald_proto::mesh_v1::DlqEntry;
use herald_runtime::wait::Waiting;
use herald_store::{DeadLetter, DeadLetterFilter, DeadLetterState, DeadLetters, Order, Reopened, Reopening};
use tokio_util::sync::CancellationToken;

use crate::{
    Metrics,
    convert::{self, DlqRecord},
    error::StepError,
    failure_recorder::FailureRecorder,
};

/// Dead letters read from the store at once.
const PAGE: usize = 1_000;

/// Handles the messages of DLQ.
pub(crate) struct DlqIndexer {
    pub(crate) dead_letters: Arc<dyn DeadLetters>,
    pub(crate) recorder: FailureRecorder,
    pub(crate) waiting: Waiting,
    pub(crate) metrics: Metrics,
    /// Cancelled when the service stops.
    pub(crate) stop: CancellationToken,
}

#[async_trait]
impl Handler for DlqIndexer {
    async fn handle(&self, delivery: &Delivery) -> Disposition {
        let entry: DlqEntry = match delivery.decode() {
            Ok(entry) => entry,
            Err(disposition) => return disposition,
        };
        let record = match convert::parse_dlq_entry(entry.clone(), delivery.sequence, delivery.published_at) {
            Ok(record) => record,
            Err(reason) => return Disposition::term(reason),
        };
        let done = self.waiting.until_done(&self.stop, StepError::is_store_away, || {
            self.apply(&entry, &record)
        });
        match done.await {
            Some(Ok(())) => Disposition::Ack,
            Some(Err(error)) => Disposition::from(error),
            // Another process can take the message at once.
            None => {
                Disposition::retry_after(Duration::ZERO, "the service stopped while the dead letter waited")
            }
        }
    }
}

impl DlqIndexer {
    /// Writes the dead letter, then the ledger, then publishes the event. Each step is idempotent.
    async fn apply(&self, entry: &DlqEntry, record: &DlqRecord) -> Result<(), StepError> {
        match record {
            DlqRecord::New(dead_letter) if dead_letter.origin.stream == streams::REDRIVE => {
                match self.find_removed_redrive(dead_letter).await? {
                    Some(reopening) => {
                        if self.recorder.reopen_removed(&reopening).await? == Reopened::NotFound {
                            self.insert(entry, dead_letter).await?;
                        }
                    }
                    None => self.insert(entry, dead_letter).await?,
                }
            }
            DlqRecord::New(dead_letter) => self.insert(entry, dead_letter).await?,
            DlqRecord::RedriveFailed(reopening, dead_letter) => {
                // The first dead letter expired: insert this one, so that an operator can decide.
                if self.recorder.reopen(reopening, entry).await? == Reopened::NotFound {
                    self.insert(entry, dead_letter).await?;
                }
            }
        }
        Ok(())
    }

    async fn insert(&self, entry: &DlqEntry, dead_letter: &DeadLetter) -> Result<(), StepError> {
        let (consumer, cause, failed_at) = (
            dead_letter.origin.consumer.clone(),
            dead_letter.cause,
            dead_letter.last_failed_at,
        );
        let inserted = self
            .dead_letters
            .insert(std::slice::from_ref(dead_letter))
            .await?;
        let Some(inserted) = inserted.first() else {
            return Ok(());
        };
        if inserted.new {
            self.metrics.record_created(&consumer, cause);
            self.metrics
                .visible_seconds
                .observe(Timestamp::now().since(failed_at).as_secs_f64());
        } else {
            self.metrics.repeats.inc();
            // The entry may be redelivered because the ledger step failed. If the dead letter was redriven or discarded
            // since, the ledger step is done.
            let stored = self.dead_letters.get(&[inserted.id]).await?;
            let open = |dead_letter: &DeadLetter| {
                dead_letter.state == DeadLetterState::Open && dead_letter.round == 0
            };
            if !stored.first().and_then(Option::as_ref).is_some_and(open) {
                return Ok(());
            }
        }
        self.recorder.mark_dead(entry).await
    }

    /// Finds the dead letter in flight whose message was removed from REDRIVE. The removed message no longer names it,
    /// so the search is by sequence.
    async fn find_removed_redrive(&self, removed: &DeadLetter) -> Result<Option<Reopening>, StepError> {
        let in_flight = DeadLetterFilter {
            state: Some(DeadLetterState::Redriving),
            ..DeadLetterFilter::default()
        };
        let mut after = None;
        loop {
            let page = self
                .dead_letters
                .scan(&in_flight, Order::OldestFirst, after, PAGE)
                .await?;
            let found = page
                .dead_letters
                .iter()
                .find(|dead_letter| dead_letter.redrive_sequence == removed.origin.sequence);
            if let Some(dead_letter) = found {
                return Ok(Some(Reopening {
                    dead_letter: dead_letter.id,
                    round: dead_letter.round,
                    cause: removed.cause,
                    reason: removed.reason.clone(),
                    group: removed.group,
                    group_reason: removed.group_reason.clone(),
                    failed_at: removed.last_failed_at,
                }));
            }
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(None),
            }
        }
    }
}
