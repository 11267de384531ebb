//! `herald delete`

use herald_cli::{context::Context, failure::Failure, output::Show};
use herald_proto::v1::DeletePostRequest;
use serde::Serialize;

const EXAMPLES: &str = "\
Examples:
  herald delete 17

  Only if 107 wrote it:
    herald delete 17 --author 107";

/// Delete a post
///
/// It disappears from every timeline at once, and pushes that are not sent yet are suppressed. Deleting it again is a
/// success.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Args {
    /// The post's id
    #[arg(value_name = "POST")]
    post_id: u64,

    /// Its author, as a guard against deleting somebody else's
    #[arg(long, short = 'a', value_name = "USER")]
    author: Option<String>,
}

#[derive(Debug, Serialize)]
struct Answer {
    post_id: u64,
    deleted: bool,
}

impl Show for Answer {
    fn text(&self) -> String {
        format!("post {} is deleted", self.post_id)
    }
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let client = context.client().await?;
    let request = DeletePostRequest {
        post_id: args.post_id,
        author_id: args.author.unwrap_or_default(),
    };
    client.posts().delete_post(client.request(request)).await?;
    context.output.show(&Answer {
        post_id: args.post_id,
        deleted: true,
    })
}
