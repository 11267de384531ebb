//! The mesh under test: real processes, each of which can get faults.
//!
//! ```text
//! writers, readers ─gRPC→ herald ─→ toxiproxy ─→ nats-server
//!                            └────→ toxiproxy ─→ push sink
//! ```
//! `herald` is a complete mesh (`herald up`) in one process, restarted whenever it exits, as the kubelet does.
//! nats-server is a separate child of the suite, so that either can be killed alone.
//!
//! A fleet has a process for each role instead, two of each, and PostgreSQL and Redis, with a replica, of its own:
//! ```text
//! writers, readers ─gRPC→ 2 gateways ─→ graph, analytics, deadletter ─→ PostgreSQL, Redis
//!                                └────→ nats-server ─→ archive, fanout, timeline, push ─→ …
//! ```

mod fleet;
mod herald;
mod nats;
mod process;
mod proxy;
mod sink;
mod stores;

use std::{path::PathBuf, time::Duration};

use harness::{Clients, ack_wait_variables};
use rustix::process::{Pid, Signal};
use tempfile::TempDir;
use tonic::transport::Endpoint;

use self::process::Launch;
pub(crate) use self::{
    herald::{Gateway, Herald, Role},
    nats::Nats,
    process::{Process, StartOptions},
    proxy::{Proxy, Toxic, Toxiproxy},
    sink::{PushSink, Receipts},
    stores::{FailOver, Stores},
};
use crate::log::Log;

/// AckWait of all consumers: short, so that a run has many redeliveries; the default is 5 s.
pub(crate) const ACK_WAIT: Duration = Duration::from_secs(2);
/// Dedupe window of the broker: short, so that a run has retries within and after it; the default is 2 min. Longer than a
/// partition and the stop after it: a leader without a majority holds a message for so long, and stores it then (see
/// "Not promised" in docs/RELIABILITY.md).
pub(crate) const DEDUPE_WINDOW: Duration = Duration::from_secs(20);

/// Heartbeat interval of watches, which also read missed posts then; the default is 15 s.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(2);
/// Time that DeletePost waits for the archive: longer than any caller waits, so that readers don't see the post after
/// an answer. With the default of 5 s an answer may only mean that the deletion is durable.
const DELETE_WAIT: Duration = Duration::from_secs(30);

/// Options of a mesh.
#[derive(Debug, Clone, Default)]
pub(crate) struct Options {
    /// Options of herald's first start.
    pub(crate) first_start: StartOptions,
    /// Failpoints of every start, for negative controls.
    pub(crate) sabotage: String,
    /// Servers of the nats-server cluster; 0: a single server without a cluster.
    pub(crate) cluster: usize,
    /// Whether the roles are processes of their own, on PostgreSQL and Redis.
    pub(crate) fleet: bool,
    /// Environment variables that override the default ones of the suite.
    pub(crate) settings: Vec<(String, String)>,
}

impl Options {
    /// A cluster of three servers with three replicas of each stream.
    pub(crate) fn cluster() -> Self {
        Self {
            cluster: 3,
            settings: vec![("HERALD_TOPOLOGY__REPLICAS".into(), "3".into())],
            ..Self::default()
        }
    }

    /// A process for each role, on PostgreSQL and Redis.
    pub(crate) fn fleet() -> Self {
        Self {
            fleet: true,
            ..Self::default()
        }
    }
}

/// All processes of one mesh. Drop kills them.
pub(crate) struct World {
    pub(crate) log: Log,
    pub(crate) herald: Herald,
    pub(crate) nats: Nats,
    /// Proxy between herald and a single nats-server; `None` without toxiproxy.
    pub(crate) nats_proxy: Option<Proxy>,
    pub(crate) sink: PushSink,
    /// Stores of a fleet.
    pub(crate) stores: Option<Stores>,
    dir: TempDir,
}

impl World {
    pub(crate) async fn start(log: &Log, options: Options) -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        let toxiproxy = Toxiproxy::find(dir.path()).await;
        let nats = match options.cluster {
            0 => Nats::single(dir.path()).await,
            size => Nats::cluster(dir.path(), size, toxiproxy.as_ref()).await,
        };
        let (nats_proxy, nats_url) = match &toxiproxy {
            Some(toxiproxy) if nats.cluster.size() == 1 => {
                let upstream = nats.cluster.urls().replace("nats://", "");
                let proxy = toxiproxy.proxy("nats", &upstream).await;
                let url = format!("nats://{}", proxy.address());
                (Some(proxy), url)
            }
            _ => (None, nats.cluster.urls()),
        };
        let sink = PushSink::start(toxiproxy.as_ref()).await;
        let stores = if options.fleet {
            Some(Stores::start().await.expect("PostgreSQL and Redis start"))
        } else {
            None
        };
        let further = if options.fleet {
            fleet::variables()
        } else {
            Vec::new()
        };
        let variables = variables(further.into_iter().chain(options.settings));
        let herald = match &stores {
            None => {
                let data_dir = dir.path().join("data").display().to_string();
                let arguments = ["up", "--output", "json", "--allow-private-endpoints"];
                let places = ["--nats-url", &nats_url, "--data-dir", &data_dir];
                let launch = Launch {
                    name: "herald".into(),
                    arguments: arguments.into_iter().chain(places).map(Into::into).collect(),
                    variables,
                    sabotage: options.sabotage,
                    first_start: options.first_start,
                    log_path: dir.path().join("herald.log"),
                };
                Herald::up(log, launch).await
            }
            Some(stores) => {
                let settings = fleet::Settings {
                    dir: dir.path().to_owned(),
                    nats_url,
                    postgres_url: stores.postgres.url(),
                    redis_url: stores.redis_url(),
                    variables,
                    sabotage: options.sabotage,
                };
                Herald::serve(log, settings).await
            }
        };
        Self {
            log: log.clone(),
            herald,
            nats,
            nats_proxy,
            sink,
            stores,
            dir,
        }
    }

    /// Clients that connect lazily and reconnect after a fault.
    pub(crate) fn clients(&self) -> Clients {
        clients(&self.herald.gateway(), Duration::from_secs(2))
    }

    /// Clients that wait for a busy machine: after the faults no server is stopped.
    pub(crate) fn patient_clients(&self) -> Clients {
        clients(&self.herald.gateway(), Duration::from_secs(30))
    }

    /// Keeps the directory with logs and data; returns its path.
    pub(crate) fn keep_dir(&mut self) -> PathBuf {
        self.dir.disable_cleanup(true);
        self.dir.path().to_owned()
    }
}

/// Clients of the mesh at a gateway, which give up a connection that is silent for longer.
fn clients(gateway: &Gateway, silence_max: Duration) -> Clients {
    let connect = |url: &str| {
        let endpoint = Endpoint::from_shared(url.to_owned())
            .expect("an address")
            .connect_timeout(Duration::from_secs(2))
            // A stopped server doesn't close its connections.
            .http2_keep_alive_interval(Duration::from_secs(2))
            .keep_alive_timeout(silence_max);
        endpoint.connect_lazy()
    };
    Clients {
        channel: connect(&gateway.url),
        operators: connect(&gateway.operator_url),
    }
}

/// Sends a signal to a child of the suite.
pub(crate) fn signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .expect("a process id");
    // Another fault may have killed it already.
    let _ = rustix::process::kill_process(pid, signal);
}

/// Environment variables of the mesh: small limits and short times, so that a short run exercises all code paths.
fn variables(settings: impl Iterator<Item = (String, String)>) -> Vec<(String, String)> {
    let usual = [
        ("TOPOLOGY__DEDUPE_WINDOW_SECONDS", DEDUPE_WINDOW.as_secs()),
        ("GATEWAY__HEARTBEAT_MS", ms(HEARTBEAT)),
        ("GATEWAY__DELETE_WAIT_MS", ms(DELETE_WAIT)),
        // A Retry-After of two seconds exceeds this, so the message moves to LATER.
        ("TOPOLOGY__CONSUMERS__PUSH__HOLD_MS_MAX", 1_500),
        // No timeline is trimmed: the checker reads complete timelines.
        ("STORE__TIMELINES__ENTRIES_MAX", 1_000_000),
        // Several chunks per post, and slices for the big author.
        ("GRAPH__EXPORT_PAGE_FOLLOWERS", 64),
        ("FANOUT__SLICE_RECIPIENTS_MAX", 1_024),
        ("FANOUT__PUSH_CHUNK_RECIPIENTS_MAX", 16),
        // Few pushes are repeated after a crash.
        ("PUSH__SETTLE_SENDS_MAX", 8),
        ("PUSH__SENDS_PER_HOST_MAX", 32),
        // A machine that is busy with other work answers within this time: no fault excuses the repeat after it.
        ("PUSH__REQUEST_TIMEOUT_MS", 4_000),
        ("PUSH__CONNECT_TIMEOUT_MS", 2_000),
        ("ANALYTICS__BATCH_AGE_MS_MAX", 200),
    ];
    let usual = usual.map(|(name, value)| (format!("HERALD_{name}"), value.to_string()));
    let soon = ack_wait_variables(ACK_WAIT.as_secs());
    let retries = soon.clone().into_iter().flat_map(|(name, _)| {
        [("BASE", 100), ("MAX", 2_000)].map(|(which, ms)| {
            let name = name.replace("ACK_WAIT_SECONDS", &format!("RETRY__DELAY_MS_{which}"));
            (name, ms.to_string())
        })
    });
    usual
        .into_iter()
        .chain(retries)
        .chain(soon)
        .chain(settings)
        .collect()
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).expect("some seconds")
}
