//! Operations on dead letters as they are printed.

use herald_cli::{
    failure::printable,
    output::{Table, count},
    time::{ago, rfc3339},
};
use herald_proto::v1::{self, DeadLetterActKind};
use serde::Serialize;

use super::{letter::Redrive, select};

/// What somebody did.
#[allow(clippy::struct_field_names, reason = "the names are those of the JSON")]
#[derive(Debug, Serialize)]
pub(super) struct Act {
    act_id: u64,
    kind: &'static str,
    actor: String,
    time: Option<String>,
    selection: String,
    letters: u64,
    discarded: Option<u64>,
    redrive: Option<Redrive>,
    #[serde(skip)]
    at: Option<prost_types::Timestamp>,
}

impl From<v1::DeadLetterAct> for Act {
    fn from(act: v1::DeadLetterAct) -> Self {
        let kind = match act.kind() {
            DeadLetterActKind::Unspecified => "unknown",
            DeadLetterActKind::Redrive => "redrive",
            DeadLetterActKind::Discard => "discard",
            DeadLetterActKind::Cancel => "cancel",
        };
        Self {
            act_id: act.act_id,
            kind,
            discarded: (act.kind() == DeadLetterActKind::Discard).then_some(act.discarded_count),
            selection: select::words(act.selection.as_ref()),
            actor: act.actor,
            time: rfc3339(act.create_time.as_ref()),
            letters: act.frozen_count,
            redrive: act.redrive.map(Redrive::from),
            at: act.create_time,
        }
    }
}

/// Acts as a table.
pub(super) fn table(acts: &[Act]) -> String {
    let mut table = Table::new(&["act", "what", "who", "when", ">letters", "which", "outcome"]);
    for act in acts {
        let outcome = match (act.discarded, &act.redrive) {
            (Some(discarded), _) => format!("{} discarded", count(discarded)),
            (None, Some(redrive)) if act.kind == "cancel" => {
                format!("redrive {} stopped", redrive.redrive_id)
            }
            (None, Some(redrive)) => format!("{}: {}", redrive.state, redrive.outcome()),
            (None, None) => String::new(),
        };
        table.row([
            act.act_id.to_string(),
            act.kind.into(),
            printable(&act.actor),
            ago(act.at.as_ref()),
            count(act.letters),
            printable(&act.selection),
            outcome,
        ]);
    }
    table.render()
}
