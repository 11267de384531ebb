//! Operations on dead letters as they are printed.

use herald_cli::{
    failure::printable,
    output::{Table, count},
    time::{ago, rfc3339},
};
use herald_proto::v1::{self, DeadLetterOperationKind};
use serde::Serialize;

use super::{dead_letter::Redrive, select};

/// What somebody did.
#[allow(clippy::struct_field_names, reason = "the names are those of the JSON")]
#[derive(Debug, Serialize)]
pub(super) struct Operation {
    operation_id: u64,
    kind: &'static str,
    actor: String,
    time: Option<String>,
    selection: String,
    dead_letters: u64,
    discarded: Option<u64>,
    redrive: Option<Redrive>,
    #[serde(skip)]
    at: Option<prost_types::Timestamp>,
}

impl From<v1::DeadLetterOperation> for Operation {
    fn from(operation: v1::DeadLetterOperation) -> Self {
        let kind = match operation.kind() {
            DeadLetterOperationKind::Unspecified => "unknown",
            DeadLetterOperationKind::Redrive => "redrive",
            DeadLetterOperationKind::Discard => "discard",
            DeadLetterOperationKind::Cancel => "cancel",
        };
        Self {
            operation_id: operation.operation_id,
            kind,
            discarded: (operation.kind() == DeadLetterOperationKind::Discard)
                .then_some(operation.discarded_count),
            selection: select::words(operation.selection.as_ref()),
            actor: operation.actor,
            time: rfc3339(operation.create_time.as_ref()),
            dead_letters: operation.frozen_count,
            redrive: operation.redrive.map(Redrive::from),
            at: operation.create_time,
        }
    }
}

/// Acts as a table.
pub(super) fn table(operations: &[Operation]) -> String {
    let mut table = Table::new(&[
        "operation",
        "what",
        "who",
        "when",
        ">dead_letters",
        "which",
        "outcome",
    ]);
    for operation in operations {
        let outcome = match (operation.discarded, &operation.redrive) {
            (Some(discarded), _) => format!("{} discarded", count(discarded)),
            (None, Some(redrive)) if operation.kind == "cancel" => {
                format!("redrive {} stopped", redrive.redrive_id)
            }
            (None, Some(redrive)) => format!("{}: {}", redrive.state, redrive.outcome()),
            (None, None) => String::new(),
        };
        table.row([
            operation.operation_id.to_string(),
            operation.kind.into(),
            printable(&operation.actor),
            ago(operation.at.as_ref()),
            count(operation.dead_letters),
            printable(&operation.selection),
            outcome,
        ]);
    }
    table.render()
}
