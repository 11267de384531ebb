//! Tests of concurrent writers of dead letters, and of corrupt rows.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures::future::join_all;
use herald_model::{Channel, ChunkId, Lane, PostId, UserKey, time::Timestamp};

use super::{connect, database, run};
use crate::{
    Cause, DeadLetter, DeadLetterFilter, DeadLetterId, DeadLetterState, DeadLetterVersion, DeadLetters as _,
    ErrorKind, Fence, Leases as _, MessageRef, NewOperation, OperationKind, OperationState, Order, Payload,
    Reopened, Reopening,
    cluster::postgres::{Postgres, PostgresDeadLetters, PostgresLeases},
};

const NOW: Timestamp = Timestamp(1_700_000_000_000_000);
const LONG: Duration = Duration::from_mins(10);

pub(super) fn dead_letter(id: u64) -> DeadLetter {
    DeadLetter {
        id: DeadLetterId(id),
        origin: MessageRef {
            stream: "PUSH".into(),
            consumer: "push-normal".into(),
            sequence: 1_000 + id,
        },
        kind: "push".into(),
        original_sequence: 1_000 + id,
        subject: "push.v1.deliver.normal".into(),
        message_type: "herald.mesh.v1.PushChunk".into(),
        cause: Cause::Terminated,
        reason: format!("push failed: webhook status 503: {id}"),
        group: 7,
        group_reason: "push failed: webhook status 503".into(),
        attempts: 20,
        published_at: NOW.minus(Duration::from_mins(5)),
        first_failed_at: NOW.plus(Duration::from_secs(id)),
        last_failed_at: NOW.plus(Duration::from_secs(id)),
        stored_at: NOW.plus(Duration::from_secs(id)),
        post: Some(PostId(id)),
        author: Some(UserKey(3)),
        channel: Some(Channel::Push),
        chunk: Some(ChunkId(u64::MAX - id)),
        lane: Some(Lane::Normal),
        recipients: 12,
        trace_id: "4bf92f3577b34da6a3ce929d0e0e4736".into(),
        payload: Payload::Kept,
        payload_bytes: 100,
        state: DeadLetterState::Open,
        round: 0,
        redrive: None,
        operations: Vec::new(),
        redrive_sequence: 0,
        updated_at: NOW,
        pushes_expire_at: Some(NOW.plus(Duration::from_secs(id))),
    }
}

pub(super) fn redrive() -> NewOperation {
    NewOperation {
        kind: OperationKind::Redrive,
        actor: "ops@host".into(),
        at: NOW,
        selection: bytes::Bytes::from_static(b"all of them"),
        excluded: 0,
        rate_max: 1,
        failures_max: 100,
        push_ttl: None,
        target: None,
    }
}

fn versions(ids: impl IntoIterator<Item = u64>, round: u32) -> Vec<DeadLetterVersion> {
    let version = |id| DeadLetterVersion {
        id: DeadLetterId(id),
        round,
    };
    ids.into_iter().map(version).collect()
}

fn failed_again(id: u64, round: u32) -> Reopening {
    Reopening {
        dead_letter: DeadLetterId(id),
        round,
        cause: Cause::MaxDeliveries,
        reason: "max deliveries reached".into(),
        group: 8,
        group_reason: "max deliveries reached".into(),
        failed_at: NOW.plus(Duration::from_hours(1)),
    }
}

struct Process {
    postgres: Postgres,
    dead_letters: Arc<PostgresDeadLetters>,
    leases: PostgresLeases,
}

async fn two_processes() -> Option<[Process; 2]> {
    let url = database().await?;
    let first = connect(&url).await;
    first.migrate().await.unwrap();
    let second = connect(&url).await;
    Some([first, second].map(|postgres| Process {
        dead_letters: Arc::new(PostgresDeadLetters::new(postgres.clone())),
        leases: PostgresLeases::new(postgres.clone()),
        postgres,
    }))
}

impl Process {
    async fn fill(&self, ids: std::ops::RangeInclusive<u64>) {
        let all: Vec<_> = ids.map(dead_letter).collect();
        let inserted = self.dead_letters.insert(&all).await.unwrap();
        assert!(inserted.iter().all(|one| one.new));
    }

    async fn lease(&self, holder: &str, duration: Duration) -> Fence {
        self.leases
            .acquire("redrive", holder, duration)
            .await
            .unwrap()
            .unwrap()
    }

    async fn ids(&self, filter: &DeadLetterFilter) -> Vec<u64> {
        let page = self
            .dead_letters
            .scan(filter, Order::OldestFirst, None, 1_000)
            .await
            .unwrap();
        assert_eq!(page.next, None);
        page.dead_letters
            .iter()
            .map(|dead_letter| dead_letter.id.0)
            .collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_claim_each_dead_letter_of_a_redrive_once() {
    let Some(processes) = two_processes().await else {
        return;
    };
    processes[0].fill(1..=2_500).await;
    let begun = processes[0]
        .dead_letters
        .begin(&redrive(), &versions(1..=2_500, 0))
        .await
        .unwrap();
    let fence = processes[0].lease("a", LONG).await;
    let claims = (0..4).map(|n| {
        let (dead_letters, fence) = (Arc::clone(&processes[n % 2].dead_letters), fence.clone());
        tokio::spawn(async move {
            let mut claimed = Vec::new();
            loop {
                let step = dead_letters.claim(begun.id, 90, 40, NOW, &fence).await.unwrap();
                if step.dead_letters.is_empty() {
                    return claimed;
                }
                claimed.extend(step.dead_letters.iter().map(|dead_letter| dead_letter.id.0));
            }
        })
    });
    let claimed = join_all(claims).await.into_iter().flat_map(Result::unwrap);
    let claimed: Vec<u64> = claimed.collect();
    assert_eq!(claimed.len(), 2_500);
    assert_eq!(claimed.iter().collect::<BTreeSet<_>>().len(), 2_500);
    let operation = processes[1]
        .dead_letters
        .operation(begun.id)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (operation.reached, operation.skipped, operation.in_flight()),
        (2_500, 0, 2_500)
    );
    assert_eq!(operation.redrive_after, 40);
}

#[tokio::test]
async fn a_claim_under_an_ended_lease_is_refused() {
    let Some([first, second]) = two_processes().await else {
        return;
    };
    first.fill(1..=3).await;
    let begun = first
        .dead_letters
        .begin(&redrive(), &versions(1..=3, 0))
        .await
        .unwrap();
    let stale = first.lease("a", LONG).await;
    super::end_leases(&first.postgres).await;
    let claim = async |process: &Process, fence: &Fence| {
        let step = process.dead_letters.claim(begun.id, 1, 0, NOW, fence).await;
        step.map(|step| step.dead_letters.len())
            .map_err(|error| error.kind())
    };
    assert_eq!(claim(&first, &stale).await, Err(ErrorKind::Fenced));
    let held = second.lease("b", LONG).await;
    assert_eq!(claim(&first, &stale).await, Err(ErrorKind::Fenced));
    assert_eq!(claim(&second, &held).await, Ok(1));
    second.leases.release(&held).await.unwrap();
    assert_eq!(claim(&second, &held).await, Err(ErrorKind::Fenced));
    let operation = first.dead_letters.operation(begun.id).await.unwrap().unwrap();
    assert_eq!(operation.reached, 1);
}

/// Outcomes, reported from both processes in different orders while others are claimed, are counted once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_outcomes_are_counted_once_and_never_deadlock() {
    const COUNT: u64 = 400;
    let Some(processes) = two_processes().await else {
        return;
    };
    processes[0].fill(1..=2 * COUNT).await;
    let fence = processes[0].lease("a", LONG).await;
    let mut redrives = Vec::new();
    for ids in [1..=COUNT, COUNT + 1..=2 * COUNT] {
        let dead_letters = &processes[0].dead_letters;
        let begun = dead_letters.begin(&redrive(), &versions(ids, 0)).await.unwrap();
        dead_letters
            .claim(begun.id, COUNT as usize, 0, NOW, &fence)
            .await
            .unwrap();
        redrives.push(begun.id);
    }
    // Of each redrive, the even ones are resolved and the odd ones fail.
    let resolves = (0..2).map(|n: usize| {
        let dead_letters = Arc::clone(&processes[n].dead_letters);
        tokio::spawn(async move {
            let mut even: Vec<u64> = (1..=COUNT).map(|id| 2 * id).collect();
            if n == 1 {
                even.reverse();
            }
            let mut resolved = 0;
            for ids in even.chunks(64) {
                resolved += dead_letters
                    .resolve(&versions(ids.iter().copied(), 1), NOW)
                    .await
                    .unwrap();
            }
            resolved
        })
    });
    let reopens = (0..2).map(|n: usize| {
        let dead_letters = Arc::clone(&processes[n].dead_letters);
        tokio::spawn(async move {
            let mut reopened = 0;
            for id in (1..=COUNT).map(|id| 2 * id - 1) {
                let result = dead_letters.reopen(&failed_again(id, 1)).await.unwrap();
                reopened += u64::from(result == Reopened::Open);
            }
            reopened
        })
    });
    let done = join_all(resolves.chain(reopens)).await;
    let done: Vec<u64> = done.into_iter().map(Result::unwrap).collect();
    assert_eq!((done[0] + done[1], done[2] + done[3]), (COUNT, COUNT), "{done:?}");
    for id in redrives {
        let operation = processes[1].dead_letters.operation(id).await.unwrap().unwrap();
        assert_eq!((operation.resolved, operation.failed), (COUNT / 2, COUNT / 2));
        assert_eq!(operation.in_flight(), 0);
    }
    let deadlocks: i64 =
        sqlx::query_scalar("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
            .fetch_one(processes[0].postgres.pool())
            .await
            .unwrap();
    assert_eq!(deadlocks, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_inserts_of_a_message_make_one_dead_letter() {
    let Some(processes) = two_processes().await else {
        return;
    };
    let inserts = (0..8_u64).map(|n| {
        let dead_letters = Arc::clone(&processes[n as usize % 2].dead_letters);
        tokio::spawn(async move {
            let mut all: Vec<_> = (1..=50)
                .map(|id| DeadLetter {
                    id: DeadLetterId(1_000 * (n + 1) + id),
                    ..dead_letter(id)
                })
                .collect();
            if n % 2 == 1 {
                all.reverse();
            }
            dead_letters.insert(&all).await.unwrap()
        })
    });
    let inserted: Vec<_> = join_all(inserts)
        .await
        .into_iter()
        .flat_map(Result::unwrap)
        .collect();
    assert_eq!(inserted.iter().filter(|one| one.new).count(), 50);
    let ids: BTreeSet<_> = inserted.iter().map(|one| one.id).collect();
    assert_eq!(ids.len(), 50);
    assert_eq!(processes[0].ids(&DeadLetterFilter::default()).await.len(), 50);
}

#[tokio::test]
async fn a_corrupt_row_fails_only_what_asks_for_it() {
    let Some([process, _]) = two_processes().await else {
        return;
    };
    process.fill(1..=4).await;
    run(
        &process.postgres,
        r"UPDATE herald.dead_letters SET content = '\xff' WHERE id = 2",
    )
    .await;
    let any = DeadLetterFilter::default();
    assert_eq!(process.ids(&any).await, [1, 3, 4]);
    let page = process
        .dead_letters
        .scan(&any, Order::OldestFirst, None, 2)
        .await
        .unwrap();
    assert_eq!((page.dead_letters.len(), page.next), (1, Some(DeadLetterId(2))));
    assert_eq!(process.dead_letters.groups(&any).await.unwrap().dead_letters(), 4);
    let error = process.dead_letters.get(&[DeadLetterId(2)]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("dead letter 2"), "{error}");
    // A redrive goes on without it.
    let fence = process.lease("a", LONG).await;
    let begun = process
        .dead_letters
        .begin(&redrive(), &versions(1..=4, 0))
        .await
        .unwrap();
    let step = process
        .dead_letters
        .claim(begun.id, 10, 0, NOW, &fence)
        .await
        .unwrap();
    assert_eq!((step.dead_letters.len(), step.operation.skipped), (3, 1));
    let done = process
        .dead_letters
        .finish(begun.id, OperationState::Done, "", NOW)
        .await
        .unwrap();
    assert_eq!(done.state, OperationState::Done);
}
