//! What a message adds, which file it goes to, and which hours a caller may ask for. Pure: no clock, no I/O.

use std::collections::BTreeMap;

use herald_model::time::Micros;
use herald_model::{Channel, ChunkId, FollowVersion, Lane, PostId, UserId, UserKey};
use herald_store::{Counts, PostTotals, TotalsBatch};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use xxhash_rust::xxh3::Xxh3;

const HOUR_MICROS: i64 = 3_600 * 1_000_000;

/// The last hour that a calendar of four-digit years has.
const HOUR_MAX: u32 = 70_389_527;

/// The longest range of totals, hours.
const RANGE_HOURS_MAX: i64 = 31 * 24;

/// Hours from the default start of a range to now.
const RANGE_HOURS_DEFAULT: i64 = 24;

/// A kind of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Table {
    /// Posts accepted.
    Posts,
    /// Posts deleted.
    Deletions,
    /// Deliveries settled.
    Deliveries,
}

impl Table {
    /// As it stands in paths and metrics.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Posts => "posts",
            Self::Deletions => "deletions",
            Self::Deliveries => "deliveries",
        }
    }
}

/// An accepted post, as analytics keeps it: without its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PostRow {
    pub(crate) post: PostId,
    pub(crate) author: UserKey,
    pub(crate) author_id: UserId,
    pub(crate) lane: Lane,
    pub(crate) text_bytes: u32,
    pub(crate) links: u32,
    pub(crate) media: u32,
    pub(crate) follow_version: FollowVersion,
    pub(crate) push_ttl_seconds: u32,
    pub(crate) accepted_at: Micros,
}

/// A deleted post.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DeletionRow {
    pub(crate) post: PostId,
    pub(crate) author: UserKey,
    pub(crate) deleted_at: Micros,
}

/// Deliveries of one chunk that were settled together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DeliveriesRow {
    pub(crate) post: PostId,
    pub(crate) author: UserKey,
    pub(crate) channel: Channel,
    pub(crate) chunk: ChunkId,
    pub(crate) delivered: u32,
    pub(crate) suppressed: u32,
    pub(crate) expired: u32,
    pub(crate) dead: u32,
    pub(crate) accepted_at: Micros,
    pub(crate) settled_at: Micros,
}

/// What one message says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Row {
    Post(Box<PostRow>),
    Deletion(DeletionRow),
    Deliveries(DeliveriesRow),
}

impl Row {
    /// The table it goes to.
    pub(crate) fn table(&self) -> Table {
        match self {
            Self::Post(_) => Table::Posts,
            Self::Deletion(_) => Table::Deletions,
            Self::Deliveries(_) => Table::Deliveries,
        }
    }

    /// When it happened.
    pub(crate) fn at(&self) -> Micros {
        match self {
            Self::Post(row) => row.accepted_at,
            Self::Deletion(row) => row.deleted_at,
            Self::Deliveries(row) => row.settled_at,
        }
    }

    fn post(&self) -> PostId {
        match self {
            Self::Post(row) => row.post,
            Self::Deletion(row) => row.post,
            Self::Deliveries(row) => row.post,
        }
    }

    /// What it adds to its post's totals.
    fn totals(&self) -> PostTotals {
        let of = |author, counts| PostTotals {
            author,
            counts,
            timeline_latency_ms_max: 0,
            push_latency_ms_max: 0,
        };
        match self {
            Self::Post(row) => of(
                row.author,
                Counts {
                    posts: 1,
                    ..Counts::default()
                },
            ),
            Self::Deletion(row) => of(
                row.author,
                Counts {
                    deleted_posts: 1,
                    ..Counts::default()
                },
            ),
            Self::Deliveries(row) => {
                let mut totals = of(row.author, row.counts());
                if row.delivered > 0 {
                    let latency = row.settled_at.since(row.accepted_at).as_millis() as u64;
                    match row.channel {
                        Channel::Timeline => totals.timeline_latency_ms_max = latency,
                        Channel::Push => totals.push_latency_ms_max = latency,
                    }
                }
                totals
            }
        }
    }
}

impl DeliveriesRow {
    fn counts(&self) -> Counts {
        match self.channel {
            // A timeline has no other outcome than delivered.
            Channel::Timeline => Counts {
                timeline_delivered: self.delivered.into(),
                ..Counts::default()
            },
            Channel::Push => Counts {
                push_delivered: self.delivered.into(),
                push_suppressed: self.suppressed.into(),
                push_expired: self.expired.into(),
                push_dead: self.dead.into(),
                ..Counts::default()
            },
        }
    }
}

/// One message: its sequence in its stream, and what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) sequence: u64,
    pub(crate) row: Row,
}

/// The messages of one stream that go into one file: one table, one hour.
///
/// *Invariant:* there is at least one, their sequences ascend strictly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) stream: &'static str,
    pub(crate) table: Table,
    /// Hours since 1970.
    pub(crate) hour: u32,
    pub(crate) entries: Vec<Entry>,
}

/// Sorts messages into files. The same sequence twice is once.
pub(crate) fn files(stream: &'static str, entries: impl IntoIterator<Item = Entry>) -> Vec<File> {
    let mut groups: BTreeMap<(Table, u32), BTreeMap<u64, Entry>> = BTreeMap::new();
    for entry in entries {
        // The handler has refused moments that have no hour.
        let hour = hour_of(entry.row.at()).unwrap_or_default();
        groups
            .entry((entry.row.table(), hour))
            .or_default()
            .insert(entry.sequence, entry);
    }
    groups
        .into_iter()
        .map(|((table, hour), entries)| File {
            stream,
            table,
            hour,
            entries: entries.into_values().collect(),
        })
        .collect()
}

impl File {
    /// `{table}/date=YYYY-MM-DD/hour=HH/{stream}-{first}-{last}-{hash of the sequences}.parquet`: the same messages are
    /// the same file, others never are.
    pub(crate) fn path(&self) -> String {
        let mut hash = Xxh3::new();
        for entry in &self.entries {
            hash.update(&entry.sequence.to_le_bytes());
        }
        let first = self.entries.first().map_or(0, |entry| entry.sequence);
        let last = self.entries.last().map_or(0, |entry| entry.sequence);
        let (date, hour) = date_and_hour(self.hour);
        format!(
            "{}/date={date}/hour={hour:02}/{}-{first}-{last}-{:016x}.parquet",
            self.table.as_str(),
            self.stream,
            hash.digest()
        )
    }

    /// What it adds to the totals.
    pub(crate) fn totals(&self, path: &str) -> TotalsBatch {
        let mut posts: BTreeMap<PostId, PostTotals> = BTreeMap::new();
        let mut hour = Counts::default();
        for entry in &self.entries {
            let more = entry.row.totals();
            hour += more.counts;
            posts
                .entry(entry.row.post())
                .and_modify(|totals| {
                    totals.counts += more.counts;
                    totals.timeline_latency_ms_max =
                        totals.timeline_latency_ms_max.max(more.timeline_latency_ms_max);
                    totals.push_latency_ms_max = totals.push_latency_ms_max.max(more.push_latency_ms_max);
                })
                .or_insert(more);
        }
        TotalsBatch {
            stream: self.stream.to_owned(),
            sequences: self.entries.iter().map(|entry| entry.sequence).collect(),
            file: path.to_owned(),
            posts: posts.into_iter().collect(),
            hours: vec![(self.hour, hour)],
        }
    }
}

/// The hour of a moment, hours since 1970; `None` before 1970 and after the year 9999.
pub(crate) fn hour_of(at: Micros) -> Option<u32> {
    u32::try_from(at.0.div_euclid(HOUR_MICROS))
        .ok()
        .filter(|hour| *hour <= HOUR_MAX)
}

fn date_and_hour(hour: u32) -> (jiff::civil::Date, u32) {
    let start = Timestamp::from_second(i64::from(hour) * 3_600).unwrap_or_default();
    (TimeZone::UTC.to_datetime(start).date(), hour % 24)
}

/// Hours to tell the totals of, from `start` up to but not including `end`, hours since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hours {
    pub(crate) start: u32,
    pub(crate) end: u32,
}

/// A range that makes no sense: the field and why.
pub(crate) type InvalidRange = (&'static str, &'static str);

/// The hours that a caller asks for: the start rounded down (unset: 24 hours before now), the end rounded up (unset: now).
pub(crate) fn hours(start: Option<Micros>, end: Option<Micros>, now: Micros) -> Result<Hours, InvalidRange> {
    let end_field = if end.is_some() { "end_time" } else { "start_time" };
    let start = start.unwrap_or(Micros(now.0.saturating_sub(RANGE_HOURS_DEFAULT * HOUR_MICROS)));
    let end = end.unwrap_or(now);
    if end <= start {
        return Err((end_field, "must leave start_time before end_time"));
    }
    if end.0.saturating_sub(start.0) > RANGE_HOURS_MAX * HOUR_MICROS {
        return Err((
            end_field,
            "must leave at most 31 days between start_time and end_time",
        ));
    }
    // What lies before 1970 or after 9999 has no totals.
    let hour = |micros: i64| {
        u32::try_from(micros.div_euclid(HOUR_MICROS).clamp(0, i64::from(HOUR_MAX) + 1)).unwrap_or(0)
    };
    Ok(Hours {
        start: hour(start.0),
        end: hour(end.0.saturating_add(HOUR_MICROS - 1)),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: i64 = HOUR_MICROS;

    fn deliveries(sequence: u64, settled_at: i64, channel: Channel) -> Entry {
        let row = DeliveriesRow {
            post: PostId(7),
            author: UserKey(3),
            channel,
            chunk: ChunkId(sequence),
            delivered: 10,
            suppressed: 3,
            expired: 2,
            dead: 1,
            accepted_at: Micros(settled_at - 2_500),
            settled_at: Micros(settled_at),
        };
        Entry {
            sequence,
            row: Row::Deliveries(row),
        }
    }

    fn deletion(sequence: u64, deleted_at: i64) -> Entry {
        let row = DeletionRow {
            post: PostId(sequence),
            author: UserKey(1),
            deleted_at: Micros(deleted_at),
        };
        Entry {
            sequence,
            row: Row::Deletion(row),
        }
    }

    #[test]
    fn a_file_is_named_by_its_hour_and_its_messages() {
        let at = 20_000 * 24 * HOUR + 5 * HOUR + 1;
        let files = files("POSTS", [deletion(12, at), deletion(9, at), deletion(12, at)]);
        let [file] = files.as_slice() else {
            panic!("{files:?}")
        };
        let path = file.path();
        assert!(
            path.starts_with("deletions/date=2024-10-04/hour=05/POSTS-9-12-"),
            "{path}"
        );
        assert_eq!(file.entries.len(), 2);
        let others = super::files("POSTS", [deletion(9, at), deletion(10, at), deletion(12, at)]);
        assert_ne!(path, others[0].path());
    }

    #[test]
    fn totals_are_added_by_post_and_hour() {
        let files = files(
            "EVENTS",
            [
                deliveries(1, HOUR, Channel::Timeline),
                deliveries(2, HOUR + 9, Channel::Push),
            ],
        );
        let [file] = files.as_slice() else {
            panic!("{files:?}")
        };
        let totals = file.totals("a file");
        let counts = Counts {
            timeline_delivered: 10,
            push_delivered: 10,
            push_suppressed: 3,
            push_expired: 2,
            push_dead: 1,
            ..Counts::default()
        };
        assert_eq!(totals.sequences, [1, 2]);
        assert_eq!(totals.hours, [(1, counts)]);
        let post = PostTotals {
            author: UserKey(3),
            counts,
            timeline_latency_ms_max: 2,
            push_latency_ms_max: 2,
        };
        assert_eq!(totals.posts, [(PostId(7), post)]);
    }

    #[test]
    fn a_range_is_rounded_outwards_and_bounded() {
        let now = Micros(100 * HOUR + 1);
        let at = |hours: i64| Some(Micros(hours * HOUR + 1));
        assert_eq!(hours(None, None, now), Ok(Hours { start: 76, end: 101 }));
        assert_eq!(hours(at(3), at(4), now), Ok(Hours { start: 3, end: 5 }));
        assert_eq!(
            hours(Some(Micros(3 * HOUR)), Some(Micros(4 * HOUR)), now),
            Ok(Hours { start: 3, end: 4 })
        );
        assert_eq!(hours(at(4), at(4), now).unwrap_err().0, "end_time");
        assert_eq!(hours(at(200), None, now).unwrap_err().0, "start_time");
        assert_eq!(
            hours(at(0), at(31 * 24), now),
            Ok(Hours {
                start: 0,
                end: 31 * 24 + 1
            })
        );
        assert_eq!(
            hours(at(0), Some(Micros(31 * 24 * HOUR + 2)), now).unwrap_err().0,
            "end_time"
        );
    }

    proptest! {
        #[test]
        fn every_message_goes_into_exactly_one_file(
            entries in prop::collection::vec((0_u64..50, 0_i64..5 * HOUR, any::<bool>()), 0..60),
        ) {
            let entries: BTreeMap<u64, Entry> = entries
                .into_iter()
                .map(|(sequence, at, gone)| {
                    let entry = if gone { deletion(sequence, at) } else { deliveries(sequence, at, Channel::Push) };
                    (sequence, entry)
                })
                .collect();
            let files = files("EVENTS", entries.values().cloned());
            let mut found: Vec<_> = files.iter().flat_map(|file| file.entries.iter().cloned()).collect();
            found.sort_by_key(|entry| entry.sequence);
            prop_assert!(found.iter().eq(entries.values()));
            for file in &files {
                prop_assert!(file.entries.is_sorted_by(|a, b| a.sequence < b.sequence));
                for entry in &file.entries {
                    prop_assert_eq!(hour_of(entry.row.at()), Some(file.hour));
                    prop_assert_eq!(entry.row.table(), file.table);
                }
            }
        }

        #[test]
        fn any_range_is_answered_or_refused(start: Option<i64>, end: Option<i64>, now in 0..i64::MAX / 2) {
            if let Ok(hours) = hours(start.map(Micros), end.map(Micros), Micros(now)) {
                prop_assert!(hours.start <= hours.end);
                prop_assert!(i64::from(hours.end - hours.start) <= RANGE_HOURS_MAX + 1);
            }
        }
    }
}
