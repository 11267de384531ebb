use herald_model::ChunkId;
use proptest::prelude::*;

use super::*;

const HOUR: i64 = HOUR_MICROS;

fn deliveries(sequence: u64, settled_at: i64, channel: Channel) -> Entry {
    let row = DeliveriesRow {
        author: UserKey(3),
        chunk: ChunkRef {
            post: PostId(7),
            channel,
            chunk: ChunkId(sequence),
        },
        state: Counted {
            revision: 1,
            counts: SettledCounts {
                delivered: 10,
                suppressed: 3,
                expired: 2,
                dead: 1,
            },
        },
        delta: CountsDelta::default(),
        accepted_at: Timestamp(settled_at - 2_500),
        settled_at: Timestamp(settled_at),
    };
    Entry {
        position: single_row(sequence),
        row: Row::Deliveries(row),
    }
}

/// The position of the only row of a message.
fn single_row(sequence: u64) -> RowPosition {
    RowPosition {
        sequence,
        index: 0,
        count: 1,
    }
}

fn deletion(sequence: u64, deleted_at: i64) -> Entry {
    let row = DeletionRow {
        post: PostId(sequence),
        author: UserKey(1),
        deleted_at: Timestamp(deleted_at),
    };
    Entry {
        position: single_row(sequence),
        row: Row::Deletion(row),
    }
}

#[test]
fn a_path_contains_the_hour_and_the_messages() {
    let at = 20_000 * 24 * HOUR + 5 * HOUR + 1;
    let files = group_into_files("POSTS", [deletion(12, at), deletion(9, at), deletion(12, at)]);
    let [file] = files.as_slice() else {
        panic!("{files:?}")
    };
    let path = file.path(1);
    assert!(
        path.starts_with("deletions/date=2024-10-04/hour=05/POSTS-9-12-"),
        "{path}"
    );
    assert_eq!(file.entries.len(), 2);
    assert_ne!(path, file.path(2));
}

#[test]
fn totals_are_added_by_post_and_hour() {
    let mut files = group_into_files(
        "EVENTS",
        [
            deliveries(1, HOUR, Channel::Timeline),
            deliveries(2, HOUR + 9, Channel::Push),
        ],
    );
    let [file] = files.as_mut_slice() else {
        panic!("{files:?}")
    };
    file.drop_stale_rows(&mut BTreeMap::new());
    let totals = file.totals("a file");
    let counts = Counts {
        timeline_delivered: 10,
        timeline_dead: 1,
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
    let now = Timestamp(100 * HOUR + 1);
    let at = |hours: i64| Some(Timestamp(hours * HOUR + 1));
    assert_eq!(
        parse_hour_range(None, None, now),
        Ok(HourRange { start: 76, end: 101 })
    );
    assert_eq!(
        parse_hour_range(at(3), at(4), now),
        Ok(HourRange { start: 3, end: 5 })
    );
    assert_eq!(
        parse_hour_range(Some(Timestamp(3 * HOUR)), Some(Timestamp(4 * HOUR)), now),
        Ok(HourRange { start: 3, end: 4 })
    );
    assert_eq!(parse_hour_range(at(4), at(4), now).unwrap_err().0, "end_time");
    assert_eq!(parse_hour_range(at(200), None, now).unwrap_err().0, "start_time");
    assert_eq!(
        parse_hour_range(at(0), at(31 * 24), now),
        Ok(HourRange {
            start: 0,
            end: 31 * 24 + 1
        })
    );
    assert_eq!(
        parse_hour_range(at(0), Some(Timestamp(31 * 24 * HOUR + 2)), now)
            .unwrap_err()
            .0,
        "end_time"
    );
}

proptest! {
    #[test]
    fn every_message_is_in_exactly_one_file(
        entries in prop::collection::vec((0_u64..50, 0_i64..5 * HOUR, any::<bool>()), 0..60),
    ) {
        let entries: BTreeMap<u64, Entry> = entries
            .into_iter()
            .map(|(sequence, at, deleted)| {
                let entry = if deleted { deletion(sequence, at) } else { deliveries(sequence, at, Channel::Push) };
                (sequence, entry)
            })
            .collect();
        let files = group_into_files("EVENTS", entries.values().cloned());
        let mut found: Vec<_> = files.iter().flat_map(|file| file.entries.iter().cloned()).collect();
        found.sort_by_key(|entry| entry.position.sequence);
        prop_assert!(found.iter().eq(entries.values()));
        for file in &files {
            prop_assert!(file.entries.is_sorted_by(|a, b| a.position < b.position));
            for entry in &file.entries {
                prop_assert_eq!(hour_of(entry.row.at()), Some(file.hour));
                prop_assert_eq!(entry.row.table(), file.table);
            }
        }
    }

    /// Events of a chunk in any order, any number of times, in batches.
    #[test]
    fn the_newest_revision_is_counted_in_any_order_of_events(
        states in prop::collection::vec((0_u32..50, 0_u32..50), 1..8),
        order in prop::collection::vec((any::<prop::sample::Index>(), 0_i64..3, any::<bool>()), 1..40),
    ) {
        let mut counted = BTreeMap::new();
        let mut totals = Counts::default();
        let mut newest = 0;
        let mut batch = Vec::new();
        let mut commit = |batch: &mut Vec<Entry>| {
            for mut file in group_into_files("EVENTS", batch.drain(..)) {
                assert_eq!(file.chunks().len(), 1);
                file.drop_stale_rows(&mut counted);
                for (_, more) in file.totals("a file").hours {
                    totals += more;
                }
            }
        };
        for (sequence, (which, hour, end)) in order.into_iter().enumerate() {
            let revision = which.index(states.len());
            newest = newest.max(revision);
            let mut entry = deliveries(sequence as u64, hour * HOUR, Channel::Push);
            if let Row::Deliveries(row) = &mut entry.row {
                row.chunk.chunk = ChunkId(1);
                let (delivered, dead) = states[revision];
                let counts = SettledCounts { delivered, dead, ..SettledCounts::default() };
                row.state = Counted { revision: revision as u64 + 1, counts };
            }
            batch.push(entry);
            if end {
                commit(&mut batch);
            }
        }
        commit(&mut batch);
        let (delivered, dead) = states[newest];
        prop_assert_eq!((totals.push_delivered, totals.push_dead), (delivered.into(), dead.into()));
    }

    #[test]
    fn any_range_is_answered_or_refused(start: Option<i64>, end: Option<i64>, now in 0..i64::MAX / 2) {
        if let Ok(hours) = parse_hour_range(start.map(Timestamp), end.map(Timestamp), Timestamp(now)) {
            prop_assert!(hours.start <= hours.end);
            prop_assert!(i64::from(hours.end - hours.start) <= RANGE_HOURS_MAX + 1);
        }
    }
}

#[test]
fn a_message_is_marked_as_seen_by_the_file_with_all_its_rows() {
    let entry_at = |sequence, index, count, hour: i64| {
        let mut entry = deliveries(sequence, hour * HOUR, Channel::Timeline);
        entry.position = RowPosition {
            sequence,
            index,
            count,
        };
        if let Row::Deliveries(row) = &mut entry.row {
            row.chunk.chunk = ChunkId(100 * sequence + index as u64);
        }
        entry
    };
    let rows = [
        entry_at(5, 0, 2, 1),
        entry_at(5, 1, 2, 1),
        entry_at(6, 0, 2, 1),
        entry_at(6, 1, 2, 2),
        entry_at(7, 0, 1, 2),
    ];
    let files = group_into_files("EVENTS", rows);
    let [first, second] = &files[..] else {
        panic!("{files:?}")
    };
    assert_eq!(first.totals("a file").sequences, [5]);
    assert_eq!(second.totals("another").sequences, [7]);
}

#[test]
fn rows_of_counted_messages_are_dropped() {
    let files = group_into_files(
        "EVENTS",
        (5..9).map(|sequence| deliveries(sequence, HOUR, Channel::Push)),
    );
    let mut file = files[0].clone();
    let sequences = file.sequences();
    assert_eq!(sequences, [5, 6, 7, 8]);
    file.drop_seen_rows(&sequences, &[true, false, false, true]);
    assert_eq!(file.sequences(), [6, 7]);
}

#[test]
fn a_stale_revision_is_not_counted() {
    let mut counted = Counted::default();
    let mut advance = |revision, delivered, dead| {
        let Row::Deliveries(mut row) = deliveries(1, HOUR, Channel::Push).row else {
            return None;
        };
        row.state = Counted {
            revision,
            counts: SettledCounts {
                delivered,
                dead,
                ..SettledCounts::default()
            },
        };
        row.advance(&mut counted)
            .then_some((row.delta.delivered, row.delta.dead))
    };
    assert_eq!(advance(2, 7, 2), Some((7, 2)));
    // A late and a repeated revision.
    assert_eq!(advance(1, 6, 1), None);
    assert_eq!(advance(2, 7, 2), None);
    // A redrive retries the dead deliveries, and delivers one.
    assert_eq!(advance(3, 7, 0), Some((0, -2)));
    assert_eq!(advance(4, 8, 1), Some((1, 1)));
    assert_eq!(advance(5, 8, 1), Some((0, 0)));
}
