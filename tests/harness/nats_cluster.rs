//! A cluster of nats-servers whose members are lost, replaced, or come back with an older state.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use async_nats::{Client, ConnectOptions, ServerAddr, jetstream};
use futures::future::join_all;
use herald_local_nats::{Config, Server};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use crate::free_port;

const START_LIMIT: Duration = Duration::from_mins(1);
const CONNECT_LIMIT: Duration = Duration::from_secs(30);
const REQUEST_LIMIT: Duration = Duration::from_secs(5);
/// Time limit of a change of the cluster's members, including elections.
const CHANGE_LIMIT: Duration = Duration::from_mins(1);
const INTERVAL: Duration = Duration::from_millis(250);

/// Where a server keeps its streams, in its directory.
const STORE: &str = "jetstream";
/// User of the system account, who may remove servers. All others connect without a user.
const SYSTEM_USER: &str = "system";
/// Part of the name that a server gives to one that it hasn't met.
const UNKNOWN: &str = "unknown";
/// JetStream's error code: the server is not a member of the cluster.
const NOT_A_MEMBER: u64 = 10_044;

/// Some nats-servers that replicate streams, or a single one. Each place in the cluster keeps its ports, whichever server has it.
pub struct NatsCluster {
    dir: PathBuf,
    places: Vec<Place>,
    /// Servers that took another one's place, and spare ones: each has a name of its own.
    later_servers: AtomicUsize,
}

struct Place {
    name: String,
    server: Server,
    /// The `cluster` block of the configuration.
    extra: String,
    route_port: u16,
}

/// A copy of what a server had stored, or of a part of it.
pub struct StoreCopy {
    dir: tempfile::TempDir,
    /// The directories that were copied, in the server's directory.
    parts: Vec<PathBuf>,
}

impl NatsCluster {
    /// Starts a server for each port for routes. `address` tells where one server reaches another.
    pub async fn start(dir: &Path, route_ports: &[u16], address: impl Fn(usize, usize) -> String) -> Self {
        let size = route_ports.len();
        let starts = route_ports.iter().enumerate().map(|(n, route_port)| {
            let others = (0..size).filter(|other| *other != n);
            let extra = cluster_block(*route_port, others.map(|other| address(n, other)));
            async move {
                let name = format!("nats-{n}");
                let server = start_server(dir, &name, free_port(), free_port(), extra.clone()).await;
                Place {
                    name,
                    server,
                    extra,
                    route_port: *route_port,
                }
            }
        });
        Self {
            dir: dir.to_owned(),
            places: join_all(starts).await,
            later_servers: AtomicUsize::new(0),
        }
    }

    /// Starts servers that reach each other directly.
    pub async fn start_direct(dir: &Path, size: usize) -> Self {
        let ports: Vec<u16> = (0..size).map(|_| free_port()).collect();
        Self::start(dir, &ports, |_, to| format!("127.0.0.1:{}", ports[to])).await
    }

    /// Number of places.
    pub fn size(&self) -> usize {
        self.places.len()
    }

    /// Name of the server at a place.
    pub fn name(&self, place: usize) -> &str {
        &self.places[place].name
    }

    /// URLs of all servers for clients, separated by commas.
    pub fn urls(&self) -> String {
        let urls = self.places.iter().map(|place| place.server.client_url());
        urls.collect::<Vec<_>>().join(",")
    }

    /// URLs of the monitoring APIs of all servers.
    pub fn monitor_urls(&self) -> Vec<String> {
        let places = self.places.iter();
        places.map(|place| place.server.monitor_url()).collect()
    }

    /// Connects to any server.
    ///
    /// # Errors
    /// No server accepts a connection in time.
    pub async fn client(&self) -> Result<Client, async_nats::Error> {
        self.connect(ConnectOptions::new(), None).await
    }

    /// Connects to any server but the one at the place `without`, which doesn't answer.
    async fn connect(
        &self,
        options: ConnectOptions,
        without: Option<usize>,
    ) -> Result<Client, async_nats::Error> {
        let places = self.places.iter().enumerate();
        let places = places.filter(|(n, _)| Some(*n) != without);
        let urls = places.map(|(_, place)| place.server.client_url().parse());
        let servers: Vec<ServerAddr> = urls.collect::<Result<_, _>>()?;
        let connecting = options.retry_on_initial_connect().connect(servers);
        Ok(timeout(CONNECT_LIMIT, connecting).await??)
    }

    /// The place of the server that leads a stream.
    pub async fn leader(&self, stream: &str) -> Option<usize> {
        let broker = jetstream::new(self.client().await.ok()?);
        let stream = broker.get_stream(stream).await.ok()?;
        let leader = stream.cached_info().cluster.as_ref()?.leader.clone()?;
        self.places.iter().position(|place| place.name == leader)
    }

    /// Waits until a stream has a leader that answers; its place. An election can be running also when all replicas are
    /// complete.
    ///
    /// # Errors
    /// There is none after a minute.
    pub async fn wait_leader(&self, stream: &str) -> Result<usize, String> {
        let started = Instant::now();
        loop {
            match self.leader(stream).await {
                Some(leader) => return Ok(leader),
                None if started.elapsed() > CHANGE_LIMIT => return Err(format!("{stream} has no leader")),
                None => sleep(INTERVAL).await,
            }
        }
    }

    /// Sends SIGSTOP or SIGCONT to a server.
    pub fn freeze(&self, place: usize, selected: bool) {
        let signal = if selected { Signal::STOP } else { Signal::CONT };
        let pid = i32::try_from(self.places[place].server.pid())
            .ok()
            .and_then(Pid::from_raw)
            .expect("a process id");
        // Another fault may have killed it already.
        let _ = kill_process(pid, signal);
    }

    /// Sends SIGKILL to a server.
    pub async fn kill(&mut self, place: usize) {
        let killed = self.places[place].server.kill().await;
        killed.expect("nats-server can be killed");
    }

    /// Starts a killed server again.
    pub async fn restart(&mut self, place: usize) {
        let started = self.places[place].server.restart().await;
        started.expect("nats-server starts again");
    }

    /// Starts killed servers that need each other for a majority.
    pub async fn restart_together(&mut self, places: [usize; 2]) {
        let restarts = self.places.iter_mut().enumerate();
        let restarts = restarts
            .filter(|(place, _)| places.contains(place))
            .map(|(_, place)| place.server.restart());
        for started in join_all(restarts).await {
            started.expect("nats-server starts again");
        }
    }

    /// Copies what a server has stored, file by file. It may run: then the copy is as torn as a disk after a power loss.
    pub async fn copy_store(&self, place: usize) -> StoreCopy {
        self.copy_parts(place, vec![STORE.into()]).await
    }

    /// Copies what a server has stored of a stream and of the log of its group, without its consumers; see
    /// [`NatsCluster::copy_store`].
    pub async fn copy_stream(&self, place: usize, stream: &str) -> StoreCopy {
        let client = self.client().await.expect("a server answers");
        let info = request(&client, &format!("$JS.API.STREAM.INFO.{stream}"), &json!({})).await;
        let info = info.expect("the leader answers");
        let group = info["cluster"]["raft_group"]
            .as_str()
            .expect("the stream has a group");
        // nats-server makes a directory `jetstream` in its `store_dir`.
        let messages = format!("{STORE}/jetstream/$G/streams/{stream}/msgs");
        let log = format!("{STORE}/jetstream/$SYS/_js_/{group}");
        self.copy_parts(place, vec![messages.into(), log.into()]).await
    }

    async fn copy_parts(&self, place: usize, parts: Vec<PathBuf>) -> StoreCopy {
        let dir = tempfile::tempdir_in(&self.dir).expect("a temporary directory");
        for part in &parts {
            let (from, to) = (self.places[place].server.dir().join(part), dir.path().join(part));
            assert!(from.is_dir(), "{} is no directory", from.display());
            let copied = tokio::task::spawn_blocking(move || copy_dir(&from, &to)).await;
            copied.expect("the copy ends").expect("a store can be copied");
        }
        StoreCopy { dir, parts }
    }

    /// Puts an older state in the place of what a killed server has stored.
    pub fn put_store(&self, place: usize, copy: &StoreCopy) {
        for part in &copy.parts {
            let to = self.places[place].server.dir().join(part);
            fs::remove_dir_all(&to).expect("a store can be removed");
            fs::rename(copy.dir.path().join(part), to).expect("a store can be moved");
        }
    }

    /// Removes what a killed server has stored.
    pub fn remove_store(&self, place: usize) {
        fs::remove_dir_all(self.places[place].server.dir().join(STORE)).expect("a store can be removed");
    }

    /// Starts an empty server with another name at the place of a killed one.
    pub async fn replace(&mut self, place: usize) {
        let name = self.new_name();
        let old = &self.places[place];
        let (port, monitor_port) = (old.server.port(), old.server.monitor_port());
        let server = start_server(&self.dir, &name, port, monitor_port, old.extra.clone()).await;
        let place = &mut self.places[place];
        (place.name, place.server) = (name, server);
    }

    /// Starts one more server, which has no place: no client connects to it. Returns its name, too.
    pub async fn start_spare(&self) -> (String, Server) {
        let name = self.new_name();
        let others = self.places.iter();
        let others = others.map(|place| format!("127.0.0.1:{}", place.route_port));
        let extra = cluster_block(free_port(), others);
        let server = start_server(&self.dir, &name, free_port(), free_port(), extra).await;
        (name, server)
    }

    fn new_name(&self) -> String {
        let later = self.later_servers.fetch_add(1, Ordering::Relaxed);
        format!("nats-{}", self.places.len() + later)
    }

    /// Removes a server that is lost for good from the cluster: its streams are placed on other servers.
    pub async fn remove_server(&self, name: &str) {
        let options = ConnectOptions::with_user_and_password(SYSTEM_USER.into(), SYSTEM_USER.into());
        let client = self.connect(options, None).await.expect("a server answers");
        let started = Instant::now();
        let mut asked = 0;
        loop {
            let answer = request(&client, "$JS.API.SERVER.REMOVE", &json!({ "peer": name })).await;
            asked += 1;
            match &answer {
                Ok(answer) if answer["success"] == true => return,
                // The answer to an earlier request was lost.
                Ok(answer) if asked > 1 && answer["error"]["err_code"] == NOT_A_MEMBER => return,
                // A leader is elected, or another change is not done yet.
                _ => {}
            }
            assert!(
                started.elapsed() < CHANGE_LIMIT,
                "{name} can't be removed: {answer:?}"
            );
            sleep(INTERVAL).await;
        }
    }

    /// Takes a stream away from a server, which lives: the stream is placed on another one.
    ///
    /// # Errors
    /// The refusal of the cluster: no other server can have the stream.
    pub async fn remove_peer(&self, stream: &str, name: &str) -> Result<(), Value> {
        let client = self.client().await.expect("a server answers");
        let subject = format!("$JS.API.STREAM.PEER.REMOVE.{stream}");
        let started = Instant::now();
        loop {
            match request(&client, &subject, &json!({ "peer": name })).await {
                Ok(answer) if answer["success"] == true => return Ok(()),
                Ok(answer) => return Err(answer["error"].clone()),
                Err(error) => assert!(started.elapsed() < CHANGE_LIMIT, "{subject}: {error}"),
            }
            sleep(INTERVAL).await;
        }
    }

    /// Makes the leader of a stream append an entry to the log of its group, while the server at the place `without` is down.
    /// The entry is a purge of a subject that no message has.
    pub async fn append_entry(&self, stream: &str, without: usize) {
        let client = self.connect(ConnectOptions::new(), Some(without)).await;
        let client = client.expect("a server answers");
        let subject = format!("$JS.API.STREAM.PURGE.{stream}");
        let answer = request(&client, &subject, &json!({ "filter": "tests.no.such.subject" })).await;
        let answer = answer.expect("the leader answers");
        assert_eq!(answer["success"], true, "{answer}");
    }

    /// Waits until each stream and consumer has a leader and all its replicas have caught up, on as many servers as there
    /// are places. The server at the place `without` is down and left out.
    ///
    /// # Errors
    /// What is missing after a minute.
    pub async fn wait_complete(&self, without: Option<usize>) -> Result<(), String> {
        let client = self.connect(ConnectOptions::new(), without).await;
        let client = client.map_err(|error| error.to_string())?;
        let without = without.map(|place| self.name(place));
        let started = Instant::now();
        loop {
            let found = find_incomplete(&client, without, self.places.len()).await;
            match found.map_err(|error| error.to_string()) {
                Ok(None) => return Ok(()),
                Ok(Some(what)) | Err(what) if started.elapsed() > CHANGE_LIMIT => return Err(what),
                Ok(Some(_)) | Err(_) => sleep(INTERVAL).await,
            }
        }
    }
}

async fn start_server(dir: &Path, name: &str, port: u16, monitor_port: u16, extra: String) -> Server {
    let config = Config {
        name: Some(name.to_owned()),
        port,
        monitor_port,
        start_limit: START_LIMIT,
        extra,
        ..Config::in_dir(dir.join(name))
    };
    Server::start(config).await.expect("a nats-server starts")
}

fn cluster_block(route_port: u16, others: impl Iterator<Item = String>) -> String {
    let routes: Vec<String> = others
        .map(|address| format!("\"nats-route://{address}\""))
        .collect();
    if routes.is_empty() {
        return String::new();
    }
    // Advertise an unreachable address, so that servers have no links besides these routes.
    format!(
        "cluster {{\n  name: tests\n  listen: \"127.0.0.1:{route_port}\"\n  advertise: \"127.0.0.1:1\"\n  routes: \
         [{}]\n}}\naccounts {{ $SYS {{ users: [{{ user: {SYSTEM_USER}, password: {SYSTEM_USER} }}] }} }}\n",
        routes.join(", ")
    )
}

/// The first stream or consumer without a leader, or without `size` current replicas.
async fn find_incomplete(
    client: &Client,
    without: Option<&str>,
    size: usize,
) -> Result<Option<String>, async_nats::Error> {
    let streams = request(client, "$JS.API.STREAM.LIST", &json!({})).await?;
    let streams = listed(&streams, "streams")?;
    for stream in streams {
        let name = stream["config"]["name"].as_str().unwrap_or_default();
        if let Some(why) = why_incomplete(&stream["cluster"], without, size) {
            return Ok(Some(format!("stream {name}: {why}")));
        }
        let consumers = request(client, &format!("$JS.API.CONSUMER.LIST.{name}"), &json!({})).await?;
        let count = stream["state"]["consumer_count"].as_u64().unwrap_or_default();
        let consumers = listed(&consumers, "consumers")?;
        if (consumers.len() as u64) < count {
            return Ok(Some(format!("stream {name}: only some consumers answer")));
        }
        for consumer in consumers {
            if let Some(why) = why_incomplete(&consumer["cluster"], without, size) {
                return Ok(Some(format!("consumer {}: {why}", consumer["name"])));
            }
        }
    }
    Ok(None)
}

/// The items of a complete list.
fn listed<'a>(answer: &'a Value, items: &str) -> Result<&'a Vec<Value>, async_nats::Error> {
    let found = answer[items].as_array();
    let found = found.filter(|found| answer["total"].as_u64() == Some(found.len() as u64));
    found.ok_or_else(|| format!("not all {items} are listed: {answer}").into())
}

fn why_incomplete(group: &Value, without: Option<&str>, size: usize) -> Option<String> {
    if group["leader"]
        .as_str()
        .is_none_or(|leader| Some(leader) == without)
    {
        return Some(format!("no leader: {group}"));
    }
    let replicas = group["replicas"].as_array().map_or(&[][..], Vec::as_slice);
    // One is the leader.
    let moving = !group["desired"].is_null() && without.is_none();
    // A server that has started since doesn't know the name of one that doesn't answer.
    let is_left_out = |name: &str| without.is_some_and(|without| name == without || name.contains(UNKNOWN));
    let mut lagging = replicas.iter().filter(|replica| replica["current"] != true);
    let lags = lagging.any(|replica| !replica["name"].as_str().is_some_and(is_left_out));
    if replicas.len() + 1 != size || moving || lags {
        return Some(format!("replicas are missing, lag, or move: {group}"));
    }
    None
}

async fn request(client: &Client, subject: &str, body: &Value) -> Result<Value, async_nats::Error> {
    let request = client.request(subject.to_owned(), body.to_string().into());
    let answer = timeout(REQUEST_LIMIT, request).await??;
    Ok(serde_json::from_slice(&answer.payload)?)
}

/// Copies a directory. What disappears meanwhile is left out.
fn copy_dir(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    let entries = match fs::read_dir(from) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let target = to.join(entry.file_name());
        let copied = match entry.file_type() {
            Ok(kind) if kind.is_dir() => copy_dir(&entry.path(), &target),
            Ok(_) => fs::copy(entry.path(), target).map(drop),
            Err(error) => Err(error),
        };
        match copied {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            copied => copied?,
        }
    }
    Ok(())
}
