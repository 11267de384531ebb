//! Bad days of the cluster engine: PostgreSQL or Redis stopped, hanging, full, without a free connection, failed over.
//! Posts are accepted all the time, work waits without spinning and without spending attempts, and afterwards everything
//! is delivered once.

mod fault;
mod world;

use std::{
    cell::RefCell,
    collections::BTreeMap,
    time::{Duration, Instant},
};

use harness::{Forwarder, until, until_some};
use herald_local_stores::{Redis, RedisOptions};
use serde_json::Value;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use uuid::Uuid;

use self::{
    fault::Fault,
    world::{DEADLINE, LIMIT, World, servers},
};
use crate::surface::http_get;

/// How long a fault lasts: longer than all acknowledgement deadlines, claims and time-outs of these tests.
const OUTAGE: Duration = Duration::from_secs(5);
/// Processor time that the server may use while it waits, as a share of one processor. A loop without a delay takes 1.
const BUSY_MAX: f64 = 0.6;
/// Messages that the consumers may deliver while they wait, in each [`OUTAGE`].
const DELIVERIES_MAX: u64 = 12;
/// How long the consumers deliver nothing once they have delivered the new posts and wait.
const QUIET: Duration = Duration::from_millis(500);

impl World {
    /// One bad day, and the time after it.
    async fn endure(&mut self, fault: Fault) {
        self.begin(fault).await;
        until(
            &format!("{fault:?}: /readyz says what is missing"),
            LIMIT,
            || async {
                let answer = http_get(self.herald.http(), "/readyz").await;
                let (head, body) = answer.split_once("\r\n\r\n").unwrap();
                let states: Vec<Value> = serde_json::from_str(body).unwrap();
                let fails = |name: &&str| {
                    let state = states.iter().find(|state| state["name"] == *name);
                    state.is_some_and(|state| state["ready"] == false && state["reason"] != "")
                };
                head.starts_with("HTTP/1.1 503") && fault.missing().iter().all(fails)
            },
        )
        .await;
        self.submit_during(fault).await;
        self.read_during(fault).await;

        let deliveries = self.deliveries_before_waiting(fault).await;
        let (began, busy) = (Instant::now(), self.busy());
        tokio::time::sleep(OUTAGE).await;
        let share = self.busy().checked_sub(busy).unwrap().as_secs_f64() / began.elapsed().as_secs_f64();
        let mut delivered = self.deliveries().await;
        // On a busy machine it can be longer than the outage.
        let outages = began.elapsed().as_millis().div_ceil(OUTAGE.as_millis());
        delivered.retain(|consumer, count| {
            *count -= deliveries.get(consumer).copied().unwrap_or(0);
            *count > 0
        });
        eprintln!("{fault:?}: {share:.2} of a processor, delivered messages: {delivered:?}");
        assert!(
            share < BUSY_MAX,
            "{fault:?}: the server uses {share:.2} of a processor"
        );
        assert!(
            u128::from(delivered.values().sum::<u64>()) <= outages * u128::from(DELIVERIES_MAX),
            "{fault:?}: {delivered:?} were delivered"
        );

        self.end(fault).await;
        self.until_delivered().await;
        until(&format!("{fault:?}: the server is ready"), LIMIT, || async {
            let answer = http_get(self.herald.http(), "/readyz").await;
            answer.starts_with("HTTP/1.1 200")
        })
        .await;
    }

    /// What each consumer has delivered, once none delivers the new posts for the first time.
    async fn deliveries_before_waiting(&self, fault: Fault) -> BTreeMap<String, u64> {
        let latest = RefCell::new((BTreeMap::new(), Instant::now()));
        until_some(
            &format!("{fault:?}: the consumers have the new posts"),
            LIMIT,
            || async {
                let deliveries = self.deliveries().await;
                let mut latest = latest.borrow_mut();
                if deliveries != latest.0 {
                    *latest = (deliveries, Instant::now());
                }
                (latest.1.elapsed() >= QUIET).then(|| latest.0.clone())
            },
        )
        .await
    }

    /// Posts are accepted, with and without a request id, and a repeated request gets its post back.
    async fn submit_during(&mut self, fault: Fault) {
        let text = format!("{fault:?}");
        let generated = self.submit("", &text).await;
        let generated = generated.unwrap_or_else(|status| panic!("{fault:?}: {status:?}"));
        let request_id = Uuid::new_v4().to_string();
        let submit = async || {
            until_some(&format!("{fault:?}: a post is accepted"), LIMIT, || async {
                match self.submit(&request_id, &text).await {
                    Ok(accepted) => Some(accepted),
                    Err(status) => {
                        assert_unavailable(fault, "SubmitPost", &status);
                        None
                    }
                }
            })
            .await
        };
        let (chosen, again) = (submit().await, submit().await);
        assert_eq!(
            (again.post_id, again.duplicate),
            (chosen.post_id, true),
            "{fault:?}"
        );
        self.posts.extend([generated.post_id, chosen.post_id]);
    }

    /// What can be read is read, and the rest is answered with UNAVAILABLE and RetryInfo.
    async fn read_during(&self, fault: Fault) {
        let post = self.posts[0];
        let began = Instant::now();
        let (timeline, delivery, posts, dead_letters, follow) = tokio::join!(
            self.list_timeline("ann"),
            self.delivery(post),
            self.list_posts(),
            self.list_dead_letters(),
            self.follow(),
        );
        assert!(began.elapsed() < DEADLINE, "{fault:?}: {:?}", began.elapsed());
        for (call, works, answer) in [
            ("ListTimeline", fault.has_timelines(), timeline.map(drop)),
            ("GetDelivery", fault.has_records(), delivery.map(drop)),
            ("ListPosts", fault.has_records(), posts),
            ("ListDeadLetters", fault.has_records(), dead_letters.map(drop)),
        ] {
            match answer {
                Ok(()) => assert!(works, "{fault:?}: {call} is answered"),
                Err(status) => {
                    assert!(!works, "{fault:?}: {call}: {status:?}");
                    assert_unavailable(fault, call, &status);
                }
            }
        }
        match follow {
            Ok(()) => assert!(fault.takes_records(), "{fault:?}: Follow is answered"),
            Err(status) if fault == Fault::PostgresIsFull => {
                assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
                assert!(status.get_details_retry_info().is_some(), "{status:?}");
            }
            Err(status) => {
                assert!(!fault.takes_records(), "{fault:?}: {status:?}");
                assert_unavailable(fault, "Follow", &status);
            }
        }
    }
}

fn assert_unavailable(fault: Fault, call: &str, status: &Status) {
    assert_eq!(status.code(), Code::Unavailable, "{fault:?}: {call}: {status:?}");
    let retry = status.get_details_retry_info();
    assert!(retry.is_some(), "{fault:?}: {call}: {status:?}");
}

async fn endure_all(faults: &[Fault]) {
    let Some((postgres, redis)) = servers().await else {
        return;
    };
    let url = redis.url();
    let mut world = World::start(postgres, redis, url).await;
    for fault in faults {
        world.endure(*fault).await;
    }
    world.check().await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn posts_wait_for_stores_that_stop() {
    endure_all(&[Fault::PostgresStops, Fault::RedisStops, Fault::BothStop]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn posts_wait_for_stores_that_hang() {
    endure_all(&[Fault::PostgresHangs, Fault::RedisHangs]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn posts_wait_for_stores_that_are_full() {
    endure_all(&[
        Fault::PostgresIsFull,
        Fault::PostgresIsReadOnly,
        Fault::PostgresHasNoConnection,
        Fault::RedisIsFull,
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_by_fail_overs() {
    let Some((postgres, redis)) = servers().await else {
        return;
    };
    let replica = RedisOptions {
        replica_of: Some(redis.port()),
        ..RedisOptions::default()
    };
    let replica = Redis::start(replica).await.unwrap();
    let forwarder = Forwarder::start(redis.port()).await;
    let url = format!("redis://{}", forwarder.address());
    let mut world = World::start(postgres, redis, url).await;
    until("the replica has the keys", LIMIT, || async {
        let size = async |redis: &Redis| redis.command(&["DBSIZE"]).await.unwrap();
        size(&replica).await == size(&world.redis).await
    })
    .await;

    // The replica misses a post that is delivered, and becomes the primary.
    replica.promote().await.unwrap();
    let post = world.submit("", "not on the replica").await.unwrap();
    world.posts.push(post.post_id);
    world.until_delivered().await;
    world.redis.kill().await.unwrap();
    forwarder.lead_to(replica.port());
    forwarder.cut();
    world.check().await;

    // PostgreSQL ends all sessions, then crashes, in the middle of transactions.
    let end_sessions =
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'herald'";
    for n in 0..30 {
        let post = world.submit("", &format!("post {n}")).await;
        world.posts.push(post.unwrap().post_id);
        match n {
            20 => {
                world.postgres.kill().await.unwrap();
                world.postgres.restart().await.unwrap();
            }
            _ if n % 5 == 0 => world.postgres.run_in("herald", end_sessions).await.unwrap(),
            _ => {}
        }
    }
    world.until_delivered().await;
    world.check().await;
    world.stop().await;
}
