//! `herald post`

use std::{io::Read, time::Duration};

use clap::{ValueHint, builder::PossibleValuesParser, builder::TypedValueParser};
use herald_cli::{
    context::Context,
    failure::{Failure, Kind, printable},
    output::{Show, lane_number},
    time::{self, duration_to_proto, format_wait, rfc3339},
};
use herald_model::Lane;
use herald_proto::v1::{SubmitPostRequest, SubmitPostResponse};
use serde::Serialize;
use uuid::Uuid;

use crate::backoff::Backoff;

/// Larger than any valid text: the server validates the length and reports the exact limit.
const STDIN_BYTES_MAX: u64 = 1 << 20;

const EXAMPLES: &str = "\
Examples:
  herald post --author 107 --text 'hello, followers'

  Text from standard input; one trailing line break is removed:
    fortune | herald post --author 107 --text -

  With links and media, in the high lane, with a push TTL of ten minutes:
    herald post --author 107 --text 'goal!' --lane high --push-ttl 10m \\
        --link https://example.com/match --media https://example.com/goal.jpg

  With a title and data in its pushes; a newer push of the key replaces an unseen one:
    herald post --author 107 --text 'goal!' --title 'Match 7' \\
        --collapse-key match-7 --data score=1:0

  Idempotent for 24 hours: the same author and request id identify the same post:
    herald post --author 107 --text hi --request-id 6b1f0b4e-3f0e-4b57-9a5d-0d6c5e1d7b11

  Print the post's id, in a script:
    herald post --author 107 --text hi --output json | jq .post_id";

/// Submit a post
///
/// Prints the post's id once the server has stored the post durably. Herald then delivers the post to every follower.
///
/// While a server that it has reached is unavailable, the command retries with the same request id, so that the server
/// accepts the post only once. A server that can't be reached at the start ends it with exit code 3.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Args {
    /// The id of the author
    #[arg(long, short = 'a', value_name = "USER")]
    author: String,

    /// The text, 1 to 10,000 characters; `-` reads it from standard input
    #[arg(long, short = 't', value_name = "TEXT", allow_hyphen_values = true)]
    text: String,

    /// The idempotency key of the post, a UUID
    ///
    /// By default a random UUID, which is printed with the result.
    #[arg(long, value_name = "UUID")]
    request_id: Option<String>,

    /// The priority lane; high is delivered first, low last
    #[arg(
        long,
        value_name = "LANE",
        default_value = "normal",
        value_parser = PossibleValuesParser::new(["high", "normal", "low"]).try_map(|name| name.parse::<Lane>())
    )]
    lane: Lane,

    /// A link, http or https; repeat for up to 16 links
    #[arg(long = "link", value_name = "URL", value_hint = ValueHint::Url)]
    links: Vec<String>,

    /// The URL of an image or video, http or https; repeat for up to 16 URLs
    #[arg(long = "media", value_name = "URL", value_hint = ValueHint::Url)]
    media_urls: Vec<String>,

    /// The time after which unsent pushes of this post expire, 1s to 28d [default: 1h]
    #[arg(long, value_name = "DURATION", value_parser = time::duration)]
    push_ttl: Option<Duration>,

    /// The title of the post's pushes, at most 120 characters
    #[arg(long = "title", value_name = "TEXT")]
    push_title: Option<String>,

    /// The collapse key of the post's pushes: an unseen push is replaced by a later one with the same author and key
    #[arg(long = "collapse-key", value_name = "KEY")]
    push_collapse_key: Option<String>,

    /// Custom data in the post's pushes; repeat for up to 16 entries
    #[arg(long = "data", value_name = "KEY=VALUE", value_parser = parse_data)]
    push_data: Vec<(String, String)>,

    /// Retries while the server is unavailable, 0 to 20
    #[arg(long, value_name = "COUNT", default_value_t = 4, value_parser = clap::value_parser!(u32).range(0..=20))]
    retries: u32,
}

#[derive(Debug, Serialize)]
struct SubmittedPost {
    post_id: u64,
    request_id: String,
    accepted_time: Option<String>,
    duplicate: bool,
}

impl From<SubmitPostResponse> for SubmittedPost {
    fn from(response: SubmitPostResponse) -> Self {
        Self {
            post_id: response.post_id,
            request_id: response.request_id,
            accepted_time: rfc3339(response.accepted_time.as_ref()),
            duplicate: response.duplicate,
        }
    }
}

impl Show for SubmittedPost {
    fn text(&self) -> String {
        let status = if self.duplicate {
            "was accepted before"
        } else {
            "accepted"
        };
        format!(
            "post {} {status} (request id {})",
            self.post_id,
            printable(&self.request_id)
        )
    }
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let generated_id = args.request_id.is_none();
    let request_id = args.request_id.unwrap_or_else(|| Uuid::new_v4().to_string());
    let message = SubmitPostRequest {
        request_id: request_id.clone(),
        author_id: args.author,
        text: if args.text == "-" {
            read_text(std::io::stdin())?
        } else {
            args.text
        },
        links: args.links,
        media_urls: args.media_urls,
        lane: lane_number(args.lane),
        push_ttl: args.push_ttl.map(duration_to_proto),
        push_title: args.push_title.unwrap_or_default(),
        push_collapse_key: args.push_collapse_key.unwrap_or_default(),
        push_data: args.push_data.into_iter().collect(),
    };
    let response = submit(&message, args.retries, context).await.map_err(|failure| match failure.kind() {
        // The server may have accepted the post: the hint names the id that makes a retry idempotent.
        Kind::Unreachable | Kind::TimedOut if generated_id && !failure.is_not_connected() => failure.hint(format!(
            "the post may have been accepted; to retry without a duplicate, add --request-id {request_id}"
        )),
        _ => failure,
    })?;
    context.output.show(&SubmittedPost::from(response))
}

/// Submits the post; retries up to `retries` times while the server is unavailable.
async fn submit(
    message: &SubmitPostRequest,
    retries: u32,
    context: &Context,
) -> Result<SubmitPostResponse, Failure> {
    let client = context.client().await?;
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    let mut retry = 0;
    loop {
        let failure = match client.posts().submit_post(client.request(message.clone())).await {
            Ok(response) => return Ok(response.into_inner()),
            Err(status) => Failure::from(status),
        };
        if failure.kind() != Kind::Unreachable || retry == retries {
            return Err(failure);
        }
        retry += 1;
        let delay = backoff.next_delay(failure.retry_after());
        context.output.note(&format!(
            "{}; retry {retry} of {retries} in {}",
            printable(failure.message()),
            format_wait(delay)
        ));
        tokio::time::sleep(delay).await;
    }
}

/// Parses `KEY=VALUE`.
fn parse_data(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("must be KEY=VALUE")?;
    Ok((key.into(), value.into()))
}

/// Reads the whole text and removes one trailing line break.
fn read_text(input: impl Read) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    input
        .take(STDIN_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::io("can't read the text from standard input", &error))?;
    if bytes.len() as u64 > STDIN_BYTES_MAX {
        return Err(Failure::usage("the text on standard input is longer than 1 MiB"));
    }
    let mut text =
        String::from_utf8(bytes).map_err(|_| Failure::usage("the text on standard input is not UTF-8"))?;
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_trailing_line_break_is_removed() {
        assert_eq!(read_text("a\n\n".as_bytes()).unwrap(), "a\n");
        assert_eq!(read_text("a\r\n".as_bytes()).unwrap(), "a");
        assert_eq!(read_text("".as_bytes()).unwrap(), "");
        assert!(read_text(&b"\xff"[..]).is_err());
        assert!(read_text(std::io::repeat(b'a')).is_err());
    }
}
