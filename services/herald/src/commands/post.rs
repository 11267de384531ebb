//! `herald post`

use std::{io::Read, time::Duration};

use clap::{ValueHint, builder::PossibleValuesParser, builder::TypedValueParser};
use herald_cli::{
    context::Context,
    failure::{Failure, Kind, printable},
    output::{Show, lane_number},
    time::{self, duration_to_proto, rfc3339},
};
use herald_model::Lane;
use herald_proto::v1::{SubmitPostRequest, SubmitPostResponse};
use serde::Serialize;
use uuid::Uuid;

use crate::backoff::Backoff;

/// More than any valid text, so that the server can say what is too long.
const STDIN_BYTES_MAX: u64 = 1 << 20;

const EXAMPLES: &str = "\
Examples:
  herald post --author 107 --text 'hello, followers'

  Text from a pipe; one line break at its end is left out:
    fortune | herald post --author 107 --text -

  With links and a picture, urgent, its push worth sending for ten minutes:
    herald post --author 107 --text 'goal!' --lane high --push-ttl 10m \\
        --link https://example.com/match --media https://example.com/goal.jpg

  Safe to run again: the same author and request id is the same post for 24 hours:
    herald post --author 107 --text hi --request-id 6b1f0b4e-3f0e-4b57-9a5d-0d6c5e1d7b11

  The id for a script:
    herald post --author 107 --text hi --output json | jq .post_id";

/// Write a post
///
/// The answer holds the post's id and means that the post is durable: it will reach every follower.
///
/// When the server can't serve for a moment, the same post is sent again a few times under the same request id, so that
/// it is accepted once, whatever happened in between.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Args {
    /// Who writes: a user's id
    #[arg(long, short = 'a', value_name = "USER")]
    author: String,

    /// What to say, 1 to 10,000 characters; `-` reads it from standard input
    #[arg(long, short = 't', value_name = "TEXT", allow_hyphen_values = true)]
    text: String,

    /// A UUID that makes running this again safe
    ///
    /// Made anew when left out; the answer tells it.
    #[arg(long, value_name = "UUID")]
    request_id: Option<String>,

    /// The queue to travel in; high goes first, low is slower
    #[arg(
        long,
        value_name = "LANE",
        default_value = "normal",
        value_parser = PossibleValuesParser::new(["high", "normal", "low"]).try_map(|name| name.parse::<Lane>())
    )]
    lane: Lane,

    /// A link, http or https; may be given up to 16 times
    #[arg(long = "link", value_name = "URL", value_hint = ValueHint::Url)]
    links: Vec<String>,

    /// A picture or film, http or https; may be given up to 16 times
    #[arg(long = "media", value_name = "URL", value_hint = ValueHint::Url)]
    media_urls: Vec<String>,

    /// How long a push of this post is worth sending, 1s to 28d; the server's default is 1h
    #[arg(long, value_name = "DURATION", value_parser = time::duration)]
    push_ttl: Option<Duration>,

    /// How often to send it again when the server can't serve
    #[arg(long, value_name = "COUNT", default_value_t = 4, value_parser = clap::value_parser!(u32).range(0..=20))]
    retries: u32,
}

#[derive(Debug, Serialize)]
struct Answer {
    post_id: u64,
    request_id: String,
    accepted_time: Option<String>,
    duplicate: bool,
}

impl From<SubmitPostResponse> for Answer {
    fn from(response: SubmitPostResponse) -> Self {
        Self {
            post_id: response.post_id,
            request_id: response.request_id,
            accepted_time: rfc3339(response.accepted_time.as_ref()),
            duplicate: response.duplicate,
        }
    }
}

impl Show for Answer {
    fn text(&self) -> String {
        let what = if self.duplicate {
            "was accepted before"
        } else {
            "accepted"
        };
        format!(
            "post {} {what} (request id {})",
            self.post_id,
            printable(&self.request_id)
        )
    }
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let own_id = args.request_id.is_none();
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
    };
    let response = submit(&message, args.retries, context).await.map_err(|failure| match failure.kind() {
        // It may have been accepted all the same: say how to ask again without writing it twice.
        Kind::Unreachable | Kind::TimedOut if own_id && !failure.is_refused() => failure.hint(format!(
            "it may have been accepted: run this again with --request-id {request_id}, and it is one post either way"
        )),
        _ => failure,
    })?;
    context.output.show(&Answer::from(response))
}

/// Sends the post until it is answered, at most `retries` times more.
async fn submit(
    message: &SubmitPostRequest,
    retries: u32,
    context: &Context,
) -> Result<SubmitPostResponse, Failure> {
    let client = context.client().await?;
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    let mut tries = 0;
    loop {
        let failure = match client.posts().submit_post(client.request(message.clone())).await {
            Ok(response) => return Ok(response.into_inner()),
            Err(status) => Failure::from(status),
        };
        if failure.kind() != Kind::Unreachable || tries == retries {
            return Err(failure);
        }
        tries += 1;
        let delay = backoff.next(failure.retry_after());
        context.output.note(&format!(
            "{}; trying again in {:.1} s ({tries} of {retries})",
            printable(failure.message()),
            delay.as_secs_f64()
        ));
        tokio::time::sleep(delay).await;
    }
}

/// Reads the whole text, without one line break at its end.
fn read_text(input: impl Read) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    input
        .take(STDIN_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::io("the text can't be read from standard input", &error))?;
    if bytes.len() as u64 > STDIN_BYTES_MAX {
        return Err(Failure::usage("the text on standard input is over 1 MiB long"));
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
    fn one_line_break_at_the_end_is_left_out() {
        assert_eq!(read_text("a\n\n".as_bytes()).unwrap(), "a\n");
        assert_eq!(read_text("a\r\n".as_bytes()).unwrap(), "a");
        assert_eq!(read_text("".as_bytes()).unwrap(), "");
        assert!(read_text(&b"\xff"[..]).is_err());
        assert!(read_text(std::io::repeat(b'a')).is_err());
    }
}
