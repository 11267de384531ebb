//! The scenarios: what is run, for how long, and what it must end with.

use std::{process::ExitCode, sync::Arc, time::Duration};

use crate::{
    checker::{self, Verdict},
    cli::Arguments,
    controls,
    faults::{self, Budget, Kills, Kind, Schedule},
    log::Log,
    workload::{self, Journal, Load, Running, Watchers},
    world::{Options, World},
};

/// Random faults of every kind.
const FAULTS: &str = "faults";
/// The same on a cluster of three nats-servers with three replicas of each stream, whose leaders are hurt.
const CLUSTER: &str = "cluster";

/// How long the bounded pass hurts the mesh.
const BOUNDED: Duration = Duration::from_secs(50);
const BOUNDED_CLUSTER: Duration = Duration::from_secs(40);
/// Of a long run: so much happens to a mesh before it is checked and the next one is started.
const EPISODE_KILLS: u64 = 25;
const EPISODE_TIME: Duration = Duration::from_mins(3);

const OF_CLUSTER: [Kind; 3] = [Kind::KillHerald, Kind::Leader, Kind::Partition];
const OF_ONE: [Kind; 7] = [
    Kind::Kill,
    Kind::Freeze,
    Kind::Network,
    Kind::Store,
    Kind::Provider,
    Kind::Poison,
    Kind::Redrive,
];

/// Runs what is asked for. The exit code says whether everything was as it must be.
pub(crate) async fn run(arguments: &Arguments) -> ExitCode {
    let names = controls::CONTROLS.iter().map(|control| control.name);
    let names: Vec<&str> = [FAULTS, CLUSTER].into_iter().chain(names).collect();
    // A long run is of one scenario.
    let long = arguments.long.is_some() || arguments.kills.is_some();
    let only = |name: &str| !long || name == arguments.only.as_deref().unwrap_or(FAULTS);
    let wanted = names.iter().copied().filter(|name| arguments.wants(name));
    let wanted: Vec<&str> = wanted.filter(|name| only(name)).collect();
    if arguments.list {
        for name in &wanted {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    let seed = arguments.seed.unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let log = Log::new();
    log.say(format!(
        "seed {seed}; {} of {} scenarios",
        wanted.len(),
        names.len()
    ));
    let mut good = true;
    for name in wanted {
        log.say(format!("scenario {name}"));
        good &= match controls::CONTROLS.iter().find(|control| control.name == name) {
            Some(control) => controls::run(control, arguments, &log, seed).await,
            None => random_faults(name, arguments, &log, seed).await,
        };
    }
    log.say(if good {
        "everything is as it must be".to_owned()
    } else {
        format!("something is wrong; repeat it with --seed {seed}")
    });
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

async fn random_faults(name: &str, arguments: &Arguments, log: &Log, seed: u64) -> bool {
    let cluster = name == CLUSTER;
    let mut kinds = if cluster {
        OF_CLUSTER.to_vec()
    } else {
        OF_ONE.to_vec()
    };
    if arguments.kills.is_some() {
        // More kills than other faults, as they are what is counted.
        kinds.extend([if cluster { Kind::Leader } else { Kind::Kill }; 2]);
    }
    let bounded = if cluster { BOUNDED_CLUSTER } else { BOUNDED };
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
        log.say(format!("episode {episode} with seed {seed}"));
        let options = if cluster {
            Options::cluster()
        } else {
            Options::default()
        };
        let (verdict, kills, world) = episode_of(log, seed, &kinds, budget, options).await;
        all.herald += kills.herald;
        all.nats += kills.nats;
        good &= conclude(arguments, log, &verdict, world);
        log.say(format!(
            "{} kills so far: {} of herald, {} of nats-server",
            all.total(),
            all.herald,
            all.nats
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

/// One mesh from its start to its check.
pub(crate) async fn episode_of(
    log: &Log,
    seed: u64,
    kinds: &[Kind],
    budget: Budget,
    options: Options,
) -> (Verdict, Kills, World) {
    log.forget();
    let mut world = World::start(log, options).await;
    let kinds: Vec<Kind> = kinds
        .iter()
        .copied()
        .filter(|kind| *kind != Kind::Network || world.nats_proxy.is_some())
        .filter(|kind| *kind != Kind::Partition || world.nats.can_be_cut())
        .collect();
    if world.sink.proxy.is_none() {
        log.say("no toxiproxy here: THE NETWORK'S FAULTS ARE LEFT OUT");
    }
    workload::prepare(&world.clients(), &world.sink).await;
    let journal = Arc::new(Journal::default());
    let watchers = Watchers::start(&world, &journal).await;
    let running = Running::start(&world, &journal, Load::default(), seed);
    let kills = faults::run(&mut world, &journal, Schedule::new(seed, &kinds), budget).await;
    log.say(format!(
        "the faults are over after {} posts",
        journal.accepted_count()
    ));
    running.stop(&journal).await;
    let verdict = checker::check(&world, &journal, &watchers).await;
    (verdict, kills, world)
}

/// Prints a verdict; keeps the evidence when it is bad.
fn conclude(arguments: &Arguments, log: &Log, verdict: &Verdict, mut world: World) -> bool {
    for line in verdict.lines() {
        log.say(line);
    }
    if !verdict.is_good() || arguments.keep {
        log.say(format!("logs and data are kept in {}", world.keep().display()));
    }
    verdict.is_good()
}
