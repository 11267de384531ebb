//! Writes DLQ's messages to the store, and has done what they mean for deliveries.

use std::sync::Arc;

use async_trait::async_trait;
use herald_mesh::{Delivery, Disposition, Handler, streams};
use herald_model::time::Timestamp;
use herald_proto::mesh_v1::DlqEntry;
use herald_store::{DeadLetter, DeadLetterFilter, DeadLetterState, DeadLetters, Order, Reopened, Reopening};

use crate::{
    Metrics,
    error::StepError,
    failures::Failures,
    wire::{self, News},
};

/// How many dead letters one read of those under way takes.
const PAGE: usize = 1_000;

/// Works on DLQ.
pub(crate) struct Index {
    pub(crate) dead_letters: Arc<dyn DeadLetters>,
    pub(crate) failures: Failures,
    pub(crate) metrics: Metrics,
}

#[async_trait]
impl Handler for Index {
    async fn handle(&self, delivery: &Delivery) -> Disposition {
        let body: DlqEntry = match delivery.decode() {
            Ok(body) => body,
            Err(settle) => return settle,
        };
        let news = match wire::news(body.clone(), delivery.sequence, delivery.published_at) {
            Ok(news) => news,
            Err(reason) => return Disposition::term(reason),
        };
        match self.write(&body, news).await {
            Ok(()) => Disposition::Ack,
            Err(error) => Disposition::retry(error),
        }
    }
}

impl Index {
    /// The dead letter, then the ledger, then the event; each step repeatable.
    async fn write(&self, body: &DlqEntry, news: News) -> Result<(), StepError> {
        match news {
            News::DeadLetter(dead_letter) if dead_letter.origin.stream == streams::REDRIVE => {
                match self.lost_redrive(&dead_letter).await? {
                    Some(reopening) => {
                        if self.failures.reopen_removed(&reopening).await? == Reopened::Unknown {
                            self.insert(body, *dead_letter).await?;
                        }
                    }
                    None => self.insert(body, *dead_letter).await?,
                }
            }
            News::DeadLetter(dead_letter) => self.insert(body, *dead_letter).await?,
            News::Failed(reopening, dead_letter) => {
                // Forgotten since: somebody must decide all the same.
                if self.failures.reopen(&reopening, body).await? == Reopened::Unknown {
                    self.insert(body, *dead_letter).await?;
                }
            }
        }
        self.metrics
            .open(self.dead_letters.count(DeadLetterState::Open).await?);
        Ok(())
    }

    async fn insert(&self, body: &DlqEntry, dead_letter: DeadLetter) -> Result<(), StepError> {
        let (consumer, cause, failed_at) = (
            dead_letter.origin.consumer.clone(),
            dead_letter.cause,
            dead_letter.last_failed_at,
        );
        let inserted = self.dead_letters.insert(&[dead_letter]).await?;
        let Some(inserted) = inserted.first() else {
            return Ok(());
        };
        if inserted.new {
            self.metrics.dead_letter(&consumer, cause);
            self.metrics
                .visible_seconds
                .observe(Timestamp::now().since(failed_at).as_secs_f64());
        } else {
            self.metrics.repeats.inc();
            // It may be here again because the rest was not done the first time. If the dead letter is decided upon, it was.
            let known = self.dead_letters.get(&[inserted.id]).await?;
            let open = |dead_letter: &DeadLetter| {
                dead_letter.state == DeadLetterState::Open && dead_letter.round == 0
            };
            if !known.first().and_then(Option::as_ref).is_some_and(open) {
                return Ok(());
            }
        }
        self.failures.mark_dead(body).await
    }

    /// The dead letter whose redrive was removed from REDRIVE before anybody could read whose it was.
    async fn lost_redrive(&self, lost: &DeadLetter) -> Result<Option<Reopening>, StepError> {
        let under_way = DeadLetterFilter {
            state: Some(DeadLetterState::Redriving),
            ..DeadLetterFilter::default()
        };
        let mut after = None;
        loop {
            let page = self
                .dead_letters
                .scan(&under_way, Order::OldestFirst, after, PAGE)
                .await?;
            let found = page
                .dead_letters
                .iter()
                .find(|dead_letter| dead_letter.redrive_sequence == lost.origin.sequence);
            if let Some(dead_letter) = found {
                return Ok(Some(Reopening {
                    dead_letter: dead_letter.id,
                    round: dead_letter.round,
                    cause: lost.cause,
                    reason: lost.reason.clone(),
                    group: lost.group,
                    group_reason: lost.group_reason.clone(),
                    failed_at: lost.last_failed_at,
                }));
            }
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(None),
            }
        }
    }
}
