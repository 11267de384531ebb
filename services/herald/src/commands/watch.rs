//! `herald watch`

use std::time::{Duration, Instant};

use herald_cli::{
    client::Client,
    context::Context,
    failure::{Failure, Kind, printable},
    output::{Output, Show},
    time::{self, format_wait},
};
use herald_proto::v1::{
    RemovalReason, WatchTimelineRequest, WatchTimelineResponse, watch_timeline_response::Event,
};
use serde::Serialize;

use crate::{
    backoff::Backoff,
    entry::{Post, posts},
    stop,
};

/// Longest time without a message. The server sends a heartbeat every 15 s.
const SILENCE_MAX: Duration = Duration::from_secs(45);

const EXAMPLES: &str = "\
Examples:
  herald watch 1

  Only the newest post, then new posts:
    herald watch 1 --snapshot-size 1

  For a program, one JSON object per line:
    herald watch 1 --output json | jq -r 'select(.event == \"entry\") | .entry.text'

  Continue after an earlier watch, with the resume_token of its last line:
    herald watch 1 --output json --resume-token TOKEN";

/// Print new posts of a user's timeline as they arrive
///
/// Prints the newest posts in ascending order, then each new post when it becomes visible, and each printed post that is
/// deleted or whose author is muted. When the connection breaks, or the server closes it because the reader is too
/// slow, the command reconnects and resumes after the last post. Ctrl-C stops it.
///
/// With --output json each line has an `event`: `snapshot` with `entries`, `entry` with an `entry`, `removal` with a
/// `removal` (a `post_id` and its `reason`, `deleted` or `muted`), or `heartbeat`; and a `resume_token`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Args {
    /// The id of the user
    #[arg(value_name = "USER")]
    user_id: String,

    /// Posts in the first snapshot, 1 to 200; 0 uses the server's default, 50
    #[arg(
        long,
        value_name = "COUNT",
        default_value_t = 0,
        allow_negative_numbers = true
    )]
    snapshot_size: i32,

    /// Resume after an earlier watch: print the posts that became visible since then
    #[arg(long, value_name = "TOKEN", allow_hyphen_values = true)]
    resume_token: Option<String>,

    /// Exit after the server has been unavailable for this time
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = time::duration)]
    give_up_after: Duration,
}

/// A line of the output.
#[derive(Debug, Serialize)]
struct WatchLine {
    #[serde(flatten)]
    event: LineEvent,
    resume_token: String,
    server_time: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum LineEvent {
    Snapshot { entries: Vec<Post> },
    Entry { entry: Box<Post> },
    Removal { removal: Removal },
    Heartbeat,
}

#[derive(Debug, Serialize)]
struct Removal {
    post_id: u64,
    reason: &'static str,
}

impl Show for WatchLine {
    fn text(&self) -> String {
        match &self.event {
            // The newest post comes last, as in the rest of the stream.
            LineEvent::Snapshot { entries } => {
                entries
                    .iter()
                    .rev()
                    .map(Show::text)
                    .collect::<Vec<_>>()
                    .join("\n\n")
                    + "\n"
            }
            LineEvent::Entry { entry } => entry.text() + "\n",
            LineEvent::Removal { removal } => {
                format!("post {} removed: {}\n", removal.post_id, removal.reason)
            }
            LineEvent::Heartbeat => String::new(),
        }
    }
}

impl WatchLine {
    fn new(response: WatchTimelineResponse) -> Option<Self> {
        let event = match response.event? {
            Event::Snapshot(snapshot) => LineEvent::Snapshot {
                entries: posts(snapshot.entries),
            },
            Event::Entry(entry) => LineEvent::Entry {
                entry: Box::new(entry.post?.into()),
            },
            Event::Removal(removal) => LineEvent::Removal {
                removal: Removal {
                    post_id: removal.post_id,
                    reason: match removal.reason() {
                        RemovalReason::Deleted => "deleted",
                        RemovalReason::Muted => "muted",
                        RemovalReason::Unspecified => "unknown",
                    },
                },
            },
            Event::Heartbeat(_) => LineEvent::Heartbeat,
        };
        let server_time = time::rfc3339(response.server_time.as_ref());
        Some(Self {
            event,
            resume_token: response.resume_token,
            server_time,
        })
    }

    /// Whether the text output is empty.
    fn is_empty(&self) -> bool {
        match &self.event {
            LineEvent::Snapshot { entries } => entries.is_empty(),
            LineEvent::Entry { .. } | LineEvent::Removal { .. } => false,
            LineEvent::Heartbeat => true,
        }
    }

    fn print(&self, output: Output) -> Result<(), Failure> {
        if !output.is_json() && self.is_empty() {
            Ok(())
        } else {
            output.show(self)
        }
    }
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    stop::run_until_signal(watch(args, context)).await
}

async fn watch(args: Args, context: &Context) -> Result<(), Failure> {
    let client = context.client().await?;
    let mut request = WatchTimelineRequest {
        user_id: args.user_id,
        snapshot_size: args.snapshot_size,
        resume_token: args.resume_token.unwrap_or_default(),
    };
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
    let mut last_progress = Instant::now();
    let mut is_reconnecting = false;
    loop {
        let previous_token = request.resume_token.clone();
        let connected = || {
            if std::mem::take(&mut is_reconnecting) {
                context.output.note("reconnected");
            }
        };
        let failure = match print_stream(&client, &mut request, context.output, connected).await {
            Ok(()) => Failure::new(Kind::Unreachable, "the server ended the stream"),
            Err(failure) => failure,
        };
        if request.resume_token != previous_token {
            last_progress = Instant::now();
            backoff.reset();
        }
        let is_transient = matches!(
            failure.kind(),
            Kind::Unreachable | Kind::Overloaded | Kind::TimedOut
        );
        if !is_transient || last_progress.elapsed() >= args.give_up_after {
            return Err(failure);
        }
        let delay = backoff.next_delay(failure.retry_after());
        context.output.note(&format!(
            "{}; reconnecting to {} in {}",
            printable(failure.message()),
            context.global.server,
            format_wait(delay)
        ));
        is_reconnecting = true;
        tokio::time::sleep(delay).await;
    }
}

/// Prints one stream until it ends. Calls `connected` at its first message. Stores the resume token of the last printed message in `request`.
async fn print_stream(
    client: &Client,
    request: &mut WatchTimelineRequest,
    output: Output,
    connected: impl FnOnce(),
) -> Result<(), Failure> {
    let timed_out = || {
        Failure::new(
            Kind::TimedOut,
            format!("no message from the server for {} s", SILENCE_MAX.as_secs()),
        )
    };
    let mut connected = Some(connected);
    let mut timelines = client.timelines();
    let call = timelines.watch_timeline(request.clone());
    let mut stream = tokio::time::timeout(SILENCE_MAX, call)
        .await
        .map_err(|_| timed_out())??
        .into_inner();
    while let Some(response) = tokio::time::timeout(SILENCE_MAX, stream.message())
        .await
        .map_err(|_| timed_out())??
    {
        if let Some(connected) = connected.take() {
            connected();
        }
        let resume_token = response.resume_token.clone();
        if let Some(line) = WatchLine::new(response) {
            line.print(output)?;
        }
        if !resume_token.is_empty() {
            request.resume_token = resume_token;
        }
    }
    Ok(())
}
