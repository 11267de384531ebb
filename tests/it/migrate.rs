//! `herald migrate`: a mesh that was killed under load goes on with PostgreSQL and Redis.

use std::path::Path;

use harness::{Herald, run};
use herald_local_stores::{Postgres, Redis, RedisOptions, required};
use serde_json::Value;

use crate::{
    HERALD,
    audit::audit,
    crash::{inject_under_load, options},
};

/// Places in which a move is killed, the later ones after those before: in the first parts, at the end of a batch before
/// its position is recorded, and between the ends in the database and in the data directory.
const KILLS: [&str; 5] = [
    "store.move.batch=1*return(kill)",
    "store.move.written=2*off->1*return(kill)",
    "store.move.batch=4*off->1*return(kill)",
    "store.move.finish=1*return(kill)",
    "store.move.finished=1*return(kill)",
];

/// What a move needs.
struct Target {
    postgres: Postgres,
    redis: Redis,
    database: String,
}

impl Target {
    /// `None` on a machine without the servers.
    async fn start() -> Option<Self> {
        let postgres = required("PostgreSQL", Postgres::start().await)?;
        let redis = required("Redis", Redis::start(RedisOptions::default()).await)?;
        let database = postgres.database("herald").await.unwrap();
        Some(Self {
            postgres,
            redis,
            database,
        })
    }

    async fn migrate(&self, data_dir: &Path, failpoints: &str) -> harness::Output {
        let timelines = self.redis.url();
        let variables = [
            ("HERALD_STORE__URL", self.database.as_str()),
            ("HERALD_TIMELINES__URL", timelines.as_str()),
            ("FAILPOINTS", failpoints),
        ];
        let dir = data_dir.to_str().unwrap();
        let arguments = ["migrate", "--data-dir", dir, "--output", "json"];
        let refused = run(HERALD, &arguments, &variables).await;
        assert!(
            refused.code == 2 && refused.stderr.contains("--plain-devices"),
            "{refused:?}"
        );
        run(
            HERALD,
            &[&arguments[..], &["--plain-devices"]].concat(),
            &variables,
        )
        .await
    }

    /// The arguments of `herald up` on the moved data.
    fn arguments(&self) -> Vec<String> {
        ["--store", &self.database, "--timelines", &self.redis.url()]
            .map(str::to_owned)
            .into()
    }
}

/// Starts `herald up` on free ports, which must refuse to start; returns what it says.
async fn refusal(arguments: &[&str]) -> String {
    let mut all = vec![
        "up",
        "--grpc",
        "127.0.0.1:0",
        "--operator-grpc",
        "127.0.0.1:0",
        "--http",
        "127.0.0.1:0",
        "--nats-port",
        "0",
    ];
    all.extend(arguments);
    let refused = run(HERALD, &all, &[]).await;
    assert_eq!(refused.code, 1, "{refused:?}");
    refused.stderr
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mesh_killed_under_load_goes_on_after_the_move() {
    let Some(target) = Target::start().await else {
        return;
    };
    let herald = Herald::start(HERALD, options()).await;
    let running = target.migrate(&herald.data_dir(), "").await;
    assert_eq!(running.code, 1, "{running:?}");
    assert!(
        running.stderr.contains("is open in another process"),
        "{running:?}"
    );

    let mut herald = inject_under_load(herald, 1, async |herald| {
        herald.kill().await;
        let dir = herald.data_dir();
        for failpoints in KILLS {
            let killed = target.migrate(&dir, failpoints).await;
            assert!(
                killed.code != 0 && killed.stdout.is_empty(),
                "{failpoints}: {killed:?}"
            );
            let refused = refusal(&["--data-dir", dir.to_str().unwrap()]).await;
            assert!(
                refused.contains("is being moved to PostgreSQL"),
                "{failpoints}: {refused}"
            );
            if failpoints.starts_with("store.move.finished") {
                continue;
            }
            let arguments = target.arguments();
            let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let elsewhere = tempfile::tempdir().unwrap();
            arguments.extend(["--data-dir", elsewhere.path().to_str().unwrap()]);
            let refused = refusal(&arguments).await;
            assert!(refused.contains("is not complete"), "{failpoints}: {refused}");
        }
        let moved = target.migrate(&dir, "").await;
        assert_eq!(moved.code, 0, "{moved:?}");
        let moved: Value = serde_json::from_str(&moved.stdout).unwrap();
        let rows = |name: &str| {
            let parts = moved["parts"].as_array().unwrap();
            let part = parts.iter().find(|part| part["name"] == name);
            part.unwrap()["row_count"].as_u64().unwrap()
        };
        assert!(
            rows("users") > 300 && rows("posts") > 0 && rows("ledger") > 0,
            "{moved}"
        );
        let refused = refusal(&["--data-dir", dir.to_str().unwrap()]).await;
        assert!(refused.contains("was moved to PostgreSQL"), "{refused}");

        herald.options_mut().arguments = target.arguments();
        herald.restart().await;
    })
    .await;
    let (audited, _) = audit(&herald, &[]).await;
    assert_eq!(audited.code, 0, "{audited:?}");
    assert_eq!(herald.stop().await, 0, "{}", herald.log());
    drop(target.postgres);
}
