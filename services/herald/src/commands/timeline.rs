//! `herald timeline`

use herald_cli::{
    context::Context,
    failure::Failure,
    output::{Show, quoted},
};
use herald_proto::v1::ListTimelineRequest;
use serde::Serialize;

use crate::entry::{Post, posts};

/// The server's largest page, for reading everything.
const PAGE_SIZE_MAX: i32 = 200;

const EXAMPLES: &str = "\
Examples:
  herald timeline 1

  Page by page:
    herald timeline 1 --page-size 10
    herald timeline 1 --page-size 10 --page-token TOKEN

  Everything, as a script reads it:
    herald timeline 1 --all --output json | jq '.entries[].post_id'";

/// Print a user's timeline, newest first
///
/// Deleted posts and muted authors are left out, so a page can hold fewer posts than asked for and still have a next
/// one. A user whom Herald never heard of has an empty timeline.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Args {
    /// Whose timeline
    #[arg(value_name = "USER")]
    user_id: String,

    /// How many posts at most: 1 to 200; 0 is the server's default, 50
    #[arg(
        long,
        value_name = "COUNT",
        default_value_t = 0,
        allow_negative_numbers = true
    )]
    page_size: i32,

    /// Where to go on: the `next_page_token` of the page before
    #[arg(long, value_name = "TOKEN", allow_hyphen_values = true)]
    page_token: Option<String>,

    /// Read page after page until the end
    #[arg(long)]
    all: bool,
}

#[derive(Debug, Serialize)]
struct Answer {
    entries: Vec<Post>,
    next_page_token: String,
    #[serde(skip)]
    user_id: String,
}

impl Show for Answer {
    fn text(&self) -> String {
        let mut parts: Vec<String> = self.entries.iter().map(Show::text).collect();
        if parts.is_empty() {
            parts.push("nothing here".into());
        }
        if !self.next_page_token.is_empty() {
            // Ids and tokens may hold what a shell would take apart.
            let user = quoted(&self.user_id);
            parts.push(format!(
                "more: herald timeline {user} --page-token {}",
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
    loop {
        let request = client.request(ListTimelineRequest {
            user_id: args.user_id.clone(),
            page_size,
            page_token: page_token.clone(),
        });
        let page = client.timelines().list_timeline(request).await?.into_inner();
        entries.extend(posts(page.entries));
        let next = page.next_page_token;
        if !args.all || next.is_empty() {
            let answer = Answer {
                entries,
                next_page_token: next,
                user_id: args.user_id,
            };
            return context.output.show(&answer);
        }
        if next == page_token {
            return Err(Failure::failed(
                "the server's page token leads to the same page again",
            ));
        }
        page_token = next;
    }
}
