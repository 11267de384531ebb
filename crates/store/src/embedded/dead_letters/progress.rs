//! The progress of a dead letter. It has a row of its own because a redrive changes it three times and it is a tenth of
//! the size of a dead letter.

use herald_model::time::Timestamp;
use prost::Message;

use super::row::{self, STATES, malformed};
use crate::{DeadLetter, DeadLetterState, OperationId, Result};

/// The mutable part of a dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) state: DeadLetterState,
    pub(crate) round: u32,
    pub(crate) redrive: Option<OperationId>,
    pub(crate) operations: Vec<OperationId>,
    pub(crate) redrive_sequence: u64,
    pub(crate) updated_at: Timestamp,
    /// The end that a redrive gave to the pushes' time to live; `None` for the one that the dead letter was inserted
    /// with.
    pub(crate) pushes_expire_at: Option<Timestamp>,
}

/// The stored row of [`Progress`].
#[derive(Clone, PartialEq, Message)]
struct ProgressRow {
    #[prost(uint32, tag = "1")]
    state: u32,
    #[prost(uint32, tag = "2")]
    round: u32,
    #[prost(uint64, optional, tag = "3")]
    redrive: Option<u64>,
    #[prost(uint64, repeated, tag = "4")]
    operations: Vec<u64>,
    #[prost(uint64, tag = "5")]
    redrive_sequence: u64,
    #[prost(int64, tag = "6")]
    updated_at: i64,
    #[prost(int64, optional, tag = "7")]
    pushes_expire_at: Option<i64>,
}

impl Progress {
    /// Copies the progress from a dead letter.
    pub(crate) fn of(dead_letter: &DeadLetter) -> Self {
        Self {
            state: dead_letter.state,
            round: dead_letter.round,
            redrive: dead_letter.redrive,
            operations: dead_letter.operations.clone(),
            redrive_sequence: dead_letter.redrive_sequence,
            updated_at: dead_letter.updated_at,
            pushes_expire_at: dead_letter.pushes_expire_at,
        }
    }

    /// Copies the progress into its dead letter.
    pub(crate) fn apply_to(self, dead_letter: &mut DeadLetter) {
        dead_letter.state = self.state;
        dead_letter.round = self.round;
        dead_letter.redrive = self.redrive;
        dead_letter.operations = self.operations;
        dead_letter.redrive_sequence = self.redrive_sequence;
        dead_letter.updated_at = self.updated_at;
        // A dead letter without pushes stays without.
        if dead_letter.pushes_expire_at.is_some() && self.pushes_expire_at.is_some() {
            dead_letter.pushes_expire_at = self.pushes_expire_at;
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        ProgressRow {
            state: row::variant_number(&STATES, &self.state),
            round: self.round,
            redrive: self.redrive.map(|operation| operation.0),
            operations: self.operations.iter().map(|operation| operation.0).collect(),
            redrive_sequence: self.redrive_sequence,
            updated_at: self.updated_at.0,
            pushes_expire_at: self.pushes_expire_at.map(|at| at.0),
        }
        .encode_to_vec()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        let row = ProgressRow::decode(bytes).map_err(|_| malformed())?;
        Ok(Self {
            state: row::variant(&STATES, row.state)?,
            round: row.round,
            redrive: row.redrive.map(OperationId),
            operations: row.operations.into_iter().map(OperationId).collect(),
            redrive_sequence: row.redrive_sequence,
            updated_at: Timestamp(row.updated_at),
            pushes_expire_at: row.pushes_expire_at.map(Timestamp),
        })
    }
}
