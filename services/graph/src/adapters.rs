//! Outbound messages: backfills for the timeline service.

mod backfills;

pub(crate) use backfills::{BackfillError, Backfills};
