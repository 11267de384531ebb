//! A complete mesh: `herald up` as a child process.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use herald_proto::v1::{
    GetLagRequest, analytics_service_client::AnalyticsServiceClient,
    audit_service_client::AuditServiceClient, dead_letter_service_client::DeadLetterServiceClient,
    delivery_service_client::DeliveryServiceClient, device_service_client::DeviceServiceClient,
    graph_service_client::GraphServiceClient, mesh_service_client::MeshServiceClient,
    post_service_client::PostServiceClient, preference_service_client::PreferenceServiceClient,
    timeline_service_client::TimelineServiceClient, user_data_service_client::UserDataServiceClient,
};
use rustix::process::{Pid, Signal};
use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};
use tonic::transport::{Channel, Endpoint};

/// Includes the download of nats-server on a machine without one.
const START_LIMIT: Duration = Duration::from_mins(5);
const STOP_LIMIT: Duration = Duration::from_mins(1);

/// Start options of a mesh.
#[derive(Debug, Default, Clone)]
pub struct Options {
    /// Additional arguments of `herald up`.
    pub arguments: Vec<String>,
    /// Parent of the temporary directory; `None` uses the system's default.
    pub parent: Option<PathBuf>,
    /// Environment variables, for example `HERALD_TOPOLOGY__CONSUMERS__PUSH__ACK_WAIT_SECONDS`.
    pub variables: Vec<(String, String)>,
}

/// Environment variables that set the AckWait of every consumer, in seconds.
pub fn ack_wait_variables(seconds: u64) -> Vec<(String, String)> {
    [
        "ARCHIVE",
        "ANALYTICS",
        "FANOUT",
        "SLICE",
        "TIMELINE",
        "PUSH",
        "LATER",
        "REDRIVE",
        "DEADLETTER",
    ]
    .map(|kind| {
        (
            format!("HERALD_TOPOLOGY__CONSUMERS__{kind}__ACK_WAIT_SECONDS"),
            seconds.to_string(),
        )
    })
    .into()
}

#[derive(Debug, Clone, Deserialize)]
struct Ready {
    event: String,
    grpc: String,
    operator_grpc: String,
    http: String,
    nats: String,
    nats_pid: Option<u32>,
}

/// A running mesh. Drop kills the process.
#[derive(Debug)]
pub struct Herald {
    program: PathBuf,
    options: Options,
    dir: TempDir,
    child: Child,
    ready: Ready,
}

impl Herald {
    /// Starts a mesh with an empty data directory on free ports. `program` is
    /// `env!("CARGO_BIN_EXE_herald-under-test")`.
    pub async fn start(program: &str, options: Options) -> Self {
        let dir = match &options.parent {
            Some(parent) => TempDir::new_in(parent),
            None => TempDir::new(),
        };
        let dir = dir.expect("a temporary directory");
        let (child, ready) = spawn(
            Path::new(program),
            dir.path(),
            &options,
            Listen {
                grpc: "127.0.0.1:0",
                operator_grpc: "127.0.0.1:0",
                http: "127.0.0.1:0",
                nats_port: 0,
            },
        )
        .await;
        Self {
            program: program.into(),
            options,
            dir,
            child,
            ready,
        }
    }

    /// URL of the gRPC listener.
    pub fn url(&self) -> String {
        format!("http://{}", self.ready.grpc)
    }

    /// URL of the operator port.
    pub fn operator_url(&self) -> String {
        format!("http://{}", self.ready.operator_grpc)
    }

    /// Address of the health and metrics listener.
    pub fn http(&self) -> &str {
        &self.ready.http
    }

    /// URL of the mesh's nats-server, without credentials.
    pub fn nats_address(&self) -> &str {
        &self.ready.nats
    }

    /// URL of the mesh's nats-server, with its user and password.
    pub fn nats(&self) -> String {
        let credentials = format!("nats://herald:{}@", self.nats_password());
        self.ready.nats.replacen("nats://", &credentials, 1)
    }

    /// A connection to the mesh's nats-server.
    pub async fn broker(&self) -> async_nats::Client {
        async_nats::ConnectOptions::with_user_and_password("herald".into(), self.nats_password())
            .connect(&self.ready.nats)
            .await
            .expect("the server accepts its user")
    }

    /// The password of the nats-server's user `herald`.
    fn nats_password(&self) -> String {
        let file = self.data_dir().join("nats/nats-server.password");
        let password = std::fs::read_to_string(file).expect("the server has a password");
        password.trim().to_owned()
    }

    /// Process id of the server.
    pub fn pid(&self) -> u32 {
        self.child.id().expect("the server runs")
    }

    /// The data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// The options of the next start.
    pub fn options_mut(&mut self) -> &mut Options {
        &mut self.options
    }

    /// The log so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Sends SIGKILL to the process: no handler runs and no buffer is flushed.
    pub async fn kill(&mut self) {
        self.child.kill().await.expect("the server can be killed");
    }

    /// Starts the mesh again with the same data directory and ports.
    pub async fn restart(&mut self) {
        let port = |address: &str| -> u16 {
            address
                .rsplit(':')
                .next()
                .and_then(|port| port.parse().ok())
                .expect("an address ends with a port")
        };
        let listen = Listen {
            grpc: &self.ready.grpc,
            operator_grpc: &self.ready.operator_grpc,
            http: &self.ready.http,
            nats_port: port(&self.ready.nats),
        };
        let (child, ready) = spawn(&self.program, self.dir.path(), &self.options, listen).await;
        self.child = child;
        self.ready = ready;
    }

    /// Sends SIGKILL to the mesh's nats-server.
    pub fn kill_nats(&self) {
        let pid = self
            .ready
            .nats_pid
            .and_then(|pid| i32::try_from(pid).ok())
            .and_then(Pid::from_raw);
        rustix::process::kill_process(pid.expect("the server has a child"), Signal::KILL)
            .expect("nats-server can be killed");
    }

    /// Process id of nats-server as reported at the start of the mesh; a restart of nats-server changes it.
    pub fn nats_pid(&self) -> u32 {
        self.ready.nats_pid.expect("the server has a child")
    }

    /// Sends SIGINT, waits until the mesh has drained, and returns the exit code. Prints the log if it is not 0.
    pub async fn stop(&mut self) -> i32 {
        let pid = self
            .child
            .id()
            .and_then(|pid| i32::try_from(pid).ok())
            .and_then(Pid::from_raw);
        rustix::process::kill_process(pid.expect("the server runs"), Signal::INT)
            .expect("the server can be signalled");
        let status = tokio::time::timeout(STOP_LIMIT, self.child.wait()).await;
        let Ok(status) = status else {
            panic!("herald up did not drain within {STOP_LIMIT:?}:\n{}", self.log())
        };
        let status = status.expect("the server can be waited for");
        if !status.success() {
            eprintln!("herald up ended with {status}:\n{}", self.log());
        }
        status.code().unwrap_or(-1)
    }

    /// Waits until the process ends by itself, and returns its exit code.
    pub async fn exited(&mut self) -> Option<i32> {
        let status = tokio::time::timeout(STOP_LIMIT, self.child.wait()).await;
        let Ok(status) = status else {
            panic!("herald up did not end within {STOP_LIMIT:?}:\n{}", self.log())
        };
        status.expect("the server can be waited for").code()
    }

    /// Runs a `herald` command against this mesh and returns its JSON output. Panics if the command fails.
    pub async fn cli(&self, arguments: &[&str]) -> Value {
        let mut all = arguments.to_vec();
        all.extend(["--output", "json"]);
        crate::run_json(
            self.program.to_str().expect("a readable path"),
            &all,
            &[
                ("HERALD_SERVER", &self.url()),
                ("HERALD_OPERATOR_SERVER", &self.operator_url()),
            ],
        )
        .await
    }

    /// Connects gRPC clients.
    pub async fn clients(&self) -> Clients {
        Clients::connect(self.url(), self.operator_url()).await
    }
}

/// Where a mesh listens.
struct Listen<'a> {
    grpc: &'a str,
    operator_grpc: &'a str,
    http: &'a str,
    nats_port: u16,
}

async fn spawn(program: &Path, dir: &Path, options: &Options, listen: Listen<'_>) -> (Child, Ready) {
    let log = File::options()
        .create(true)
        .append(true)
        .open(dir.join("log"))
        .expect("a log file");
    // Without servers of the test.
    let has_url = options.arguments.iter().any(|argument| argument == "--nats-url");
    let own_nats = (!has_url).then(|| listen.nats_port.to_string());
    let mut child = Command::new(program)
        .args(["up", "--output", "json", "--grpc", listen.grpc])
        .args(["--operator-grpc", listen.operator_grpc, "--http", listen.http])
        .args(own_nats.iter().flat_map(|port| ["--nats-port", port]))
        .arg("--data-dir")
        .arg(dir.join("data"))
        .args(&options.arguments)
        .envs(options.variables.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .expect("the server can be started");
    let stdout = child.stdout.take().expect("piped");
    let mut lines = BufReader::new(stdout).lines();
    let ready = tokio::time::timeout(START_LIMIT, async {
        while let Some(line) = lines.next_line().await.expect("the server's output is text") {
            if let Ok(ready) = serde_json::from_str::<Ready>(&line)
                && ready.event == "ready"
            {
                return Some(ready);
            }
        }
        None
    })
    .await;
    match ready {
        Ok(Some(ready)) => (child, ready),
        _ => panic!(
            "herald up did not become ready:\n{}",
            std::fs::read_to_string(dir.join("log")).unwrap_or_default()
        ),
    }
}

/// gRPC clients of all services.
#[derive(Debug, Clone)]
pub struct Clients {
    /// The shared connection to the public port.
    pub channel: Channel,
    /// The shared connection to the operator port.
    pub operators: Channel,
}

impl Clients {
    /// Connects to both ports of a gateway.
    pub async fn connect(url: String, operator_url: String) -> Self {
        let connect = async |url: String| {
            let endpoint = Endpoint::from_shared(url).expect("an address");
            endpoint.connect().await.expect("the server listens")
        };
        Self {
            channel: connect(url).await,
            operators: connect(operator_url).await,
        }
    }

    /// Whether no consumer has pending or unacknowledged messages and LATER is empty.
    pub async fn is_idle(&self) -> bool {
        let lag = self.mesh().get_lag(GetLagRequest {}).await;
        let lag = lag.expect("the server answers").into_inner();
        // Messages in LATER belong to no consumer yet but are still pending.
        lag.streams.iter().all(|stream| {
            (stream.stream != "LATER" || stream.message_count == 0)
                && stream
                    .consumers
                    .iter()
                    .all(|consumer| consumer.pending_count + consumer.ack_pending_count == 0)
        })
    }
}

macro_rules! clients {
    ($($channel:ident { $($name:ident: $client:ident,)* })*) => {
        impl Clients {
            $($(
                /// A client of the service.
                pub fn $name(&self) -> $client<Channel> {
                    $client::new(self.$channel.clone())
                }
            )*)*
        }
    };
}

clients! {
    channel {
        posts: PostServiceClient,
        graph: GraphServiceClient,
        devices: DeviceServiceClient,
        preferences: PreferenceServiceClient,
        timelines: TimelineServiceClient,
        deliveries: DeliveryServiceClient,
        analytics: AnalyticsServiceClient,
    }
    operators {
        audit: AuditServiceClient,
        dead_letters: DeadLetterServiceClient,
        mesh: MeshServiceClient,
        user_data: UserDataServiceClient,
    }
}
