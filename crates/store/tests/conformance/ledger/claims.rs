//! Claims of chunks.

use std::time::Duration;

use herald_model::{Channel, Recipients, time::Timestamp};
use herald_store::{ErrorKind, ExpectedRevision, Ledger, Result, Settlement};

use super::{POST, counts, details::mixed, plan_chunk, settlement};
use crate::{
    engine::Engine,
    sample::{eventually, set},
};

const LONG: Duration = Duration::from_hours(1);
const SHORT: Duration = Duration::from_millis(50);

async fn claim(ledger: &dyn Ledger, chunk: &Recipients, base: u64, lease: Duration) -> Result<u64> {
    ledger
        .claim(POST, Channel::Push, chunk.chunk_id(), base, lease)
        .await
}

async fn refusal(ledger: &dyn Ledger, chunk: &Recipients, base: u64) -> Option<ErrorKind> {
    claim(ledger, chunk, base, LONG)
        .await
        .err()
        .map(|error| error.kind())
}

async fn extend(
    ledger: &dyn Ledger,
    chunk: &Recipients,
    revision: u64,
    lease: Duration,
) -> Option<ErrorKind> {
    let extended = ledger
        .extend_claim(POST, Channel::Push, chunk.chunk_id(), revision, lease)
        .await;
    extended.err().map(|error| error.kind())
}

/// Waits until the chunk at this revision can be claimed, and claims it.
async fn claim_when_free(ledger: &dyn Ledger, chunk: &Recipients, base: u64) -> u64 {
    eventually("the claim ends", async || {
        match claim(ledger, chunk, base, LONG).await {
            Ok(revision) => Some(revision),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Claimed);
                None
            }
        }
    })
    .await
}

async fn settle(ledger: &dyn Ledger, chunk: &Recipients, base: u64, keep: Option<Duration>) -> u64 {
    let settlement = Settlement {
        keep_claim: keep,
        ..settlement(
            Channel::Push,
            chunk,
            ExpectedRevision::Revision(base),
            mixed(base as u32 + 1),
            5,
        )
    };
    ledger.settle(&settlement).await.unwrap()
}

pub async fn one_of_16_concurrent_claims_wins<E: Engine>(engine: &mut E) {
    let both = [engine.stores().ledger, engine.peer().await.ledger];
    let chunk = set(1..=9);
    plan_chunk(&*both[0], Channel::Push, &chunk).await;
    // For a chunk without an outcome, then for one with an outcome.
    for base in [0, 2] {
        let calls = (0..16_usize).map(|n| {
            let (ledger, chunk) = (both[n % 2].clone(), chunk.clone());
            tokio::spawn(async move { claim(&*ledger, &chunk, base, LONG).await })
        });
        let answers = futures::future::join_all(calls)
            .await
            .into_iter()
            .map(|call| call.unwrap());
        let (won, lost): (Vec<_>, Vec<_>) = answers.partition(Result::is_ok);
        assert_eq!(
            won.into_iter().map(Result::unwrap).collect::<Vec<_>>(),
            [base + 1]
        );
        for error in lost.into_iter().filter_map(Result::err) {
            assert!(
                matches!(error.kind(), ErrorKind::Claimed | ErrorKind::Conflict),
                "{error:?}"
            );
        }
        // Also one who has read the chunk after the claim.
        for ledger in &both {
            assert_eq!(
                refusal(&**ledger, &chunk, base + 1).await,
                Some(ErrorKind::Claimed)
            );
        }
        assert_eq!(settle(&*both[1], &chunk, base + 1, None).await, base + 2);
    }
}

pub async fn a_claim_lasts_until_its_lease_ends<E: Engine>(engine: &mut E) {
    let (ledger, peer) = (engine.stores().ledger, engine.peer().await.ledger);
    let chunk = set(1..=9);
    plan_chunk(&*ledger, Channel::Push, &chunk).await;
    assert_eq!(claim(&*ledger, &chunk, 0, SHORT).await.unwrap(), 1);
    assert_eq!(claim_when_free(&*peer, &chunk, 1).await, 2);
    // The first worker wakes up: it can neither extend its claim, nor end the other's, nor record an outcome.
    assert_eq!(extend(&*ledger, &chunk, 1, LONG).await, Some(ErrorKind::Conflict));
    ledger
        .release_claim(POST, Channel::Push, chunk.chunk_id(), 1)
        .await
        .unwrap();
    assert_eq!(refusal(&*ledger, &chunk, 2).await, Some(ErrorKind::Claimed));
    let late = settlement(Channel::Push, &chunk, ExpectedRevision::Revision(1), mixed(1), 5);
    assert_eq!(
        ledger.settle(&late).await.unwrap_err().kind(),
        ErrorKind::Conflict
    );
    assert_eq!(settle(&*peer, &chunk, 2, None).await, 3);
}

/// A claim that ends while another is refused for it: the refusal says that the chunk was claimed, not that it changed.
pub async fn a_claim_that_ends_during_a_refusal_is_no_conflict<E: Engine>(engine: &mut E) {
    let ledger = engine.stores().ledger;
    let chunk = set(1..=9);
    plan_chunk(&*ledger, Channel::Push, &chunk).await;
    for revision in 0..200 {
        let lease = Duration::from_micros(100 * (revision % 20));
        let claimed = eventually("the claim ends", async || {
            match claim(&*ledger, &chunk, revision, lease).await {
                Ok(revision) => Some(revision),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Claimed, "revision {revision}");
                    None
                }
            }
        });
        assert_eq!(claimed.await, revision + 1);
    }
}

pub async fn an_extended_claim_lasts_longer<E: Engine>(engine: &mut E) {
    let ledger = engine.stores().ledger;
    let chunk = set(1..=9);
    plan_chunk(&*ledger, Channel::Push, &chunk).await;
    // Also a claim that has ended, while nobody else has the chunk.
    assert_eq!(claim(&*ledger, &chunk, 0, Duration::ZERO).await.unwrap(), 1);
    assert_eq!(extend(&*ledger, &chunk, 1, LONG).await, None);
    assert_eq!(refusal(&*ledger, &chunk, 1).await, Some(ErrorKind::Claimed));
    assert_eq!(extend(&*ledger, &chunk, 0, LONG).await, Some(ErrorKind::Conflict));
    assert_eq!(extend(&*ledger, &chunk, 2, LONG).await, Some(ErrorKind::Conflict));
    // An extension can shorten a claim.
    assert_eq!(extend(&*ledger, &chunk, 1, SHORT).await, None);
    assert_eq!(claim_when_free(&*ledger, &chunk, 1).await, 2);
}

pub async fn a_released_claim_is_free_at_once<E: Engine>(engine: &mut E) {
    let ledger = engine.stores().ledger;
    let chunk = set(1..=9);
    plan_chunk(&*ledger, Channel::Push, &chunk).await;
    assert_eq!(claim(&*ledger, &chunk, 0, LONG).await.unwrap(), 1);
    for _ in 0..2 {
        ledger
            .release_claim(POST, Channel::Push, chunk.chunk_id(), 1)
            .await
            .unwrap();
    }
    assert_eq!(extend(&*ledger, &chunk, 1, LONG).await, Some(ErrorKind::Conflict));
    // Not for a worker that has read the chunk before the claim.
    assert_eq!(refusal(&*ledger, &chunk, 0).await, Some(ErrorKind::Conflict));
    assert_eq!(claim(&*ledger, &chunk, 1, LONG).await.unwrap(), 2);
    // A chunk that nobody has claimed.
    let other = set(20..=30);
    ledger
        .release_claim(POST, Channel::Push, other.chunk_id(), 1)
        .await
        .unwrap();
    assert_eq!(extend(&*ledger, &other, 1, LONG).await, Some(ErrorKind::Conflict));
}

pub async fn a_settlement_ends_the_claim_unless_it_keeps_it<E: Engine>(engine: &mut E) {
    let ledger = engine.stores().ledger;
    let chunk = set(1..=9);
    plan_chunk(&*ledger, Channel::Push, &chunk).await;
    assert_eq!(claim(&*ledger, &chunk, 0, LONG).await.unwrap(), 1);
    assert_eq!(settle(&*ledger, &chunk, 1, Some(LONG)).await, 2);
    assert_eq!(refusal(&*ledger, &chunk, 2).await, Some(ErrorKind::Claimed));
    // The claim belongs to the new revision.
    assert_eq!(extend(&*ledger, &chunk, 1, LONG).await, Some(ErrorKind::Conflict));
    assert_eq!(extend(&*ledger, &chunk, 2, LONG).await, None);
    assert_eq!(settle(&*ledger, &chunk, 2, None).await, 3);
    assert_eq!(claim(&*ledger, &chunk, 3, LONG).await.unwrap(), 4);
    assert_eq!(settle(&*ledger, &chunk, 4, Some(SHORT)).await, 5);
    assert_eq!(claim_when_free(&*ledger, &chunk, 5).await, 6);
    // The same outcome keeps its revision; it keeps or ends the claim all the same.
    for keep_claim in [Some(LONG), None] {
        let same = Settlement {
            keep_claim,
            ..settlement(Channel::Push, &chunk, ExpectedRevision::Revision(6), mixed(5), 5)
        };
        assert_eq!(ledger.settle(&same).await.unwrap(), 6);
        assert_eq!(
            refusal(&*ledger, &chunk, 6).await,
            keep_claim.map(|_| ErrorKind::Claimed)
        );
    }
}

pub async fn a_claim_is_a_revision_without_a_change<E: Engine>(engine: &mut E) {
    let ledger = engine.stores().ledger;
    let chunk = set(1..=9);
    plan_chunk(&*ledger, Channel::Push, &chunk).await;
    assert_eq!(claim(&*ledger, &chunk, 0, LONG).await.unwrap(), 1);
    let push = counts(&*ledger).await.push;
    assert_eq!((push.pending, push.delivered), (9, 0));
    let recorded = ledger
        .outcome(POST, Channel::Push, chunk.chunk_id())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (recorded.revision, recorded.outcome.counts()),
        (1, herald_store::SettledCounts::default())
    );
    let first = settlement(Channel::Push, &chunk, ExpectedRevision::Revision(1), mixed(1), 5);
    assert_eq!(ledger.settle(&first).await.unwrap(), 2);
    assert_eq!(refusal(&*ledger, &chunk, 1).await, Some(ErrorKind::Conflict));
    assert_eq!(claim(&*ledger, &chunk, 2, LONG).await.unwrap(), 3);
    drop(ledger);
    engine.reopen().await;
    let ledger = engine.stores().ledger;
    let recorded = ledger
        .outcome(POST, Channel::Push, chunk.chunk_id())
        .await
        .unwrap()
        .unwrap();
    assert_eq!((recorded.revision, recorded.outcome), (3, mixed(1)));
    assert_eq!(counts(&*ledger).await.push.first_delivered_at, Some(Timestamp(5)));
}
