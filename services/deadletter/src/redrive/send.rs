//! Sends letters that were taken.

use std::time::Instant;

use futures::{StreamExt as _, future, stream};
use herald_mesh::{ErrorKind, RawMessage, Redrive, consumers::Kind};
use herald_model::time::Micros;
use herald_proto::{mesh_v1::DeadLetter, v1};
use herald_store::{ActId, Chosen, Letter, LetterState, Reopening};

use super::{Redrives, chosen, refusal, way_back};
use crate::{
    domain::{pace::Pace, parcel},
    error::StepError,
};

/// Letters read at a time.
const READS: usize = 128;
/// Messages published at a time.
const SENDS: usize = 64;

/// A letter with its message.
struct Ready {
    letter: Letter,
    redrive: Redrive,
}

/// What came of sending letters.
#[derive(Default)]
struct Sent {
    /// Where they are in REDRIVE.
    at: Vec<(Chosen, Kind, u64)>,
    /// Those that can't be sent; their letters say why from now on.
    not: Vec<Reopening>,
    /// Why others weren't sent: they will be.
    failure: Option<StepError>,
}

impl Redrives {
    /// Publishes letters that were taken, together where they can be, each parcel in its turn, and records where they are.
    pub(super) async fn send(
        &self,
        act: ActId,
        mut letters: Vec<Letter>,
        pace: &mut Pace,
    ) -> Result<(), StepError> {
        let mut sent = Sent::default();
        while !letters.is_empty() {
            let later = letters.split_off(letters.len().min(READS));
            let ready = self.look(letters, &mut sent).await;
            let sends: Vec<Sent> = stream::iter(parcel::pack(ready, Ready::measure))
                .map(|parcel| (pace.wait(parcel.len() as u32, Instant::now()), parcel))
                .then(|(wait, parcel)| async move {
                    // A timer takes a millisecond even for nothing.
                    if !wait.is_zero() {
                        tokio::time::sleep(wait).await;
                    }
                    parcel
                })
                .map(|parcel| self.send_parcel(parcel))
                .buffer_unordered(SENDS)
                .collect()
                .await;
            for more in sends {
                sent.add(more);
            }
            letters = later;
        }
        for refusal in &sent.not {
            tracing::warn!(
                letter_id = refusal.letter.0,
                redrive_id = act.0,
                reason = refusal.reason,
                "letter can't be redriven"
            );
        }
        self.record(act, sent.at).await?;
        // Together, so that they share a commit.
        future::try_join_all(sent.not.iter().map(|refusal| self.letters.reopen(refusal))).await?;
        self.metrics.open(self.letters.count(LetterState::Open).await?);
        sent.failure.map_or(Ok(()), Err)
    }

    /// Records where letters of a redrive are, and looks after them from now on.
    pub(super) async fn record(&self, act: ActId, at: Vec<(Chosen, Kind, u64)>) -> Result<(), StepError> {
        if at.is_empty() {
            return Ok(());
        }
        let places: Vec<_> = at
            .iter()
            .map(|(letter, _, sequence)| (*letter, *sequence))
            .collect();
        self.letters.sent(act, &places).await?;
        self.metrics.redriven.inc_by(at.len() as u64);
        self.outcomes.expect(act, at);
        Ok(())
    }

    /// Reads what the letters are about.
    async fn look(&self, letters: Vec<Letter>, sent: &mut Sent) -> Vec<Ready> {
        let read = self.read(letters).await.into_iter().map(|read| async {
            let (letter, message) = read?;
            Ok((self.message_of(&letter, message).await?, letter))
        });
        let mut ready = Vec::new();
        for looked in future::join_all(read).await {
            match looked {
                Ok((Ok(redrive), letter)) => ready.push(Ready { letter, redrive }),
                Ok((Err(why), letter)) => sent.not.push(refusal::of(&letter, why, Micros::now())),
                Err(error) => sent.failure = Some(error),
            }
        }
        ready
    }

    /// The message that a letter becomes; the inner error is why it can't.
    async fn message_of(
        &self,
        letter: &Letter,
        message: Option<RawMessage>,
    ) -> Result<Result<Redrive, &'static str>, StepError> {
        let Some((kind, subject)) = way_back(letter) else {
            return Ok(Err("no consumer takes it"));
        };
        let Some(message) = message else {
            return Ok(Err("it is no longer in DLQ"));
        };
        let Ok(body) = message.decode::<DeadLetter>() else {
            return Ok(Err("it can't be read"));
        };
        let payload = match body.payload_state() {
            v1::DeadLetterPayload::Kept => body.payload,
            v1::DeadLetterPayload::TooLarge => {
                let origin = &letter.origin;
                match self.mesh.message(&origin.stream, origin.sequence).await? {
                    Some(message) => message.payload,
                    None => return Ok(Err("it is no longer in its stream")),
                }
            }
            v1::DeadLetterPayload::Gone | v1::DeadLetterPayload::Unspecified => {
                return Ok(Err("what it carried is gone"));
            }
        };
        Ok(Ok(Redrive {
            kind,
            letter: letter.id.0,
            round: letter.round,
            subject,
            sequence: letter.original_sequence,
            published_at: letter.published_at,
            payload,
            trace_parent: Some(body.trace_parent).filter(|parent| !parent.is_empty()),
            trace_state: Some(body.trace_state).filter(|state| !state.is_empty()),
            id: format!("dlq/{}/redrive/{}", letter.id.0, letter.round),
        }))
    }

    /// Publishes letters together. When that is refused, each by itself: it may be because of one of them.
    async fn send_parcel(&self, parcel: Vec<Ready>) -> Sent {
        if let [one] = &parcel[..] {
            return self.send_one(one).await;
        }
        let redrives: Vec<_> = parcel.iter().map(|ready| &ready.redrive).collect();
        let mut sent = Sent::default();
        match self.mesh.redrive_together(&redrives).await {
            Ok(published) => sent.at.extend(
                parcel
                    .iter()
                    .map(|ready| (chosen(&ready.letter), ready.redrive.kind, published.sequence)),
            ),
            Err(error) if is_refusal(error.kind()) => {
                for one in &parcel {
                    sent.add(self.send_one(one).await);
                }
            }
            Err(error) => sent.failure = Some(error.into()),
        }
        sent
    }

    async fn send_one(&self, Ready { letter, redrive }: &Ready) -> Sent {
        let mut sent = Sent::default();
        match self.mesh.redrive(redrive).await {
            Ok(published) => sent.at.push((chosen(letter), redrive.kind, published.sequence)),
            Err(error) if is_refusal(error.kind()) => {
                let why = format!("the broker refuses it: {error}");
                sent.not.push(refusal::of(letter, &why, Micros::now()));
            }
            Err(error) => sent.failure = Some(error.into()),
        }
        sent
    }
}

impl Ready {
    fn measure(&self) -> (Kind, usize) {
        (self.redrive.kind, self.redrive.payload.len())
    }
}

impl Sent {
    fn add(&mut self, more: Self) {
        self.at.extend(more.at);
        self.not.extend(more.not);
        self.failure = more.failure.or(self.failure.take());
    }
}

/// Whether to try again would change nothing.
fn is_refusal(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::TooLarge | ErrorKind::Invalid | ErrorKind::Rejected
    )
}
