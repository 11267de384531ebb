//! `herald posts`

use clap::Subcommand;
use herald_cli::{
    context::Context,
    failure::{Failure, Kind},
    output::{Show, shell_quoted},
};
use herald_proto::v1::{BatchGetPostsRequest, ListPostsRequest};
use serde::Serialize;

use super::paging::{Paging, next_page};
use crate::entry::Post;

/// The server's largest batch.
const BATCH_POSTS_MAX: usize = 100;

const EXAMPLES: &str = "\
Examples:
  The newest posts of an author:
    herald posts list 107

  Two posts by their ids:
    herald posts get 17 18";

const LIST_EXAMPLES: &str = "\
Examples:
  herald posts list 107

  One page at a time:
    herald posts list 107 --page-size 10
    herald posts list 107 --page-size 10 --page-token TOKEN

  All post ids, in a script:
    herald posts list 107 --all --output json | jq '.posts[].post_id'";

const GET_EXAMPLES: &str = "\
Examples:
  herald posts get 17 18
  herald posts get 17 --output json | jq -r '.posts[0].text'";

/// Print the posts of an author, or posts by their ids
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES, arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Print an author's posts, newest first, without deleted ones
    #[command(after_long_help = LIST_EXAMPLES)]
    List(List),
    /// Print posts by their ids; fails with exit code 4 if none of them exists
    #[command(after_long_help = GET_EXAMPLES)]
    Get {
        /// The ids of the posts
        #[arg(value_name = "POST", required = true)]
        post_ids: Vec<u64>,
    },
}

#[derive(Debug, clap::Args)]
struct List {
    /// The id of the author
    #[arg(value_name = "AUTHOR")]
    author_id: String,

    #[command(flatten)]
    paging: Paging<50, 200>,

    /// Read all pages
    #[arg(long)]
    all: bool,
}

#[derive(Debug, Serialize)]
struct PostsPage {
    posts: Vec<Post>,
    next_page_token: String,
    #[serde(skip)]
    author_id: String,
}

impl Show for PostsPage {
    fn text(&self) -> String {
        let mut parts: Vec<String> = self.posts.iter().map(Show::text).collect();
        if parts.is_empty() {
            parts.push("no posts".into());
        }
        // An id can contain characters that a shell interprets.
        let command = format!("herald posts list {}", shell_quoted(&self.author_id));
        parts.extend(next_page(&command, &self.next_page_token));
        parts.join("\n\n")
    }
}

#[derive(Debug, Serialize)]
struct FoundPosts {
    posts: Vec<Post>,
    missing_post_ids: Vec<u64>,
}

impl Show for FoundPosts {
    fn text(&self) -> String {
        let missing = self.missing_post_ids.iter();
        let missing = missing.map(|id| format!("there is no post {id}"));
        let parts: Vec<_> = self.posts.iter().map(Show::text).chain(missing).collect();
        parts.join("\n\n")
    }
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    match args.action {
        Action::List(args) => list(args, context).await,
        Action::Get { post_ids } => get(post_ids, context).await,
    }
}

async fn list(args: List, context: &Context) -> Result<(), Failure> {
    let client = context.client().await?;
    let mut cursor = args.paging.begin(args.all);
    let mut posts = Vec::new();
    loop {
        let request = client.request(ListPostsRequest {
            author_id: args.author_id.clone(),
            page_size: cursor.size,
            page_token: cursor.token.clone(),
        });
        let page = client.posts().list_posts(request).await?.into_inner();
        posts.extend(page.posts.into_iter().map(Post::from));
        let next = page.next_page_token;
        if cursor.is_last(&next) {
            return context.output.show(&PostsPage {
                posts,
                next_page_token: next,
                author_id: args.author_id,
            });
        }
        cursor.advance(next)?;
    }
}

async fn get(mut post_ids: Vec<u64>, context: &Context) -> Result<(), Failure> {
    let client = context.client().await?;
    let mut found = FoundPosts {
        posts: Vec::new(),
        missing_post_ids: Vec::new(),
    };
    while !post_ids.is_empty() {
        let rest = post_ids.split_off(post_ids.len().min(BATCH_POSTS_MAX));
        let request = client.request(BatchGetPostsRequest { post_ids });
        let response = client.posts().batch_get_posts(request).await?.into_inner();
        if response.posts.is_empty() && response.missing_post_ids.is_empty() {
            return Err(Failure::failed("the server's response has none of the posts"));
        }
        found.posts.extend(response.posts.into_iter().map(Post::from));
        found.missing_post_ids.extend(response.missing_post_ids);
        post_ids = response.remaining_post_ids;
        post_ids.extend(rest);
    }
    if found.posts.is_empty() {
        let ids: Vec<_> = found.missing_post_ids.iter().map(u64::to_string).collect();
        return Err(Failure::new(
            Kind::NotFound,
            format!("there is no post {}", ids.join(", ")),
        ));
    }
    context.output.show(&found)
}
