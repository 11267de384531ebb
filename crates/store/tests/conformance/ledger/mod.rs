//! The ledger: plans, outcomes and claims.

mod audit;
mod claims;
mod details;
mod outcomes;
mod plans;

use herald_model::{Channel, DeviceId, PostId, Recipients, UserKey, time::Timestamp};
use herald_store::{
    ExpectedRevision, Ledger, Outcome, OutcomeDetails, PendingRecipient, PostCounts, Settlement, SlicePlan,
};

pub use self::{audit::*, claims::*, details::*, outcomes::*, plans::*};
use crate::sample::{plan, set};

const POST: PostId = PostId(7);

/// Writes a plan; returns the recorded one.
async fn write_plan(ledger: &dyn Ledger, plan: SlicePlan) -> SlicePlan {
    ledger.plan(plan).await.unwrap()
}

/// Plans one chunk as the only one of [`POST`].
async fn plan_chunk(ledger: &dyn Ledger, channel: Channel, chunk: &Recipients) {
    write_plan(ledger, plan(POST, 0, true, &[(channel, chunk)])).await;
}

fn settlement(
    channel: Channel,
    chunk: &Recipients,
    base: ExpectedRevision,
    outcome: Outcome,
    at: i64,
) -> Settlement {
    Settlement {
        post: POST,
        channel,
        chunk: chunk.chunk_id(),
        base,
        outcome,
        at: Timestamp(at),
        keep_claim: None,
    }
}

fn delivered(channel: Channel, chunk: &Recipients, at: i64) -> Settlement {
    let outcome = Outcome::Delivered { count: chunk.len() };
    settlement(channel, chunk, ExpectedRevision::Any, outcome, at)
}

/// Settles a push chunk with the recorded revision as the expected one.
async fn settle(ledger: &dyn Ledger, chunk: &Recipients, outcome: Outcome, at: i64) -> u64 {
    let before = ledger
        .outcome(POST, Channel::Push, chunk.chunk_id())
        .await
        .unwrap();
    let base = ExpectedRevision::Revision(before.map_or(0, |recorded| recorded.revision));
    ledger
        .settle(&settlement(Channel::Push, chunk, base, outcome, at))
        .await
        .unwrap()
}

async fn counts(ledger: &dyn Ledger) -> PostCounts {
    ledger.counts(POST).await.unwrap().expect("the post is planned")
}

/// An outcome from one number for each recipient: 0 pending, 1 delivered, 2 suppressed, 3 expired, 4 dead.
fn outcome(recipients: &Recipients, states: &[u8]) -> Outcome {
    let in_state = |wanted: u8| {
        let states = recipients.iter().zip(states.iter().cycle());
        set(states
            .filter(|(_, state)| **state == wanted)
            .map(|(user, _)| user.0))
    };
    let pending = in_state(0);
    let pending = pending
        .iter()
        .map(|user| pending_with(user.0, &[u64::from(user.0) << 40, 1]));
    Outcome::Mixed {
        delivered: in_state(1),
        suppressed: in_state(2),
        expired: in_state(3),
        dead: in_state(4),
        details: OutcomeDetails {
            pending: pending.collect(),
            ..OutcomeDetails::default()
        },
    }
}

/// A pending recipient with devices that have accepted the push.
fn pending_with(user: u32, done: &[u64]) -> PendingRecipient {
    PendingRecipient {
        done: done.iter().copied().map(DeviceId).collect(),
        ..PendingRecipient::new(UserKey(user))
    }
}
