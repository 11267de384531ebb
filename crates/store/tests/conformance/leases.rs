//! Leases.

use std::time::Duration;

use herald_store::{ErrorKind, Leases};

use crate::{engine::Engine, sample::eventually};

const LONG: Duration = Duration::from_hours(1);
const SHORT: Duration = Duration::from_millis(50);

async fn kind_of_renewal(leases: &dyn Leases, fence: &herald_store::Fence) -> Option<ErrorKind> {
    leases.renew(fence, LONG).await.err().map(|error| error.kind())
}

pub async fn one_of_several_holders_gets_a_lease<E: Engine>(engine: &mut E) {
    let both = [engine.stores().leases, engine.peer().await.leases];
    let calls = (0..16_usize).map(|n| {
        let leases = both[n % 2].clone();
        tokio::spawn(async move { leases.acquire("one", &format!("holder {n}"), LONG).await.unwrap() })
    });
    let answers = futures::future::join_all(calls).await;
    let held: Vec<_> = answers.into_iter().filter_map(|answer| answer.unwrap()).collect();
    assert_eq!(held.len(), 1, "{held:?}");
    assert_eq!(held[0].name, "one");
    assert_eq!(kind_of_renewal(&*both[1], &held[0]).await, None);
    // Another lease has another holder.
    assert!(
        both[0]
            .acquire("other", "holder x", LONG)
            .await
            .unwrap()
            .is_some()
    );
}

pub async fn a_lease_is_free_after_its_end<E: Engine>(engine: &mut E) {
    let (leases, peer) = (engine.stores().leases, engine.peer().await.leases);
    let first = leases.acquire("one", "a", SHORT).await.unwrap().unwrap();
    let second = eventually("the lease ends", async || {
        peer.acquire("one", "b", LONG).await.unwrap()
    });
    let second = second.await;
    assert!(second.token > first.token);
    assert_eq!(kind_of_renewal(&*leases, &first).await, Some(ErrorKind::Fenced));
    // The old holder can't end the new one's lease.
    leases.release(&first).await.unwrap();
    assert_eq!(leases.acquire("one", "c", LONG).await.unwrap(), None);
    assert_eq!(kind_of_renewal(&*leases, &second).await, None);
}

pub async fn a_renewed_lease_lasts_longer<E: Engine>(engine: &mut E) {
    let leases = engine.stores().leases;
    // Also one that has ended, while nobody else has taken it.
    let held = leases.acquire("one", "a", Duration::ZERO).await.unwrap().unwrap();
    leases.renew(&held, LONG).await.unwrap();
    assert_eq!(leases.acquire("one", "b", LONG).await.unwrap(), None);
    // A renewal can shorten a lease.
    leases.renew(&held, SHORT).await.unwrap();
    eventually("the lease ends", async || {
        leases.acquire("one", "b", LONG).await.unwrap()
    })
    .await;
}

pub async fn a_released_lease_is_free_at_once<E: Engine>(engine: &mut E) {
    let leases = engine.stores().leases;
    let first = leases.acquire("one", "a", LONG).await.unwrap().unwrap();
    leases.release(&first).await.unwrap();
    leases.release(&first).await.unwrap();
    assert_eq!(kind_of_renewal(&*leases, &first).await, Some(ErrorKind::Fenced));
    let second = leases.acquire("one", "b", LONG).await.unwrap().unwrap();
    assert!(second.token > first.token);
}

pub async fn a_holder_that_takes_its_lease_again_fences_itself<E: Engine>(engine: &mut E) {
    let leases = engine.stores().leases;
    let before = leases.acquire("one", "a", LONG).await.unwrap().unwrap();
    let after = leases.acquire("one", "a", LONG).await.unwrap().unwrap();
    assert!(after.token > before.token);
    assert_eq!(kind_of_renewal(&*leases, &before).await, Some(ErrorKind::Fenced));
    assert_eq!(kind_of_renewal(&*leases, &after).await, None);
}

pub async fn leases_survive_a_restart<E: Engine>(engine: &mut E) {
    let held = engine
        .stores()
        .leases
        .acquire("one", "a", LONG)
        .await
        .unwrap()
        .unwrap();
    engine.reopen().await;
    let leases = engine.stores().leases;
    // Of an engine for one process, the holder died with it.
    if let Some(next) = leases.acquire("one", "b", LONG).await.unwrap() {
        assert!(next.token > held.token);
        assert_eq!(kind_of_renewal(&*leases, &held).await, Some(ErrorKind::Fenced));
    } else {
        assert_eq!(kind_of_renewal(&*leases, &held).await, None);
    }
}
