//! `herald import`

use std::{
    fmt,
    fs::File,
    io::{self, BufRead, BufReader},
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::{Subcommand, ValueHint};
use futures::{StreamExt as _, stream};
use herald_cli::{
    client::Client,
    context::Context,
    failure::{Failure, Kind, printable},
    output::{Show, count, counted},
    time::approximate,
};
use herald_proto::v1::{ImportFollowsRequest, ImportFollowsResponse};
use herald_runtime::shutdown;
use indicatif::ProgressBar;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status};
use tonic_types::RpcStatusExt as _;

use crate::edges::{Batch, HeaderRow, Notify, Options, Reader};

/// Follows per call. An answered call is durable, so this is the step of the progress bar.
const BATCH_FOLLOWS: usize = 5_000;
/// Calls in flight. The server commits waiting calls together.
const CALLS_IN_FLIGHT_MAX: usize = 4;
/// Batches that are read ahead of the calls.
const BATCHES_AHEAD: usize = 2;
/// Lines at the beginning of the file of which at least half must be follows.
const FIRST_LINES: u64 = 100;
/// Failures kept for the summary.
const FAILURES_MAX: usize = 1_000;
/// Failures in text output.
const FAILURES_SHOWN: usize = 20;

const EXAMPLES: &str = "\
Examples:
  herald import follows edges.txt

  Mutual follows, 5% of them with pushes:
    herald import follows friends.txt --mutual --notify 5%

  From a compressed file:
    zcat edges.txt.gz | herald import follows -";

const FOLLOWS_EXAMPLES: &str = "\
Examples:
  herald import follows edges.txt
  herald import follows friends.txt --mutual --notify 5%
  zcat edges.txt.gz | herald import follows - --output json

The file, one follow per line; all of these mean \"1 follows 107\":
  1 107
  1, 107
  1 ;107
  \"1\",\"107\"

  Separator: spaces or tabs, or one comma or semicolon with or without spaces.
  Id: 1 to 128 bytes, a visible character, no control characters.
  Quotes: an id may be in double quotes. It must be if it has a space, comma,
    semicolon or double quote (written twice), if its line would be a comment,
    or if it begins or ends like another format: `'1'`, `(1`, `1|`.
  Header row: two column names, such as `follower,author` or `source target`, as
    the first line that is neither blank nor a comment. The import reports the
    header row and takes the order of the columns from it.
  Skipped: blank lines, lines that begin with #, % or //, and a byte order mark
    at the start of a line.
  Invalid: all other lines, such as one or three ids, or a separator at the end.";

/// Import follows from a file
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES, arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    resource: Resource,
}

#[derive(Debug, Subcommand)]
enum Resource {
    Follows(Follows),
}

/// Import follows from a file with lines `a b`, each meaning "a follows b"
///
/// Spaces, tabs, a comma or a semicolon separate the ids. Blank lines and lines that begin with #, % or // are skipped. An
/// invalid line is reported by its number and doesn't stop the import; the exit code is then 1. A file is refused if more
/// than half of its first 100 lines are invalid. The import is idempotent:
/// existing follows count as unchanged. Ctrl-C stops it, tells what is imported, and the exit code is 130.
#[derive(Debug, clap::Args)]
#[command(after_long_help = FOLLOWS_EXAMPLES)]
struct Follows {
    /// The file; `-` reads standard input
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    file: PathBuf,

    /// Import each line in both directions: also "b follows a"
    #[arg(long)]
    mutual: bool,

    /// The follows with pushes: none, all, or a share such as 0.05 or 5%
    ///
    /// Sets pushes on or off for each follow of the file. A hash of the two ids selects the share, so that a repeated
    /// import changes nothing. Without it, existing follows keep their setting and new ones are without pushes.
    #[arg(long, value_name = "none|all|SHARE", value_parser = Notify::parse)]
    notify: Option<Notify>,
}

/// The result of an import.
#[derive(Debug, Default, Serialize)]
struct Summary {
    #[serde(rename = "line_count")]
    lines: u64,
    /// The header row, which is not a follow.
    header: Option<HeaderRow>,
    /// Follows that are new or whose push setting changed.
    #[serde(rename = "imported_count")]
    imported: u64,
    /// Follows that existed and kept their push setting.
    #[serde(rename = "unchanged_count")]
    unchanged: u64,
    /// Invalid lines and follows that the server rejected.
    #[serde(rename = "failed_count")]
    failed: u64,
    /// The first [`FAILURES_MAX`] of them.
    failures: Vec<LineFailure>,
    elapsed_seconds: f64,
    follows_per_second: f64,
}

#[derive(Debug, Serialize)]
struct LineFailure {
    /// Line number, from 1; `None` if the server's index is out of range.
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u64>,
    /// The invalid field of the follow, if the server named one.
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<String>,
    reason: String,
}

impl fmt::Display for LineFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {}: ", count(line))?,
            None => write!(f, "unknown line: ")?,
        }
        if let Some(field) = &self.field {
            write!(f, "{}: ", printable(field))?;
        }
        f.write_str(&printable(&self.reason))
    }
}

impl Summary {
    fn record_failure(&mut self, failure: LineFailure) {
        if self.failures.len() < FAILURES_MAX {
            self.failures.push(failure);
        }
    }

    /// Adds a batch and the response of its call.
    fn add(&mut self, batch: Batch, response: ImportFollowsResponse) {
        self.lines += batch.line_count;
        self.header = self.header.take().or(batch.header);
        self.failed += batch.bad_lines.len() as u64;
        for bad_line in batch.bad_lines {
            self.record_failure(LineFailure {
                line: Some(bad_line.line),
                field: None,
                reason: bad_line.reason,
            });
        }
        self.imported += response.imported_count;
        self.unchanged += response.unchanged_count;
        self.failed += response.failed_count;
        for failure in response.failures {
            let status = failure.status.unwrap_or_default();
            let violations = status.get_details_bad_request().map(|bad| bad.field_violations);
            // A follow is refused for one field.
            let (field, reason) = match violations.and_then(|violations| violations.into_iter().next()) {
                Some(violation) => (Some(violation.field), violation.description),
                None => (None, status.message),
            };
            self.record_failure(LineFailure {
                line: batch.lines.line_of(failure.index),
                field,
                reason,
            });
        }
    }

    /// Follows that are durable.
    fn processed(&self) -> u64 {
        self.imported + self.unchanged
    }

    /// What is durable, and how to go on, for an import that ended early.
    fn resume_hint(&self) -> String {
        let durable = match self.lines {
            0 => "no line is known to be imported".into(),
            lines => format!(
                "all lines up to line {} are imported ({})",
                count(lines),
                counted(self.processed(), "follow", "follows")
            ),
        };
        format!("{durable}; it is safe to run the import again: existing follows count as unchanged")
    }

    fn finish(&mut self, elapsed: Duration) {
        self.failures.sort_by_key(|failure| failure.line);
        self.elapsed_seconds = elapsed.as_secs_f64();
        self.follows_per_second = (self.processed() as f64 / self.elapsed_seconds.max(1e-6)).round();
    }
}

impl Show for Summary {
    fn text(&self) -> String {
        let shown = self.failures.iter().take(FAILURES_SHOWN);
        let mut lines: Vec<String> = shown.map(ToString::to_string).collect();
        let more = self.failed.saturating_sub(lines.len() as u64);
        if let Some(header) = &self.header {
            lines.insert(0, describe(header));
        }
        if more > 0 {
            lines.push(format!("… and {} more", count(more)));
        }
        lines.push(format!(
            "{} from {}, {} unchanged, {} rejected; {} at {} follows/s",
            counted(self.imported, "follow imported", "follows imported"),
            counted(self.lines, "line", "lines"),
            count(self.unchanged),
            count(self.failed),
            approximate(Duration::from_secs_f64(self.elapsed_seconds)),
            count(self.follows_per_second as u64),
        ));
        lines.join("\n")
    }
}

fn describe(header: &HeaderRow) -> String {
    let [a, b] = &header.columns;
    format!(
        "line {}: header row {} {}, skipped; the {} is the first column",
        count(header.line),
        printable(a),
        printable(b),
        if header.author_first { "author" } else { "follower" },
    )
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let Resource::Follows(args) = args.resource;
    let (input, size) = open(&args.file)?;
    let client = context.client().await?;
    let template = match size {
        Some(_) => "{bar:40} {percent:>3}%  {msg}  {eta} left",
        None => "{spinner} {msg}  {elapsed}",
    };
    let bar = context.output.progress_bar(size, template);
    let reader = Reader::new(
        input,
        Options {
            mutual: args.mutual,
            notify: args.notify,
        },
    );

    let stop =
        shutdown::on_signal().map_err(|error| Failure::io("can't install the signal handlers", &error))?;
    let started = Instant::now();
    let mut summary = Summary::default();
    let result = tokio::select! {
        result = import(reader, &client, &bar, &mut summary) => {
            result.map_err(|failure| match failure.kind() {
                // It never began.
                Kind::Usage => failure,
                _ => failure.during("the import was interrupted"),
            })
        }
        () = stop.cancelled() => Err(Failure::new(Kind::Interrupted, "the import was stopped by a signal")),
    };
    summary.finish(started.elapsed());
    bar.finish_and_clear();
    result.map_err(|failure| match failure.kind() {
        Kind::Usage if summary.lines == 0 => failure,
        _ => failure.hint(summary.resume_hint()),
    })?;
    context.output.show(&summary)?;
    match summary.failed {
        0 => Ok(()),
        failed => Err(Failure::new(
            Kind::Failed,
            format!(
                "{} rejected; all other follows are imported",
                counted(failed, "line or follow was", "lines or follows were")
            ),
        )),
    }
}

/// Opens the file; the size is `None` for standard input and special files.
fn open(path: &PathBuf) -> Result<(Box<dyn BufRead + Send>, Option<u64>), Failure> {
    if path.as_os_str() == "-" {
        return Ok((Box::new(BufReader::new(io::stdin())), None));
    }
    let failure = |error| Failure::io(format!("can't read {}", path.display()), &error);
    let file = File::open(path).map_err(failure)?;
    let metadata = file.metadata().map_err(failure)?;
    if metadata.is_dir() {
        return Err(Failure::usage(format!("{} is a directory", path.display())));
    }
    let size = Some(metadata.len()).filter(|_| metadata.is_file());
    Ok((Box::new(BufReader::with_capacity(1 << 16, file)), size))
}

/// Imports the whole file, a batch a call. The summary and the bar have the batches whose calls were answered: all lines up
/// to that point are durable, and the summary is right after a failure too.
async fn import<R: BufRead + Send + 'static>(
    reader: Reader<R>,
    client: &Client,
    bar: &ProgressBar,
    summary: &mut Summary,
) -> Result<(), Failure> {
    let (batches_in, batches) = mpsc::channel(BATCHES_AHEAD);
    let reading = tokio::task::spawn_blocking(move || read_batches(reader, &batches_in));
    let mut answers = ReceiverStream::new(batches)
        .map(|batch| import_batch(client, batch))
        .buffered(CALLS_IN_FLIGHT_MAX);
    while let Some((batch, answer)) = answers.next().await {
        bar.inc(batch.bytes);
        summary.add(batch, answer?);
        bar.set_message(format!(
            "{} imported",
            counted(summary.processed(), "follow", "follows")
        ));
    }
    // After a read error, all earlier lines are imported.
    match reading.await {
        Ok(read) => read,
        Err(error) => Err(Failure::failed(format!("the file's reader failed: {error}"))),
    }
}

async fn import_batch(client: &Client, mut batch: Batch) -> (Batch, Result<ImportFollowsResponse, Status>) {
    let follows = std::mem::take(&mut batch.follows);
    if follows.is_empty() {
        return (batch, Ok(ImportFollowsResponse::default()));
    }
    let request = stream::iter([ImportFollowsRequest { follows }]);
    let answer = client.graph().import_follows(request).await;
    (batch, answer.map(Response::into_inner))
}

/// Refuses a file that is something else: the few of its lines that look like follows would be imported. `batch`: its
/// first one.
fn check_beginning(batch: &Batch) -> Result<(), Failure> {
    let good = batch.lines.count_to(FIRST_LINES);
    let bad = batch.bad_lines.iter().filter(|bad| bad.line <= FIRST_LINES);
    let bad_count = bad.clone().count() as u64;
    if bad_count <= good {
        return Ok(());
    }
    let first = bad.map(|bad| format!("line {}: {}", bad.line, bad.reason)).next();
    Err(Failure::usage(format!(
        "this is no file of follows, and nothing was imported: {bad_count} of its first {} are invalid ({})",
        counted(bad_count + good, "line", "lines"),
        printable(&first.unwrap_or_default())
    ))
    .hint("each line is `FOLLOWER AUTHOR`, see `herald import follows --help`; remove the invalid lines to import the rest"))
}

/// Reads batches until the end of the file, or until the receiver is dropped.
fn read_batches<R: BufRead>(mut reader: Reader<R>, batches: &mpsc::Sender<Batch>) -> Result<(), Failure> {
    let failed = |error| Failure::io("can't read the rest of the file", &error);
    let mut is_first = true;
    while let Some(batch) = reader.next_batch(BATCH_FOLLOWS).map_err(failed)? {
        if std::mem::take(&mut is_first) {
            check_beginning(&batch)?;
        }
        if batches.blocking_send(batch).is_err() {
            break;
        }
    }
    Ok(())
}
