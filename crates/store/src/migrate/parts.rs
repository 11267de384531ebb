//! The parts of a store, in the order in which they are moved.

use super::{accounts, dead_letters, follows, ledger, part::Part, posts, timelines, totals};

/// All parts. Those that others refer to come first.
pub(super) static PARTS: [Part; 19] = [
    accounts::USERS,
    accounts::ERASURES,
    follows::FOLLOWS,
    follows::MOMENTS,
    posts::POSTS,
    posts::REQUESTS,
    posts::REMOVED,
    accounts::DEVICES,
    accounts::PREFERENCES,
    accounts::API_KEYS,
    ledger::LEDGER,
    totals::SEEN,
    totals::COUNTS,
    totals::CHUNKS,
    totals::FILES,
    dead_letters::DEAD_LETTERS,
    dead_letters::OPERATIONS,
    accounts::ERASED_TIMELINES,
    timelines::TIMELINES,
];
