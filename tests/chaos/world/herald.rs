//! The processes of one mesh: `herald up`, or a fleet of `herald serve`.

use std::sync::atomic::{AtomicUsize, Ordering};

use harness::free_port;

use super::{Process, StartOptions, fleet::Fleet, process::Launch};
use crate::log::Log;

/// What a process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Role {
    /// All roles: `herald up`.
    All,
    Gateway,
    Archive,
    Graph,
    Fanout,
    Timeline,
    Push,
    Analytics,
    Deadletter,
}

impl Role {
    /// The roles of `herald serve`.
    pub(crate) const SERVED: [Self; 8] = [
        Self::Gateway,
        Self::Archive,
        Self::Graph,
        Self::Fanout,
        Self::Timeline,
        Self::Push,
        Self::Analytics,
        Self::Deadletter,
    ];

    /// Name on the command line.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::All => "up",
            Self::Gateway => "gateway",
            Self::Archive => "archive",
            Self::Graph => "graph",
            Self::Fanout => "fanout",
            Self::Timeline => "timeline",
            Self::Push => "push",
            Self::Analytics => "analytics",
            Self::Deadletter => "deadletter",
        }
    }
}

/// The processes of a mesh and the addresses of its gateways.
pub(crate) struct Herald {
    pub(super) members: Vec<Member>,
    pub(super) gateways: Vec<Gateway>,
    /// Starts further processes; `None` for `herald up`.
    pub(super) fleet: Option<Fleet>,
    calls: AtomicUsize,
}

/// URLs of a gateway.
#[derive(Clone)]
pub(crate) struct Gateway {
    /// Of the public port.
    pub(crate) url: String,
    /// Of the operator port.
    pub(crate) operator_url: String,
}

impl Gateway {
    pub(super) fn at(grpc: u16, operators: u16) -> Self {
        Self {
            url: format!("http://127.0.0.1:{grpc}"),
            operator_url: format!("http://127.0.0.1:{operators}"),
        }
    }
}

/// A process of a mesh.
pub(super) struct Member {
    pub(super) role: Role,
    pub(super) process: Process,
}

impl Herald {
    /// Starts `herald up` and waits until it is ready.
    pub(super) async fn up(log: &Log, mut launch: Launch) -> Self {
        let (grpc, operators, http) = (free_port(), free_port(), free_port());
        let listen = [
            "--grpc",
            &format!("127.0.0.1:{grpc}"),
            "--operator-grpc",
            &format!("127.0.0.1:{operators}"),
            "--http",
            &format!("127.0.0.1:{http}"),
        ];
        launch.arguments.extend(listen.map(Into::into));
        let process = Process::start(log, launch);
        process.wait_ready().await;
        let gateways = vec![Gateway::at(grpc, operators)];
        let member = Member {
            role: Role::All,
            process,
        };
        Self::new(vec![member], gateways, None)
    }

    pub(super) fn new(members: Vec<Member>, gateways: Vec<Gateway>, fleet: Option<Fleet>) -> Self {
        Self {
            members,
            gateways,
            fleet,
            calls: AtomicUsize::new(0),
        }
    }

    /// A gateway, each in turn.
    pub(crate) fn gateway(&self) -> Gateway {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        self.gateways[call % self.gateways.len()].clone()
    }

    /// The processes of a role that were not scaled away.
    pub(crate) fn of(&self, role: Role) -> Vec<&Process> {
        let of_role = self.members.iter().filter(|member| member.role == role);
        of_role
            .map(|member| &member.process)
            .filter(|process| !process.ended())
            .collect()
    }

    /// Sends SIGKILL to `herald up`; `next` configures the next start.
    pub(crate) fn kill(&self, next: StartOptions) {
        self.whole().kill(next);
    }

    /// Sends SIGSTOP or SIGCONT to `herald up`.
    pub(crate) fn freeze(&self, selected: bool) {
        self.whole().freeze(selected);
    }

    /// Number of starts of `herald up` so far.
    pub(crate) fn starts(&self) -> u64 {
        self.whole().starts()
    }

    /// Number of kills so far, by a signal or at a failpoint.
    pub(crate) fn kills(&self) -> u64 {
        self.members.iter().map(|member| member.process.kills()).sum()
    }

    /// Exits that nobody asked for, starts that hung, and drains that hung.
    pub(crate) fn unexpected_exits(&self) -> Vec<String> {
        let members = self.members.iter();
        members
            .flat_map(|member| member.process.unexpected_exits())
            .collect()
    }

    fn whole(&self) -> &Process {
        assert!(self.fleet.is_none(), "a fleet has no process with all roles");
        &self.members[0].process
    }
}
