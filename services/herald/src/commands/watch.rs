//! `herald watch`

use std::time::{Duration, Instant};

use herald_cli::{
    client::Client,
    context::Context,
    failure::{Failure, Kind, printable},
    output::{Output, Show},
    time,
};
use herald_proto::v1::{WatchTimelineRequest, WatchTimelineResponse, watch_timeline_response::Event};
use serde::Serialize;

use crate::{
    backoff::Backoff,
    entry::{Post, posts},
    stop,
};

/// The server sends a sign of life every 15 seconds.
const SILENCE_MAX: Duration = Duration::from_secs(45);

const EXAMPLES: &str = "\
Examples:
  herald watch 1

  Only what is new from now on:
    herald watch 1 --snapshot-size 1

  For a program, one JSON object a line:
    herald watch 1 --output json | jq -r 'select(.event == \"entry\") | .entry.text'

  Go on where an earlier watch ended, with the resume_token of its last line:
    herald watch 1 --output json --resume-token TOKEN";

/// Follow a user's timeline as it grows
///
/// First the newest posts, oldest of them first, then each new one as it becomes visible. When the connection breaks,
/// or this reader was too slow, it connects again and goes on where it was. Ctrl-C ends it.
///
/// With --output json each line has an `event`: `snapshot` with `entries`, `entry` with an `entry`, or `heartbeat`;
/// and the `resume_token` to go on from.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Args {
    /// Whose timeline
    #[arg(value_name = "USER")]
    user_id: String,

    /// How many posts to begin with, at most: 1 to 200; 0 is the server's default, 50
    #[arg(
        long,
        value_name = "COUNT",
        default_value_t = 0,
        allow_negative_numbers = true
    )]
    snapshot_size: i32,

    /// Where an earlier watch ended: begin with what became visible since
    #[arg(long, value_name = "TOKEN", allow_hyphen_values = true)]
    resume_token: Option<String>,

    /// How long to go on trying when the server is away
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = time::duration)]
    give_up_after: Duration,
}

/// One line of the stream.
#[derive(Debug, Serialize)]
struct Step {
    #[serde(flatten)]
    event: Shown,
    resume_token: String,
    server_time: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Shown {
    Snapshot { entries: Vec<Post> },
    Entry { entry: Post },
    Heartbeat,
}

impl Show for Step {
    fn text(&self) -> String {
        match &self.event {
            // A stream is read downwards: the newest comes last.
            Shown::Snapshot { entries } => {
                entries
                    .iter()
                    .rev()
                    .map(Show::text)
                    .collect::<Vec<_>>()
                    .join("\n\n")
                    + "\n"
            }
            Shown::Entry { entry } => entry.text() + "\n",
            Shown::Heartbeat => String::new(),
        }
    }
}

impl Step {
    fn new(response: WatchTimelineResponse) -> Option<Self> {
        let event = match response.event? {
            Event::Snapshot(snapshot) => Shown::Snapshot {
                entries: posts(snapshot.entries),
            },
            Event::Entry(entry) => Shown::Entry {
                entry: entry.post?.into(),
            },
            Event::Heartbeat(_) => Shown::Heartbeat,
        };
        let server_time = time::rfc3339(response.server_time.as_ref());
        Some(Self {
            event,
            resume_token: response.resume_token,
            server_time,
        })
    }

    /// Whether there is something for a person to read.
    fn is_silent(&self) -> bool {
        match &self.event {
            Shown::Snapshot { entries } => entries.is_empty(),
            Shown::Entry { .. } => false,
            Shown::Heartbeat => true,
        }
    }

    fn print(&self, output: Output) -> Result<(), Failure> {
        if !output.is_json() && self.is_silent() {
            Ok(())
        } else {
            output.show(self)
        }
    }
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    stop::on_signal(watch(args, context)).await
}

async fn watch(args: Args, context: &Context) -> Result<(), Failure> {
    let client = context.client().await?;
    let mut request = WatchTimelineRequest {
        user_id: args.user_id,
        snapshot_size: args.snapshot_size,
        resume_token: args.resume_token.unwrap_or_default(),
    };
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
    let mut alive = Instant::now();
    loop {
        let before = request.resume_token.clone();
        let failure = match follow(&client, &mut request, context.output).await {
            Ok(()) => Failure::new(Kind::Unreachable, "the server ended the stream"),
            Err(failure) => failure,
        };
        if request.resume_token != before {
            alive = Instant::now();
            backoff.reset();
        }
        let passing = matches!(
            failure.kind(),
            Kind::Unreachable | Kind::Overloaded | Kind::TimedOut
        );
        if !passing || alive.elapsed() >= args.give_up_after {
            return Err(failure);
        }
        let delay = backoff.next(failure.retry_after());
        context.output.note(&format!(
            "{}; connecting again in {:.1} s",
            printable(failure.message()),
            delay.as_secs_f64()
        ));
        tokio::time::sleep(delay).await;
    }
}

/// Prints one stream until it ends, and keeps the resume token of what was printed.
async fn follow(client: &Client, request: &mut WatchTimelineRequest, output: Output) -> Result<(), Failure> {
    let silent = || {
        Failure::new(
            Kind::TimedOut,
            format!("the server was silent for {} s", SILENCE_MAX.as_secs()),
        )
    };
    let mut timelines = client.timelines();
    let call = timelines.watch_timeline(request.clone());
    let mut stream = tokio::time::timeout(SILENCE_MAX, call)
        .await
        .map_err(|_| silent())??
        .into_inner();
    while let Some(response) = tokio::time::timeout(SILENCE_MAX, stream.message())
        .await
        .map_err(|_| silent())??
    {
        let resume_token = response.resume_token.clone();
        if let Some(step) = Step::new(response) {
            step.print(output)?;
        }
        if !resume_token.is_empty() {
            request.resume_token = resume_token;
        }
    }
    Ok(())
}
