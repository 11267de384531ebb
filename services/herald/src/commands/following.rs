//! `herald following`

use herald_cli::{
    context::Context,
    failure::{Failure, printable},
    output::Show,
};
use herald_proto::v1::IsFollowingRequest;
use serde::Serialize;

const EXAMPLES: &str = "\
Examples:
  herald following 1 107
  herald following 1 107 --output json | jq .notify";

/// Print whether a user follows an author, and with pushes
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
struct FollowState {
    follower_id: String,
    author_id: String,
    following: bool,
    notify: bool,
}

impl Show for FollowState {
    fn text(&self) -> String {
        let verb = if self.following {
            "follows"
        } else {
            "doesn't follow"
        };
        let pushes = if self.notify { ", with pushes" } else { "" };
        let (follower, author) = (printable(&self.follower_id), printable(&self.author_id));
        format!("{follower} {verb} {author}{pushes}")
    }
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let client = context.client().await?;
    let Args {
        follower_id,
        author_id,
    } = args;
    let request = client.request(IsFollowingRequest {
        follower_id: follower_id.clone(),
        author_id: author_id.clone(),
    });
    let response = client.graph().is_following(request).await?.into_inner();
    context.output.show(&FollowState {
        follower_id,
        author_id,
        following: response.following,
        notify: response.notify,
    })
}
