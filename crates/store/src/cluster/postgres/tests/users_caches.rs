//! Caches of users in several processes. Most tests run the rounds of the keepers by hand.

use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use herald_local_stores::until;
use herald_model::{PostId, UserId, UserKey, time::Timestamp};
use tokio_util::sync::CancellationToken;

use super::{connect, database, open, run};
use crate::{
    Erasure, Erasures as _, Forgotten, Users as _,
    cluster::postgres::{
        Postgres, PostgresErasures, PostgresUsers,
        users_caches::{CacheKeeper, LEASE},
    },
    users_cache::UsersCache,
};

const NOW: Timestamp = Timestamp(1_000_000);

/// A process that caches users.
struct Caching {
    users: Arc<PostgresUsers>,
    keeper: CacheKeeper,
}

impl Caching {
    fn start(postgres: &Postgres, lease: Duration) -> Self {
        let cache = Arc::new(UsersCache::leased(1 << 20));
        Self {
            users: Arc::new(PostgresUsers::with_cache(postgres, Arc::clone(&cache))),
            keeper: CacheKeeper::new(postgres, &cache, lease),
        }
    }

    /// Reads the key of a user, who is cached then.
    async fn read(&self, id: &str) -> Option<UserKey> {
        self.users.find(&[user(id)]).await.unwrap()[0]
    }

    fn cached(&self, id: &str) -> Option<UserKey> {
        self.users.cached_key(&user(id))
    }
}

fn user(id: &str) -> UserId {
    UserId::new(id).unwrap()
}

async fn begin(erasures: &PostgresErasures, id: &str) -> Erasure {
    erasures.begin(&user(id), "ops", NOW).await.unwrap().unwrap()
}

/// The erasures of a process without a cache, and the users `ada` and `bob`.
async fn erasures(postgres: &Postgres) -> PostgresErasures {
    let users = Arc::new(PostgresUsers::new(postgres, 0));
    users.intern(&[user("ada"), user("bob")]).await.unwrap();
    PostgresErasures::new(postgres, &users)
}

#[tokio::test]
async fn an_erasure_waits_until_each_cache_has_forgotten_the_user() {
    let Some(postgres) = open().await else { return };
    let erasures = erasures(&postgres).await;
    let (mut one, mut two) = (Caching::start(&postgres, LEASE), Caching::start(&postgres, LEASE));
    for process in [&mut one, &mut two] {
        assert_eq!(process.read("ada").await, Some(UserKey(1)));
        assert_eq!(process.cached("ada"), None, "it has no row yet");
        process.keeper.round().await.unwrap();
        assert_eq!(process.read("ada").await, Some(UserKey(1)));
        assert_eq!(process.cached("ada"), Some(UserKey(1)));
        process.read("bob").await;
    }

    let erasure = begin(&erasures, "ada").await;
    assert!(!erasures.is_forgotten(erasure.id).await.unwrap());
    one.keeper.round().await.unwrap();
    assert_eq!(one.read("ada").await, None);
    assert_eq!(two.read("ada").await, Some(UserKey(1)), "it is still cached");
    assert!(!erasures.is_forgotten(erasure.id).await.unwrap());
    two.keeper.round().await.unwrap();
    assert_eq!(two.read("ada").await, None);
    assert!(erasures.is_forgotten(erasure.id).await.unwrap());
    for process in [&one, &two] {
        assert_eq!(process.cached("bob"), Some(UserKey(2)), "others stay cached");
    }
    assert_eq!(two.users.intern(&[user("ada")]).await.unwrap(), [UserKey(3)]);
    assert_eq!(one.read("ada").await, Some(UserKey(3)));

    // A process that starts later has nothing to forget.
    let mut later = Caching::start(&postgres, LEASE);
    later.keeper.round().await.unwrap();
    assert!(erasures.is_forgotten(erasure.id).await.unwrap());
}

#[tokio::test]
async fn a_cache_whose_row_has_ended_is_not_used() {
    let Some(postgres) = open().await else { return };
    let erasures = erasures(&postgres).await;
    let mut process = Caching::start(&postgres, Duration::from_secs(10));
    process.keeper.round().await.unwrap();
    process.read("ada").await;
    process.read("bob").await;
    // It does not see the erasure.
    let erasure = begin(&erasures, "ada").await;
    assert_eq!(process.cached("ada"), Some(UserKey(1)));
    assert!(!erasures.is_forgotten(erasure.id).await.unwrap());
    until("the row has ended", async || {
        erasures.is_forgotten(erasure.id).await.unwrap()
    })
    .await;
    assert_eq!(process.cached("ada"), None);
    assert_eq!(process.read("ada").await, None);

    // It comes back when nobody knows any more who was erased.
    let forgotten = Forgotten {
        at: NOW,
        last_post: PostId(7),
    };
    erasures.record_forgotten(erasure.id, &forgotten).await.unwrap();
    erasures.complete(erasure.id, NOW).await.unwrap();
    process.keeper.round().await.unwrap();
    assert_eq!((process.cached("ada"), process.cached("bob")), (None, None));
    assert_eq!(process.read("ada").await, None);
    process.read("bob").await;
    assert_eq!(process.cached("bob"), Some(UserKey(2)));
    assert!(erasures.is_forgotten(erasure.id).await.unwrap());
}

/// A standby that was behind has become the primary: the newest erasure is lost, and its id is used again.
#[tokio::test]
async fn an_erasure_with_the_id_of_a_lost_one_is_noticed() {
    let Some(postgres) = open().await else { return };
    let erasures = erasures(&postgres).await;
    let lost = begin(&erasures, "ada").await;
    let mut process = Caching::start(&postgres, LEASE);
    process.keeper.round().await.unwrap();
    process.read("bob").await;
    run(
        &postgres,
        "UPDATE herald.users SET id = 'ada' WHERE key = 1; DELETE FROM herald.erasures; \
         ALTER TABLE herald.erasures ALTER id RESTART",
    )
    .await;
    let erasure = begin(&erasures, "bob").await;
    assert_eq!(erasure.id, lost.id);
    process.keeper.round().await.unwrap();
    assert_eq!(process.cached("bob"), None);
    assert_eq!(process.read("bob").await, None);
}

#[tokio::test]
async fn more_erasures_than_are_read_at_once_are_forgotten() {
    let Some(postgres) = open().await else { return };
    let erasures = erasures(&postgres).await;
    let mut process = Caching::start(&postgres, LEASE);
    process.keeper.round().await.unwrap();
    process.read("bob").await;
    begin(&erasures, "ada").await;
    run(
        &postgres,
        "INSERT INTO herald.erasures (user_key, actor, requested_at) \
         SELECT n, 'ops', 0 FROM generate_series(10, 2500) n",
    )
    .await;
    let last = begin(&erasures, "bob").await;
    process.keeper.round().await.unwrap();
    assert!(erasures.is_forgotten(last.id).await.unwrap());
    assert_eq!(process.read("bob").await, None);
}

#[tokio::test]
async fn a_process_that_stops_does_not_hold_erasures_up() {
    let Some(url) = database().await else { return };
    let postgres = connect(&url).await;
    postgres.migrate().await.unwrap();
    let erasures = erasures(&postgres).await;
    let other = connect(&url).await;
    let users = PostgresUsers::new(&other, 1 << 20);
    until("ada is cached", async || {
        users.find(&[user("ada")]).await.unwrap();
        users.cached_key(&user("ada")).is_some()
    })
    .await;
    let rows = async || -> i64 {
        let rows = sqlx::query_scalar("SELECT count(*) FROM herald.users_caches");
        rows.fetch_one(postgres.pool()).await.unwrap()
    };
    assert_eq!(rows().await, 1);
    let erasure = begin(&erasures, "ada").await;
    other.close().await;
    until("its row is removed", async || rows().await == 0).await;
    assert!(erasures.is_forgotten(erasure.id).await.unwrap());
    assert_eq!(users.cached_key(&user("ada")), None);
}

#[tokio::test]
async fn rows_of_processes_that_ended_long_ago_are_removed() {
    let Some(postgres) = open().await else { return };
    run(
        &postgres,
        "INSERT INTO herald.users_caches VALUES ('old', 0, clock_timestamp() - interval '2 hours'), \
         ('new', 0, clock_timestamp() - interval '1 minute')",
    )
    .await;
    let process = Caching::start(&postgres, LEASE);
    let stop = CancellationToken::new();
    let running = tokio::spawn(process.keeper.run(stop.clone()));
    until("the old row is removed", async || {
        let rows =
            sqlx::query_scalar("SELECT array_agg(process ORDER BY process = 'new') FROM herald.users_caches");
        let rows: Vec<String> = rows.fetch_one(postgres.pool()).await.unwrap();
        assert_eq!(rows.last().unwrap(), "new", "{rows:?}");
        rows.len() == 2 && !rows.contains(&"old".to_owned())
    })
    .await;
    stop.cancel();
    running.await.unwrap();
}

/// Takes log lines.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn count(&self, text: &str) -> usize {
        let lines = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        lines.matches(text).count()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_cache_that_is_not_used_any_more_is_logged_once() {
    let Some(postgres) = open().await else { return };
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone());
    let _logged = herald_test_subscriber::set_for_thread(subscriber.finish());
    erasures(&postgres).await;
    let Caching { users, keeper } = Caching::start(&postgres, Duration::from_secs(2));
    let stop = CancellationToken::new();
    let running = tokio::spawn(keeper.run(stop.clone()));
    let is_cached = async || {
        users.find(&[user("ada")]).await.unwrap();
        users.cached_key(&user("ada")).is_some()
    };
    until("ada is cached", is_cached).await;
    run(&postgres, "ALTER TABLE herald.users_caches RENAME TO moved").await;
    let (out, back) = ("users are not cached", "users are cached again");
    until("the end of the cache is logged", async || log.count(out) > 0).await;
    assert_eq!(users.cached_key(&user("ada")), None);
    run(&postgres, "ALTER TABLE herald.moved RENAME TO users_caches").await;
    until("the return of the cache is logged", async || log.count(back) > 0).await;
    until("ada is cached again", is_cached).await;
    stop.cancel();
    running.await.unwrap();
    assert_eq!((log.count(out), log.count(back)), (1, 1));
}
