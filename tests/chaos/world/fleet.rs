//! A mesh of `herald serve` processes, one role each, on PostgreSQL and Redis.

use std::path::PathBuf;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use futures::future::join_all;
use harness::free_port;

use super::{
    Process,
    herald::{Gateway, Herald, Member, Role},
    process::{Launch, StartOptions},
};
use crate::log::Log;

/// Processes of each role at the start.
const REPLICAS: usize = 2;

/// Starts the processes of a mesh.
pub(crate) struct Fleet {
    log: Log,
    dir: PathBuf,
    /// Arguments after the role.
    arguments: Vec<String>,
    variables: Vec<(String, String)>,
    sabotage: String,
    /// Number of processes started so far, for their names.
    started: usize,
}

/// How the processes of a fleet are started.
pub(super) struct Settings {
    /// Directory of logs, and of the files of analytics.
    pub(super) dir: PathBuf,
    pub(super) nats_url: String,
    pub(super) postgres_url: String,
    pub(super) redis_url: String,
    pub(super) variables: Vec<(String, String)>,
    /// Failpoints of every start of every process.
    pub(super) sabotage: String,
}

/// Variables of the processes of a fleet, besides those of every mesh.
pub(super) fn variables() -> Vec<(String, String)> {
    let usual = [
        // No timeline is trimmed: the checker reads complete timelines.
        ("TIMELINES__ENTRIES_MAX", 10_000),
        // Most readers read nothing before the check, and still get their posts.
        ("TIMELINES__ACTIVE_DAYS", 0),
        ("SHUTDOWN_DELAY_SECONDS", 1),
    ];
    let usual = usual.map(|(name, value)| (format!("HERALD_{name}"), value.to_string()));
    // All push workers sign with one key.
    let key = BASE64URL.encode(rand::random::<[u8; 32]>());
    let key = ("HERALD_PUSH__VAPID_PRIVATE_KEY".into(), key);
    usual.into_iter().chain([key]).collect()
}

/// Listen addresses of a process.
#[derive(Clone, Copy)]
struct Ports {
    grpc: u16,
    /// Of a gateway.
    operators: u16,
    http: u16,
}

impl Ports {
    fn free() -> Self {
        Self {
            grpc: free_port(),
            operators: free_port(),
            http: free_port(),
        }
    }

    fn url(self) -> String {
        format!("http://127.0.0.1:{}", self.grpc)
    }
}

impl Herald {
    /// Starts two processes of each role and waits until they are ready.
    pub(super) async fn serve(log: &Log, settings: Settings) -> Self {
        let ports: Vec<(Role, Ports)> = Role::SERVED
            .into_iter()
            .flat_map(|role| (0..REPLICAS).map(move |_| (role, Ports::free())))
            .collect();
        let urls = |role| {
            let of_role = ports.iter().filter(move |(of, _)| *of == role);
            of_role.map(|(_, ports)| ports.url()).collect::<Vec<_>>()
        };
        // The URLs have no passwords, so they may be arguments.
        let mut arguments: Vec<String> = [
            ("--nats-url", settings.nats_url),
            ("--store", settings.postgres_url),
            ("--timelines", settings.redis_url),
            ("--data-dir", settings.dir.join("data").display().to_string()),
            ("--output", "json".into()),
        ]
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect();
        arguments.push("--allow-private-endpoints".into());
        for role in [Role::Graph, Role::Analytics, Role::Deadletter] {
            // A comma separates the addresses of a peer.
            let peer = format!("{}={}", role.as_str(), urls(role).join(","));
            arguments.extend(["--peer".into(), peer]);
        }
        let mut fleet = Fleet {
            log: log.clone(),
            dir: settings.dir,
            arguments,
            variables: settings.variables,
            sabotage: settings.sabotage,
            started: 0,
        };
        let members: Vec<Member> = ports
            .iter()
            .enumerate()
            .map(|(n, (role, ports))| fleet.start(*role, *ports, lanes(*role, n)))
            .collect();
        join_all(members.iter().map(|member| member.process.wait_ready())).await;
        let gateways = ports.iter().filter(|(role, _)| *role == Role::Gateway);
        let gateways = gateways.map(|(_, ports)| Gateway::at(ports.grpc, ports.operators));
        Self::new(members, gateways.collect(), Some(fleet))
    }

    /// Starts or stops processes of a role until there are `count`. Those that stop drain before.
    pub(crate) async fn scale(&mut self, role: Role, count: usize) {
        let running = self.of(role).len();
        let fleet = self.fleet.as_mut().expect("a fleet");
        let new: Vec<Member> = (running..count)
            .map(|_| fleet.start(role, Ports::free(), None))
            .collect();
        join_all(new.iter().map(|member| member.process.wait_ready())).await;
        self.members.extend(new);
        // The oldest ones stop, so that the new ones take over.
        let stopping = running.saturating_sub(count);
        let oldest = self.of(role).into_iter().take(stopping);
        join_all(oldest.map(Process::stop)).await;
    }

    /// Restarts the processes of a role one after the other, with a changed variable.
    pub(crate) async fn roll(&self, role: Role, name: &str, value: &str) {
        for process in self.of(role) {
            process.restart(vec![(name.into(), value.into())]).await;
        }
    }
}

/// Lanes of the process with this number: one worker of each kind leaves the low lane to the other.
fn lanes(role: Role, number: usize) -> Option<&'static str> {
    let has_lanes = matches!(role, Role::Fanout | Role::Timeline | Role::Push);
    (has_lanes && number % REPLICAS == 1).then_some("high,normal")
}

impl Fleet {
    fn start(&mut self, role: Role, ports: Ports, lanes: Option<&str>) -> Member {
        self.started += 1;
        let name = format!("{}-{}", role.as_str(), self.started);
        let mut arguments: Vec<String> = vec!["serve".into(), role.as_str().into()];
        if let Some(lanes) = lanes {
            arguments.extend(["--lanes".into(), lanes.into()]);
        }
        arguments.extend(["--grpc".into(), format!("127.0.0.1:{}", ports.grpc)]);
        arguments.extend(["--operator-grpc".into(), format!("127.0.0.1:{}", ports.operators)]);
        arguments.extend(["--http".into(), format!("127.0.0.1:{}", ports.http)]);
        arguments.extend(self.arguments.iter().cloned());
        let launch = Launch {
            log_path: self.dir.join(format!("{name}.log")),
            name,
            arguments,
            variables: self.variables.clone(),
            sabotage: self.sabotage.clone(),
            first_start: StartOptions::default(),
        };
        Member {
            role,
            process: Process::start(&self.log, launch),
        }
    }
}
