//! `herald lag`

use std::{fmt::Write as _, time::Duration};

use console::Term;
use herald_cli::{
    context::Context,
    failure::{Failure, Kind},
    output::{Output, Show, Size, Table, bytes, count, counted},
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
    herald lag --output json | jq '[.streams[].consumers[].pending_count] | add'";

/// Show the streams and the lag of their consumers
///
/// `pending`: messages not delivered to a worker yet. `unacked`: messages in flight, delivered and not acknowledged.
/// `redelivered`: messages in flight after more than one delivery. `idle pulls`: pull requests that wait for messages.
/// `oldest`: age of the oldest message that is not acknowledged. `full`: bytes of the stream in percent of its limit.
///
/// The worst comes first: the fullest stream, and the consumer with the oldest message. Rows and columns that don't fit
/// the terminal are left out; without a terminal its size is 80 × 24. JSON output is always complete.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Args {
    /// Refresh until Ctrl-C; with --output json one object per line
    #[arg(long, short = 'w')]
    watch: bool,

    /// Print all consumers and columns, also those that don't fit the terminal
    #[arg(long, conflicts_with = "watch")]
    all: bool,

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
    /// The size to fit; `None` for all rows and columns.
    #[serde(skip)]
    size: Option<Size>,
}

#[allow(clippy::struct_field_names, reason = "the names are those of the JSON")]
#[derive(Debug, Serialize)]
struct Stream {
    stream: String,
    #[serde(rename = "message_count")]
    messages: u64,
    #[serde(rename = "byte_count")]
    bytes: u64,
    #[serde(rename = "byte_count_max")]
    bytes_max: u64,
    last_sequence: u64,
    consumers: Vec<Consumer>,
}

#[allow(clippy::struct_field_names, reason = "the names are those of the JSON")]
#[derive(Debug, Serialize)]
struct Consumer {
    consumer: String,
    #[serde(rename = "pending_count")]
    pending: u64,
    #[serde(rename = "ack_pending_count")]
    ack_pending: u64,
    #[serde(rename = "redelivered_count")]
    redelivered: u64,
    #[serde(rename = "waiting_pull_count")]
    waiting_pulls: u64,
    oldest_age_seconds: f64,
    acknowledged_per_second: f64,
}

impl Lag {
    fn new(streams: Vec<StreamLag>, read_time: Option<prost_types::Timestamp>, size: Option<Size>) -> Self {
        Self {
            size,
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

impl Stream {
    /// The share of the limit that is used; 0 without a limit.
    fn fullness(&self) -> f64 {
        if self.bytes_max == 0 {
            0.0
        } else {
            self.bytes as f64 / self.bytes_max as f64
        }
    }

    fn cells(&self) -> [String; 5] {
        let full = match self.bytes_max {
            0 => "-".into(),
            _ => format!("{:.0}%", self.fullness() * 100.0),
        };
        [
            self.stream.clone(),
            count(self.messages),
            bytes(self.bytes),
            full,
            self.last_sequence.to_string(),
        ]
    }
}

impl Consumer {
    fn unfinished(&self) -> u64 {
        self.pending.saturating_add(self.ack_pending)
    }

    fn cells(&self, stream: &str) -> [String; 8] {
        [
            self.consumer.clone(),
            stream.to_owned(),
            count(self.pending),
            count(self.ack_pending),
            count(self.redelivered),
            count(self.waiting_pulls),
            format_age(self.oldest_age_seconds),
            count(self.acknowledged_per_second.round() as u64),
        ]
    }
}

impl Show for Lag {
    fn text(&self) -> String {
        let mut streams: Vec<&Stream> = self.streams.iter().collect();
        streams.sort_by(|a, b| b.fullness().total_cmp(&a.fullness()));
        let consumers = self.streams.iter().flat_map(|stream| {
            let consumers = stream.consumers.iter();
            consumers.map(move |consumer| (stream.stream.as_str(), consumer))
        });
        let mut consumers: Vec<(&str, &Consumer)> = consumers.collect();
        consumers.sort_by(|(_, a), (_, b)| {
            let by_age = b.oldest_age_seconds.total_cmp(&a.oldest_age_seconds);
            by_age
                .then(b.unfinished().cmp(&a.unfinished()))
                .then(b.acknowledged_per_second.total_cmp(&a.acknowledged_per_second))
        });

        let (stream_rows, consumer_rows) = match self.size {
            Some(size) => divide_rows(size.height, streams.len(), consumers.len()),
            None => (streams.len(), consumers.len()),
        };
        let mut stream_table = Table::new(&["stream", ">messages", ">bytes", ">full", ">last sequence"]);
        for stream in &streams[..stream_rows] {
            stream_table.row(stream.cells());
        }
        let mut consumer_table = Table::new(&[
            "consumer",
            "stream",
            ">pending",
            ">unacked",
            ">redelivered",
            ">idle pulls",
            ">oldest",
            ">acked/s",
        ]);
        for (stream, consumer) in &consumers[..consumer_rows] {
            consumer_table.row(consumer.cells(stream));
        }
        if let Some(Size { width, .. }) = self.size {
            stream_table.fit(width, &["last sequence", "bytes", "messages"]);
            consumer_table.fit(
                width,
                &["idle pulls", "stream", "redelivered", "acked/s", "unacked"],
            );
        }
        let mut text = stream_table.render();
        if let Some(next) = streams.get(stream_rows) {
            let more = counted(
                (streams.len() - stream_rows) as u64,
                "more stream",
                "more streams",
            );
            let _ = write!(text, "\n… {more}, at most {:.0}% full", next.fullness() * 100.0);
        }
        let _ = write!(text, "\n\n{}", consumer_table.render());
        let hidden = &consumers[consumer_rows..];
        if !hidden.is_empty() {
            let more = counted(hidden.len() as u64, "more consumer", "more consumers");
            let unfinished = hidden
                .iter()
                .map(|(_, consumer)| consumer.unfinished())
                .fold(0, u64::saturating_add);
            let _ = write!(
                text,
                "\n… {more} with {} unfinished",
                counted(unfinished, "message", "messages")
            );
        }
        text
    }
}

/// Divides the lines of a terminal between the rows of two tables, each with a header and, when rows are hidden, a line
/// about them. An empty line separates the tables, and the cursor or the prompt needs the last line.
fn divide_rows(height: usize, streams: usize, consumers: usize) -> (usize, usize) {
    let room = height.saturating_sub(4).max(4);
    if streams + consumers <= room {
        return (streams, consumers);
    }
    // The streams get a third, or what the consumers leave.
    let stream_room = (room / 3).max(room.saturating_sub(consumers)).min(streams);
    let rows = |room: usize, all: usize| if all <= room { all } else { room - 1 };
    (rows(stream_room, streams), rows(room - stream_room, consumers))
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
    let client = context.operator_client().await?;
    let lag = client
        .mesh()
        .get_lag(client.request(GetLagRequest {}))
        .await?
        .into_inner();
    let size = (!args.all).then(Size::of_stdout);
    context.output.show(&Lag::new(lag.streams, lag.read_time, size))
}

async fn watch(interval: Duration, context: &Context) -> Result<(), Failure> {
    let client = context.operator_client().await?;
    let request = WatchLagRequest {
        interval: Some(duration_to_proto(interval)),
    };
    let mut stream = client.mesh().watch_lag(request).await?.into_inner();
    let terminal = Term::stdout();
    let in_place = terminal.is_term() && !context.output.is_json();
    let mut lines_before = 0;
    while let Some(lag) = stream.message().await? {
        let size = Size::of_stdout();
        let lag = Lag::new(lag.streams, lag.read_time, Some(size));
        if !in_place {
            context.output.show(&lag)?;
            if !context.output.is_json() {
                Output::write("\n")?;
            }
            continue;
        }
        let screen = fit_to_terminal(&lag.text(), size.height, size.width);
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
    use herald_proto::v1::ConsumerLag;

    use super::*;

    /// Nine streams with three consumers each; a later stream is fuller and its consumers are older.
    fn mesh(size: Option<Size>) -> Lag {
        let consumer = |stream: u64, number: u64| ConsumerLag {
            consumer: format!("redrive-analytics-posts-{stream}-{number}"),
            pending_count: 1_000_000 * stream,
            ack_pending_count: 100_000,
            oldest_age_seconds: (stream * 10 + number) as f64,
            acknowledged_per_second: 123_456.0,
            ..ConsumerLag::default()
        };
        let streams = (1..=9).map(|stream| StreamLag {
            stream: format!("STREAM{stream}"),
            message_count: 100_000_000,
            byte_count: stream,
            byte_count_max: 10,
            last_sequence: 1_000_000_000_000,
            consumers: (1..=3).map(|number| consumer(stream, number)).collect(),
        });
        Lag::new(streams.collect(), None, size)
    }

    #[test]
    fn the_worst_streams_and_consumers_fit_the_terminal() {
        for (width, height) in [(80, 24), (60, 12), (200, 50)] {
            let text = mesh(Some(Size { width, height })).text();
            let text = console::strip_ansi_codes(&text);
            let lines: Vec<_> = text.lines().collect();
            assert!(lines.len() < height, "{text}");
            for line in &lines {
                assert!(console::measure_text_width(line) <= width, "{line}");
            }
            assert!(lines[1].starts_with("STREAM9"), "{text}");
            let first = lines
                .iter()
                .position(|line| line.starts_with("CONSUMER"))
                .unwrap()
                + 1;
            assert!(lines[first].starts_with("redrive-analytics-posts-9-3"), "{text}");
            assert!(
                lines[first - 1].contains("PENDING") && lines[first - 1].contains("OLDEST"),
                "{text}"
            );
        }
        let text = mesh(Some(Size::DEFAULT)).text();
        assert!(text.contains("\n… 4 more streams, at most 40% full\n"), "{text}");
        assert!(text.contains("more consumers with "), "{text}");
    }

    #[test]
    fn all_rows_and_columns_are_printed_without_a_size() {
        let text = mesh(None).text();
        assert_eq!(text.lines().count(), 10 + 1 + 28, "{text}");
        assert!(
            text.contains("IDLE PULLS") && text.contains("LAST SEQUENCE"),
            "{text}"
        );
    }

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
