//! TLS of the cluster engine: the servers are verified with an authority of one's own, and by their names.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

use herald_local_stores::{Postgres, PostgresOptions, Redis, RedisCluster, RedisOptions, RedisTls, required};
use herald_model::PostId;
use herald_store::{
    Error, Timelines,
    cluster::{Cluster, Config, SecretUrl},
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::TempDir;
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

use crate::{
    sample::{eventually, set},
    timelines::{deliver, newest},
};

/// An authority, and its files.
struct Authority {
    dir: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let authority = Self {
            dir: TempDir::new().unwrap(),
            issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap(),
        };
        fs::write(authority.file(), authority.issuer.pem()).unwrap();
        authority
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// Writes `NAME.crt` and `NAME.key` for servers with a host name or address, for the owner of a directory alone.
    fn certify(&self, host: &str, dir: &Path, name: &str) -> RedisTls {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let owner = fs::metadata(dir).unwrap();
        let write = |extension: &str, text: String| {
            let path = dir.join(name).with_extension(extension);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            chown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
            path
        };
        RedisTls {
            certificate: write("crt", certificate.pem()),
            key: write("key", key.serialize_pem()),
            authorities: self.file(),
        }
    }
}

/// A PostgreSQL server with TLS.
async fn postgres(authority: &Authority) -> Option<(Postgres, String)> {
    let options = PostgresOptions {
        password: Some("s3cret".into()),
        ..PostgresOptions::default()
    };
    let postgres = required("PostgreSQL", Postgres::start_with(options).await)?;
    authority.certify("127.0.0.1", &postgres.dir().join("data"), "server");
    let url = postgres.database("herald").await.unwrap();
    for statement in ["ALTER SYSTEM SET ssl = on", "SELECT pg_reload_conf()"] {
        postgres.run_in("herald", statement).await.unwrap();
    }
    Some((postgres, url))
}

async fn open(records: &str, timelines: &str, authorities: &Path) -> Result<Cluster, Error> {
    let mut config = Config {
        url: SecretUrl::new(records),
        ..Config::default()
    };
    config.postgres.acquire_timeout_ms = 5_000;
    config.timelines.url = SecretUrl::new(timelines);
    config.timelines.tls_ca_file = Some(authorities.to_owned());
    config.timelines.active_days = 0;
    config.timelines.flush_delay_ms = 5;
    Cluster::open(&config).await
}

/// The error of an engine that must not open.
async fn refused(records: &str, timelines: &str, authorities: &Path) -> String {
    match open(records, timelines, authorities).await {
        Ok(_) => panic!("the engine opened"),
        Err(error) => error.to_string(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_is_verified_by_its_authority_and_its_name() {
    let (authority, other) = (Authority::new("right"), Authority::new("wrong"));
    let Some((postgres, url)) = postgres(&authority).await else {
        return;
    };
    let options = RedisOptions::default();
    let Some(redis) = required("Redis", Redis::start(options).await) else {
        return;
    };
    let with = |mode: &str, authority: &Authority| {
        format!("{url}?sslmode={mode}&sslrootcert={}", authority.file().display())
    };
    let none = authority.file();
    let cluster = open(&with("verify-full", &authority), &redis.url(), &none)
        .await
        .unwrap();
    cluster.close().await;
    let error = refused(&with("verify-full", &other), &redis.url(), &none).await;
    assert!(
        error.contains("the certificate of PostgreSQL is not accepted"),
        "{error}"
    );

    authority.certify("elsewhere.test", &postgres.dir().join("data"), "server");
    postgres
        .run_in("herald", "SELECT pg_reload_conf()")
        .await
        .unwrap();
    let error = refused(&with("verify-full", &authority), &redis.url(), &none).await;
    assert!(
        error.contains("the certificate of PostgreSQL is not accepted"),
        "{error}"
    );
    // `verify-ca` ignores the name.
    let cluster = open(&with("verify-ca", &authority), &redis.url(), &none)
        .await
        .unwrap();
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_cluster_with_tls_has_timelines_and_is_verified_by_its_authority_and_its_name() {
    let (authority, other) = (Authority::new("right"), Authority::new("wrong"));
    let Some((_postgres, url)) = postgres(&authority).await else {
        return;
    };
    let files = authority.dir.path();
    let start = async |host: &str| {
        let options = RedisOptions {
            tls: Some(authority.certify(host, files, host)),
            ..RedisOptions::default()
        };
        required("a Redis cluster", RedisCluster::start_with(3, options).await)
    };
    let Some(redis) = start("127.0.0.1").await else {
        return;
    };
    let node = redis.nodes()[0].tls_url();
    let cluster = open(&url, &node, &authority.file()).await.unwrap();
    let timelines = cluster.stores().timelines;
    // Users of many buckets, which are on all nodes.
    let users: Vec<u32> = (0..40).map(|n| n * 1_000).collect();
    deliver(&*timelines, 7, set(users.iter().copied())).await;
    for user in users {
        assert_eq!(newest(&*timelines, user, None, 10).await, [7], "{user}");
    }
    cluster.close().await;

    let error = refused(&url, &node, &other.file()).await;
    assert!(error.contains("check timelines.tls_ca_file"), "{error}");
    let Some(elsewhere) = start("elsewhere.test").await else {
        return;
    };
    let error = refused(&url, &elsewhere.nodes()[0].tls_url(), &authority.file()).await;
    assert!(error.contains("check timelines.tls_ca_file"), "{error}");
}

/// Number of warnings of an authority of the timelines that can't be used. One test at a time changes authorities.
static AUTHORITY_WARNINGS: AtomicUsize = AtomicUsize::new(0);

/// Counts [`AUTHORITY_WARNINGS`].
struct AuthorityWarnings;

impl Subscriber for AuthorityWarnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::WARN && metadata.target().starts_with("herald_store::cluster::timelines")
    }

    fn event(&self, event: &Event<'_>) {
        struct IsAuthority(bool);
        impl Visit for IsAuthority {
            fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
                let text = format!("{value:?}");
                self.0 |=
                    field.name() == "message" && text.contains("new authority in timelines.tls_ca_file");
            }
        }
        let mut found = IsAuthority(false);
        event.record(&mut found);
        AUTHORITY_WARNINGS.fetch_add(found.0.into(), Ordering::SeqCst);
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

/// Whether a delivery is durable.
async fn is_delivered(timelines: &dyn Timelines, post: u64) -> bool {
    match timelines.deliver(PostId(post), set([1])).await {
        Ok(delivered) => delivered.durable.await.is_ok(),
        Err(_) => false,
    }
}

/// Gives the servers at `files` certificates of a new authority, and lets the engine read it. `restart` restarts them.
async fn change_authority(records: &str, url: &str, old: &Authority, files: &Path, restart: impl AsyncFn()) {
    let new = Authority::new("new");
    let file = old.dir.path().join("of-herald.pem");
    fs::write(&file, old.issuer.pem()).unwrap();
    let cluster = open(records, url, &file).await.unwrap();
    let timelines = cluster.stores().timelines;
    assert!(is_delivered(&*timelines, 1).await);
    // A file that can't be used changes nothing: connections that are made later are verified by the old one.
    let warned = AUTHORITY_WARNINGS.load(Ordering::SeqCst);
    fs::write(&file, "no certificate").unwrap();
    eventually("the unusable file is logged", async || {
        (AUTHORITY_WARNINGS.load(Ordering::SeqCst) > warned).then_some(())
    })
    .await;
    restart().await;
    eventually("the old authority is still in use", async || {
        is_delivered(&*timelines, 4).await.then_some(())
    })
    .await;
    // The servers verify each other by both.
    fs::write(old.file(), old.issuer.pem() + &new.issuer.pem()).unwrap();
    new.certify("127.0.0.1", files, "server");
    restart().await;
    assert!(
        !is_delivered(&*timelines, 2).await,
        "the new authority is not known yet"
    );
    fs::write(&file, new.issuer.pem()).unwrap();
    eventually("the new authority is in use", async || {
        is_delivered(&*timelines, 3).await.then_some(())
    })
    .await;
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_authority_of_redis_is_read_again_when_its_file_changes() {
    // The connections are looked after by other threads than that of the test, so all threads have the subscriber.
    tracing::subscriber::set_global_default(AuthorityWarnings).expect("the only subscriber of the tests");
    let (single, nodes) = (Authority::new("old"), Authority::new("old"));
    let Some((_postgres, url)) = postgres(&single).await else {
        return;
    };
    let options = |authority: &Authority| RedisOptions {
        tls: Some(authority.certify("127.0.0.1", authority.dir.path(), "server")),
        ..RedisOptions::default()
    };
    let Some(redis) = required("Redis", Redis::start(options(&single)).await) else {
        return;
    };
    let restart = async || redis.restart().await.unwrap();
    change_authority(&url, &redis.tls_url(), &single, single.dir.path(), restart).await;

    let started = RedisCluster::start_with(3, options(&nodes)).await;
    let Some(redis) = required("a Redis cluster", started) else {
        return;
    };
    let restart = async || {
        for node in redis.nodes() {
            node.restart().await.unwrap();
        }
    };
    let node = redis.nodes()[0].tls_url();
    change_authority(&url, &node, &nodes, nodes.dir.path(), restart).await;
}
