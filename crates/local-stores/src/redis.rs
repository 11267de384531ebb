//! A private Redis or Valkey server.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use herald_local_process::{Log, Process, Signal, command};
use redis::aio::MultiplexedConnection;

use crate::directory::Directory;
use crate::error::{Error, Result};
use crate::port;
use crate::program::redis_server;
use crate::start::{self, Limits};

const NAME: &str = "the Redis server";
const START_LIMITS: Limits = Limits {
    start: Duration::from_mins(1),
    poll: Duration::from_millis(10),
};
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// A user of a server.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// Name.
    pub user: String,
    /// Password.
    pub password: String,
}

/// PEM files of a server that has TLS on a port of its own.
#[derive(Debug, Clone)]
pub struct RedisTls {
    /// Certificate chain.
    pub certificate: PathBuf,
    /// Private key of the certificate.
    pub key: PathBuf,
    /// Authorities, with which the nodes of a cluster verify each other.
    pub authorities: PathBuf,
}

/// How a server is started. The default is what Herald advises: an append-only file that is synced each second, and no
/// eviction.
#[derive(Debug, Clone)]
pub struct RedisOptions {
    /// Whether there is an append-only file, synced each second. Without it, a restart loses everything.
    pub append_only: bool,
    /// Limit of memory, bytes.
    pub maxmemory_bytes: Option<u64>,
    /// What happens at the limit of memory.
    pub maxmemory_policy: String,
    /// Port of the server of which this one is a replica.
    pub replica_of: Option<u16>,
    /// The only user that may connect; `None` lets everybody on loopback in.
    pub credentials: Option<Credentials>,
    /// Whether the server is a node of a cluster.
    pub cluster: bool,
    /// TLS, on a port of its own. Clients need no certificate.
    pub tls: Option<RedisTls>,
    /// Further directives of `redis.conf`, as name and value.
    pub settings: Vec<(String, String)>,
}

impl Default for RedisOptions {
    fn default() -> Self {
        Self {
            append_only: true,
            maxmemory_bytes: None,
            maxmemory_policy: "noeviction".into(),
            replica_of: None,
            credentials: None,
            cluster: false,
            tls: None,
            settings: Vec::new(),
        }
    }
}

/// A Redis or Valkey server on loopback. Dropping it ends its process and removes its data.
#[derive(Debug)]
pub struct Redis {
    // Before the directory, because the process must end before its files are removed.
    run: Mutex<Arc<Run>>,
    options: RedisOptions,
    program: PathBuf,
    ports: Ports,
    dir: Directory,
}

#[derive(Debug)]
struct Run {
    process: Process,
    log: Log,
}

#[derive(Debug, Clone, Copy)]
struct Ports {
    client: u16,
    /// For the other nodes of a cluster.
    bus: u16,
    /// With TLS, if the server has it.
    tls: u16,
}

impl Redis {
    /// Starts a server and waits until it answers.
    pub async fn start(options: RedisOptions) -> Result<Self> {
        start::start(|| Self::start_once(options.clone())).await
    }

    async fn start_once(options: RedisOptions) -> Result<Self> {
        let program = redis_server()?;
        let dir = Directory::create("herald-redis-")?;
        let ports = Ports {
            client: port::free()?,
            bus: port::free()?,
            tls: port::free()?,
        };
        let run = spawn(&program, &dir, &options, ports)?;
        let server = Self {
            run: Mutex::new(Arc::new(run)),
            options,
            program,
            ports,
            dir,
        };
        server.wait_ready().await?;
        Ok(server)
    }

    /// URL of the server, with the user and password if there are any.
    pub fn url(&self) -> String {
        let user = self.options.credentials.as_ref();
        let user = user.map(|user| format!("{}:{}@", user.user, user.password));
        format!(
            "redis://{}127.0.0.1:{}",
            user.unwrap_or_default(),
            self.ports.client
        )
    }

    /// URL of the port with TLS, without a user.
    pub fn tls_url(&self) -> String {
        format!("rediss://127.0.0.1:{}", self.ports.tls)
    }

    /// Stops the server: it syncs its append-only file and exits.
    pub async fn stop(&self) -> Result<()> {
        let run = self.run();
        // A stopped process would not act on the signal.
        run.process
            .signal(Signal::CONT)
            .map_err(Error::io("resume Redis"))?;
        run.process
            .stop(Signal::TERM, STOP_LIMIT)
            .await
            .map(drop)
            .map_err(Error::io("stop Redis"))
    }

    /// Kills the server, like a crash of the process.
    pub async fn kill(&self) -> Result<()> {
        self.run()
            .process
            .kill()
            .await
            .map(drop)
            .map_err(Error::io("kill Redis"))
    }

    /// Stops the process where it is (SIGSTOP): connections stay open and nothing answers.
    pub fn pause(&self) -> Result<()> {
        self.run()
            .process
            .signal(Signal::STOP)
            .map_err(Error::io("pause Redis"))
    }

    /// Lets the paused process go on.
    pub fn resume(&self) -> Result<()> {
        self.run()
            .process
            .signal(Signal::CONT)
            .map_err(Error::io("resume Redis"))
    }

    /// Starts the server again, at the same port with what its append-only file has, and waits until it answers. A
    /// running server is stopped first.
    pub async fn restart(&self) -> Result<()> {
        self.stop().await?;
        let run = Arc::new(spawn(&self.program, &self.dir, &self.options, self.ports)?);
        *self.run.lock().unwrap_or_else(PoisonError::into_inner) = run;
        self.wait_ready().await
    }

    /// Removes all keys.
    pub async fn flush(&self) -> Result<()> {
        self.command(&["FLUSHALL"]).await.map(drop)
    }

    /// Makes the server a replica of the server at this port.
    pub async fn replicate(&self, port: u16) -> Result<()> {
        self.command(&["REPLICAOF", "127.0.0.1", &port.to_string()])
            .await
            .map(drop)
    }

    /// Makes a replica a server of its own, as a fail-over does.
    pub async fn promote(&self) -> Result<()> {
        self.command(&["REPLICAOF", "NO", "ONE"]).await.map(drop)
    }

    /// Runs a command and returns the answer.
    pub async fn command(&self, words: &[&str]) -> Result<redis::Value> {
        let failed = |error| Error::redis(format!("run {:?}", words.join(" ")))(error);
        let mut connection = self.connect().await.map_err(failed)?;
        let mut command = redis::Cmd::new();
        for word in words {
            command.arg(word);
        }
        command.query_async(&mut connection).await.map_err(failed)
    }

    /// Runs a command and returns the answer as text, such as that of INFO.
    pub async fn text(&self, words: &[&str]) -> Result<String> {
        redis::from_redis_value(self.command(words).await?)
            .map_err(redis::RedisError::from)
            .map_err(Error::redis(format!("answer {:?} with text", words.join(" "))))
    }

    /// Port of the server.
    pub fn port(&self) -> u16 {
        self.ports.client
    }

    /// Port for the other nodes of a cluster.
    pub(crate) fn bus_port(&self) -> u16 {
        self.ports.bus
    }

    /// Process id of the server.
    pub fn pid(&self) -> u32 {
        self.run().process.pid()
    }

    /// Directory of the server's files, among them the append-only files.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The last log lines since the start.
    pub fn log_tail(&self) -> String {
        self.run().log.tail()
    }

    fn run(&self) -> Arc<Run> {
        Arc::clone(&self.run.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn connect(&self) -> redis::RedisResult<MultiplexedConnection> {
        let client = redis::Client::open(self.url())?;
        client.get_multiplexed_async_connection().await
    }

    async fn wait_ready(&self) -> Result<()> {
        let run = self.run();
        // A server that still reads its append-only file refuses the command.
        let probe = || async {
            let answer = self.command(&["DBSIZE"]).await;
            answer.map(drop).map_err(|error| {
                std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string)
            })
        };
        start::wait_ready(NAME, (&run.process, &run.log), &START_LIMITS, probe).await
    }
}

fn spawn(program: &Path, dir: &Directory, options: &RedisOptions, ports: Ports) -> Result<Run> {
    let path = dir.path().join("redis.conf");
    std::fs::write(&path, render(options, dir.path(), ports)).map_err(Error::io("write redis.conf"))?;
    let (log, output) =
        Log::open(dir.path().join("redis.log")).map_err(Error::io("open the log of Redis"))?;
    let mut command = command(program, Some("KILL"));
    command
        .arg(path)
        .current_dir(dir.path())
        .stdout(output.try_clone().map_err(Error::io("share the log of Redis"))?)
        .stderr(output);
    let process = Process::spawn("redis-server", command).map_err(Error::io("start the Redis server"))?;
    dir.serves(process.pid())?;
    Ok(Run { process, log })
}

fn render(options: &RedisOptions, dir: &Path, ports: Ports) -> String {
    let mut text = String::new();
    // Writing to a `String` can't fail.
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{name} {value}");
    };
    line("bind", "127.0.0.1");
    line("port", &ports.client.to_string());
    line("dir", &format!("\"{}\"", dir.display()));
    line("save", "\"\"");
    line("appendonly", if options.append_only { "yes" } else { "no" });
    line("appendfsync", "everysec");
    line("maxmemory-policy", &options.maxmemory_policy);
    if let Some(bytes) = options.maxmemory_bytes {
        line("maxmemory", &bytes.to_string());
    }
    if let Some(port) = options.replica_of {
        line("replicaof", &format!("127.0.0.1 {port}"));
        line("repl-diskless-load", "on-empty-db");
    }
    line("repl-diskless-sync-delay", "0");
    if let Some(Credentials { user, password }) = &options.credentials {
        line("user", "default off");
        line("user", &format!("{user} on >{password} ~* &* +@all"));
        line("masteruser", user);
        line("masterauth", password);
    }
    if let Some(tls) = &options.tls {
        line("tls-port", &ports.tls.to_string());
        for (name, file) in [
            ("tls-cert-file", &tls.certificate),
            ("tls-key-file", &tls.key),
            ("tls-ca-cert-file", &tls.authorities),
        ] {
            line(name, &format!("\"{}\"", file.display()));
        }
        line("tls-auth-clients", "no");
        line("tls-cluster", if options.cluster { "yes" } else { "no" });
    }
    if options.cluster {
        line("cluster-enabled", "yes");
        line("cluster-port", &ports.bus.to_string());
        line("cluster-node-timeout", "2000");
    }
    for (name, value) in &options.settings {
        line(name, value);
    }
    text
}
