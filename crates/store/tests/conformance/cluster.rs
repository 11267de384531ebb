//! The cluster engine, on private PostgreSQL and Redis servers.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use herald_local_stores::{Postgres, Redis, RedisCluster, RedisOptions, required};
use herald_model::{ChunkId, PostId, UserKey};
use herald_store::{
    Result, Stores,
    cluster::{Cluster, Config, SecretUrl},
    encryption::{Encryption, StorageKeys},
};
use sqlx::Connection as _;
use tokio::sync::OnceCell;

use crate::{
    corrupt::{GARBAGE, Row},
    engine::Engine,
};

/// The cluster engine with a database of its own and a Redis, or a Redis cluster of `NODES`, of its own.
pub struct ClusterEngine<const NODES: usize> {
    // Before the servers, because it is closed first.
    open: Option<Cluster>,
    peers: Vec<Cluster>,
    config: Config,
    postgres: Arc<Postgres>,
    view: View,
}

/// With a Redis.
pub type OnRedis = ClusterEngine<1>;

/// With a Redis cluster of three.
pub type OnRedisCluster = ClusterEngine<3>;

enum View {
    Single(Box<Redis>),
    Cluster(RedisCluster),
}

impl View {
    async fn start(nodes: usize) -> herald_local_stores::Result<Self> {
        match nodes {
            1 => Redis::start(RedisOptions::default())
                .await
                .map(|redis| Self::Single(Box::new(redis))),
            nodes => RedisCluster::start(nodes).await.map(Self::Cluster),
        }
    }

    fn nodes(&self) -> &[Redis] {
        match self {
            Self::Single(redis) => std::slice::from_ref(redis),
            Self::Cluster(cluster) => cluster.nodes(),
        }
    }
}

/// The server of all tests that don't kill it. It ends with this process.
async fn shared_postgres() -> Option<Arc<Postgres>> {
    static SERVER: OnceCell<Option<Arc<Postgres>>> = OnceCell::const_new();
    SERVER.get_or_init(start_postgres).await.clone()
}

async fn start_postgres() -> Option<Arc<Postgres>> {
    let started = Postgres::start().await;
    required("the conformance of the cluster engine", started).map(Arc::new)
}

impl<const NODES: usize> ClusterEngine<NODES> {
    async fn on(postgres: Arc<Postgres>) -> Option<Self> {
        static DATABASES: AtomicU32 = AtomicU32::new(0);

        let view = required("the conformance of the cluster engine", View::start(NODES).await)?;
        let name = format!("conformance_{}", DATABASES.fetch_add(1, Ordering::Relaxed));
        let records = postgres.database(&name).await.unwrap();
        let mut engine = Self {
            open: None,
            peers: Vec::new(),
            config: config(&records, &view.nodes()[0].url()),
            postgres,
            view,
        };
        engine.open().await;
        Some(engine)
    }

    async fn open(&mut self) {
        self.open = Some(Cluster::open(&self.config).await.unwrap());
    }

    async fn connect(&self) -> sqlx::PgConnection {
        sqlx::PgConnection::connect(self.config.url.expose())
            .await
            .unwrap()
    }
}

fn config(records: &str, timelines: &str) -> Config {
    let mut config = Config {
        url: SecretUrl::new(records),
        ..Config::default()
    };
    config.postgres.connections_max = 8;
    config.timelines.url = SecretUrl::new(timelines);
    // Every user counts as active: the suite does not read timelines to keep them written.
    config.timelines.active_days = 0;
    config.timelines.flush_delay_ms = 5;
    config
}

fn of_chunk(post: PostId, chunk: ChunkId) -> String {
    format!("post = {post} AND chunk = {}", chunk.0.cast_signed())
}

impl<const NODES: usize> Engine for ClusterEngine<NODES> {
    const WRITER: &str = "crash::writer_on_cluster";

    async fn start() -> Option<Self> {
        Self::on(shared_postgres().await?).await
    }

    async fn start_alone() -> Option<Self> {
        Self::on(start_postgres().await?).await
    }

    fn stores(&self) -> Stores {
        self.open.as_ref().unwrap().stores()
    }

    async fn peer(&mut self) -> Stores {
        let peer = Cluster::open(&self.config).await.unwrap();
        let stores = peer.stores();
        self.peers.push(peer);
        stores
    }

    async fn reopen(&mut self) {
        self.hand_over().await;
        self.open().await;
    }

    async fn reopen_with(&mut self, encryption: Encryption) -> Result<()> {
        self.hand_over().await;
        self.config.encryption = encryption;
        let opened = Cluster::open(&self.config).await?;
        let keys = opened.storage_keys();
        let checked = match keys.remove_lost().await {
            Ok(_) => keys.check().await,
            Err(error) => Err(error),
        };
        if let Err(error) = checked {
            opened.close().await;
            return Err(error);
        }
        self.open = Some(opened);
        Ok(())
    }

    async fn reopen_with_retention(&mut self, post_keep_days: u64) {
        self.config.post_keep_days = Some(post_keep_days);
        self.reopen().await;
    }

    fn storage_keys(&self) -> Arc<dyn StorageKeys> {
        self.open.as_ref().unwrap().storage_keys()
    }

    async fn raw_devices(&mut self) -> Vec<u8> {
        const RAW: &str = "
            SELECT devices FROM herald.devices UNION ALL SELECT value FROM herald.settings
            UNION ALL SELECT convert_to(name, 'UTF8') FROM herald.settings";
        let rows: Vec<Vec<u8>> = sqlx::query_scalar(RAW)
            .fetch_all(&mut self.connect().await)
            .await
            .unwrap();
        rows.concat()
    }

    async fn devices_row(&mut self, user: UserKey) -> Vec<u8> {
        sqlx::query_scalar("SELECT devices FROM herald.devices WHERE user_key = $1")
            .bind(i64::from(user.0))
            .fetch_one(&mut self.connect().await)
            .await
            .unwrap()
    }

    async fn set_devices_row(&mut self, user: UserKey, row: &[u8]) {
        sqlx::query("UPDATE herald.devices SET devices = $2 WHERE user_key = $1")
            .bind(i64::from(user.0))
            .bind(row)
            .execute(&mut self.connect().await)
            .await
            .unwrap();
    }

    fn place(&self) -> String {
        format!(
            "{}|{}",
            self.config.url.expose(),
            self.config.timelines.url.expose()
        )
    }

    async fn hand_over(&mut self) {
        for opened in self.open.take().into_iter().chain(self.peers.drain(..)) {
            opened.close().await;
        }
    }

    async fn open_at(place: &str) -> Stores {
        let (records, timelines) = place.split_once('|').unwrap();
        let opened = Cluster::open(&config(records, timelines)).await.unwrap();
        let stores = opened.stores();
        std::mem::forget(opened);
        stores
    }

    async fn kill_servers(&mut self) {
        self.postgres.kill().await.unwrap();
        for node in self.view.nodes() {
            node.kill().await.unwrap();
        }
    }

    async fn recover(&mut self) {
        self.postgres.restart().await.unwrap();
        for node in self.view.nodes() {
            node.restart().await.unwrap();
        }
        if let View::Cluster(cluster) = &self.view {
            cluster.wait_ready().await.unwrap();
        }
        self.open().await;
    }

    async fn damage(&mut self, row: Row) {
        let (column, condition) = match row {
            Row::Devices(user) => ("devices SET devices", format!("user_key = {user}")),
            Row::Preferences(user) => ("preferences SET preferences", format!("user_key = {user}")),
            Row::PushChunk(post, chunk) => ("ledger_chunks SET recipients", of_chunk(post, chunk)),
            Row::PushOutcome(post, chunk) => ("ledger_outcomes SET outcome", of_chunk(post, chunk)),
            Row::Post(post) => ("posts SET body", format!("id = {post}")),
            Row::DeadLetter(id) => ("dead_letters SET content", format!("id = {}", id.0)),
        };
        let mut connection = self.connect().await;
        let sql = format!("UPDATE herald.{column} = $1 WHERE {condition}");
        let damaged = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(GARBAGE)
            .execute(&mut connection)
            .await
            .unwrap();
        assert_eq!(damaged.rows_affected(), 1, "{row:?} is in the store");
    }

    async fn stop(mut self) {
        self.hand_over().await;
    }
}
