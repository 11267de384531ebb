//! `herald lag`

use std::time::Duration;

use console::Term;
use herald_cli::{
    context::Context,
    failure::{Failure, Kind},
    output::{Output, Show, Table, bytes, count},
    time::{self, duration_to_proto, rfc3339, rough},
};
use herald_proto::v1::{GetLagRequest, StreamLag, WatchLagRequest};
use serde::Serialize;

use crate::stop;

const EXAMPLES: &str = "\
Examples:
  herald lag

  As it changes, on a terminal in place:
    herald lag --watch --interval 500ms

  How many messages wait, for a script:
    herald lag --output json | jq '[.streams[].consumers[].pending] | add'";

/// Show the streams and how far behind their consumers are
///
/// `pending` messages went to no worker yet, `unacked` ones are at work, `redelivered` ones for more than the first
/// time. `idle pulls` are workers with nothing to do. `oldest` is the age of the oldest message not acknowledged.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Args {
    /// Go on until Ctrl-C; with --output json one object a line
    #[arg(long, short = 'w')]
    watch: bool,

    /// How often to look, 200ms to 1m
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "1s",
        value_parser = time::positive_duration,
        requires = "watch"
    )]
    interval: Duration,
}

#[derive(Debug, Serialize)]
struct Lag {
    read_time: Option<String>,
    streams: Vec<Stream>,
}

#[allow(clippy::struct_field_names, reason = "the names are those of the JSON")]
#[derive(Debug, Serialize)]
struct Stream {
    stream: String,
    messages: u64,
    bytes: u64,
    bytes_max: u64,
    last_sequence: u64,
    consumers: Vec<Consumer>,
}

#[allow(clippy::struct_field_names, reason = "the names are those of the JSON")]
#[derive(Debug, Serialize)]
struct Consumer {
    consumer: String,
    pending: u64,
    ack_pending: u64,
    redelivered: u64,
    waiting_pulls: u64,
    oldest_age_seconds: f64,
    acknowledged_per_second: f64,
}

impl Lag {
    fn new(streams: Vec<StreamLag>, read_time: Option<prost_types::Timestamp>) -> Self {
        Self {
            read_time: rfc3339(read_time.as_ref()),
            streams: streams.into_iter().map(Stream::from).collect(),
        }
    }
}

impl From<StreamLag> for Stream {
    fn from(lag: StreamLag) -> Self {
        let consumers = lag.consumers.into_iter().map(|consumer| Consumer {
            consumer: consumer.consumer,
            pending: consumer.pending_count,
            ack_pending: consumer.ack_pending_count,
            redelivered: consumer.redelivered_count,
            waiting_pulls: consumer.waiting_pull_count,
            oldest_age_seconds: consumer.oldest_age_seconds,
            acknowledged_per_second: consumer.acknowledged_per_second,
        });
        Self {
            stream: lag.stream,
            messages: lag.message_count,
            bytes: lag.byte_count,
            bytes_max: lag.byte_count_max,
            last_sequence: lag.last_sequence,
            consumers: consumers.collect(),
        }
    }
}

impl Show for Lag {
    fn text(&self) -> String {
        let mut streams = Table::new(&["stream", ">messages", ">bytes", ">full", ">last sequence"]);
        let mut consumers = Table::new(&[
            "consumer",
            "stream",
            ">pending",
            ">unacked",
            ">redelivered",
            ">idle pulls",
            ">oldest",
            ">acked/s",
        ]);
        for stream in &self.streams {
            let full = match stream.bytes_max {
                0 => "-".into(),
                max => format!("{:.0}%", stream.bytes as f64 / max as f64 * 100.0),
            };
            streams.row([
                stream.stream.clone(),
                count(stream.messages),
                bytes(stream.bytes),
                full,
                stream.last_sequence.to_string(),
            ]);
            for consumer in &stream.consumers {
                consumers.row([
                    consumer.consumer.clone(),
                    stream.stream.clone(),
                    count(consumer.pending),
                    count(consumer.ack_pending),
                    count(consumer.redelivered),
                    count(consumer.waiting_pulls),
                    age(consumer.oldest_age_seconds),
                    count(consumer.acknowledged_per_second.round() as u64),
                ]);
            }
        }
        format!("{}\n\n{}", streams.render(), consumers.render())
    }
}

fn age(seconds: f64) -> String {
    match Duration::try_from_secs_f64(seconds) {
        Ok(age) if !age.is_zero() => rough(age),
        _ => "-".into(),
    }
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    if args.watch {
        return stop::on_signal(watch(args.interval, context)).await;
    }
    let client = context.client().await?;
    let lag = client
        .mesh()
        .get_lag(client.request(GetLagRequest {}))
        .await?
        .into_inner();
    context.output.show(&Lag::new(lag.streams, lag.read_time))
}

async fn watch(interval: Duration, context: &Context) -> Result<(), Failure> {
    let client = context.client().await?;
    let request = WatchLagRequest {
        interval: Some(duration_to_proto(interval)),
    };
    let mut stream = client.mesh().watch_lag(request).await?.into_inner();
    let terminal = Term::stdout();
    let in_place = terminal.is_term() && !context.output.is_json();
    let mut lines_before = 0;
    while let Some(lag) = stream.message().await? {
        let lag = Lag::new(lag.streams, lag.read_time);
        if !in_place {
            context.output.show(&lag)?;
            if !context.output.is_json() {
                Output::write("\n")?;
            }
            continue;
        }
        let (height, width) = terminal.size();
        let screen = screen(&lag.text(), usize::from(height), usize::from(width));
        // Up to where the last one began, and away with what is below.
        let back = if lines_before == 0 {
            String::new()
        } else {
            format!("\x1b[{lines_before}A\x1b[J")
        };
        lines_before = screen.lines().count();
        Output::write(&(back + &screen))?;
    }
    Err(Failure::new(Kind::Unreachable, "the server ended the stream"))
}

/// As much of the text as the terminal holds: a line that wraps, or scrolls away, can't be written over.
fn screen(text: &str, height: usize, width: usize) -> String {
    let lines = text.lines().take(height.saturating_sub(1).max(1));
    lines
        .map(|line| console::truncate_str(line, width, "…").into_owned() + "\n")
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_screen_holds_what_fits() {
        assert_eq!(screen("abcdef\nb\nc\nd", 3, 4), "abc…\nb\n");
        assert_eq!(screen("a", 0, 80), "a\n");
    }

    #[test]
    fn no_oldest_message_has_no_age() {
        assert_eq!(age(0.0), "-");
        assert_eq!(age(f64::NAN), "-");
        assert_eq!(age(0.25), "250 ms");
        assert_eq!(age(90.0), "1 min");
    }
}
