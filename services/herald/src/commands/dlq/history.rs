//! `herald dlq history`

use herald_cli::{
    context::Context,
    failure::{Failure, printable},
    output::{Show, Table, count},
    time::{ago, rfc3339},
};
use herald_proto::v1::{self, DeadLetterActKind, ListHistoryRequest};
use serde::Serialize;

use super::{letter::Redrive, select};

const EXAMPLES: &str = "\
Examples:
  herald dlq history

  Who discarded what, for a script:
    herald dlq history --output json | jq '.acts[] | select(.kind == \"discard\") | [.actor, .selection, .discarded]'";

/// List who did what to dead letters, and what came of it; the newest first
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Args {
    /// How many at most: 1 to 1,000; 0 is the server's default, 100
    #[arg(
        long,
        value_name = "COUNT",
        default_value_t = 0,
        allow_negative_numbers = true
    )]
    page_size: i32,

    /// Go on after an earlier page
    #[arg(long, value_name = "TOKEN", allow_hyphen_values = true)]
    page_token: Option<String>,
}

/// What somebody did.
#[allow(clippy::struct_field_names, reason = "the names are those of the JSON")]
#[derive(Debug, Serialize)]
pub(super) struct Act {
    act_id: u64,
    kind: &'static str,
    actor: String,
    time: Option<String>,
    selection: String,
    letters: u64,
    discarded: Option<u64>,
    redrive: Option<Redrive>,
    #[serde(skip)]
    at: Option<prost_types::Timestamp>,
}

impl From<v1::DeadLetterAct> for Act {
    fn from(act: v1::DeadLetterAct) -> Self {
        let kind = match act.kind() {
            DeadLetterActKind::Unspecified => "unknown",
            DeadLetterActKind::Redrive => "redrive",
            DeadLetterActKind::Discard => "discard",
            DeadLetterActKind::Cancel => "cancel",
        };
        Self {
            act_id: act.act_id,
            kind,
            discarded: (act.kind() == DeadLetterActKind::Discard).then_some(act.discarded_count),
            selection: select::words(act.selection.as_ref()),
            actor: act.actor,
            time: rfc3339(act.create_time.as_ref()),
            letters: act.frozen_count,
            redrive: act.redrive.map(Redrive::from),
            at: act.create_time,
        }
    }
}

/// Acts as a table.
pub(super) fn table(acts: &[Act]) -> String {
    let mut table = Table::new(&["act", "what", "who", "when", ">letters", "which", "outcome"]);
    for act in acts {
        let outcome = match (act.discarded, &act.redrive) {
            (Some(discarded), _) => format!("{} discarded", count(discarded)),
            (None, Some(redrive)) if act.kind == "cancel" => {
                format!("redrive {} stopped", redrive.redrive_id)
            }
            (None, Some(redrive)) => format!("{}: {}", redrive.state, redrive.outcome()),
            (None, None) => String::new(),
        };
        table.row([
            act.act_id.to_string(),
            act.kind.into(),
            printable(&act.actor),
            ago(act.at.as_ref()),
            count(act.letters),
            printable(&act.selection),
            outcome,
        ]);
    }
    table.render()
}

#[derive(Debug, Serialize)]
struct Page {
    acts: Vec<Act>,
    next_page_token: String,
}

impl Show for Page {
    fn text(&self) -> String {
        if self.acts.is_empty() {
            return "nothing was done to dead letters yet".into();
        }
        let more = match self.next_page_token.as_str() {
            "" => String::new(),
            token => format!("\n\nmore: herald dlq history --page-token {token}"),
        };
        table(&self.acts) + &more
    }
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let client = context.client().await?;
    let request = client.request(ListHistoryRequest {
        page_size: args.page_size,
        page_token: args.page_token.unwrap_or_default(),
    });
    let page = client.dead_letters().list_history(request).await?.into_inner();
    context.output.show(&Page {
        acts: page.acts.into_iter().map(Act::from).collect(),
        next_page_token: page.next_page_token,
    })
}
