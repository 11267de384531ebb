//! `herald dlq discard`

use herald_cli::{
    client::OperatorClient,
    confirm,
    context::Context,
    failure::Failure,
    output::{Show, counted},
};
use herald_proto::v1::{DeadLetterSelection, DiscardDeadLettersRequest, DiscardDeadLettersResponse};
use serde::Serialize;

use super::{
    dead_letter::{Group, groups_and_total},
    select::{Selection, with_actor},
};

const EXAMPLES: &str = "\
Examples:
  herald dlq discard 17 18

  A group, without confirmation:
    herald dlq discard --group 8c51a3f2b7d90e64 --yes

  Count the dead letters that would be discarded:
    herald dlq discard --cause unreadable --dry-run";

/// Discard dead letters; they stay readable but can't be redriven any more
///
/// Asks for confirmation on a terminal; any answer but yes is exit code 1. Without a terminal --yes is required.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Args {
    /// Print the number and groups of the selected dead letters; change nothing
    #[arg(long, short = 'n')]
    dry_run: bool,

    /// Skip the confirmation
    #[arg(long, short = 'y')]
    yes: bool,

    // Last, because its heading also applies to the arguments after it.
    #[command(flatten)]
    selection: Selection,
}

#[derive(Debug, Serialize)]
struct Preview {
    dry_run: bool,
    discarded_count: u64,
    groups: Vec<Group>,
    /// Number of all groups.
    group_count: u64,
}

impl Show for Preview {
    fn text(&self) -> String {
        let total = format!(
            "{} would be discarded",
            counted(self.discarded_count, "dead letter", "dead letters")
        );
        groups_and_total(&self.groups, self.group_count, &total)
    }
}

#[derive(Debug, Serialize)]
struct Discarded {
    discarded_count: u64,
}

impl Show for Discarded {
    fn text(&self) -> String {
        format!(
            "{} discarded",
            counted(self.discarded_count, "dead letter", "dead letters")
        )
    }
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let selection = args.selection.into_v1()?;
    let needs_confirmation = !args.yes && !args.dry_run;
    if needs_confirmation && !confirm::can_ask() {
        return Err(Failure::usage(
            "discarding can't be undone: confirm it with --yes, or list the dead letters with --dry-run",
        ));
    }
    let client = context.operator_client().await?;
    if needs_confirmation || args.dry_run {
        let plan = discard(&client, selection.clone(), true).await?;
        let preview = Preview {
            dry_run: true,
            discarded_count: plan.discarded_count,
            groups: plan.groups.into_iter().map(Group::from).collect(),
            group_count: plan.group_count,
        };
        if args.dry_run {
            return context.output.show(&preview);
        }
        context.output.note(&preview.text());
        if preview.discarded_count == 0 {
            return context.output.show(&Discarded { discarded_count: 0 });
        }
        let question = format!(
            "Discard {}? They can't be redriven any more.",
            counted(preview.discarded_count, "dead letter", "dead letters")
        );
        if !confirm::ask(&question)? {
            return Err(Failure::failed("nothing was discarded: not confirmed"));
        }
    }
    let response = discard(&client, selection, false).await?;
    context.output.show(&Discarded {
        discarded_count: response.discarded_count,
    })
}

async fn discard(
    client: &OperatorClient,
    selection: DeadLetterSelection,
    dry_run: bool,
) -> Result<DiscardDeadLettersResponse, Failure> {
    let request = client.request(DiscardDeadLettersRequest {
        selection: Some(selection),
        dry_run,
    });
    let response = client
        .dead_letters()
        .discard_dead_letters(with_actor(request))
        .await?;
    Ok(response.into_inner())
}
