//! `herald bench`: measures a server of its own, and checks that it lost and repeated nothing.

mod graph;
mod load;
mod observe;
mod report;
mod server;
mod verify;

use std::{path::PathBuf, process::Stdio, sync::Arc, time::Instant};

use clap::ValueEnum;
use herald_model::time::Micros;
use herald_push_sink::Running;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rand::{Rng, SeedableRng, rngs::StdRng};

use self::{
    graph::{Graph, Shape},
    load::Submitted,
    observe::Watchers,
    report::{Percentiles, Report},
    server::Server,
};
use crate::{client::Client, context::Context, failure::Failure};

const LONG: &str = "\
Starts a `herald up` of its own with an empty data directory, makes a social graph, submits posts, and reports how fast \
they reached timelines and devices, and what that took.

Afterwards every delivery is checked: the graph that was made, the ledger, and the timelines on the disk must agree pair \
by pair. If they don't, the exit code is 1.

Latencies are measured from the moment a post was due by the schedule, not from when there was time to send it, so a \
server that stalls is charged for all who waited (no coordinated omission). Visible means: a gRPC watcher of the timeline \
has received the entry. Pushed means: the device's HTTP endpoint has received a signed request.";

const EXAMPLES: &str = "\
Examples:
  How many deliveries a second, 20 million of them:
    herald bench --users 1000000 --followers 1000 --authors 1000 --posts 20000
  How soon, at ten times 100,000 posts a day, with 5% who want a push:
    herald bench --users 20000 --followers 1000 --posts 600 --rate 12 --push-share 0.05
  An author with a million followers posts, and meanwhile others do:
    herald bench --users 1000001 --big-author 1000000 --followers 100 --posts 200 --rate 20";

/// Measures deliveries a second and latencies, and checks that nothing was lost
#[derive(Debug, clap::Args)]
#[command(long_about = LONG, after_long_help = EXAMPLES)]
pub(crate) struct Args {
    /// Users in the graph
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(2..=100_000_000))]
    users: u32,

    /// Followers of an author, on average
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    followers: u32,

    /// How followers are spread over authors
    #[arg(long, value_enum, default_value_t = ShapeArg::PowerLaw)]
    shape: ShapeArg,

    /// Users who post [default: 1,000, or all when there are fewer]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    authors: Option<u32>,

    /// Give the first author this many followers; that author writes the first post and no other
    #[arg(long, value_name = "FOLLOWERS", value_parser = clap::value_parser!(u32).range(1..))]
    big_author: Option<u32>,

    /// Posts to submit
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    posts: u32,

    /// Posts a second [default: as fast as the server takes them]
    #[arg(long, value_parser = positive)]
    rate: Option<f64>,

    /// Share of the users who have a device and want a push of each post, 0 to 1
    #[arg(long, default_value_t = 0.0, value_parser = share)]
    push_share: f64,

    /// Timelines to watch for the visible latency, of randomly chosen followers
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(..=10_000))]
    watchers: u32,

    /// Seed of the graph and of who posts
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// Where the server keeps its data; must be empty, and is left behind [default: a temporary directory]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,

    /// Don't read every timeline from the disk at the end
    #[arg(long)]
    no_store_check: bool,

    /// Options for `herald up`, after `--`
    #[arg(last = true, value_name = "OPTION")]
    up: Vec<String>,
}

/// How followers are spread over authors.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum ShapeArg {
    /// A few authors with very many, most with few.
    PowerLaw,
    /// Each author has the same number.
    Fixed,
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(rate),
        _ => Err("must be a number greater than 0".into()),
    }
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("must be a number from 0 to 1".into()),
    }
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let temporary = tempfile::Builder::new()
        .prefix("herald-bench-")
        .tempdir()
        .map_err(|error| Failure::io("a temporary directory can't be made", &error))?;
    let data_dir = args
        .data_dir
        .clone()
        .unwrap_or_else(|| temporary.path().join("data"));
    if data_dir
        .read_dir()
        .is_ok_and(|mut entries| entries.next().is_some())
    {
        return Err(Failure::usage(format!(
            "{} is not empty: a benchmark starts from nothing",
            data_dir.display()
        )));
    }
    let report = tokio::select! {
        report = measure(&args, &data_dir, context) => report?,
        _ = tokio::signal::ctrl_c() => return Err(Failure::failed("interrupted; nothing was measured".to_owned())),
    };
    context.output.show(&report)?;
    if report.verified {
        Ok(())
    } else {
        Err(Failure::failed(
            "the deliveries are not as they should be".to_owned(),
        ))
    }
}

/// What the phases found, before it is put together.
struct Run {
    submitted: Vec<Submitted>,
    started: Micros,
    accepted: Micros,
    delivered: Micros,
}

async fn measure(args: &Args, data_dir: &std::path::Path, context: &Context) -> Result<Report, Failure> {
    let progress = Progress {
        hidden: context.output.is_json(),
    };
    let graph = Arc::new(make_graph(args)?);
    let log = if context.output.is_json() {
        Stdio::null()
    } else {
        Stdio::inherit()
    };
    let server = progress
        .step("starting a server", Server::start(data_dir, &args.up, log))
        .await?;
    let client = Client::connect(server.url(), context.global.rpc_timeout).await?;

    let importing = Instant::now();
    let bar = progress.bar("importing follows", graph.follow_count());
    let imported = bar.clone();
    load::import(&client, &graph, args.push_share, move |n| imported.inc(n)).await?;
    bar.finish_and_clear();
    let import_seconds = importing.elapsed().as_secs_f64();

    let sink = Running::start()
        .await
        .map_err(|error| Failure::failed(format!("the push sink can't start: {error}")))?;
    register_devices(args, &graph, &client, &sink, &progress).await?;
    let watchers = Watchers::start(&client, &watched(args, &graph)).await?;

    let run = submit(args, &client, &progress).await?;
    let (rss_mb_max, ready_seconds) = (server.rss_mb_max(), server.ready_after.as_secs_f64());
    let ledger = progress
        .step(
            "checking the ledger",
            verify::ledger(&client, &graph, &run.submitted),
        )
        .await?;
    let seen = watchers.seen();
    drop(watchers);
    let pushes: Vec<_> = sink
        .entries()
        .iter()
        .map(|e| (e.post_id, Micros(e.received_time.as_microsecond())))
        .collect();
    let push_duplicates = sink.summary().duplicates;
    let disk_mb = server.disk_mb();
    progress.step("stopping the server", server.stop()).await?;
    let store = if args.no_store_check {
        None
    } else {
        Some(
            progress
                .step(
                    "checking every timeline",
                    verify::store(data_dir, &graph, &run.submitted),
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
        && store.is_none_or(|s| s.missing == 0 && s.extra == 0);
    let (big, others): (Vec<_>, Vec<_>) = run
        .submitted
        .iter()
        .partition(|s| args.big_author.is_some() && s.author == BIG_AUTHOR);
    Ok(Report {
        users: args.users,
        authors: authors(args),
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
        submit_ms: Percentiles::of(&observe::answer_latencies(&run.submitted)),
        visible_ms: Percentiles::of(&observe::latencies(&others, &seen)),
        big_author_visible_ms: Percentiles::of(&observe::latencies(&big, &seen)),
        push_ms: Percentiles::of(&observe::latencies(&run.submitted, &pushes)),
        pushes: ledger.push_delivered,
        pushes_per_second: ledger.push_delivered as f64 / seconds,
        push_duplicates,
        rss_mb_max,
        disk_mb,
        disk_bytes_per_delivery: disk_mb * 1e6 / (deliveries.max(1) as f64),
        ledger,
        store,
        verified,
    })
}

/// The number of the author with `--big-author` followers.
const BIG_AUTHOR: u32 = 0;

impl Args {
    /// Those who write all posts but the big author's.
    fn others(&self) -> std::ops::Range<u32> {
        u32::from(self.big_author.is_some())..authors(self)
    }
}

fn authors(args: &Args) -> u32 {
    args.authors.unwrap_or(1_000).min(args.users)
}

fn make_graph(args: &Args) -> Result<Graph, Failure> {
    if args.big_author.is_some() && authors(args) < 2 {
        return Err(Failure::usage(
            "--big-author needs other authors to be compared with: --authors 2 or more".to_owned(),
        ));
    }
    let followers_max = args.followers.max(args.big_author.unwrap_or(0));
    if followers_max >= args.users {
        return Err(Failure::usage(format!(
            "{followers_max} followers need more than --users {}: nobody follows themselves",
            args.users
        )));
    }
    let shape = match args.shape {
        ShapeArg::PowerLaw => Shape::PowerLaw,
        ShapeArg::Fixed => Shape::Fixed,
    };
    Ok(Graph::make(
        args.users,
        authors(args),
        args.followers,
        shape,
        args.big_author,
        args.seed,
    ))
}

/// Followers to watch: each follow is as likely as any other.
fn watched(args: &Args, graph: &Graph) -> Vec<u32> {
    let mut rng = StdRng::seed_from_u64(args.seed ^ 0x0077_6174_6368);
    let mut chosen: Vec<u32> = (0..args.watchers)
        .filter_map(|_| {
            let followers = &graph.followers[rng.random_range(0..graph.followers.len())];
            (!followers.is_empty()).then(|| followers[rng.random_range(0..followers.len())])
        })
        .collect();
    chosen.sort_unstable();
    chosen.dedup();
    chosen
}

async fn register_devices(
    args: &Args,
    graph: &Graph,
    client: &Client,
    sink: &Running,
    progress: &Progress,
) -> Result<(), Failure> {
    if args.push_share == 0.0 {
        return Ok(());
    }
    let mut users: Vec<u32> = graph.followers.iter().flatten().copied().collect();
    users.sort_unstable();
    users.dedup();
    let users = users
        .into_iter()
        .filter(|user| load::opted_in(*user, args.push_share));
    let webhook = |user| {
        let made = sink.webhook(&Graph::id(user));
        herald_proto::v1::Webhook {
            url: made.url,
            secret: made.secret,
        }
    };
    progress
        .step("registering devices", load::register(client, users, webhook))
        .await?;
    Ok(())
}

/// Submits all posts and waits until every delivery is durable and acknowledged.
async fn submit(args: &Args, client: &Client, progress: &Progress) -> Result<Run, Failure> {
    let mut rng = StdRng::seed_from_u64(args.seed ^ 0x0070_6f73_7473);
    let mut posters: load::Authors = (0..args.posts).map(|_| rng.random_range(args.others())).collect();
    if let (Some(_), Some(first)) = (args.big_author, posters.first_mut()) {
        *first = BIG_AUTHOR;
    }
    let bar = progress.bar("submitting posts", args.posts.into());
    let started = Micros::now();
    let submitted = if let Some(rate) = args.rate {
        load::at_rate(client, &posters, rate, |n| bar.inc(n)).await?
    } else {
        let bar = bar.clone();
        load::in_bulk(client, &posters, move |n| bar.inc(n)).await?
    };
    let accepted = Micros::now();
    bar.finish_and_clear();
    let bar = progress.bar("waiting for the last delivery", 0);
    let delivering = ["fanout-", "slice-", "timeline-", "push-"];
    let delivered = observe::drained(client, &delivering, |left| {
        bar.set_message(format!("{left} messages left"));
    })
    .await?;
    observe::drained(client, &["archive", "analytics-"], |left| {
        bar.set_message(format!("{left} messages left for archive and analytics"));
    })
    .await?;
    bar.finish_and_clear();
    Ok(Run {
        submitted,
        started,
        accepted,
        delivered,
    })
}

/// Progress on standard error, for people only.
struct Progress {
    hidden: bool,
}

impl Progress {
    fn bar(&self, what: &'static str, length: u64) -> ProgressBar {
        let target = if self.hidden {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr()
        };
        let bar = ProgressBar::with_draw_target(Some(length), target);
        let template = if length == 0 {
            "{prefix}: {msg} {elapsed}"
        } else {
            "{prefix} {wide_bar} {human_pos}/{human_len} {eta}"
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_prefix(what);
        bar
    }

    async fn step<T>(
        &self,
        what: &'static str,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let bar = self.bar(what, 0);
        bar.enable_steady_tick(std::time::Duration::from_millis(200));
        let done = work.await;
        bar.finish_and_clear();
        done
    }
}
