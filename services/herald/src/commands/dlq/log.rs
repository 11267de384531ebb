//! `herald dlq log`

use herald_cli::{context::Context, failure::Failure, output::Show};
use herald_proto::v1::ListOperationsRequest;
use serde::Serialize;

use super::operations::{Operation, table};

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
    /// Operations per page, 1 to 1,000; 0 uses the server's default, 100
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
        let more = match self.next_page_token.as_str() {
            "" => String::new(),
            token => format!("\n\nnext page: herald dlq log --page-token {token}"),
        };
        table(&self.operations) + &more
    }
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let client = context.operator_client().await?;
    let request = client.request(ListOperationsRequest {
        page_size: args.page_size,
        page_token: args.page_token.unwrap_or_default(),
    });
    let page = client.dead_letters().list_operations(request).await?.into_inner();
    context.output.show(&Page {
        operations: page.operations.into_iter().map(Operation::from).collect(),
        next_page_token: page.next_page_token,
    })
}
