//! `herald delete`

use clap::ArgGroup;
use herald_cli::{context::Context, failure::Failure, output::Show};
use herald_proto::v1::DeletePostRequest;
use serde::Serialize;

const EXAMPLES: &str = "\
Examples:
  herald delete 17 --author 107

  Whoever the author is, as a moderator:
    herald delete 17 --any-author";

/// Delete a post
///
/// The post disappears from all timelines at once, and its unsent pushes are suppressed. Deleting a deleted post
/// succeeds.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES, group = ArgGroup::new("guard").required(true))]
pub(crate) struct Args {
    /// The id of the post
    #[arg(value_name = "POST")]
    post_id: u64,

    /// The author; the server rejects the request if the post has another author
    #[arg(long, short = 'a', value_name = "USER", group = "guard")]
    author: Option<String>,

    /// Delete the post of any author
    #[arg(long, group = "guard")]
    any_author: bool,
}

#[derive(Debug, Serialize)]
struct DeletedPost {
    post_id: u64,
    deleted: bool,
}

impl Show for DeletedPost {
    fn text(&self) -> String {
        format!("post {} deleted", self.post_id)
    }
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let client = context.client().await?;
    let request = DeletePostRequest {
        post_id: args.post_id,
        author_id: args.author.unwrap_or_default(),
        any_author: args.any_author,
    };
    client.posts().delete_post(client.request(request)).await?;
    context.output.show(&DeletedPost {
        post_id: args.post_id,
        deleted: true,
    })
}
