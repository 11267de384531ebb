//! A private PostgreSQL server.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use herald_local_process::{Log, Process, command};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};
use tokio::time::Instant;

use crate::directory::Directory;
use crate::error::{Error, Result};
use crate::port;
use crate::postgres_run::Run;
use crate::program::{User, postgres_bin};
use crate::start::{self, Limits};

const NAME: &str = "PostgreSQL";
const SUPERUSER: &str = "herald";
const START_LIMITS: Limits = Limits {
    start: Duration::from_mins(2),
    poll: Duration::from_millis(20),
};

/// How a server is started. The default is for tests: nothing is synced to disk, so a loss of power would lose data,
/// but a kill of the server loses nothing.
#[derive(Debug, Clone)]
pub struct PostgresOptions {
    /// Whether a commit waits until the disk has it.
    pub fsync: bool,
    /// Limit of connections.
    pub max_connections: u32,
    /// Password of the superuser; `None` trusts every connection from loopback.
    pub password: Option<String>,
    /// Further settings of `postgresql.conf`, as name and value.
    pub settings: Vec<(String, String)>,
}

impl Default for PostgresOptions {
    fn default() -> Self {
        Self {
            fsync: false,
            max_connections: 200,
            password: None,
            settings: Vec::new(),
        }
    }
}

/// A PostgreSQL server on loopback. Dropping it ends its processes and removes its data.
#[derive(Debug)]
pub struct Postgres {
    // Before the directory, because the processes must end before their files are removed.
    run: Mutex<Arc<Run>>,
    options: PostgresOptions,
    bin: PathBuf,
    user: Option<User>,
    port: u16,
    dir: Directory,
}

/// All connections of a server. Dropping it closes them.
#[derive(Debug)]
pub struct Occupied {
    _connections: Vec<PgConnection>,
}

impl Postgres {
    /// Starts a server with the default options.
    pub async fn start() -> Result<Self> {
        Self::start_with(PostgresOptions::default()).await
    }

    /// Starts a server and waits until it accepts connections.
    pub async fn start_with(options: PostgresOptions) -> Result<Self> {
        start::start(|| Self::start_once(options.clone())).await
    }

    async fn start_once(options: PostgresOptions) -> Result<Self> {
        let bin = postgres_bin()?;
        let user = User::unprivileged()?;
        let dir = Directory::create("herald-postgres-")?;
        if let Some(user) = user {
            user.own(dir.path())?;
        }
        init(&bin, user, dir.path(), options.password.as_deref()).await?;
        let port = port::free()?;
        let run = spawn(&bin, user, &dir, &options, port)?;
        let server = Self {
            run: Mutex::new(Arc::new(run)),
            options,
            bin,
            user,
            port,
            dir,
        };
        server.wait_ready().await?;
        Ok(server)
    }

    /// URL of the server's first database, which is empty.
    pub fn url(&self) -> String {
        self.url_of("postgres")
    }

    /// Makes an empty database and returns its URL. Names are lower-case letters, digits and underscores.
    pub async fn database(&self, name: &str) -> Result<String> {
        self.execute(format!("CREATE DATABASE {name}")).await?;
        Ok(self.url_of(name))
    }

    /// Makes a copy of a database and returns its URL. Nobody may be connected to the copied one.
    pub async fn copy_of(&self, template: &str, name: &str) -> Result<String> {
        self.execute(format!("CREATE DATABASE {name} TEMPLATE {template}"))
            .await?;
        Ok(self.url_of(name))
    }

    /// Removes a database, ending its connections.
    pub async fn drop_database(&self, name: &str) -> Result<()> {
        self.execute(format!("DROP DATABASE {name} WITH (FORCE)")).await
    }

    /// URL of a database, whether it exists or not.
    pub fn url_of(&self, database: &str) -> String {
        let password = self
            .options
            .password
            .as_ref()
            .map(|password| format!(":{password}"));
        format!(
            "postgres://{SUPERUSER}{}@127.0.0.1:{}/{database}",
            password.unwrap_or_default(),
            self.port
        )
    }

    /// Runs statements in a database.
    pub async fn run_in(&self, database: &str, statements: &str) -> Result<()> {
        let failed = |error| Error::postgres(format!("run {statements:?}"))(error);
        let mut connection = self.connect_to(database).await.map_err(failed)?;
        // The text is the caller's, which is a test.
        connection
            .execute(sqlx::raw_sql(AssertSqlSafe(statements.to_owned())))
            .await
            .map_err(failed)?;
        connection.close().await.map_err(failed)
    }

    /// Takes all connections of the server, also those of programs that are connected now.
    pub async fn occupy(&self) -> Result<Occupied> {
        const END_OTHERS: &str = "
            SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
            WHERE backend_type = 'client backend' AND pid <> ALL($1)";
        let failed = |error| Error::postgres("take all connections")(error);
        let mut first = self.connect().await.map_err(failed)?;
        let mut connections = Vec::new();
        let mut pids = vec![pid_of(&mut first).await.map_err(failed)?];
        let deadline = Instant::now() + START_LIMITS.start;
        loop {
            while let Ok(mut connection) = self.connect().await {
                pids.push(pid_of(&mut connection).await.map_err(failed)?);
                connections.push(connection);
            }
            let others: i64 = sqlx::query_scalar(END_OTHERS)
                .bind(&pids)
                .fetch_one(&mut first)
                .await
                .map_err(failed)?;
            if others == 0 {
                connections.push(first);
                return Ok(Occupied {
                    _connections: connections,
                });
            }
            if Instant::now() >= deadline {
                return Err(Error::NotReady {
                    program: NAME,
                    limit: START_LIMITS.start,
                    reason: "other programs connect again and again".into(),
                    log: self.log_tail(),
                });
            }
        }
    }

    /// Stops the server: it ends its sessions and writes a checkpoint.
    pub async fn stop(&self) -> Result<()> {
        self.run().stop().await
    }

    /// Kills all processes of the server, like a crash of its machine that leaves the disk's cache intact.
    pub async fn kill(&self) -> Result<()> {
        self.run().kill().await
    }

    /// Stops all processes where they are (SIGSTOP): connections stay open and nothing answers.
    pub async fn pause(&self) -> Result<()> {
        self.run().pause().await
    }

    /// Lets the paused processes go on.
    pub fn resume(&self) -> Result<()> {
        self.run().resume()
    }

    /// Starts the server again, at the same port with the same data, and waits until it accepts connections. A running
    /// server is stopped first.
    pub async fn restart(&self) -> Result<()> {
        self.stop().await?;
        // Left by a kill. Its pid can belong to another process now, which PostgreSQL would take for a running server.
        match std::fs::remove_file(data(self.dir.path()).join("postmaster.pid")) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::Io {
                    action: "remove the pid file of PostgreSQL".into(),
                    source,
                });
            }
            _ => {}
        }
        let run = Arc::new(spawn(&self.bin, self.user, &self.dir, &self.options, self.port)?);
        *self.run.lock().unwrap_or_else(PoisonError::into_inner) = run;
        self.wait_ready().await
    }

    /// Port of the server.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Process id of the server's first process.
    pub fn pid(&self) -> u32 {
        self.run().process.pid()
    }

    /// Directory of the server's files.
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

    async fn execute(&self, statement: String) -> Result<()> {
        let failed = |error| Error::postgres(format!("run {statement:?}"))(error);
        let mut connection = self.connect().await.map_err(failed)?;
        // The text is this crate's, with a name that the test chose.
        connection
            .execute(AssertSqlSafe(statement.clone()))
            .await
            .map_err(failed)?;
        connection.close().await.map_err(failed)
    }

    async fn connect(&self) -> sqlx::Result<PgConnection> {
        self.connect_to("postgres").await
    }

    async fn connect_to(&self, database: &str) -> sqlx::Result<PgConnection> {
        let options: PgConnectOptions = self.url_of(database).parse()?;
        PgConnection::connect_with(&options).await
    }

    async fn wait_ready(&self) -> Result<()> {
        let run = self.run();
        let probe = || async {
            match self.connect().await {
                Ok(connection) => {
                    // An error changes nothing: the server has answered.
                    let _ = connection.close().await;
                    Ok(())
                }
                Err(error) => Err(error.to_string()),
            }
        };
        start::wait_ready(NAME, (&run.process, &run.log), &START_LIMITS, probe).await
    }
}

async fn pid_of(connection: &mut PgConnection) -> sqlx::Result<i32> {
    sqlx::query_scalar("SELECT pg_backend_pid()")
        .fetch_one(connection)
        .await
}

fn data(dir: &Path) -> PathBuf {
    dir.join("data")
}

/// As the unprivileged user, if this process is root.
fn as_user(command: &mut Command, user: Option<User>) {
    if let Some(user) = user {
        command.uid(user.uid).gid(user.gid);
    }
}

async fn init(bin: &Path, user: Option<User>, dir: &Path, password: Option<&str>) -> Result<()> {
    let mut command = Command::new(bin.join("initdb"));
    command
        .arg("--pgdata")
        .arg(data(dir))
        .args([
            "--username",
            SUPERUSER,
            "--encoding",
            "UTF8",
            "--locale",
            "C",
            "--no-sync",
        ])
        .current_dir(dir)
        .stdin(Stdio::null());
    match password {
        None => command.args(["--auth", "trust"]),
        Some(password) => {
            let file = dir.join("password");
            std::fs::write(&file, password).map_err(Error::io("write the password of PostgreSQL"))?;
            if let Some(user) = user {
                user.own(&file)?;
            }
            command.args(["--auth", "scram-sha-256", "--pwfile"]).arg(file)
        }
    };
    as_user(&mut command, user);
    let output = tokio::process::Command::from(command)
        .kill_on_drop(true)
        .output()
        .await
        .map_err(Error::io("start initdb"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Failed {
        program: "initdb",
        status: output.status,
        output: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

fn spawn(
    bin: &Path,
    user: Option<User>,
    dir: &Directory,
    options: &PostgresOptions,
    port: u16,
) -> Result<Run> {
    let (log, output) =
        Log::open(dir.path().join("postgresql.log")).map_err(Error::io("open the log of PostgreSQL"))?;
    // QUIT ends the server at once, but lets it remove its shared memory.
    let mut command = command(&bin.join("postgres"), Some("QUIT"));
    command.arg("-D").arg(data(dir.path()));
    let fsync = if options.fsync { "on" } else { "off" };
    let fixed = [
        ("port", port.to_string()),
        ("listen_addresses", "127.0.0.1".into()),
        ("unix_socket_directories", String::new()),
        ("max_connections", options.max_connections.to_string()),
        ("fsync", fsync.into()),
        ("full_page_writes", fsync.into()),
        ("max_wal_size", "2GB".into()),
        ("log_checkpoints", "off".into()),
    ];
    let fixed = fixed.iter().map(|(name, value)| (*name, value));
    let further = options
        .settings
        .iter()
        .map(|(name, value)| (name.as_str(), value));
    for (name, value) in fixed.chain(further) {
        command.arg("-c").arg(format!("{name}={value}"));
    }
    command
        .current_dir(dir.path())
        .stdout(
            output
                .try_clone()
                .map_err(Error::io("share the log of PostgreSQL"))?,
        )
        .stderr(output);
    as_user(&mut command, user);
    let process = Process::spawn("postgres", command).map_err(Error::io("start postgres"))?;
    dir.serves(process.pid())?;
    Ok(Run::new(process, log))
}
