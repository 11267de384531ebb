//! `herald dlq show`

use std::fmt::Write as _;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use herald_cli::{
    client::OperatorClient,
    context::Context,
    failure::{Failure, printable},
    output::{Show, bytes, count},
};
use herald_proto::v1::{GetDeadLetterRequest, GetDeadLetterResponse, ListUndeliveredRecipientsRequest};
use serde::Serialize;

use super::{
    dead_letter::DeadLetter,
    operations::{Operation, table},
};

/// Undelivered recipients in text output without --undelivered.
const UNDELIVERED_SHOWN: usize = 20;

const EXAMPLES: &str = "\
Examples:
  herald dlq show 17

  All undelivered recipients:
    herald dlq show 17 --undelivered

  The payload of the message, as JSON or as bytes:
    herald dlq show 17 --output json | jq .payload_json
    herald dlq show 17 --output json | jq -r .payload_base64 | base64 -d";

/// Show one dead letter: reason, payload, headers, undelivered recipients and operations
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Args {
    /// The id of the dead letter, as printed by `herald dlq list`
    #[arg(value_name = "DEAD_LETTER", value_parser = clap::value_parser!(u64).range(1..))]
    dead_letter_id: u64,

    /// List all undelivered recipients, not only the first 20 (100 in JSON)
    #[arg(long)]
    undelivered: bool,
}

#[derive(Debug, Serialize)]
struct DeadLetterDetails {
    dead_letter: DeadLetter,
    headers: Vec<Header>,
    payload_json: Option<serde_json::Value>,
    payload_base64: String,
    undelivered_user_ids: Vec<String>,
    /// Whether there are more undelivered recipients than listed.
    undelivered_more: bool,
    operations: Vec<Operation>,
    /// Whether the text output lists all of them.
    #[serde(skip)]
    all: bool,
}

#[derive(Debug, Serialize)]
struct Header {
    name: String,
    value: String,
}

impl Show for DeadLetterDetails {
    fn text(&self) -> String {
        let dead_letter = &self.dead_letter;
        let or_dash = |text: Option<&str>| text.map_or_else(|| "-".to_owned(), printable);
        let post = dead_letter.post_id.map_or_else(
            || "-".to_owned(),
            |post| format!("{post} of {}", or_dash(dead_letter.author_id.as_deref())),
        );
        let times = format!(
            "{} first, {} last",
            or_dash(dead_letter.first_failure_time.as_deref()),
            or_dash(dead_letter.last_failure_time.as_deref())
        );
        let mut text = format!(
            "dead letter {}: {}\n",
            dead_letter.dead_letter_id, dead_letter.state
        );
        for (name, value) in [
            ("reason", printable(&dead_letter.reason)),
            ("cause", dead_letter.cause.to_owned()),
            ("group", printable(&dead_letter.group_id)),
            (
                "consumer",
                format!(
                    "{} of {}",
                    printable(&dead_letter.consumer),
                    printable(&dead_letter.stream)
                ),
            ),
            (
                "message",
                format!("{} on {}", dead_letter.sequence, printable(&dead_letter.subject)),
            ),
            ("type", or_dash(Some(&dead_letter.message_type))),
            ("attempts", count(dead_letter.attempt_count)),
            ("published", or_dash(dead_letter.publish_time.as_deref())),
            ("failed", times),
            ("redrives", dead_letter.redrive_count.to_string()),
            ("post", post),
            ("channel", or_dash(dead_letter.channel)),
            ("expires", or_dash(dead_letter.push_expire_time.as_deref())),
            ("lane", or_dash(dead_letter.lane)),
            ("trace", or_dash(dead_letter.trace_id.as_deref())),
            (
                "payload",
                format!(
                    "{}, {}",
                    dead_letter.payload,
                    bytes(dead_letter.payload_byte_count)
                ),
            ),
            (
                "undelivered",
                format!(
                    "{} of {} recipients",
                    count(u64::from(dead_letter.undelivered_count)),
                    count(u64::from(dead_letter.recipient_count))
                ),
            ),
        ] {
            let _ = write!(text, "\n  {name:<11} {value}");
        }
        if !self.undelivered_user_ids.is_empty() {
            let shown = if self.all {
                self.undelivered_user_ids.len()
            } else {
                UNDELIVERED_SHOWN
            };
            let users: Vec<_> = self
                .undelivered_user_ids
                .iter()
                .take(shown)
                .map(|user| printable(user))
                .collect();
            let unlisted = u64::from(dead_letter.undelivered_count).saturating_sub(users.len() as u64);
            let more = if unlisted > 0 {
                format!(", and {} more (list them with --undelivered)", count(unlisted))
            } else {
                String::new()
            };
            let _ = write!(text, "\n\nundelivered: {}{more}", users.join(", "));
        }
        if let Some(json) = &self.payload_json {
            let _ = write!(text, "\n\npayload: {}", printable(&json.to_string()));
        }
        for header in &self.headers {
            let _ = write!(
                text,
                "\n{}header: {}: {}",
                if header.name == self.headers[0].name {
                    "\n"
                } else {
                    ""
                },
                printable(&header.name),
                printable(&header.value)
            );
        }
        if !self.operations.is_empty() {
            let _ = write!(text, "\n\n{}", table(&self.operations));
        }
        text
    }
}

pub(super) async fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let client = context.operator_client().await?;
    let request = client.request(GetDeadLetterRequest {
        dead_letter_id: args.dead_letter_id,
    });
    let GetDeadLetterResponse {
        dead_letter,
        payload,
        payload_json,
        headers,
        mut undelivered_user_ids,
        mut next_undelivered_page_token,
        operations,
    } = client.dead_letters().get_dead_letter(request).await?.into_inner();
    let dead_letter =
        dead_letter.ok_or_else(|| Failure::failed("the server's response has no dead letter"))?;
    while args.undelivered && !next_undelivered_page_token.is_empty() {
        let (users, next) =
            list_undelivered_recipients(&client, args.dead_letter_id, next_undelivered_page_token).await?;
        undelivered_user_ids.extend(users);
        next_undelivered_page_token = next;
    }
    context.output.show(&DeadLetterDetails {
        dead_letter: dead_letter.into(),
        headers: headers
            .into_iter()
            .map(|header| Header {
                name: header.name,
                value: header.value,
            })
            .collect(),
        payload_json: serde_json::from_str(&payload_json).ok(),
        payload_base64: BASE64_STANDARD.encode(payload),
        undelivered_user_ids,
        undelivered_more: !next_undelivered_page_token.is_empty(),
        operations: operations.into_iter().map(Operation::from).collect(),
        all: args.undelivered,
    })
}

/// Reads the next page of undelivered recipients and its page token.
async fn list_undelivered_recipients(
    client: &OperatorClient,
    dead_letter_id: u64,
    page_token: String,
) -> Result<(Vec<String>, String), Failure> {
    let request = client.request(ListUndeliveredRecipientsRequest {
        dead_letter_id,
        page_size: 1_000,
        page_token,
    });
    let page = client
        .dead_letters()
        .list_undelivered_recipients(request)
        .await?
        .into_inner();
    let users = page
        .recipients
        .into_iter()
        .map(|recipient| recipient.user_id)
        .collect();
    Ok((users, page.next_page_token))
}
