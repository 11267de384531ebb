//! The roles of a process.

use std::{collections::BTreeSet, fmt};

use herald_mesh::NatsUser;
use herald_proto::{
    externalscaler::external_scaler_server::SERVICE_NAME as SCALER_SERVICE,
    mesh_v1::follower_service_server::SERVICE_NAME as FOLLOWER_SERVICE,
    v1::{
        analytics_service_server::SERVICE_NAME as ANALYTICS_SERVICE,
        audit_service_server::SERVICE_NAME as AUDIT_SERVICE,
        dead_letter_service_server::SERVICE_NAME as DEAD_LETTER_SERVICE,
        graph_service_server::SERVICE_NAME as GRAPH_SERVICE,
        user_data_service_server::SERVICE_NAME as USER_DATA_SERVICE,
    },
};
use serde::Serialize;

/// What a process does. A process has one, several or all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    /// Serves the public API (posts, timelines, devices, follows, statistics) and operators' calls
    Gateway,
    /// Writes posts and their request ids to the store
    Archive,
    /// Stores who follows whom
    Graph,
    /// Expands posts into chunks of recipients; has lanes
    Fanout,
    /// Writes posts to timelines; has lanes
    Timeline,
    /// Sends posts to devices; has lanes
    Push,
    /// Counts posts and deliveries, and writes them to Parquet files
    Analytics,
    /// Stores and redrives dead letters, audits, and removes old data
    Deadletter,
    /// Tells KEDA how much work the other roles have; needs NATS alone
    Scaler,
}

impl Role {
    /// The roles of a whole mesh in one process. Nothing scales that, so the scaler is not among them.
    pub(crate) const WHOLE: [Self; 8] = [
        Self::Gateway,
        Self::Archive,
        Self::Graph,
        Self::Fanout,
        Self::Timeline,
        Self::Push,
        Self::Analytics,
        Self::Deadletter,
    ];

    /// The name on the command line, in logs, and in health checks.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Archive => "archive",
            Self::Graph => "graph",
            Self::Fanout => "fanout",
            Self::Timeline => "timeline",
            Self::Push => "push",
            Self::Analytics => "analytics",
            Self::Deadletter => "deadletter",
            Self::Scaler => "scaler",
        }
    }

    /// The internal gRPC services, that other roles or KEDA call. The gateway's are public.
    pub(super) const fn internal_services(self) -> &'static [&'static str] {
        match self {
            Self::Graph => &[GRAPH_SERVICE, FOLLOWER_SERVICE],
            Self::Analytics => &[ANALYTICS_SERVICE],
            Self::Deadletter => &[DEAD_LETTER_SERVICE, AUDIT_SERVICE, USER_DATA_SERVICE],
            Self::Scaler => &[SCALER_SERVICE],
            _ => &[],
        }
    }

    /// The roles that this one calls.
    pub(super) const fn calls(self) -> &'static [Self] {
        match self {
            Self::Gateway => &[Self::Graph, Self::Analytics, Self::Deadletter],
            Self::Fanout => &[Self::Graph],
            _ => &[],
        }
    }

    /// The user of the NATS server for a process with this role alone.
    pub(super) const fn nats_user(self) -> NatsUser {
        match self {
            Self::Gateway => NatsUser::Gateway,
            Self::Archive => NatsUser::Archive,
            Self::Graph => NatsUser::Graph,
            Self::Fanout => NatsUser::Fanout,
            Self::Timeline => NatsUser::Timeline,
            Self::Push => NatsUser::Push,
            Self::Analytics => NatsUser::Analytics,
            Self::Deadletter => NatsUser::Deadletter,
            Self::Scaler => NatsUser::Scaler,
        }
    }

    /// Whether the role works on lanes, which `--lanes` narrows.
    pub(crate) const fn has_lanes(self) -> bool {
        matches!(self, Self::Fanout | Self::Timeline | Self::Push)
    }

    /// Whether the role reads or writes timelines.
    pub(super) const fn uses_timelines(self) -> bool {
        matches!(self, Self::Gateway | Self::Timeline | Self::Deadletter)
    }

    /// Whether the role reads or writes the store. Without it the role makes no stream and no consumer either: it only
    /// reads them.
    pub(super) const fn uses_store(self) -> bool {
        !matches!(self, Self::Scaler)
    }

    /// Whether the role has long CPU-bound tasks, which run on threads of their own.
    pub(super) const fn runs_in_background(self) -> bool {
        matches!(self, Self::Analytics | Self::Deadletter)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The roles of one process; at least one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(crate) struct Roles(BTreeSet<Role>);

impl Roles {
    /// The roles of `herald up`.
    pub(crate) fn whole() -> Self {
        Self(Role::WHOLE.into())
    }

    /// Whether the process has this role.
    pub(crate) fn has(&self, role: Role) -> bool {
        self.0.contains(&role)
    }

    /// Whether the process has the gateway and nothing else.
    pub(super) fn is_gateway_alone(&self) -> bool {
        self.has(Role::Gateway) && self.0.len() == 1
    }

    /// The roles in their order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Role> {
        self.0.iter().copied()
    }

    /// The users of the NATS server whose work these roles do.
    pub(super) fn nats_users(&self) -> Vec<NatsUser> {
        self.iter().map(Role::nats_user).collect()
    }

    /// The roles that others of these call and that are not in the process.
    pub(super) fn peers(&self) -> BTreeSet<Role> {
        let called = self.iter().flat_map(Role::calls);
        called.copied().filter(|role| !self.has(*role)).collect()
    }

    /// Whether one of the roles uses the store.
    pub(super) fn use_store(&self) -> bool {
        self.iter().any(Role::uses_store)
    }

    /// Whether one of the roles reads or writes devices.
    pub(super) fn use_devices(&self) -> bool {
        self.has(Role::Gateway) || self.has(Role::Push)
    }

    /// Whether one of the roles uses timelines.
    pub(super) fn use_timelines(&self) -> bool {
        self.iter().any(Role::uses_timelines)
    }

    /// Whether other processes call this one.
    pub(super) fn are_called(&self) -> bool {
        self.has(Role::Gateway) || self.iter().any(|role| !role.internal_services().is_empty())
    }
}

impl FromIterator<Role> for Roles {
    fn from_iter<I: IntoIterator<Item = Role>>(roles: I) -> Self {
        Self(roles.into_iter().collect())
    }
}

impl fmt::Display for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.iter().map(Role::as_str).collect();
        f.write_str(&names.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scaler_alone_needs_no_store() {
        let uses_store = |roles: &[Role]| roles.iter().copied().collect::<Roles>().use_store();
        assert!(!uses_store(&[Role::Scaler]));
        assert!(uses_store(&[Role::Scaler, Role::Push]));
        assert!(!Roles::whole().has(Role::Scaler));
    }

    #[test]
    fn each_role_has_a_user_of_its_name() {
        for role in Role::WHOLE.into_iter().chain([Role::Scaler]) {
            assert_eq!(role.nats_user().as_str(), role.as_str());
        }
    }

    #[test]
    fn a_process_needs_the_roles_that_it_calls_and_lacks() {
        let peers = |roles: &[Role]| -> Vec<Role> {
            let roles: Roles = roles.iter().copied().collect();
            roles.peers().into_iter().collect()
        };
        assert_eq!(Roles::whole().peers(), BTreeSet::new());
        assert_eq!(peers(&[Role::Fanout, Role::Push]), [Role::Graph]);
        assert_eq!(
            peers(&[Role::Gateway, Role::Graph, Role::Fanout]),
            [Role::Analytics, Role::Deadletter]
        );
        assert_eq!(peers(&[Role::Timeline]), []);
        assert_eq!(peers(&[Role::Scaler]), []);
    }
}
