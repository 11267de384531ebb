//! TLS to PostgreSQL, Redis and NATS: the certificates are verified with an authority of one's own.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
    time::Duration,
};

use harness::{Process, run, until};
use herald_local_nats::{Config as NatsConfig, Server as Nats};
use herald_local_stores::{Postgres, PostgresOptions, Redis, RedisOptions, required};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;

use crate::HERALD;

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

/// PEM files: the authority that signed the certificate of the servers, and another one.
struct Certificates {
    dir: TempDir,
    authority: PathBuf,
    other: PathBuf,
    certificate: String,
    key: String,
}

impl Certificates {
    fn new() -> Self {
        let authority = || {
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
        };
        let (ca, other) = (authority(), authority());
        let key = KeyPair::generate().unwrap();
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &ca);
        let dir = TempDir::new().unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let certificates = Self {
            authority: write("ca.pem", &ca.pem()),
            other: write("other.pem", &other.pem()),
            certificate: certificate.unwrap().pem(),
            key: key.serialize_pem(),
            dir,
        };
        certificates.write_to(certificates.dir.path());
        certificates
    }

    /// Writes `server.crt` and `server.key`, for the owner of the directory alone.
    fn write_to(&self, dir: &Path) {
        let owner = fs::metadata(dir).unwrap();
        for (name, text) in [("server.crt", &self.certificate), ("server.key", &self.key)] {
            let path = dir.join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            chown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
        }
    }

    fn certificate_file(&self) -> String {
        self.dir.path().join("server.crt").display().to_string()
    }

    fn key_file(&self) -> String {
        self.dir.path().join("server.key").display().to_string()
    }
}

/// The three servers, with TLS.
struct World {
    certificates: Certificates,
    postgres: Postgres,
    redis_port: u16,
    nats: Nats,
    database: String,
    _redis: Redis,
}

impl World {
    /// Starts the servers; `None` on a machine without them.
    async fn start() -> Option<Self> {
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
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let redis_port = free.local_addr().unwrap().port();
        drop(free);
        let (certificate, key) = (certificates.certificate_file(), certificates.key_file());
        let settings = [
            ("tls-port", redis_port.to_string()),
            ("tls-cert-file", certificate.clone()),
            ("tls-key-file", key.clone()),
            ("tls-ca-cert-file", certificates.authority.display().to_string()),
            ("tls-auth-clients", "no".into()),
        ];
        let options = RedisOptions {
            settings: settings.map(|(name, value)| (name.to_owned(), value)).into(),
            ..RedisOptions::default()
        };
        let redis = required("Redis", Redis::start(options).await)?;
        let nats = Nats::start(NatsConfig {
            extra: format!("tls {{ cert_file: {certificate:?}, key_file: {key:?} }}\n"),
            ..NatsConfig::default()
        });
        Some(Self {
            certificates,
            postgres,
            redis_port,
            nats: nats.await.unwrap(),
            database,
            _redis: redis,
        })
    }

    /// The environment of a process that verifies the servers with these authorities.
    fn variables(&self, postgres: &Path, redis: &Path, nats: &Path) -> Vec<(String, String)> {
        let text = |path: &Path| path.display().to_string();
        let variables = [
            ("NATS__URL", self.nats.client_url().replace("nats://", "tls://")),
            ("NATS__TLS__CA_FILE", text(nats)),
            ("STORE__URL", format!("{}?sslmode=verify-full", self.database)),
            ("STORE__POSTGRES__TLS_CA_FILE", text(postgres)),
            ("STORE__POSTGRES__ACQUIRE_TIMEOUT_MS", "5000".into()),
            (
                "TIMELINES__URL",
                format!("rediss://127.0.0.1:{}", self.redis_port),
            ),
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
    let authority = &world.certificates.authority;
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
    let (right, wrong) = (&world.certificates.authority, &world.certificates.other);
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
