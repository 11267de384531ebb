//! Parses filters and selections of requests.

use herald_model::{PostId, UserId, time::Timestamp};
use herald_proto::v1;
use herald_rpc::{fields::Violations, status};
use herald_store::{DeadLetterFilter, DeadLetterId};
use tonic::Status;

use super::Api;
use crate::convert;

/// Longest search text for reasons, bytes.
const REASON_BYTES_MAX: usize = 512;
/// Longest name of a stream or consumer, bytes.
const NAME_BYTES_MAX: usize = 128;
/// Dead letters in a selection by id.
pub(super) const IDS_MAX: usize = 10_000;

/// The dead letters of an operation.
pub(super) enum Selection {
    /// The dead letters with these ids, sorted and unique.
    Ids(Vec<DeadLetterId>),
    /// The open dead letters that match; `None` if nothing can match because the author is unknown.
    Filter(Option<DeadLetterFilter>),
}

impl Api {
    /// Parses a filter; `None` if nothing can match because the author is unknown. `field` is the filter's path in
    /// errors.
    pub(super) async fn parse_filter(
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
            v1::DeadLetterCause::try_from(filter.cause).map_err(|_| "is not a cause of a dead letter")
        });
        let state = violations.take(name("state"), {
            v1::DeadLetterState::try_from(filter.state).map_err(|_| "is not a state of a dead letter")
        });
        let channel = violations.take(name("channel"), {
            v1::Channel::try_from(filter.channel).map_err(|_| "is not a channel")
        });
        let group = match filter.group_id.as_str() {
            "" => None,
            id => violations.take(
                name("group_id"),
                convert::parse_group_id(id).ok_or("must be 16 hexadecimal digits"),
            ),
        };
        let author = match filter.author_id.as_str() {
            "" => None,
            id => violations.take(name("author_id"), UserId::new(id).map_err(|e| e.to_string())),
        };
        let mut timestamp = |part: &str, at: Option<prost_types::Timestamp>| -> Option<Timestamp> {
            at.and_then(|at| {
                violations.take(
                    name(part),
                    herald_proto::timestamp_from_proto(&at)
                        .ok_or("is out of range for a time in microseconds"),
                )
            })
        };
        let since = timestamp("start_time", filter.start_time);
        let until = timestamp("end_time", filter.end_time);
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
        let non_empty = |text: String| (!text.is_empty()).then_some(text);
        Ok(Some(DeadLetterFilter {
            stream: non_empty(filter.stream),
            consumer: non_empty(filter.consumer),
            cause: cause.and_then(convert::cause_from_proto),
            reason: non_empty(filter.reason.to_lowercase()),
            group,
            author,
            post: (filter.post_id != 0).then_some(PostId(filter.post_id)),
            channel: channel.and_then(convert::channel_from_proto),
            state: state.and_then(convert::state_from_proto),
            since,
            until,
        }))
    }

    /// Parses a selection. Exactly one of ids, filter and all must be set.
    pub(super) async fn parse_selection(
        &self,
        selection: v1::DeadLetterSelection,
    ) -> Result<Selection, Status> {
        let refuse = |field: &str, why: &str| Err(status::invalid(&[(field, why)]));
        let v1::DeadLetterSelection {
            dead_letter_ids,
            filter,
            all,
        } = selection;
        let filter = filter.filter(|filter| *filter != v1::DeadLetterFilter::default());
        let set = [!dead_letter_ids.is_empty(), filter.is_some(), all];
        match set.iter().filter(|set| **set).count() {
            0 => {
                return refuse(
                    "selection",
                    "must have dead_letter_ids, a non-empty filter, or all",
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
                    &format!("must have at most {IDS_MAX} entries: use a filter instead"),
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
            return refuse("selection.filter.state", "must be open or unset");
        }
        let filter = v1::DeadLetterFilter {
            state: open.into(),
            ..filter
        };
        self.parse_filter("selection.filter", filter)
            .await
            .map(Selection::Filter)
    }
}
