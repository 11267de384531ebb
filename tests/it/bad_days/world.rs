//! A server with stores of its own, and its clients.

use std::{collections::BTreeMap, time::Duration};

use async_nats::jetstream;
use futures::TryStreamExt as _;
use harness::{Clients, Herald, Options, ack_wait_variables, until};
use herald_local_stores::{Occupied, Postgres, PostgresOptions, Redis, RedisOptions, required};
use herald_proto::v1;
use herald_push_sink::Running;
use parking_lot::Mutex;
use tonic::{Request, Status};

use crate::{HERALD, audit::audit};

/// How long a test waits for one thing.
pub(super) const LIMIT: Duration = Duration::from_mins(2);

/// Deadline of the calls. Herald's own limits are shorter in these tests, so it answers before.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);

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

/// A server, its stores, and three followers of one author with a device each.
pub(super) struct World {
    pub(super) postgres: Postgres,
    pub(super) redis: Redis,
    pub(super) herald: Herald,
    clients: Clients,
    sink: Running,
    broker: jetstream::Context,
    pub(super) occupied: Mutex<Option<Occupied>>,
    pub(super) posts: Vec<u64>,
}

/// The stores; `None` on a machine without PostgreSQL or Redis.
pub(super) async fn servers() -> Option<(Postgres, Redis)> {
    let options = PostgresOptions {
        max_connections: 24,
        ..PostgresOptions::default()
    };
    let postgres = required("PostgreSQL", Postgres::start_with(options).await)?;
    let redis = required("Redis", Redis::start(RedisOptions::default()).await)?;
    Some((postgres, redis))
}

impl World {
    /// Starts all servers. `timelines` is the URL of Redis for Herald.
    pub(super) async fn start(postgres: Postgres, redis: Redis, timelines: String) -> Self {
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
        let broker = jetstream::new(herald.broker().await);
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

    pub(super) async fn submit(
        &self,
        request_id: &str,
        text: &str,
    ) -> Result<v1::SubmitPostResponse, Status> {
        let request = v1::SubmitPostRequest {
            author_id: AUTHOR.into(),
            request_id: request_id.into(),
            text: text.into(),
            ..v1::SubmitPostRequest::default()
        };
        let answer = self.clients.posts().submit_post(with_deadline(request)).await?;
        Ok(answer.into_inner())
    }

    pub(super) async fn list_timeline(&self, user: &str) -> Result<v1::ListTimelineResponse, Status> {
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

    pub(super) async fn delivery(&self, post: u64) -> Result<v1::GetDeliveryResponse, Status> {
        let request = with_deadline(v1::GetDeliveryRequest { post_id: post });
        Ok(self
            .clients
            .deliveries()
            .get_delivery(request)
            .await?
            .into_inner())
    }

    pub(super) async fn list_posts(&self) -> Result<(), Status> {
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

    pub(super) async fn list_dead_letters(&self) -> Result<usize, Status> {
        let request = with_deadline(v1::ListDeadLettersRequest::default());
        let answer = self.clients.dead_letters().list_dead_letters(request).await?;
        Ok(answer.into_inner().dead_letters.len())
    }

    pub(super) async fn follow(&self) -> Result<(), Status> {
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
    pub(super) async fn deliveries(&self) -> BTreeMap<String, u64> {
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
    pub(super) fn busy(&self) -> Duration {
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

    /// Waits until all posts are delivered on both channels.
    pub(super) async fn until_delivered(&self) {
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
    pub(super) async fn check(&self) {
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

    pub(super) async fn stop(mut self) {
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
