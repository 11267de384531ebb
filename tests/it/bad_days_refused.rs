//! Stores that can't be used: each is refused at the start with one sentence that says what to change.

use std::{
    net::TcpListener,
    time::{Duration, Instant},
};

use futures::future::join_all;
use harness::run;
use herald_local_stores::{Credentials, Postgres, PostgresOptions, Redis, RedisOptions, required};

use crate::HERALD;

/// Limit of a start that is refused.
const LIMIT: Duration = Duration::from_secs(30);

const PASSWORD: &str = "hunter2";

/// A start with these URLs, and a part of the sentence that refuses it.
struct Refused {
    store: String,
    timelines: String,
    says: &'static str,
}

async fn refuse(
    Refused {
        store,
        timelines,
        says,
    }: Refused,
) {
    let began = Instant::now();
    let variables = [
        ("HERALD_NATS__URL", "nats://127.0.0.1:1"),
        ("HERALD_STORE__URL", store.as_str()),
        ("HERALD_TIMELINES__URL", timelines.as_str()),
        ("HERALD_STORE__POSTGRES__ACQUIRE_TIMEOUT_MS", "2000"),
        ("HERALD_TIMELINES__CONNECT_TIMEOUT_MS", "2000"),
        ("HERALD_TIMELINES__RESPONSE_TIMEOUT_MS", "2000"),
        (
            "HERALD_PUSH__VAPID_PRIVATE_KEY",
            "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE",
        ),
        ("NO_COLOR", "1"),
    ];
    let arguments = [
        "serve",
        "timeline",
        "--grpc",
        "127.0.0.1:0",
        "--http",
        "127.0.0.1:0",
    ];
    let done = run(HERALD, &arguments, &variables).await;
    assert_eq!(done.code, 1, "{says}: {done:?}");
    assert!(done.stderr.contains(says), "{says}: {}", done.stderr);
    assert!(!done.stderr.contains(PASSWORD), "{}", done.stderr);
    let sentences: Vec<&str> = done
        .stderr
        .lines()
        .filter(|line| line.contains("can't"))
        .collect();
    assert_eq!(sentences.len(), 1, "{says}: {}", done.stderr);
    assert!(began.elapsed() < LIMIT, "{says}: {:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn stores_that_cannot_be_used_are_refused() {
    let options = PostgresOptions {
        password: Some(PASSWORD.into()),
        ..PostgresOptions::default()
    };
    let Some(postgres) = required("PostgreSQL", Postgres::start_with(options).await) else {
        return;
    };
    let redis = |change: fn(&mut RedisOptions)| async move {
        let mut options = RedisOptions::default();
        change(&mut options);
        required("Redis", Redis::start(options).await)
    };
    let Some(plain) = redis(|_| {}).await else { return };
    let evicting = redis(|options| options.maxmemory_policy = "allkeys-lru".into())
        .await
        .unwrap();
    let locked = redis(|options| {
        options.credentials = Some(Credentials {
            user: "herald".into(),
            password: PASSWORD.into(),
        });
    })
    .await
    .unwrap();
    let replica = RedisOptions {
        replica_of: Some(plain.port()),
        ..RedisOptions::default()
    };
    let replica = Redis::start(replica).await.unwrap();
    // Accepts connections and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = silent.local_addr().unwrap();

    let database = async |name: &str, statements: &str| {
        let url = postgres.database(name).await.unwrap();
        postgres.run_in(name, statements).await.unwrap();
        url
    };
    let good = database("good", "SELECT 1").await;
    let migrated = database("newer", "SELECT 1").await;
    let done = run(HERALD, &["store", "migrate"], &[("HERALD_STORE__URL", &migrated)]).await;
    assert_eq!(done.code, 0, "{done:?}");
    let newer = "INSERT INTO herald.migrations (version, name) VALUES (9999, '9999_newer')";
    postgres.run_in("newer", newer).await.unwrap();
    let foreign = database(
        "stranger",
        "CREATE SCHEMA herald; CREATE TABLE herald.users (name text)",
    )
    .await;
    let limited = database(
        "limited",
        &format!("CREATE ROLE limited LOGIN PASSWORD '{PASSWORD}'"),
    )
    .await;
    let limited = limited.replace("postgres://herald:", "postgres://limited:");
    let read_only = database(
        "readable",
        "ALTER DATABASE readable SET default_transaction_read_only = on",
    )
    .await;
    let ascii = "CREATE DATABASE ascii ENCODING 'SQL_ASCII' TEMPLATE template0";
    postgres.run_in("postgres", ascii).await.unwrap();

    let store = |store: String, says| Refused {
        store,
        timelines: plain.url(),
        says,
    };
    let timelines = |timelines: String, says| Refused {
        store: good.clone(),
        timelines,
        says,
    };
    let two_hosts = good.replace("127.0.0.1:", "127.0.0.1:1,127.0.0.1:");
    let wrong_password = good.replace(PASSWORD, "wrong");
    let refused = [
        store(migrated, "use the newer version of Herald"),
        store(foreign, "use another database"),
        store(limited, "grant the role of the URL all rights"),
        store(read_only, "make it writable"),
        store(postgres.url_of("ascii"), "needs UTF8"),
        store(
            postgres.url_of("nowhere"),
            "create the database, or correct the URL",
        ),
        store(wrong_password, "check the user and password"),
        store(format!("{good}?sslmode=require"), "check sslmode"),
        store(
            "postgres://herald@127.0.0.1:1/herald".into(),
            "connect to 127.0.0.1:1: the connection to PostgreSQL failed: Connection refused (os error 111); start the server, \
             or check store.url",
        ),
        store(
            format!("postgres://herald@{silent}/herald"),
            "did not respond within 2000 ms",
        ),
        timelines(evicting.url(), "set maxmemory-policy to noeviction"),
        timelines(
            locked.url().replace(PASSWORD, "wrong"),
            "check the user and password",
        ),
        timelines(
            format!("redis://127.0.0.1:{}", locked.port()),
            "check the user and password",
        ),
        timelines(replica.url(), "use the address of the primary"),
        timelines(plain.url().replace("redis:", "rediss:"), "did not respond within"),
        timelines("redis://127.0.0.1:1".into(), "Connection refused"),
        timelines(format!("redis://{silent}"), "did not respond within"),
    ];
    join_all(refused.map(refuse)).await;

    // This is known without a connection.
    let variables = [
        ("HERALD_NATS__URL", "nats://127.0.0.1:1"),
        ("HERALD_STORE__URL", two_hosts.as_str()),
        ("HERALD_TIMELINES__URL", "redis://127.0.0.1:1"),
    ];
    let done = run(HERALD, &["serve", "timeline"], &variables).await;
    assert_eq!(done.code, 2, "{done:?}");
    assert!(done.stderr.contains("it must have one host"), "{}", done.stderr);
    assert!(!done.stderr.contains(PASSWORD), "{}", done.stderr);

    // A password on the command line can be read by every user of the machine.
    for (flag, url) in [("--store", good.as_str()), ("--timelines", locked.url().as_str())] {
        let done = run(HERALD, &["serve", "timeline", flag, url], &[]).await;
        assert_eq!(done.code, 2, "{done:?}");
        assert!(done.stderr.contains("_FILE"), "{}", done.stderr);
        assert!(!done.stderr.contains(PASSWORD), "{}", done.stderr);
    }
}
