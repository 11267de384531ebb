//! Connects to a running mesh to examine it; changes nothing.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use herald_local_nats::Running;
use herald_mesh::{Auth, Config as MeshConfig, Mesh, NatsUser, Topology};
use herald_model::time::Timestamp;
use herald_proto::mesh_v1::{CheckStreamsRequest, StreamProblem};
use herald_runtime::telemetry::error_chain;
use herald_store::cluster::Records;
use tokio::time::timeout;

use super::{Config, ControlClient, broker, control};

/// Limit for a connection to NATS or to the store.
const CONNECT_LIMIT: Duration = Duration::from_secs(8);
/// Limit for the comparison of the streams with the store.
const COMPARE_LIMIT: Duration = Duration::from_secs(20);

/// A connection to the streams of a running mesh.
pub(crate) struct Examining {
    /// `Err`: NATS can't be reached.
    pub(crate) mesh: Result<Mesh, Away>,
    pub(crate) topology: Arc<Topology>,
    /// The monitoring API of the nats-server that `herald up` started; `None` for a server of your own.
    pub(crate) monitor_url: Option<String>,
}

/// A part of a mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// A process of Herald.
    Process,
    /// The NATS servers, for clients.
    Broker,
    /// The monitoring port of a NATS server.
    Monitor,
    /// PostgreSQL.
    Store,
    /// Valkey.
    Timelines,
}

/// A part of a mesh that can't be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Away {
    pub(crate) part: Part,
    /// How it is called: its URL, or its program and process id.
    pub(crate) name: String,
    pub(crate) reason: String,
    /// Whether nothing refuses a connection and nothing answers.
    pub(crate) is_silent: bool,
}

/// Why the streams and the store can't be compared.
#[derive(Debug)]
pub(crate) enum NotCompared {
    /// The store, or the process that has it, can't be reached.
    Away(Away),
    /// Another reason.
    Other(String),
}

/// What is wrong between the streams and the store.
pub(crate) struct StoreProblems {
    pub(crate) problems: Vec<StreamProblem>,
    /// The clock of PostgreSQL, with the own time before and after the reading; `None` for the embedded store.
    pub(crate) clock: Option<[Timestamp; 3]>,
}

impl Examining {
    /// Connects to the NATS server of the configuration, or to the one that `herald up` runs in the data directory.
    ///
    /// With a server that restricts its users, it has the rights of a gateway: that reads all streams.
    ///
    /// # Errors
    /// An invalid configuration, or no `herald up` was started in the data directory. A server that can't be reached is
    /// no error.
    pub(crate) async fn connect(config: &Config) -> Result<Self> {
        let (mesh_config, running) = access(config, NatsUser::Gateway)?;
        let silent = |reason| Away {
            part: Part::Broker,
            name: match &running {
                Some(running) => format!("nats-server (pid {})", running.pid),
                None => config.nats.url.redacted(),
            },
            reason,
            is_silent: true,
        };
        let mesh = match timeout(CONNECT_LIMIT, Mesh::connect(&mesh_config)).await {
            Ok(Ok(mesh)) => Ok(mesh),
            Ok(Err(error)) => Err(Away {
                is_silent: error.is_silence(),
                ..silent(error_chain(&error))
            }),
            Err(_) => Err(silent(no_answer(CONNECT_LIMIT))),
        };
        Ok(Self {
            mesh,
            topology: Arc::new(Topology::new(&config.topology)?),
            monitor_url: running.map(|running| running.monitor_url),
        })
    }

    /// Compares the streams with the store: asks the running `herald up` of a data directory, or reads PostgreSQL.
    pub(crate) async fn check_store(&self, config: &Config) -> Result<StoreProblems, NotCompared> {
        if !config.store.is_cluster() {
            return ask(config).await;
        }
        let away = |reason, is_silent| {
            NotCompared::Away(Away {
                part: Part::Store,
                name: config.store.url.redacted(),
                reason,
                is_silent,
            })
        };
        let open = async || {
            let records = Records::open_unchanged(&config.cluster()).await?;
            let before = Timestamp::now();
            let time = records.clock().await;
            let clock = time.map(|time| [before, time, Timestamp::now()]);
            Ok((records, clock))
        };
        let opened: Result<herald_store::Result<_>, _> = timeout(CONNECT_LIMIT, open()).await;
        let (records, clock) = match opened {
            Ok(Ok(opened)) => opened,
            Ok(Err(error)) if error.is_away() => return Err(away(error_chain(&error), false)),
            Ok(Err(error)) => {
                let reason = format!("the store can't be read: {}", error_chain(&error));
                return Err(NotCompared::Other(reason));
            }
            Err(_) => return Err(away(no_answer(CONNECT_LIMIT), true)),
        };
        let problems = match &self.mesh {
            Ok(mesh) => {
                let checker = control::checker(mesh, &self.topology, records.stores());
                let compared = timeout(COMPARE_LIMIT, checker.check_thoroughly()).await;
                match compared {
                    Ok(problems) => problems.map_err(|error| error_chain(&error)),
                    Err(_) => Err(no_answer(COMPARE_LIMIT)),
                }
            }
            Err(_) => Err("NATS can't be reached".into()),
        };
        // A server that hangs doesn't end the command.
        let _ = timeout(CONNECT_LIMIT, records.close()).await;
        let problems = problems.map_err(|reason| {
            NotCompared::Other(format!("the streams and the store can't be compared: {reason}"))
        })?;
        Ok(StoreProblems {
            problems: problems.iter().map(control::stream_problem).collect(),
            clock: clock.ok(),
        })
    }
}

/// How a command connects to the NATS server of the configuration, or to the one that `herald up` runs in the data
/// directory.
pub(super) fn access(config: &Config, user: NatsUser) -> Result<(MeshConfig, Option<Running>)> {
    let running = if config.nats.is_child() {
        Some(find_child(config)?)
    } else {
        None
    };
    let url = match &running {
        Some(running) => running.client_url.clone(),
        None => config.nats.url.expose().to_owned(),
    };
    let mesh_config = config.nats.mesh_config(&url, &config.topology, &[user]);
    let mut mesh_config = mesh_config.map_err(anyhow::Error::msg)?;
    if let Some(password) = running.as_ref().and_then(|running| running.password.clone()) {
        mesh_config.auth = Auth::Password {
            user: broker::USER.into(),
            password,
        };
    }
    Ok((mesh_config, running))
}

/// The reason of a part that gave no answer.
pub(crate) fn no_answer(limit: Duration) -> String {
    format!("no answer within {} s", limit.as_secs())
}

fn find_child(config: &Config) -> Result<Running> {
    let dir = config.data_dir.join("nats");
    let running = Running::find(&dir).with_context(|| format!("can't read {}", dir.display()))?;
    running.with_context(|| {
        format!(
            "no `herald up` has been started in the data directory {}: name it with --data-dir, or the NATS server of \
             `herald serve` with --nats-url",
            config.data_dir.display()
        )
    })
}

/// Asks the process that has the embedded store.
async fn ask(config: &Config) -> Result<StoreProblems, NotCompared> {
    let other = |reason: String| {
        NotCompared::Other(format!(
            "the `herald up` with the store in {} can't be asked: {reason}",
            config.data_dir.display()
        ))
    };
    let socket = control::socket(&config.data_dir);
    let connected = ControlClient::connect(&socket).await;
    let connected = connected.map_err(|error| other(error_chain(&error)))?;
    let mut process = connected.ok_or_else(|| other(format!("nobody listens on {}", socket.display())))?;
    let asked = process.calls.check_streams(CheckStreamsRequest {});
    let away = |process: &ControlClient, reason| {
        NotCompared::Away(Away {
            part: Part::Process,
            name: process.name(),
            reason,
            is_silent: true,
        })
    };
    match timeout(COMPARE_LIMIT, asked).await {
        Ok(Ok(answer)) => Ok(StoreProblems {
            problems: answer.into_inner().problems,
            clock: None,
        }),
        Ok(Err(status)) if process.is_silent(&status) => {
            Err(away(&process, "it takes no call on its control socket".into()))
        }
        Ok(Err(status)) => Err(other(status.message().to_owned())),
        Err(_) => Err(other(no_answer(COMPARE_LIMIT))),
    }
}
