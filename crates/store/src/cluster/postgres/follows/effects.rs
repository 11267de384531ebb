//! What changes do to edges, as pure functions.

use std::collections::BTreeMap;

use crate::{FollowAction, FollowChange, FollowEffect};

/// Author and follower. In this order, locks and inserts ascend.
pub(super) type Edge = (i64, i64);

/// An edge of the current version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Current {
    /// The version that began its interval.
    pub(super) since: i64,
    pub(super) notify: bool,
}

/// What to write for an edge that is another one after all changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Changed {
    pub(super) edge: Edge,
    /// The interval that ends.
    pub(super) before: Option<Current>,
    /// The notify setting of the interval that begins.
    pub(super) after: Option<bool>,
}

/// Applies changes in order to the current edges, and returns the effect of each and the edges to write, ascending.
pub(super) fn apply(
    changes: &[FollowChange],
    current: &BTreeMap<Edge, Current>,
) -> (Vec<FollowEffect>, Vec<Changed>) {
    let mut order: Vec<(Edge, usize)> = changes
        .iter()
        .enumerate()
        .map(|(index, change)| (edge_of(change), index))
        .collect();
    order.sort_unstable();
    let mut effects = vec![
        FollowEffect {
            changed: false,
            notify: false
        };
        changes.len()
    ];
    let mut changed = Vec::new();
    for of_edge in order.chunk_by(|a, b| a.0 == b.0) {
        let edge = of_edge[0].0;
        let before = current.get(&edge).copied();
        let was = before.map(|before| before.notify);
        let mut is = was;
        for (_, index) in of_edge {
            let after = match changes[*index].action {
                FollowAction::Follow { notify } => Some(notify.or(is).unwrap_or(false)),
                FollowAction::Unfollow => None,
            };
            effects[*index] = FollowEffect {
                changed: after != is,
                notify: after == Some(true),
            };
            is = after;
        }
        if is != was {
            changed.push(Changed {
                edge,
                before,
                after: is,
            });
        }
    }
    (effects, changed)
}

/// The edge that a change is about.
pub(super) fn edge_of(change: &FollowChange) -> Edge {
    (change.author.0.into(), change.follower.0.into())
}

#[cfg(test)]
mod tests {
    use herald_model::UserKey;

    use super::*;

    fn change(follower: u32, action: FollowAction) -> FollowChange {
        FollowChange {
            follower: UserKey(follower),
            author: UserKey(1),
            action,
        }
    }

    #[test]
    fn changes_of_one_edge_are_applied_in_order_and_written_once() {
        let on = FollowAction::Follow { notify: Some(true) };
        let keep = FollowAction::Follow { notify: None };
        let changes = [
            change(5, on),
            change(6, FollowAction::Unfollow),
            change(5, FollowAction::Unfollow),
            change(5, keep),
            change(7, on),
            change(7, FollowAction::Unfollow),
        ];
        let current = [(
            (1, 6),
            Current {
                since: 3,
                notify: true,
            },
        )]
        .into();
        let (effects, changed) = apply(&changes, &current);
        let effects: Vec<_> = effects.iter().map(|e| (e.changed, e.notify)).collect();
        assert_eq!(
            effects,
            [
                (true, true),
                (true, false),
                (true, false),
                (true, false),
                (true, true),
                (true, false)
            ]
        );
        let changed: Vec<_> = changed
            .iter()
            .map(|c| (c.edge, c.before.is_some(), c.after))
            .collect();
        assert_eq!(changed, [((1, 5), false, Some(false)), ((1, 6), true, None)]);
    }
}
