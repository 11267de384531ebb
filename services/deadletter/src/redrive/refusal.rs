//! Dead letters that can't be redriven: the dead letter is reopened and its reason says why.

use herald_model::time::Timestamp;
use herald_store::{DeadLetter, Reopening};

use crate::domain::fingerprint;

/// Prefix of the reason of a refused dead letter.
const REFUSED_PREFIX: &str = "can't be redriven: ";
/// Separates the reason of the refusal from that of the original failure, which the operator still has to fix.
const ORIGINAL_SEPARATOR: &str = "; original failure: ";

/// The reopening of a claimed dead letter that can't be sent. Its group is that of dead letters refused for the same
/// reason.
pub(super) fn reopening(dead_letter: &DeadLetter, why: &str, now: Timestamp) -> Reopening {
    let group_reason = fingerprint::normalize(&format!("{REFUSED_PREFIX}{why}"));
    Reopening {
        dead_letter: dead_letter.id,
        round: dead_letter.round,
        cause: dead_letter.cause,
        reason: format!(
            "{REFUSED_PREFIX}{why}{ORIGINAL_SEPARATOR}{}",
            original_reason(&dead_letter.reason)
        ),
        group: fingerprint::group(&dead_letter.kind, dead_letter.cause, &group_reason),
        group_reason,
        failed_at: now,
    }
}

/// The reason of the original failure, also of a dead letter that was refused before.
fn original_reason(reason: &str) -> &str {
    reason
        .strip_prefix(REFUSED_PREFIX)
        .and_then(|refused| refused.split_once(ORIGINAL_SEPARATOR))
        .map_or(reason, |(_, original)| original)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_letter_that_is_refused_again_keeps_its_original_reason() {
        let first = "can't be redriven: its message is no longer in DLQ; original failure: status 410; original failure: x";
        assert_eq!(original_reason(first), "status 410; original failure: x");
        assert_eq!(original_reason("status 410"), "status 410");
    }
}
