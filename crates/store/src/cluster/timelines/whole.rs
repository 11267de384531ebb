//! Shards that have lost nothing since the installation was new.
//!
//! A timeline that nobody has read yet is all that Redis was given for its user. That is the whole timeline if Redis was
//! given everything and has kept it. So the first process of a new installation, and the end of `herald migrate`, leave
//! a mark in each shard, and nothing writes it later: a flush takes it away, and a replica or a file that lacks it is
//! not whole. Writes that are lost after the mark are repaired as on all timelines (`monitor`).
//!
//! The mark names the slots of the shard. When slots have moved, it no longer holds.

use redis::{Cmd, Value};

use super::{View, merge::read_value, slots::SlotRange};
use crate::Result;

/// Marks a shard.
pub(super) async fn mark(view: &View, range: SlotRange) -> Result<()> {
    let mut set = redis::cmd("SET");
    set.arg(view.keys.whole(range.first))
        .arg(text(range))
        .arg("EX")
        .arg(view.ttl_s);
    view.writer.run(range.first, set).await?;
    Ok(())
}

/// Reads the mark of the shard that has a slot.
pub(super) fn command(view: &View, slot: u16) -> (u16, Cmd) {
    let first = range(view, slot).map_or(slot, |range| range.first);
    let mut get = redis::cmd("GET");
    get.arg(view.keys.whole(first));
    (first, get)
}

/// Whether the answer to [`command`] says that the shard is whole.
pub(super) fn is_whole(view: &View, slot: u16, answer: &Value) -> Result<bool> {
    let mark: Option<String> = read_value(answer.clone())?;
    Ok(mark.is_some() && mark == range(view, slot).map(text))
}

/// The shards that are whole.
pub(super) async fn ranges(view: &View) -> Result<Vec<SlotRange>> {
    let ranges = view.reader.ranges();
    let commands = ranges.iter().map(|range| command(view, range.first)).collect();
    let answers = view.reader.pipeline(commands).await?;
    let mut whole = Vec::new();
    for (range, answer) in ranges.iter().zip(&answers) {
        if is_whole(view, range.first, answer)? {
            whole.push(*range);
        }
    }
    Ok(whole)
}

fn range(view: &View, slot: u16) -> Option<SlotRange> {
    view.reader
        .ranges()
        .iter()
        .find(|range| range.contains(slot))
        .copied()
}

fn text(range: SlotRange) -> String {
    format!("{}-{}", range.first, range.last)
}
