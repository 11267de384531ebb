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

    /// Dead letters per page, 1 to 1,000; 0 uses the server's default, 100
    #[arg(
        long,
        value_name = "COUNT",
        default_value_t = 0,
        allow_negative_numbers = true
    )]
    page_size: i32,

    /// Continue after an earlier page: its `next_page_token`
    #[arg(long, value_name = "TOKEN", allow_hyphen_values = true)]
    page_token: Option<String>,

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
        let more = match self.next_page_token.as_str() {
            "" => String::new(),
            token => format!("\n\nnext page: the same command with --page-token {token}"),
        };
        table.render() + &more
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
    let mut page_token = args.page_token.unwrap_or_default();
    loop {
        let request = client.request(ListDeadLettersRequest {
            filter: Some(filter.clone()),
            oldest_first: args.oldest_first,
            page_size: if args.all && args.page_size == 0 {
                1_000
            } else {
                args.page_size
            },
            page_token: page_token.clone(),
        });
        let page = client
            .dead_letters()
            .list_dead_letters(request)
            .await?
            .into_inner();
        let next = page.next_page_token;
        let more = args.all && !next.is_empty();
        context.output.show(&Page {
            dead_letters: page.dead_letters.into_iter().map(DeadLetter::from).collect(),
            next_page_token: if more && !context.output.is_json() {
                String::new()
            } else {
                next.clone()
            },
        })?;
        if !more {
            return Ok(());
        }
        if next == page_token {
            return Err(Failure::failed("the server returned the same page token twice"));
        }
        page_token = next;
    }
}
