//! Reads the HTTP ports: the monitoring ports of the NATS servers, and those of the processes.

use std::time::Duration;

use herald_model::time::Timestamp;
use serde::{Deserialize, de::DeserializeOwned};

use super::{FROM_PROCESSES, FROM_SERVERS, Target, clock};
use crate::{
    doctor::observed::{HealthError, Observed, Process, ReadyCheck, Server},
    server::{About, Away, Part},
    sources::{Answer, Asker},
};

impl Observed {
    pub(super) async fn read_servers(&mut self, asker: &mut Asker, target: &Target<'_>) {
        let monitors = target.monitors;
        if monitors.is_empty() {
            self.skip(
                &FROM_SERVERS,
                "the monitoring port of the NATS servers is not known: name it with --monitor http://HOST:8222",
            );
            return;
        }
        let sent_at = Timestamp::now();
        let states = asker.ask(monitors, "/varz", false).await;
        let received_at = Timestamp::now();
        let health = asker.ask(monitors, "/healthz?details=true", true).await;
        for state in states {
            if let Err(reason) = &state.body {
                self.away.push(Away {
                    part: Part::Monitor,
                    name: format!("the monitoring port {} of a NATS server", state.name),
                    reason: reason.clone(),
                    is_silent: state.is_silent,
                });
            }
            let health = health.iter().find(|answer| answer.name == state.name);
            match server(&state, health) {
                Ok((server, now)) => {
                    let name = format!("NATS server {}", server.name);
                    self.clocks.push(clock(&name, [sent_at, now, received_at]));
                    self.servers.push(server);
                }
                Err(reason) => self.skip(&FROM_SERVERS, format!("NATS server {}: {reason}", state.name)),
            }
        }
        let is_single = |stream: &&herald_mesh::StreamState| stream.cluster.is_some() && stream.replicas < 2;
        if self.streams.iter().any(|stream| is_single(&stream)) {
            self.skip(
                &["stream-frozen"],
                "in a cluster, nats-server doesn't tell that it froze a stream with one replica: look for `Critical write \
                 error` in its log",
            );
        }
    }

    pub(super) async fn read_processes(&mut self, asker: &mut Asker, target: &Target<'_>) {
        let processes = target.processes;
        if processes.is_empty() {
            self.skip(
                &FROM_PROCESSES,
                "the processes are not known: name their HTTP port with --metrics http://HOST:7701, where HOST can be a name \
                 with the addresses of all of them",
            );
            return;
        }
        let sent_at = Timestamp::now();
        let abouts = asker.ask(processes, "/about", false).await;
        let received_at = Timestamp::now();
        let readiness = asker.ask(processes, "/readyz", true).await;
        for answer in abouts {
            let checks = readiness.iter().find(|one| one.name == answer.name);
            match (parse(&answer), checks.map_or_else(|| Ok(Vec::new()), parse)) {
                (Ok(about), Ok(checks)) => {
                    self.add_process(answer.name, about, checks, [sent_at, received_at]);
                }
                (Err(reason), _) | (_, Err(reason)) => {
                    self.skip(&FROM_PROCESSES, format!("process {}: {reason}", answer.name));
                    let name = match &target.own_process {
                        Some(name) => format!("{name} at {}", answer.name),
                        None => format!("process {}", answer.name),
                    };
                    let is_silent = answer.is_silent || checks.is_some_and(|one| one.is_silent);
                    // Its control socket has told so already.
                    let known = |away: &Away| away.part == Part::Process && name.starts_with(&away.name);
                    if !self.away.iter().any(known) {
                        self.away.push(Away {
                            part: Part::Process,
                            name,
                            reason,
                            is_silent,
                        });
                    }
                }
            }
        }
    }

    fn add_process(
        &mut self,
        name: String,
        about: About,
        mut checks: Vec<ReadyCheck>,
        [sent_at, received_at]: [Timestamp; 2],
    ) {
        self.clocks.push(clock(
            &format!("process {name}"),
            [sent_at, Timestamp(about.time_us), received_at],
        ));
        checks.retain(|check| !check.ready);
        self.processes.push(Process {
            name,
            about,
            failing: checks,
        });
    }
}

fn parse<T: DeserializeOwned>(answer: &Answer) -> Result<T, String> {
    let body = answer.body.as_ref().map_err(Clone::clone)?;
    serde_json::from_str(body).map_err(|error| format!("its answer can't be read: {error}"))
}

#[derive(Deserialize)]
struct Varz {
    server_name: String,
    now: jiff::Timestamp,
    #[serde(default)]
    jetstream: JetStream,
}

#[derive(Default, Deserialize)]
struct JetStream {
    config: Option<JetStreamConfig>,
}

#[derive(Deserialize)]
struct JetStreamConfig {
    /// Nanoseconds.
    #[serde(default)]
    sync_interval: u64,
    #[serde(default)]
    sync_always: bool,
}

#[derive(Deserialize)]
struct Healthz {
    #[serde(default)]
    errors: Vec<HealthzError>,
}

#[derive(Deserialize)]
struct HealthzError {
    #[serde(default)]
    stream: String,
    error: String,
}

/// A server, and its clock.
fn server(state: &Answer, health: Option<&Answer>) -> Result<(Server, Timestamp), String> {
    let varz: Varz = parse(state)?;
    let health = health.ok_or("it gives no answer about its health")?;
    let health: Healthz = parse(health)?;
    let config = varz.jetstream.config.ok_or("it has no JetStream")?;
    let errors = health.errors.into_iter().map(|error| HealthError {
        stream: error.stream,
        text: error.error,
    });
    let server = Server {
        name: varz.server_name,
        sync_interval: (!config.sync_always).then(|| Duration::from_nanos(config.sync_interval)),
        errors: errors.collect(),
    };
    Ok((server, Timestamp(varz.now.as_microsecond())))
}
