//! `herald follow`

use herald_cli::{
    context::Context,
    failure::{Failure, printable},
    output::Show,
};
use herald_proto::v1::{Follow, FollowRequest};
use serde::Serialize;

const EXAMPLES: &str = "\
Examples:
  herald follow 1 107

  With pushes: each post is also pushed to the devices of user 1:
    herald follow 1 107 --notify

  Turn pushes off again:
    herald follow 1 107 --no-notify";

/// Follow an author, with or without pushes
///
/// The follower receives the author's future posts and their newest 20 existing posts. Following again changes pushes
/// only with --notify or --no-notify.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Args {
    /// The id of the follower
    #[arg(value_name = "USER")]
    follower_id: String,

    /// The id of the author
    #[arg(value_name = "AUTHOR")]
    author_id: String,

    /// Also push each post to the follower's devices
    #[arg(long)]
    notify: bool,

    /// Turn pushes off
    #[arg(long, conflicts_with = "notify")]
    no_notify: bool,
}

#[derive(Debug, Serialize)]
struct FollowResult {
    follower_id: String,
    author_id: String,
    notify: bool,
    changed: bool,
}

impl Show for FollowResult {
    fn text(&self) -> String {
        let already = if self.changed { "" } else { " already" };
        let pushes = if self.notify { ", with pushes" } else { "" };
        let (follower, author) = (printable(&self.follower_id), printable(&self.author_id));
        format!("{follower} follows {author}{already}{pushes}")
    }
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let client = context.client().await?;
    let Args {
        follower_id,
        author_id,
        notify,
        no_notify,
    } = args;
    let follow = Follow {
        follower_id: follower_id.clone(),
        author_id: author_id.clone(),
        notify: (notify || no_notify).then_some(notify),
    };
    let request = client.request(FollowRequest { follow: Some(follow) });
    let response = client.graph().follow(request).await?.into_inner();
    context.output.show(&FollowResult {
        follower_id,
        author_id,
        notify: response.notify,
        changed: response.changed,
    })
}
