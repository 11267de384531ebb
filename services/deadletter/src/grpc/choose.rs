//! Which dead letters an operation is about: chosen once, at its beginning.

use herald_proto::v1;
use herald_rpc::status;
use herald_store::{Chosen, DeadLetter, DeadLetterFilter, DeadLetterId, DeadLetterState, Order, Payload};
use tonic::Status;

use super::{Api, filter::Selection};
use crate::redrive;

/// Dead letters read at a time.
const PAGE: usize = 1_000;
/// Dead letters that an error names.
const NAMED_MAX: usize = 10;

/// What dead letters are chosen for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Redrive,
    Discard,
}

/// The dead letters that were chosen.
#[derive(Debug, Default)]
pub(super) struct Choice {
    /// As they are now.
    pub(super) dead_letters: Vec<Chosen>,
    /// How many passed and can't be redriven.
    pub(super) excluded: u64,
    /// The dead letters themselves, for a dry run.
    pub(super) dry: Vec<DeadLetter>,
}

impl Choice {
    fn add(&mut self, dead_letter: DeadLetter, dry: bool) {
        self.dead_letters.push(Chosen {
            id: dead_letter.id,
            round: dead_letter.round,
        });
        if dry {
            self.dry.push(dead_letter);
        }
    }
}

impl Api {
    /// Chooses dead letters. When they are named each of them must be fit for it, or none is chosen.
    pub(super) async fn choose(
        &self,
        selection: v1::DeadLetterSelection,
        purpose: Purpose,
        dry: bool,
    ) -> Result<Choice, Status> {
        match self.selection(selection).await? {
            Selection::Ids(ids) => self.choose_named(&ids, purpose, dry).await,
            Selection::Filter(Some(filter)) => self.choose_filtered(filter, purpose, dry).await,
            Selection::Filter(None) => Ok(Choice::default()),
        }
    }

    async fn choose_named(
        &self,
        ids: &[DeadLetterId],
        purpose: Purpose,
        dry: bool,
    ) -> Result<Choice, Status> {
        let dead_letters = self.dead_letters.get(ids).await;
        let dead_letters = dead_letters.map_err(|e| status::from_store(&e))?;
        let missing = ids
            .iter()
            .zip(&dead_letters)
            .filter(|(_, dead_letter)| dead_letter.is_none());
        let missing: Vec<_> = missing.map(|(id, _)| *id).collect();
        if !missing.is_empty() {
            let message = format!("there is no dead letter {}", names(&missing));
            return Err(status::not_found("DEAD_LETTER_NOT_FOUND", message));
        }
        let dead_letters: Vec<_> = dead_letters.into_iter().flatten().collect();
        for unfit in [Unfit::Redriven, Unfit::Discarded, Unfit::NoWayBack, Unfit::Gone] {
            let these = dead_letters
                .iter()
                .filter(|dead_letter| unfit.is(dead_letter, purpose));
            let these: Vec<_> = these.map(|dead_letter| dead_letter.id).collect();
            if !these.is_empty() {
                let (reason, why) = unfit.words();
                return Err(status::failed_precondition(
                    reason,
                    format!("dead letter {} {why}", names(&these)),
                ));
            }
        }
        let mut choice = Choice::default();
        for dead_letter in dead_letters {
            choice.add(dead_letter, dry);
        }
        Ok(choice)
    }

    async fn choose_filtered(
        &self,
        filter: DeadLetterFilter,
        purpose: Purpose,
        dry: bool,
    ) -> Result<Choice, Status> {
        let mut choice = Choice::default();
        let mut after = None;
        loop {
            let page = self
                .dead_letters
                .scan(&filter, Order::OldestFirst, after, PAGE)
                .await;
            let page = page.map_err(|e| status::from_store(&e))?;
            for dead_letter in page.dead_letters {
                if Unfit::NoWayBack.is(&dead_letter, purpose) || Unfit::Gone.is(&dead_letter, purpose) {
                    choice.excluded += 1;
                } else {
                    choice.add(dead_letter, dry);
                }
            }
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        if let Some(group) = filter.group
            && choice.dead_letters.is_empty()
            && choice.excluded == 0
        {
            self.must_exist(group).await?;
        }
        Ok(choice)
    }

    /// A group without a single dead letter, in whatever state, was never there.
    async fn must_exist(&self, group: u64) -> Result<(), Status> {
        let filter = DeadLetterFilter {
            group: Some(group),
            ..DeadLetterFilter::default()
        };
        let any = self.dead_letters.scan(&filter, Order::OldestFirst, None, 1).await;
        if any.map_err(|e| status::from_store(&e))?.dead_letters.is_empty() {
            let message = format!("there is no group {}", crate::wire::group_id(group));
            return Err(status::not_found("GROUP_NOT_FOUND", message));
        }
        Ok(())
    }
}

/// Why a dead letter can't be acted on.
#[derive(Debug, Clone, Copy)]
enum Unfit {
    Redriven,
    Discarded,
    NoWayBack,
    Gone,
}

impl Unfit {
    fn is(self, dead_letter: &DeadLetter, purpose: Purpose) -> bool {
        let redrive = purpose == Purpose::Redrive;
        match self {
            Self::Redriven => matches!(
                dead_letter.state,
                DeadLetterState::Redriving | DeadLetterState::Resolved
            ),
            Self::Discarded => dead_letter.state == DeadLetterState::Discarded,
            Self::NoWayBack => redrive && redrive::way_back(dead_letter).is_none(),
            Self::Gone => redrive && dead_letter.payload == Payload::Gone,
        }
    }

    /// The reason for programs, and why for people, after `dead letter 5`.
    const fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Redriven => ("ALREADY_REDRIVEN", "was redriven already"),
            Self::Discarded => ("ALREADY_DISCARDED", "was discarded already"),
            Self::NoWayBack => (
                "NOT_REDRIVABLE",
                "can't be redriven: no worker knows what to do with it",
            ),
            Self::Gone => (
                "PAYLOAD_GONE",
                "can't be redriven: what it carried was gone before it could be copied",
            ),
        }
    }
}

/// `1, 2, 3 and 7 more`
fn names(ids: &[DeadLetterId]) -> String {
    let named: Vec<_> = ids.iter().take(NAMED_MAX).map(|id| id.0.to_string()).collect();
    match ids.len().saturating_sub(NAMED_MAX) {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_dead_letters_are_named_by_the_first() {
        let ids: Vec<_> = (1..=12).map(DeadLetterId).collect();
        assert_eq!(names(&ids[..2]), "1, 2");
        assert_eq!(names(&ids), "1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 2 more");
    }
}
