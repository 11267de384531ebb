//! `herald lag`

use std::time::Duration;

use console::Term;
use herald_cli::{
    context::Context,
    failure::{Failure, Kind},
    output::{Output, Show, Table, bytes, count},
    time::{self, approximate, duration_to_proto, rfc3339},
};
use herald_proto::v1::{GetLagRequest, StreamLag, WatchLagRequest};
use serde::Serialize;

use crate::stop;

const EXAMPLES: &str = "\
Examples:
  herald lag

  Refresh in place on a terminal:
    herald lag --watch --interval 500ms

  The number of pending messages, in a script:
    herald lag --output json | jq '[.streams[].consumers[].pending] | add'";

/// Show the streams and the lag of their consumers
///
/// `pending`: messages not delivered to a worker yet. `unacked`: messages in flight, delivered and not acknowledged.
/// `redelivered`: messages in flight after more than one delivery. `idle pulls`: pull requests that wait for messages.
/// `oldest`: age of the oldest message that is not acknowledged. `full`: bytes of the stream in percent of its limit.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Args {
    /// Refresh until Ctrl-C; with --output json one object per line
    #[arg(long, short = 'w')]
    watch: bool,

    /// The refresh interval, 200ms to 1m
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
                    format_age(consumer.oldest_age_seconds),
                    count(consumer.acknowledged_per_second.round() as u64),
                ]);
            }
        }
        format!("{}\n\n{}", streams.render(), consumers.render())
    }
}

fn format_age(seconds: f64) -> String {
    match Duration::try_from_secs_f64(seconds) {
        Ok(age) if !age.is_zero() => approximate(age),
        _ => "-".into(),
    }
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    if args.watch {
        return stop::run_until_signal(watch(args.interval, context)).await;
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
        let screen = fit_to_terminal(&lag.text(), usize::from(height), usize::from(width));
        // Moves the cursor to the start of the previous output and clears from there.
        let reset = if lines_before == 0 {
            String::new()
        } else {
            format!("\x1b[{lines_before}A\x1b[J")
        };
        lines_before = screen.lines().count();
        Output::write(&(reset + &screen))?;
    }
    Err(Failure::new(Kind::Unreachable, "the server ended the stream"))
}

/// Cuts text to the size of the terminal: lines that wrap or scroll away can't be overwritten.
fn fit_to_terminal(text: &str, height: usize, width: usize) -> String {
    let lines = text.lines().take(height.saturating_sub(1).max(1));
    lines
        .map(|line| console::truncate_str(line, width, "…").into_owned() + "\n")
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_to_the_terminal() {
        assert_eq!(fit_to_terminal("abcdef\nb\nc\nd", 3, 4), "abc…\nb\n");
        assert_eq!(fit_to_terminal("a", 0, 80), "a\n");
    }

    #[test]
    fn a_zero_age_is_a_dash() {
        assert_eq!(format_age(0.0), "-");
        assert_eq!(format_age(f64::NAN), "-");
        assert_eq!(format_age(0.25), "250 ms");
        assert_eq!(format_age(90.0), "1 min");
    }
}
