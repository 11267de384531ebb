//! Bad days of the cluster engine: PostgreSQL or Redis stopped, hanging, full, without a free connection, failed over.
//! Posts are accepted all the time, work waits without spinning and without spending attempts, and afterwards everything
//! is delivered once.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::{Duration, Instant},
};

use async_nats::jetstream;
use futures::TryStreamExt as _;
use harness::{Clients, Herald, Options, ack_wait_variables, until, until_some};
use herald_local_stores::{Occupied, Postgres, PostgresOptions, Redis, RedisOptions, required};
use herald_proto::v1;
use herald_push_sink::Running;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::{net::TcpListener, task::AbortHandle};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;
use uuid::Uuid;

use crate::{HERALD, audit::audit, surface::http_get};

const LIMIT: Duration = Duration::from_mins(2);
/// Deadline of the calls. Herald's own limits are shorter in these tests, so it answers before.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long a fault lasts: longer than all acknowledgement deadlines, claims and time-outs of these tests.
const OUTAGE: Duration = Duration::from_secs(5);
/// Processor time that the server may use while it waits, as a share of one processor. A loop without a delay takes 1.
const BUSY_MAX: f64 = 0.6;
/// Messages that the consumers may deliver while they wait.
const DELIVERIES_MAX: u64 = 12;

const AUTHOR: &str = "107";
const FOLLOWERS: [&str; 3] = ["ann", "bob", "cid"];
const STREAMS: [&str; 8] = [
    "POSTS",
    "TIMELINE",
    "PUSH",
    "EVENTS",
    "LATER",
    "REDRIVE",
    "DLQ",
    "ADVISORIES",
];

/// Makes each write of a row fail as on a full disk.
const FILL_DISK: &str = "
    CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = 'disk_full';
    END $$;
    DO $$
    DECLARE name text;
    BEGIN
        FOR name IN SELECT c.oid::regclass FROM pg_class c
            WHERE relnamespace = 'herald'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition
        LOOP
            EXECUTE format('CREATE TRIGGER full_disk BEFORE INSERT OR UPDATE ON %s EXECUTE FUNCTION full_disk()', name);
        END LOOP;
    END $$";

const EMPTY_DISK: &str = "DROP FUNCTION full_disk() CASCADE";

/// What happens to the stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    PostgresStops,
    PostgresHangs,
    RedisStops,
    RedisHangs,
    BothStop,
    PostgresIsFull,
    PostgresIsReadOnly,
    PostgresHasNoConnection,
    RedisIsFull,
}

impl Fault {
    /// The readiness checks that fail.
    fn missing(self) -> &'static [&'static str] {
        match self {
            Self::RedisStops | Self::RedisHangs | Self::RedisIsFull => &["timelines"],
            Self::BothStop => &["store", "timelines"],
            _ => &["store"],
        }
    }

    /// Whether records can be read.
    fn has_records(self) -> bool {
        matches!(
            self,
            Self::RedisStops
                | Self::RedisHangs
                | Self::RedisIsFull
                | Self::PostgresIsFull
                | Self::PostgresIsReadOnly
        )
    }

    /// Whether records can be written.
    fn takes_records(self) -> bool {
        matches!(self, Self::RedisStops | Self::RedisHangs | Self::RedisIsFull)
    }

    /// Whether timelines can be read. They need the records too.
    fn has_timelines(self) -> bool {
        matches!(
            self,
            Self::RedisIsFull | Self::PostgresIsFull | Self::PostgresIsReadOnly
        )
    }
}

/// A server, its stores, and three followers of one author with a device each.
struct World {
    postgres: Postgres,
    redis: Redis,
    herald: Herald,
    clients: Clients,
    sink: Running,
    broker: jetstream::Context,
    occupied: Mutex<Option<Occupied>>,
    posts: Vec<u64>,
}

async fn servers() -> Option<(Postgres, Redis)> {
    let options = PostgresOptions {
        max_connections: 24,
        ..PostgresOptions::default()
    };
    let postgres = required("PostgreSQL", Postgres::start_with(options).await)?;
    let redis = required("Redis", Redis::start(RedisOptions::default()).await)?;
    Some((postgres, redis))
}

impl World {
    /// Starts all servers; `None` on a machine without PostgreSQL or Redis. `timelines` is the URL of Redis for Herald.
    async fn start(postgres: Postgres, redis: Redis, timelines: String) -> Self {
        let database = postgres.database("herald").await.unwrap();
        let mut variables = ack_wait_variables(2);
        for (name, value) in [
            ("STORE__URL", database.as_str()),
            ("TIMELINES__URL", &timelines),
            ("STORE__POSTGRES__CONNECTIONS_MAX", "8"),
            ("STORE__POSTGRES__ACQUIRE_TIMEOUT_MS", "3000"),
            ("STORE__POSTGRES__STATEMENT_TIMEOUT_MS", "1000"),
            ("STORE__POSTGRES__LOCK_TIMEOUT_MS", "500"),
            ("TIMELINES__CONNECT_TIMEOUT_MS", "1000"),
            ("TIMELINES__RESPONSE_TIMEOUT_MS", "1000"),
            ("PUSH__CLAIM_LEASE_MS", "1000"),
        ] {
            variables.push((format!("HERALD_{name}"), value.to_owned()));
        }
        let options = Options {
            arguments: vec!["--allow-private-endpoints".into()],
            variables,
            ..Options::default()
        };
        let herald = Herald::start(HERALD, options).await;
        let clients = herald.clients().await;
        let broker = jetstream::new(async_nats::connect(herald.nats()).await.unwrap());
        let sink = Running::start().await.unwrap();
        let mut world = Self {
            postgres,
            redis,
            herald,
            clients,
            sink,
            broker,
            occupied: Mutex::default(),
            posts: Vec::new(),
        };
        for follower in FOLLOWERS {
            world.herald.cli(&["follow", follower, AUTHOR, "--notify"]).await;
            let webhook = world.sink.webhook(follower);
            let add = ["device", "add", follower, "--webhook", &webhook.url];
            let add = [&add[..], &["--secret", &webhook.secret]].concat();
            world.herald.cli(&add).await;
        }
        let first = world.submit("", "first").await.unwrap();
        world.posts.push(first.post_id);
        world.until_delivered().await;
        world
    }

    async fn begin(&self, fault: Fault) {
        let (postgres, redis) = (&self.postgres, &self.redis);
        match fault {
            Fault::PostgresStops => postgres.stop().await.unwrap(),
            Fault::PostgresHangs => postgres.pause().await.unwrap(),
            Fault::RedisStops => redis.stop().await.unwrap(),
            Fault::RedisHangs => redis.pause().unwrap(),
            Fault::BothStop => {
                redis.stop().await.unwrap();
                postgres.stop().await.unwrap();
            }
            Fault::PostgresIsFull => postgres.run_in("herald", FILL_DISK).await.unwrap(),
            Fault::PostgresIsReadOnly => self.set_read_only("on").await,
            Fault::PostgresHasNoConnection => {
                let occupied = postgres.occupy().await.unwrap();
                *self.occupied.lock() = Some(occupied);
            }
            Fault::RedisIsFull => self.set_maxmemory("1").await,
        }
    }

    async fn end(&self, fault: Fault) {
        let (postgres, redis) = (&self.postgres, &self.redis);
        match fault {
            Fault::PostgresStops => postgres.restart().await.unwrap(),
            Fault::PostgresHangs => postgres.resume().unwrap(),
            Fault::RedisStops => redis.restart().await.unwrap(),
            Fault::RedisHangs => redis.resume().unwrap(),
            Fault::BothStop => {
                postgres.restart().await.unwrap();
                redis.restart().await.unwrap();
            }
            Fault::PostgresIsFull => postgres.run_in("herald", EMPTY_DISK).await.unwrap(),
            Fault::PostgresIsReadOnly => self.set_read_only("off").await,
            Fault::PostgresHasNoConnection => *self.occupied.lock() = None,
            Fault::RedisIsFull => self.set_maxmemory("0").await,
        }
    }

    async fn set_read_only(&self, value: &str) {
        let set = format!("ALTER SYSTEM SET default_transaction_read_only = {value}");
        // One by one: ALTER SYSTEM runs in no transaction block, and itself needs no write to the database.
        for statement in [set.as_str(), "SELECT pg_reload_conf()"] {
            self.postgres.run_in("herald", statement).await.unwrap();
        }
    }

    async fn set_maxmemory(&self, bytes: &str) {
        let set = ["CONFIG", "SET", "maxmemory", bytes];
        self.redis.command(&set).await.unwrap();
    }

    async fn submit(&self, request_id: &str, text: &str) -> Result<v1::SubmitPostResponse, Status> {
        let request = v1::SubmitPostRequest {
            author_id: AUTHOR.into(),
            request_id: request_id.into(),
            text: text.into(),
            ..v1::SubmitPostRequest::default()
        };
        let answer = self.clients.posts().submit_post(with_deadline(request)).await?;
        Ok(answer.into_inner())
    }

    async fn list_timeline(&self, user: &str) -> Result<v1::ListTimelineResponse, Status> {
        let request = v1::ListTimelineRequest {
            user_id: user.into(),
            ..v1::ListTimelineRequest::default()
        };
        let answer = self
            .clients
            .timelines()
            .list_timeline(with_deadline(request))
            .await?;
        Ok(answer.into_inner())
    }

    async fn delivery(&self, post: u64) -> Result<v1::GetDeliveryResponse, Status> {
        let request = with_deadline(v1::GetDeliveryRequest { post_id: post });
        Ok(self
            .clients
            .deliveries()
            .get_delivery(request)
            .await?
            .into_inner())
    }

    async fn list_posts(&self) -> Result<(), Status> {
        let request = v1::ListPostsRequest {
            author_id: AUTHOR.into(),
            ..v1::ListPostsRequest::default()
        };
        self.clients
            .posts()
            .list_posts(with_deadline(request))
            .await
            .map(drop)
    }

    async fn list_dead_letters(&self) -> Result<usize, Status> {
        let request = with_deadline(v1::ListDeadLettersRequest::default());
        let answer = self.clients.dead_letters().list_dead_letters(request).await?;
        Ok(answer.into_inner().dead_letters.len())
    }

    async fn follow(&self) -> Result<(), Status> {
        let follow = v1::Follow {
            follower_id: "dan".into(),
            author_id: "108".into(),
            notify: None,
        };
        let request = v1::FollowRequest { follow: Some(follow) };
        let mut graph = self.clients.graph();
        graph.follow(with_deadline(request)).await?;
        let request = v1::UnfollowRequest {
            follower_id: "dan".into(),
            author_id: "108".into(),
        };
        graph.unfollow(with_deadline(request)).await.map(drop)
    }

    /// Messages that each consumer has delivered, repeats included.
    async fn deliveries(&self) -> BTreeMap<String, u64> {
        let mut deliveries = BTreeMap::new();
        for stream in STREAMS {
            let stream = self.broker.get_stream(stream).await.unwrap();
            let mut consumers = stream.consumers();
            while let Some(info) = consumers.try_next().await.unwrap() {
                deliveries.insert(info.name, info.delivered.consumer_sequence);
            }
        }
        deliveries
    }

    /// Processor time that the server has used.
    fn busy(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.herald.pid())).unwrap();
        // After the name: state, ppid, …; utime and stime are the fields 14 and 15 of all, in units of 10 ms.
        let (_, fields) = stat.rsplit_once(')').unwrap();
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let ticks: u64 = fields[11..13]
            .iter()
            .map(|ticks| ticks.parse::<u64>().unwrap())
            .sum();
        Duration::from_millis(10 * ticks)
    }

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

        let (began, busy, deliveries) = (Instant::now(), self.busy(), self.deliveries().await);
        tokio::time::sleep(OUTAGE).await;
        let share = self.busy().checked_sub(busy).unwrap().as_secs_f64() / began.elapsed().as_secs_f64();
        let mut delivered = self.deliveries().await;
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
            delivered.values().sum::<u64>() <= DELIVERIES_MAX,
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

    /// Waits until all posts are delivered on both channels.
    async fn until_delivered(&self) {
        let count = FOLLOWERS.len() as u64;
        for post in &self.posts {
            until(&format!("post {post} is delivered"), LIMIT, || async {
                let Ok(delivery) = self.delivery(*post).await else {
                    return false;
                };
                let done = |channel: &v1::ChannelDelivery| channel.delivered_count == count;
                delivery.channels.len() == 2 && delivery.channels.iter().all(done)
            })
            .await;
        }
    }

    /// Each device got each post once, each timeline has all posts, there are no dead letters, and the audit finds
    /// nothing.
    async fn check(&self) {
        let expected: Vec<u64> = self.posts.iter().rev().copied().collect();
        for follower in FOLLOWERS {
            until(
                &format!("the timeline of {follower} is complete"),
                LIMIT,
                || async {
                    let Ok(page) = self.list_timeline(follower).await else {
                        return false;
                    };
                    let posts = page
                        .entries
                        .into_iter()
                        .filter_map(|entry| Some(entry.post?.post_id));
                    !page.rebuilding && posts.collect::<Vec<_>>() == expected
                },
            )
            .await;
        }
        let mut pushes: BTreeMap<(u64, String), u32> = BTreeMap::new();
        for entry in self.sink.entries() {
            *pushes.entry((entry.post_id, entry.name)).or_default() += 1;
        }
        assert_eq!(pushes.len(), FOLLOWERS.len() * self.posts.len(), "{pushes:?}");
        assert!(pushes.values().all(|count| *count == 1), "{pushes:?}");
        assert_eq!(self.list_dead_letters().await.unwrap(), 0);
        until("nothing is left to do", LIMIT, || self.clients.is_idle()).await;
        let (done, lines) = audit(&self.herald, &[]).await;
        assert_eq!((done.code, lines.len()), (0, 1), "{done:?}");
    }

    async fn stop(mut self) {
        assert_eq!(self.herald.stop().await, 0, "{}", self.herald.log());
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.herald.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("{}", lines[lines.len().saturating_sub(40)..].join("\n"));
        }
    }
}

fn with_deadline<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(DEADLINE);
    request
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

/// An address of Redis that leads to one server or another, as a name does that follows the primary.
struct Forwarder {
    address: SocketAddr,
    target: Arc<AtomicU16>,
    connections: Arc<Mutex<Vec<AbortHandle>>>,
}

impl Forwarder {
    async fn start(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let target = Arc::new(AtomicU16::new(port));
        let connections = Arc::new(Mutex::new(Vec::new()));
        let (to, open) = (Arc::clone(&target), Arc::clone(&connections));
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let to = Arc::clone(&to);
                let connection = tokio::spawn(async move {
                    let port = to.load(Ordering::Relaxed);
                    if let Ok(mut far) = tokio::net::TcpStream::connect(("127.0.0.1", port)).await {
                        // A connection that breaks is closed on both sides.
                        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                    }
                });
                open.lock().push(connection.abort_handle());
            }
        });
        Self {
            address,
            target,
            connections,
        }
    }

    fn lead_to(&self, port: u16) {
        self.target.store(port, Ordering::Relaxed);
        for connection in self.connections.lock().drain(..) {
            connection.abort();
        }
    }
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
    let url = format!("redis://{}", forwarder.address);
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
