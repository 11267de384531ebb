//! `herald dlq groups`

use herald_cli::{
    context::Context,
    failure::Failure,
    output::{Show, counted},
};
use herald_proto::v1::{self, DeadLetterState, ListGroupsRequest};
use serde::Serialize;

use super::{
    dead_letter::{Group, group_table},
    select::Filter,
};

const EXAMPLES: &str = "\
Examples:
  herald dlq groups

  What has failed on the push channel since yesterday:
    herald dlq groups --channel push --since 24h

  The largest group's dead letters:
    herald dlq list --group \"$(herald dlq groups --output json | jq -r '.groups[0].group_id')\"";

/// Count open dead letters by what failed and how
///
/// Dead letters are in one group when the same kind of consumer gave them up for the same cause and the same reason but for
/// numbers and ids.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    filter: Filter,

    /// Dead letters in every state, not only open ones
    #[arg(long)]
    any_state: bool,

    /// How many groups at most: 1 to 1,000; 0 is the server's default, 100
    #[arg(
        long,
        value_name = "COUNT",
        default_value_t = 0,
        allow_negative_numbers = true
    )]
    page_size: i32,
}

#[derive(Debug, Serialize)]
struct Answer {
    groups: Vec<Group>,
    group_count: u64,
    dead_letter_count: u64,
}

impl Show for Answer {
    fn text(&self) -> String {
        if self.groups.is_empty() {
            return "no dead letters".into();
        }
        format!(
            "{}\n\n{} in {}",
            group_table(&self.groups),
            counted(self.dead_letter_count, "dead_letter", "dead_letters"),
            counted(self.group_count, "group", "groups")
        )
    }
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let client = context.client().await?;
    let state = if args.any_state {
        DeadLetterState::Unspecified
    } else {
        DeadLetterState::Open
    };
    let request = client.request(ListGroupsRequest {
        filter: Some(v1::DeadLetterFilter {
            state: state.into(),
            ..args.filter.into_v1()
        }),
        page_size: args.page_size,
    });
    let answer = client.dead_letters().list_groups(request).await?.into_inner();
    context.output.show(&Answer {
        groups: answer.groups.into_iter().map(Group::from).collect(),
        group_count: answer.group_count,
        dead_letter_count: answer.dead_letter_count,
    })
}
