//! Selects the dead letters of an operation, once, before it starts.

use herald_proto::v1;
use herald_rpc::status;
use herald_store::{
    DeadLetter, DeadLetterFilter, DeadLetterId, DeadLetterState, DeadLetterVersion, Order, Payload,
};
use tonic::Status;

use super::{Api, filter::Selection};
use crate::{convert, redrive};

/// Dead letters read from the store at once.
const PAGE: usize = 1_000;
/// Dead letters listed in an error.
const LISTED_MAX: usize = 10;

/// The operation that dead letters are selected for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Redrive,
    Discard,
}

/// Receives the selected dead letters, one by one.
pub(super) trait Selected {
    /// Adds a selected dead letter.
    fn add(&mut self, dead_letter: DeadLetter);
}

/// The dead letters of an operation, each with its present round.
impl Selected for Vec<DeadLetterVersion> {
    fn add(&mut self, dead_letter: DeadLetter) {
        self.push(DeadLetterVersion {
            id: dead_letter.id,
            round: dead_letter.round,
        });
    }
}

impl Api {
    /// Passes the selected dead letters to `selected`. A selection by id fails if one of its dead letters is ineligible;
    /// a selection by filter excludes such dead letters. Returns their number.
    pub(super) async fn select(
        &self,
        selection: v1::DeadLetterSelection,
        purpose: Purpose,
        selected: &mut (impl Selected + Send),
    ) -> Result<u64, Status> {
        match self.parse_selection(selection).await? {
            Selection::Ids(ids) => self.select_by_id(&ids, purpose, selected).await.map(|()| 0),
            Selection::Filter(Some(filter)) => self.select_by_filter(filter, purpose, selected).await,
            Selection::Filter(None) => Ok(0),
        }
    }

    async fn select_by_id(
        &self,
        ids: &[DeadLetterId],
        purpose: Purpose,
        selected: &mut (impl Selected + Send),
    ) -> Result<(), Status> {
        let dead_letters = self.dead_letters.get(ids).await;
        let dead_letters = dead_letters.map_err(|e| status::from_store(&e))?;
        let missing = ids
            .iter()
            .zip(&dead_letters)
            .filter(|(_, dead_letter)| dead_letter.is_none());
        let missing: Vec<_> = missing.map(|(id, _)| *id).collect();
        if !missing.is_empty() {
            let message = format!("there is no dead letter {}", list_ids(&missing));
            return Err(status::not_found("DEAD_LETTER_NOT_FOUND", message));
        }
        let dead_letters: Vec<_> = dead_letters.into_iter().flatten().collect();
        for why in [
            Ineligible::Redriven,
            Ineligible::Discarded,
            Ineligible::NoConsumer,
            Ineligible::PayloadGone,
        ] {
            let ineligible = dead_letters
                .iter()
                .filter(|dead_letter| why.applies_to(dead_letter, purpose));
            let ineligible: Vec<_> = ineligible.map(|dead_letter| dead_letter.id).collect();
            if !ineligible.is_empty() {
                let (reason, description) = why.reason_and_description();
                return Err(status::failed_precondition(
                    reason,
                    format!("dead letter {} {description}", list_ids(&ineligible)),
                ));
            }
        }
        for dead_letter in dead_letters {
            selected.add(dead_letter);
        }
        Ok(())
    }

    async fn select_by_filter(
        &self,
        filter: DeadLetterFilter,
        purpose: Purpose,
        selected: &mut (impl Selected + Send),
    ) -> Result<u64, Status> {
        let mut excluded = 0;
        let mut is_empty = true;
        let mut after = None;
        loop {
            let page = self
                .dead_letters
                .scan(&filter, Order::OldestFirst, after, PAGE)
                .await;
            let page = page.map_err(|e| status::from_store(&e))?;
            is_empty &= page.dead_letters.is_empty();
            for dead_letter in page.dead_letters {
                if Ineligible::NoConsumer.applies_to(&dead_letter, purpose)
                    || Ineligible::PayloadGone.applies_to(&dead_letter, purpose)
                {
                    excluded += 1;
                } else {
                    selected.add(dead_letter);
                }
            }
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        if let Some(group) = filter.group
            && is_empty
        {
            self.require_group(group).await?;
        }
        Ok(excluded)
    }

    /// `NOT_FOUND` if no dead letter, in whatever state, is in the group.
    async fn require_group(&self, group: u64) -> Result<(), Status> {
        let filter = DeadLetterFilter {
            group: Some(group),
            ..DeadLetterFilter::default()
        };
        let any = self.dead_letters.scan(&filter, Order::OldestFirst, None, 1).await;
        if any.map_err(|e| status::from_store(&e))?.dead_letters.is_empty() {
            let message = format!("there is no group {}", convert::format_group_id(group));
            return Err(status::not_found("GROUP_NOT_FOUND", message));
        }
        Ok(())
    }
}

/// The reason why a dead letter can't be redriven or discarded.
#[derive(Debug, Clone, Copy)]
enum Ineligible {
    Redriven,
    Discarded,
    NoConsumer,
    PayloadGone,
}

impl Ineligible {
    fn applies_to(self, dead_letter: &DeadLetter, purpose: Purpose) -> bool {
        let redrive = purpose == Purpose::Redrive;
        match self {
            Self::Redriven => matches!(
                dead_letter.state,
                DeadLetterState::Redriving | DeadLetterState::Resolved
            ),
            Self::Discarded => dead_letter.state == DeadLetterState::Discarded,
            Self::NoConsumer => redrive && redrive::redrive_target(dead_letter).is_none(),
            Self::PayloadGone => redrive && dead_letter.payload == Payload::Gone,
        }
    }

    /// The reason of the error's details, and the description that follows `dead letter 5` in its message.
    const fn reason_and_description(self) -> (&'static str, &'static str) {
        match self {
            Self::Redriven => ("ALREADY_REDRIVEN", "was redriven already"),
            Self::Discarded => ("ALREADY_DISCARDED", "was discarded already"),
            Self::NoConsumer => (
                "NOT_REDRIVABLE",
                "can't be redriven: no consumer handles its subject",
            ),
            Self::PayloadGone => (
                "PAYLOAD_GONE",
                "can't be redriven: its payload was gone before it could be copied",
            ),
        }
    }
}

/// Formats ids as `1, 2, 3 and 7 more`.
fn list_ids(ids: &[DeadLetterId]) -> String {
    let listed: Vec<_> = ids.iter().take(LISTED_MAX).map(|id| id.0.to_string()).collect();
    match ids.len().saturating_sub(LISTED_MAX) {
        0 => listed.join(", "),
        more => format!("{} and {more} more", listed.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_list_of_ids_is_abbreviated() {
        let ids: Vec<_> = (1..=12).map(DeadLetterId).collect();
        assert_eq!(list_ids(&ids[..2]), "1, 2");
        assert_eq!(list_ids(&ids), "1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 2 more");
    }
}
