//! `herald bench backlog`: what happens when nobody works for a while.

use std::{fmt::Write as _, time::Duration};

use herald_cli::{client::Client, context::Context, failure::Failure, output::Show};
use herald_mesh::{Mesh, consumers, streams};
use herald_model::{Lane, time::Timestamp};
use herald_proto::v1::{self, GetLagRequest};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde::Serialize;

use super::{
    load::{self, Kind},
    observe,
    progress::Progress,
    report::{Percentiles, percentiles},
    setup::{Setup, World},
    verify,
};

const LONG: &str = "\
Stops the timeline and push workers (JetStream's own pause of their consumers), submits posts in the normal lane until all \
of them are queued, and lets the workers go on. While they work the backlog off, posts come in the high lane, and their \
latencies are measured.

The pushes of the backlog are worth sending for --push-ttl only. The benchmark waits until it is over, so all of them must \
be dropped and counted as expired, and not one be sent late.

Afterwards the ledger is checked, and the server audits itself. If anything is missing, the exit code is 1.";

const EXAMPLES: &str = "\
Examples:
  10 million deliveries queued:
    herald bench backlog --users 100000 --posts 10000 --push-share 0.05
  The same, expanded into chunks before the workers stop holding fan-out back:
    HERALD_FANOUT__GATE__PENDING_CHUNKS_MAX=1000000 herald bench backlog --posts 10000";

/// How long the pause is, at most: the benchmark ends it itself.
const PAUSE_MAX: Duration = Duration::from_hours(2);
/// Readings of the streams that must be alike before the queue counts as settled.
const SETTLED_READINGS: u32 = 8;
const SETTLED_INTERVAL: Duration = Duration::from_millis(500);

/// Measures how a backlog waits, and how it is worked off
#[derive(Debug, clap::Args)]
#[command(long_about = LONG, after_long_help = EXAMPLES)]
pub(super) struct Args {
    #[command(flatten)]
    setup: Setup,

    /// Posts of the backlog
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    posts: u32,

    /// How long a push of the backlog is worth sending
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = herald_cli::time::positive_duration)]
    push_ttl: Duration,

    /// Posts in the high lane while the backlog is worked off
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    high_posts: u32,

    /// High posts a second
    #[arg(long, default_value_t = 20.0, value_parser = super::setup::positive)]
    high_rate: f64,
}

/// What a stream held while nobody worked.
#[derive(Debug, Serialize)]
struct Held {
    stream: String,
    messages_waiting: u64,
    bytes: u64,
    bytes_max: u64,
}

#[derive(Debug, Serialize)]
struct Report {
    /// Deliveries that the backlog stands for.
    deliveries: u64,
    posts: u64,
    accepted_per_second: f64,
    /// While nobody worked.
    held: Vec<Held>,
    rss_mb_queued: f64,
    disk_mb_queued: f64,
    /// From when the queue began to shrink until the last of the backlog was acknowledged.
    drain_seconds: f64,
    drained_per_second: f64,
    /// The high lane, meanwhile.
    high_visible_ms: Percentiles,
    high_push_ms: Percentiles,
    pushes_expired: u64,
    /// Pushes of the backlog that were sent after all.
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
                    "{} messages wait, {:.1} of {:.0} MB",
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
            "worked off",
            format!(
                "in {:.1} s, {:.0} deliveries/s",
                self.drain_seconds, self.drained_per_second
            ),
        );
        line("high lane visible", percentiles(&self.high_visible_ms));
        line("high lane push", percentiles(&self.high_push_ms));
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
    let report = measure(&args, context).await?;
    let wrong = report.wrong_posts > 0 || report.audit.findings > 0 || report.pushes_late > 0;
    context.output.show(&report)?;
    if wrong {
        return Err(Failure::failed("the deliveries are not as they should be"));
    }
    Ok(())
}

async fn measure(args: &Args, context: &Context) -> Result<Report, Failure> {
    let progress = Progress {
        output: context.output,
    };
    let world = args.setup.start(None, progress, context).await?;
    let World { client, graph, .. } = &world;
    let mesh = Mesh::connect(&herald_mesh::Config::at(world.server.nats()))
        .await
        .map_err(|error| Failure::failed(format!("the server's NATS can't be reached: {error}")))?;
    let mut rng = StdRng::seed_from_u64(args.setup.seed ^ 0x6261_636b);
    let mut authors = |count| -> load::Authors {
        (0..count)
            .map(|_| rng.random_range(0..args.setup.authors()))
            .collect()
    };

    pause(&mesh, Some(Timestamp::now().plus(PAUSE_MAX))).await?;
    let kind = Kind {
        lane: Lane::Normal,
        push_ttl: Some(args.push_ttl),
    };
    let bar = progress.bar("submitting posts", args.posts.into());
    let submitting = Timestamp::now();
    let submitted = {
        let bar = bar.clone();
        load::in_bulk(client, &authors(args.posts), kind, move |n| bar.inc(n)).await?
    };
    let accepted = Timestamp::now();
    bar.finish_and_clear();
    let held = progress
        .step("waiting until all is queued", settled(client))
        .await?;
    let (rss_mb_queued, disk_mb_queued) = (world.server.rss_mb(), world.server.disk_mb());
    let left = accepted.plus(args.push_ttl).since(Timestamp::now());
    progress
        .step("waiting until the pushes have expired", async {
            tokio::time::sleep(left).await;
            Ok(())
        })
        .await?;

    pause(&mesh, None).await?;
    let kind = Kind {
        lane: Lane::High,
        push_ttl: None,
    };
    let bar = progress.bar("working off the backlog", args.high_posts.into());
    let high_authors = authors(args.high_posts);
    let normal = ["fanout-normal", "slice-normal", "timeline-normal", "push-normal"];
    // The server looks at a resumed consumer's waiting pulls some seconds later.
    let (mut most, mut began) = (None, None);
    let (high, drained) = tokio::try_join!(
        load::at_rate(client, &high_authors, args.high_rate, kind, |n| bar.inc(n)),
        observe::drained(client, &normal, |left| {
            let first = *most.get_or_insert(left);
            if left < first {
                began.get_or_insert_with(Timestamp::now);
            }
        })
    )?;
    observe::drained(
        client,
        &["fanout-", "slice-", "timeline-", "push-", "archive", "analytics-"],
        |_| {},
    )
    .await?;
    bar.finish_and_clear();

    let all: Vec<_> = submitted.iter().chain(&high).copied().collect();
    let ledger = progress
        .step("checking the ledger", verify::ledger(client, graph, &all))
        .await?;
    let audit = progress.step("auditing", verify::audit(client)).await?;
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

/// Pauses the workers of timelines and devices until then, or lets them go on.
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
            done.map_err(|error| Failure::failed(format!("{consumer} can't be paused or resumed: {error}")))?;
        }
    }
    Ok(())
}

/// Waits until the queues neither grow nor shrink; what they hold then.
async fn settled(client: &Client) -> Result<Vec<Held>, Failure> {
    let mut alike = 0;
    let mut last: Vec<u64> = Vec::new();
    let mut ticks = tokio::time::interval(SETTLED_INTERVAL);
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
            .map(held)
            .collect();
        let now: Vec<u64> = held.iter().map(|held| held.messages_waiting).collect();
        alike = if now == last { alike + 1 } else { 0 };
        if alike >= SETTLED_READINGS {
            return Ok(held);
        }
        last = now;
    }
}

fn held(stream: &v1::StreamLag) -> Held {
    // Of POSTS what fan-out has not expanded; of the others what has not been delivered.
    let waits = |consumer: &&v1::ConsumerLag| {
        ["fanout-", "timeline-", "push-"]
            .iter()
            .any(|start| consumer.consumer.starts_with(start))
    };
    Held {
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
