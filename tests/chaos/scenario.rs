//! The scenarios: their faults, their duration and their verdict.

use std::{process::ExitCode, sync::Arc, time::Duration};

use crate::{
    checker::{self, Verdict},
    cli::Arguments,
    controls,
    faults::{self, Budget, FaultKind, Kills, Schedule},
    log::Log,
    workload::{self, Journal, Load, Running, Watchers},
    world::{Options, World},
};

/// Scenario: random faults of all kinds on one nats-server.
const FAULTS: &str = "faults";
/// Scenario: random faults of stream leaders and herald on three nats-servers with three replicas of each stream.
const CLUSTER: &str = "cluster";

/// Scenario: random faults of a fleet, a process for each role, on PostgreSQL and Redis.
const FLEET: &str = "fleet";

/// Duration of the faults in the bounded pass.
const BOUNDED_TIME: Duration = Duration::from_secs(50);
const BOUNDED_CLUSTER_TIME: Duration = Duration::from_secs(40);
const BOUNDED_FLEET_TIME: Duration = Duration::from_secs(45);
/// Length of an episode of a long run, in kills and in time. Each episode has its own mesh and check.
const EPISODE_KILLS: u64 = 25;
const EPISODE_TIME: Duration = Duration::from_mins(3);

const CLUSTER_KINDS: [FaultKind; 4] = [
    FaultKind::KillHerald,
    FaultKind::Leader,
    FaultKind::Partition,
    FaultKind::Members,
];
const FLEET_KINDS: [FaultKind; 6] = [
    FaultKind::Roles,
    FaultKind::FreezeRoles,
    FaultKind::Stores,
    FaultKind::Fleet,
    FaultKind::Repeat,
    FaultKind::Redrive,
];
const SINGLE_SERVER_KINDS: [FaultKind; 7] = [
    FaultKind::Kill,
    FaultKind::Freeze,
    FaultKind::Network,
    FaultKind::Store,
    FaultKind::Provider,
    FaultKind::Poison,
    FaultKind::Redrive,
];

/// Runs the selected scenarios. The exit code is a failure if the checker found violations.
pub(crate) async fn run(arguments: &Arguments) -> ExitCode {
    let names = controls::CONTROLS.iter().map(|control| control.name);
    let names: Vec<&str> = [FAULTS, CLUSTER, FLEET].into_iter().chain(names).collect();
    // A long run has exactly one scenario.
    let long = arguments.long.is_some() || arguments.kills.is_some();
    let only = |name: &str| !long || name == arguments.only.as_deref().unwrap_or(FAULTS);
    let wanted = names.iter().copied().filter(|name| arguments.selects(name));
    let wanted: Vec<&str> = wanted.filter(|name| only(name)).collect();
    if arguments.list {
        for name in &wanted {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    let seed = arguments.seed.unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let log = Log::new();
    log.print(format!(
        "seed {seed}; {} of {} scenarios",
        wanted.len(),
        names.len()
    ));
    let mut good = true;
    for name in wanted {
        log.print(format!("scenario {name}"));
        good &= match controls::CONTROLS.iter().find(|control| control.name == name) {
            Some(control) => controls::run(control, arguments, &log, seed).await,
            None => run_random_faults(name, arguments, &log, seed).await,
        };
    }
    log.print(if good {
        "all scenarios passed".to_owned()
    } else {
        format!("FAILED: repeat the run with --seed {seed}")
    });
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

async fn run_random_faults(name: &str, arguments: &Arguments, log: &Log, seed: u64) -> bool {
    let (mut kinds, kills, bounded) = match name {
        CLUSTER => (CLUSTER_KINDS.to_vec(), FaultKind::Leader, BOUNDED_CLUSTER_TIME),
        FLEET => (FLEET_KINDS.to_vec(), FaultKind::Roles, BOUNDED_FLEET_TIME),
        _ => (SINGLE_SERVER_KINDS.to_vec(), FaultKind::Kill, BOUNDED_TIME),
    };
    if arguments.kills.is_some() {
        // More kills than other faults, because the budget counts kills.
        kinds.extend([kills; 2]);
    }
    let mut all = Kills::default();
    let mut episode = 0;
    let mut good = true;
    loop {
        let budget = match (arguments.kills, arguments.long) {
            (Some(kills), _) => Budget::Kills((kills - all.total()).min(EPISODE_KILLS)),
            (None, Some(long)) => Budget::Time(long.saturating_sub(log.elapsed()).min(EPISODE_TIME)),
            (None, None) => Budget::Time(bounded),
        };
        let seed = seed.wrapping_add(episode);
        log.print(format!("episode {episode} with seed {seed}"));
        let options = match name {
            CLUSTER => Options::cluster(),
            FLEET => Options::fleet(),
            _ => Options::default(),
        };
        let (verdict, kills, world) = run_episode(log, seed, &kinds, budget, options).await;
        all.herald += kills.herald;
        all.nats += kills.nats;
        all.stores += kills.stores;
        good &= report_verdict(arguments, log, &verdict, world);
        log.print(format!(
            "{} kills so far: {} of herald, {} of nats-server, {} of stores",
            all.total(),
            all.herald,
            all.nats,
            all.stores
        ));
        episode += 1;
        let over = match (arguments.kills, arguments.long) {
            (Some(kills), _) => all.total() >= kills,
            (None, Some(long)) => log.elapsed() >= long,
            (None, None) => true,
        };
        if over || !good {
            return good;
        }
    }
}

/// Runs one episode: starts a mesh, injects faults under load, and checks the mesh.
pub(crate) async fn run_episode(
    log: &Log,
    seed: u64,
    kinds: &[FaultKind],
    budget: Budget,
    options: Options,
) -> (Verdict, Kills, World) {
    log.clear_faults();
    let load = if options.fleet {
        Load::FLEET
    } else {
        Load::default()
    };
    let mut world = World::start(log, options).await;
    let kinds: Vec<FaultKind> = kinds
        .iter()
        .copied()
        .filter(|kind| *kind != FaultKind::Network || world.nats_proxy.is_some())
        .filter(|kind| *kind != FaultKind::Partition || world.nats.can_partition())
        .collect();
    if world.sink.proxy.is_none() {
        log.print(
            "WARNING: no toxiproxy found, network faults are skipped; install toxiproxy or set TOXIPROXY",
        );
    }
    workload::prepare(&world.clients(), &world.sink).await;
    let journal = Arc::new(Journal::default());
    let watchers = Watchers::start(&world, &journal).await;
    let running = Running::start(&world, &journal, load, seed);
    let kills = faults::run(&mut world, &journal, Schedule::new(seed, &kinds), budget).await;
    log.print(format!(
        "end of the faults after {} posts",
        journal.accepted_count()
    ));
    running.stop(&journal).await;
    let verdict = checker::check(&world, &journal, &watchers).await;
    (verdict, kills, world)
}

/// Prints a verdict; keeps logs and data if it is bad.
fn report_verdict(arguments: &Arguments, log: &Log, verdict: &Verdict, mut world: World) -> bool {
    for line in verdict.lines() {
        log.print(line);
    }
    if !verdict.is_good() || arguments.keep {
        log.print(format!(
            "logs and data are kept in {}",
            world.keep_dir().display()
        ));
    }
    verdict.is_good()
}
