use std::{slice, time::Duration};

use futures::future::join_all;
use herald_model::{Address, Channel, FollowVersion, PostId, Recipients, UserId, UserKey, time::Timestamp};

use super::{
    connect, database,
    dead_letters::{dead_letter, redrive},
    records::post,
    run, server,
};
use crate::{
    Archived, ChunkPlan, Counts, DeadLetterFilter, DeadLetterVersion, DeadLetters as _, DeadMessage,
    Devices as _, ErrorKind, ExpectedRevision, FollowAction, FollowChange, Follows as _, Leases as _,
    Ledger as _, OperationState, Order, Outcome, PostTotals, Posts as _, Preferences as _, PreferencesChange,
    Settlement, SlicePlan, Totals as _, TotalsBatch, Users as _,
    cluster::{
        PostgresConfig, SecretUrl,
        postgres::{
            Postgres, PostgresDeadLetters, PostgresDevices, PostgresFollows, PostgresLeases, PostgresLedger,
            PostgresPosts, PostgresPreferences, PostgresTotals, PostgresUsers,
        },
    },
    embedded::devices::Codec,
};

/// The sentence with which the store refuses to migrate.
async fn refusal(url: &SecretUrl) -> (ErrorKind, String) {
    let error = connect(url).await.migrate().await.unwrap_err();
    (error.kind(), error.to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn processes_that_start_at_once_apply_each_migration_once() {
    let Some(url) = database().await else { return };
    let migrated = join_all((0..8).map(|_| async { connect(&url).await.migrate().await.unwrap() })).await;
    let mut applied: Vec<_> = migrated.iter().flat_map(|m| m.applied.clone()).collect();
    applied.sort_unstable();
    assert!(applied.contains(&"0001_records"));
    assert!(applied.is_sorted_by(|a, b| a < b), "applied twice: {applied:?}");
    let again = connect(&url).await.migrate().await.unwrap();
    assert_eq!((again.applied.len(), again.version), (0, migrated[0].version));
}

#[tokio::test]
async fn a_schema_of_a_newer_version_is_refused() {
    let Some(url) = database().await else { return };
    let postgres = connect(&url).await;
    postgres.migrate().await.unwrap();
    run(
        &postgres,
        "INSERT INTO herald.migrations (version, name) VALUES (9999, '9999_newer')",
    )
    .await;
    let (kind, message) = refusal(&url).await;
    assert_eq!(kind, ErrorKind::Corrupt);
    assert!(message.contains("use the newer version of Herald"), "{message}");
}

#[tokio::test]
async fn a_schema_of_another_build_is_refused() {
    let Some(url) = database().await else { return };
    let postgres = connect(&url).await;
    postgres.migrate().await.unwrap();
    run(
        &postgres,
        "UPDATE herald.migrations SET name = '0001_other' WHERE version = 1",
    )
    .await;
    let (kind, message) = refusal(&url).await;
    assert_eq!(kind, ErrorKind::Corrupt);
    assert!(message.contains("another build of Herald"), "{message}");
}

#[tokio::test]
async fn a_schema_with_tables_of_others_is_refused_and_not_changed() {
    let Some(url) = database().await else { return };
    let postgres = connect(&url).await;
    run(
        &postgres,
        "CREATE SCHEMA herald; CREATE TABLE herald.users (name text)",
    )
    .await;
    let (kind, message) = refusal(&url).await;
    assert_eq!(kind, ErrorKind::Corrupt);
    assert!(message.contains("use another database"), "{message}");
    let tables: i64 = sqlx::query_scalar("SELECT count(*) FROM pg_tables WHERE schemaname = 'herald'")
        .fetch_one(postgres.pool())
        .await
        .unwrap();
    assert_eq!(tables, 1);
}

#[tokio::test]
async fn tables_of_other_applications_in_other_schemas_do_not_matter() {
    let Some(url) = database().await else { return };
    let postgres = connect(&url).await;
    run(&postgres, "CREATE TABLE users (name text)").await;
    postgres.migrate().await.unwrap();
}

#[tokio::test]
async fn a_read_only_database_is_refused() {
    let Some(url) = database().await else { return };
    let postgres = connect(&url).await;
    postgres.migrate().await.unwrap();
    run(
        &postgres,
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = on', current_database()); \
         END $$",
    )
    .await;
    let (kind, message) = refusal(&url).await;
    assert_eq!(kind, ErrorKind::Unavailable);
    assert!(message.contains("read-only"), "{message}");
    let error = connect(&url).await.check().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn a_database_without_unicode_is_refused() {
    let Some(url) = database().await else { return };
    run(
        &connect(&url).await,
        "CREATE DATABASE test_ascii ENCODING 'SQL_ASCII' TEMPLATE template0",
    )
    .await;
    let Some(server) = server().await else { return };
    let (kind, message) = refusal(&SecretUrl::new(server.url_of("test_ascii"))).await;
    assert_eq!(kind, ErrorKind::Corrupt);
    assert!(message.contains("needs UTF8"), "{message}");
}

#[tokio::test]
async fn a_process_waits_while_another_one_migrates() {
    let Some(url) = database().await else { return };
    let postgres = connect(&url).await;
    // Holds the lock that a migrating process takes.
    let mut other = postgres.begin().await.unwrap();
    sqlx::query("SELECT pg_advisory_xact_lock($1)")
        .bind(super::super::migrations::LOCK_KEY)
        .execute(&mut *other)
        .await
        .unwrap();
    let waiting = tokio::spawn({
        let postgres = postgres.clone();
        async move { postgres.migrate().await }
    });
    while !is_waiting(&postgres).await {
        tokio::task::yield_now().await;
    }
    other.rollback().await.unwrap();
    assert!(!waiting.await.unwrap().unwrap().applied.is_empty());
}

pub(super) async fn is_waiting(postgres: &Postgres) -> bool {
    sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted)")
        .fetch_one(postgres.pool())
        .await
        .unwrap()
}

/// All stores of a process that has one connection, so that its prepared statements are all on that one.
struct OneConnection {
    postgres: Postgres,
    users: PostgresUsers,
    follows: PostgresFollows,
    posts: PostgresPosts,
    devices: PostgresDevices,
    preferences: PostgresPreferences,
    ledger: PostgresLedger,
    totals: PostgresTotals,
    dead_letters: PostgresDeadLetters,
    leases: PostgresLeases,
}

impl OneConnection {
    async fn open(url: &SecretUrl) -> Self {
        let config = PostgresConfig {
            connections_max: 1,
            ..PostgresConfig::default()
        };
        let postgres = Postgres::connect(url, &config).await.unwrap();
        postgres.migrate().await.unwrap();
        let day = Duration::from_hours(24);
        Self {
            users: PostgresUsers::new(&postgres, 0),
            follows: PostgresFollows::new(&postgres, day, day),
            posts: PostgresPosts::new(&postgres, &config, day),
            devices: PostgresDevices::new(&postgres, Codec::plain()),
            preferences: PostgresPreferences::new(&postgres),
            ledger: PostgresLedger::new(postgres.clone()),
            totals: PostgresTotals::new(postgres.clone()),
            dead_letters: PostgresDeadLetters::new(postgres.clone()),
            leases: PostgresLeases::new(postgres.clone()),
            postgres,
        }
    }

    /// Writes and reads rows that are named by `n` in each table.
    async fn use_all(&self, n: u64) {
        self.use_records(n).await;
        self.use_ledger(PostId(n)).await;
        self.use_totals(n).await;
        self.use_dead_letters(n).await;
    }

    async fn use_records(&self, n: u64) {
        let id = UserId::new(format!("user {n}")).unwrap();
        let key = self.users.intern(slice::from_ref(&id)).await.unwrap()[0];
        assert_eq!(self.users.ids(&[key]).await.unwrap(), [Some(id)]);
        for action in [
            FollowAction::Follow { notify: Some(true) },
            FollowAction::Unfollow,
        ] {
            let change = FollowChange {
                follower: key,
                author: UserKey(3),
                action,
            };
            self.follows.apply(&[change]).await.unwrap();
        }
        self.follows.followers(UserKey(3), None, None, 9).await.unwrap();
        self.follows.following(key, None, 9).await.unwrap();
        self.follows.count(UserKey(3)).await.unwrap();
        let request = n.to_string();
        self.posts
            .archive(&[Archived::Created(post(n, &request))])
            .await
            .unwrap();
        assert!(self.posts.get(&[PostId(n)]).await.unwrap()[0].is_some());
        self.posts
            .newest_by_author(UserKey(3), PostId(n), 9)
            .await
            .unwrap();
        self.posts.find_by_request(UserKey(3), &request).await.unwrap();
        let address = Address::Webhook {
            url: "https://a.example".into(),
            secret: vec![7],
        };
        let device = self.devices.register(key, address, Timestamp(1)).await.unwrap();
        assert!(self.devices.unregister(key, device.id).await.unwrap());
        let mute = PreferencesChange {
            mute: vec![UserKey(3)],
            ..PreferencesChange::default()
        };
        self.preferences.update(key, &mute).await.unwrap();
        self.preferences.of(&[key]).await.unwrap();
    }

    async fn use_ledger(&self, post: PostId) {
        let chunk = Recipients::from_sorted([UserKey(1), UserKey(2)]);
        let id = chunk.chunk_id();
        let planned = SlicePlan {
            post,
            author: UserKey(3),
            slice: 0,
            version: FollowVersion(1),
            chunks: Vec::from_iter(Channel::ALL.map(|channel| ChunkPlan {
                channel,
                recipients: chunk.clone(),
            })),
            next_after: None,
        };
        for _ in 0..2 {
            assert_eq!(self.ledger.plan(planned.clone()).await.unwrap(), planned);
        }
        let lease = Duration::from_mins(1);
        let revision = self
            .ledger
            .claim(post, Channel::Push, id, 0, lease)
            .await
            .unwrap();
        self.ledger
            .extend_claim(post, Channel::Push, id, revision, lease)
            .await
            .unwrap();
        let settlement = Settlement {
            post,
            channel: Channel::Timeline,
            chunk: id,
            base: ExpectedRevision::Any,
            outcome: Outcome::Delivered { count: 2 },
            at: Timestamp(5),
            keep_claim: None,
        };
        self.ledger.settle(&settlement).await.unwrap();
        let dead = DeadMessage {
            post,
            channel: Channel::Push,
            chunk: id,
            generation: 0,
        };
        assert_eq!(
            self.ledger
                .mark_dead(&dead, Timestamp(6))
                .await
                .unwrap()
                .unwrap()
                .counts
                .dead,
            2
        );
        self.ledger.record_backfill(&[post], &chunk).await.unwrap();
        assert_eq!(self.ledger.counts(post).await.unwrap().unwrap().push.dead, 2);
        assert_eq!(
            self.ledger
                .recipients(post, Channel::Push, None, None, 9)
                .await
                .unwrap()
                .len(),
            2
        );
        assert_eq!(self.ledger.audit(post).await.unwrap().unwrap().chunks.len(), 2);
        self.ledger.posts(None, 9).await.unwrap();
    }

    async fn use_totals(&self, n: u64) {
        let owner = self
            .leases
            .acquire("analytics", "a", Duration::from_mins(1))
            .await
            .unwrap()
            .unwrap();
        let counts = Counts {
            posts: 1,
            ..Counts::default()
        };
        let totals = PostTotals {
            author: UserKey(3),
            counts,
            timeline_latency_ms_max: 0,
            push_latency_ms_max: 0,
        };
        let batch = TotalsBatch {
            stream: "POSTS".into(),
            sequences: vec![n],
            file: n.to_string(),
            posts: vec![(PostId(n), totals)],
            hours: vec![(n as u32, counts)],
            chunks: Vec::new(),
        };
        self.totals.intend(&batch.file, &owner).await.unwrap();
        self.totals.commit(&batch).await.unwrap();
        assert_eq!(self.totals.post_totals(PostId(n)).await.unwrap(), Some(totals));
        assert_eq!(
            self.totals
                .hour_totals(n as u32, n as u32 + 1)
                .await
                .unwrap()
                .len(),
            1
        );
        self.leases.renew(&owner, Duration::from_mins(1)).await.unwrap();
    }

    async fn use_dead_letters(&self, n: u64) {
        let at = Timestamp(9);
        let fence = self
            .leases
            .acquire("redrive", "a", Duration::from_mins(1))
            .await
            .unwrap()
            .unwrap();
        self.dead_letters.insert(&[dead_letter(n)]).await.unwrap();
        let selected = DeadLetterVersion {
            id: dead_letter(n).id,
            round: 0,
        };
        let begun = self.dead_letters.begin(&redrive(), &[selected]).await.unwrap();
        assert!(!self.dead_letters.running().await.unwrap().is_empty());
        let step = self.dead_letters.claim(begun.id, 9, 0, at, &fence).await.unwrap();
        assert_eq!(step.dead_letters.len(), 1);
        let ended = self
            .dead_letters
            .finish(begun.id, OperationState::Done, "", at)
            .await
            .unwrap();
        assert_eq!(self.dead_letters.operation(begun.id).await.unwrap(), Some(ended));
        assert!(!self.dead_letters.operations(None, 9).await.unwrap().is_empty());
        self.dead_letters
            .scan(&DeadLetterFilter::default(), Order::OldestFirst, None, 9)
            .await
            .unwrap();
        self.dead_letters
            .groups(&DeadLetterFilter::default())
            .await
            .unwrap();
    }
}

/// A process goes on while a later version migrates. PostgreSQL refuses a prepared statement whose result has changed.
/// With one connection, the test also shows that no call holds a connection while it waits for another one.
#[tokio::test]
async fn columns_that_a_later_version_adds_disturb_no_process() {
    const ADD: &str = "
        DO $$ DECLARE t regclass; BEGIN
            FOR t IN SELECT oid FROM pg_class
                WHERE relnamespace = 'herald'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition
            LOOP EXECUTE format('ALTER TABLE %s ADD COLUMN later integer NOT NULL DEFAULT 7', t); END LOOP;
        END $$";
    let Some(url) = database().await else { return };
    let process = OneConnection::open(&url).await;
    // Some statements are prepared at their second use only.
    process.use_all(1).await;
    process.use_all(2).await;
    run(&connect(&url).await, ADD).await;
    process.use_all(3).await;
    process.postgres.check().await.unwrap();
}
