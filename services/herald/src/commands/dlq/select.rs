//! Which dead letters: arguments that several of the commands take.

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

/// A filter; all that is given must hold.
#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Which dead letters")]
pub(super) struct Filter {
    /// Of this group, as `herald dlq groups` tells it
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,

    /// From this stream: POSTS, SLICES, TIMELINE, PUSH, EVENTS
    #[arg(long, value_name = "STREAM")]
    stream: Option<String>,

    /// Given up by this consumer, as `herald lag` names them
    #[arg(long, value_name = "CONSUMER")]
    consumer: Option<String>,

    /// Given up for this cause
    #[arg(long, value_name = "CAUSE", value_enum)]
    cause: Option<Cause>,

    /// With these words in the reason, whatever their case
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,

    /// About a post of this author
    #[arg(long, value_name = "USER")]
    author: Option<String>,

    /// About this post
    #[arg(long, value_name = "POST", value_parser = clap::value_parser!(u64).range(1..))]
    post: Option<u64>,

    /// On this channel
    #[arg(long, value_name = "CHANNEL", value_enum)]
    channel: Option<ChannelName>,

    /// Last given up at this moment or later: a duration back from now, or a time (RFC 3339)
    #[arg(long, value_name = "WHEN", value_parser = time::moment)]
    since: Option<Timestamp>,

    /// Last given up before this moment: likewise
    #[arg(long, value_name = "WHEN", value_parser = time::moment)]
    until: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Cause {
    /// Attempts used up, and no worker said why
    MaxDeliveries,
    /// A worker gave it up with a reason
    Terminated,
    /// Removed before it was acknowledged, by a limit of its stream or by somebody
    Removed,
    /// Nobody can read it
    Unreadable,
    /// Found by an audit
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

/// What to act on: dead letters, a filter, or all.
#[derive(Debug, Default, clap::Args)]
pub(super) struct Selection {
    /// These dead letters, as `herald dlq list` names them; each must be open
    #[arg(value_name = "DEAD_LETTER", value_parser = clap::value_parser!(u64).range(1..))]
    dead_letters: Vec<u64>,

    /// All that are open
    #[arg(long)]
    all: bool,

    #[command(flatten)]
    filter: Filter,
}

impl Selection {
    /// Says no to nothing, and to more than one way of saying which.
    pub(super) fn into_v1(self) -> Result<DeadLetterSelection, Failure> {
        let filter = Some(self.filter.into_v1()).filter(|filter| *filter != DeadLetterFilter::default());
        let given = [!self.dead_letters.is_empty(), filter.is_some(), self.all];
        match given.iter().filter(|given| **given).count() {
            0 => Err(Failure::usage(
                "which dead letters? give their ids, a filter such as --group, or --all",
            )
            .hint("`herald dlq groups` shows what there is")),
            1 => Ok(DeadLetterSelection {
                dead_letter_ids: self.dead_letters,
                filter,
                all: self.all,
            }),
            _ => Err(Failure::usage(
                "give either dead letters, or filters, or --all: not more than one of them",
            )),
        }
    }
}

/// What a selection says, for people.
pub(super) fn words(selection: Option<&DeadLetterSelection>) -> String {
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

/// Signs a call with who makes it: `user@host`.
pub(super) fn signed<T>(mut request: Request<T>) -> Request<T> {
    let user = ["USER", "LOGNAME"]
        .iter()
        .find_map(|name| std::env::var(name).ok())
        .filter(|user| !user.is_empty())
        .unwrap_or_else(|| "somebody".into());
    let actor = format!("{user}@{}", uname().nodename().to_string_lossy());
    // A name that can't stand in a header isn't sent; the audit log then says so.
    if let Ok(actor) = actor.parse() {
        request.metadata_mut().insert("herald-actor", actor);
    }
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selection_says_one_thing() {
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
            words(given(&[1, 2], false, None).ok().as_ref()),
            "dead_letters 1, 2"
        );
        assert_eq!(words(given(&[], true, None).ok().as_ref()), "all");
        assert_eq!(
            words(given(&[], false, Some("PUSH")).ok().as_ref()),
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
