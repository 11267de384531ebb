//! `herald dlq log`

use herald_cli::{context::Context, failure::Failure, output::Show};
use herald_proto::v1::ListOperationsRequest;
use serde::Serialize;

use super::operations::{Operation, table};
use crate::commands::paging::{Paging, with_next_page};

const EXAMPLES: &str = "\
Examples:
  herald dlq log

  All discards, in a script:
    herald dlq log --output json | jq '.operations[] | select(.kind == \"discard\") | .selection'";

/// Print the audit log of operations on dead letters, newest first
///
/// An operation is a redrive, a discard, or the cancellation of a redrive. The log has its actor, time, selection and
/// result. It is kept for 365 days by default.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    paging: Paging<100, 1_000>,
}

#[derive(Debug, Serialize)]
struct Page {
    operations: Vec<Operation>,
    next_page_token: String,
}

impl Show for Page {
    fn text(&self) -> String {
        if self.operations.is_empty() {
            return "no operations".into();
        }
        with_next_page(table(&self.operations), "herald dlq log", &self.next_page_token)
    }
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let client = context.operator_client().await?;
    let cursor = args.paging.begin(false);
    let request = client.request(ListOperationsRequest {
        page_size: cursor.size,
        page_token: cursor.token,
    });
    let page = client.dead_letters().list_operations(request).await?.into_inner();
    context.output.show(&Page {
        operations: page.operations.into_iter().map(Operation::from).collect(),
        next_page_token: page.next_page_token,
    })
}
