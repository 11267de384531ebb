//! Several instances on one store and one broker.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use herald_deadletter::{Config, ContinuousAudit, Metrics, run};
use herald_mesh::Disposition;
use herald_model::time::Timestamp;
use herald_proto::v1::{self, DeadLetterOperationState, DeadLetterState};
use herald_runtime::metrics::Shared;
use herald_store::{ClockCheck, DeadLetterId, DeadLetterVersion, Fence, Leases, Result, Retention};
use tokio_util::sync::CancellationToken;

use crate::harness::{
    Client, Harness, Running, Verdict, dead_letters, in_state, list_all, redrive, select_all, select_ids,
    until,
};

/// An instance with metrics of its own.
struct Replica {
    service: Running,
    metrics: Shared,
}

impl Replica {
    fn leads(&self, lease: &str) -> bool {
        let line = format!("herald_deadletter_leading{{lease=\"{lease}\"}} 1");
        self.metrics.open_metrics().lines().any(|found| found == line)
    }

    fn client(&self) -> &Client {
        &self.service.client
    }
}

fn config() -> Config {
    Config {
        lease_seconds: 2,
        ..Config::default()
    }
}

async fn start_replica(harness: &Harness, config: Config) -> Replica {
    let metrics = Shared::new();
    let (mut deps, address) = harness.deps().await;
    deps.metrics = metrics.register(Metrics::new);
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(run(config, deps, shutdown.clone()));
    Replica {
        service: Running::new(address, shutdown, task).await,
        metrics,
    }
}

/// Starts two replicas. The first one leads the redrives.
async fn start_two(harness: &Harness) -> [Replica; 2] {
    let first = start_replica(harness, config()).await;
    until(async || first.leads("redrive")).await;
    let second = start_replica(harness, config()).await;
    [first, second]
}

async fn begin(client: &Client, rate_max: u32) -> (u64, tonic::Streaming<v1::RedriveDeadLettersResponse>) {
    let request = v1::RedriveDeadLettersRequest {
        selection: Some(select_all()),
        rate_max,
        ..Default::default()
    };
    let mut progress = client
        .clone()
        .redrive_dead_letters(request)
        .await
        .unwrap()
        .into_inner();
    let begun = progress.message().await.unwrap().unwrap().redrive.unwrap();
    (begun.redrive_id, progress)
}

async fn last(mut progress: tonic::Streaming<v1::RedriveDeadLettersResponse>) -> v1::Redrive {
    let mut last = None;
    while let Some(answer) = progress.message().await.unwrap() {
        last = answer.redrive;
    }
    last.unwrap()
}

fn once(ids: std::ops::RangeInclusive<u64>) -> Vec<(u64, u32)> {
    ids.map(|id| (id, 1)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn redrives_that_begin_at_any_instance_run_once_and_report_their_progress() {
    let harness = Harness::start().await;
    let [first, second] = start_two(&harness).await;
    harness.create_dead_letters(first.client(), 1..=40).await;
    let (one, two) = tokio::join!(
        redrive(first.client(), select_ids(1..=20), None),
        redrive(second.client(), select_ids(21..=40), None),
    );
    for done in [one.unwrap(), two.unwrap()] {
        assert_eq!(
            (done.state(), done.resolved_count, done.failed_count),
            (DeadLetterOperationState::Done, 20, 0)
        );
    }
    assert_eq!(harness.redriven(), once(1..=40));
    assert!(first.leads("redrive") && !second.leads("redrive"));
    for replica in [first, second] {
        replica.service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_that_another_instance_records_are_counted() {
    let harness = Harness::start().await;
    let [first, second] = start_two(&harness).await;
    harness.create_dead_letters(second.client(), 1..=60).await;
    harness.set_verdict(Verdict::Decide(|delivery| {
        if delivery
            .redrive
            .is_some_and(|redriven| redriven.dead_letter % 2 == 0)
        {
            Disposition::term("failed again")
        } else {
            Disposition::Ack
        }
    }));
    for client in [second.client(), first.client()] {
        let open = in_state(client, DeadLetterState::Open).await;
        let done = redrive(client, select_all(), Some(0)).await.unwrap();
        assert_eq!(
            (done.state(), done.selected_count, done.failed_count),
            (DeadLetterOperationState::Done, open.len() as u64, 30)
        );
        let even: Vec<u64> = (1..=60).filter(|id| id % 2 == 0).collect();
        assert_eq!(in_state(client, DeadLetterState::Open).await, even);
    }
    for replica in [first, second] {
        replica.service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redrive_is_cancelled_at_any_instance() {
    let harness = Harness::start().await;
    let [first, second] = start_two(&harness).await;
    harness.create_dead_letters(first.client(), 1..=200).await;
    for (begins, cancels) in [(&first, &second), (&second, &first)] {
        let (redrive_id, progress) = begin(begins.client(), 20).await;
        let before = harness.redriven().len();
        until(async || harness.redriven().len() > before + 2).await;
        let request = v1::CancelRedriveRequest { redrive_id };
        let cancelled = cancels.client().clone().cancel_redrive(request).await.unwrap();
        assert_eq!(
            cancelled.into_inner().redrive.unwrap().state(),
            DeadLetterOperationState::Cancelled
        );
        let done = last(progress).await;
        assert_eq!(done.state(), DeadLetterOperationState::Cancelled);
        assert_eq!(done.resolved_count, done.sent_count);
        assert!(done.sent_count < 150, "{done:?}");
    }
    for replica in [first, second] {
        replica.service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_instance_resumes_the_redrive_of_one_that_died() {
    let harness = Harness::start().await;
    let [first, second] = start_two(&harness).await;
    harness.create_dead_letters(second.client(), 1..=600).await;
    let (_, progress) = begin(second.client(), 500).await;
    until(async || harness.redriven().len() > 50).await;
    first.service.abort().await;
    assert!(harness.redriven().len() < 600);
    let done = tokio::time::timeout(Duration::from_mins(1), last(progress))
        .await
        .unwrap();
    assert_eq!(
        (
            done.state(),
            done.resolved_count,
            done.failed_count,
            done.skipped_count
        ),
        (DeadLetterOperationState::Done, 600, 0, 0)
    );
    assert_eq!(harness.redriven(), once(1..=600));
    assert!(second.leads("redrive"));
    second.service.stop().await;
}

/// Leases of a store that one instance can't reach.
struct Unreachable {
    inner: Arc<dyn Leases>,
    reachable: AtomicBool,
}

#[async_trait]
impl Leases for Unreachable {
    async fn acquire(&self, name: &str, holder: &str, duration: Duration) -> Result<Option<Fence>> {
        if !self.reachable.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        self.inner.acquire(name, holder, duration).await
    }

    async fn renew(&self, fence: &Fence, duration: Duration) -> Result<()> {
        if !self.reachable.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        self.inner.renew(fence, duration).await
    }

    async fn release(&self, fence: &Fence) -> Result<()> {
        self.inner.release(fence).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_lost_its_lease_sends_nothing_more() {
    let mut harness = Harness::start().await;
    let leases = Arc::new(Unreachable {
        inner: harness.stores.leases.clone(),
        reachable: AtomicBool::new(true),
    });
    let all = harness.stores.leases.clone();
    harness.stores.leases = leases.clone();
    let first = start_replica(&harness, config()).await;
    until(async || first.leads("redrive")).await;
    harness.stores.leases = all;
    let second = start_replica(&harness, config()).await;
    harness.create_dead_letters(second.client(), 1..=300).await;
    let (_, progress) = begin(first.client(), 50).await;
    until(async || harness.redriven().len() > 10).await;
    // The first instance can't renew its lease, but still reaches the dead letters and the broker.
    leases.reachable.store(false, Ordering::SeqCst);
    until(async || second.leads("redrive")).await;
    // The first one counts its lease from before the call, so it sees the end before the store does, and its gauge
    // falls then, whatever is left of its work. Its timer can be late on a busy machine; it sends nothing meanwhile,
    // because it asks the clock before each message.
    until(async || !first.leads("redrive")).await;
    let done = tokio::time::timeout(Duration::from_mins(1), last(progress))
        .await
        .unwrap();
    assert_eq!(
        (done.state(), done.resolved_count, done.skipped_count),
        (DeadLetterOperationState::Done, 300, 0)
    );
    assert_eq!(harness.redriven(), once(1..=300));
    for replica in [first, second] {
        replica.service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_discard_whose_instance_died_is_finished_by_another() {
    let harness = Harness::start().await;
    let [first, second] = start_two(&harness).await;
    harness.create_dead_letters(second.client(), 1..=200).await;
    // An instance began a discard of all, discarded a part, and died.
    let store = &harness.stores.dead_letters;
    let selected: Vec<_> = (1..=200)
        .map(|id| DeadLetterVersion {
            id: DeadLetterId(id),
            round: 0,
        })
        .collect();
    let operation = herald_store::NewOperation {
        kind: herald_store::OperationKind::Discard,
        actor: "somebody".into(),
        at: Timestamp::now(),
        selection: bytes::Bytes::new(),
        excluded: 0,
        rate_max: 0,
        failures_max: 0,
        push_ttl: None,
        target: None,
    };
    let begun = store.begin(&operation, &selected).await.unwrap();
    store.discard(begun.id, 20, Timestamp::now()).await.unwrap();
    until(async || in_state(second.client(), DeadLetterState::Discarded).await.len() == 200).await;
    let finished = store.operation(begun.id).await.unwrap().unwrap();
    assert_eq!(finished.applied(), 200);
    for replica in [first, second] {
        replica.service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_instances_index_each_dead_letter_once() {
    let harness = Harness::start().await;
    let [first, second] = start_two(&harness).await;
    let payload = harness.plan(9, &["ann", "bob"]).await;
    let sequence = harness.publish(&payload).await;
    for _ in 0..8 {
        harness
            .publish_advisory("PUSH", "push-normal", sequence, Some("failed"))
            .await;
    }
    harness.create_dead_letters(second.client(), 100..=399).await;
    let found = dead_letters(first.client(), 301).await;
    assert_eq!(list_all(second.client()).await, found);
    let created: u64 = [&first, &second]
        .map(|replica| {
            let text = replica.metrics.open_metrics();
            let lines = text
                .lines()
                .filter(|line| line.starts_with("herald_deadletter_created_total{"));
            lines
                .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
                .sum::<u64>()
        })
        .iter()
        .sum();
    assert_eq!(created, 301);
    for replica in [first, second] {
        replica.service.stop().await;
    }
}

/// Counts the calls of retention.
#[derive(Default)]
struct CountedRetention(AtomicUsize);

#[async_trait]
impl Retention for CountedRetention {
    async fn trim(&self, _: Timestamp) -> Result<()> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    async fn observe_clock(&self, _: Timestamp) -> Result<ClockCheck> {
        Ok(ClockCheck::Steady)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_instance_audits_and_trims_and_another_takes_over() {
    let mut harness = Harness::start().await;
    let retention = Arc::new(CountedRetention::default());
    harness.stores.retention = retention.clone();
    let config = Config {
        continuous_audit: ContinuousAudit {
            interval_seconds: 1,
            ..ContinuousAudit::default()
        },
        ..config()
    };
    let value = |replica: &Replica, name: &str| {
        let text = replica.metrics.open_metrics();
        let line = text
            .lines()
            .find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
        line.unwrap().rsplit(' ').next().unwrap().parse::<u64>().unwrap()
    };
    let rounds = |replica: &Replica| value(replica, "herald_audit_rounds_total");
    let interval = |replica: &Replica| value(replica, "herald_audit_interval_seconds");
    let alive = |replica: &Replica| value(replica, "herald_audit_alive_time_seconds");
    let started = Timestamp::now().0 as u64 / 1_000_000;
    let first = start_replica(&harness, config.clone()).await;
    until(async || first.leads("audit") && first.leads("retention")).await;
    let second = start_replica(&harness, config).await;
    until(async || rounds(&first) >= 3).await;
    assert_eq!([rounds(&second), interval(&second), alive(&second)], [0, 0, 0]);
    assert_eq!(interval(&first), 1);
    let seen = alive(&first);
    assert!(seen >= started, "{seen}");
    until(async || alive(&first) > seen).await;
    assert_eq!(retention.0.load(Ordering::SeqCst), 1);

    first.service.stop().await;
    until(async || rounds(&second) >= 1 && retention.0.load(Ordering::SeqCst) == 2).await;
    assert!(second.leads("audit") && second.leads("retention"));
    assert!(interval(&second) == 1 && alive(&second) >= seen);
    second.service.stop().await;
}
