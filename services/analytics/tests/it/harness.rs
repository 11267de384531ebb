//! A nats-server, a store and a directory, and the rows of the Parquet files in it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use herald_analytics::{Config, Deps, Error, Metrics, run};
use herald_local_nats::Server;
use herald_mesh::{Mesh, Subject, Topology, TopologyConfig, consumers, streams};
use herald_model::time::Timestamp;
use herald_model::{Channel, Lane, UserId, UserKey};
use herald_proto::mesh_v1::{DeliveriesSettled, PostCreated, PostDeleted, SettledChunk};
use herald_runtime::metrics::Shared;
use herald_store::embedded::{self, Embedded};
use herald_store::{Leases, SettledCounts, Stores, Totals};
use parquet::file::reader::{FileReader as _, SerializedFileReader};
use parquet::record::{Field, Row};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// 2026-01-01 10:00, and an hour later.
pub(crate) const HOUR: i64 = 1_767_261_600_000_000;
pub(crate) const NEXT_HOUR: i64 = HOUR + 3_600_000_000;

pub(crate) struct Harness {
    pub(crate) mesh: Mesh,
    pub(crate) topology: Arc<Topology>,
    pub(crate) stores: Stores,
    pub(crate) shared: Shared,
    pub(crate) metrics: Metrics,
    dir: TempDir,
    _store: Embedded,
    pub(crate) nats: Server,
}

/// A running service.
pub(crate) struct Running {
    pub(crate) address: String,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), Error>>,
}

impl Running {
    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
    }
}

impl Harness {
    pub(crate) async fn start() -> Self {
        let nats = Server::start(herald_local_nats::Config::default()).await.unwrap();
        let mesh = Mesh::connect(&herald_mesh::Config::at(nats.client_url()))
            .await
            .unwrap();
        let mut config = TopologyConfig::default();
        let analytics = &mut config.consumers.analytics;
        analytics.ack_wait_seconds = 2;
        analytics.fault_attempts_max = 3;
        analytics.retry.delay_ms_base = 10;
        analytics.retry.delay_ms_max = 100;
        let topology = Arc::new(Topology::new(&config).unwrap());
        mesh.ensure(&topology).await.unwrap();
        let dir = TempDir::new().unwrap();
        let store = open(&dir);
        let shared = Shared::new();
        let metrics = shared.register(Metrics::new);
        Self {
            mesh,
            topology,
            stores: store.stores(),
            shared,
            metrics,
            dir,
            _store: store,
            nats,
        }
    }

    /// Overwrites a row of the totals to simulate corruption, and returns the previous value. No service may use the
    /// store during the call.
    pub(crate) fn overwrite(self, keyspace: &str, key: &[u8], row: &[u8]) -> (Self, Vec<u8>) {
        let Self {
            mesh,
            topology,
            stores,
            shared,
            metrics,
            dir,
            _store: store,
            nats,
        } = self;
        drop(stores);
        store.close().unwrap();
        drop(store);
        let totals = fjall::Database::builder(dir.path().join("data/totals"))
            .open()
            .unwrap();
        let rows = totals
            .keyspace(keyspace, fjall::KeyspaceCreateOptions::default)
            .unwrap();
        let previous = rows.get(key).unwrap().expect("a row to overwrite").to_vec();
        rows.insert(key, row).unwrap();
        totals.persist(fjall::PersistMode::SyncAll).unwrap();
        drop((rows, totals));
        let store = open(&dir);
        let harness = Self {
            mesh,
            topology,
            stores: store.stores(),
            shared,
            metrics,
            dir,
            _store: store,
            nats,
        };
        (harness, previous)
    }

    /// The advisories of terminated messages, in order.
    pub(crate) async fn termination_advisories(&self) -> Vec<String> {
        let last = self.mesh.last_sequence(streams::ADVISORIES).await.unwrap();
        let mut advisories = Vec::new();
        for sequence in 1..=last {
            let advisory = self.mesh.message(streams::ADVISORIES, sequence).await.unwrap();
            advisories.push(String::from_utf8(advisory.unwrap().payload.to_vec()).unwrap());
        }
        advisories
    }

    pub(crate) fn files_dir(&self) -> PathBuf {
        self.dir.path().join("files")
    }

    /// A configuration with small batches, so that a test has many of them.
    pub(crate) fn config(&self) -> Config {
        Config {
            dir: self.files_dir(),
            batch_rows_max: 50,
            batch_age_ms_max: 50,
            lease_seconds: 2,
            ..Config::default()
        }
    }

    pub(crate) async fn run(&self, config: Config, totals: Arc<dyn Totals>) -> Running {
        self.run_with(config, totals, self.stores.leases.clone()).await
    }

    pub(crate) async fn run_with(
        &self,
        config: Config,
        totals: Arc<dyn Totals>,
        leases: Arc<dyn Leases>,
    ) -> Running {
        let (mut deps, address) = self.deps(self.mesh.clone(), totals).await;
        deps.leases = leases;
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(run(config, deps, shutdown.clone()));
        Running {
            address,
            shutdown,
            task,
        }
    }

    pub(crate) async fn deps(&self, mesh: Mesh, totals: Arc<dyn Totals>) -> (Deps, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let deps = Deps {
            mesh,
            topology: self.topology.clone(),
            totals,
            leases: self.stores.leases.clone(),
            users: self.stores.users.clone(),
            objects: None,
            listener: listener.into(),
            metrics: self.metrics.clone(),
        };
        (deps, address)
    }

    /// Publishes a post of "ann" with a time of acceptance, and returns its id.
    pub(crate) async fn post(&self, accepted_at_us: i64) -> u64 {
        let author = self.author().await.0;
        self.post_with_key(author, accepted_at_us).await
    }

    /// The key of "ann".
    pub(crate) async fn author(&self) -> UserKey {
        self.stores
            .users
            .intern(&[UserId::new("ann").unwrap()])
            .await
            .unwrap()[0]
    }

    /// Publishes a post of "ann" whose message has this key of the author.
    pub(crate) async fn post_with_key(&self, author_key: u32, accepted_at_us: i64) -> u64 {
        let post = PostCreated {
            author_key,
            author_id: "ann".into(),
            text: "hello".into(),
            links: vec!["https://example.org".into()],
            accepted_at_us,
            push_ttl_seconds: 60,
            ..PostCreated::default()
        };
        self.mesh
            .publish(Subject::PostCreated(Lane::High), None, &post)
            .await
            .unwrap()
            .sequence
    }

    pub(crate) async fn delete(&self, post_id: u64, deleted_at_us: i64) {
        let deleted = PostDeleted {
            post_id,
            author_key: 1,
            deleted_at_us,
        };
        self.mesh
            .publish(Subject::PostDeleted(Lane::High), None, &deleted)
            .await
            .unwrap();
    }

    /// Publishes revision 1 of a chunk with 10 delivered and 2 suppressed deliveries, 1.5 s after its post's
    /// acceptance.
    pub(crate) async fn settle(&self, post_id: u64, channel: Channel, chunk_id: u64, settled_at_us: i64) {
        let counts = SettledCounts {
            delivered: 10,
            suppressed: 2,
            ..SettledCounts::default()
        };
        self.publish_revision(post_id, channel, chunk_id, settled_at_us, (1, counts))
            .await;
    }

    /// Publishes a revision of a chunk without a message id, as a duplicate after the dedupe window.
    pub(crate) async fn publish_revision(
        &self,
        post_id: u64,
        channel: Channel,
        chunk_id: u64,
        settled_at_us: i64,
        (revision, counts): (u64, SettledCounts),
    ) {
        let chunk = settled(post_id, chunk_id, settled_at_us, (revision, counts));
        self.publish_event(channel, [chunk]).await;
    }

    /// Publishes one event with several chunks.
    pub(crate) async fn publish_event(
        &self,
        channel: Channel,
        chunks: impl IntoIterator<Item = SettledChunk>,
    ) {
        let event = DeliveriesSettled {
            chunks: chunks.into_iter().collect(),
        };
        self.mesh
            .publish(Subject::Settled(channel), None, &event)
            .await
            .unwrap();
    }

    /// Waits until every message published so far is acknowledged.
    pub(crate) async fn wait_until_acknowledged(&self) {
        for (stream, consumer) in [
            (streams::POSTS, consumers::ANALYTICS_POSTS),
            (streams::EVENTS, consumers::ANALYTICS_EVENTS),
        ] {
            let last = self.mesh.last_sequence(stream).await.unwrap();
            wait_until(async || self.mesh.ack_floor(stream, consumer).await.unwrap() >= last).await;
        }
    }

    /// The rows of a table by stream and sequence. Panics if a message has several rows.
    pub(crate) fn rows(&self, table: &str) -> BTreeMap<(String, u64), Row> {
        let all = self.all_rows(table);
        let count = all.len();
        let rows: BTreeMap<_, _> = all.into_iter().collect();
        assert_eq!(rows.len(), count, "a message has several rows");
        rows
    }

    /// The rows of a table, each with its stream and sequence. Panics if a row is in the files twice.
    pub(crate) fn all_rows(&self, table: &str) -> Vec<((String, u64), Row)> {
        let (mut rows, mut seen) = (Vec::new(), BTreeSet::new());
        for path in self.files(table) {
            let file = SerializedFileReader::new(std::fs::File::open(&path).unwrap()).unwrap();
            for row in file.get_row_iter(None).unwrap() {
                let row = row.unwrap();
                let Field::Str(stream) = field(&row, "stream") else {
                    panic!("{row:?}")
                };
                let Field::ULong(sequence) = field(&row, "sequence") else {
                    panic!("{row:?}")
                };
                let revision = (table == "deliveries").then(|| {
                    let of = |name| field(&row, name).to_string();
                    (of("chunk_id"), of("revision"))
                });
                let key = (stream.clone(), sequence, revision);
                assert!(
                    seen.insert(key.clone()),
                    "{key:?} is duplicated in {}",
                    path.display()
                );
                rows.push(((stream, sequence), row));
            }
        }
        rows
    }

    /// The files of a table.
    pub(crate) fn files(&self, table: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        collect_parquet_files(&self.files_dir().join(table), &mut found);
        found.sort();
        found
    }

    /// The value of a metric; 0 if it is not exported.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let text = self.shared.open_metrics();
        let line = text
            .lines()
            .find(|line| line.split([' ', '{']).next() == Some(name));
        line.and_then(|line| line.rsplit(' ').next())
            .map_or(0.0, |value| value.parse().unwrap())
    }

    /// The sums of the totals of all hours.
    pub(crate) async fn sums(&self) -> herald_store::Counts {
        let mut sum = herald_store::Counts::default();
        for (_, counts) in self.stores.totals.hour_totals(0, u32::MAX).await.unwrap() {
            sum += counts;
        }
        sum
    }
}

fn open(dir: &TempDir) -> Embedded {
    Embedded::open(&embedded::Config {
        data_dir: dir.path().join("data"),
        ..embedded::Config::default()
    })
    .unwrap()
}

pub(crate) fn field(row: &Row, name: &str) -> Field {
    row.get_column_iter()
        .find(|(column, _)| *column == name)
        .map(|(_, field)| field.clone())
        .unwrap()
}

/// Waits until a condition holds, at most 30 s.
pub(crate) async fn wait_until(condition: impl AsyncFn() -> bool) {
    let deadline = Timestamp::now().plus(Duration::from_secs(30));
    let mut ticks = tokio::time::interval(Duration::from_millis(5));
    while !condition().await {
        assert!(Timestamp::now() < deadline, "timeout after 30 s");
        ticks.tick().await;
    }
}

fn collect_parquet_files(dir: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return;
    };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect_parquet_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "parquet") {
            found.push(path);
        }
    }
}

/// A revision of a chunk whose post was accepted 1.5 s earlier.
pub(crate) fn settled(
    post_id: u64,
    chunk_id: u64,
    settled_at_us: i64,
    (revision, counts): (u64, SettledCounts),
) -> SettledChunk {
    SettledChunk {
        post_id,
        author_key: 1,
        chunk_id,
        delivered_count: counts.delivered,
        suppressed_count: counts.suppressed,
        expired_count: counts.expired,
        dead_count: counts.dead,
        accepted_at_us: settled_at_us - 1_500_000,
        settled_at_us,
        revision,
        ..SettledChunk::default()
    }
}
