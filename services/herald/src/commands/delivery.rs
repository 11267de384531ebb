//! `herald delivery`

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use herald_cli::{
    client::Client,
    context::Context,
    failure::{Failure, Kind, printable},
    output::{Show, Size, Table, as_map, channel_name, count, state_name, suppressed_reason_name},
    time::{self, ago, rfc3339},
};
use herald_proto::v1::{
    Channel, ChannelDelivery, DeliveryState, GetDeliveryRequest, GetDeliveryResponse, ListRecipientsRequest,
};
use serde::Serialize;

use super::paging::{Paging, with_next_page};
use crate::backoff::Backoff;

const EXAMPLES: &str = "\
Examples:
  herald delivery 17

  Wait until no delivery is pending, in a script:
    herald delivery 17 --wait --timeout 30s --output json | jq .channels.timeline.delivered_count

  Recipients whose push is pending, and all recipients whose push is dead:
    herald delivery 17 --recipients push --state pending
    herald delivery 17 --recipients push --state dead --all";

/// Show the state of a post's deliveries
///
/// Counts deliveries by channel and state. At all times, for each channel:
/// targeted = delivered + suppressed + expired + pending + dead.
///
/// `suppressed`: not made on purpose (push: no device, pushes off, author muted, post deleted; timeline: a user who has
/// not read it for long, or follows too many authors). `expired`: not sent within the push TTL. `dead`: refused for
/// good, or the attempts are used up; see `herald dlq`. `last`: when the last delivery was made.
#[derive(Debug, clap::Args)]
#[command(
    after_long_help = EXAMPLES,
    mut_arg("page_size", |arg| arg.requires("recipients")),
    mut_arg("page_token", |arg| arg.requires("recipients"))
)]
pub(crate) struct Args {
    /// The id of the post
    #[arg(value_name = "POST")]
    post_id: u64,

    /// Wait until all deliveries are planned and none is pending
    #[arg(long, conflicts_with = "recipients")]
    wait: bool,

    /// The limit of --wait; after it the current counts are printed and the exit code is 5
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = time::duration, requires = "wait")]
    timeout: Duration,

    /// List the recipients on this channel instead of counts
    #[arg(
        long,
        value_name = "CHANNEL",
        value_parser = PossibleValuesParser::new(["timeline", "push"]).map(|name| channel(&name))
    )]
    recipients: Option<Channel>,

    /// Only recipients whose delivery is in this state [default: all states]
    #[arg(
        long,
        value_name = "STATE",
        requires = "recipients",
        value_parser = PossibleValuesParser::new(["pending", "delivered", "suppressed", "expired", "dead"])
            .map(|name| state(&name))
    )]
    state: Option<DeliveryState>,

    #[command(flatten)]
    paging: Paging<100, 1_000>,

    /// Print all pages; with --output json one object per page
    #[arg(long, requires = "recipients")]
    all: bool,
}

fn channel(name: &str) -> Channel {
    if name == "push" {
        Channel::Push
    } else {
        Channel::Timeline
    }
}

fn state(name: &str) -> DeliveryState {
    let states = (1..).map_while(|number| DeliveryState::try_from(number).ok());
    states
        .into_iter()
        .find(|state| state_name((*state).into()) == name)
        .unwrap_or(DeliveryState::Unspecified)
}

#[derive(Debug, Serialize)]
struct PostDelivery {
    post_id: u64,
    planned: bool,
    #[serde(serialize_with = "as_map")]
    channels: Vec<(&'static str, ChannelStates)>,
}

/// The deliveries of one channel by state.
#[derive(Debug, Serialize)]
struct ChannelStates {
    #[serde(flatten)]
    counts: ApiNames,
    #[serde(flatten)]
    short: ShortNames,
    /// Suppressed deliveries by reason.
    #[serde(serialize_with = "as_map")]
    suppressed_counts: Vec<(&'static str, u64)>,
    first_delivered_time: Option<String>,
    last_delivered_time: Option<String>,
    #[serde(skip)]
    last_delivered: Option<prost_types::Timestamp>,
}

/// The counts with their names in the API.
#[expect(clippy::struct_field_names, reason = "the names are those of the API")]
#[derive(Debug, Serialize)]
struct ApiNames {
    targeted_count: u64,
    delivered_count: u64,
    suppressed_count: u64,
    expired_count: u64,
    pending_count: u64,
    dead_count: u64,
}

/// The counts with the names of their states, which scripts for earlier versions read.
#[derive(Debug, Serialize)]
struct ShortNames {
    targeted: u64,
    delivered: u64,
    suppressed: u64,
    expired: u64,
    pending: u64,
    dead: u64,
}

impl From<ChannelDelivery> for ChannelStates {
    fn from(delivery: ChannelDelivery) -> Self {
        let reasons = delivery.suppressed_counts.iter();
        Self {
            suppressed_counts: reasons
                .filter_map(|one| Some((suppressed_reason_name(one.reason())?, one.count)))
                .collect(),
            counts: ApiNames {
                targeted_count: delivery.targeted_count,
                delivered_count: delivery.delivered_count,
                suppressed_count: delivery.suppressed_count,
                expired_count: delivery.expired_count,
                pending_count: delivery.pending_count,
                dead_count: delivery.dead_count,
            },
            short: ShortNames {
                targeted: delivery.targeted_count,
                delivered: delivery.delivered_count,
                suppressed: delivery.suppressed_count,
                expired: delivery.expired_count,
                pending: delivery.pending_count,
                dead: delivery.dead_count,
            },
            first_delivered_time: rfc3339(delivery.first_delivered_time.as_ref()),
            last_delivered_time: rfc3339(delivery.last_delivered_time.as_ref()),
            last_delivered: delivery.last_delivered_time,
        }
    }
}

impl From<GetDeliveryResponse> for PostDelivery {
    fn from(response: GetDeliveryResponse) -> Self {
        let convert =
            |delivery: ChannelDelivery| (channel_name(delivery.channel), ChannelStates::from(delivery));
        Self {
            post_id: response.post_id,
            planned: response.planned,
            channels: response.channels.into_iter().map(convert).collect(),
        }
    }
}

impl PostDelivery {
    fn is_settled(&self) -> bool {
        self.planned && self.channels.iter().all(|(_, states)| states.short.pending == 0)
    }

    fn pending(&self) -> u64 {
        self.channels.iter().map(|(_, states)| states.short.pending).sum()
    }
}

impl Show for PostDelivery {
    fn text(&self) -> String {
        let mut table = Table::new(&[
            "channel",
            ">targeted",
            ">delivered",
            ">suppressed",
            ">expired",
            ">pending",
            ">dead",
            "last",
        ]);
        for (channel, states) in &self.channels {
            let ShortNames {
                targeted,
                delivered,
                suppressed,
                expired,
                pending,
                dead,
            } = &states.short;
            let figures =
                [targeted, delivered, suppressed, expired, pending, dead].map(|figure| count(*figure));
            let mut row = vec![(*channel).to_owned()];
            row.extend(figures);
            row.push(ago(states.last_delivered.as_ref()));
            table.row(row);
        }
        let left_out = table.fit(Size::of_stdout().width, &["last", "expired", "suppressed"]);
        let mut text = table.render();
        if !left_out.is_empty() {
            let _ = write!(text, "\n\nnot shown for lack of width: {}", left_out.join(", "));
        }
        for (channel, states) in &self.channels {
            let reasons = states.suppressed_counts.iter();
            let reasons: Vec<_> = reasons
                .map(|(reason, number)| format!("{}: {}", reason.replace('_', " "), count(*number)))
                .collect();
            if !reasons.is_empty() {
                let _ = write!(text, "\n\nsuppressed ({channel}): {}", reasons.join(", "));
            }
        }
        if !self.planned {
            text += "\n\nfan-out is still planning deliveries: `targeted` will increase";
        }
        text
    }
}

#[derive(Debug, Serialize)]
struct Recipients {
    recipients: Vec<Recipient>,
    next_page_token: String,
}

#[derive(Debug, Serialize)]
struct Recipient {
    user_id: String,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    suppressed_reason: Option<&'static str>,
}

impl Show for Recipients {
    fn text(&self) -> String {
        if self.recipients.is_empty() {
            return "no recipients".into();
        }
        let mut table = Table::new(&["user", "state", "why"]);
        for recipient in &self.recipients {
            let why = recipient.suppressed_reason.unwrap_or_default();
            table.row([
                printable(&recipient.user_id),
                recipient.state.into(),
                why.replace('_', " "),
            ]);
        }
        with_next_page(table.render(), "the same command with", &self.next_page_token)
    }
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let client = context.client().await?;
    match args.recipients {
        Some(channel) => list(&args, channel, &client, context).await,
        None if args.wait => wait(&args, &client, context).await,
        None => context.output.show(&get(args.post_id, &client).await?),
    }
}

async fn get(post_id: u64, client: &Client) -> Result<PostDelivery, Failure> {
    let request = client.request(GetDeliveryRequest { post_id });
    Ok(client
        .deliveries()
        .get_delivery(request)
        .await?
        .into_inner()
        .into())
}

async fn wait(args: &Args, client: &Client, context: &Context) -> Result<(), Failure> {
    let end = Instant::now() + args.timeout;
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
    loop {
        let delivery = get(args.post_id, client).await?;
        let left = end.saturating_duration_since(Instant::now());
        if delivery.is_settled() {
            return context.output.show(&delivery);
        }
        if left.is_zero() {
            context.output.show(&delivery)?;
            let state = if delivery.planned {
                "pending"
            } else {
                "pending, and fan-out is still planning"
            };
            let waited = time::approximate(args.timeout);
            let message = format!(
                "after {waited}, {} deliveries are {state}",
                count(delivery.pending())
            );
            return Err(Failure::new(Kind::TimedOut, message)
                .hint("increase --timeout, or check the consumers with `herald lag`"));
        }
        tokio::time::sleep(backoff.next_delay(None).min(left)).await;
    }
}

async fn list(args: &Args, channel: Channel, client: &Client, context: &Context) -> Result<(), Failure> {
    let mut cursor = args.paging.begin(args.all);
    loop {
        let request = client.request(ListRecipientsRequest {
            post_id: args.post_id,
            channel: channel.into(),
            state: args.state.unwrap_or(DeliveryState::Unspecified).into(),
            page_size: cursor.size,
            page_token: cursor.token.clone(),
        });
        let page = client.deliveries().list_recipients(request).await?.into_inner();
        let next = page.next_page_token;
        let recipients = page.recipients.into_iter();
        let recipients = recipients.map(|one| Recipient {
            state: state_name(one.state),
            suppressed_reason: suppressed_reason_name(one.suppressed_reason()),
            user_id: one.user_id,
        });
        context.output.show(&Recipients {
            recipients: recipients.collect(),
            next_page_token: cursor.printed_token(&next, context),
        })?;
        if cursor.is_last(&next) {
            return Ok(());
        }
        cursor.advance(next)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parsed() {
        assert_eq!(state("dead"), DeliveryState::Dead);
        assert_eq!(state("pending"), DeliveryState::Pending);
        assert_eq!(channel("push"), Channel::Push);
        assert_eq!(channel("timeline"), Channel::Timeline);
    }

    #[test]
    fn counts_of_millions_fit_80_columns() {
        let counts = |channel: Channel| ChannelDelivery {
            channel: channel.into(),
            targeted_count: 10_000_000,
            delivered_count: 9_000_000,
            suppressed_count: 9_000_000,
            expired_count: 9_000_000,
            pending_count: 9_000_000,
            dead_count: 9_000_000,
            ..Default::default()
        };
        let delivery = PostDelivery::from(GetDeliveryResponse {
            post_id: 1,
            planned: false,
            channels: vec![counts(Channel::Timeline), counts(Channel::Push)],
        });
        let text = delivery.text();
        for line in text.lines() {
            assert!(console::measure_text_width(line) <= 80, "{line}");
        }
        assert!(text.contains("not shown for lack of width: last"), "{text}");
        assert!(text.contains("PENDING") && text.contains("DEAD"), "{text}");
    }

    #[test]
    fn a_delivery_is_settled_once_it_is_planned_and_nothing_is_pending() {
        let delivery = |planned, pending_count| {
            PostDelivery::from(GetDeliveryResponse {
                post_id: 1,
                planned,
                channels: vec![
                    ChannelDelivery {
                        channel: Channel::Timeline.into(),
                        ..Default::default()
                    },
                    ChannelDelivery {
                        channel: Channel::Push.into(),
                        pending_count,
                        ..Default::default()
                    },
                ],
            })
        };
        assert!(delivery(true, 0).is_settled());
        assert!(!delivery(true, 1).is_settled());
        assert!(!delivery(false, 0).is_settled());
    }
}
