//! `herald timeline`

use herald_cli::{
    context::Context,
    failure::Failure,
    output::{Show, shell_quoted},
};
use herald_proto::v1::ListTimelineRequest;
use serde::Serialize;

use crate::entry::{Post, posts};

/// The server's largest page, used with --all.
const PAGE_SIZE_MAX: i32 = 200;

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

    /// Posts per page, 1 to 200; 0 uses the server's default, 50
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
        if !self.next_page_token.is_empty() {
            // An id can contain characters that a shell interprets.
            let user = shell_quoted(&self.user_id);
            parts.push(format!(
                "next page: herald timeline {user} --page-token {}",
                self.next_page_token
            ));
        }
        parts.join("\n\n")
    }
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let client = context.client().await?;
    let page_size = if args.all && args.page_size == 0 {
        PAGE_SIZE_MAX
    } else {
        args.page_size
    };
    let mut page_token = args.page_token.unwrap_or_default();
    let mut entries = Vec::new();
    let mut rebuilding = false;
    loop {
        let request = client.request(ListTimelineRequest {
            user_id: args.user_id.clone(),
            page_size,
            page_token: page_token.clone(),
        });
        let page = client.timelines().list_timeline(request).await?.into_inner();
        entries.extend(posts(page.entries));
        rebuilding |= page.rebuilding;
        let next = page.next_page_token;
        if !args.all || next.is_empty() {
            let timeline = TimelinePage {
                entries,
                next_page_token: next,
                rebuilding,
                user_id: args.user_id,
            };
            return context.output.show(&timeline);
        }
        if next == page_token {
            return Err(Failure::failed("the server returned the same page token twice"));
        }
        page_token = next;
    }
}
