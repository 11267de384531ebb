//! TLS to PostgreSQL, Redis and NATS: the certificates are verified with an authority of one's own.

use std::{path::Path, time::Duration};

use harness::{Process, run, until};
use herald_local_nats::{Config as NatsConfig, Server as Nats};
use herald_local_stores::{Postgres, PostgresOptions, Redis, RedisOptions, RedisTls, required};

use crate::{HERALD, certificates::Certificates};

const LIMIT: Duration = Duration::from_mins(1);
const ROLES: &str = "gateway,archive,graph,fanout,timeline,push,analytics,deadletter";
/// Fails unless all connections of Herald use TLS, and there is one.
const ALL_USE_TLS: &str = "
    DO $$
    BEGIN
        IF NOT (SELECT coalesce(bool_and(ssl), false) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
            WHERE application_name = 'herald')
        THEN RAISE EXCEPTION 'a connection of Herald does not use TLS';
        END IF;
    END $$";

/// The three servers, with TLS.
pub(crate) struct World {
    pub(crate) certificates: Certificates,
    pub(crate) postgres: Postgres,
    pub(crate) nats: Nats,
    pub(crate) redis: Redis,
    database: String,
}

impl World {
    /// Starts the servers; `None` on a machine without them.
    pub(crate) async fn start() -> Option<Self> {
        let certificates = Certificates::new();
        let options = PostgresOptions {
            password: Some("s3cret".into()),
            ..PostgresOptions::default()
        };
        let postgres = required("PostgreSQL", Postgres::start_with(options).await)?;
        certificates.write_to(&postgres.dir().join("data"));
        let database = postgres.database("herald").await.unwrap();
        for statement in ["ALTER SYSTEM SET ssl = on", "SELECT pg_reload_conf()"] {
            postgres.run_in("herald", statement).await.unwrap();
        }
        let (certificate, key) = (certificates.certificate(), certificates.key());
        let options = RedisOptions {
            tls: Some(RedisTls {
                certificate: certificate.clone(),
                key: key.clone(),
                authorities: certificates.authority(),
            }),
            ..RedisOptions::default()
        };
        let redis = required("Redis", Redis::start(options).await)?;
        let nats = Nats::start(NatsConfig {
            extra: format!(
                "tls {{ cert_file: \"{}\", key_file: \"{}\" }}\n",
                certificate.display(),
                key.display()
            ),
            ..NatsConfig::default()
        });
        Some(Self {
            certificates,
            postgres,
            nats: nats.await.unwrap(),
            redis,
            database,
        })
    }

    /// The environment of a process that verifies the servers with these authorities.
    pub(crate) fn variables(&self, postgres: &Path, redis: &Path, nats: &Path) -> Vec<(String, String)> {
        let text = |path: &Path| path.display().to_string();
        let variables = [
            ("NATS__URL", self.nats.client_url().replace("nats://", "tls://")),
            ("NATS__TLS__CA_FILE", text(nats)),
            ("STORE__URL", format!("{}?sslmode=verify-full", self.database)),
            ("STORE__POSTGRES__TLS_CA_FILE", text(postgres)),
            ("STORE__POSTGRES__ACQUIRE_TIMEOUT_MS", "5000".into()),
            ("TIMELINES__URL", self.redis.tls_url()),
            ("TIMELINES__TLS_CA_FILE", text(redis)),
            ("PUSH__VAPID_PRIVATE_KEY", "AQ".repeat(21) + "A"),
            ("SHUTDOWN_DELAY_SECONDS", "0".into()),
        ];
        variables
            .map(|(name, value)| (format!("HERALD_{name}"), value))
            .into()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn posts_are_delivered_over_tls() {
    let Some(world) = World::start().await else { return };
    let authority = &world.certificates.authority();
    let variables = world.variables(authority, authority, authority);
    let mut herald = Process::start(HERALD, ROLES, &[], &variables).await;
    herald.cli(&["follow", "ann", "107"]).await;
    herald.cli(&["post", "--author", "107", "--text", "hello"]).await;
    until("the post is on the timeline", LIMIT, || async {
        let shown = herald.cli(&["timeline", "ann"]).await;
        shown["entries"]
            .as_array()
            .is_some_and(|entries| entries.len() == 1)
    })
    .await;
    world.postgres.run_in("herald", ALL_USE_TLS).await.unwrap();
    assert_eq!(herald.stop().await, 0, "{}", herald.log());
    assert!(!herald.log().contains("s3cret"), "{}", herald.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_another_authority_is_refused() {
    let Some(world) = World::start().await else { return };
    let (right, wrong) = (&world.certificates.authority(), &world.certificates.other());
    // TLS files are never ignored.
    let plain = Nats::start(NatsConfig::default()).await.unwrap();
    let mut with_plain_nats = world.variables(right, right, right);
    for (name, value) in &mut with_plain_nats {
        if name == "HERALD_NATS__URL" {
            *value = plain.client_url();
        }
    }
    for (variables, setting) in [
        (
            world.variables(wrong, right, right),
            "check sslmode and postgres.tls_ca_file",
        ),
        (
            world.variables(right, wrong, right),
            "check timelines.tls_ca_file",
        ),
        (world.variables(right, right, wrong), "check nats.tls.ca_file"),
        (
            with_plain_nats,
            "the server does not use TLS, which nats.tls requires",
        ),
    ] {
        let variables: Vec<(&str, &str)> = variables
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let arguments = [
            "serve",
            "timeline",
            "--grpc",
            "127.0.0.1:0",
            "--http",
            "127.0.0.1:0",
        ];
        let done = run(HERALD, &arguments, &variables).await;
        assert_eq!(done.code, 1, "{setting}: {done:?}");
        assert!(done.stderr.contains(setting), "{setting}: {}", done.stderr);
        assert!(!done.stderr.contains("s3cret"), "{}", done.stderr);
    }
}
