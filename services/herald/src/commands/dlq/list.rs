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
    dead_letter::{DeadLetter, short},
    select::Filter,
};

const EXAMPLES: &str = "\
Examples:
  Open dead letters, the newest first:
    herald dlq list

  Of one consumer in the last hour, and of one author whatever became of them:
    herald dlq list --consumer push-normal --since 1h
    herald dlq list --author 107 --state any

  All ids, for a script:
    herald dlq list --all --output json | jq '.dead letters[].dead_letter_id'";

/// List dead letters, the newest first
///
/// `owed` are the recipients whom the message was for and who don't have it, at this moment.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Args {
    /// In this state
    #[arg(long, value_name = "STATE", value_enum, default_value_t = State::Open)]
    state: State,

    #[command(flatten)]
    filter: Filter,

    /// The oldest first
    #[arg(long)]
    oldest_first: bool,

    /// How many on a page: 1 to 1,000; 0 is the server's default, 100
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

    /// Every page; with --output json one object a page
    #[arg(long)]
    all: bool,
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
            "dead_letter",
            "state",
            "consumer",
            "cause",
            ">post",
            ">owed",
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
                count(u64::from(dead_letter.owed)),
                count(dead_letter.attempts),
                ago(dead_letter.last_failure.as_ref()),
                short(&dead_letter.reason),
            ]);
        }
        let more = match self.next_page_token.as_str() {
            "" => String::new(),
            token => format!("\n\nmore: the same with --page-token {token}"),
        };
        table.render() + &more
    }
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let client = context.client().await?;
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
            return Err(Failure::failed(
                "the server's page token leads to the same page again",
            ));
        }
        page_token = next;
    }
}
