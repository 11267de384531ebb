//! `herald bench`: deliveries per second and latencies.

use herald_cli::{client::Client, context::Context, failure::Failure};
use herald_model::time::Timestamp;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    cpu::Cpu,
    load::{self, Submitted},
    observe,
    progress::Progress,
    reads::Readers,
    report::{Percentiles, Report},
    setup::{BIG_AUTHOR, Setup, World},
    verify,
};

pub(super) const LONG: &str = "\
Starts `herald up` with an empty data directory, generates a social graph, submits posts, and reports the delivery \
rate, the latencies to timelines and devices, memory and disk usage.

Then every delivery is checked: the generated graph, the ledger and all timelines must agree for each pair of \
post and follower, and the server's audit must report no findings. Otherwise the exit code is 1.

Latencies start at the scheduled time of a post, not at the time of the call, so a stall of the server counts for \
every delayed post (no coordinated omission). Visible means: a gRPC watcher of the timeline has received the entry. \
Pushed means: the device's HTTP endpoint has received a signed request.";

pub(super) const EXAMPLES: &str = "\
Examples:
  Deliveries per second, measured over 20 million deliveries:
    herald bench --users 1000000 --followers 1000 --authors 1000 --posts 20000
  Latencies at one million posts per day, with pushes for 5% of the users:
    herald bench --users 20000 --followers 1000 --posts 600 --rate 12 --push-share 0.05
  The cluster engine, on a private PostgreSQL and Redis:
    herald bench --cluster --users 100000 --followers 1000 --posts 10000
  Timelines with 50 entries and more, listed 500 times a second meanwhile:
    herald bench --users 20000 --followers 1000 --posts-before 2000 --posts 600 --rate 12 --list-rate 500
  An author with a million followers posts while other authors post:
    herald bench --users 1000001 --big-author 1000000 --followers 100 --posts 200 --rate 20
  With authentication, by an API key that a root key makes:
    export HERALD_AUTH__ENABLED=true HERALD_AUTH__ROOT_KEY=$ROOT_KEY HERALD_TOKEN=$ROOT_KEY
    herald bench --api-key --users 20000 --followers 10 --posts 6000 --rate 1000";

/// Arguments of the default benchmark.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub(super) struct Args {
    #[command(flatten)]
    setup: Setup,

    /// Followers of the big author; that author writes the first post and no other
    #[arg(long, value_name = "FOLLOWERS", value_parser = clap::value_parser!(u32).range(1..))]
    big_author: Option<u32>,

    /// Posts to submit
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    posts: u32,

    /// Posts per second [default: as fast as the server accepts them]
    #[arg(long, value_parser = super::setup::positive)]
    rate: Option<f64>,

    /// Posts to submit as fast as possible before the measurement
    #[arg(long, default_value_t = 0)]
    posts_before: u32,

    /// Timelines to list per second while posts are submitted, 50 entries each, of 1,000 random followers
    #[arg(long, value_name = "RATE", value_parser = super::setup::positive)]
    list_rate: Option<f64>,

    /// Skip the check of all timelines
    #[arg(long)]
    no_store_check: bool,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let report = measure(&args, context).await?;
    context.output.show(&report)?;
    if report.verified {
        Ok(())
    } else {
        Err(Failure::failed(
            "deliveries are missing, duplicated or wrong; see `checked` and `audit` in the report".to_owned(),
        ))
    }
}

/// Measurements of the submit phase.
struct SubmitPhase {
    submitted: Vec<Submitted>,
    started: Timestamp,
    accepted: Timestamp,
    delivered: Timestamp,
    cpu: Cpu,
}

/// Users whose timelines are listed with `--list-rate`.
const READERS: u32 = 1_000;

async fn measure(args: &Args, context: &Context) -> Result<Report, Failure> {
    let progress = Progress {
        output: context.output,
    };
    let world = args.setup.start(args.big_author, progress, context).await?;
    let World {
        client,
        operators,
        graph,
        ..
    } = &world;
    let (graph, import_seconds) = (graph.clone(), world.import_seconds);

    let before = submit_before(args, &world, progress).await?;
    let readers = match args.list_rate {
        Some(rate) => {
            // A connection of their own: their answers are large.
            let client = Client::connect(world.server.url(), context.caller()?).await?;
            let users = args.setup.choose_followers(&graph, READERS);
            Some(Readers::start(client, users, rate).await?)
        }
        None => None,
    };
    let run = submit(args, &world, progress).await?;
    let reads = match readers {
        Some(readers) => Some(readers.stop().await?),
        None => None,
    };
    let all: Vec<Submitted> = before.iter().chain(&run.submitted).copied().collect();
    let (rss_mb_max, ready_seconds) = (world.server.rss_mb_max(), world.server.ready_after.as_secs_f64());
    let ledger = progress
        .step("checking the ledger", async {
            Ok::<_, Failure>([
                verify::ledger(client, &graph, &before).await?,
                verify::ledger(client, &graph, &run.submitted).await?,
            ])
        })
        .await?;
    let audit = progress.step("auditing", verify::audit(operators)).await?;
    let seen = world.watchers.seen();
    let pushes: Vec<_> = world
        .sink
        .entries()
        .iter()
        .map(|e| (e.post_id, Timestamp(e.received_time.as_microsecond())))
        .collect();
    let push_duplicates = world.sink.summary().duplicates;
    let disk_mb = world.disk_mb();
    let redis = world.data.engine.redis_memory_mb().await;
    let data = progress.step("stopping the server", world.stop()).await?;
    let store = if args.no_store_check {
        None
    } else {
        Some(
            progress
                .step("checking every timeline", verify::store(&data, &graph, &all))
                .await?,
        )
    };

    let seconds = run.delivered.since(run.started).as_secs_f64();
    let [ledger_before, ledger] = ledger;
    let deliveries = ledger.timeline_delivered;
    let all_deliveries = ledger_before.timeline_delivered + deliveries;
    let wanted: u64 = all
        .iter()
        .map(|s| graph.followers[s.author as usize].len() as u64)
        .sum();
    let verified = ledger_before.wrong_posts + ledger.wrong_posts == 0
        && all_deliveries == wanted
        && store.is_none_or(|s| s.missing == 0 && s.extra == 0)
        && audit.findings == 0;
    let (big, others): (Vec<_>, Vec<_>) = run
        .submitted
        .iter()
        .partition(|s| args.big_author.is_some() && s.author == BIG_AUTHOR);
    Ok(Report {
        users: args.setup.users,
        authors: args.setup.authors(),
        follows: graph.follow_count(),
        posts: run.submitted.len() as u64,
        rate: args.rate,
        ready_seconds,
        import_seconds,
        imported_per_second: graph.follow_count() as f64 / import_seconds,
        accepted_per_second: run.submitted.len() as f64 / run.accepted.since(run.started).as_secs_f64(),
        deliveries,
        deliveries_per_second: deliveries as f64 / seconds,
        seconds,
        submit_ms: Percentiles::of(&observe::submit_latencies(&run.submitted)),
        visible_ms: Percentiles::of(&observe::latencies(&others, &seen)),
        big_author_visible_ms: Percentiles::of(&observe::latencies(&big, &seen)),
        push_ms: Percentiles::of(&observe::latencies(&run.submitted, &pushes)),
        list_ms: reads.as_ref().map(|reads| Percentiles::of(&reads.latencies)),
        lists: reads.map(|reads| reads.sums),
        pushes: ledger.push_delivered,
        pushes_per_second: ledger.push_delivered as f64 / seconds,
        push_duplicates,
        cpu: run.cpu,
        cpu_us_per_delivery: run.cpu.sum_s() * 1e6 / (deliveries.max(1) as f64),
        rss_mb_max,
        redis,
        redis_bytes_per_entry: redis.zip(store).map(|(redis, store)| {
            // Older entries were trimmed.
            redis.dataset_mb * 1e6 / (store.deliveries.max(1) as f64)
        }),
        disk_mb,
        disk_bytes_per_delivery: disk_mb * 1e6 / (all_deliveries.max(1) as f64),
        ledger,
        audit,
        store,
        verified,
    })
}

impl Args {
    /// Authors of all posts except the big author's.
    fn others(&self) -> std::ops::Range<u32> {
        u32::from(self.big_author.is_some())..self.setup.authors()
    }
}

/// Random authors of posts.
fn posters(args: &Args, posts: u32, seed: u64) -> load::Authors {
    let mut rng = StdRng::seed_from_u64(args.setup.seed ^ seed);
    (0..posts).map(|_| rng.random_range(args.others())).collect()
}

/// Submits the posts before the measurement and waits until they are delivered.
async fn submit_before(args: &Args, world: &World, progress: Progress) -> Result<Vec<Submitted>, Failure> {
    if args.posts_before == 0 {
        return Ok(Vec::new());
    }
    let posters = posters(args, args.posts_before, 0x6265_666f_7265);
    let bar = progress.bar("submitting the first posts", args.posts_before.into());
    let counted = bar.clone();
    let submitted = load::submit_bulk(&world.client, &posters, load::PostOptions::default(), move |n| {
        counted.inc(n);
    })
    .await?;
    observe::wait_drained(&world.operators, &DELIVERING, |_| ()).await?;
    observe::wait_drained(&world.operators, &RECORDING, |_| ()).await?;
    bar.finish_and_clear();
    Ok(submitted)
}

/// Name prefixes of the consumers that deliver posts.
const DELIVERING: [&str; 4] = ["fanout-", "slice-", "timeline-", "push-"];
/// Name prefixes of the other consumers.
const RECORDING: [&str; 2] = ["archive", "analytics-"];

/// Submits all posts and waits until every delivery is durable and acknowledged.
async fn submit(args: &Args, world: &World, progress: Progress) -> Result<SubmitPhase, Failure> {
    let (client, operators) = (&world.client, &world.operators);
    let mut posters = posters(args, args.posts, 0x0070_6f73_7473);
    if let (Some(_), Some(first)) = (args.big_author, posters.first_mut()) {
        *first = BIG_AUTHOR;
    }
    let bar = progress.bar("submitting posts", args.posts.into());
    let cpu = Cpu::read(&world.server, &world.data.engine);
    let started = Timestamp::now();
    let submitted = if let Some(rate) = args.rate {
        load::submit_at_rate(client, &posters, rate, load::PostOptions::default(), |n| {
            bar.inc(n);
        })
        .await?
    } else {
        let bar = bar.clone();
        load::submit_bulk(client, &posters, load::PostOptions::default(), move |n| {
            bar.inc(n);
        })
        .await?
    };
    let accepted = Timestamp::now();
    bar.finish_and_clear();
    let bar = progress.bar("waiting for the last delivery", 0);
    let delivered = observe::wait_drained(operators, &DELIVERING, |left| {
        bar.set_message(format!("{left} messages left"));
    })
    .await?;
    observe::wait_drained(operators, &RECORDING, |left| {
        bar.set_message(format!("{left} messages left for archive and analytics"));
    })
    .await?;
    let cpu = Cpu::read(&world.server, &world.data.engine).since(&cpu);
    bar.finish_and_clear();
    Ok(SubmitPhase {
        submitted,
        started,
        accepted,
        delivered,
        cpu,
    })
}
