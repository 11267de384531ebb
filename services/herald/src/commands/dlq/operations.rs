//! Output of the audit log: operations on dead letters. The JSON keys are the field names of the API.

use herald_cli::{
    failure::printable,
    output::{Table, count},
    time::{ago, rfc3339},
};
use herald_proto::v1::{self, DeadLetterOperationKind};
use serde::Serialize;

use super::{
    dead_letter::{Redrive, operation_state_name, truncate_reason},
    select,
};

/// An operation on dead letters.
#[allow(clippy::struct_field_names, reason = "the names are those of the JSON")]
#[derive(Debug, Serialize)]
pub(super) struct Operation {
    operation_id: u64,
    kind: &'static str,
    state: &'static str,
    reason: String,
    actor: String,
    create_time: Option<String>,
    selection: String,
    selected_count: u64,
    discarded_count: Option<u64>,
    redrive: Option<Redrive>,
    #[serde(skip)]
    created: Option<prost_types::Timestamp>,
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
            state: operation_state_name(operation.state()),
            kind,
            discarded_count: (operation.kind() == DeadLetterOperationKind::Discard)
                .then_some(operation.discarded_count),
            selection: select::describe(operation.selection.as_ref()),
            reason: operation.reason,
            actor: operation.actor,
            create_time: rfc3339(operation.create_time.as_ref()),
            selected_count: operation.selected_count,
            redrive: operation.redrive.map(Redrive::from),
            created: operation.create_time,
        }
    }
}

/// Formats operations as a table.
pub(super) fn table(operations: &[Operation]) -> String {
    let mut table = Table::new(&[
        "operation",
        "kind",
        "actor",
        "time",
        ">dead letters",
        "selection",
        "result",
    ]);
    for operation in operations {
        let result = match (operation.discarded_count, &operation.redrive) {
            (Some(discarded), _) => {
                let reason = match operation.reason.as_str() {
                    "" => String::new(),
                    reason => format!(" ({})", truncate_reason(reason)),
                };
                format!("{}: {} discarded{reason}", operation.state, count(discarded))
            }
            (None, Some(redrive)) if operation.kind == "cancel" => {
                format!("redrive {} cancelled", redrive.redrive_id)
            }
            (None, Some(redrive)) => format!("{}: {}", redrive.state, redrive.progress()),
            (None, None) => String::new(),
        };
        table.row([
            operation.operation_id.to_string(),
            operation.kind.into(),
            printable(&operation.actor),
            ago(operation.created.as_ref()),
            count(operation.selected_count),
            printable(&operation.selection),
            result,
        ]);
    }
    table.render()
}
