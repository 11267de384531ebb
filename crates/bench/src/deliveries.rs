//! `herald bench`: deliveries per second and latencies.

use herald_cli::{client::Client, context::Context, failure::Failure};
use herald_model::time::Timestamp;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    load::{self, Submitted},
    observe,
    progress::Progress,
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
  An author with a million followers posts while other authors post:
    herald bench --users 1000001 --big-author 1000000 --followers 100 --posts 200 --rate 20";

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
}

async fn measure(args: &Args, context: &Context) -> Result<Report, Failure> {
    let progress = Progress {
        output: context.output,
    };
    let world = args.setup.start(args.big_author, progress, context).await?;
    let World { client, graph, .. } = &world;
    let (graph, import_seconds) = (graph.clone(), world.import_seconds);

    let run = submit(args, client, progress).await?;
    let (rss_mb_max, ready_seconds) = (world.server.rss_mb_max(), world.server.ready_after.as_secs_f64());
    let ledger = progress
        .step(
            "checking the ledger",
            verify::ledger(client, &graph, &run.submitted),
        )
        .await?;
    let audit = progress.step("auditing", verify::audit(client)).await?;
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
                .step(
                    "checking every timeline",
                    verify::store(&data, &graph, &run.submitted),
                )
                .await?,
        )
    };

    let deliveries = ledger.timeline_delivered;
    let seconds = run.delivered.since(run.started).as_secs_f64();
    let wanted: u64 = run
        .submitted
        .iter()
        .map(|s| graph.followers[s.author as usize].len() as u64)
        .sum();
    let verified = ledger.wrong_posts == 0
        && deliveries == wanted
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
        pushes: ledger.push_delivered,
        pushes_per_second: ledger.push_delivered as f64 / seconds,
        push_duplicates,
        rss_mb_max,
        redis,
        disk_mb,
        disk_bytes_per_delivery: disk_mb * 1e6 / (deliveries.max(1) as f64),
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

/// Submits all posts and waits until every delivery is durable and acknowledged.
async fn submit(args: &Args, client: &Client, progress: Progress) -> Result<SubmitPhase, Failure> {
    let mut rng = StdRng::seed_from_u64(args.setup.seed ^ 0x0070_6f73_7473);
    let mut posters: load::Authors = (0..args.posts).map(|_| rng.random_range(args.others())).collect();
    if let (Some(_), Some(first)) = (args.big_author, posters.first_mut()) {
        *first = BIG_AUTHOR;
    }
    let bar = progress.bar("submitting posts", args.posts.into());
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
    let delivering = ["fanout-", "slice-", "timeline-", "push-"];
    let delivered = observe::wait_drained(client, &delivering, |left| {
        bar.set_message(format!("{left} messages left"));
    })
    .await?;
    observe::wait_drained(client, &["archive", "analytics-"], |left| {
        bar.set_message(format!("{left} messages left for archive and analytics"));
    })
    .await?;
    bar.finish_and_clear();
    Ok(SubmitPhase {
        submitted,
        started,
        accepted,
        delivered,
    })
}
