//! The move of an embedded store to the cluster engine, on private PostgreSQL and Redis servers.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests may panic"
)]

use std::{
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use herald_local_stores::{Postgres, Redis, RedisOptions, required};
use herald_model::{
    Address, Channel, ChunkId, Disabled, DisabledReason, FollowVersion, Lane, Post, PostId, PushContent,
    Recipients, Registration, UserId, UserKey, time::Timestamp,
};
use herald_store::{
    Archived, Cause, ChunkPlan, ChunkRef, Counted, Counts, DeadLetter, DeadLetterId, DeadLetterState,
    DeadLetterVersion, DeviceFailure, DeviceRetry, ErrorKind, ExpectedRevision, FailedRecipient,
    FollowAction, FollowChange, MessageRef, NewOperation, OperationKind, Outcome, OutcomeDetails, Payload,
    PendingRecipient, PostTotals, PreferencesChange, PushFailure, Result, SettledCounts, Settlement,
    SlicePlan, Stores, SuppressedReason, TotalsBatch,
    cluster::{self, Cluster, SecretUrl},
    embedded::{self, Embedded},
    migrate::{self, Moved, Stage, compare},
};
use sqlx::Connection as _;

const USERS: u32 = 300;
const DAY: Duration = Duration::from_hours(24);

/// Servers and directory of a move.
struct World {
    dir: tempfile::TempDir,
    postgres: Postgres,
    redis: Redis,
    to: cluster::Config,
}

impl World {
    /// `None`, after a line that says so, if this machine lacks the programs.
    async fn start() -> Option<Self> {
        let postgres = required("the move of a store", Postgres::start().await)?;
        let redis = Redis::start(RedisOptions::default()).await;
        let redis = required("the move of a store", redis)?;
        let mut to = cluster::Config {
            url: SecretUrl::new(postgres.database("moved").await.unwrap()),
            ..cluster::Config::default()
        };
        to.timelines.url = SecretUrl::new(redis.url());
        Some(Self {
            dir: tempfile::tempdir().unwrap(),
            postgres,
            redis,
            to,
        })
    }

    fn from(&self) -> embedded::Config {
        embedded::Config {
            data_dir: self.dir.path().into(),
            disk_free_mb_min: 0,
            follow_history_keep_hours: 1,
            ..embedded::Config::default()
        }
    }

    async fn migrate(&self) -> Result<Moved> {
        migrate::run(&self.from(), &self.to, 50, &|_| {}).await
    }

    /// Breaks a move off at the report with this number. `false` if it ended before.
    async fn break_off(&self, at: usize) -> bool {
        let stop = tokio::sync::Notify::new();
        let reports = AtomicUsize::new(0);
        let (from, report) = (self.from(), |_| {
            if reports.fetch_add(1, Ordering::Relaxed) == at {
                stop.notify_one();
            }
        });
        tokio::select! {
            biased;
            () = stop.notified() => true,
            moved = migrate::run(&from, &self.to, 50, &report) => {
                moved.unwrap();
                false
            }
        }
    }

    /// Moves everything, and breaks off before anything is compared.
    async fn move_all(&self) {
        let reached = tokio::sync::Notify::new();
        let from = self.from();
        let report = |progress: migrate::Progress| {
            if progress.stage == Stage::Comparing {
                reached.notify_one();
            }
        };
        tokio::select! {
            biased;
            () = reached.notified() => {}
            moved = migrate::run(&from, &self.to, 50, &report) => panic!("{moved:?}"),
        }
    }

    async fn flush_redis(&self) {
        let client = redis::Client::open(self.redis.url()).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        redis::cmd("FLUSHALL").exec_async(&mut connection).await.unwrap();
    }

    /// Opens the embedded store although its data was moved.
    async fn open_moved_source(&self) -> Embedded {
        std::fs::remove_file(self.dir.path().join("moved")).unwrap();
        open_when_free(&self.from()).await
    }

    async fn sql(&self, statement: &'static str) {
        let mut connection = sqlx::PgConnection::connect(self.to.url.expose()).await.unwrap();
        sqlx::raw_sql(statement).execute(&mut connection).await.unwrap();
    }
}

/// The reader of a move that was broken off ends at its next batch.
async fn open_when_free(config: &embedded::Config) -> Embedded {
    let deadline = tokio::time::Instant::now() + Duration::from_mins(1);
    loop {
        match Embedded::open(config) {
            Err(error) if error.kind() == ErrorKind::Locked => {
                assert!(tokio::time::Instant::now() < deadline, "{error}");
                tokio::task::yield_now().await;
            }
            opened => return opened.unwrap(),
        }
    }
}

fn set(users: impl IntoIterator<Item = u32>) -> Recipients {
    Recipients::from_sorted(users.into_iter().map(UserKey))
}

fn post(id: u64, author: u32, accepted_at: Timestamp) -> Post {
    Post {
        id: PostId(id),
        author: UserKey(author),
        author_id: UserId::new(format!("user-{author}")).unwrap(),
        request_id: format!("request\u{0}{id}"),
        text: format!("the text of {id}"),
        links: vec!["https://a".into()],
        media_urls: vec!["https://b".into()],
        lane: Lane::ALL[id as usize % 3],
        accepted_at,
        push_ttl: Duration::from_hours(1),
        push: PushContent {
            title: "title".into(),
            collapse_key: "key".into(),
            data: [("k".into(), "v".into())].into(),
        },
        deleted_at: None,
    }
}

async fn follow(
    stores: &Stores,
    author: u32,
    followers: impl IntoIterator<Item = u32>,
    action: FollowAction,
) {
    let changes: Vec<_> = followers
        .into_iter()
        .map(|follower| FollowChange {
            follower: UserKey(follower),
            author: UserKey(author),
            action,
        })
        .collect();
    stores.follows.apply(&changes).await.unwrap();
}

const QUIET: FollowAction = FollowAction::Follow { notify: None };
const LOUD: FollowAction = FollowAction::Follow { notify: Some(true) };

/// Plans a post to the followers of its author now, and delivers it to all but `undelivered`.
async fn publish(stores: &Stores, id: u64, author: u32, undelivered: &Recipients) {
    let page = stores
        .follows
        .followers(UserKey(author), None, None, 100_000)
        .await
        .unwrap();
    let mut chunks = vec![ChunkPlan {
        channel: Channel::Timeline,
        recipients: page.followers.clone(),
    }];
    if !page.notify.is_empty() {
        chunks.push(ChunkPlan {
            channel: Channel::Push,
            recipients: page.notify.clone(),
        });
    }
    let plan = SlicePlan {
        post: PostId(id),
        author: UserKey(author),
        slice: 0,
        version: page.version,
        chunks,
        next_after: None,
    };
    stores.ledger.plan(plan).await.unwrap();
    let delivered =
        Recipients::from_sorted(page.followers.iter().filter(|user| !undelivered.contains(*user)));
    if delivered.is_empty() {
        return;
    }
    let outcome = if undelivered.is_empty() {
        Outcome::Delivered {
            count: delivered.len(),
        }
    } else {
        mixed(
            delivered.clone(),
            Recipients::default(),
            OutcomeDetails::default(),
        )
    };
    let done = stores.timelines.deliver(PostId(id), delivered).await.unwrap();
    done.durable.await.unwrap();
    settle(stores, id, Channel::Timeline, page.followers.chunk_id(), outcome).await;
}

fn mixed(delivered: Recipients, dead: Recipients, details: OutcomeDetails) -> Outcome {
    Outcome::Mixed {
        delivered,
        suppressed: details
            .suppressed
            .first()
            .map(|(_, users)| users.clone())
            .unwrap_or_default(),
        expired: Recipients::default(),
        dead,
        details,
    }
}

async fn settle(stores: &Stores, post: u64, channel: Channel, chunk: ChunkId, outcome: Outcome) {
    let settlement = Settlement {
        post: PostId(post),
        channel,
        chunk,
        base: ExpectedRevision::Revision(0),
        outcome,
        at: Timestamp::now(),
        keep_claim: None,
    };
    stores.ledger.settle(&settlement).await.unwrap();
}

/// Fills a store with rows of every kind.
async fn fill(stores: &Stores) {
    let ids: Vec<_> = (1..=USERS)
        .map(|user| UserId::new(format!("user-{user}")).unwrap())
        .collect();
    stores.users.intern(&ids).await.unwrap();
    let now = Timestamp::now();

    // What is older than the retained history of follows.
    follow(stores, 3, 10..250, QUIET).await;
    follow(stores, 3, 40..60, LOUD).await;
    follow(stores, 4, [7, 9], QUIET).await;
    for id in 1..=20 {
        let created = Archived::Created(post(id, 3, now.minus(2 * DAY)));
        stores.posts.archive(&[created]).await.unwrap();
        publish(stores, id, 3, &set([])).await;
    }
    // Old and undelivered: two are pending, one is dead.
    let created = Archived::Created(post(21, 4, now.minus(2 * DAY)));
    stores.posts.archive(&[created]).await.unwrap();
    publish(stores, 21, 4, &set([7, 9])).await;
    settle(
        stores,
        21,
        Channel::Timeline,
        set([7, 9]).chunk_id(),
        mixed(set([]), set([9]), OutcomeDetails::default()),
    )
    .await;
    stores
        .retention
        .trim(now.plus(Duration::from_hours(2)))
        .await
        .unwrap();

    // Changes of the retained history.
    follow(stores, 3, 60..70, FollowAction::Unfollow).await;
    publish_new(stores, 30, 3).await;
    follow(stores, 3, 50..55, FollowAction::Follow { notify: Some(false) }).await;
    follow(stores, 3, (60..65).chain(260..280), LOUD).await;
    publish_new(stores, 31, 3).await;
    follow(stores, 3, [62, 261], FollowAction::Unfollow).await;
    follow(stores, 3, [62], QUIET).await;
    follow(stores, 5, 1..=USERS, LOUD).await;
    follow(stores, 5, 1..=USERS, FollowAction::Unfollow).await;
    follow(stores, 6, [1, 2, 3], LOUD).await;
    publish_new(stores, 32, 3).await;
    publish_new(stores, 33, 6).await;

    // Planned and not archived yet, partly delivered.
    publish(stores, 34, 3, &set([10, 11])).await;
    stores
        .posts
        .archive(&[
            Archived::Deleted {
                post: PostId(31),
                at: now,
            },
            Archived::Deleted {
                post: PostId(99),
                at: now,
            },
        ])
        .await
        .unwrap();
    // A backfill that is on timelines, and one that is not.
    let backfilled = [PostId(18), PostId(19), PostId(30)];
    stores
        .ledger
        .record_backfill(&backfilled, &set([261, 280]))
        .await
        .unwrap();
    for post in backfilled {
        let done = stores.timelines.deliver(post, set([261, 280])).await.unwrap();
        done.durable.await.unwrap();
    }
    stores
        .ledger
        .record_backfill(&[PostId(30), PostId(33)], &set([299]))
        .await
        .unwrap();
    fill_pushes(stores).await;
    fill_accounts(stores).await;
    fill_totals(stores).await;
    fill_dead_letters(stores).await;
}

async fn publish_new(stores: &Stores, id: u64, author: u32) {
    let created = Archived::Created(post(id, author, Timestamp::now()));
    stores.posts.archive(&[created]).await.unwrap();
    publish(stores, id, author, &set([])).await;
}

/// An outcome with all details, and a claim that is lost.
async fn fill_pushes(stores: &Stores) {
    let plan = stores.ledger.audit(PostId(32)).await.unwrap().unwrap();
    let chunk = plan
        .chunks
        .iter()
        .find(|chunk| chunk.channel == Channel::Push)
        .unwrap();
    let users: Vec<UserKey> = chunk.recipients.iter().collect();
    let failure = PushFailure::new("web_push status 429", "push.example");
    let mut waiting = PendingRecipient::new(users[0]);
    waiting.done = vec![herald_model::DeviceId(1)];
    waiting.waiting = vec![DeviceRetry {
        device: herald_model::DeviceId(2),
        attempts: 3,
        next_at: Timestamp::now(),
        failure: failure.clone(),
    }];
    let details = OutcomeDetails {
        generation: 2,
        expires_at: Some(Timestamp::now().plus(DAY)),
        pending: vec![waiting],
        suppressed: vec![(SuppressedReason::Muted, Recipients::from_sorted([users[1]]))],
        failed: vec![FailedRecipient {
            user: users[2],
            generation: 1,
            failures: vec![DeviceFailure {
                device: None,
                failure,
            }],
        }],
    };
    let outcome = mixed(
        Recipients::from_sorted([users[3]]),
        Recipients::from_sorted([users[2]]),
        details,
    );
    settle(stores, 32, Channel::Push, chunk.chunk, outcome).await;
    stores
        .ledger
        .claim(PostId(32), Channel::Push, chunk.chunk, 1, DAY)
        .await
        .unwrap();
}

async fn fill_accounts(stores: &Stores) {
    let at = Timestamp(1_000);
    let web_push = Address::WebPush {
        endpoint: "https://push.example/1".into(),
        p256dh: vec![1; 65],
        auth: vec![2; 16],
    };
    let devices = &stores.devices;
    let first = devices.register(UserKey(7), web_push, at).await.unwrap();
    let disabled = Disabled {
        reason: DisabledReason::Gone,
        at,
    };
    let registration = Registration {
        user: UserKey(7),
        device: first.id,
        generation: first.generation,
    };
    devices.record_failure(registration, at).await.unwrap();
    devices.disable(registration, disabled).await.unwrap();
    let hook = devices
        .register_webhook(UserKey(8), "https://hook.example/a".into(), vec![3; 32], at)
        .await
        .unwrap();
    devices
        .rotate_secret(UserKey(8), hook.id, vec![4; 32], Timestamp::now().plus(DAY))
        .await
        .unwrap();
    // The greatest id belongs to no device any more.
    let gone = devices
        .register_webhook(UserKey(9), "https://hook.example/b".into(), vec![3; 32], at)
        .await
        .unwrap();
    devices.unregister(UserKey(9), gone.id).await.unwrap();
    devices.set_vapid_key(&[9; 65]).await.unwrap();
    let change = PreferencesChange {
        push_enabled: Some(false),
        mute: vec![UserKey(3), UserKey(5)],
        ..PreferencesChange::default()
    };
    stores.preferences.update(UserKey(11), &change).await.unwrap();
}

async fn fill_totals(stores: &Stores) {
    let lease = stores
        .leases
        .acquire("analytics", "a", DAY)
        .await
        .unwrap()
        .unwrap();
    let counts = Counts {
        posts: 1,
        timeline_delivered: 240,
        push_dead: -1,
        ..Counts::default()
    };
    let batch = TotalsBatch {
        stream: "EVENTS".into(),
        sequences: vec![1, 30, 5_000],
        file: "a.parquet".into(),
        posts: vec![(
            PostId(30),
            PostTotals {
                author: UserKey(3),
                counts,
                timeline_latency_ms_max: 12,
                push_latency_ms_max: 34,
            },
        )],
        hours: vec![(100, counts), (480_000, counts)],
        chunks: vec![(
            ChunkRef {
                post: PostId(30),
                channel: Channel::Timeline,
                chunk: ChunkId(u64::MAX - 5),
            },
            Counted {
                revision: 2,
                counts: SettledCounts {
                    delivered: 5,
                    ..SettledCounts::default()
                },
            },
        )],
    };
    stores.totals.intend("a.parquet", &lease).await.unwrap();
    stores.totals.commit(&batch).await.unwrap();
    stores.totals.intend("left over.parquet", &lease).await.unwrap();
}

fn dead_letter(id: u64) -> DeadLetter {
    let at = Timestamp::now();
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
        reason: format!("Push failed: webhook status 503: {id}"),
        group: u64::MAX - id % 3,
        group_reason: "push failed: webhook status 503".into(),
        attempts: 20,
        published_at: at,
        first_failed_at: at,
        last_failed_at: at,
        stored_at: at,
        post: (id != 4).then_some(PostId(id)),
        author: (id != 4).then_some(UserKey(3)),
        channel: (id != 4).then_some(Channel::Push),
        chunk: (id != 4).then_some(ChunkId(u64::MAX - id)),
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
        updated_at: at,
        pushes_expire_at: (id != 4).then_some(at),
    }
}

async fn fill_dead_letters(stores: &Stores) {
    let dead_letters = &stores.dead_letters;
    let all: Vec<_> = (1..=8).map(dead_letter).collect();
    dead_letters.insert(&all).await.unwrap();
    let version = |id: u64, round: u32| DeadLetterVersion {
        id: DeadLetterId(id),
        round,
    };
    let request = |kind| NewOperation {
        kind,
        actor: "operator".into(),
        at: Timestamp::now(),
        selection: vec![1, 0, 255].into(),
        excluded: 2,
        rate_max: 10,
        failures_max: 3,
        push_ttl: Some(DAY),
        target: None,
    };
    let lease = stores.leases.acquire("redrive", "a", DAY).await.unwrap().unwrap();
    let selected: Vec<_> = (1..=4).map(|id| version(id, 0)).collect();
    let redrive = dead_letters
        .begin(&request(OperationKind::Redrive), &selected)
        .await
        .unwrap();
    dead_letters
        .claim(redrive.id, 2, 77, Timestamp::now(), &lease)
        .await
        .unwrap();
    dead_letters
        .sent(redrive.id, &[(version(1, 1), 88)])
        .await
        .unwrap();
    dead_letters
        .resolve(&[version(1, 1)], Timestamp::now())
        .await
        .unwrap();
    let discard = dead_letters
        .begin(&request(OperationKind::Discard), &[version(6, 0)])
        .await
        .unwrap();
    dead_letters
        .discard(discard.id, 10, Timestamp::now())
        .await
        .unwrap();
}

async fn fill_source(world: &World) {
    let store = Embedded::open(&world.from()).unwrap();
    fill(&store.stores()).await;
    store.close().unwrap();
}

/// Users on whose timelines a rebuild from PostgreSQL differs from the embedded timelines.
async fn differing_rebuilds(old: &Stores, new: &Stores) -> Vec<(u32, Vec<u64>, Vec<u64>)> {
    let users: Vec<_> = (1..=USERS).map(UserKey).collect();
    new.timelines.rebuild(&users).await.unwrap();
    let (before, after) = (
        old.timelines.read(&users).await.unwrap(),
        new.timelines.read(&users).await.unwrap(),
    );
    let posts = |posts: Vec<PostId>| posts.into_iter().map(|post| post.0).collect::<Vec<_>>();
    users
        .iter()
        .zip(before.into_iter().zip(after))
        .filter(|(_, (before, after))| before.posts != after.posts)
        .map(|(user, (before, after))| (user.0, posts(before.posts), posts(after.posts)))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_store_with_rows_of_every_kind_is_the_same_after_the_move() {
    let Some(world) = World::start().await else { return };
    fill_source(&world).await;
    let moved = world.migrate().await.unwrap();
    assert!(!moved.was_finished);
    for part in &moved.parts {
        assert!(
            part.rows > 0,
            "{} has no rows: the store of this test lacks them",
            part.name
        );
    }
    let refused = Embedded::open(&world.from()).err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::Invalid);
    let again = world.migrate().await.unwrap();
    assert!(again.was_finished);
    assert_eq!(again.parts, moved.parts);

    let source = world.open_moved_source().await;
    let cluster = Cluster::open(&world.to).await.unwrap();
    let (old, new) = (source.stores(), cluster.stores());
    let compared = compare(&old, &new, None).await.unwrap();
    assert_eq!(compared.users, u64::from(USERS));
    assert_eq!((compared.dead_letters, compared.operations), (8, 2));
    // Every version that the embedded store can read.
    for author in 1..=USERS {
        let current = old.follows.count(UserKey(author)).await.unwrap().version.0;
        for version in (0..=current).map(FollowVersion) {
            let read = async |stores: &Stores| {
                let page = stores
                    .follows
                    .followers(UserKey(author), Some(version), None, 1_000);
                page.await.map_err(|error| error.kind())
            };
            assert_eq!(
                read(&old).await,
                read(&new).await,
                "author {author} at {version:?}"
            );
        }
    }
    // Nothing that was used is used again.
    let device = async |stores: &Stores| {
        let url = "https://c".to_owned();
        let device = stores
            .devices
            .register_webhook(UserKey(12), url, vec![1; 32], Timestamp(1));
        device.await.unwrap().id
    };
    assert_eq!(device(&new).await, device(&old).await);
    let intern = async |stores: &Stores| stores.users.intern(&[UserId::new("new").unwrap()]).await.unwrap();
    assert_eq!(intern(&new).await, intern(&old).await);
    let token = new
        .leases
        .acquire("analytics", "b", DAY)
        .await
        .unwrap()
        .unwrap()
        .token;
    let old_token = old
        .leases
        .acquire("analytics", "b", DAY)
        .await
        .unwrap()
        .unwrap()
        .token;
    assert!(token >= old_token, "{token} {old_token}");
    let orphans = new.totals.intended().await.unwrap();
    assert!(orphans.iter().all(|file| file.orphaned), "{orphans:?}");
    // A claim ended with the process that had it.
    let chunk = old.ledger.audit(PostId(32)).await.unwrap().unwrap();
    let chunk = chunk
        .chunks
        .iter()
        .find(|chunk| chunk.channel == Channel::Push)
        .unwrap();
    let revision = chunk.recorded.as_ref().unwrap().revision;
    new.ledger
        .claim(PostId(32), Channel::Push, chunk.chunk, revision, DAY)
        .await
        .unwrap();
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn timelines_that_are_lost_after_the_move_are_made_again_entry_by_entry() {
    let Some(world) = World::start().await else { return };
    fill_source(&world).await;
    world.migrate().await.unwrap();
    world.flush_redis().await;

    let source = world.open_moved_source().await;
    let cluster = Cluster::open(&world.to).await.unwrap();
    let differing = differing_rebuilds(&source.stores(), &cluster.stores()).await;
    // What is planned or backfilled and not delivered yet is there too; what is dead is not.
    let with = |posts: &[u64], more: &[u64]| {
        let mut posts = [posts, more].concat();
        posts.sort_unstable();
        posts
    };
    let expected: Vec<_> = differing
        .iter()
        .map(|(user, before, _)| {
            let more: &[u64] = match user {
                7 => &[21],
                10 | 11 => &[34],
                299 => &[30, 33],
                _ => &[],
            };
            (*user, before.clone(), with(before, more))
        })
        .collect();
    assert_eq!(differing, expected);
    assert_eq!(
        differing.iter().map(|one| one.0).collect::<Vec<_>>(),
        [7, 10, 11, 299]
    );
    cluster.close().await;
}

/// Plans a slice of post 40, whose author is 3, and returns its recipients.
async fn plan_half(stores: &Stores, slice: u32, after: Option<UserKey>, limit: usize) -> Recipients {
    let page = stores.follows.followers(UserKey(3), None, after, limit);
    let page = page.await.unwrap();
    let plan = SlicePlan {
        post: PostId(40),
        author: UserKey(3),
        slice,
        version: page.version,
        chunks: vec![ChunkPlan {
            channel: Channel::Timeline,
            recipients: page.followers.clone(),
        }],
        next_after: if page.complete { None } else { page.last },
    };
    stores.ledger.plan(plan).await.unwrap();
    page.followers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_post_that_is_half_planned_and_not_archived_reaches_all_rebuilt_timelines() {
    let Some(world) = World::start().await else { return };
    let store = Embedded::open(&world.from()).unwrap();
    let stores = store.stores();
    let ids: Vec<_> = (1..=20)
        .map(|user| UserId::new(format!("user-{user}")).unwrap())
        .collect();
    stores.users.intern(&ids).await.unwrap();
    follow(&stores, 3, 5..15, QUIET).await;
    let first = plan_half(&stores, 0, None, 4).await;
    store.close().unwrap();
    drop((stores, store));
    world.migrate().await.unwrap();

    let cluster = Cluster::open(&world.to).await.unwrap();
    let stores = cluster.stores();
    let second = plan_half(&stores, 1, first.iter().last(), 100).await;
    assert_eq!((first.len(), second.len()), (4, 6));
    let users: Vec<UserKey> = first.iter().chain(second.iter()).collect();
    stores.timelines.rebuild(&users).await.unwrap();
    for (user, timeline) in users.iter().zip(stores.timelines.read(&users).await.unwrap()) {
        assert_eq!(timeline.posts, [PostId(40)], "user {user}");
    }
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_move_that_is_broken_off_anywhere_goes_on() {
    let Some(world) = World::start().await else { return };
    fill_source(&world).await;
    let mut runs = 0;
    // Each run goes a little further than the one before.
    while world.break_off(3 + runs).await {
        runs += 1;
        assert!(runs < 500, "the move makes no progress");
        let refused = Cluster::open(&world.to).await.err();
        if let Some(refused) = refused {
            assert_eq!(refused.kind(), ErrorKind::Invalid, "{refused}");
        }
        // The reader of the run that was broken off ends at its next batch.
        let refused = loop {
            match Embedded::open(&world.from()).err() {
                Some(error) if error.kind() == ErrorKind::Locked => tokio::task::yield_now().await,
                other => break other,
            }
        };
        assert_eq!(refused.map(|error| error.kind()), Some(ErrorKind::Invalid));
    }
    assert!(runs > 10, "only {runs} runs were broken off");
    let source = world.open_moved_source().await;
    let cluster = Cluster::open(&world.to).await.unwrap();
    compare(&source.stores(), &cluster.stores(), None).await.unwrap();
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_can_not_be_moved_is_refused_without_a_trace() {
    let Some(world) = World::start().await else { return };
    let missing = world.migrate().await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::Invalid);
    assert!(
        missing.to_string().contains("there is no embedded store"),
        "{missing}"
    );
    assert_eq!(std::fs::read_dir(world.dir.path()).unwrap().count(), 0);

    // A running source.
    let running = Embedded::open(&world.from()).unwrap();
    fill(&running.stores()).await;
    assert_eq!(world.migrate().await.unwrap_err().kind(), ErrorKind::Locked);
    running.close().unwrap();
    drop(running);

    // A database with data. The source can go on after that.
    let cluster = Cluster::open(&world.to).await.unwrap();
    let other = UserId::new("other").unwrap();
    cluster.stores().users.intern(&[other]).await.unwrap();
    cluster.close().await;
    let occupied = world.migrate().await.unwrap_err();
    assert_eq!(occupied.kind(), ErrorKind::Invalid);
    assert!(
        occupied.to_string().contains("herald.users has rows"),
        "{occupied}"
    );
    let source = Embedded::open(&world.from()).unwrap();
    source.close().unwrap();
    drop(source);
    world.sql("DROP SCHEMA herald CASCADE").await;

    // A running target.
    let cluster = Cluster::open(&world.to).await.unwrap();
    let leases = cluster.stores().leases;
    let lease = leases
        .acquire("retention", "another process", DAY)
        .await
        .unwrap()
        .unwrap();
    let running = world.migrate().await.unwrap_err();
    assert!(
        running.to_string().contains("Herald is running on it"),
        "{running}"
    );
    leases.release(&lease).await.unwrap();
    cluster.close().await;
    world.sql("DROP SCHEMA herald CASCADE").await;

    // The move of another store.
    world.migrate().await.unwrap();
    let other = tempfile::tempdir().unwrap();
    let config = embedded::Config {
        data_dir: other.path().into(),
        ..world.from()
    };
    drop(Embedded::open(&config).unwrap());
    let refused = migrate::run(&config, &world.to, 50, &|_| {}).await.unwrap_err();
    assert!(
        refused.to_string().contains("another embedded store"),
        "{refused}"
    );
    drop(Embedded::open(&config).unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn differences_are_found_before_the_move_is_finished() {
    let Some(world) = World::start().await else { return };
    fill_source(&world).await;
    for (change, named) in [
        (
            "UPDATE herald.users SET id = 'somebody' WHERE key = 17",
            "the row key 17 of the table users has other values",
        ),
        (
            "DELETE FROM herald.ledger_outcomes WHERE post = 30",
            "the row post 30, channel 0",
        ),
        (
            "INSERT INTO herald.preferences (user_key, preferences) VALUES (55, '')",
            "the table preferences has 2 rows instead of 1",
        ),
        (
            "UPDATE herald.follow_edges SET until = NULL WHERE author = 5 AND follower = 9",
            "the row author 5, follower 9",
        ),
    ] {
        world.move_all().await;
        world.sql(change).await;
        let differs = loop {
            match world.migrate().await.unwrap_err() {
                locked if locked.kind() == ErrorKind::Locked => tokio::task::yield_now().await,
                other => break other,
            }
        };
        assert_eq!(differs.kind(), ErrorKind::Corrupt);
        assert!(differs.to_string().contains(named), "{differs}");
        assert!(Cluster::open(&world.to).await.is_err());
        world.sql("DROP SCHEMA herald CASCADE").await;
        std::fs::remove_file(world.dir.path().join("moved")).unwrap();
    }
    // Timelines that Redis has lost are made again.
    world.move_all().await;
    world.flush_redis().await;
    loop {
        match world.migrate().await {
            Err(locked) if locked.kind() == ErrorKind::Locked => tokio::task::yield_now().await,
            moved => break assert!(!moved.unwrap().was_finished),
        }
    }
    let source = world.open_moved_source().await;
    let cluster = Cluster::open(&world.to).await.unwrap();
    compare(&source.stores(), &cluster.stores(), None).await.unwrap();
    cluster.close().await;
}

/// Overwrites a row of the embedded store.
fn damage(dir: &Path, database: &str, keyspace: &str, key: &[u8]) -> Vec<u8> {
    let opened = fjall::Database::builder(dir.join(database)).open().unwrap();
    let rows = opened
        .keyspace(keyspace, fjall::KeyspaceCreateOptions::default)
        .unwrap();
    let before = rows.get(key).unwrap().unwrap().to_vec();
    rows.insert(key, b"\xff\xff\xffgarbage").unwrap();
    opened.persist(fjall::PersistMode::SyncAll).unwrap();
    before
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_corrupt_row_is_named_and_nothing_after_it_is_moved() {
    let Some(world) = World::start().await else { return };
    fill_source(&world).await;
    // In the order in which they are moved: damage to what was moved already is a difference.
    for (database, keyspace, key, named) in [
        ("records", "user_ids", &7_u32.to_be_bytes()[..], "user 7"),
        ("records", "follow_counts", &6_u32.to_be_bytes(), "author 6"),
        ("records", "posts", &30_u64.to_be_bytes(), "post 30"),
        (
            "records",
            "devices",
            &8_u32.to_be_bytes(),
            "the devices of user 8",
        ),
        (
            "records",
            "ledger",
            &[&33_u64.to_be_bytes()[..], &[0, 0, 0, 0, 0]].concat(),
            "(post 33)",
        ),
        ("totals", "totals_posts", &30_u64.to_be_bytes(), "post 30"),
        (
            "dead_letters",
            "dead_letters",
            &5_u64.to_be_bytes(),
            "dead letter 5",
        ),
    ] {
        let before = damage(world.dir.path(), database, keyspace, key);
        let refused = loop {
            match world.migrate().await.unwrap_err() {
                locked if locked.kind() == ErrorKind::Locked => tokio::task::yield_now().await,
                other => break other,
            }
        };
        assert_eq!(refused.kind(), ErrorKind::Corrupt, "{refused}");
        assert!(refused.to_string().contains(named), "{keyspace}: {refused}");
        // Mended, the move goes on.
        let opened = fjall::Database::builder(world.dir.path().join(database))
            .open()
            .unwrap();
        let rows = opened
            .keyspace(keyspace, fjall::KeyspaceCreateOptions::default)
            .unwrap();
        rows.insert(key, before).unwrap();
        opened.persist(fjall::PersistMode::SyncAll).unwrap();
    }
    world.migrate().await.unwrap();
    drop(world.postgres);
}

/// How long a move takes; prints rows a second. `MOVED_FOLLOWS` and `MOVED_POSTS` set the size.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "takes minutes; prints figures"]
async fn figures() {
    let size = |name: &str, default: u32| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    let (follows, posts) = (size("MOVED_FOLLOWS", 1_000_000), size("MOVED_POSTS", 10_000));
    let Some(world) = World::start().await else { return };
    let store = Embedded::open(&world.from()).unwrap();
    let stores = store.stores();
    let users = follows / 20;
    for first in (1..=users).step_by(20_000) {
        let ids =
            (first..=users.min(first + 19_999)).map(|user| UserId::new(format!("user-{user}")).unwrap());
        stores.users.intern(&ids.collect::<Vec<_>>()).await.unwrap();
    }
    for author in 1..=follows / 1_000 {
        let followers = (0..1_000).map(|n| (author * 7_919 + n * 49) % users + 1);
        let followers: std::collections::BTreeSet<u32> = followers.collect();
        follow(&stores, author, followers, LOUD).await;
    }
    for id in 1..=u64::from(posts) {
        let author = id as u32 % (follows / 1_000) + 1;
        publish_new(&stores, id, author).await;
    }
    store.close().unwrap();
    drop((stores, store));
    let starts = std::sync::Mutex::new(Vec::new());
    let begun = std::time::Instant::now();
    let report = |progress: migrate::Progress| {
        let mut starts = starts.lock().unwrap();
        let now = (progress.stage, progress.part);
        if starts.last().is_none_or(|(last, _)| *last != now) {
            starts.push((now, begun.elapsed()));
        }
    };
    let moved = migrate::run(&world.from(), &world.to, migrate::BATCH_ROWS, &report)
        .await
        .unwrap();
    println!(
        "{:?}: {:?} {} rows compared",
        begun.elapsed(),
        moved.parts,
        moved.rows_compared
    );
    for ((stage, part), at) in starts.into_inner().unwrap() {
        println!("{at:>12.1?} {stage:?} {part}");
    }
}
