//! `herald dlq discard`

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use herald_cli::{
    client::Client,
    context::Context,
    failure::Failure,
    output::{Show, counted},
};
use herald_proto::v1::{DeadLetterSelection, DiscardDeadLettersRequest, DiscardDeadLettersResponse};
use serde::Serialize;

use super::{
    dead_letter::{Group, group_table},
    select::{Selection, signed},
};

const EXAMPLES: &str = "\
Examples:
  herald dlq discard 17 18

  A group, without being asked:
    herald dlq discard --group 8c51a3f2b7d90e64 --yes

  How many would that be, and what?
    herald dlq discard --cause unreadable --dry-run";

/// Discard dead letters: they are kept for the record and can't be redriven any more
///
/// Asks on a terminal, and fails if the answer is not yes; elsewhere --yes is needed.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    selection: Selection,

    /// Only tell how many dead letters and which groups; nothing is changed
    #[arg(long, short = 'n')]
    dry_run: bool,

    /// Don't ask
    #[arg(long, short = 'y')]
    yes: bool,
}

#[derive(Debug, Serialize)]
struct Plan {
    dry_run: bool,
    dead_letters: u64,
    groups: Vec<Group>,
}

impl Show for Plan {
    fn text(&self) -> String {
        let would = format!(
            "{} would be discarded",
            counted(self.dead_letters, "dead_letter", "dead_letters")
        );
        if self.groups.is_empty() {
            would
        } else {
            format!("{}\n\n{would}", group_table(&self.groups))
        }
    }
}

#[derive(Debug, Serialize)]
struct Done {
    discarded: u64,
}

impl Show for Done {
    fn text(&self) -> String {
        format!(
            "{} discarded",
            counted(self.discarded, "dead_letter", "dead_letters")
        )
    }
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let selection = args.selection.into_v1()?;
    let asks = !args.yes && !args.dry_run;
    // Who can't read the question can't answer it either.
    if asks && !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
        return Err(Failure::usage(
            "discarding can't be taken back: say --yes, or ask with --dry-run what it would be",
        ));
    }
    let client = context.client().await?;
    if asks || args.dry_run {
        let plan = discard(&client, selection.clone(), true).await?;
        let plan = Plan {
            dry_run: true,
            dead_letters: plan.discarded_count,
            groups: plan.groups.into_iter().map(Group::from).collect(),
        };
        if args.dry_run {
            return context.output.show(&plan);
        }
        context.output.note(&plan.text());
        if plan.dead_letters == 0 {
            return context.output.show(&Done { discarded: 0 });
        }
        if !confirmed(plan.dead_letters)? {
            return Err(Failure::failed("nothing was discarded: the answer was not yes"));
        }
    }
    let done = discard(&client, selection, false).await?;
    context.output.show(&Done {
        discarded: done.discarded_count,
    })
}

async fn discard(
    client: &Client,
    selection: DeadLetterSelection,
    dry_run: bool,
) -> Result<DiscardDeadLettersResponse, Failure> {
    let request = client.request(DiscardDeadLettersRequest {
        selection: Some(selection),
        dry_run,
    });
    let answer = client
        .dead_letters()
        .discard_dead_letters(signed(request))
        .await?;
    Ok(answer.into_inner())
}

/// Asks on the terminal.
fn confirmed(dead_letters: u64) -> Result<bool, Failure> {
    let failure = |error| Failure::io("the terminal", &error);
    let mut terminal = io::stderr();
    write!(
        terminal,
        "Discard {}? They can't be redriven any more. [y/N] ",
        counted(dead_letters, "dead_letter", "dead_letters")
    )
    .and_then(|()| terminal.flush())
    .map_err(failure)?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(failure)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}
