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
use crate::commands::paging::{Paging, with_next_page};

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
    #[command(flatten)]
    paging: Paging<100, 1_000>,
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
        with_next_page(table.render(), "herald user erasures", &self.next_page_token)
    }
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let client = context.operator_client().await?;
    let cursor = args.paging.begin(false);
    let request = client.request(ListErasuresRequest {
        page_size: cursor.size,
        page_token: cursor.token,
    });
    let page = client.user_data().list_erasures(request).await?.into_inner();
    context.output.show(&Page {
        erasures: page.erasures.into_iter().map(Erasure::from).collect(),
        next_page_token: page.next_page_token,
    })
}
