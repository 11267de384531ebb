//! `herald recover`: goes on after streams lost messages, or after a restored backup.

use std::path::PathBuf;

use herald_cli::{
    context::Context,
    failure::Failure,
    output::{Show, counted},
};
use herald_recovery::{Problem, Recovered};
use herald_runtime::telemetry::error_chain;
use herald_store::embedded::{self, JournalReport};
use serde::Serialize;

use super::installation::Installation;
use crate::server::Recovering;

const LONG: &str = "\
Compares the streams with the store while all processes of Herald are stopped, and goes on where they don't fit together: \
a stream that was deleted or lost its newest messages (a power loss, a restored broker, a split cluster), or a store that \
is older than the streams (a restored database). A damaged journal of the embedded store is replaced by what can be read \
of it.

Each damaged stream is emptied and begins above all sequences that are known, so that no id is given twice. Before that, \
posts that only POSTS has are written to the store. What the removed messages would have delivered is known to the store: \
start Herald and run `herald audit --repair`, which delivers it, and then `herald audit`, which proves it. Nothing that \
was delivered is delivered again, except pushes whose outcome is lost with the store.

Posts that neither POSTS nor the store has are lost; the number of those that were seen before is printed. With --dry-run nothing is \
changed.";

const EXAMPLES: &str = "\
Examples:
  herald recover --dry-run --data-dir herald-data
  herald recover --data-dir herald-data
  HERALD_STORE__URL_FILE=/run/secrets/postgres-url herald recover --nats-url nats://localhost:4222";

/// Go on after streams lost messages or the store was restored
#[derive(Debug, clap::Args)]
#[command(long_about = LONG, after_long_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    installation: Installation,

    /// Tell what is wrong, and change nothing
    #[arg(long)]
    dry_run: bool,
}

/// The result.
#[derive(Debug, Serialize)]
pub(super) struct RecoverResult {
    journals: Vec<JournalResult>,
    /// Whether the next start rebuilds the timelines, because a block of them is damaged.
    rebuilds_timelines: bool,
    problems: Vec<String>,
    recovered: bool,
    streams: Vec<StreamResult>,
    posts_archived: u64,
    posts_renamed: Vec<RenamedResult>,
    messages_unreadable: u64,
    posts_lost: u64,
}

/// A damaged journal of the embedded store.
#[derive(Debug, Serialize)]
struct JournalResult {
    path: PathBuf,
    kept_at: PathBuf,
    batches_kept: usize,
    bytes_lost: usize,
}

impl JournalResult {
    fn new(report: &JournalReport) -> Self {
        Self {
            path: report.journal.clone(),
            kept_at: report.kept_at.clone(),
            batches_kept: report.batches_kept,
            bytes_lost: report.bytes_lost,
        }
    }
}

#[derive(Debug, Serialize)]
struct StreamResult {
    name: String,
    removed_count: u64,
    first_sequence: u64,
}

#[derive(Debug, Serialize)]
struct RenamedResult {
    told_id: u64,
    id: u64,
}

impl RecoverResult {
    fn found(problems: &[Problem]) -> Self {
        Self {
            journals: Vec::new(),
            rebuilds_timelines: false,
            problems: problems.iter().map(ToString::to_string).collect(),
            recovered: false,
            streams: Vec::new(),
            posts_archived: 0,
            posts_renamed: Vec::new(),
            messages_unreadable: 0,
            posts_lost: 0,
        }
    }

    pub(super) fn done(recovered: &Recovered) -> Self {
        let streams = recovered.streams.iter().map(|stream| StreamResult {
            name: stream.stream.clone(),
            removed_count: stream.removed,
            first_sequence: stream.first_sequence,
        });
        let renamed = recovered.posts_renamed.iter().map(|post| RenamedResult {
            told_id: post.told.0,
            id: post.now.0,
        });
        Self {
            recovered: true,
            streams: streams.collect(),
            posts_archived: recovered.posts_archived,
            posts_renamed: renamed.collect(),
            messages_unreadable: recovered.messages_unreadable,
            posts_lost: recovered.posts_lost,
            ..Self::found(&recovered.problems)
        }
    }
}

impl Show for RecoverResult {
    fn text(&self) -> String {
        let is_sound = self.problems.is_empty() && self.streams.is_empty();
        if is_sound && self.journals.is_empty() && !self.rebuilds_timelines {
            return "the streams and the store fit together: nothing to do".into();
        }
        let journals = self.journals.iter().map(|journal| {
            format!(
                "journal {} was damaged: {} kept, {} lost; the damaged one is kept as {}",
                journal.path.display(),
                counted(
                    journal.batches_kept as u64,
                    "batch of writes is",
                    "batches of writes are"
                ),
                counted(journal.bytes_lost as u64, "byte is", "bytes are"),
                journal.kept_at.display()
            )
        });
        let timelines = self.rebuilds_timelines.then(|| {
            "a block of the timelines is damaged: the next start rebuilds them from the ledger, while it serves calls".into()
        });
        let found = self.problems.iter().map(|problem| format!("found: {problem}"));
        let mut lines: Vec<String> = journals.chain(timelines).chain(found).collect();
        if !self.recovered {
            lines.push("nothing was changed: run `herald recover` without --dry-run to go on".into());
            return lines.join("\n");
        }
        for stream in &self.streams {
            lines.push(format!(
                "stream {} begins anew at {}: {} removed",
                stream.name,
                stream.first_sequence,
                counted(stream.removed_count, "message was", "messages were")
            ));
        }
        if self.posts_archived > 0 {
            lines.push(format!(
                "{} of POSTS written to the store, which lacked them",
                counted(self.posts_archived, "post", "posts")
            ));
        }
        for renamed in &self.posts_renamed {
            lines.push(format!(
                "post {} is post {} now: another post of the store has the id {}",
                renamed.told_id, renamed.id, renamed.told_id
            ));
        }
        if self.messages_unreadable > 0 {
            lines.push(format!(
                "{} of POSTS left out, because they are neither a post nor a deletion",
                counted(self.messages_unreadable, "message was", "messages were")
            ));
        }
        if self.posts_lost > 0 {
            lines.push(format!(
                "lost: {} that POSTS had, and that neither POSTS nor the store has now; posts of the last moments before the \
                 loss can be lost too",
                counted(self.posts_lost, "post", "posts")
            ));
        }
        lines.push(
            "now start Herald, run `herald audit --repair` to deliver what the removed messages would have delivered, and \
             `herald audit` to see that nothing is missing"
                .into(),
        );
        lines.join("\n")
    }
}

pub(crate) async fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let config = args.installation.config(context.global.config.as_deref())?;
    let failed = |error: anyhow::Error| Failure::failed(error_chain(error.as_ref()));
    let files = if config.store.is_cluster() || args.dry_run {
        None
    } else {
        let recovered = embedded::recover(&config.store.embedded(&config.data_dir));
        Some(recovered.map_err(|error| Failure::failed(error_chain(&error)))?)
    };
    let recovering = Recovering::start(&config).await.map_err(failed)?;
    let done = if args.dry_run {
        let found = recovering.recovery().find_problems().await;
        found.map(|problems| RecoverResult::found(&problems))
    } else {
        let recovered = recovering.recovery().run().await;
        recovered.map(|recovered| RecoverResult::done(&recovered))
    };
    let stopped = recovering.stop().await.map_err(failed);
    let mut done = done.map_err(|error| Failure::failed(error_chain(&error)))?;
    stopped?;
    if let Some(files) = files {
        done.journals = files.journals.iter().map(JournalResult::new).collect();
        done.rebuilds_timelines = files.rebuilds_timelines;
    }
    context.output.show(&done)
}
