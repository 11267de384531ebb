//! `herald why`

use herald_cli::{
    context::Context,
    failure::{Failure, printable},
    output::{Show, as_map, channel_name, counted, shell_quoted, state_name, suppressed_reason_name},
    time::rfc3339,
};
use herald_proto::v1::{
    Channel, DeadLetterFilter, DeliveryState, DeviceFailure, ExplainDeliveryRequest, ExplainDeliveryResponse,
    GetDeadLetterRequest, ListDeadLettersRequest, ListUndeliveredRecipientsRequest, Recipient,
};
use serde::Serialize;

/// Maximum number of the post's dead letters in which the user is looked for.
const DEAD_LETTERS_MAX: i32 = 20;

const EXAMPLES: &str = "\
Examples:
  herald why 17 1
  herald why 17 1 --output json | jq -r .channels.push.suppressed_reason";

/// Say what happened to a post's deliveries to one user, and why
///
/// Answers for the timeline and for the push: delivered, suppressed (for which reason), pending (which devices wait,
/// after which failures, until when), expired, dead (which dead letter), or not a recipient.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Args {
    /// The id of the post
    #[arg(value_name = "POST")]
    post_id: u64,

    /// The id of the user
    #[arg(value_name = "USER")]
    user_id: String,
}

#[derive(Debug, Serialize)]
struct Explanation {
    post_id: u64,
    user_id: String,
    planned: bool,
    author_id: String,
    push_expire_time: Option<String>,
    #[serde(serialize_with = "as_map")]
    channels: Vec<(&'static str, Delivery)>,
}

/// The delivery on one channel.
#[derive(Debug, Serialize)]
struct Delivery {
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    suppressed_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    accepted_device_ids: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    waiting_devices: Vec<Waiting>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    failures: Vec<Failed>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dead_letter_id: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Waiting {
    #[serde(flatten)]
    failure: Failed,
    attempt_count: u32,
    next_attempt_time: Option<String>,
}

#[derive(Debug, Serialize)]
struct Failed {
    device_id: String,
    host: String,
    reason: String,
}

impl From<DeviceFailure> for Failed {
    fn from(failure: DeviceFailure) -> Self {
        Self {
            device_id: failure.device_id,
            host: failure.host,
            reason: failure.reason,
        }
    }
}

impl Failed {
    fn text(&self) -> String {
        let reason = printable(&self.reason);
        let at = match self.host.as_str() {
            "" => String::new(),
            host => format!(" at {}", printable(host)),
        };
        match self.device_id.as_str() {
            "" => format!("the devices could not be read: {reason}"),
            device => format!("device {}{at}: {reason}", printable(device)),
        }
    }
}

impl From<Recipient> for Delivery {
    fn from(recipient: Recipient) -> Self {
        let suppressed_reason = suppressed_reason_name(recipient.suppressed_reason());
        Self {
            state: state_name(recipient.state),
            suppressed_reason,
            accepted_device_ids: recipient.accepted_device_ids,
            waiting_devices: recipient
                .waiting_devices
                .into_iter()
                .map(|waiting| Waiting {
                    failure: waiting.failure.unwrap_or_default().into(),
                    attempt_count: waiting.attempt_count,
                    next_attempt_time: rfc3339(waiting.next_attempt_time.as_ref()),
                })
                .collect(),
            failures: recipient.failures.into_iter().map(Failed::from).collect(),
            dead_letter_id: None,
        }
    }
}

impl Explanation {
    /// Why the user is not a recipient on a channel.
    fn not_a_recipient(&self, channel: &str) -> String {
        let (user, author) = (printable(&self.user_id), self.author());
        if !self.planned {
            format!(
                "not planned yet: fan-out has not planned all deliveries of the post, or {user} is not a recipient"
            )
        } else if channel == channel_name(Channel::Timeline.into()) {
            format!(
                "not a recipient: {user} did not follow {author} when the post was accepted (a later follow puts an \
                 author's newest posts on the timeline without a delivery)"
            )
        } else if self.channels.is_empty() {
            format!("not a recipient: {user} did not follow {author} when the post was accepted")
        } else {
            format!("not a recipient: {user} had no notifications on for {author} when the post was accepted")
        }
    }

    fn author(&self) -> String {
        match self.author_id.as_str() {
            "" => "the author".into(),
            author => printable(author),
        }
    }

    /// What happened to a delivery, and why.
    fn sentence(&self, channel: &str, delivery: &Delivery) -> String {
        let (user, author) = (printable(&self.user_id), self.author());
        let expiry = match &self.push_expire_time {
            Some(time) => format!(" until the push expires at {time}"),
            None => " until the push expires".into(),
        };
        let is_push = channel == channel_name(Channel::Push.into());
        match delivery.state {
            "delivered" if is_push => "delivered: a provider accepted the push".into(),
            "delivered" => "delivered".into(),
            "suppressed" => {
                let because = match delivery.suppressed_reason {
                    Some("no_device") => format!("{user} has no device"),
                    Some("muted") => format!("{user} has muted {author}"),
                    Some("push_off") => format!("{user} has switched pushes off"),
                    Some("post_deleted") => "the post was deleted".into(),
                    Some("device_gone") => format!("each device of {user} is gone: its provider said so"),
                    Some("device_disabled") => {
                        let quoted = shell_quoted(&self.user_id);
                        format!("each device of {user} is disabled; see `herald device list {quoted}`")
                    }
                    Some("unknown_user") => "the user has no user id".into(),
                    Some("inactive") => format!(
                        "{user} has not read the timeline for a long time; it is rebuilt when {user} reads it again"
                    ),
                    Some("drowning") => {
                        format!(
                            "{user} follows so many authors that the timeline gets only a part of their posts"
                        )
                    }
                    _ => "the reason was not recorded".into(),
                };
                format!("suppressed because {because}")
            }
            "pending" if !delivery.waiting_devices.is_empty() => {
                let waiting = delivery.waiting_devices.len() as u64;
                format!(
                    "pending because {} for the next attempt; attempts continue{expiry}",
                    counted(waiting, "device waits", "devices wait")
                )
            }
            "pending" => "pending because it was not tried yet; see `herald lag`".into(),
            "expired" => "expired because no provider accepted the push before its time to live ended".into(),
            "dead" => match delivery.dead_letter_id {
                Some(id) => format!("dead: dead letter {id}; see `herald dlq show {id}`"),
                None => format!("dead; see `herald dlq list --post {}`", self.post_id),
            },
            state => state.to_owned(),
        }
    }
}

impl Show for Explanation {
    fn text(&self) -> String {
        let mut lines = Vec::new();
        for channel in [Channel::Timeline, Channel::Push].map(|channel| channel_name(channel.into())) {
            let found = self.channels.iter().find(|(name, _)| *name == channel);
            let Some((_, delivery)) = found else {
                lines.push(format!("{channel}: {}", self.not_a_recipient(channel)));
                continue;
            };
            lines.push(format!("{channel}: {}", self.sentence(channel, delivery)));
            for device in &delivery.accepted_device_ids {
                lines.push(format!(
                    "  device {}: its provider accepted the push",
                    printable(device)
                ));
            }
            for waiting in &delivery.waiting_devices {
                let attempts = counted(waiting.attempt_count.into(), "failed attempt", "failed attempts");
                let next = waiting.next_attempt_time.as_deref().unwrap_or("an unknown time");
                lines.push(format!(
                    "  {}; {attempts}, next at {next}",
                    waiting.failure.text()
                ));
            }
            lines.extend(
                delivery
                    .failures
                    .iter()
                    .map(|failed| format!("  {}", failed.text())),
            );
        }
        lines.join("\n")
    }
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let client = context.client().await?;
    let request = client.request(ExplainDeliveryRequest {
        post_id: args.post_id,
        user_id: args.user_id,
    });
    let response = client.deliveries().explain_delivery(request).await?.into_inner();
    let explanation = explain(response, context).await;
    context.output.show(&explanation)
}

async fn explain(response: ExplainDeliveryResponse, context: &Context) -> Explanation {
    let mut channels = Vec::new();
    for one in response.channels {
        let recipient = one.recipient.unwrap_or_default();
        let is_dead = recipient.state() == DeliveryState::Dead;
        let mut delivery = Delivery::from(recipient);
        if is_dead {
            let found = find_dead_letter(context, response.post_id, one.channel, &response.user_id);
            match found.await {
                Ok(found) => delivery.dead_letter_id = found,
                // Who may ask why may not be an operator.
                Err(failure) => context.output.note(&format!(
                    "the dead letter is not named, because the operator port did not answer: {}",
                    printable(failure.message())
                )),
            }
        }
        channels.push((channel_name(one.channel), delivery));
    }
    Explanation {
        post_id: response.post_id,
        user_id: response.user_id,
        planned: response.planned,
        author_id: response.author_id,
        push_expire_time: rfc3339(response.push_expire_time.as_ref()),
        channels,
    }
}

/// The id of the post's dead letter that covers a user, among its newest ones.
async fn find_dead_letter(
    context: &Context,
    post_id: u64,
    channel: i32,
    user_id: &str,
) -> Result<Option<u64>, Failure> {
    let client = context.operator_client().await?;
    let request = client.request(ListDeadLettersRequest {
        filter: Some(DeadLetterFilter {
            post_id,
            channel,
            ..DeadLetterFilter::default()
        }),
        page_size: DEAD_LETTERS_MAX,
        ..ListDeadLettersRequest::default()
    });
    let page = client
        .dead_letters()
        .list_dead_letters(request)
        .await?
        .into_inner();
    for dead_letter in page.dead_letters {
        let dead_letter_id = dead_letter.dead_letter_id;
        let request = client.request(GetDeadLetterRequest { dead_letter_id });
        let found = client.dead_letters().get_dead_letter(request).await?.into_inner();
        if found.undelivered_user_ids.iter().any(|user| user == user_id) {
            return Ok(Some(dead_letter_id));
        }
        let mut page_token = found.next_undelivered_page_token;
        while !page_token.is_empty() {
            let request = client.request(ListUndeliveredRecipientsRequest {
                dead_letter_id,
                page_size: 1_000,
                page_token,
            });
            let page = client.dead_letters().list_undelivered_recipients(request).await?;
            let page = page.into_inner();
            if page
                .recipients
                .iter()
                .any(|recipient| recipient.user_id == user_id)
            {
                return Ok(Some(dead_letter_id));
            }
            page_token = page.next_page_token;
        }
    }
    Ok(None)
}
