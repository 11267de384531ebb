//! The readiness checks of the process and of each role.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use herald_mesh::Mesh;
use herald_runtime::{health::Group, http::Readiness, peer::Peer};
use herald_store::Health;
use parking_lot::Mutex;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::roles::{Role, Roles};

/// Interval at which the store is checked.
const STORE_INTERVAL: Duration = Duration::from_secs(1);
/// Timeout of a check of the store.
const STORE_TIMEOUT: Duration = Duration::from_secs(3);

/// The latest result of a check that needs a call; `Err` is the reason of the failure.
type CheckResult = Arc<Mutex<Result<(), String>>>;

/// The readiness of a process.
#[derive(Clone)]
pub(super) struct Checks {
    /// All checks.
    pub(super) process: Readiness,
    roles: BTreeMap<Role, Readiness>,
    /// Cancelled at the begin of the shutdown: from then on the process is not ready.
    pub(super) draining: CancellationToken,
}

impl Checks {
    /// Starts with the checks of the connections to NATS.
    pub(super) fn new(roles: &Roles, connections: &[Mesh]) -> Self {
        let process = Readiness::new();
        let draining = CancellationToken::new();
        let stopped = draining.clone();
        process.check("shutdown", move || {
            if stopped.is_cancelled() {
                Err("the process is shutting down".into())
            } else {
                Ok(())
            }
        });
        let mut by_role = BTreeMap::new();
        for role in roles.iter() {
            let readiness = Readiness::new();
            let connections = connections.to_vec();
            readiness.check("nats", move || {
                if connections.iter().all(Mesh::is_connected) {
                    Ok(())
                } else {
                    Err("the connection to NATS is down".into())
                }
            });
            process.include(readiness.clone());
            by_role.insert(role, readiness);
        }
        Self {
            process,
            roles: by_role,
            draining,
        }
    }

    /// Adds a check to all roles. It fails with the reason in the returned place; it succeeds while that is `None`.
    pub(super) fn add_to_all(&self, name: &'static str, reason: &str) -> Arc<Mutex<Option<String>>> {
        let failing = Arc::new(Mutex::new(Some(reason.to_owned())));
        for readiness in self.roles.values() {
            let failing = failing.clone();
            readiness.check(name, move || match &*failing.lock() {
                Some(reason) => Err(reason.clone()),
                None => Ok(()),
            });
        }
        failing
    }

    /// The checks of a role of this process.
    pub(super) fn of(&self, role: Role) -> Readiness {
        self.roles.get(&role).cloned().unwrap_or_default()
    }

    /// Checks a store that is shared by processes every second, until the shutdown.
    ///
    /// The gateway only reports these checks: it accepts posts without the store, and without any ready gateway nobody
    /// could submit one.
    pub(super) fn watch_store(&self, health: Arc<dyn Health>) {
        let records = CheckResult::new(Mutex::new(Ok(())));
        let timelines = CheckResult::new(Mutex::new(Ok(())));
        for (role, readiness) in &self.roles {
            add(readiness, "store", &records);
            if role.uses_timelines() {
                add(readiness, "timelines", &timelines);
            }
            if *role == Role::Gateway {
                for name in ["store", "timelines", "disk", "archive"] {
                    readiness.report_only(name);
                }
            }
        }
        let uses_timelines = self.roles.keys().any(|role| role.uses_timelines());
        let watching = async move {
            loop {
                update("store", &records, health.records()).await;
                if uses_timelines {
                    update("timelines", &timelines, health.timelines()).await;
                }
                tokio::time::sleep(STORE_INTERVAL).await;
            }
        };
        let draining = self.draining.clone();
        tokio::spawn(async move { draining.run_until_cancelled(watching).await });
    }

    /// Adds whether a role of other processes can be reached to the roles that can't work without it. The gateway can: it
    /// refuses the calls that it would forward.
    pub(super) fn watch_peer(&self, role: Role, peer: &Peer) {
        for (caller, readiness) in &self.roles {
            if *caller == Role::Fanout && caller.calls().contains(&role) {
                let peer = peer.clone();
                readiness.check(role.as_str(), move || {
                    if peer.is_healthy() {
                        Ok(())
                    } else {
                        Err(format!("no healthy {role} process can be reached"))
                    }
                });
            }
        }
    }

    /// The names of the roles and their checks.
    pub(super) fn role_groups(&self) -> Vec<Group> {
        let roles = self.roles.iter().map(|(role, readiness)| Group {
            names: vec![role.as_str().to_owned()],
            readiness: readiness.clone(),
        });
        roles.collect()
    }

    /// The names of `grpc.health.v1` and their checks: the process, its roles, and its internal gRPC services.
    pub(super) fn groups(&self) -> Vec<Group> {
        let process = Group {
            names: vec![String::new()],
            readiness: self.process.clone(),
        };
        let roles = self.roles.iter().map(|(role, readiness)| {
            let services = role.internal_services().iter();
            let names = std::iter::once(role.as_str()).chain(services.copied());
            Group {
                names: names.map(str::to_owned).collect(),
                readiness: readiness.clone(),
            }
        });
        std::iter::once(process).chain(roles).collect()
    }
}

fn add(readiness: &Readiness, name: &str, result: &CheckResult) {
    let result = result.clone();
    readiness.check(name, move || result.lock().clone());
}

/// Runs a check and logs a change.
async fn update(
    check: &'static str,
    stored: &CheckResult,
    call: impl Future<Output = herald_store::Result<()>>,
) {
    let result = match timeout(STORE_TIMEOUT, call).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(herald_runtime::telemetry::error_chain(&error)),
        Err(_) => Err(format!("no answer within {} s", STORE_TIMEOUT.as_secs())),
    };
    let mut stored = stored.lock();
    match (&*stored, &result) {
        (Ok(()), Err(reason)) => tracing::warn!(check, reason, "the store can't be used"),
        (Err(_), Ok(())) => tracing::info!(check, "the store can be used again"),
        _ => {}
    }
    *stored = result;
}
