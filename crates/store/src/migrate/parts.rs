//! The parts of a store, in the order in which they are moved.

use super::{accounts, dead_letters, follows, ledger, part::Part, posts, timelines, totals};

/// All parts. Those that others refer to come first.
pub(super) static PARTS: [Part; 15] = [
    accounts::USERS,
    follows::FOLLOWS,
    follows::MOMENTS,
    posts::POSTS,
    posts::REQUESTS,
    accounts::DEVICES,
    accounts::PREFERENCES,
    ledger::LEDGER,
    totals::SEEN,
    totals::COUNTS,
    totals::CHUNKS,
    totals::FILES,
    dead_letters::DEAD_LETTERS,
    dead_letters::OPERATIONS,
    timelines::TIMELINES,
];
