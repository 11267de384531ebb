//! What became of a letter. It changes three times in a redrive, and is a tenth of what a letter says.

use herald_model::time::Micros;
use prost::Message;

use super::row::{self, STATES, malformed};
use crate::{ActId, Letter, LetterState, Result};

/// The part of a letter that changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Progress {
    pub(super) state: LetterState,
    pub(super) round: u32,
    pub(super) redrive: Option<ActId>,
    pub(super) acts: Vec<ActId>,
    pub(super) redrive_sequence: u64,
    pub(super) updated_at: Micros,
}

/// As it is stored.
#[derive(Clone, PartialEq, Message)]
struct ProgressRow {
    #[prost(uint32, tag = "1")]
    state: u32,
    #[prost(uint32, tag = "2")]
    round: u32,
    #[prost(uint64, optional, tag = "3")]
    redrive: Option<u64>,
    #[prost(uint64, repeated, tag = "4")]
    acts: Vec<u64>,
    #[prost(uint64, tag = "5")]
    redrive_sequence: u64,
    #[prost(int64, tag = "6")]
    updated_at: i64,
}

impl Progress {
    /// That of a letter.
    pub(super) fn of(letter: &Letter) -> Self {
        Self {
            state: letter.state,
            round: letter.round,
            redrive: letter.redrive,
            acts: letter.acts.clone(),
            redrive_sequence: letter.redrive_sequence,
            updated_at: letter.updated_at,
        }
    }

    /// Puts it into its letter.
    pub(super) fn put_into(self, letter: &mut Letter) {
        letter.state = self.state;
        letter.round = self.round;
        letter.redrive = self.redrive;
        letter.acts = self.acts;
        letter.redrive_sequence = self.redrive_sequence;
        letter.updated_at = self.updated_at;
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        ProgressRow {
            state: row::number(&STATES, &self.state),
            round: self.round,
            redrive: self.redrive.map(|act| act.0),
            acts: self.acts.iter().map(|act| act.0).collect(),
            redrive_sequence: self.redrive_sequence,
            updated_at: self.updated_at.0,
        }
        .encode_to_vec()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self> {
        let row = ProgressRow::decode(bytes).map_err(|_| malformed())?;
        Ok(Self {
            state: row::word(&STATES, row.state)?,
            round: row.round,
            redrive: row.redrive.map(ActId),
            acts: row.acts.into_iter().map(ActId).collect(),
            redrive_sequence: row.redrive_sequence,
            updated_at: Micros(row.updated_at),
        })
    }
}
