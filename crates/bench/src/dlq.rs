//! `herald bench dlq`: measures the latency of dead letters until they are listed, list calls, and redrives.

use std::{fmt::Write as _, time::Duration};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use hdrhistogram::Histogram;
use herald_cli::{client::OperatorClient, context::Context, failure::Failure, output::Show};
use herald_mesh::{Mesh, Subject, consumers, streams};
use herald_model::{Lane, Recipients, UserKey, time::Timestamp};
use herald_proto::{mesh_v1, v1};
use prost::Message as _;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde::Serialize;

use super::{
    load::{self, PostOptions},
    observe,
    progress::Progress,
    report::{Percentiles, format_percentiles},
    setup::{Setup, World},
};

const LONG: &str = "\
First, undecodable messages are published one by one; a worker terminates each, and the time from there until its dead \
letter is listed is measured.

Then the DLQ stream is filled with dead letters of timeline chunks with one recipient each, and pages of them are \
listed. Half of the dead letters are redriven at the highest rate, 5,000/s. The other half is redriven at \
--redrive-rate in --rounds parts, and the latency of posts in the normal lane is measured before and during each \
part. Alternating the two exposes both to the same disturbances of the machine.

The continuous audit runs meanwhile, and the report includes its completed and failed rounds.

If a dead letter is not resolved by its redrive, or a round of the continuous audit fails, the exit code is 1.";

const EXAMPLES: &str = "\
Examples:
  herald bench dlq --users 2000 --followers 100 --dead-letters 100000";

/// Highest rate of a redrive, dead letters per second.
const RATE_MAX: u32 = 5_000;
/// Concurrent publishes of dead letters.
const PUBLISHES_IN_FLIGHT: usize = 512;
/// Rate at which the posts of the dead letters are submitted, per second.
const POSTS_PER_SECOND: f64 = 200.0;
/// Share of a redrive's duration in which posts are submitted, so that all of them are measured during the redrive.
const POSTS_SHARE: f64 = 0.9;
/// Pause after a redrive before posts are measured without one: background work of the redrive must end first.
const REDRIVE_PAUSE: Duration = Duration::from_secs(2);
/// Reason prefix of the first half of the dead letters, for filters.
const FIRST_HALF_PREFIX: &str = "first half:";
/// Name prefixes of the consumers that deliver posts to timelines.
const TIMELINE_CONSUMERS: [&str; 3] = ["fanout-", "slice-", "timeline-"];
/// Number of timed list calls.
const LIST_CALLS: u32 = 100;
/// Time between two polls of the ack floor.
const ACK_FLOOR_POLL_INTERVAL: Duration = Duration::from_millis(200);
/// Time between two polls for an expected dead letter.
const DEAD_LETTER_POLL_INTERVAL: Duration = Duration::from_millis(1);

/// Measure the latency, listing and redrive of dead letters
#[derive(Debug, clap::Args)]
#[command(long_about = LONG, after_long_help = EXAMPLES)]
pub(super) struct Args {
    #[command(flatten)]
    setup: Setup,

    /// Dead letters to list and redrive
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(2..=10_000_000))]
    dead_letters: u64,

    /// Undecodable messages to publish
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    poison: u32,

    /// Dead letters redriven per second while posts are measured
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=i64::from(RATE_MAX)))]
    redrive_rate: u32,

    /// Posts per second, without and during a redrive
    #[arg(long, default_value_t = 20.0, value_parser = super::setup::positive)]
    live_rate: f64,

    /// Rounds of measuring posts without and then during a redrive
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rounds: u32,
}

impl Args {
    /// Reason prefix of a dead letter: that of the first half or of a round.
    fn reason_prefix(&self, dead_letter: u64) -> String {
        let half = self.dead_letters / 2;
        match dead_letter.checked_sub(half) {
            None => FIRST_HALF_PREFIX.into(),
            Some(after) => round_prefix(after * u64::from(self.rounds) / (self.dead_letters - half)),
        }
    }

    /// Posts to submit during one part, and as many without a redrive.
    fn live_posts(&self) -> usize {
        let dead_letters = (self.dead_letters / 2) as f64 / f64::from(self.rounds);
        let seconds = dead_letters / f64::from(self.redrive_rate);
        ((seconds * self.live_rate * POSTS_SHARE) as usize).max(1)
    }
}

/// Reason prefix of a round.
fn round_prefix(number: u64) -> String {
    format!("round {number}:")
}

#[derive(Debug, Serialize)]
struct Report {
    /// From the last failed attempt until the dead letter was listed.
    visible_ms: Percentiles,
    dead_letters: u64,
    /// Dead letters per second from the first publish until all were stored.
    indexed_per_second: f64,
    first_page_ms: Percentiles,
    groups_ms: Percentiles,
    redriven_per_second: f64,
    /// Latency of posts until visible, without and during a redrive.
    live_alone_ms: Percentiles,
    live_beside_ms: Percentiles,
    redrive_rate: u32,
    rss_mb_max: f64,
    disk_mb: f64,
    unresolved: u64,
    /// Rounds of the continuous audit that completed, and that failed.
    audit_rounds: u64,
    audit_failures: u64,
}

impl Show for Report {
    fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            // Writing to a string can't fail.
            let _ = writeln!(text, "{name:<28}{value}");
        };
        line("last attempt to visible", format_percentiles(&self.visible_ms));
        line(
            "dead letters",
            format!("{}, indexed {:.0}/s", self.dead_letters, self.indexed_per_second),
        );
        line("first page of 100", format_percentiles(&self.first_page_ms));
        line("all groups", format_percentiles(&self.groups_ms));
        line("redriven", format!("{:.0}/s", self.redriven_per_second));
        line("posts, no redrive", format_percentiles(&self.live_alone_ms));
        let beside = format!("posts, redrive at {}/s", self.redrive_rate);
        line(&beside, format_percentiles(&self.live_beside_ms));
        line("maximum memory", format!("{:.0} MB", self.rss_mb_max));
        line("disk", format!("{:.0} MB", self.disk_mb));
        line(
            "checked",
            format!("{} dead letters not resolved", self.unresolved),
        );
        line(
            "continuous audit",
            format!(
                "{} rounds completed, {} failed",
                self.audit_rounds, self.audit_failures
            ),
        );
        text.truncate(text.trim_end().len());
        text
    }
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    if u64::from(args.rounds) > args.dead_letters / 2 {
        return Err(Failure::usage(format!(
            "each of --rounds {} needs a dead letter: set --dead-letters to {} or more",
            args.rounds,
            u64::from(args.rounds) * 2
        )));
    }
    let report = Box::pin(measure(&args, context)).await?;
    context.output.show(&report)?;
    if report.unresolved > 0 {
        return Err(Failure::failed(
            "some dead letters were not resolved by their redrive; see the server's log above",
        ));
    }
    if report.audit_failures > 0 {
        return Err(Failure::failed(
            "rounds of the continuous audit failed; see the server's log above",
        ));
    }
    Ok(())
}

async fn measure(args: &Args, context: &Context) -> Result<Report, Failure> {
    let progress = Progress {
        output: context.output,
    };
    let world = args.setup.start(None, progress, context).await?;
    let client = &world.operators;
    let mesh = Mesh::connect(&herald_mesh::Config::at(world.server.nats()))
        .await
        .map_err(|error| mesh_failure(&error))?;

    let visible = progress
        .step(
            "publishing undecodable messages",
            measure_visibility(&mesh, client, args.poison),
        )
        .await?;
    let posts = progress
        .step("submitting posts", submit_posts(args, &world))
        .await?;
    let filling = Timestamp::now();
    let bar = progress.bar("publishing dead letters", args.dead_letters);
    let users = args.setup.users;
    stream::iter(0..args.dead_letters)
        .map(|n| {
            let post = posts[(n / u64::from(users)) as usize];
            publish_dead_letter(&mesh, n, post, users, args.reason_prefix(n))
        })
        .buffer_unordered(PUBLISHES_IN_FLIGHT)
        .try_for_each(|()| {
            bar.inc(1);
            std::future::ready(Ok(()))
        })
        .await?;
    let last = mesh
        .last_sequence(streams::DLQ)
        .await
        .map_err(|error| mesh_failure(&error))?;
    while mesh
        .ack_floor(streams::DLQ, consumers::DEAD_LETTERS)
        .await
        .map_err(|error| mesh_failure(&error))?
        < last
    {
        tokio::time::sleep(ACK_FLOOR_POLL_INTERVAL).await;
    }
    let indexed_per_second = args.dead_letters as f64 / Timestamp::now().since(filling).as_secs_f64();
    bar.finish_and_clear();

    let first_page = time_calls(LIST_CALLS, async || {
        list_dead_letters(client, v1::DeadLetterState::Open)
            .await
            .map(drop)
    })
    .await?;
    let groups = time_calls(LIST_CALLS / 10, async || {
        let request = client.request(v1::ListGroupsRequest::default());
        client.dead_letters().list_groups(request).await?;
        Ok(())
    })
    .await?;

    let first = progress
        .step(
            "redriving the first half",
            redrive(client, FIRST_HALF_PREFIX, RATE_MAX),
        )
        .await?;
    let mut resolved = first.resolved_count;
    let (mut alone, mut beside) = (observe::histogram(), observe::histogram());
    let bar = progress.bar("rounds", args.rounds.into());
    for number in 0..u64::from(args.rounds) {
        tokio::time::sleep(REDRIVE_PAUSE).await;
        alone += measure_live_posts(args, &world, 2 * number).await?;
        let part = round_prefix(number);
        let (redriven, posts) = tokio::try_join!(
            redrive(client, &part, args.redrive_rate),
            measure_live_posts(args, &world, 2 * number + 1)
        )?;
        beside += posts;
        resolved += redriven.resolved_count;
        bar.inc(1);
    }
    bar.finish_and_clear();
    let elapsed = first.elapsed.unwrap_or_default();
    let seconds = elapsed.seconds as f64 + f64::from(elapsed.nanos) / 1e9;
    let report = Report {
        visible_ms: Percentiles::of(&visible),
        dead_letters: args.dead_letters,
        indexed_per_second,
        first_page_ms: Percentiles::of(&first_page),
        groups_ms: Percentiles::of(&groups),
        redriven_per_second: first.resolved_count as f64 / seconds.max(1e-6),
        live_alone_ms: Percentiles::of(&alone),
        live_beside_ms: Percentiles::of(&beside),
        redrive_rate: args.redrive_rate,
        rss_mb_max: world.server.rss_mb_max(),
        disk_mb: world.disk_mb(),
        unresolved: args.dead_letters - resolved.min(args.dead_letters),
        audit_rounds: world.server.counter("herald_audit_rounds_total").await?,
        audit_failures: world.server.counter("herald_audit_failures_total").await?,
    };
    // Disconnect first; otherwise the client logs the loss of the connection.
    drop(mesh);
    progress.step("stopping the server", world.stop()).await?;
    Ok(report)
}

/// Publishes undecodable messages one by one; measures the time until the dead letter of each is listed.
async fn measure_visibility(
    mesh: &Mesh,
    client: &OperatorClient,
    count: u32,
) -> Result<Histogram<u64>, Failure> {
    // Field 1 is a string whose length exceeds the message.
    let garbage = b"\x0a\xff\xff\xff\xff\x0fgarbage".as_slice();
    let mut visible = observe::histogram();
    for n in 0..count {
        let subject = Subject::TimelineDeliver(Lane::Normal);
        let id = format!("garbage {n}");
        let published = mesh.publish_bytes(subject, Some(&id), garbage.into()).await;
        let sequence = published.map_err(|error| mesh_failure(&error))?.sequence;
        loop {
            let newest = list_dead_letters(client, v1::DeadLetterState::Open).await?;
            let dead_letter = newest
                .into_iter()
                .find(|dead_letter| dead_letter.sequence == sequence);
            let seen = Timestamp::now();
            if let Some(time) = dead_letter.and_then(|dead_letter| dead_letter.last_failure_time) {
                let failed = Timestamp(time.seconds * 1_000_000 + i64::from(time.nanos) / 1_000);
                observe::record(&mut visible, seen.since(failed));
                break;
            }
            tokio::time::sleep(DEAD_LETTER_POLL_INTERVAL).await;
        }
    }
    Ok(visible)
}

/// Submits the posts of the dead letters: enough for each dead letter to have its own pair of post and recipient.
async fn submit_posts(args: &Args, world: &World) -> Result<Vec<u64>, Failure> {
    let count = args.dead_letters.div_ceil(args.setup.users.into()) as u32;
    let authors: load::Authors = (0..count).map(|n| n % args.setup.authors()).collect();
    let options = PostOptions::default();
    let submitted = load::submit_at_rate(&world.client, &authors, POSTS_PER_SECOND, options, |_| {}).await?;
    observe::wait_drained(&world.operators, &TIMELINE_CONSUMERS, |_| {}).await?;
    Ok(submitted.iter().map(|post| post.post_id).collect())
}

/// Publishes a dead letter of a timeline chunk with one recipient to DLQ, as the deadletter service does.
async fn publish_dead_letter(
    mesh: &Mesh,
    n: u64,
    post_id: u64,
    users: u32,
    part: String,
) -> Result<(), Failure> {
    let recipient = UserKey(1 + u32::try_from(n % u64::from(users)).unwrap_or(0));
    let recipients = Recipients::from_sorted([recipient]);
    let now = Timestamp::now();
    let chunk = mesh_v1::TimelineChunk {
        post_id,
        author_key: 1,
        accepted_at_us: now.0,
        chunk_id: recipients.chunk_id().0,
        recipients: recipients.as_bytes().clone(),
        recipient_count: recipients.len(),
    };
    let dead_letter = mesh_v1::DlqEntry {
        stream: streams::TIMELINE.into(),
        consumer: consumers::timeline(Lane::Normal).into(),
        kind: consumers::ConsumerKind::Timeline.as_str().into(),
        sequence: 1_000_000_000 + n,
        original_sequence: 1_000_000_000 + n,
        subject: Subject::TimelineDeliver(Lane::Normal).as_str().into(),
        message_type: Subject::TimelineDeliver(Lane::Normal).message_type().into(),
        payload: chunk.encode_to_vec().into(),
        payload_state: v1::DeadLetterPayload::Kept.into(),
        cause: v1::DeadLetterCause::Terminated.into(),
        reason: format!("{part} {n}"),
        attempt_count: 1,
        published_at_us: now.0,
        failed_at_us: now.0,
        post_id: chunk.post_id,
        author_key: chunk.author_key,
        channel: v1::Channel::Timeline.into(),
        chunk_id: chunk.chunk_id,
        recipient_count: 1,
        accepted_at_us: now.0,
        lane: v1::Lane::Normal.into(),
        ..Default::default()
    };
    let id = format!("bench {n}");
    mesh.publish_dead_letter(&dead_letter.stream, &dead_letter.consumer, &id, &dead_letter)
        .await
        .map_err(|error| mesh_failure(&error))?;
    Ok(())
}

async fn list_dead_letters(
    client: &OperatorClient,
    state: v1::DeadLetterState,
) -> Result<Vec<v1::DeadLetter>, Failure> {
    let request = client.request(v1::ListDeadLettersRequest {
        filter: Some(v1::DeadLetterFilter {
            state: state.into(),
            ..Default::default()
        }),
        ..Default::default()
    });
    Ok(client
        .dead_letters()
        .list_dead_letters(request)
        .await?
        .into_inner()
        .dead_letters)
}

/// Redrives the dead letters whose reason contains `reason`, and waits until the outcome of all is known.
async fn redrive(client: &OperatorClient, reason: &str, rate_max: u32) -> Result<v1::Redrive, Failure> {
    let filter = v1::DeadLetterFilter {
        reason: reason.into(),
        ..Default::default()
    };
    let request = v1::RedriveDeadLettersRequest {
        selection: Some(v1::DeadLetterSelection {
            filter: Some(filter),
            ..Default::default()
        }),
        rate_max,
        ..Default::default()
    };
    let began = Timestamp::now();
    let mut answers = client
        .dead_letters()
        .redrive_dead_letters(request)
        .await?
        .into_inner();
    let mut last = None;
    while let Some(answer) = answers.message().await? {
        last = answer.redrive;
    }
    let mut redrive = last.ok_or_else(|| {
        Failure::failed("the server closed the redrive stream without a status; see the server's log")
    })?;
    // Measured until the last outcome is known, not until the last dead letter was sent.
    redrive.elapsed = Some(herald_cli::time::duration_to_proto(Timestamp::now().since(began)));
    Ok(redrive)
}

/// Submits posts at the live rate; measures the time until each is visible to all its watchers.
async fn measure_live_posts(args: &Args, world: &World, seed: u64) -> Result<Histogram<u64>, Failure> {
    let mut rng = StdRng::seed_from_u64(args.setup.seed ^ seed);
    let authors: load::Authors = (0..args.live_posts())
        .map(|_| rng.random_range(0..args.setup.authors()))
        .collect();
    let options = PostOptions {
        lane: Lane::Normal,
        push_ttl: None,
    };
    let submitted = load::submit_at_rate(&world.client, &authors, args.live_rate, options, |_| {}).await?;
    observe::wait_drained(&world.operators, &TIMELINE_CONSUMERS, |_| {}).await?;
    Ok(observe::post_latencies(&submitted, &world.watchers.seen()))
}

async fn time_calls(
    times: u32,
    call: impl AsyncFn() -> Result<(), Failure>,
) -> Result<Histogram<u64>, Failure> {
    let mut histogram = observe::histogram();
    for _ in 0..times {
        let began = Timestamp::now();
        call().await?;
        observe::record(&mut histogram, Timestamp::now().since(began));
    }
    Ok(histogram)
}

fn mesh_failure(error: &herald_mesh::Error) -> Failure {
    Failure::failed(format!("the server's NATS failed: {error}"))
}
