//! Pure domain logic: the rows of a message, their files and totals, and hour ranges. No clock, no I/O.

use std::collections::{BTreeMap, BTreeSet};

use herald_model::time::Timestamp;
use herald_model::{Channel, Lane, PostId, UserId, UserKey};
use herald_store::{ChunkRef, Counted, Counts, PostTotals, SettledCounts, TotalsBatch};
use jiff::tz::TimeZone;

const HOUR_MICROS: i64 = 3_600 * 1_000_000;

/// The last hour of the year 9999, hours since 1970.
const HOUR_MAX: u32 = 70_389_527;

/// Maximum length of a range of totals, hours.
const RANGE_HOURS_MAX: i64 = 31 * 24;

/// Default length of a range of totals, hours.
const RANGE_HOURS_DEFAULT: i64 = 24;

/// A table of Parquet files.
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
    /// The name in paths and metrics.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Posts => "posts",
            Self::Deletions => "deletions",
            Self::Deliveries => "deliveries",
        }
    }
}

/// An accepted post without its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PostRow {
    pub(crate) post: PostId,
    pub(crate) author: UserKey,
    pub(crate) author_id: UserId,
    pub(crate) lane: Lane,
    pub(crate) text_bytes: u32,
    pub(crate) links: u32,
    pub(crate) media: u32,
    pub(crate) push_ttl_seconds: u32,
    pub(crate) accepted_at: Timestamp,
}

/// A deleted post.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DeletionRow {
    pub(crate) post: PostId,
    pub(crate) author: UserKey,
    pub(crate) deleted_at: Timestamp,
}

/// Settled or redriven deliveries of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DeliveriesRow {
    pub(crate) author: UserKey,
    pub(crate) chunk: ChunkRef,
    /// The state of the chunk that the message reports.
    pub(crate) state: Counted,
    /// Difference to the state that was counted before.
    pub(crate) delta: CountsDelta,
    pub(crate) accepted_at: Timestamp,
    pub(crate) settled_at: Timestamp,
}

/// Difference between two counts of a chunk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct CountsDelta {
    pub(crate) delivered: i32,
    pub(crate) suppressed: i32,
    pub(crate) expired: i32,
    /// Negative when a redrive retries dead deliveries.
    pub(crate) dead: i32,
}

impl CountsDelta {
    /// The difference from `before` to `after`.
    fn between(before: SettledCounts, after: SettledCounts) -> Self {
        // A chunk has at most 65,536 recipients, so the difference fits an i32.
        let delta = |before: u32, after: u32| after.cast_signed().wrapping_sub(before.cast_signed());
        Self {
            delivered: delta(before.delivered, after.delivered),
            suppressed: delta(before.suppressed, after.suppressed),
            expired: delta(before.expired, after.expired),
            dead: delta(before.dead, after.dead),
        }
    }
}

/// A row of a table. An event has one row for each of its chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Row {
    Post(Box<PostRow>),
    Deletion(DeletionRow),
    Deliveries(DeliveriesRow),
}

impl Row {
    /// The table of the row.
    pub(crate) fn table(&self) -> Table {
        match self {
            Self::Post(_) => Table::Posts,
            Self::Deletion(_) => Table::Deletions,
            Self::Deliveries(_) => Table::Deliveries,
        }
    }

    /// The time of the acceptance, deletion or settlement; it selects the hour.
    pub(crate) fn at(&self) -> Timestamp {
        match self {
            Self::Post(row) => row.accepted_at,
            Self::Deletion(row) => row.deleted_at,
            Self::Deliveries(row) => row.settled_at,
        }
    }

    /// The chunk of the row; `None` for posts and deletions.
    pub(crate) fn chunk(&self) -> Option<ChunkRef> {
        match self {
            Self::Deliveries(row) => Some(row.chunk),
            Self::Post(_) | Self::Deletion(_) => None,
        }
    }

    /// The post of the row.
    pub(crate) fn post(&self) -> PostId {
        match self {
            Self::Post(row) => row.post,
            Self::Deletion(row) => row.post,
            Self::Deliveries(row) => row.chunk.post,
        }
    }

    /// The counts that the row adds to the totals of its post.
    fn totals(&self) -> PostTotals {
        let totals = |author, counts| PostTotals {
            author,
            counts,
            timeline_latency_ms_max: 0,
            push_latency_ms_max: 0,
        };
        match self {
            Self::Post(row) => totals(
                row.author,
                Counts {
                    posts: 1,
                    ..Counts::default()
                },
            ),
            Self::Deletion(row) => totals(
                row.author,
                Counts {
                    deleted_posts: 1,
                    ..Counts::default()
                },
            ),
            Self::Deliveries(row) => {
                let mut totals = totals(row.author, row.counts());
                if row.delta.delivered > 0 {
                    let latency = row.settled_at.since(row.accepted_at).as_millis() as u64;
                    match row.chunk.channel {
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
        match self.chunk.channel {
            // Suppressed timelines are not counted: they show the post when their users read them. Timeline
            // deliveries never expire.
            Channel::Timeline => Counts {
                timeline_delivered: self.delta.delivered.into(),
                timeline_dead: self.delta.dead.into(),
                ..Counts::default()
            },
            Channel::Push => Counts {
                push_delivered: self.delta.delivered.into(),
                push_suppressed: self.delta.suppressed.into(),
                push_expired: self.delta.expired.into(),
                push_dead: self.delta.dead.into(),
                ..Counts::default()
            },
        }
    }

    /// Computes the difference to the counted state and advances it; returns false for a stale row.
    fn advance(&mut self, counted: &mut Counted) -> bool {
        if self.state.revision <= counted.revision {
            return false;
        }
        self.delta = CountsDelta::between(counted.counts, self.state.counts);
        *counted = self.state;
        true
    }
}

/// A row and its position in the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) position: RowPosition,
    pub(crate) row: Row,
}

/// The position of a row in its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RowPosition {
    /// Sequence of the message.
    pub(crate) sequence: u64,
    /// Index among the rows of the message, from 0.
    pub(crate) index: usize,
    /// Number of rows of the message.
    pub(crate) count: usize,
}

/// The rows of one stream that go into one file: one table, one hour.
///
/// *Invariant:* the positions of the entries ascend strictly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) stream: &'static str,
    pub(crate) table: Table,
    /// Hours since 1970.
    pub(crate) hour: u32,
    pub(crate) entries: Vec<Entry>,
}

/// Groups rows into files. A repeated position is included once.
pub(crate) fn group_into_files(stream: &'static str, entries: impl IntoIterator<Item = Entry>) -> Vec<File> {
    let mut groups: BTreeMap<(Table, u32), BTreeMap<RowPosition, Entry>> = BTreeMap::new();
    for entry in entries {
        // The handler terminates messages whose time has no hour.
        let hour = hour_of(entry.row.at()).unwrap_or_default();
        groups
            .entry((entry.row.table(), hour))
            .or_default()
            .insert(entry.position, entry);
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
    /// The posts of the rows, ascending.
    pub(crate) fn posts(&self) -> BTreeSet<PostId> {
        self.entries.iter().map(|entry| entry.row.post()).collect()
    }

    /// The chunks of the rows, ascending.
    pub(crate) fn chunks(&self) -> Vec<ChunkRef> {
        let chunks: BTreeSet<ChunkRef> = self
            .entries
            .iter()
            .filter_map(|entry| entry.row.chunk())
            .collect();
        chunks.into_iter().collect()
    }

    /// Drops the rows that are not newer than the counted state of their chunk, and computes the difference of the
    /// others. `counted` has the states of [`chunks`](Self::chunks). Rows of a chunk may be late, repeated, and out of
    /// order. Each reports the whole state of the chunk, so the row with the greatest revision wins.
    pub(crate) fn drop_stale_rows(&mut self, counted: &mut BTreeMap<ChunkRef, Counted>) {
        self.entries.retain_mut(|entry| match &mut entry.row {
            Row::Deliveries(row) => row.advance(counted.entry(row.chunk).or_default()),
            Row::Post(_) | Row::Deletion(_) => true,
        });
    }

    /// `{table}/date=YYYY-MM-DD/hour=HH/{stream}-{first}-{last}-{attempt}.parquet`. `attempt` is different for each
    /// file that any instance writes, so that no two of them write, count or delete the same file.
    pub(crate) fn path(&self, attempt: u64) -> String {
        let first = self.entries.first().map_or(0, |entry| entry.position.sequence);
        let last = self.entries.last().map_or(0, |entry| entry.position.sequence);
        let (date, hour) = date_and_hour(self.hour);
        format!(
            "{}/date={date}/hour={hour:02}/{}-{first}-{last}-{attempt:016x}.parquet",
            self.table.as_str(),
            self.stream,
        )
    }

    /// The sequences of the messages that have rows in this file, ascending.
    pub(crate) fn sequences(&self) -> Vec<u64> {
        let mut sequences: Vec<u64> = self.entries.iter().map(|entry| entry.position.sequence).collect();
        sequences.dedup();
        sequences
    }

    /// Drops the rows of messages that are counted. `sequences` are those of the file, ascending.
    pub(crate) fn drop_seen_rows(&mut self, sequences: &[u64], seen: &[bool]) {
        self.entries.retain(|entry| {
            let index = sequences.binary_search(&entry.position.sequence);
            !index.is_ok_and(|index| seen.get(index) == Some(&true))
        });
    }

    /// The messages with all their rows in this file; the commit marks them as seen. Only events have several rows, and
    /// a redelivered row of an event is stale if it was counted, so other messages need no mark.
    fn complete_messages(&self) -> Vec<u64> {
        self.entries
            .chunk_by(|a, b| a.position.sequence == b.position.sequence)
            .filter(|rows| rows.len() == rows[0].position.count)
            .map(|rows| rows[0].position.sequence)
            .collect()
    }

    /// The counts that the file adds to the totals.
    pub(crate) fn totals(&self, path: &str) -> TotalsBatch {
        let mut posts: BTreeMap<PostId, PostTotals> = BTreeMap::new();
        let mut hour = Counts::default();
        let mut chunks: BTreeMap<ChunkRef, Counted> = BTreeMap::new();
        for entry in &self.entries {
            let more = entry.row.totals();
            hour += more.counts;
            if let Row::Deliveries(row) = &entry.row {
                chunks.insert(row.chunk, row.state);
            }
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
            sequences: self.complete_messages(),
            file: path.to_owned(),
            posts: posts.into_iter().collect(),
            hours: vec![(self.hour, hour)],
            chunks: chunks.into_iter().collect(),
        }
    }
}

/// The hour of a time, hours since 1970; `None` before 1970 and after the year 9999.
pub(crate) fn hour_of(at: Timestamp) -> Option<u32> {
    u32::try_from(at.0.div_euclid(HOUR_MICROS))
        .ok()
        .filter(|hour| *hour <= HOUR_MAX)
}

fn date_and_hour(hour: u32) -> (jiff::civil::Date, u32) {
    let start = jiff::Timestamp::from_second(i64::from(hour) * 3_600).unwrap_or_default();
    (TimeZone::UTC.to_datetime(start).date(), hour % 24)
}

/// A range of hours since 1970: `start` is included, `end` is excluded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HourRange {
    pub(crate) start: u32,
    pub(crate) end: u32,
}

/// An invalid range: the field and a description.
pub(crate) type InvalidRange = (&'static str, &'static str);

/// Checks a requested range. The start is rounded down to the hour, by default 24 hours before now; the end is rounded
/// up, by default now.
pub(crate) fn parse_hour_range(
    start: Option<Timestamp>,
    end: Option<Timestamp>,
    now: Timestamp,
) -> Result<HourRange, InvalidRange> {
    let end_field = if end.is_some() { "end_time" } else { "start_time" };
    let start = start.unwrap_or(Timestamp(now.0.saturating_sub(RANGE_HOURS_DEFAULT * HOUR_MICROS)));
    let end = end.unwrap_or(now);
    if end <= start {
        return Err((end_field, "start_time must be before end_time"));
    }
    if end.0.saturating_sub(start.0) > RANGE_HOURS_MAX * HOUR_MICROS {
        return Err((
            end_field,
            "the range from start_time to end_time must be at most 31 days",
        ));
    }
    // There are no totals before 1970 or after 9999.
    let hour = |micros: i64| {
        u32::try_from(micros.div_euclid(HOUR_MICROS).clamp(0, i64::from(HOUR_MAX) + 1)).unwrap_or(0)
    };
    Ok(HourRange {
        start: hour(start.0),
        end: hour(end.0.saturating_add(HOUR_MICROS - 1)),
    })
}

#[cfg(test)]
mod tests;
