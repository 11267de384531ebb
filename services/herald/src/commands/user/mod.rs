//! `herald user`

mod erase;
mod erasures;
mod export;

use clap::Subcommand;
use herald_cli::{
    context::Context,
    failure::{Failure, printable},
    output::counted,
    time::rfc3339,
};
use herald_proto::v1::ErasedCounts;
use serde::Serialize;

const EXAMPLES: &str = "\
Examples:
  All that is held of a user, one JSON object a line:
    herald user export 107 > 107.jsonl

  Erase all that is held of a user:
    herald user erase 107";

/// Export or erase all that is held of a user
///
/// For a person who asks for a copy of their data, or for its erasure. `export` and `erase` need a key with the scope
/// `operate`, `erasures` needs one with the scope `audit`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES, arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    Export(export::Args),
    Erase(erase::Args),
    Erasures(erasures::Args),
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    match args.action {
        Action::Export(args) => export::run(args, context).await,
        Action::Erase(args) => erase::run(args, context).await,
        Action::Erasures(args) => erasures::run(args, context).await,
    }
}

/// An erasure. The JSON keys are the field names of the API.
#[allow(clippy::struct_field_names, reason = "the names are those of the JSON")]
#[derive(Debug, Serialize)]
struct Erasure {
    erasure_id: u64,
    /// `None` once it is complete.
    user_id: Option<String>,
    actor: String,
    request_time: Option<String>,
    forget_time: Option<String>,
    complete_time: Option<String>,
    counts: Counts,
    #[serde(skip)]
    requested: Option<prost_types::Timestamp>,
}

#[allow(clippy::struct_field_names, reason = "the names are those of the JSON")]
#[derive(Debug, Default, Serialize)]
struct Counts {
    post_count: u64,
    follow_count: u64,
    device_count: u64,
    timeline_entry_count: u64,
    message_count: u64,
    dead_letter_count: u64,
}

impl From<herald_proto::v1::Erasure> for Erasure {
    fn from(erasure: herald_proto::v1::Erasure) -> Self {
        Self {
            erasure_id: erasure.erasure_id,
            user_id: Some(erasure.user_id).filter(|user| !user.is_empty()),
            request_time: rfc3339(erasure.request_time.as_ref()),
            forget_time: rfc3339(erasure.forget_time.as_ref()),
            complete_time: rfc3339(erasure.complete_time.as_ref()),
            requested: erasure.request_time,
            actor: erasure.actor,
            counts: erasure.counts.unwrap_or_default().into(),
        }
    }
}

impl Erasure {
    fn is_complete(&self) -> bool {
        self.complete_time.is_some()
    }

    /// The user whose data is erased, as far as it is still known.
    fn user(&self) -> String {
        self.user_id
            .as_deref()
            .map_or_else(|| "(erased)".into(), printable)
    }
}

impl From<ErasedCounts> for Counts {
    fn from(counts: ErasedCounts) -> Self {
        let ErasedCounts {
            post_count,
            follow_count,
            device_count,
            timeline_entry_count,
            message_count,
            dead_letter_count,
        } = counts;
        Self {
            post_count,
            follow_count,
            device_count,
            timeline_entry_count,
            message_count,
            dead_letter_count,
        }
    }
}

impl Counts {
    fn text(&self) -> String {
        [
            counted(self.post_count, "post", "posts"),
            counted(self.follow_count, "follow", "follows"),
            counted(self.device_count, "device", "devices"),
            counted(self.timeline_entry_count, "timeline entry", "timeline entries"),
            counted(self.message_count, "message", "messages"),
            counted(self.dead_letter_count, "dead letter", "dead letters"),
        ]
        .join(", ")
    }
}
