//! Faults of a fleet: of the processes of one role, and of PostgreSQL and Redis.

use std::{fmt, time::Duration};

use async_nats::{HeaderMap, header::NATS_MESSAGE_ID};
use futures::StreamExt;
use rand::{Rng, rngs::StdRng, seq::IndexedRandom};
use tokio::time::{Instant, sleep, timeout_at};

use super::{FaultKind, Kills};
use crate::{
    herald_program,
    world::{ACK_WAIT, FailOver, Process, Role, StartOptions, World},
};

/// Time limit of a restart after a kill.
const RESTART_LIMIT: Duration = Duration::from_secs(20);
/// Time under load with each number of workers.
const SCALED_TIME: Duration = Duration::from_millis(1_500);
/// Time limit for the chunks that are published a second time to appear.
const REPEAT_LIMIT: Duration = Duration::from_secs(30);
/// Setting that cuts the pushes of a post into chunks.
const CHUNK_SETTING: &str = "HERALD_FANOUT__PUSH_CHUNK_RECIPIENTS_MAX";
/// Numbers of recipients in a chunk of pushes; the suite starts with 16.
const CHUNK_SIZES: [u32; 3] = [5, 23, 40];

/// Where a process can kill itself, by role.
const KILL_POINTS: [(Role, &str); 7] = [
    (Role::Gateway, "gateway.accepted"),
    (Role::Graph, "graph.followed"),
    (Role::Fanout, "fanout.planned"),
    (Role::Fanout, "fanout.chunk-published"),
    (Role::Timeline, "handled.timeline-normal"),
    (Role::Push, "push.sent"),
    (Role::Analytics, "handled.analytics-events"),
];

/// A fault of a fleet.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum FleetFault {
    /// SIGKILL of a process of a role; `next` configures its next start.
    Kill {
        role: Role,
        member: usize,
        next: StartOptions,
    },
    /// SIGSTOP of a process of a role.
    Freeze {
        role: Role,
        member: usize,
        time: Duration,
    },
    /// SIGKILL of all processes of PostgreSQL, and a restart.
    KillPostgres { down: Duration },
    /// SIGSTOP of all processes of PostgreSQL.
    FreezePostgres { time: Duration },
    /// SIGKILL of Redis, and a restart.
    KillRedis { down: Duration },
    /// SIGSTOP of Redis.
    FreezeRedis { time: Duration },
    /// Redis crashes and has lost its last second.
    LoseSecond,
    /// The replica of Redis becomes the primary.
    FailOver { how: FailOver },
    /// Redis loses everything, and readers or `herald rebuild timelines` make the timelines again.
    Flush { rebuild: bool },
    /// Rolling restart of fan-out with another size of push chunks.
    RollChunks { recipients: u32 },
    /// The workers of a role become fewer and more under load: 1 → 4 → 1 → 2.
    Scale { role: Role },
    /// So many chunks of pushes are published a second time as soon as they appear, so that two workers get each at once.
    RepeatChunks { count: u32 },
}

impl FleetFault {
    /// The faults of this kind in one round of the schedule.
    pub(super) fn round(kind: FaultKind, random: &mut StdRng) -> Vec<Self> {
        let mut time = |from: u64, to: u64| Duration::from_millis(random.random_range(from..=to));
        match kind {
            FaultKind::Stores => vec![
                Self::KillPostgres { down: time(0, 2_000) },
                Self::FreezePostgres {
                    time: time(1_000, 3_500),
                },
                Self::KillRedis { down: time(0, 1_500) },
                Self::FreezeRedis {
                    time: time(1_000, 3_500),
                },
                Self::LoseSecond,
                Self::FailOver { how: FailOver::Crash },
                Self::FailOver { how: FailOver::Stale },
                Self::FailOver {
                    how: FailOver::SwitchOver,
                },
                Self::Flush {
                    rebuild: random.random(),
                },
            ],
            FaultKind::Repeat => vec![Self::RepeatChunks {
                count: random.random_range(100..=250),
            }],
            FaultKind::Fleet => {
                let role = [Role::Fanout, Role::Timeline, Role::Push];
                vec![
                    Self::Scale {
                        role: *role.choose(random).expect("not empty"),
                    },
                    Self::RollChunks {
                        recipients: *CHUNK_SIZES.choose(random).expect("not empty"),
                    },
                ]
            }
            FaultKind::FreezeRoles => Role::SERVED
                .map(|role| Self::Freeze {
                    role,
                    member: random.random_range(0..16),
                    // Longer than AckWait: another worker gets the messages meanwhile.
                    time: ACK_WAIT.mul_f64(random.random_range(1.2..2.0)),
                })
                .into(),
            _ => Role::SERVED
                .map(|role| Self::Kill {
                    role,
                    member: random.random_range(0..16),
                    next: start_with_kill_point(role, random),
                })
                .into(),
        }
    }
}

/// Often a start that kills itself again after some passes of a failpoint.
fn start_with_kill_point(role: Role, random: &mut StdRng) -> StartOptions {
    let points: Vec<&str> = KILL_POINTS
        .iter()
        .filter(|(of, _)| *of == role)
        .map(|(_, point)| *point)
        .collect();
    let point = points.choose(random).filter(|_| random.random());
    point.map_or_else(StartOptions::default, |point| StartOptions {
        failpoints: format!("{point}={}*off->1*return(kill)", random.random_range(0..20)),
    })
}

/// Injects a fault, and ends it after its time.
pub(super) async fn inject(world: &mut World, fault: &FleetFault, kills: &mut Kills) {
    if let FleetFault::RepeatChunks { count } = fault {
        world.log.print(fault);
        return repeat_chunks(world, *count).await;
    }
    let _fault = world.log.begin_fault(fault);
    match fault {
        FleetFault::RepeatChunks { .. } => unreachable!("handled above"),
        FleetFault::Kill { role, member, next } => {
            let process = member_of(world, *role, *member);
            let starts = process.starts();
            process.kill(next.clone());
            let restarted = || async { process.starts() > starts };
            harness::until("the process is started again", RESTART_LIMIT, restarted).await;
        }
        FleetFault::Freeze { role, member, time } => {
            let process = member_of(world, *role, *member);
            process.freeze(true);
            sleep(*time).await;
            process.freeze(false);
        }
        FleetFault::Scale { role } => {
            for count in [1, 4, 1, 2] {
                world.herald.scale(*role, count).await;
                sleep(SCALED_TIME).await;
            }
        }
        FleetFault::RollChunks { recipients } => {
            world
                .herald
                .roll(Role::Fanout, CHUNK_SETTING, &recipients.to_string())
                .await;
        }
        FleetFault::KillPostgres { .. }
        | FleetFault::FreezePostgres { .. }
        | FleetFault::KillRedis { .. }
        | FleetFault::FreezeRedis { .. }
        | FleetFault::LoseSecond
        | FleetFault::FailOver { .. }
        | FleetFault::Flush { .. } => inject_in_stores(world, fault, kills).await,
    }
}

async fn inject_in_stores(world: &World, fault: &FleetFault, kills: &mut Kills) {
    let stores = world.stores.as_ref().expect("a fleet has stores");
    match fault {
        FleetFault::KillPostgres { down } => {
            stores.postgres.kill().await.expect("PostgreSQL can be killed");
            kills.stores += 1;
            sleep(*down).await;
            stores.postgres.restart().await.expect("PostgreSQL starts again");
        }
        FleetFault::FreezePostgres { time } => {
            stores.postgres.pause().await.expect("PostgreSQL can be paused");
            sleep(*time).await;
            stores.postgres.resume().expect("PostgreSQL can be resumed");
        }
        FleetFault::KillRedis { down } => {
            stores.redis().kill().await.expect("Redis can be killed");
            kills.stores += 1;
            sleep(*down).await;
            stores.redis().restart().await.expect("Redis starts again");
        }
        FleetFault::FreezeRedis { time } => {
            stores.redis().pause().expect("Redis can be paused");
            sleep(*time).await;
            stores.redis().resume().expect("Redis can be resumed");
        }
        FleetFault::LoseSecond => {
            let lost = stores.lose_last_second_of_redis().await;
            kills.stores += 1;
            world.log.print(format!("Redis lost {lost} bytes"));
        }
        FleetFault::FailOver { how } => kills.stores += stores.fail_over(*how).await,
        FleetFault::Flush { rebuild } => {
            stores.redis().flush().await.expect("Redis can be flushed");
            if *rebuild {
                rebuild_timelines(world).await;
            }
        }
        _ => unreachable!("not a fault of a store"),
    }
}

/// `herald rebuild timelines`, as an operator runs it after a loss. Prints the last line of its output.
pub(crate) async fn rebuild_timelines(world: &World) {
    let program = herald_program();
    let program = program.to_str().expect("a readable path");
    let server = world.herald.gateway().operator_url;
    let arguments = ["rebuild", "timelines", "--operator-server", &server];
    let done = harness::run(program, &arguments, &[]).await;
    let output = format!("{}{}", done.stdout, done.stderr);
    let last = output.lines().last().unwrap_or_default();
    world
        .log
        .print(format!("rebuild ended with code {}: {last}", done.code));
}

fn member_of(world: &World, role: Role, member: usize) -> &Process {
    let members = world.herald.of(role);
    members[member % members.len()]
}

/// Publishes chunks of pushes a second time, without their ids.
async fn repeat_chunks(world: &World, count: u32) {
    let client = world.nats.cluster.client().await.expect("nats-server answers");
    let mut chunks = client
        .subscribe("push.v1.deliver.>")
        .await
        .expect("a subscription");
    let end = Instant::now() + REPEAT_LIMIT;
    let mut repeated = 0;
    while repeated < count
        && let Ok(Some(chunk)) = timeout_at(end, chunks.next()).await
    {
        let headers = chunk.headers.unwrap_or_default();
        // A copy of the suite has none.
        if headers.get(NATS_MESSAGE_ID).is_none() {
            continue;
        }
        let mut without_id = HeaderMap::new();
        for (name, values) in headers.iter().filter(|(name, _)| **name != NATS_MESSAGE_ID) {
            for value in values {
                without_id.append(name.clone(), value.clone());
            }
        }
        client
            .publish_with_headers(chunk.subject, without_id, chunk.payload)
            .await
            .expect("the connection lives");
        repeated += 1;
    }
    client.flush().await.expect("the connection lives");
    world
        .log
        .print(format!("published {repeated} chunks a second time"));
}

impl fmt::Display for FleetFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill { role, .. } => write!(f, "kill a process of {}", role.as_str()),
            Self::Freeze { role, time, .. } => {
                write!(f, "SIGSTOP a process of {} for {time:?}", role.as_str())
            }
            Self::KillPostgres { down } => write!(f, "kill PostgreSQL, down for {down:?}"),
            Self::FreezePostgres { time } => write!(f, "SIGSTOP PostgreSQL for {time:?}"),
            Self::KillRedis { down } => write!(f, "kill Redis, down for {down:?}"),
            Self::FreezeRedis { time } => write!(f, "SIGSTOP Redis for {time:?}"),
            Self::FailOver { how } => f.write_str(match how {
                FailOver::Crash => "kill the primary of Redis, its replica takes over",
                FailOver::Stale => "kill the primary of Redis, a stale replica takes over",
                FailOver::SwitchOver => "the replica of Redis takes over from its living primary",
            }),
            Self::LoseSecond => f.write_str("Redis crashes and loses its last second"),
            Self::Flush { rebuild } => {
                let then = if *rebuild {
                    "herald rebuild timelines"
                } else {
                    "readers"
                };
                write!(f, "flush Redis; {then} make the timelines again")
            }
            Self::RollChunks { recipients } => {
                write!(f, "restart fan-out with {recipients} recipients in a push chunk")
            }
            Self::Scale { role } => write!(f, "scale {} to 1, 4, 1 and 2", role.as_str()),
            Self::RepeatChunks { count } => write!(f, "publish {count} push chunks twice"),
        }
    }
}
