//! `herald dlq list`

use clap::ValueEnum;
use herald_cli::{
    context::Context,
    failure::{Failure, printable},
    output::{Show, Table, count},
    time::ago,
};
use herald_proto::v1::{self, DeadLetterState, ListDeadLettersRequest};
use serde::Serialize;

use super::{
    dead_letter::{DeadLetter, truncate_reason},
    select::Filter,
};
use crate::commands::paging::{Paging, with_next_page};

const EXAMPLES: &str = "\
Examples:
  Open dead letters, newest first:
    herald dlq list

  Of one consumer in the last hour; of one author, in all states:
    herald dlq list --consumer push-normal --since 1h
    herald dlq list --author 107 --state any

  All ids, in a script:
    herald dlq list --all --output json | jq '.dead_letters[].dead_letter_id'";

/// List dead letters, newest first
///
/// `undelivered` (`undelivered_count` in JSON) is the current number of recipients whose delivery is pending or dead. `failed`
/// is the time of the last failure.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Args {
    /// Only dead letters in this state
    #[arg(long, value_name = "STATE", value_enum, default_value_t = State::Open)]
    state: State,

    /// List the oldest first
    #[arg(long)]
    oldest_first: bool,

    #[command(flatten)]
    paging: Paging<100, 1_000>,

    /// Print all pages; with --output json one object per page
    #[arg(long)]
    all: bool,

    // Last, because its heading also applies to the arguments after it.
    #[command(flatten)]
    filter: Filter,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum State {
    Open,
    Redriving,
    Resolved,
    Discarded,
    Any,
}

#[derive(Debug, Serialize)]
struct Page {
    dead_letters: Vec<DeadLetter>,
    next_page_token: String,
}

impl Show for Page {
    fn text(&self) -> String {
        if self.dead_letters.is_empty() {
            return "no dead letters".into();
        }
        let mut table = Table::new(&[
            "dead letter",
            "state",
            "consumer",
            "cause",
            ">post",
            ">undelivered",
            ">attempts",
            "failed",
            "reason",
        ]);
        for dead_letter in &self.dead_letters {
            table.row([
                dead_letter.dead_letter_id.to_string(),
                dead_letter.state.into(),
                printable(&dead_letter.consumer),
                dead_letter.cause.into(),
                dead_letter
                    .post_id
                    .map_or_else(|| "-".into(), |post| post.to_string()),
                count(u64::from(dead_letter.undelivered_count)),
                count(dead_letter.attempt_count),
                ago(dead_letter.last_failure.as_ref()),
                truncate_reason(&dead_letter.reason),
            ]);
        }
        with_next_page(table.render(), "the same command with", &self.next_page_token)
    }
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let client = context.operator_client().await?;
    let state = match args.state {
        State::Open => DeadLetterState::Open,
        State::Redriving => DeadLetterState::Redriving,
        State::Resolved => DeadLetterState::Resolved,
        State::Discarded => DeadLetterState::Discarded,
        State::Any => DeadLetterState::Unspecified,
    };
    let filter = v1::DeadLetterFilter {
        state: state.into(),
        ..args.filter.into_v1()
    };
    let mut cursor = args.paging.begin(args.all);
    loop {
        let request = client.request(ListDeadLettersRequest {
            filter: Some(filter.clone()),
            oldest_first: args.oldest_first,
            page_size: cursor.size,
            page_token: cursor.token.clone(),
        });
        let page = client
            .dead_letters()
            .list_dead_letters(request)
            .await?
            .into_inner();
        let next = page.next_page_token;
        context.output.show(&Page {
            dead_letters: page.dead_letters.into_iter().map(DeadLetter::from).collect(),
            next_page_token: cursor.printed_token(&next, context),
        })?;
        if cursor.is_last(&next) {
            return Ok(());
        }
        cursor.advance(next)?;
    }
}
