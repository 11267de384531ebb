//! Streams that lost messages, and stores that are older than their streams: finding them, and going on safely.
//!
//! The store has a *mark* of each stream: the newest message that was seen ([`StreamMark`](herald_store::StreamMark)).
//! [`Checker`] compares the streams with the marks, POSTS with the archive, post by post after the mark, and the archive
//! with what it has acknowledged. [`StreamWatch`] does so while a gateway runs. [`Recovery`] makes the damaged streams begin anew above
//! all known sequences, so that nothing is named twice; what they held is then sent again by a repairing audit.
//!
//! *Invariant:* a sequence of a stream never names two messages. A stream that Herald makes begins above the sequences
//! of all earlier streams of its name ([`Topology::beginning`](herald_mesh::Topology::beginning)), and one that lost its
//! tail takes no post until it was recovered.

mod check;
mod discard;
mod error;
mod lost;
mod problem;
mod recover;
mod retry;
mod reused_id;
mod watch;

pub use check::{Checker, last_dead_letter};
pub use error::{Error, Result};
pub use problem::{Problem, Problems};
pub use recover::{Recovered, RecoveredStream, Recovery, RenamedPost};
pub use watch::StreamWatch;
