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

/// End a follow
///
/// Posts accepted after this don't reach the follower any more; what is on the timeline stays. Ending a follow that
/// doesn't exist is a success.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Args {
    /// Who follows
    #[arg(value_name = "USER")]
    follower_id: String,

    /// Who is followed
    #[arg(value_name = "AUTHOR")]
    author_id: String,
}

#[derive(Debug, Serialize)]
struct Answer {
    follower_id: String,
    author_id: String,
    changed: bool,
}

impl Show for Answer {
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
    context.output.show(&Answer {
        follower_id,
        author_id,
        changed,
    })
}
