//! `herald user erasures`

use herald_cli::{
    context::Context,
    failure::{Failure, printable},
    output::{Show, Table},
    time::ago,
};
use herald_proto::v1::ListErasuresRequest;
use serde::Serialize;

use super::Erasure;

const EXAMPLES: &str = "\
Examples:
  herald user erasures

  Those that are not complete:
    herald user erasures --output json | jq '.erasures[] | select(.complete_time == null)'";

/// List the erasures of users, newest first
///
/// The record of a complete erasure has who asked for it, when, and what was removed. It does not have the user id.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Args {
    /// Erasures per page, 1 to 1,000; 0 uses the server's default, 100
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
    erasures: Vec<Erasure>,
    next_page_token: String,
}

impl Show for Page {
    fn text(&self) -> String {
        if self.erasures.is_empty() {
            return "no erasures".into();
        }
        let mut table = Table::new(&["erasure", "user", "actor", "requested", "state", "erased"]);
        for erasure in &self.erasures {
            table.row([
                erasure.erasure_id.to_string(),
                erasure.user(),
                printable(&erasure.actor),
                ago(erasure.requested.as_ref()),
                if erasure.is_complete() {
                    "complete"
                } else {
                    "running"
                }
                .into(),
                erasure.counts.text(),
            ]);
        }
        let more = match self.next_page_token.as_str() {
            "" => String::new(),
            token => format!("\n\nnext page: herald user erasures --page-token {token}"),
        };
        table.render() + &more
    }
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let client = context.operator_client().await?;
    let request = client.request(ListErasuresRequest {
        page_size: args.page_size,
        page_token: args.page_token.unwrap_or_default(),
    });
    let page = client.user_data().list_erasures(request).await?.into_inner();
    context.output.show(&Page {
        erasures: page.erasures.into_iter().map(Erasure::from).collect(),
        next_page_token: page.next_page_token,
    })
}
