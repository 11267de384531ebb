//! Writes DLQ's messages to the store, and has done what they mean for deliveries.

use std::sync::Arc;

use async_trait::async_trait;
use herald_mesh::{Delivery, Handler, Settle, streams};
use herald_model::time::Micros;
use herald_proto::mesh_v1::DeadLetter;
use herald_store::{DeadLetters, Letter, LetterFilter, LetterState, Order, Reopened, Reopening};

use crate::{
    Metrics,
    error::StepError,
    failures::Failures,
    wire::{self, News},
};

/// How many letters one read of those under way takes.
const PAGE: usize = 1_000;

/// Works on DLQ.
pub(crate) struct Index {
    pub(crate) letters: Arc<dyn DeadLetters>,
    pub(crate) failures: Failures,
    pub(crate) metrics: Metrics,
}

#[async_trait]
impl Handler for Index {
    async fn handle(&self, delivery: &Delivery) -> Settle {
        let body: DeadLetter = match delivery.decode() {
            Ok(body) => body,
            Err(settle) => return settle,
        };
        let news = match wire::news(body.clone(), delivery.sequence, delivery.published_at) {
            Ok(news) => news,
            Err(reason) => return Settle::term(reason),
        };
        match self.write(&body, news).await {
            Ok(()) => Settle::Ack,
            Err(error) => Settle::retry(error),
        }
    }
}

impl Index {
    /// The letter, then the ledger, then the event; each step repeatable.
    async fn write(&self, body: &DeadLetter, news: News) -> Result<(), StepError> {
        match news {
            News::Letter(letter) if letter.origin.stream == streams::REDRIVE => {
                match self.lost_redrive(&letter).await? {
                    Some(reopening) => {
                        if self.failures.reopen_removed(&reopening).await? == Reopened::Unknown {
                            self.insert(body, *letter).await?;
                        }
                    }
                    None => self.insert(body, *letter).await?,
                }
            }
            News::Letter(letter) => self.insert(body, *letter).await?,
            News::Failed(reopening, letter) => {
                // Forgotten since: somebody must decide all the same.
                if self.failures.reopen(&reopening, body).await? == Reopened::Unknown {
                    self.insert(body, *letter).await?;
                }
            }
        }
        self.metrics.open(self.letters.count(LetterState::Open).await?);
        Ok(())
    }

    async fn insert(&self, body: &DeadLetter, letter: Letter) -> Result<(), StepError> {
        let (consumer, cause, failed_at) = (
            letter.origin.consumer.clone(),
            letter.cause,
            letter.last_failed_at,
        );
        let inserted = self.letters.insert(&[letter]).await?;
        let Some(inserted) = inserted.first() else {
            return Ok(());
        };
        if inserted.new {
            self.metrics.letter(&consumer, cause);
            self.metrics
                .visible_seconds
                .observe(Micros::now().since(failed_at).as_secs_f64());
        } else {
            self.metrics.repeats.inc();
            // It may be here again because the rest was not done the first time. If the letter is decided upon, it was.
            let known = self.letters.get(&[inserted.id]).await?;
            let open = |letter: &Letter| letter.state == LetterState::Open && letter.round == 0;
            if !known.first().and_then(Option::as_ref).is_some_and(open) {
                return Ok(());
            }
        }
        self.failures.bury(body).await
    }

    /// The letter whose redrive was removed from REDRIVE before anybody could read whose it was.
    async fn lost_redrive(&self, lost: &Letter) -> Result<Option<Reopening>, StepError> {
        let under_way = LetterFilter {
            state: Some(LetterState::Redriving),
            ..LetterFilter::default()
        };
        let mut after = None;
        loop {
            let page = self
                .letters
                .scan(&under_way, Order::OldestFirst, after, PAGE)
                .await?;
            let found = page
                .letters
                .iter()
                .find(|letter| letter.redrive_sequence == lost.origin.sequence);
            if let Some(letter) = found {
                return Ok(Some(Reopening {
                    letter: letter.id,
                    round: letter.round,
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
