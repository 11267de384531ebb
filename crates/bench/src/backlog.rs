//! `herald bench backlog`: queues a backlog while the workers are paused, then measures how it drains.

use std::{fmt::Write as _, time::Duration};

use herald_cli::{client::OperatorClient, context::Context, failure::Failure, output::Show};
use herald_mesh::{Mesh, consumers, streams};
use herald_model::{Lane, time::Timestamp};
use herald_proto::v1::{self, GetLagRequest};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde::Serialize;

use super::{
    load::{self, PostOptions},
    observe,
    progress::Progress,
    report::{Percentiles, format_percentiles},
    setup::{Setup, World},
    verify,
};

const LONG: &str = "\
Pauses the consumers of the timeline and push workers, submits posts in the normal lane, waits until all of them are \
queued, and resumes the workers. While the backlog drains, posts are submitted in the high lane, and their latencies \
are measured.

The pushes of the backlog expire after --push-ttl. The benchmark resumes the workers after that, so all of these \
pushes must be counted as expired and none may be sent.

Then the ledger is checked and the server runs an audit. If a delivery is missing or a push was sent late, the exit \
code is 1.";

const EXAMPLES: &str = "\
Examples:
  A backlog of 10 million deliveries:
    herald bench backlog --users 100000 --posts 10000 --push-share 0.05
  The same, with fan-out not held back while the chunks are queued:
    HERALD_FANOUT__GATE__PENDING_CHUNKS_MAX=1000000 herald bench backlog --posts 10000";

/// Upper bound of the pause; the benchmark resumes the consumers earlier.
const PAUSE_MAX: Duration = Duration::from_hours(2);
/// Equal consecutive readings of the streams after which the queues count as stable.
const STABLE_READINGS: u32 = 8;
const STABLE_INTERVAL: Duration = Duration::from_millis(500);

/// Measure how a backlog is queued and drained
#[derive(Debug, clap::Args)]
#[command(long_about = LONG, after_long_help = EXAMPLES)]
pub(super) struct Args {
    #[command(flatten)]
    setup: Setup,

    /// Posts of the backlog
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    posts: u32,

    /// Time to live of the backlog's pushes
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = herald_cli::time::positive_duration)]
    push_ttl: Duration,

    /// Posts in the high lane while the backlog drains
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    high_posts: u32,

    /// Posts per second in the high lane
    #[arg(long, default_value_t = 20.0, value_parser = super::setup::positive)]
    high_rate: f64,
}

/// Messages and bytes of a stream while the workers were paused.
#[derive(Debug, Serialize)]
struct QueuedStream {
    stream: String,
    messages_waiting: u64,
    bytes: u64,
    bytes_max: u64,
}

#[derive(Debug, Serialize)]
struct Report {
    /// Timeline deliveries of the backlog.
    deliveries: u64,
    posts: u64,
    accepted_per_second: f64,
    /// Streams while the workers were paused.
    held: Vec<QueuedStream>,
    rss_mb_queued: f64,
    disk_mb_queued: f64,
    /// From the first decrease of the queue until the last acknowledgement of the backlog.
    drain_seconds: f64,
    drained_per_second: f64,
    /// Latency of posts in the high lane while the backlog drained.
    high_visible_ms: Percentiles,
    high_push_ms: Percentiles,
    pushes_expired: u64,
    /// Pushes of the backlog that were sent although they had expired.
    pushes_late: u64,
    rss_mb_max: f64,
    wrong_posts: u64,
    audit: verify::AuditSums,
}

impl Show for Report {
    fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            // Writing to a string can't fail.
            let _ = writeln!(text, "{name:<22}{value}");
        };
        line(
            "backlog",
            format!(
                "{} deliveries in {} posts, accepted {:.0}/s",
                self.deliveries, self.posts, self.accepted_per_second
            ),
        );
        for held in &self.held {
            line(
                &format!("  {}", held.stream),
                format!(
                    "{} messages pending, {:.1} of {:.0} MB",
                    held.messages_waiting,
                    held.bytes as f64 / 1e6,
                    held.bytes_max as f64 / 1e6
                ),
            );
        }
        line(
            "queued",
            format!(
                "{:.0} MB of memory, {:.0} MB on disk",
                self.rss_mb_queued, self.disk_mb_queued
            ),
        );
        line(
            "drained",
            format!(
                "in {:.1} s, {:.0} deliveries/s",
                self.drain_seconds, self.drained_per_second
            ),
        );
        line("high lane visible", format_percentiles(&self.high_visible_ms));
        line("high lane push", format_percentiles(&self.high_push_ms));
        line(
            "pushes of the backlog",
            format!("{} expired, {} sent late", self.pushes_expired, self.pushes_late),
        );
        line("memory, most", format!("{:.0} MB", self.rss_mb_max));
        line(
            "checked",
            format!(
                "{} wrong posts in the ledger, {} findings",
                self.wrong_posts, self.audit.findings
            ),
        );
        text.truncate(text.trim_end().len());
        text
    }
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let report = Box::pin(measure(&args, context)).await?;
    let wrong = report.wrong_posts > 0 || report.audit.findings > 0 || report.pushes_late > 0;
    context.output.show(&report)?;
    if wrong {
        return Err(Failure::failed(
            "deliveries are missing or wrong, or expired pushes were sent; see the report",
        ));
    }
    Ok(())
}

async fn measure(args: &Args, context: &Context) -> Result<Report, Failure> {
    let progress = Progress {
        output: context.output,
    };
    let world = args.setup.start(None, progress, context).await?;
    let World {
        client,
        operators,
        graph,
        ..
    } = &world;
    let mesh = Mesh::connect(&herald_mesh::Config::at(world.server.nats()))
        .await
        .map_err(|error| Failure::failed(format!("can't connect to the server's NATS: {error}")))?;
    let mut rng = StdRng::seed_from_u64(args.setup.seed ^ 0x6261_636b);
    let mut authors = |count| -> load::Authors {
        (0..count)
            .map(|_| rng.random_range(0..args.setup.authors()))
            .collect()
    };

    pause(&mesh, Some(Timestamp::now().plus(PAUSE_MAX))).await?;
    let options = PostOptions {
        lane: Lane::Normal,
        push_ttl: Some(args.push_ttl),
    };
    let bar = progress.bar("submitting posts", args.posts.into());
    let submitting = Timestamp::now();
    let submitted = {
        let bar = bar.clone();
        load::submit_bulk(client, &authors(args.posts), options, move |n| bar.inc(n)).await?
    };
    let accepted = Timestamp::now();
    bar.finish_and_clear();
    let held = progress
        .step("waiting until the queues are stable", wait_stable(operators))
        .await?;
    let (rss_mb_queued, disk_mb_queued) = (world.server.rss_mb(), world.disk_mb());
    let left = accepted.plus(args.push_ttl).since(Timestamp::now());
    progress
        .step("waiting until the pushes have expired", async {
            tokio::time::sleep(left).await;
            Ok(())
        })
        .await?;

    pause(&mesh, None).await?;
    let options = PostOptions {
        lane: Lane::High,
        push_ttl: None,
    };
    let bar = progress.bar("draining the backlog", args.high_posts.into());
    let high_authors = authors(args.high_posts);
    let normal = ["fanout-normal", "slice-normal", "timeline-normal", "push-normal"];
    // nats-server serves the waiting pulls of a resumed consumer only some seconds later.
    let (mut most, mut began) = (None, None);
    let (high, drained) = tokio::try_join!(
        load::submit_at_rate(client, &high_authors, args.high_rate, options, |n| bar.inc(n)),
        observe::wait_drained(operators, &normal, |left| {
            let first = *most.get_or_insert(left);
            if left < first {
                began.get_or_insert_with(Timestamp::now);
            }
        })
    )?;
    observe::wait_drained(
        operators,
        &["fanout-", "slice-", "timeline-", "push-", "archive", "analytics-"],
        |_| {},
    )
    .await?;
    bar.finish_and_clear();

    let all: Vec<_> = submitted.iter().chain(&high).copied().collect();
    let ledger = progress
        .step("checking the ledger", verify::ledger(client, graph, &all))
        .await?;
    let audit = progress.step("auditing", verify::audit(operators)).await?;
    let backlog: std::collections::HashSet<u64> = submitted.iter().map(|post| post.post_id).collect();
    let entries = world.sink.entries();
    let pushes: Vec<_> = entries
        .iter()
        .map(|entry| (entry.post_id, Timestamp(entry.received_time.as_microsecond())))
        .collect();
    let deliveries: u64 = submitted
        .iter()
        .map(|post| graph.followers[post.author as usize].len() as u64)
        .sum();
    let drain_seconds = drained.since(began.unwrap_or(drained)).as_secs_f64();
    let report = Report {
        deliveries,
        posts: submitted.len() as u64,
        accepted_per_second: submitted.len() as f64 / accepted.since(submitting).as_secs_f64(),
        held,
        rss_mb_queued,
        disk_mb_queued,
        drain_seconds,
        drained_per_second: deliveries as f64 / drain_seconds.max(1e-6),
        high_visible_ms: Percentiles::of(&observe::latencies(&high, &world.watchers.seen())),
        high_push_ms: Percentiles::of(&observe::latencies(&high, &pushes)),
        pushes_expired: ledger.push_expired,
        pushes_late: pushes.iter().filter(|(post, _)| backlog.contains(post)).count() as u64,
        rss_mb_max: world.server.rss_mb_max(),
        wrong_posts: ledger.wrong_posts,
        audit,
    };
    progress.step("stopping the server", world.stop()).await?;
    Ok(report)
}

/// Pauses the consumers of the timeline and push workers until `until`; `None` resumes them.
async fn pause(mesh: &Mesh, until: Option<Timestamp>) -> Result<(), Failure> {
    for lane in Lane::ALL {
        for (stream, consumer) in [
            (streams::TIMELINE, consumers::timeline(lane)),
            (streams::PUSH, consumers::push(lane)),
        ] {
            let done = match until {
                Some(until) => mesh.pause(stream, consumer, until).await,
                None => mesh.resume(stream, consumer).await,
            };
            done.map_err(|error| Failure::failed(format!("can't pause or resume {consumer}: {error}")))?;
        }
    }
    Ok(())
}

/// Waits until the queues neither grow nor shrink; returns their sizes.
async fn wait_stable(client: &OperatorClient) -> Result<Vec<QueuedStream>, Failure> {
    let mut alike = 0;
    let mut last: Vec<u64> = Vec::new();
    let mut ticks = tokio::time::interval(STABLE_INTERVAL);
    loop {
        ticks.tick().await;
        let lag = client
            .mesh()
            .get_lag(client.request(GetLagRequest {}))
            .await?
            .into_inner();
        let held: Vec<_> = lag
            .streams
            .iter()
            .filter(|stream| {
                [streams::POSTS, streams::TIMELINE, streams::PUSH].contains(&stream.stream.as_str())
            })
            .map(queued_stream)
            .collect();
        let now: Vec<u64> = held.iter().map(|held| held.messages_waiting).collect();
        alike = if now == last { alike + 1 } else { 0 };
        if alike >= STABLE_READINGS {
            return Ok(held);
        }
        last = now;
    }
}

fn queued_stream(stream: &v1::StreamLag) -> QueuedStream {
    // POSTS: not yet fanned out. TIMELINE and PUSH: not yet delivered.
    let waits = |consumer: &&v1::ConsumerLag| {
        ["fanout-", "timeline-", "push-"]
            .iter()
            .any(|start| consumer.consumer.starts_with(start))
    };
    QueuedStream {
        stream: stream.stream.clone(),
        messages_waiting: stream
            .consumers
            .iter()
            .filter(waits)
            .map(|consumer| consumer.pending_count + consumer.ack_pending_count)
            .sum(),
        bytes: stream.byte_count,
        bytes_max: stream.byte_count_max,
    }
}
