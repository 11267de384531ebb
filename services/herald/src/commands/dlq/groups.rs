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

  The push channel, last 24 hours:
    herald dlq groups --channel push --since 24h

  The dead letters of the largest group:
    herald dlq list --group \"$(herald dlq groups --output json | jq -r '.groups[0].group_id')\"";

/// Count open dead letters by consumer, cause and reason
///
/// A group has the dead letters with the same kind of consumer, the same cause and the same reason; numbers and ids in
/// the reason are ignored. The largest group is first.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Args {
    /// Count dead letters in all states, not only open ones
    #[arg(long)]
    any_state: bool,

    /// Groups to print, 1 to 1,000; 0 uses the server's default, 100
    #[arg(
        long,
        value_name = "COUNT",
        default_value_t = 0,
        allow_negative_numbers = true
    )]
    page_size: i32,

    // Last, because its heading also applies to the arguments after it.
    #[command(flatten)]
    filter: Filter,
}

#[derive(Debug, Serialize)]
struct GroupList {
    groups: Vec<Group>,
    group_count: u64,
    dead_letter_count: u64,
}

impl Show for GroupList {
    fn text(&self) -> String {
        if self.groups.is_empty() {
            return "no dead letters".into();
        }
        format!(
            "{}\n\n{} in {}",
            group_table(&self.groups),
            counted(self.dead_letter_count, "dead letter", "dead letters"),
            counted(self.group_count, "group", "groups")
        )
    }
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let client = context.operator_client().await?;
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
    let response = client.dead_letters().list_groups(request).await?.into_inner();
    context.output.show(&GroupList {
        groups: response.groups.into_iter().map(Group::from).collect(),
        group_count: response.group_count,
        dead_letter_count: response.dead_letter_count,
    })
}
