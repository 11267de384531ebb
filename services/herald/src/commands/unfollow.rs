//! `herald unfollow`

use herald_cli::{
    context::Context,
    failure::{Failure, printable},
    output::Show,
};
use herald_proto::v1::UnfollowRequest;
use serde::Serialize;

const EXAMPLES: &str = "\
Examples:
  herald unfollow 1 107";

/// Unfollow an author
///
/// The follower doesn't receive posts accepted after this; earlier posts stay on the timeline. Unfollowing succeeds if
/// there is no such follow.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Args {
    /// The id of the follower
    #[arg(value_name = "USER")]
    follower_id: String,

    /// The id of the author
    #[arg(value_name = "AUTHOR")]
    author_id: String,
}

#[derive(Debug, Serialize)]
struct UnfollowResult {
    follower_id: String,
    author_id: String,
    changed: bool,
}

impl Show for UnfollowResult {
    fn text(&self) -> String {
        let verb = if self.changed {
            "no longer follows"
        } else {
            "didn't follow"
        };
        format!(
            "{} {verb} {}",
            printable(&self.follower_id),
            printable(&self.author_id)
        )
    }
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let client = context.client().await?;
    let Args {
        follower_id,
        author_id,
    } = args;
    let request = UnfollowRequest {
        follower_id: follower_id.clone(),
        author_id: author_id.clone(),
    };
    let changed = client
        .graph()
        .unfollow(client.request(request))
        .await?
        .into_inner()
        .changed;
    context.output.show(&UnfollowResult {
        follower_id,
        author_id,
        changed,
    })
}
