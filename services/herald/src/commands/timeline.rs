//! `herald timeline`

use herald_cli::{
    context::Context,
    failure::Failure,
    output::{Show, shell_quoted},
};
use herald_proto::v1::ListTimelineRequest;
use serde::Serialize;

use super::paging::{Paging, next_page};
use crate::entry::{Post, posts};

const EXAMPLES: &str = "\
Examples:
  herald timeline 1

  One page at a time:
    herald timeline 1 --page-size 10
    herald timeline 1 --page-size 10 --page-token TOKEN

  All post ids, in a script:
    herald timeline 1 --all --output json | jq '.entries[].post_id'";

/// Print a user's timeline, newest first
///
/// Deleted posts and posts of muted authors are omitted, so a page can have fewer posts than requested although there
/// is a next page. The timeline of an unknown user is empty. While a timeline is rebuilt, posts can be missing:
/// `rebuilding` is true then.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Args {
    /// The id of the user
    #[arg(value_name = "USER")]
    user_id: String,

    #[command(flatten)]
    paging: Paging<50, 200>,

    /// Read all pages
    #[arg(long)]
    all: bool,
}

#[derive(Debug, Serialize)]
struct TimelinePage {
    entries: Vec<Post>,
    next_page_token: String,
    /// Whether posts can be missing because the timeline is being rebuilt.
    rebuilding: bool,
    #[serde(skip)]
    user_id: String,
}

impl Show for TimelinePage {
    fn text(&self) -> String {
        let mut parts: Vec<String> = self.entries.iter().map(Show::text).collect();
        if parts.is_empty() {
            parts.push("no posts".into());
        }
        if self.rebuilding {
            parts.push(
                "the timeline is being rebuilt, posts can be missing: read it again in a few seconds".into(),
            );
        }
        // An id can contain characters that a shell interprets.
        let command = format!("herald timeline {}", shell_quoted(&self.user_id));
        parts.extend(next_page(&command, &self.next_page_token));
        parts.join("\n\n")
    }
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let client = context.client().await?;
    let mut cursor = args.paging.begin(args.all);
    let mut entries = Vec::new();
    let mut rebuilding = false;
    loop {
        let request = client.request(ListTimelineRequest {
            user_id: args.user_id.clone(),
            page_size: cursor.size,
            page_token: cursor.token.clone(),
        });
        let page = client.timelines().list_timeline(request).await?.into_inner();
        entries.extend(posts(page.entries));
        rebuilding |= page.rebuilding;
        let next = page.next_page_token;
        if cursor.is_last(&next) {
            let timeline = TimelinePage {
                entries,
                next_page_token: next,
                rebuilding,
                user_id: args.user_id,
            };
            return context.output.show(&timeline);
        }
        cursor.advance(next)?;
    }
}
