//! The file descriptors of the process.
//!
//! Each connection needs one. Shells and service managers start processes with a soft limit of 1,024, for programs of
//! old, and a hard limit up to which a process may raise it.

use anyhow::{Result, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{
    Config,
    roles::{Role, Roles},
};

/// Descriptors of a process without clients: the store's files, NATS, PostgreSQL, Valkey, other roles, and some to spare.
const BASE: u64 = 256;
/// What the store's files, other roles and the HTTP port can need under load.
const LOAD: u64 = 1_024;

/// Raises the soft limit to the hard one, and compares it with what the process can need.
///
/// # Errors
/// The limit is too low for the process to work at all.
pub(super) fn prepare(config: &Config, roles: &Roles) -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    // `None` is unlimited.
    let current = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(error) => {
            tracing::warn!(%error, "can't raise the limit of open files to its hard limit");
            limit.current
        }
    };
    let connections = if roles.has(Role::Gateway) {
        let forwarded = 2 * config.gateway.forwarded_streams_max;
        (config.gateway.connections_max + forwarded) as u64
    } else {
        0
    };
    match shortage(current, connections) {
        Shortage::None => Ok(()),
        Shortage::UnderLoad { limit, needed } => {
            tracing::warn!(
                limit,
                needed,
                "the limit of open files is lower than what the connections can need; raise it (ulimit -Hn, LimitNOFILE \
                 of systemd, --ulimit nofile of docker), or lower gateway.connections_max"
            );
            Ok(())
        }
        Shortage::Always { limit } => bail!(
            "the limit of open files is {limit}, and Herald needs at least {BASE}: raise it (ulimit -Hn, LimitNOFILE of \
             systemd, --ulimit nofile of docker)"
        ),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Shortage {
    None,
    /// All connections that the settings allow would be too many.
    UnderLoad {
        limit: u64,
        needed: u64,
    },
    /// The process can't work.
    Always {
        limit: u64,
    },
}

fn shortage(limit: Option<u64>, connections: u64) -> Shortage {
    let needed = connections + LOAD;
    match limit {
        Some(limit) if limit < BASE => Shortage::Always { limit },
        Some(limit) if limit < needed => Shortage::UnderLoad { limit, needed },
        _ => Shortage::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_compared_with_what_connections_need() {
        assert_eq!(shortage(None, 1_000_000), Shortage::None);
        assert_eq!(shortage(Some(20_000), 8_704), Shortage::None);
        assert_eq!(
            shortage(Some(4_096), 8_704),
            Shortage::UnderLoad {
                limit: 4_096,
                needed: 9_728
            }
        );
        assert_eq!(shortage(Some(1_024), 0), Shortage::None);
        assert_eq!(shortage(Some(64), 0), Shortage::Always { limit: 64 });
    }

    #[test]
    fn the_soft_limit_is_raised_to_the_hard_one() {
        let before = getrlimit(Resource::Nofile);
        let lower = Rlimit {
            current: before.current.map(|current| current - 1),
            maximum: before.maximum,
        };
        setrlimit(Resource::Nofile, lower).unwrap();
        prepare(&Config::default(), &Roles::whole()).unwrap();
        assert_eq!(getrlimit(Resource::Nofile).current, before.maximum);
    }
}
