//! The selection of dead letters: arguments shared by several commands.

use clap::ValueEnum;
use herald_cli::{
    failure::{Failure, printable},
    output::channel_name,
    time::{self, to_proto},
};
use herald_proto::v1::{self, DeadLetterCause, DeadLetterFilter, DeadLetterSelection};
use jiff::Timestamp;
use rustix::system::uname;
use tonic::Request;

use super::dead_letter::cause_name;

/// A filter; a dead letter passes if it matches all given fields.
#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Dead letter filters")]
pub(super) struct Filter {
    /// Only this group, an id printed by `herald dlq groups`
    #[arg(long, value_name = "GROUP", value_parser = group_id)]
    group: Option<String>,

    /// Only messages of this stream: POSTS, SLICES, TIMELINE, PUSH, EVENTS
    #[arg(long, value_name = "STREAM")]
    stream: Option<String>,

    /// Only messages of this consumer, a name printed by `herald lag`
    #[arg(long, value_name = "CONSUMER")]
    consumer: Option<String>,

    /// Only dead letters with this cause
    #[arg(long, value_name = "CAUSE", value_enum)]
    cause: Option<Cause>,

    /// Only dead letters whose reason contains this text, case-insensitive
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,

    /// Only posts of the author with this id
    #[arg(long, value_name = "USER")]
    author: Option<String>,

    /// Only the post with this id
    #[arg(long, value_name = "POST", value_parser = clap::value_parser!(u64).range(1..))]
    post: Option<u64>,

    /// Only this channel
    #[arg(long, value_name = "CHANNEL", value_enum)]
    channel: Option<ChannelName>,

    /// Only dead letters that last failed at this time or later: an age such as 24h, or an RFC 3339 time
    #[arg(long, value_name = "WHEN", value_parser = time::time_or_age)]
    since: Option<Timestamp>,

    /// Only dead letters that last failed before this time: an age such as 24h, or an RFC 3339 time
    #[arg(long, value_name = "WHEN", value_parser = time::time_or_age)]
    until: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Cause {
    /// The attempts are used up, and no worker gave a reason
    MaxDeliveries,
    /// A worker terminated the message with a reason
    Terminated,
    /// The message was removed before its acknowledgement, by a stream limit or by an operator
    Removed,
    /// The message can't be decoded
    Unreadable,
    /// An audit found the message
    Audit,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ChannelName {
    Timeline,
    Push,
}

impl Filter {
    pub(super) fn into_v1(self) -> DeadLetterFilter {
        let cause = self
            .cause
            .map_or(DeadLetterCause::Unspecified, |cause| match cause {
                Cause::MaxDeliveries => DeadLetterCause::MaxDeliveries,
                Cause::Terminated => DeadLetterCause::Terminated,
                Cause::Removed => DeadLetterCause::Removed,
                Cause::Unreadable => DeadLetterCause::Unreadable,
                Cause::Audit => DeadLetterCause::Audit,
            });
        let channel = self
            .channel
            .map_or(v1::Channel::Unspecified, |channel| match channel {
                ChannelName::Timeline => v1::Channel::Timeline,
                ChannelName::Push => v1::Channel::Push,
            });
        DeadLetterFilter {
            stream: self.stream.unwrap_or_default(),
            consumer: self.consumer.unwrap_or_default(),
            cause: cause.into(),
            reason: self.reason.unwrap_or_default(),
            group_id: self.group.unwrap_or_default(),
            author_id: self.author.unwrap_or_default(),
            post_id: self.post.unwrap_or_default(),
            channel: channel.into(),
            state: 0,
            start_time: self.since.map(to_proto),
            end_time: self.until.map(to_proto),
        }
    }
}

/// The dead letters of an operation: ids, a filter, or all open ones.
#[derive(Debug, Default, clap::Args)]
pub(super) struct Selection {
    /// Ids of open dead letters, as printed by `herald dlq list`
    #[arg(value_name = "DEAD_LETTER", value_parser = clap::value_parser!(u64).range(1..))]
    dead_letters: Vec<u64>,

    /// All open dead letters
    #[arg(long)]
    all: bool,

    #[command(flatten)]
    filter: Filter,
}

impl Selection {
    /// Converts the selection. Fails unless exactly one of ids, filter and --all is given.
    pub(super) fn into_v1(self) -> Result<DeadLetterSelection, Failure> {
        let filter = Some(self.filter.into_v1()).filter(|filter| *filter != DeadLetterFilter::default());
        let given = [!self.dead_letters.is_empty(), filter.is_some(), self.all];
        match given.iter().filter(|given| **given).count() {
            0 => Err(Failure::usage(
                "no dead letters selected: give their ids, a filter such as --group, or --all",
            )
            .hint("`herald dlq groups` lists the groups of open dead letters")),
            1 => Ok(DeadLetterSelection {
                dead_letter_ids: self.dead_letters,
                filter,
                all: self.all,
            }),
            _ => Err(Failure::usage(
                "ids, filters and --all can't be combined: give only one of them",
            )),
        }
    }
}

/// Clap value parser for the id of a group.
fn group_id(text: &str) -> Result<String, String> {
    if text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(text.into());
    }
    Err("a group id has 16 hexadecimal digits; `herald dlq groups` lists the groups".into())
}

/// Describes a selection in text.
pub(super) fn describe(selection: Option<&DeadLetterSelection>) -> String {
    let Some(selection) = selection else {
        return String::new();
    };
    if selection.all {
        return "all".into();
    }
    if let Some(filter) = &selection.filter {
        let cause = cause_name(filter.cause());
        let post = filter.post_id.to_string();
        let parts = [
            ("group", &filter.group_id[..], !filter.group_id.is_empty()),
            ("stream", &filter.stream, !filter.stream.is_empty()),
            ("consumer", &filter.consumer, !filter.consumer.is_empty()),
            ("cause", cause, filter.cause != 0),
            ("reason", &filter.reason, !filter.reason.is_empty()),
            ("author", &filter.author_id, !filter.author_id.is_empty()),
            ("post", &post, filter.post_id != 0),
            ("channel", channel_name(filter.channel), filter.channel != 0),
            ("since", "a time", filter.start_time.is_some()),
            ("until", "a time", filter.end_time.is_some()),
        ];
        let given = parts.iter().filter(|(_, _, given)| *given);
        let given = given.map(|(name, value, _)| format!("{name} {}", printable(value)));
        return given.collect::<Vec<_>>().join(", ");
    }
    let ids = selection.dead_letter_ids.iter().take(5).map(ToString::to_string);
    let more = if selection.dead_letter_ids.len() > 5 {
        ", …"
    } else {
        ""
    };
    format!("dead letters {}{more}", ids.collect::<Vec<_>>().join(", "))
}

/// Adds the actor of the operation to the metadata of a call: `user@host`.
pub(crate) fn with_actor<T>(mut request: Request<T>) -> Request<T> {
    let user = ["USER", "LOGNAME"]
        .iter()
        .find_map(|name| std::env::var(name).ok())
        .filter(|user| !user.is_empty())
        .unwrap_or_else(|| "unknown".into());
    let actor = format!("{user}@{}", uname().nodename().to_string_lossy());
    // An actor that isn't valid in a header is omitted; the audit log then has the actor `unknown`.
    if let Ok(actor) = actor.parse() {
        request.metadata_mut().insert("herald-actor", actor);
    }
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selection_is_exactly_one_of_ids_filter_and_all() {
        let given = |dead_letters: &[u64], all, stream: Option<&str>| {
            Selection {
                dead_letters: dead_letters.to_vec(),
                all,
                filter: Filter {
                    stream: stream.map(Into::into),
                    ..Filter::default()
                },
            }
            .into_v1()
        };
        assert_eq!(
            describe(given(&[1, 2], false, None).ok().as_ref()),
            "dead letters 1, 2"
        );
        assert_eq!(describe(given(&[], true, None).ok().as_ref()), "all");
        assert_eq!(
            describe(given(&[], false, Some("PUSH")).ok().as_ref()),
            "stream PUSH"
        );
        for (dead_letters, all, stream) in [
            (&[][..], false, None),
            (&[1], true, None),
            (&[], true, Some("PUSH")),
        ] {
            assert!(given(dead_letters, all, stream).is_err());
        }
    }
}
