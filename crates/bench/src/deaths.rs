//! `herald bench deaths`: latencies while workers die.

use std::{fmt::Write as _, time::Duration};

use herald_cli::{
    client::{Client, OperatorClient},
    context::Context,
    failure::Failure,
    output::Show,
};
use herald_model::time::Timestamp;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde::Serialize;

use super::{
    fleet::{Fleet, WORKERS},
    load::{self, PostOptions},
    observe,
    progress::Progress,
    report::{Percentiles, format_percentiles},
    setup::{Setup, World},
    verify,
};

const LONG: &str = "\
Starts a process of `herald serve` for the gateway and --replicas processes for each other role, on a private PostgreSQL \
and Redis (--cluster) or on those of --store and --timelines. Posts are submitted at --rate, and every --kill-interval \
seconds one process of each role but the gateway is killed (SIGKILL), all at the same moment, and started again at once.

Latencies start at the scheduled time of a post. Afterwards every delivery is checked, as `herald bench` does. A kill \
between a request to a push service and its record makes Herald send that push again; the report counts those.

If a post became visible after more than 30 s, a push was sent after more than 5 s, or a check fails, the exit code is 1.";

const EXAMPLES: &str = "\
Examples:
  Two minutes at one million posts per day, with pushes for 5% of the users:
    herald bench deaths --cluster --users 20000 --followers 1000 --posts 1440 --push-share 0.05";

/// The promises: maximum time from acceptance, milliseconds.
const VISIBLE_MS_MAX: f64 = 30_000.0;
const PUSH_MS_MAX: f64 = 5_000.0;

/// Measure latencies on the cluster engine while workers are killed
#[derive(Debug, clap::Args)]
#[command(long_about = LONG, after_long_help = EXAMPLES)]
pub(super) struct Args {
    #[command(flatten)]
    setup: Setup,

    /// Posts to submit
    #[arg(long, default_value_t = 720, value_parser = clap::value_parser!(u32).range(1..))]
    posts: u32,

    /// Posts per second
    #[arg(long, default_value_t = 12.0, value_parser = super::setup::positive)]
    rate: f64,

    /// Seconds between kills
    #[arg(long, default_value_t = 10.0, value_parser = super::setup::positive)]
    kill_interval: f64,

    /// Processes of each role but the gateway
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=16))]
    replicas: u8,
}

#[derive(Debug, Serialize)]
struct Report {
    posts: u64,
    rate: f64,
    kills: u64,
    submit_ms: Percentiles,
    visible_ms: Percentiles,
    push_ms: Percentiles,
    push_duplicates: u64,
    ledger: verify::LedgerSums,
    audit: verify::AuditSums,
    store: verify::StoreSums,
    /// Whether every delivery was made, and made in time.
    kept: bool,
}

impl Show for Report {
    fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            // Writing to a string can't fail.
            let _ = writeln!(text, "{name:<22}{value}");
        };
        line("posts", format!("{} at {}/s", self.posts, self.rate));
        line("kills", format!("{} of {}", self.kills, WORKERS.join(", ")));
        line("submit", format_percentiles(&self.submit_ms));
        line("accept to visible", format_percentiles(&self.visible_ms));
        line("accept to push", format_percentiles(&self.push_ms));
        line(
            "pushes",
            format!(
                "{} of {}, {} received more than once",
                self.ledger.push_delivered, self.ledger.push_targeted, self.push_duplicates
            ),
        );
        line(
            "checked",
            format!(
                "{}: {} wrong posts in the ledger; {} on timelines, {} missing, {} extra; {} findings",
                if self.kept { "ok" } else { "FAILED" },
                self.ledger.wrong_posts,
                self.store.deliveries,
                self.store.missing,
                self.store.extra,
                self.audit.findings
            ),
        );
        text.truncate(text.trim_end().len());
        text
    }
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    if !args.setup.engine.is_cluster() {
        return Err(Failure::usage(
            "several processes need the cluster engine: add --cluster, or --store and --timelines".to_owned(),
        ));
    }
    let report = Box::pin(measure(&args, context)).await?;
    context.output.show(&report)?;
    if report.kept {
        Ok(())
    } else {
        Err(Failure::failed(
            "a promise was broken: a post or push was late, missing or wrong; see the report".to_owned(),
        ))
    }
}

async fn measure(args: &Args, context: &Context) -> Result<Report, Failure> {
    let progress = Progress {
        output: context.output,
    };
    let setup = &args.setup;
    let graph = setup.generate_graph(None)?;
    let data = setup.prepare().await?;
    let starting = Fleet::start(&data, args.replicas.into(), &setup.up, context);
    let fleet = progress.step("starting the processes", starting).await?;
    let client = Client::connect(fleet.url(), context.caller()?).await?;
    let operators = OperatorClient::connect(fleet.operator_url(), context.caller()?).await?;
    let mut world = setup
        .load(fleet, (client, operators), graph, data, progress)
        .await?;

    let mut rng = StdRng::seed_from_u64(setup.seed);
    let posters: load::Authors = (0..args.posts)
        .map(|_| rng.random_range(0..setup.authors()))
        .collect();
    let bar = progress.bar("submitting posts", args.posts.into());
    let submitting = load::submit_at_rate(&world.client, &posters, args.rate, PostOptions::default(), |n| {
        bar.inc(n);
    });
    let interval = Duration::from_secs_f64(args.kill_interval);
    let killing = async {
        let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + interval, interval);
        for turn in 0.. {
            ticks.tick().await;
            world.server.kill(turn).await?;
        }
        Ok::<_, Failure>(())
    };
    let submitted = tokio::select! {
        submitted = submitting => submitted?,
        killed = killing => return Err(killed.err().unwrap_or_else(|| Failure::failed("no process left"))),
    };
    bar.finish_and_clear();
    world.server.wait_ready().await?;
    let World {
        client,
        operators,
        graph,
        ..
    } = &world;
    let consumers = ["fanout-", "slice-", "timeline-", "push-", "archive", "analytics-"];
    let bar = progress.bar("waiting for the last delivery", 0);
    observe::wait_drained(operators, &consumers, |left| {
        bar.set_message(format!("{left} messages left"));
    })
    .await?;
    bar.finish_and_clear();

    let ledger = progress
        .step("checking the ledger", verify::ledger(client, graph, &submitted))
        .await?;
    let audit = progress.step("auditing", verify::audit(operators)).await?;
    let pushes: Vec<_> = world
        .sink
        .entries()
        .iter()
        // The first request of each push counts.
        .filter(|entry| !entry.duplicate)
        .map(|entry| (entry.post_id, Timestamp(entry.received_time.as_microsecond())))
        .collect();
    let push_duplicates = world.sink.summary().duplicates;
    let (seen, graph, kills) = (world.watchers.seen(), graph.clone(), world.server.kills);
    world.server.stop().await?;
    let checking = verify::store(&world.data, &graph, &submitted);
    let store = progress.step("checking every timeline", checking).await?;

    let visible_ms = Percentiles::of(&observe::latencies(&submitted, &seen));
    let push_ms = Percentiles::of(&observe::latencies(&submitted, &pushes));
    let complete = ledger.wrong_posts == 0
        && ledger.push_delivered == ledger.push_targeted
        && store.missing == 0
        && store.extra == 0
        && audit.findings == 0;
    Ok(Report {
        posts: submitted.len() as u64,
        rate: args.rate,
        kills,
        submit_ms: Percentiles::of(&observe::submit_latencies(&submitted)),
        visible_ms,
        push_ms,
        push_duplicates,
        ledger,
        audit,
        store,
        kept: complete && visible_ms.max <= VISIBLE_MS_MAX && push_ms.max <= PUSH_MS_MAX,
    })
}
