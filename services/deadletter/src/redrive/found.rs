//! Which of the running operations in the store the holder of the lease starts.

use std::collections::{HashMap, HashSet};

use herald_store::{Operation, OperationId, OperationKind};

/// The running operations that were found so far.
#[derive(Default)]
pub(super) struct FoundOperations {
    started: HashSet<OperationId>,
    /// Discards that are not started, with the number of dead letters that they had reached.
    discards: HashMap<OperationId, u64>,
}

impl FoundOperations {
    /// The operations to start, of all that are running in the store. Each is started once. A discard is run by the
    /// process of its caller, so it is started only if it made no progress since the last call: that process failed.
    pub(super) fn take_due(&mut self, running: Vec<Operation>) -> Vec<Operation> {
        let ids: HashSet<OperationId> = running.iter().map(|operation| operation.id).collect();
        self.started.retain(|id| ids.contains(id));
        self.discards.retain(|id, _| ids.contains(id));
        let mut start = running;
        start.retain(|operation| {
            if self.started.contains(&operation.id) {
                return false;
            }
            let is_due = match operation.what.kind {
                OperationKind::Redrive => true,
                OperationKind::Discard => {
                    self.discards.insert(operation.id, operation.reached) == Some(operation.reached)
                }
                OperationKind::Cancel => false,
            };
            if is_due {
                self.started.insert(operation.id);
            }
            is_due
        });
        start
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use herald_model::time::Timestamp;
    use herald_store::{NewOperation, OperationState};

    use super::*;

    fn operation(id: u64, kind: OperationKind, reached: u64) -> Operation {
        Operation {
            id: OperationId(id),
            what: NewOperation {
                kind,
                actor: "ann".into(),
                at: Timestamp(0),
                selection: Bytes::new(),
                excluded: 0,
                rate_max: 1,
                failures_max: 0,
                push_ttl: None,
                target: None,
            },
            state: OperationState::Running,
            reason: String::new(),
            ended_at: None,
            selected: 9,
            reached,
            skipped: 0,
            resolved: 0,
            failed: 0,
            expired: 0,
            redrive_after: 0,
        }
    }

    #[test]
    fn a_redrive_starts_once_and_a_discard_when_it_makes_no_progress() {
        let mut found = FoundOperations::default();
        let mut start = |running: &[(u64, OperationKind, u64)]| -> Vec<u64> {
            let running = running
                .iter()
                .map(|(id, kind, reached)| operation(*id, *kind, *reached));
            let start = found.take_due(running.collect());
            start.into_iter().map(|operation| operation.id.0).collect()
        };
        let redrive = (1, OperationKind::Redrive, 0);
        assert_eq!(start(&[redrive, (2, OperationKind::Discard, 0)]), [1]);
        assert_eq!(start(&[redrive, (2, OperationKind::Discard, 3)]), [] as [u64; 0]);
        assert_eq!(
            start(&[(2, OperationKind::Discard, 3), (3, OperationKind::Redrive, 0)]),
            [2, 3]
        );
        assert_eq!(
            start(&[(2, OperationKind::Discard, 3), (3, OperationKind::Redrive, 0)]),
            [] as [u64; 0]
        );
        assert_eq!(start(&[]), [] as [u64; 0]);
    }
}
