//! `herald recover`: goes on after streams lost messages, or after a restored backup.

use std::path::PathBuf;

use herald_cli::{
    context::Context,
    failure::Failure,
    output::{Show, counted},
};
use herald_recovery::{Problem, Recovered};
use herald_runtime::telemetry::error_chain;
use herald_store::embedded::{self, JournalReport, Recovery, TimelinesState};
use serde::Serialize;

use super::installation::Installation;
use crate::server::{Config, Recovering, create_private_files};

const LONG: &str = "\
Compares the streams with the store while all processes of Herald are stopped, and goes on where they don't fit together: \
a stream that was deleted or lost its newest messages (a power loss, a restored broker, a split cluster), or a store that \
is older than the streams (a restored database). A damaged journal of the embedded store is replaced by what can be read \
of it.

Each damaged stream is emptied and begins above all sequences that are known, so that no id is given twice. Before that, \
posts that only POSTS has are written to the store. What the removed messages would have delivered is known to the store: \
start Herald and run `herald audit --repair`, which delivers it, and then `herald audit`, which proves it. Nothing that \
was delivered is delivered again, except pushes whose outcome is lost with the store.

Posts that neither POSTS nor the store has are lost; the number of those that were seen before is printed, and the \
ids that are known. With --dry-run nothing is changed, and the exit code is 1 if there is something to recover.";

const EXAMPLES: &str = "\
Examples:
  herald recover --dry-run --data-dir herald-data
  herald recover --data-dir herald-data
  HERALD_STORE__URL_FILE=/run/secrets/postgres-url herald recover --nats-url nats://localhost:4222";

/// Ids of lost posts that the text names.
const LOST_IDS_SHOWN: usize = 20;

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
    /// Whether the next start rebuilds the timelines, because they can't be read.
    rebuilds_timelines: bool,
    /// Whether they can't be read because they are missing.
    #[serde(rename = "timelines_missing")]
    are_timelines_missing: bool,
    problems: Vec<String>,
    recovered: bool,
    streams: Vec<StreamResult>,
    posts_archived: u64,
    posts_renamed: Vec<RenamedResult>,
    dead_letters_discarded: u64,
    messages_unreadable: u64,
    posts_lost: u64,
    posts_lost_ids: Vec<u64>,
}

/// A damaged journal of the embedded store.
#[derive(Debug, Serialize)]
struct JournalResult {
    database: &'static str,
    path: PathBuf,
    /// `None` before it is recovered.
    kept_at: Option<PathBuf>,
    batches_kept: usize,
    bytes_lost: usize,
}

impl JournalResult {
    fn new(report: &JournalReport) -> Self {
        Self {
            database: report.database,
            path: report.journal.clone(),
            kept_at: report.kept_at.clone(),
            batches_kept: report.batches_kept,
            bytes_lost: report.bytes_lost,
        }
    }

    fn text(&self) -> String {
        let kept = counted(self.batches_kept as u64, "batch of writes", "batches of writes");
        let lost = counted(self.bytes_lost as u64, "byte", "bytes");
        let what = match self.database {
            "records" => {
                "follows, devices, settings and outcomes of deliveries of that time can be lost: an audit finds the \
                 deliveries, and nothing finds the others"
            }
            "dead_letters" => "dead letters of that time can be lost: an audit finds their deliveries",
            "totals" => "counts of `herald stats` can be lost: an audit finds those of deliveries",
            _ => "entries of timelines can be lost: an audit finds them",
        };
        let path = self.path.display();
        match &self.kept_at {
            Some(kept_at) => format!(
                "journal {path} was damaged: {kept} kept, {lost} lost; {what}; the damaged journal is kept as {}",
                kept_at.display()
            ),
            None => format!("journal {path} is damaged: {kept} can be kept, {lost} can't; {what}"),
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
    fn are_files_intact(&self) -> bool {
        self.journals.is_empty() && !self.rebuilds_timelines
    }

    fn finds_nothing(&self) -> bool {
        self.problems.is_empty() && self.streams.is_empty() && self.are_files_intact()
    }

    fn with_files(mut self, files: &Recovery) -> Self {
        self.journals = files.journals.iter().map(JournalResult::new).collect();
        self.are_timelines_missing = files.timelines == TimelinesState::Missing;
        self.rebuilds_timelines = self.are_timelines_missing || files.timelines == TimelinesState::Damaged;
        self
    }

    fn timelines_text(&self) -> Option<String> {
        let what = match (self.rebuilds_timelines, self.are_timelines_missing) {
            (false, _) => return None,
            (true, true) => "the timelines, or a part of them, are missing",
            (true, false) => "a block of the timelines is damaged",
        };
        let after = if self.recovered {
            "the next start"
        } else {
            "the start after `herald recover`"
        };
        Some(format!(
            "{what}: {after} rebuilds them from the ledger, while it serves calls"
        ))
    }

    fn found(problems: &[Problem]) -> Self {
        Self {
            journals: Vec::new(),
            rebuilds_timelines: false,
            are_timelines_missing: false,
            problems: problems.iter().map(ToString::to_string).collect(),
            recovered: false,
            streams: Vec::new(),
            posts_archived: 0,
            posts_renamed: Vec::new(),
            dead_letters_discarded: 0,
            messages_unreadable: 0,
            posts_lost: 0,
            posts_lost_ids: Vec::new(),
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
            dead_letters_discarded: recovered.dead_letters_discarded,
            messages_unreadable: recovered.messages_unreadable,
            posts_lost: recovered.posts_lost,
            posts_lost_ids: recovered.posts_lost_ids.iter().map(|post| post.0).collect(),
            ..Self::found(&recovered.problems)
        }
    }
}

impl RecoverResult {
    /// The ids of lost posts, as far as they are known: the deliveries of these posts were planned.
    fn lost_ids(&self) -> String {
        let known = self.posts_lost_ids.len();
        let shown = self.posts_lost_ids.iter().take(LOST_IDS_SHOWN);
        let shown = shown.map(u64::to_string).collect::<Vec<_>>().join(", ");
        match known.saturating_sub(LOST_IDS_SHOWN) {
            _ if known == 0 => ": no id is known".into(),
            0 if known as u64 == self.posts_lost => format!(": {shown}"),
            0 => format!(": {shown}, and others whose ids are not known"),
            more => format!(": {shown}, and {more} more whose ids --output json lists"),
        }
    }
}

impl Show for RecoverResult {
    fn text(&self) -> String {
        if self.finds_nothing() {
            return "the streams and the store fit together: nothing to do".into();
        }
        let mut lines: Vec<String> = self.journals.iter().map(JournalResult::text).collect();
        lines.extend(self.timelines_text());
        lines.extend(self.problems.iter().map(|problem| format!("found: {problem}")));
        if !self.recovered {
            if !self.are_files_intact() {
                lines.push(
                    "the streams were not compared with the store, because it can't be opened with these files".into(),
                );
            }
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
        if self.dead_letters_discarded > 0 {
            lines.push(format!(
                "{} discarded: the archive had refused these posts under their old ids",
                counted(
                    self.dead_letters_discarded,
                    "dead letter was",
                    "dead letters were"
                )
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
                "lost: {} that POSTS had, and that neither POSTS nor the store has now{}; posts of the last moments before \
                 the loss can be lost too",
                counted(self.posts_lost, "post", "posts"),
                self.lost_ids()
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
    config.check_store().map_err(failed)?;
    create_private_files();
    let files = if config.store.is_cluster() {
        None
    } else {
        let embedded = config.embedded().map_err(failed)?;
        let files = if args.dry_run {
            embedded::inspect(&embedded)
        } else {
            embedded::recover(&embedded)
        };
        Some(files.map_err(|error| Failure::failed(error_chain(&error)))?)
    };
    let done = match &files {
        // The store can't be opened with them.
        Some(files) if args.dry_run && !files.is_intact() => RecoverResult::found(&[]),
        _ => compare(&config, args.dry_run).await?,
    };
    let done = match &files {
        Some(files) => done.with_files(files),
        None => done,
    };
    context.output.show(&done)?;
    if args.dry_run && !done.finds_nothing() {
        return Err(
            Failure::failed("there is something to recover, and nothing was changed")
                .hint("run `herald recover` without --dry-run to go on"),
        );
    }
    Ok(())
}

/// Compares the streams with the store, and recovers what does not fit together.
async fn compare(config: &Config, is_dry_run: bool) -> Result<RecoverResult, Failure> {
    let failed = |error: anyhow::Error| Failure::failed(error_chain(error.as_ref()));
    let recovering = Recovering::start(config).await.map_err(failed)?;
    let done = if is_dry_run {
        let found = recovering.recovery().find_problems().await;
        found.map(|problems| RecoverResult::found(&problems))
    } else {
        let recovered = recovering.recovery().run().await;
        recovered.map(|recovered| RecoverResult::done(&recovered))
    };
    let stopped = recovering.stop().await.map_err(failed);
    let done = done.map_err(|error| Failure::failed(error_chain(&error)))?;
    stopped?;
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost_ids(ids: impl IntoIterator<Item = u64>, lost: u64) -> String {
        let result = RecoverResult {
            posts_lost: lost,
            posts_lost_ids: ids.into_iter().collect(),
            ..RecoverResult::found(&[])
        };
        result.lost_ids()
    }

    #[test]
    fn lost_posts_are_named_as_far_as_they_are_known() {
        assert_eq!(lost_ids([], 2), ": no id is known");
        assert_eq!(lost_ids([3, 4], 2), ": 3, 4");
        assert_eq!(lost_ids([3, 4], 3), ": 3, 4, and others whose ids are not known");
        let many = lost_ids(1..=25, 25);
        assert!(
            many.ends_with("19, 20, and 5 more whose ids --output json lists"),
            "{many}"
        );
    }
}
