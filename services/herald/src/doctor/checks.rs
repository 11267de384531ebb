//! The checks: functions from the facts to findings.

mod away;
mod consumers;
mod places;
mod readers;
mod streams;

use super::{Finding, Observed};

/// A check.
pub(super) type Check = fn(&Observed) -> Vec<Finding>;

/// All checks.
pub(super) const ALL: [Check; 21] = [
    away::unreachable,
    away::not_ready,
    streams::unreadable,
    streams::missing,
    streams::differs,
    streams::advisories_late,
    streams::retention_short,
    streams::dedupe_window_short,
    streams::single_replica,
    streams::replica_behind,
    streams::frozen,
    streams::fsync,
    consumers::backoff,
    consumers::ack_pending_small,
    readers::paused_on_server,
    readers::unread,
    readers::late,
    consumers::archive_behind,
    places::store,
    places::clocks,
    places::processes,
];
