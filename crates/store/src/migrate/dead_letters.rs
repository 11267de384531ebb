//! Dead letters and the operations on them.

use herald_model::Channel;

use super::{
    part::{Batches, Part},
    source::{Source, corrupt, named, read_u64, rows_after, show_key},
    table::{Table, Type, bigints},
};
use crate::{
    DeadLetterId, OperationId, OperationState, Result,
    cluster::postgres::dead_letters::row::{number, text},
    embedded::{
        database::map_err,
        dead_letters::{
            progress::Progress,
            row::{
                CAUSES, OPERATION_KINDS, OPERATION_STATES, STATES, decode_dead_letter, decode_operation,
                decode_selected,
            },
        },
    },
};

pub(super) const DEAD_LETTERS: Part = Part {
    name: "dead letters",
    tables: &[&DEAD_LETTERS_TABLE],
    estimate: |source| source.dead_letters.approximate_len() as u64,
    read: read_dead_letters,
};

pub(super) const OPERATIONS: Part = Part {
    name: "operations on dead letters",
    tables: &[&OPERATIONS_TABLE, &SELECTED_TABLE],
    estimate: |source| source.dead_letter_operations.approximate_len() as u64,
    read: read_operations,
};

static DEAD_LETTERS_TABLE: Table = Table {
    name: "dead_letters",
    columns: &[
        ("id", Type::Bigint),
        ("sequence", Type::Bigint),
        ("failure_group", Type::Bigint),
        ("author", Type::Bigint),
        ("post", Type::Bigint),
        ("first_failed_at", Type::Bigint),
        ("last_failed_at", Type::Bigint),
        ("stored_at", Type::Bigint),
        ("redrive", Type::Bigint),
        ("redrive_sequence", Type::Bigint),
        ("updated_at", Type::Bigint),
        ("pushes_expire_at", Type::Bigint),
        ("round", Type::Bigint),
        ("cause", Type::Smallint),
        ("channel", Type::Smallint),
        ("state", Type::Smallint),
        ("stream", Type::Text),
        ("consumer", Type::Text),
        ("kind", Type::Text),
        ("reason", Type::Text),
        ("group_reason", Type::Text),
        ("operations", Type::Bigints),
        ("content", Type::Bytea),
    ],
    key: 1,
    replaces: false,
    only: "",
};

static OPERATIONS_TABLE: Table = Table {
    name: "dead_letter_operations",
    columns: &[
        ("id", Type::Bigint),
        ("at", Type::Bigint),
        ("excluded", Type::Bigint),
        ("rate_max", Type::Bigint),
        ("failures_max", Type::Bigint),
        ("push_ttl_us", Type::Bigint),
        ("target", Type::Bigint),
        ("ended_at", Type::Bigint),
        ("selected", Type::Bigint),
        ("reached", Type::Bigint),
        ("skipped", Type::Bigint),
        ("resolved", Type::Bigint),
        ("failed", Type::Bigint),
        ("expired", Type::Bigint),
        ("redrive_after", Type::Bigint),
        ("kind", Type::Smallint),
        ("state", Type::Smallint),
        ("actor", Type::Text),
        ("reason", Type::Text),
        ("selection", Type::Bytea),
    ],
    key: 1,
    replaces: false,
    only: "",
};

static SELECTED_TABLE: Table = Table {
    name: "dead_letter_selected",
    columns: &[
        ("operation", Type::Bigint),
        ("part", Type::Bigint),
        ("dead_letters", Type::Bytea),
    ],
    key: 2,
    replaces: false,
    only: "",
};

fn id_of(key: &[u8], keyspace: &str) -> Result<u64> {
    match (key.len(), read_u64(key)) {
        (8, Some(id)) => Ok(id),
        _ => Err(corrupt(
            format!("the row {} of the keyspace {keyspace}", show_key(key)),
            "its key is no id",
        )),
    }
}

fn read_dead_letters(source: &Source, after: Option<&[u8]>, out: &mut Batches) -> Result<()> {
    for row in rows_after(&source.dead_letters, after) {
        let (key, content) = row?;
        let id = id_of(&key, "dead_letters")?;
        let what = || format!("dead letter {id}");
        let initial = named(decode_dead_letter(DeadLetterId(id), &content), what)?;
        let progress = source.dead_letter_progress.get(&key).map_err(map_err)?;
        let changed = named(progress.map(|row| Progress::decode(&row)).transpose(), || {
            format!("the progress of dead letter {id}")
        })?;
        let progress = changed.clone().unwrap_or_else(|| Progress::of(&initial));
        out.rows(0).push([
            id.into(),
            initial.origin.sequence.into(),
            initial.group.into(),
            initial.author.map(|author| i64::from(author.0)).into(),
            initial.post.map(|post| post.0.cast_signed()).into(),
            initial.first_failed_at.0.into(),
            initial.last_failed_at.0.into(),
            initial.stored_at.0.into(),
            progress.redrive.map(|operation| operation.0.cast_signed()).into(),
            progress.redrive_sequence.into(),
            progress.updated_at.0.into(),
            changed
                .and_then(|progress| progress.pushes_expire_at)
                .map(|at| at.0)
                .into(),
            progress.round.into(),
            number(&CAUSES, &initial.cause).into(),
            initial
                .channel
                .map(|channel| i64::from(number(&Channel::ALL, &channel)))
                .into(),
            number(&STATES, &progress.state).into(),
            text(&initial.origin.stream).into(),
            text(&initial.origin.consumer).into(),
            text(&initial.kind).into(),
            text(&initial.reason.to_lowercase()).into(),
            text(&initial.group_reason).into(),
            bigints(
                progress
                    .operations
                    .iter()
                    .map(|operation| operation.0.cast_signed()),
            )
            .into(),
            content.to_vec().into(),
        ]);
        out.end_row(&key)?;
    }
    Ok(())
}

fn read_operations(source: &Source, after: Option<&[u8]>, out: &mut Batches) -> Result<()> {
    for row in rows_after(&source.dead_letter_operations, after) {
        let (key, row) = row?;
        let id = id_of(&key, "dead_letter_operations")?;
        let what = || format!("operation {id} on dead letters");
        let operation = named(decode_operation(OperationId(id), &row), what)?;
        let selection = source.dead_letter_selections.get(&key).map_err(map_err)?;
        let request = &operation.what;
        out.rows(0).push([
            id.into(),
            request.at.0.into(),
            request.excluded.into(),
            request.rate_max.into(),
            request.failures_max.into(),
            request
                .push_ttl
                .map(|ttl| i64::try_from(ttl.as_micros()).unwrap_or(i64::MAX))
                .into(),
            request.target.map(|target| target.0.cast_signed()).into(),
            operation.ended_at.map(|at| at.0).into(),
            operation.selected.into(),
            operation.reached.into(),
            operation.skipped.into(),
            operation.resolved.into(),
            operation.failed.into(),
            operation.expired.into(),
            operation.redrive_after.into(),
            number(&OPERATION_KINDS, &request.kind).into(),
            number(&OPERATION_STATES, &operation.state).into(),
            text(&request.actor).into(),
            text(&operation.reason).into(),
            selection.map(|row| row.to_vec()).unwrap_or_default().into(),
        ]);
        // What an ended operation selected is not needed any more.
        if operation.state == OperationState::Running {
            for row in source.dead_letter_selected.prefix(&key) {
                let (key, selected) = row.into_inner().map_err(map_err)?;
                let part = key.get(8..).and_then(read_u64).unwrap_or_default();
                named(decode_selected(&selected), || {
                    format!("part {part} of the selection of operation {id}")
                })?;
                out.rows(1)
                    .push([id.into(), part.into(), selected.to_vec().into()]);
            }
        }
        out.end_row(&key)?;
    }
    Ok(())
}
