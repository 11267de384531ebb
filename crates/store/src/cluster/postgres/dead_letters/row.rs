//! Rows of dead letters and operations as values of the store.

use std::time::Duration;

use herald_model::time::Timestamp;
use sqlx::{FromRow, Row as _, postgres::PgRow};

use crate::{
    DeadLetter, DeadLetterId, Error, ErrorKind, NewOperation, Operation, OperationId, Result,
    embedded::dead_letters::row::{
        OPERATION_KINDS, OPERATION_STATES, STATES, decode_dead_letter, variant, variant_number,
    },
};

/// The columns of [`DeadLetterRow`].
pub(super) const COLUMNS: &str =
    "id, content, state, round, redrive, redrive_sequence, operations, updated_at, pushes_expire_at";

/// A dead letter: its content and its progress.
pub(super) struct DeadLetterRow {
    pub(super) id: i64,
    content: Vec<u8>,
    state: i16,
    pub(super) round: i64,
    pub(super) redrive: Option<i64>,
    redrive_sequence: i64,
    operations: Vec<i64>,
    updated_at: i64,
    pushes_expire_at: Option<i64>,
}

impl FromRow<'_, PgRow> for DeadLetterRow {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        Ok(Self {
            id: row.try_get("id")?,
            content: row.try_get("content")?,
            state: row.try_get("state")?,
            round: row.try_get("round")?,
            redrive: row.try_get("redrive")?,
            redrive_sequence: row.try_get("redrive_sequence")?,
            operations: row.try_get("operations")?,
            updated_at: row.try_get("updated_at")?,
            pushes_expire_at: row.try_get("pushes_expire_at")?,
        })
    }
}

impl DeadLetterRow {
    /// The dead letter. [`ErrorKind::Corrupt`] if its row can't be decoded.
    pub(super) fn decode(self) -> Result<DeadLetter> {
        let id = DeadLetterId(self.id.cast_unsigned());
        let corrupt = |error: Error| {
            Error::with_source(
                ErrorKind::Corrupt,
                format!("can't decode the row of dead letter {}", id.0),
                error,
            )
        };
        let mut dead_letter = decode_dead_letter(id, &self.content).map_err(corrupt)?;
        dead_letter.state = variant(&STATES, self.state.cast_unsigned().into()).map_err(corrupt)?;
        dead_letter.round = self.round as u32;
        dead_letter.redrive = self
            .redrive
            .map(|operation| OperationId(operation.cast_unsigned()));
        dead_letter.operations = self
            .operations
            .into_iter()
            .map(|operation| OperationId(operation.cast_unsigned()))
            .collect();
        dead_letter.redrive_sequence = self.redrive_sequence.cast_unsigned();
        dead_letter.updated_at = Timestamp(self.updated_at);
        // A dead letter without pushes stays without.
        if dead_letter.pushes_expire_at.is_some() && self.pushes_expire_at.is_some() {
            dead_letter.pushes_expire_at = self.pushes_expire_at.map(Timestamp);
        }
        Ok(dead_letter)
    }

    /// The dead letter; `None`, after a line in the log, if its row can't be decoded. Lists leave it out.
    pub(super) fn decode_or_skip(self) -> Option<DeadLetter> {
        let id = self.id;
        match self.decode() {
            Ok(dead_letter) => Some(dead_letter),
            Err(error) => {
                tracing::error!(
                    dead_letter = id,
                    error = &error as &dyn std::error::Error,
                    "skipped a dead letter whose row can't be decoded"
                );
                None
            }
        }
    }
}

/// The number of a variant as a column.
pub(crate) fn number<T: PartialEq>(all: &[T], variant: &T) -> i16 {
    variant_number(all, variant) as i16
}

/// A text as a column, which can't hold the character U+0000.
pub(crate) fn text(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// The columns of [`OperationRow`], as a literal.
macro_rules! operation_columns {
    () => {
        "id, kind, state, at, excluded, rate_max, failures_max, selected, reached, skipped, resolved, failed, expired, \
         redrive_after, push_ttl_us, target, ended_at, actor, reason, selection"
    };
}
pub(super) use operation_columns;

/// An operation.
pub(super) struct OperationRow {
    id: i64,
    kind: i16,
    state: i16,
    numbers: [i64; 11],
    options: [Option<i64>; 3],
    actor: String,
    reason: String,
    selection: Vec<u8>,
}

impl FromRow<'_, PgRow> for OperationRow {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        let number = |name: &str| row.try_get::<i64, _>(name);
        let option = |name: &str| row.try_get::<Option<i64>, _>(name);
        Ok(Self {
            id: number("id")?,
            kind: row.try_get("kind")?,
            state: row.try_get("state")?,
            numbers: [
                number("at")?,
                number("excluded")?,
                number("rate_max")?,
                number("failures_max")?,
                number("selected")?,
                number("reached")?,
                number("skipped")?,
                number("resolved")?,
                number("failed")?,
                number("expired")?,
                number("redrive_after")?,
            ],
            options: [option("push_ttl_us")?, option("target")?, option("ended_at")?],
            actor: row.try_get("actor")?,
            reason: row.try_get("reason")?,
            selection: row.try_get("selection")?,
        })
    }
}

impl OperationRow {
    pub(super) fn id(&self) -> i64 {
        self.id
    }

    pub(super) fn decode(self) -> Result<Operation> {
        let id = OperationId(self.id.cast_unsigned());
        let corrupt = |error: Error| {
            Error::with_source(
                ErrorKind::Corrupt,
                format!("can't decode the row of operation {}", id.0),
                error,
            )
        };
        let kind = variant(&OPERATION_KINDS, self.kind.cast_unsigned().into()).map_err(corrupt)?;
        let state = variant(&OPERATION_STATES, self.state.cast_unsigned().into()).map_err(corrupt)?;
        let [
            at,
            excluded,
            rate_max,
            failures_max,
            selected,
            reached,
            skipped,
            resolved,
            failed,
            expired,
            redrive_after,
        ] = self.numbers;
        let [push_ttl_us, target, ended_at] = self.options;
        Ok(Operation {
            id,
            what: NewOperation {
                kind,
                actor: self.actor,
                at: Timestamp(at),
                selection: self.selection.into(),
                excluded: excluded.cast_unsigned(),
                rate_max: rate_max as u32,
                failures_max: failures_max as u32,
                push_ttl: push_ttl_us.map(|us| Duration::from_micros(us.cast_unsigned())),
                target: target.map(|operation| OperationId(operation.cast_unsigned())),
            },
            state,
            reason: self.reason,
            ended_at: ended_at.map(Timestamp),
            selected: selected.cast_unsigned(),
            reached: reached.cast_unsigned(),
            skipped: skipped.cast_unsigned(),
            resolved: resolved.cast_unsigned(),
            failed: failed.cast_unsigned(),
            expired: expired.cast_unsigned(),
            redrive_after: redrive_after.cast_unsigned(),
        })
    }
}

/// The error of a write that names an operation which does not exist.
pub(super) fn no_operation(id: OperationId) -> Error {
    Error::new(ErrorKind::Corrupt, format!("operation {} does not exist", id.0))
}
