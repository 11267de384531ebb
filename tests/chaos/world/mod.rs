//! The mesh under test: real processes that can be hurt one by one.
//!
//! ```text
//! writers, readers ─gRPC→ herald ─→ toxiproxy ─→ nats-server
//!                            └────→ toxiproxy ─→ push sink
//! ```
//! `herald` is a whole mesh (`herald up`) in a process of its own that is started again whenever it dies, as a cluster's
//! kubelet would. nats-server is the suite's own child, so that either can be killed alone.

mod herald;
mod nats;
mod port;
mod proxy;
mod sink;

use std::{path::PathBuf, time::Duration};

use harness::{Clients, ack_wait_variables};
use rustix::process::{Pid, Signal};
use tempfile::TempDir;
use tonic::transport::Endpoint;

pub(crate) use self::{
    herald::{Herald, Life, Settings},
    nats::{Nats, name},
    port::free_port,
    proxy::{Proxy, Toxic, Toxiproxy},
    sink::{PushSink, Receipts},
};
use crate::log::Log;

/// Redelivery comes this soon, so that a run sees many of them; the default is 30 s.
pub(crate) const ACK_WAIT: Duration = Duration::from_secs(2);
/// The broker forgets message ids this soon, so that a run has retries on both sides of it; the default is 2 min.
pub(crate) const DEDUPE_WINDOW: Duration = Duration::from_secs(12);

/// A watch says this often that it is alive, and looks for what it was not told of; the default is 15 s.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(2);
/// How long the answer to a deletion waits for the archive: longer than any caller, so that an answer means that readers see
/// it no more. The default is 5 s, and then an answer means only that it is durable.
const DELETE_WAIT: Duration = Duration::from_secs(30);

/// What kind of mesh.
#[derive(Debug, Clone, Default)]
pub(crate) struct Options {
    /// The first life's failpoints.
    pub(crate) life: Life,
    /// Failpoints of every life, for negative controls.
    pub(crate) sabotage: String,
    /// How many servers the broker's cluster has; 0: it is none.
    pub(crate) cluster: usize,
    /// Settings that replace the usual ones.
    pub(crate) settings: Vec<(String, String)>,
}

impl Options {
    /// A cluster of three servers, and each stream on all of them.
    pub(crate) fn cluster() -> Self {
        Self {
            cluster: 3,
            settings: vec![("HERALD_TOPOLOGY__REPLICAS".into(), "3".into())],
            ..Self::default()
        }
    }
}

/// All processes of one mesh. Dropping it ends them.
pub(crate) struct World {
    pub(crate) log: Log,
    pub(crate) herald: Herald,
    pub(crate) nats: Nats,
    /// Between herald and a single nats-server, when there is a toxiproxy.
    pub(crate) nats_proxy: Option<Proxy>,
    pub(crate) sink: PushSink,
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
        let (nats_proxy, nats_url) = match (&toxiproxy, nats.servers.as_slice()) {
            (Some(toxiproxy), [server]) => {
                let upstream = format!("127.0.0.1:{}", server.port());
                let proxy = toxiproxy.proxy("nats", &upstream).await;
                let url = format!("nats://{}", proxy.address());
                (Some(proxy), url)
            }
            _ => (None, nats.urls()),
        };
        let sink = PushSink::start(toxiproxy.as_ref()).await;
        let herald = Herald::start(
            log,
            Settings {
                dir: dir.path().to_owned(),
                nats_url,
                variables: variables(options.settings),
                sabotage: options.sabotage,
                life: options.life,
            },
        )
        .await;
        Self {
            log: log.clone(),
            herald,
            nats,
            nats_proxy,
            sink,
            dir,
        }
    }

    /// Clients that connect when they are used, and again after a fault.
    pub(crate) fn clients(&self) -> Clients {
        clients(&self.herald.url())
    }

    /// Keeps the logs and data for whoever wants to know why; where they are.
    pub(crate) fn keep(&mut self) -> PathBuf {
        self.dir.disable_cleanup(true);
        self.dir.path().to_owned()
    }
}

/// Clients of the mesh at a URL.
pub(crate) fn clients(url: &str) -> Clients {
    let endpoint = Endpoint::from_shared(url.to_owned())
        .expect("an address")
        .connect_timeout(Duration::from_secs(2))
        // A server that is stopped answers nothing, not even that it is gone.
        .http2_keep_alive_interval(Duration::from_secs(2))
        .keep_alive_timeout(Duration::from_secs(2));
    Clients {
        channel: endpoint.connect_lazy(),
    }
}

/// Sends a signal to a process that this suite started.
pub(crate) fn signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .expect("a process id");
    // It may have died of another fault a moment ago.
    let _ = rustix::process::kill_process(pid, signal);
}

/// The settings of the mesh: everything small or soon, so that a short run goes through all of it.
fn variables(settings: Vec<(String, String)>) -> Vec<(String, String)> {
    let usual = [
        ("TOPOLOGY__DEDUPE_WINDOW_SECONDS", DEDUPE_WINDOW.as_secs()),
        ("GATEWAY__HEARTBEAT_MS", ms(HEARTBEAT)),
        ("GATEWAY__DELETE_WAIT_MS", ms(DELETE_WAIT)),
        // A Retry-After of two seconds waits in the stream.
        ("TOPOLOGY__CONSUMERS__PUSH__HOLD_MS_MAX", 1_500),
        // Every timeline is read whole.
        ("STORE__TIMELINES__ENTRIES_MAX", 1_000_000),
        // Several chunks a post, and slices for the big author.
        ("GRAPH__EXPORT_PAGE_FOLLOWERS", 64),
        ("FANOUT__SLICE_RECIPIENTS_MAX", 1_024),
        ("FANOUT__PUSH_CHUNK_RECIPIENTS_MAX", 16),
        // Little is sent again after a crash.
        ("PUSH__SETTLE_SENDS_MAX", 8),
        ("PUSH__SENDS_PER_HOST_MAX", 32),
        ("PUSH__REQUEST_TIMEOUT_MS", 1_000),
        ("PUSH__CONNECT_TIMEOUT_MS", 500),
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
