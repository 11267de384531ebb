//! `herald import`

use std::{
    fmt,
    fs::File,
    io::{self, BufRead, BufReader},
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::{Subcommand, ValueHint};
use herald_cli::{
    client::Client,
    context::Context,
    failure::{Failure, Kind, printable},
    output::{Show, count, counted},
    time::rough,
};
use herald_proto::v1::{ImportFollowsRequest, ImportFollowsResponse};
use indicatif::ProgressBar;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::edges::{Batch, Lines, Notify, Options, Reader};

/// Follows in one message to the server.
const BATCH_FOLLOWS: usize = 5_000;
/// Messages in one call: after 500,000 follows the server answers, so that what must be remembered to find a refused
/// line again stays bounded whatever the file's size.
const CALL_BATCHES_MAX: usize = 100;
/// Batches read ahead.
const BATCHES_AHEAD: usize = 2;
/// Refused lines that are kept for the answer.
const FAILURES_MAX: usize = 1_000;
/// Refused lines that a person is shown.
const FAILURES_SHOWN: usize = 20;

const EXAMPLES: &str = "\
Examples:
  herald import follows edges.txt

  Friendships, every twentieth with the bell:
    herald import follows friends.txt --mutual --notify 5%

  From a compressed file:
    zcat edges.txt.gz | herald import follows -";

const FOLLOWS_EXAMPLES: &str = "\
Examples:
  herald import follows edges.txt
  herald import follows friends.txt --mutual --notify 5%
  zcat edges.txt.gz | herald import follows - --output json

The file:
  # who follows whom
  1 107
  alice bob";

/// Load many things from a file
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES, arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Follows(Follows),
}

/// Import follows: a file of lines `a b`, each for "a follows b"
///
/// Blank lines and lines that begin with # are skipped. A bad line is reported by its number and doesn't stop the
/// others; the exit code is then 1. Importing again is safe: follows that are there already count as unchanged.
#[derive(Debug, clap::Args)]
#[command(after_long_help = FOLLOWS_EXAMPLES)]
struct Follows {
    /// The file; `-` is standard input
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    file: PathBuf,

    /// Read each line both ways: b follows a, too
    #[arg(long)]
    mutual: bool,

    /// Which follows get the bell: none, all, or a share such as 0.05 or 5%
    ///
    /// Who is in the share depends on the two ids only, so that importing again changes nothing.
    #[arg(long, value_name = "none|all|SHARE", default_value = "none", value_parser = Notify::parse)]
    notify: Notify,
}

/// What became of the file.
#[derive(Debug, Default, Serialize)]
struct Summary {
    lines: u64,
    /// Follows that are new or changed their bell.
    imported: u64,
    /// Follows that were there already.
    unchanged: u64,
    /// Bad lines, and follows that the server refused.
    failed: u64,
    /// The first of them.
    failures: Vec<LineFailure>,
    elapsed_seconds: f64,
    follows_per_second: f64,
}

#[derive(Debug, Serialize)]
struct LineFailure {
    /// From 1; none when the server named a follow that was never sent.
    line: Option<u64>,
    /// The field of the follow, where the server named one.
    field: Option<String>,
    reason: String,
}

impl fmt::Display for LineFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {}: ", count(line))?,
            None => write!(f, "a line: ")?,
        }
        if let Some(field) = &self.field {
            write!(f, "{}: ", printable(field))?;
        }
        f.write_str(&printable(&self.reason))
    }
}

impl Summary {
    fn fail(&mut self, failure: LineFailure) {
        if self.failures.len() < FAILURES_MAX {
            self.failures.push(failure);
        }
    }

    /// Counts a batch's lines, before it is sent.
    fn add_batch(&mut self, batch: &mut Batch) {
        self.lines += batch.line_count;
        self.failed += batch.bad.len() as u64;
        for bad in batch.bad.drain(..) {
            self.fail(LineFailure {
                line: Some(bad.line),
                field: None,
                reason: bad.reason,
            });
        }
    }

    /// Counts what the server says of one call.
    fn add_answer(&mut self, answer: ImportFollowsResponse, lines: &Lines) {
        self.imported += answer.imported_count;
        self.unchanged += answer.unchanged_count;
        self.failed += answer.failed_count;
        for failure in answer.failures {
            let field = Some(failure.field).filter(|field| !field.is_empty());
            self.fail(LineFailure {
                line: lines.line_of(failure.index),
                field,
                reason: failure.message,
            });
        }
    }

    fn finish(&mut self, elapsed: Duration) {
        self.failures.sort_by_key(|failure| failure.line);
        self.elapsed_seconds = elapsed.as_secs_f64();
        let taken = (self.imported + self.unchanged) as f64;
        self.follows_per_second = (taken / self.elapsed_seconds.max(1e-6)).round();
    }
}

impl Show for Summary {
    fn text(&self) -> String {
        let shown = self.failures.iter().take(FAILURES_SHOWN);
        let mut lines: Vec<String> = shown.map(ToString::to_string).collect();
        let more = self.failed.saturating_sub(lines.len() as u64);
        if more > 0 {
            lines.push(format!("… and {} more", count(more)));
        }
        lines.push(format!(
            "{} from {}, {} were there already, {} refused; {} at {} follows/s",
            counted(self.imported, "follow imported", "follows imported"),
            counted(self.lines, "line", "lines"),
            count(self.unchanged),
            count(self.failed),
            rough(Duration::from_secs_f64(self.elapsed_seconds)),
            count(self.follows_per_second as u64),
        ));
        lines.join("\n")
    }
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let What::Follows(args) = args.what;
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

    let started = Instant::now();
    let mut summary = Summary::default();
    let outcome = import(reader, &client, &bar, &mut summary).await;
    summary.finish(started.elapsed());
    bar.finish_and_clear();

    let taken = summary.imported + summary.unchanged;
    outcome.map_err(|failure| {
        failure.during("the import was broken off").hint(format!(
            "{} are in for certain; run it again, what is there counts as unchanged",
            counted(taken, "follow", "follows")
        ))
    })?;
    context.output.show(&summary)?;
    match summary.failed {
        0 => Ok(()),
        failed => Err(Failure::new(
            Kind::Failed,
            format!("{} refused; the rest is imported", counted(failed, "was", "were")),
        )),
    }
}

/// The file, and its size when it has one.
fn open(path: &PathBuf) -> Result<(Box<dyn BufRead + Send>, Option<u64>), Failure> {
    if path.as_os_str() == "-" {
        return Ok((Box::new(BufReader::new(io::stdin())), None));
    }
    let failure = |error| Failure::io(format!("{} can't be read", path.display()), &error);
    let file = File::open(path).map_err(failure)?;
    let metadata = file.metadata().map_err(failure)?;
    if metadata.is_dir() {
        return Err(Failure::usage(format!("{} is a directory", path.display())));
    }
    let size = Some(metadata.len()).filter(|_| metadata.is_file());
    Ok((Box::new(BufReader::with_capacity(1 << 16, file)), size))
}

/// Sends the whole file, call after call. The summary is right as far as it goes, also after a failure.
async fn import<R: BufRead + Send + 'static>(
    reader: Reader<R>,
    client: &Client,
    bar: &ProgressBar,
    summary: &mut Summary,
) -> Result<(), Failure> {
    let (batches_in, mut batches) = mpsc::channel(BATCHES_AHEAD);
    let reading = tokio::task::spawn_blocking(move || read(reader, &batches_in));
    let mut sent = 0;
    while let Some(first) = batches.recv().await {
        let (requests_in, requests) = mpsc::channel(1);
        let mut graph = client.graph();
        let call = graph.import_follows(ReceiverStream::new(requests));
        let feed = async {
            let mut lines = Lines::default();
            let mut next = Some(first);
            for number in 1.. {
                let Some(mut batch) = next else { break };
                summary.add_batch(&mut batch);
                lines.append(&batch.lines);
                sent += batch.follows.len() as u64;
                // Nobody takes it any more: the call has failed, and says why.
                if requests_in
                    .send(ImportFollowsRequest {
                        follows: batch.follows,
                    })
                    .await
                    .is_err()
                {
                    break;
                }
                bar.inc(batch.bytes);
                bar.set_message(counted(sent, "follow", "follows"));
                if number == CALL_BATCHES_MAX {
                    break;
                }
                next = batches.recv().await;
            }
            drop(requests_in);
            lines
        };
        let (lines, answer) = tokio::join!(feed, call);
        summary.add_answer(answer?.into_inner(), &lines);
    }
    // A file that can't be read to its end: what came before is imported.
    match reading.await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(Failure::io("the file can't be read further", &error)),
        Err(error) => Err(Failure::failed(format!("the file's reader failed: {error}"))),
    }
}

/// Reads batches until the end of the file, or until nobody wants more.
fn read<R: BufRead>(mut reader: Reader<R>, batches: &mpsc::Sender<Batch>) -> io::Result<()> {
    while let Some(batch) = reader.next_batch(BATCH_FOLLOWS)? {
        if batches.blocking_send(batch).is_err() {
            break;
        }
    }
    Ok(())
}
