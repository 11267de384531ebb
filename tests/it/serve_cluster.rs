//! `herald serve`: roles in processes of their own, on PostgreSQL, Redis and NATS.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use futures::future::join_all;
use harness::{Process, free_port, run, until, until_some};
use herald_local_nats::{Config as NatsConfig, Server as Nats};
use herald_local_stores::{Postgres, PostgresOptions, Redis, RedisOptions, required};
use herald_proto::v1;
use herald_push_sink::Running;
use rustix::process::Signal;
use serde_json::Value;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::{HERALD, surface::http_get};

pub(crate) const LIMIT: Duration = Duration::from_mins(1);
const SERVING: i32 = 1;
pub(crate) const NOT_SERVING: i32 = 2;

/// NATS, PostgreSQL and Redis.
pub(crate) struct World {
    pub(crate) nats: Nats,
    pub(crate) postgres: Postgres,
    pub(crate) redis: Redis,
    database: String,
}

impl World {
    /// Starts the servers; `None` on a machine without them.
    pub(crate) async fn start() -> Option<Self> {
        Self::start_with(NatsConfig::default()).await
    }

    /// Starts the servers with a configuration of NATS.
    pub(crate) async fn start_with(nats: NatsConfig) -> Option<Self> {
        let options = PostgresOptions {
            password: Some("s3cret".into()),
            // Without it processes warn.
            fsync: true,
            ..PostgresOptions::default()
        };
        let postgres = required("PostgreSQL", Postgres::start_with(options).await)?;
        let redis = required("Redis", Redis::start(RedisOptions::default()).await)?;
        let database = postgres.database("herald").await.unwrap();
        let nats = Nats::start(nats).await.unwrap();
        Some(Self {
            nats,
            postgres,
            redis,
            database,
        })
    }

    /// The environment of a process.
    pub(crate) fn variables(&self) -> Vec<(String, String)> {
        let variables = [
            ("HERALD_NATS__URL", self.nats.client_url()),
            ("HERALD_STORE__URL", self.database.clone()),
            ("HERALD_TIMELINES__URL", self.redis.url()),
            ("HERALD_STORE__POSTGRES__CONNECTIONS_MAX", "4".into()),
            ("HERALD_PUSH__VAPID_PRIVATE_KEY", "AQ".repeat(21) + "A"),
            ("HERALD_SHUTDOWN_DELAY_SECONDS", "1".into()),
        ];
        variables.map(|(name, value)| (name.to_owned(), value)).into()
    }

    pub(crate) async fn serve(&self, roles: &str, arguments: &[&str]) -> Process {
        Process::start(HERALD, roles, arguments, &self.variables()).await
    }
}

/// The status of a health service.
pub(crate) async fn health(url: &str, service: &str) -> Result<i32, tonic::Code> {
    let channel = Endpoint::from_shared(url.to_owned()).unwrap().connect_lazy();
    let request = HealthCheckRequest {
        service: service.to_owned(),
    };
    match HealthClient::new(channel).check(request).await {
        Ok(answer) => Ok(answer.into_inner().status),
        Err(status) => Err(status.code()),
    }
}

pub(crate) async fn is_ready(process: &Process) -> bool {
    http_get(process.http(), "/readyz")
        .await
        .starts_with("HTTP/1.1 200")
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_starts_alone_and_stops() {
    let Some(world) = World::start().await else { return };
    let refused = run(
        HERALD,
        &["store", "migrate"],
        &[("HERALD_STORE__URL", "postgres://127.0.0.1:1/x")],
    )
    .await;
    assert_eq!(refused.code, 1, "{refused:?}");
    let nowhere = "http://127.0.0.1:1";
    let peers = [
        ["--peer", "graph=http://127.0.0.1:1"],
        ["--peer", "analytics=http://127.0.0.1:1"],
        ["--peer", "deadletter=http://127.0.0.1:1"],
    ]
    .concat();
    // All at once: they race for streams, consumers and the schema.
    let roles = [
        "gateway",
        "archive",
        "graph",
        "timeline",
        "push",
        "analytics",
        "deadletter",
    ];
    let world_ref = &world;
    let processes = join_all(roles.map(|role| {
        let arguments = if role == "gateway" { peers.as_slice() } else { &[] };
        world_ref.serve(role, arguments)
    }))
    .await;
    for (mut process, role) in processes.into_iter().zip(roles) {
        assert_eq!(process.roles(), [role]);
        assert!(is_ready(&process).await, "{role}");
        let alive = http_get(process.http(), "/healthz").await;
        assert!(alive.starts_with("HTTP/1.1 200"), "{role}: {alive}");
        let metrics = http_get(process.http(), "/metrics").await;
        assert!(metrics.contains(&format!("herald_{role}_")), "{role}: {metrics}");
        assert_eq!(health(&process.url(), role).await, Ok(SERVING), "{role}");
        // A gateway looks each second whether posts are accepted.
        until(&format!("{role} is serving"), LIMIT, || async {
            health(&process.url(), "").await == Ok(SERVING)
        })
        .await;
        assert_eq!(health(&process.url(), "liveness").await, Ok(SERVING), "{role}");
        let other = if role == "graph" { "timeline" } else { "graph" };
        assert_ne!(health(&process.url(), other).await, Ok(SERVING), "{role}");
        assert_eq!(process.stop().await, 0, "{role}: {}", process.log());
        let log = process.log();
        assert!(
            !log.contains("s3cret") && !log.contains(" WARN "),
            "{role}: {log}"
        );
    }
    // Fan-out can't work without graph, so it is not ready; its log names the peer.
    let url = nowhere.to_owned();
    let refused = Process::start_unready(
        HERALD,
        "fanout",
        &["--peer", &format!("graph={url}")],
        &world.variables(),
    )
    .await;
    assert_eq!(refused["checks"][0]["name"], "graph", "{refused}");
}

/// Follows an author with notifications, and registers the sink as the device of the follower.
pub(crate) async fn follow_with_device(gateway: &Process, sink: &Running, user: &str, author: &str) {
    gateway.cli(&["follow", user, author, "--notify"]).await;
    let webhook = sink.webhook(user);
    let address = v1::register_device_request::Address::Webhook(v1::Webhook {
        url: webhook.url,
        secret: webhook.secret,
    });
    let device = v1::RegisterDeviceRequest {
        user_id: user.to_owned(),
        address: Some(address),
    };
    let channel: Channel = Endpoint::from_shared(gateway.url())
        .unwrap()
        .connect()
        .await
        .unwrap();
    let mut devices = v1::device_service_client::DeviceServiceClient::new(channel);
    devices.register_device(device).await.unwrap();
}

/// Waits until the delivery of a post is complete on both channels.
pub(crate) async fn until_delivered(gateway: &Process, post: &str, count: u64) {
    until_some("the post is delivered", LIMIT, || async {
        let delivery = gateway.cli(&["delivery", post]).await;
        let delivered = |channel: &str| delivery["channels"][channel]["delivered_count"].as_u64();
        (delivered("timeline") == Some(count) && delivered("push") == Some(count)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_processes_deliver_a_post() {
    let Some(world) = World::start().await else { return };
    let graph = world.serve("graph", &[]).await;
    let peer = |role: &str, process: &Process| format!("{role}={}", process.url());
    let (analytics, deadletter) = tokio::join!(world.serve("analytics", &[]), world.serve("deadletter", &[]));
    let (to_graph, to_analytics) = (peer("graph", &graph), peer("analytics", &analytics));
    let to_deadletter = peer("deadletter", &deadletter);
    let to_only_graph = ["--peer", &to_graph];
    let to_all = [
        "--peer",
        &to_graph,
        "--peer",
        &to_analytics,
        "--peer",
        &to_deadletter,
    ];
    let (gateway, archive, fanout, timeline, push) = tokio::join!(
        world.serve("gateway", &to_all),
        world.serve("archive", &[]),
        world.serve("fanout", &to_only_graph),
        world.serve("timeline", &["--lanes", "high,normal"]),
        world.serve("push", &[]),
    );
    // A second worker has the lane that the first one lacks.
    let low = world.serve("timeline", &["--lanes", "low"]).await;

    let sink = Running::start().await.unwrap();
    for user in ["ann", "bob", "cid"] {
        follow_with_device(&gateway, &sink, user, "107").await;
    }
    for (post, lane) in [("1", "normal"), ("2", "low"), ("3", "high")] {
        let posted = gateway
            .cli(&["post", "--author", "107", "--text", "hello", "--lane", lane])
            .await;
        assert_eq!(posted["post_id"].to_string(), post, "{posted}");
        until_delivered(&gateway, post, 3).await;
    }
    let shown = gateway.cli(&["timeline", "bob"]).await;
    let shown: Vec<&Value> = shown["entries"].as_array().unwrap().iter().collect();
    assert_eq!(shown.len(), 3, "{shown:?}");
    assert_eq!(sink.entries().len(), 9);
    // A new follower gets the posts before the follow.
    gateway.cli(&["follow", "dan", "107"]).await;
    until("the backfill is on the timeline", LIMIT, || async {
        let shown = gateway.cli(&["timeline", "dan"]).await;
        shown["entries"]
            .as_array()
            .is_some_and(|entries| entries.len() == 3)
    })
    .await;
    until_some("analytics has counted the posts", LIMIT, || async {
        let stats = run(
            HERALD,
            &["stats", "1", "--output", "json"],
            &[("HERALD_SERVER", &gateway.url())],
        )
        .await;
        (stats.code == 0).then_some(())
    })
    .await;
    let deleted = gateway.cli(&["delete", "3", "--author", "107"]).await;
    assert!(deleted.is_object(), "{deleted}");

    for mut process in [
        gateway, archive, graph, fanout, timeline, low, push, analytics, deadletter,
    ] {
        let started = Instant::now();
        assert_eq!(
            process.stop().await,
            0,
            "{:?}: {}",
            process.roles(),
            process.log()
        );
        assert!(
            started.elapsed() < Duration::from_secs(26),
            "{:?}",
            process.roles()
        );
    }
    drop(world.postgres);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_go_to_the_graph_processes_that_answer() {
    let Some(world) = World::start().await else { return };
    let (first, mut second) = tokio::join!(world.serve("graph", &[]), world.serve("graph", &[]));
    // The address of a third one that comes later.
    let third_address = format!("127.0.0.1:{}", free_port());
    let peers = format!("graph={},{},http://{third_address}", first.url(), second.url());
    let gateway = world
        .serve(
            "gateway,archive,fanout,timeline,push,analytics,deadletter",
            &["--peer", &peers, "--internal-grpc", "127.0.0.1:0"],
        )
        .await;
    let internal = gateway.internal_url().expect("an internal port");
    assert_eq!(health(&internal, "deadletter").await, Ok(SERVING));
    let user = AtomicUsize::new(1);
    let follow = async |limit: Duration| {
        let user = user.fetch_add(1, Ordering::Relaxed);
        let (follower, url) = (format!("u{user}"), gateway.url());
        let started = Instant::now();
        let arguments = ["follow", &follower, "107", "--rpc-timeout", "20s"];
        let done = run(HERALD, &arguments, &[("HERALD_SERVER", &url)]).await;
        assert!(started.elapsed() < limit, "{:?}: {done:?}", started.elapsed());
        done.code == 0
    };
    for _ in 0..5 {
        assert!(follow(Duration::from_secs(10)).await);
    }
    // One hangs: a call that it already had fails within keepalive's time, and then it gets no more calls.
    first.signal(Signal::STOP);
    until("calls go to the other one", LIMIT, || {
        follow(Duration::from_secs(15))
    })
    .await;
    until("no call goes to the one that hangs", LIMIT, || async {
        for _ in 0..10 {
            if !follow(Duration::from_secs(15)).await {
                return false;
            }
        }
        true
    })
    .await;
    // The other dies, and a third one appears.
    second.kill().await;
    let third = world.serve("graph", &["--grpc", &third_address]).await;
    // While no address is healthy all are tried, so a first success is not the end of failures.
    until("calls go to the third one alone", LIMIT, || async {
        for _ in 0..10 {
            if !follow(Duration::from_secs(20)).await {
                return false;
            }
        }
        true
    })
    .await;
    // Posts are expanded from there too.
    gateway.cli(&["post", "--author", "107", "--text", "hello"]).await;
    until("the post is on a timeline", LIMIT, || async {
        let shown = gateway.cli(&["timeline", "u1"]).await;
        shown["entries"]
            .as_array()
            .is_some_and(|entries| entries.len() == 1)
    })
    .await;
    first.signal(Signal::CONT);
    drop(third);
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_follows_the_store_and_the_shutdown() {
    let Some(world) = World::start().await else { return };
    let mut process = world.serve("graph,timeline", &[]).await;
    assert_eq!(
        health(&process.url(), "herald.v1.GraphService").await,
        Ok(SERVING)
    );
    world.redis.stop().await.unwrap();
    until("the timeline role is not ready", LIMIT, || async {
        health(&process.url(), "timeline").await == Ok(NOT_SERVING)
    })
    .await;
    // Graph does not need Redis; the process as a whole does.
    assert_eq!(health(&process.url(), "graph").await, Ok(SERVING));
    assert!(!is_ready(&process).await);
    let alive = http_get(process.http(), "/healthz").await;
    assert!(alive.starts_with("HTTP/1.1 200"), "{alive}");
    world.redis.restart().await.unwrap();
    until("the process is ready again", LIMIT, || async {
        is_ready(&process).await
    })
    .await;

    // At a shutdown the process first says that it is not ready, and still answers.
    process.signal(Signal::TERM);
    until(
        "the process reports its shutdown",
        Duration::from_secs(5),
        || async { health(&process.url(), "graph").await == Ok(NOT_SERVING) && !is_ready(&process).await },
    )
    .await;
    assert_eq!(process.wait().await, 0, "{}", process.log());
}
