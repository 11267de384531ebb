//! The undo log: the edges that each version of an author's followers replaced, so that older versions can be read.

use herald_model::varint;

use super::block::{Follower, Malformed};
use crate::FollowAction;

/// The edge between a user and an author.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Edge {
    /// No follow.
    Absent,
    /// A follow with notifications off.
    Quiet,
    /// A follow with notifications on.
    Notify,
}

impl Edge {
    /// The edge of a follow.
    pub(crate) fn following(notify: bool) -> Self {
        if notify { Self::Notify } else { Self::Quiet }
    }

    /// The edge after a change of this one.
    pub(crate) fn after(self, action: FollowAction) -> Self {
        match action {
            FollowAction::Unfollow => Self::Absent,
            FollowAction::Follow { notify: Some(notify) } => Self::following(notify),
            FollowAction::Follow { notify: None } if self == Self::Absent => Self::Quiet,
            FollowAction::Follow { notify: None } => self,
        }
    }

    /// The follower of this edge, if any.
    #[inline]
    pub(crate) fn follower(self, key: u32) -> Option<Follower> {
        match self {
            Self::Absent => None,
            Self::Quiet => Some(Follower { key, notify: false }),
            Self::Notify => Some(Follower { key, notify: true }),
        }
    }
}

/// One change of the undo log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct UndoEntry {
    /// The follower.
    pub(crate) follower: u32,
    /// The edge before the change.
    pub(crate) before: Edge,
}

/// Encodes the changes of one version by ascending follower: each as a varint of the difference to the previous
/// follower, times four, plus the edge.
pub(crate) fn encode(undone: &[UndoEntry]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(3 * undone.len());
    let mut last = 0;
    for each in undone {
        varint::write(
            &mut bytes,
            u64::from(each.follower - last) << 2 | each.before as u64,
        );
        last = each.follower;
    }
    bytes
}

/// Decodes the output of [`encode`] and appends it to `into`.
pub(crate) fn decode(bytes: &[u8], into: &mut Vec<UndoEntry>) -> Result<(), Malformed> {
    let mut rest = bytes;
    let mut last = 0_u32;
    while !rest.is_empty() {
        let coded = varint::read(&mut rest).ok_or(Malformed)?;
        let step = u32::try_from(coded >> 2).map_err(|_| Malformed)?;
        last = last.checked_add(step).ok_or(Malformed)?;
        let before = match coded & 3 {
            0 => Edge::Absent,
            1 => Edge::Quiet,
            2 => Edge::Notify,
            _ => return Err(Malformed),
        };
        into.push(UndoEntry {
            follower: last,
            before,
        });
    }
    Ok(())
}

/// The edges at version `from` of all followers that changed after it, up to version `until`. With them, version `from`
/// can be read from the blocks of any version up to `until`: all other followers are unchanged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Undo {
    /// The last version that is included.
    pub(crate) until: u64,
    /// By ascending follower, one edge each.
    pub(crate) edges: Vec<UndoEntry>,
}

impl Undo {
    /// Adds later versions. `more` holds their changes, version by version.
    pub(crate) fn extend(&self, until: u64, more: Vec<UndoEntry>) -> Self {
        let mut edges = self.edges.clone();
        edges.extend(more);
        // The sort is stable, so the change of the earliest version comes first: it holds the edge at `from`.
        edges.sort_by_key(|e| e.follower);
        edges.dedup_by_key(|e| e.follower);
        Self { until, edges }
    }

    /// The edges of followers greater than `follower`.
    pub(crate) fn after(&self, follower: Option<u32>) -> &[UndoEntry] {
        let start = follower.map_or(0, |key| self.edges.partition_point(|e| e.follower <= key));
        &self.edges[start..]
    }
}

/// Encodes the versions created at one time, by ascending author.
pub(crate) fn encode_versions(versions: &[(u32, u64)]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(5 * versions.len());
    let mut last = 0;
    for (author, version) in versions {
        varint::write(&mut bytes, u64::from(author - last));
        varint::write(&mut bytes, *version);
        last = *author;
    }
    bytes
}

/// Decodes the output of [`encode_versions`].
pub(crate) fn decode_versions(bytes: &[u8]) -> Result<Vec<(u32, u64)>, Malformed> {
    let mut rest = bytes;
    let mut last = 0_u32;
    let mut versions = Vec::new();
    while !rest.is_empty() {
        let step = varint::read(&mut rest)
            .and_then(|step| u32::try_from(step).ok())
            .ok_or(Malformed)?;
        last = last.checked_add(step).ok_or(Malformed)?;
        versions.push((last, varint::read(&mut rest).ok_or(Malformed)?));
    }
    Ok(versions)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn edge() -> impl Strategy<Value = Edge> {
        prop_oneof![Just(Edge::Absent), Just(Edge::Quiet), Just(Edge::Notify)]
    }

    proptest! {
        #[test]
        fn decoding_reverses_encoding(edges in prop::collection::btree_map(any::<u32>(), edge(), 0..300)) {
            let undone: Vec<_> = edges.into_iter().map(|(follower, before)| UndoEntry { follower, before }).collect();
            let mut read = Vec::new();
            prop_assert_eq!(decode(&encode(&undone), &mut read), Ok(()));
            prop_assert_eq!(read, undone);
        }

        #[test]
        fn versions_round_trip(versions in prop::collection::btree_map(any::<u32>(), any::<u64>(), 0..300)) {
            let versions: Vec<_> = versions.into_iter().collect();
            prop_assert_eq!(decode_versions(&encode_versions(&versions)), Ok(versions));
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = decode(&bytes, &mut Vec::new());
            let _ = decode_versions(&bytes);
        }
    }

    #[test]
    fn the_earliest_change_holds_the_edge() {
        let at = |follower, before| UndoEntry { follower, before };
        let undo = Undo {
            until: 3,
            edges: vec![at(5, Edge::Absent), at(9, Edge::Notify)],
        };
        let later = undo.extend(
            5,
            vec![at(5, Edge::Quiet), at(7, Edge::Quiet), at(7, Edge::Absent)],
        );
        assert_eq!(later.until, 5);
        assert_eq!(
            later.edges,
            [at(5, Edge::Absent), at(7, Edge::Quiet), at(9, Edge::Notify)]
        );
        assert_eq!(later.after(Some(5)), &later.edges[1..]);
        assert_eq!(later.after(None), &later.edges[..]);
    }
}
