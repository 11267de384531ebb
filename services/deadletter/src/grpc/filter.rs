//! Filters, as callers say them.

use herald_model::{PostId, UserId, time::Timestamp};
use herald_proto::v1;
use herald_rpc::{fields::Violations, status};
use herald_store::{DeadLetterFilter, DeadLetterId};
use tonic::Status;

use super::Api;
use crate::wire;

/// The longest part of a reason that can be looked for, bytes.
const REASON_BYTES_MAX: usize = 512;
/// The longest name of a stream or consumer, bytes.
const NAME_BYTES_MAX: usize = 128;
/// Dead letters that can be named at a time.
pub(super) const IDS_MAX: usize = 10_000;

/// Which dead letters to act on.
pub(super) enum Selection {
    /// These.
    Ids(Vec<DeadLetterId>),
    /// The open ones of these; `None`: there are none, as nobody has ever heard of the author.
    Filter(Option<DeadLetterFilter>),
}

impl Api {
    /// Reads a filter; `None` when nothing can pass it, as nobody has ever heard of the author.
    pub(super) async fn filter(
        &self,
        field: &str,
        filter: v1::DeadLetterFilter,
    ) -> Result<Option<DeadLetterFilter>, Status> {
        let mut violations = Violations::new();
        let name = |part: &str| format!("{field}.{part}");
        for (part, value, max) in [
            ("stream", &filter.stream, NAME_BYTES_MAX),
            ("consumer", &filter.consumer, NAME_BYTES_MAX),
            ("reason", &filter.reason, REASON_BYTES_MAX),
        ] {
            violations.check(
                name(part),
                value.len() <= max,
                format!("must be at most {max} bytes long"),
            );
        }
        let cause = violations.take(name("cause"), {
            v1::DeadLetterCause::try_from(filter.cause).map_err(|_| "is no cause")
        });
        let state = violations.take(name("state"), {
            v1::DeadLetterState::try_from(filter.state).map_err(|_| "is no state of a dead letter")
        });
        let channel = violations.take(name("channel"), {
            v1::Channel::try_from(filter.channel).map_err(|_| "is no channel")
        });
        let group = match filter.group_id.as_str() {
            "" => None,
            id => violations.take(
                name("group_id"),
                wire::group_from(id).ok_or("must be 16 hexadecimal digits, as groups tell it"),
            ),
        };
        let author = match filter.author_id.as_str() {
            "" => None,
            id => violations.take(name("author_id"), UserId::new(id).map_err(|e| e.to_string())),
        };
        let mut moment = |part: &str, at: Option<prost_types::Timestamp>| -> Option<Timestamp> {
            at.and_then(|at| {
                violations.take(
                    name(part),
                    herald_proto::timestamp_from_proto(&at)
                        .ok_or("is no time that can be told in microseconds"),
                )
            })
        };
        let since = moment("start_time", filter.start_time);
        let until = moment("end_time", filter.end_time);
        violations.into_result()?;

        let author = match author {
            None => None,
            Some(id) => {
                let keys = self.users.find(&[id]).await;
                match keys.map_err(|e| status::from_store(&e))?.into_iter().next() {
                    Some(Some(key)) => Some(key),
                    _ => return Ok(None),
                }
            }
        };
        let word = |text: String| (!text.is_empty()).then_some(text);
        Ok(Some(DeadLetterFilter {
            stream: word(filter.stream),
            consumer: word(filter.consumer),
            cause: cause.and_then(wire::cause_from),
            reason: word(filter.reason.to_lowercase()),
            group,
            author,
            post: (filter.post_id != 0).then_some(PostId(filter.post_id)),
            channel: channel.and_then(wire::channel_from),
            state: state.and_then(wire::state_from),
            since,
            until,
        }))
    }

    /// Reads a selection.
    pub(super) async fn selection(&self, selection: v1::DeadLetterSelection) -> Result<Selection, Status> {
        let refuse = |field: &str, why: &str| Err(status::invalid(&[(field, why)]));
        let v1::DeadLetterSelection {
            dead_letter_ids,
            filter,
            all,
        } = selection;
        let filter = filter.filter(|filter| *filter != v1::DeadLetterFilter::default());
        let given = [!dead_letter_ids.is_empty(), filter.is_some(), all];
        match given.iter().filter(|given| **given).count() {
            0 => {
                return refuse(
                    "selection",
                    "must name dead letters, or have a filter that says something, or say all",
                );
            }
            1 => {}
            _ => {
                return refuse(
                    "selection",
                    "must have only one of dead_letter_ids, filter and all",
                );
            }
        }
        if !dead_letter_ids.is_empty() {
            if dead_letter_ids.len() > IDS_MAX {
                return refuse(
                    "selection.dead_letter_ids",
                    &format!("must be at most {IDS_MAX}: use a filter"),
                );
            }
            if dead_letter_ids.contains(&0) {
                return refuse("selection.dead_letter_ids", "must not contain 0");
            }
            let mut ids: Vec<_> = dead_letter_ids.into_iter().map(DeadLetterId).collect();
            ids.sort_unstable();
            ids.dedup();
            return Ok(Selection::Ids(ids));
        }
        let filter = filter.unwrap_or_default();
        let open = v1::DeadLetterState::Open;
        if filter.state != 0 && filter.state != i32::from(open) {
            return refuse("selection.filter.state", "must be open, or not said");
        }
        let filter = v1::DeadLetterFilter {
            state: open.into(),
            ..filter
        };
        self.filter("selection.filter", filter)
            .await
            .map(Selection::Filter)
    }
}
