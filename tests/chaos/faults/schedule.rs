//! Derives the faults, their order and strength from the seed.

use std::{collections::VecDeque, fmt, time::Duration};

use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom, seq::SliceRandom};

use super::{fleet::FleetFault, members::MemberFault};
use crate::world::{ACK_WAIT, StartOptions, Toxic};

/// Failpoints that can kill the process: between an effect, its commit, its event and its acknowledgement.
const KILL_POINTS: [&str; 26] = [
    "gateway.publish",
    "gateway.accepted",
    "graph.followed",
    "fanout.planned",
    "fanout.chunk-published",
    "push.sent",
    "published",
    "store.archived",
    "store.deliver",
    "store.claim",
    "store.settle",
    "store.settled",
    "store.intend",
    "store.count",
    "store.counted",
    "handled.archive",
    "handled.analytics-posts",
    "handled.analytics-events",
    "handled.fanout-normal",
    "handled.fanout-high",
    "handled.slice-normal",
    "handled.timeline-normal",
    "handled.push-normal",
    "waiting.push-normal",
    "handled.redrive-push",
    "handled.redrive-timeline",
];

/// Failpoints of store calls that can return errors.
const ERROR_POINTS: [&str; 10] = [
    "store.archive",
    "store.archived",
    "store.plan",
    "store.outcome",
    "store.claim",
    "store.settle",
    "store.settled",
    "store.deliver",
    "store.follow",
    "store.count",
];

/// Subjects of undecodable messages.
const POISON_SUBJECTS: [&str; 5] = [
    "post.v1.created.normal",
    "fanout.v1.slice.high",
    "timeline.v1.deliver.normal",
    "push.v1.deliver.low",
    "event.v1.settled.push",
];

/// Streams whose leaders get faults: the one posts are published to, and one consumed by workers.
pub(super) const LED_STREAMS: [&str; 2] = ["POSTS", "TIMELINE"];

/// Kinds of faults; a scenario selects some of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FaultKind {
    /// Kills of herald only.
    KillHerald,
    Kill,
    Freeze,
    Network,
    Store,
    Provider,
    Poison,
    /// Permanently refused pushes, and redrives of dead letters.
    Redrive,
    /// Faults of a stream's leader in a cluster.
    Leader,
    /// Network partitions between the servers of a cluster.
    Partition,
    /// Members of a cluster that are lost, replaced, or come back with an older state.
    Members,
    /// Kills of the processes of a fleet.
    Roles,
    /// Freezes of the processes of a fleet.
    FreezeRoles,
    /// Kills, freezes and losses of PostgreSQL and Redis, and kills of nats-server.
    Stores,
    /// Rolling restarts, and workers that come and go.
    Fleet,
    /// Chunks of pushes that two workers get at once. Nothing excuses a repeated push then.
    Repeat,
}

/// A fault.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Fault {
    /// SIGKILL of herald; `next` configures its next start.
    KillHerald { next: StartOptions },
    /// SIGKILL of nats-server, and a restart after `down`.
    KillNats { down: Duration },
    /// SIGKILL of both processes.
    KillBoth { down: Duration },
    /// SIGKILL of the server that leads a stream.
    KillLeader { stream: &'static str, down: Duration },
    /// The leader of a stream steps down.
    StepDown { stream: &'static str },
    /// SIGSTOP of the server that leads a stream.
    FreezeLeader { stream: &'static str, time: Duration },
    /// The leader of a stream is partitioned from the other servers, but not from clients.
    PartitionLeader { stream: &'static str, time: Duration },
    /// A member of the cluster is lost, replaced, or comes back with an older state.
    Member(MemberFault),
    /// SIGSTOP of herald.
    FreezeHerald { time: Duration },
    /// SIGSTOP of nats-server.
    FreezeNats { time: Duration },
    /// Network fault between herald and nats-server.
    Network { toxic: Toxic, time: Duration },
    /// The push provider answers one device in `one_in` with this status.
    ProviderAnswers {
        status: u16,
        retry_after: Option<Duration>,
        one_in: usize,
        time: Duration,
    },
    /// The push provider accepts requests and never answers.
    ProviderHangs { time: Duration },
    /// The push provider refuses connections.
    ProviderGone { time: Duration },
    /// An undecodable message.
    Poison { subject: &'static str },
    /// All dead letters are redriven.
    Redrive,
    /// A fault of a fleet.
    Fleet(FleetFault),
}

/// A fault and the number of posts to accept before it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Step {
    pub(crate) posts_before: usize,
    pub(crate) fault: Fault,
}

/// An infinite sequence of steps: one shuffled list after the other, each with faults of every kind.
#[derive(Debug)]
pub(crate) struct Schedule {
    random: StdRng,
    faults: VecDeque<Fault>,
    kinds: Vec<FaultKind>,
    pauses: bool,
}

impl Schedule {
    pub(crate) fn new(seed: u64, kinds: &[FaultKind]) -> Self {
        assert!(!kinds.is_empty());
        Self {
            random: StdRng::seed_from_u64(seed),
            faults: VecDeque::new(),
            kinds: kinds.to_vec(),
            pauses: true,
        }
    }

    fn shuffled_faults(&mut self) -> Vec<Fault> {
        let mut faults = Vec::new();
        for kind in self.kinds.clone() {
            match kind {
                FaultKind::KillHerald => faults.push(Fault::KillHerald {
                    next: StartOptions::default(),
                }),
                FaultKind::Kill => {
                    for _ in 0..4 {
                        faults.push(Fault::KillHerald {
                            next: self.start_with_kill_point(),
                        });
                    }
                    faults.push(Fault::KillHerald {
                        next: StartOptions::default(),
                    });
                    faults.push(Fault::KillNats {
                        down: self.ms(0..=300),
                    });
                    faults.push(Fault::KillNats {
                        down: self.ms(300..=2_500),
                    });
                    faults.push(Fault::KillBoth {
                        down: self.ms(0..=1_000),
                    });
                }
                FaultKind::Freeze => {
                    faults.push(Fault::FreezeHerald {
                        time: self.longer_than_ack_wait(),
                    });
                    faults.push(Fault::FreezeNats {
                        time: self.longer_than_ack_wait(),
                    });
                }
                FaultKind::Network => {
                    let latency = Toxic::Latency {
                        ms: self.random.random_range(20..=400),
                        jitter_ms: 50,
                    };
                    let bandwidth = Toxic::Bandwidth {
                        kb_per_second: self.random.random_range(4..=64),
                    };
                    for toxic in [latency, bandwidth, Toxic::ResetPeer, Toxic::HalfOpen] {
                        faults.push(Fault::Network {
                            toxic,
                            time: self.ms(500..=4_000),
                        });
                    }
                }
                FaultKind::Leader => {
                    for stream in LED_STREAMS {
                        faults.push(Fault::StepDown { stream });
                        faults.push(Fault::KillLeader {
                            stream,
                            down: self.ms(100..=2_000),
                        });
                    }
                    faults.push(Fault::FreezeLeader {
                        stream: LED_STREAMS[0],
                        time: self.longer_than_ack_wait(),
                    });
                }
                FaultKind::Partition => {
                    for stream in LED_STREAMS {
                        // Longer than the election timeout of the other servers, four to nine seconds.
                        let time = self.ms(6_000..=11_000);
                        faults.push(Fault::PartitionLeader { stream, time });
                    }
                }
                FaultKind::Store => faults.push(Fault::KillHerald {
                    next: self.start_with_store_errors(),
                }),
                FaultKind::Provider => {
                    for (status, retry_after) in [(429, Some(1)), (500, None), (503, Some(2))] {
                        faults.push(Fault::ProviderAnswers {
                            status,
                            retry_after: retry_after.map(Duration::from_secs),
                            one_in: self.random.random_range(1..=4),
                            time: self.ms(500..=2_000),
                        });
                    }
                    // Often longer than the time-out of a push, four seconds.
                    faults.push(Fault::ProviderHangs {
                        time: self.ms(2_000..=7_000),
                    });
                    faults.push(Fault::ProviderGone {
                        time: self.ms(200..=1_500),
                    });
                }
                FaultKind::Redrive => {
                    faults.push(Fault::ProviderAnswers {
                        status: 403,
                        retry_after: None,
                        one_in: self.random.random_range(1..=4),
                        time: self.ms(300..=1_000),
                    });
                    faults.push(Fault::Redrive);
                    faults.push(Fault::Redrive);
                }
                FaultKind::Members => {
                    let faults_of_members = MemberFault::round(&mut self.random);
                    faults.extend(faults_of_members.into_iter().map(Fault::Member));
                }
                FaultKind::Roles
                | FaultKind::FreezeRoles
                | FaultKind::Stores
                | FaultKind::Fleet
                | FaultKind::Repeat => {
                    let of_fleet = FleetFault::round(kind, &mut self.random);
                    faults.extend(of_fleet.into_iter().map(Fault::Fleet));
                    if kind == FaultKind::Stores {
                        faults.push(Fault::KillNats {
                            down: self.ms(100..=1_500),
                        });
                    }
                }
                FaultKind::Poison => {
                    let subject = POISON_SUBJECTS
                        .choose(&mut self.random)
                        .expect("the list is not empty");
                    faults.push(Fault::Poison { subject });
                }
            }
        }
        faults.shuffle(&mut self.random);
        faults
    }

    /// A start that kills itself when it has passed a random failpoint a random number of times.
    fn start_with_kill_point(&mut self) -> StartOptions {
        let point = KILL_POINTS
            .choose(&mut self.random)
            .expect("the list is not empty");
        let before = self.random.random_range(0..40);
        StartOptions {
            failpoints: format!("{point}={before}*off->1*return(kill)"),
        }
    }

    /// A start whose store calls fail some times.
    fn start_with_store_errors(&mut self) -> StartOptions {
        let points: Vec<_> = ERROR_POINTS
            .choose_multiple(&mut self.random, 3)
            .copied()
            .collect();
        let points: Vec<_> = points
            .into_iter()
            .map(|point| {
                let before = self.random.random_range(0..30);
                let times = self.random.random_range(1..=10);
                format!("{point}={before}*off->{times}*return(error)")
            })
            .collect();
        StartOptions {
            failpoints: points.join(";"),
        }
    }

    fn longer_than_ack_wait(&mut self) -> Duration {
        ACK_WAIT.mul_f64(self.random.random_range(1.2..2.0))
    }

    fn ms(&mut self, range: std::ops::RangeInclusive<u64>) -> Duration {
        Duration::from_millis(self.random.random_range(range))
    }
}

impl Iterator for Schedule {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        if self.faults.is_empty() {
            self.faults = self.shuffled_faults().into();
        }
        let fault = self.faults.pop_front()?;
        // Sometimes the next fault comes before the mesh has recovered from the last one.
        let posts_before = if self.pauses && self.random.random_ratio(1, 5) {
            0
        } else {
            self.random.random_range(5..40)
        };
        Some(Step { posts_before, fault })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KillHerald { .. } => f.write_str("kill herald"),
            Self::KillNats { down } => write!(f, "kill nats-server, down for {down:?}"),
            Self::KillBoth { down } => write!(f, "kill herald and nats-server, down for {down:?}"),
            Self::KillLeader { stream, down } => write!(f, "kill the leader of {stream}, down for {down:?}"),
            Self::StepDown { stream } => write!(f, "the leader of {stream} steps down"),
            Self::FreezeLeader { stream, time } => write!(f, "SIGSTOP the leader of {stream} for {time:?}"),
            Self::PartitionLeader { stream, time } => {
                write!(
                    f,
                    "partition the leader of {stream} from the other servers for {time:?}"
                )
            }
            Self::FreezeHerald { time } => write!(f, "SIGSTOP herald for {time:?}"),
            Self::FreezeNats { time } => write!(f, "SIGSTOP nats-server for {time:?}"),
            Self::Network { toxic, time } => write!(f, "network to nats-server: {toxic:?} for {time:?}"),
            Self::ProviderAnswers {
                status,
                retry_after,
                one_in,
                time,
            } => write!(
                f,
                "push provider answers {status} (Retry-After {retry_after:?}) to one device in {one_in} for {time:?}"
            ),
            Self::ProviderHangs { time } => write!(f, "push provider hangs for {time:?}"),
            Self::ProviderGone { time } => write!(f, "push provider refuses connections for {time:?}"),
            Self::Redrive => f.write_str("redrive all dead letters"),
            Self::Fleet(fault) => fault.fmt(f),
            Self::Member(fault) => fault.fmt(f),
            Self::Poison { subject } => write!(f, "publish poison to {subject}"),
        }
    }
}
