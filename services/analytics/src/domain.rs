//! What a message adds, which file it goes to, and which hours a caller may ask for. Pure: no clock, no I/O.

use std::collections::{BTreeMap, BTreeSet};

use herald_model::time::Timestamp;
use herald_model::{Channel, FollowVersion, Lane, PostId, UserId, UserKey};
use herald_store::{ChunkRef, Counted, Counts, PostTotals, SettledCounts, TotalsBatch};
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
    pub(crate) accepted_at: Timestamp,
}

/// A deleted post.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DeletionRow {
    pub(crate) post: PostId,
    pub(crate) author: UserKey,
    pub(crate) deleted_at: Timestamp,
}

/// A chunk whose deliveries were settled, or tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DeliveriesRow {
    pub(crate) author: UserKey,
    pub(crate) chunk: ChunkRef,
    /// The chunk's state that the message tells of.
    pub(crate) state: Counted,
    /// What it adds to what was counted before.
    pub(crate) change: Change,
    pub(crate) accepted_at: Timestamp,
    pub(crate) settled_at: Timestamp,
}

/// By how much the counts of a chunk change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) delivered: i32,
    pub(crate) suppressed: i32,
    pub(crate) expired: i32,
    /// Less than 0 when a redrive has tried dead ones again.
    pub(crate) dead: i32,
}

impl Change {
    /// What leads from one state to the other.
    fn between(before: SettledCounts, after: SettledCounts) -> Self {
        // A chunk has thousands of recipients, not billions.
        let change = |before: u32, after: u32| after.cast_signed().wrapping_sub(before.cast_signed());
        Self {
            delivered: change(before.delivered, after.delivered),
            suppressed: change(before.suppressed, after.suppressed),
            expired: change(before.expired, after.expired),
            dead: change(before.dead, after.dead),
        }
    }
}

/// One of the things that a message says.
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
    pub(crate) fn at(&self) -> Timestamp {
        match self {
            Self::Post(row) => row.accepted_at,
            Self::Deletion(row) => row.deleted_at,
            Self::Deliveries(row) => row.settled_at,
        }
    }

    /// The chunk it tells of, if it does.
    pub(crate) fn chunk(&self) -> Option<ChunkRef> {
        match self {
            Self::Deliveries(row) => Some(row.chunk),
            Self::Post(_) | Self::Deletion(_) => None,
        }
    }

    /// The post it is about.
    pub(crate) fn post(&self) -> PostId {
        match self {
            Self::Post(row) => row.post,
            Self::Deletion(row) => row.post,
            Self::Deliveries(row) => row.chunk.post,
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
                if row.change.delivered > 0 {
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
            // Nobody is left out of a timeline, and none is too late for it.
            Channel::Timeline => Counts {
                timeline_delivered: self.change.delivered.into(),
                timeline_dead: self.change.dead.into(),
                ..Counts::default()
            },
            Channel::Push => Counts {
                push_delivered: self.change.delivered.into(),
                push_suppressed: self.change.suppressed.into(),
                push_expired: self.change.expired.into(),
                push_dead: self.change.dead.into(),
                ..Counts::default()
            },
        }
    }

    /// Goes on from what is counted; false when it tells nothing new.
    fn follow(&mut self, counted: &mut Counted) -> bool {
        if self.state.revision <= counted.revision {
            return false;
        }
        self.change = Change::between(counted.counts, self.state.counts);
        *counted = self.state;
        true
    }
}

/// A row, and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) place: Place,
    pub(crate) row: Row,
}

/// Which row it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Place {
    /// The sequence of its message in its stream.
    pub(crate) sequence: u64,
    /// Which of the message's rows it is, from 0.
    pub(crate) index: usize,
    /// How many the message has.
    pub(crate) count: usize,
}

/// The rows of one stream that go into one file: one table, one hour.
///
/// *Invariant:* their places ascend strictly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) stream: &'static str,
    pub(crate) table: Table,
    /// Hours since 1970.
    pub(crate) hour: u32,
    pub(crate) entries: Vec<Entry>,
}

/// Sorts rows into files. The same place twice is once.
pub(crate) fn files(stream: &'static str, entries: impl IntoIterator<Item = Entry>) -> Vec<File> {
    let mut groups: BTreeMap<(Table, u32), BTreeMap<Place, Entry>> = BTreeMap::new();
    for entry in entries {
        // The handler has refused moments that have no hour.
        let hour = hour_of(entry.row.at()).unwrap_or_default();
        groups
            .entry((entry.row.table(), hour))
            .or_default()
            .insert(entry.place, entry);
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
    /// The posts it is about, ascending.
    pub(crate) fn posts(&self) -> BTreeSet<PostId> {
        self.entries.iter().map(|entry| entry.row.post()).collect()
    }

    /// The chunks it tells of, ascending.
    pub(crate) fn chunks(&self) -> Vec<ChunkRef> {
        let chunks: BTreeSet<ChunkRef> = self
            .entries
            .iter()
            .filter_map(|entry| entry.row.chunk())
            .collect();
        chunks.into_iter().collect()
    }

    /// Leaves only what adds something to what is counted of [`chunks`](Self::chunks), and says how much. Rows of a chunk may
    /// come late, twice, and out of order: each tells all of it, so the one with the greatest revision stands.
    pub(crate) fn follow(&mut self, counted: &mut BTreeMap<ChunkRef, Counted>) {
        self.entries.retain_mut(|entry| match &mut entry.row {
            Row::Deliveries(row) => row.follow(counted.entry(row.chunk).or_default()),
            Row::Post(_) | Row::Deletion(_) => true,
        });
    }

    /// `{table}/date=YYYY-MM-DD/hour=HH/{stream}-{first}-{last}-{hash of the places}.parquet`: the same rows are the same
    /// file, others never are.
    pub(crate) fn path(&self) -> String {
        let mut hash = Xxh3::new();
        for entry in &self.entries {
            hash.update(&entry.place.sequence.to_le_bytes());
            hash.update(&entry.place.index.to_le_bytes());
        }
        let first = self.entries.first().map_or(0, |entry| entry.place.sequence);
        let last = self.entries.last().map_or(0, |entry| entry.place.sequence);
        let (date, hour) = date_and_hour(self.hour);
        format!(
            "{}/date={date}/hour={hour:02}/{}-{first}-{last}-{:016x}.parquet",
            self.table.as_str(),
            self.stream,
            hash.digest()
        )
    }

    /// The messages of which all rows are in it. Of the others each row that comes again is older than what is counted, as
    /// long as that is kept: only rows of chunks come several in a message.
    fn whole_messages(&self) -> Vec<u64> {
        self.entries
            .chunk_by(|a, b| a.place.sequence == b.place.sequence)
            .filter(|rows| rows.len() == rows[0].place.count)
            .map(|rows| rows[0].place.sequence)
            .collect()
    }

    /// What it adds to the totals.
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
            sequences: self.whole_messages(),
            file: path.to_owned(),
            posts: posts.into_iter().collect(),
            hours: vec![(self.hour, hour)],
            chunks: chunks.into_iter().collect(),
        }
    }
}

/// The hour of a moment, hours since 1970; `None` before 1970 and after the year 9999.
pub(crate) fn hour_of(at: Timestamp) -> Option<u32> {
    u32::try_from(at.0.div_euclid(HOUR_MICROS))
        .ok()
        .filter(|hour| *hour <= HOUR_MAX)
}

fn date_and_hour(hour: u32) -> (jiff::civil::Date, u32) {
    let start = jiff::Timestamp::from_second(i64::from(hour) * 3_600).unwrap_or_default();
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
pub(crate) fn hours(
    start: Option<Timestamp>,
    end: Option<Timestamp>,
    now: Timestamp,
) -> Result<Hours, InvalidRange> {
    let end_field = if end.is_some() { "end_time" } else { "start_time" };
    let start = start.unwrap_or(Timestamp(now.0.saturating_sub(RANGE_HOURS_DEFAULT * HOUR_MICROS)));
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
mod tests;
