//! A mesh of `herald serve` processes: one gateway, and several workers of each kind, which can be killed.

use std::{net::TcpListener, process::Stdio, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use herald_cli::{context::Context, failure::Failure};
use herald_runtime::telemetry::LOG_VARIABLES;
use tokio::{
    process::{Child, Command},
    sync::watch,
};

use super::{server, setup::Data};

/// Limit for the start of a process.
const READY_LIMIT: Duration = Duration::from_secs(30);

/// The roles of which a process is killed. Clients keep their connections to the gateway.
pub(super) const WORKERS: [&str; 7] = [
    "archive",
    "graph",
    "fanout",
    "timeline",
    "push",
    "analytics",
    "deadletter",
];
/// The roles that other processes call.
const PEERS: [&str; 3] = ["graph", "analytics", "deadletter"];

/// Running processes. Drop kills them.
pub(super) struct Fleet {
    nats: herald_local_nats::Server,
    gateway: String,
    operators: String,
    workers: Vec<Worker>,
    launch: Launch,
    /// Kills so far.
    pub(super) kills: u64,
}

struct Worker {
    role: &'static str,
    /// Listen address of gRPC, the same after a restart.
    grpc: String,
    child: Child,
    /// Whether the process is ready; closed if it never became so.
    ready: watch::Receiver<bool>,
}

/// How the processes are started.
struct Launch {
    arguments: Vec<String>,
    variables: Vec<(String, String)>,
}

impl Fleet {
    /// Starts a NATS server, a gateway and `replicas` processes of each other role, and waits until they are ready.
    pub(super) async fn start(
        data: &Data,
        replicas: usize,
        options: &[String],
        context: &Context,
    ) -> Result<Self, Failure> {
        let nats = herald_local_nats::Server::start(herald_local_nats::Config::default())
            .await
            .map_err(|error| Failure::failed(format!("can't start nats-server: {error}")))?;
        let (gateway, operators) = (free_address()?, free_address()?);
        let mut addresses = Vec::new();
        for role in WORKERS {
            for _ in 0..replicas {
                addresses.push((role, free_address()?));
            }
        }
        let mut arguments: Vec<String> = [
            "--output",
            "json",
            "--http",
            "127.0.0.1:0",
            "--operator-grpc",
            &operators,
        ]
        .map(Into::into)
        .into();
        arguments.extend([
            "--nats-url".into(),
            nats.client_url(),
            "--allow-private-endpoints".into(),
        ]);
        arguments.extend(["--data-dir".into(), data.dir.display().to_string()]);
        for peer in PEERS {
            let of_peer = addresses.iter().filter(|(role, _)| *role == peer);
            let urls: Vec<String> = of_peer.map(|(_, address)| format!("http://{address}")).collect();
            arguments.extend(["--peer".into(), format!("{peer}={}", urls.join(","))]);
        }
        if let Some(file) = &context.global.config {
            arguments.extend(["--config".into(), file.display().to_string()]);
        }
        arguments.extend(options.iter().cloned());
        let mut variables: Vec<(String, String)> = data
            .engine
            .environment()
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        // All push workers sign with one key.
        variables.push((
            "HERALD_PUSH__VAPID_PRIVATE_KEY".into(),
            BASE64URL.encode(rand::random::<[u8; 32]>()),
        ));
        if context.output.is_json() && LOG_VARIABLES.iter().all(|name| std::env::var_os(name).is_none()) {
            variables.push((LOG_VARIABLES[0].into(), "warn".into()));
        }
        let launch = Launch { arguments, variables };
        let mut workers = vec![launch.start("gateway", gateway.clone())?];
        for (role, address) in addresses {
            workers.push(launch.start(role, address)?);
        }
        for worker in &mut workers {
            worker.wait_ready().await?;
        }
        Ok(Self {
            nats,
            gateway: format!("http://{gateway}"),
            operators: format!("http://{operators}"),
            workers,
            launch,
            kills: 0,
        })
    }

    /// URL of the gateway.
    pub(super) fn url(&self) -> &str {
        &self.gateway
    }

    /// URL of the gateway's operator port.
    pub(super) fn operator_url(&self) -> &str {
        &self.operators
    }

    /// Kills one process of each worker's role, all at the same moment, and starts them again. `turn` chooses which one.
    /// Fails if a process that was started before is not ready: then there would be none.
    pub(super) async fn kill(&mut self, turn: usize) -> Result<(), Failure> {
        self.wait_ready().await?;
        let mut killed = Vec::new();
        for role in WORKERS {
            let of_role: Vec<usize> = (0..self.workers.len())
                .filter(|n| self.workers[*n].role == role)
                .collect();
            killed.push(of_role[turn % of_role.len()]);
        }
        let failed = |error: std::io::Error| Failure::io("can't kill `herald serve`", &error);
        for n in &killed {
            self.workers[*n].child.start_kill().map_err(failed)?;
            self.kills += 1;
        }
        for n in killed {
            let worker = &mut self.workers[n];
            worker.child.wait().await.map_err(failed)?;
            *worker = self.launch.start(worker.role, worker.grpc.clone())?;
        }
        Ok(())
    }

    /// Waits until all processes are ready.
    pub(super) async fn wait_ready(&mut self) -> Result<(), Failure> {
        for worker in &mut self.workers {
            worker.wait_ready().await?;
        }
        Ok(())
    }

    /// Stops all processes. What is pending has been written before.
    pub(super) async fn stop(mut self) -> Result<(), Failure> {
        let failed = |error: std::io::Error| Failure::io("can't stop `herald serve`", &error);
        for worker in &mut self.workers {
            worker.child.kill().await.map_err(failed)?;
        }
        self.nats
            .stop()
            .await
            .map(drop)
            .map_err(|error| Failure::failed(format!("can't stop nats-server: {error}")))
    }
}

impl Launch {
    fn start(&self, role: &'static str, grpc: String) -> Result<Worker, Failure> {
        let program = std::env::current_exe()
            .map_err(|error| Failure::io("can't find the path of this program", &error))?;
        let mut child = Command::new(program)
            .args(["serve", role, "--grpc", &grpc])
            .args(&self.arguments)
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            // Ctrl-C must not reach the processes: the benchmark ends them.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| Failure::io("can't start `herald serve`", &error))?;
        let stdout = child
            .stdout
            .take()
            .ok_or_else(|| Failure::failed("can't read the output of `herald serve`".to_owned()))?;
        let (sender, ready) = watch::channel(false);
        tokio::spawn(async move {
            if server::wait_ready(stdout).await.is_ok() {
                sender.send_replace(true);
            }
        });
        Ok(Worker {
            role,
            grpc,
            child,
            ready,
        })
    }
}

impl Worker {
    async fn wait_ready(&mut self) -> Result<(), Failure> {
        let role = self.role;
        let failed = || {
            Failure::failed(format!(
                "`herald serve {role}` was not ready within {READY_LIMIT:?}; see its log above"
            ))
        };
        let ready = tokio::time::timeout(READY_LIMIT, self.ready.wait_for(|ready| *ready)).await;
        ready.map_err(|_| failed())?.map(drop).map_err(|_| failed())
    }
}

/// An address of loopback that is free now.
fn free_address() -> Result<String, Failure> {
    let listener = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    listener
        .map(|address| address.to_string())
        .map_err(|error| Failure::io("can't find a free port", &error))
}
