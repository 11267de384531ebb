//! Discards the dead letters of the user's posts.

use std::time::Duration;

use herald_mesh::streams;
use herald_model::{PostId, time::Timestamp};
use herald_proto::v1::DeadLetterSelection;
use herald_store::{
    DeadLetter, DeadLetterFilter, DeadLetterState, DeadLetterVersion, ErasedCounts, NewOperation,
    OperationKind, OperationState, Order,
};
use prost::Message as _;

use super::Erase;
use crate::Result;

/// Dead letters read at once, and the most of one discard.
const PAGE: usize = 1_000;
/// Dead letters discarded at once. A larger batch would delay the commits of live traffic.
const BATCH: usize = 64;
/// Delay between two readings of dead letters that are redriven.
const POLL: Duration = Duration::from_millis(500);

impl Erase<'_> {
    /// Discards the open dead letters of the user's posts, and of the posts without a key, under the name of who asked
    /// for the erasure. Waits until none of them is redriven, and until the failures of messages that are settled are
    /// in the store.
    pub(super) async fn settle_dead_letters(&self, keyless: &[PostId]) -> Result<()> {
        loop {
            // A failure is an advisory, which becomes a message of DLQ, which becomes a dead letter.
            for stream in [streams::ADVISORIES, streams::DLQ] {
                let last = self.data.mesh.last_sequence(stream).await?;
                self.wait_until_settled(stream, |_| Some(last)).await?;
            }
            // Redriven first: what fails again meanwhile is open when the open ones are read.
            let redriven = self.find_in(DeadLetterState::Redriving, keyless).await?;
            let open = self.find_in(DeadLetterState::Open, keyless).await?;
            for page in open.chunks(PAGE) {
                self.discard(page).await?;
            }
            if redriven.is_empty() && open.is_empty() {
                return Ok(());
            }
            if open.is_empty() {
                tokio::time::sleep(POLL).await;
            }
        }
    }

    async fn find_in(&self, state: DeadLetterState, keyless: &[PostId]) -> Result<Vec<DeadLetter>> {
        let of_author = DeadLetterFilter {
            author: Some(self.erasure.user),
            state: Some(state),
            ..DeadLetterFilter::default()
        };
        let of_posts = keyless.iter().map(|post| DeadLetterFilter {
            post: Some(*post),
            state: Some(state),
            ..DeadLetterFilter::default()
        });
        let mut found = Vec::new();
        for filter in [of_author].into_iter().chain(of_posts) {
            let mut after = None;
            loop {
                let page = self
                    .data
                    .stores
                    .dead_letters
                    .scan(&filter, Order::OldestFirst, after, PAGE)
                    .await?;
                found.extend(page.dead_letters);
                after = page.next;
                if after.is_none() {
                    break;
                }
            }
        }
        Ok(found)
    }

    async fn discard(&self, dead_letters: &[DeadLetter]) -> Result<()> {
        let stored = &self.data.stores.dead_letters;
        // The audit log names dead letters, not the user.
        let selection = DeadLetterSelection {
            dead_letter_ids: dead_letters.iter().map(|one| one.id.0).collect(),
            ..DeadLetterSelection::default()
        };
        let operation = NewOperation {
            kind: OperationKind::Discard,
            actor: self.erasure.actor.clone(),
            at: Timestamp::now(),
            selection: selection.encode_to_vec().into(),
            excluded: 0,
            rate_max: 0,
            failures_max: 0,
            push_ttl: None,
            target: None,
        };
        let versions = dead_letters.iter().map(|one| DeadLetterVersion {
            id: one.id,
            round: one.round,
        });
        let versions: Vec<_> = versions.collect();
        let mut operation = stored.begin(&operation, &versions).await?;
        while operation.state == OperationState::Running {
            let step = stored.discard(operation.id, BATCH, Timestamp::now()).await?;
            operation = step.operation;
            // At each step: the run can be cancelled before the last one.
            self.count(ErasedCounts {
                dead_letters: step.dead_letters.len() as u64,
                ..ErasedCounts::default()
            })
            .await?;
        }
        Ok(())
    }
}
