//! What is scaled: a role in one lane or in all lanes, and the consumers whose messages are its work.

use std::{fmt, str::FromStr};

use herald_mesh::consumers::{self, ConsumerKind};
use herald_model::{Lane, UnknownName};

/// The lane of the consumers that all workers of a role share, whatever their lanes: those of redriven and of due messages.
/// Counted in each lane they would wake a worker of each; every mesh has workers of this lane.
const SHARED_LANE: Lane = Lane::Normal;

/// A role whose processes can be scaled by their work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Role {
    Fanout,
    Timeline,
    Push,
    Archive,
    Analytics,
}

impl Role {
    pub(crate) const ALL: [Self; 5] = [
        Self::Fanout,
        Self::Timeline,
        Self::Push,
        Self::Archive,
        Self::Analytics,
    ];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Fanout => "fanout",
            Self::Timeline => "timeline",
            Self::Push => "push",
            Self::Archive => "archive",
            Self::Analytics => "analytics",
        }
    }

    /// Whether its workers can have some of the lanes.
    pub(crate) const fn has_lanes(self) -> bool {
        matches!(self, Self::Fanout | Self::Timeline | Self::Push)
    }
}

impl FromStr for Role {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        Self::ALL
            .into_iter()
            .find(|role| role.as_str() == name)
            .ok_or_else(|| UnknownName {
                name: name.into(),
                known: "fanout, timeline, push, archive, analytics",
            })
    }
}

/// A role in one lane, or in all lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Scope {
    pub(crate) role: Role,
    /// `None`: all lanes.
    pub(crate) lane: Option<Lane>,
}

/// A consumer of a scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) consumer: &'static str,
    /// Lane of a fan-out consumer, that is held back while the streams below are deep.
    pub(crate) gated_by: Option<Lane>,
    /// Whether this is what the role is there for. The others, of redriven and of due messages, are too rare to measure a rate.
    pub(crate) is_main: bool,
}

impl Scope {
    /// Each role in all lanes, and in each lane if it has lanes.
    pub(crate) fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for role in Role::ALL {
            all.push(Self { role, lane: None });
            if role.has_lanes() {
                all.extend(Lane::ALL.map(|lane| Self {
                    role,
                    lane: Some(lane),
                }));
            }
        }
        all
    }

    /// The lane's name; `all` for all lanes.
    pub(crate) const fn lane_name(self) -> &'static str {
        match self.lane {
            Some(lane) => lane.as_str(),
            None => "all",
        }
    }

    /// The consumers whose messages are the work of the scope.
    pub(crate) fn sources(self) -> Vec<Source> {
        let main = |consumer| Source {
            consumer,
            gated_by: None,
            is_main: true,
        };
        let lanes = self.lane.map_or(Lane::ALL.to_vec(), |lane| vec![lane]);
        let lanes = lanes.into_iter();
        let mut sources: Vec<Source> = match self.role {
            Role::Fanout => lanes
                .flat_map(|lane| {
                    [consumers::fanout(lane), consumers::slice(lane)].map(|consumer| Source {
                        gated_by: Some(lane),
                        ..main(consumer)
                    })
                })
                .collect(),
            Role::Timeline => lanes.map(|lane| main(consumers::timeline(lane))).collect(),
            Role::Push => lanes.map(|lane| main(consumers::push(lane))).collect(),
            Role::Archive => vec![main(consumers::ARCHIVE)],
            Role::Analytics => vec![
                main(consumers::ANALYTICS_POSTS),
                main(consumers::ANALYTICS_EVENTS),
            ],
        };
        if self.lane.is_none_or(|lane| lane == SHARED_LANE) {
            sources.extend(self.shared().into_iter().map(|consumer| Source {
                is_main: false,
                ..main(consumer)
            }));
        }
        sources
    }

    /// The consumers that all workers of the role have.
    fn shared(self) -> Vec<&'static str> {
        match self.role {
            Role::Fanout => vec![
                consumers::redrive(ConsumerKind::Fanout),
                consumers::redrive(ConsumerKind::Slice),
            ],
            Role::Timeline => vec![consumers::redrive(ConsumerKind::Timeline), consumers::LATER],
            Role::Push => vec![consumers::redrive(ConsumerKind::Push), consumers::LATER],
            Role::Archive => vec![consumers::redrive(ConsumerKind::Archive)],
            Role::Analytics => vec![
                consumers::redrive(ConsumerKind::AnalyticsPosts),
                consumers::redrive(ConsumerKind::AnalyticsEvents),
            ],
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.role.as_str(), self.lane_name())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use herald_mesh::{Topology, TopologyConfig};

    use super::*;

    #[test]
    fn every_consumer_of_a_worker_is_in_a_scope() {
        let topology = Topology::new(&TopologyConfig::default()).unwrap();
        let known: BTreeSet<&str> = topology.consumers.iter().map(|spec| spec.name.as_str()).collect();
        let scaled: BTreeSet<&str> = Scope::all()
            .into_iter()
            .flat_map(Scope::sources)
            .map(|source| source.consumer)
            .collect();
        // Two processes of deadletter are enough for any load, so nothing scales them.
        let others: BTreeSet<&str> = [consumers::DEADLETTER, consumers::DEAD_LETTERS].into();
        assert_eq!(
            known.difference(&scaled).copied().collect::<BTreeSet<_>>(),
            others
        );
        assert_eq!(scaled.difference(&known).count(), 0);
    }

    #[test]
    fn the_lanes_of_a_role_have_its_consumers_once() {
        for role in Role::ALL.into_iter().filter(|role| role.has_lanes()) {
            let names = |lane| -> Vec<&str> {
                let sources = Scope { role, lane }.sources();
                sources.into_iter().map(|source| source.consumer).collect()
            };
            let mut lanes: Vec<&str> = Lane::ALL.into_iter().flat_map(|lane| names(Some(lane))).collect();
            let mut all = names(None);
            lanes.sort_unstable();
            all.sort_unstable();
            assert_eq!(lanes, all);
        }
    }
}
