//! Dead letters that can't be sent once more: an operator reads why in the dead letter itself, as after a redrive that failed.

use herald_model::time::Timestamp;
use herald_store::{DeadLetter, Reopening};

use crate::domain::fingerprint;

/// How the reason of such a dead letter begins.
const REFUSED: &str = "can't be redriven: ";
/// What stands before the reason for which the message itself was given up: that is still what is to be mended.
const GIVEN_UP: &str = "; given up: ";

/// Opens a dead letter again that was taken and can't be sent. It joins those that can't be sent for the same reason.
pub(super) fn of(dead_letter: &DeadLetter, why: &str, now: Timestamp) -> Reopening {
    let group_reason = fingerprint::normal(&format!("{REFUSED}{why}"));
    Reopening {
        dead_letter: dead_letter.id,
        round: dead_letter.round,
        cause: dead_letter.cause,
        reason: format!("{REFUSED}{why}{GIVEN_UP}{}", given_up(&dead_letter.reason)),
        group: fingerprint::group(&dead_letter.kind, dead_letter.cause, &group_reason),
        group_reason,
        failed_at: now,
    }
}

/// The reason for which the message was given up, also of a dead letter that was refused before.
fn given_up(reason: &str) -> &str {
    reason
        .strip_prefix(REFUSED)
        .and_then(|refused| refused.split_once(GIVEN_UP))
        .map_or(reason, |(_, given_up)| given_up)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_letter_that_is_refused_again_keeps_its_first_reason() {
        let first = "can't be redriven: it is no longer in DLQ; given up: status 410; given up: x";
        assert_eq!(given_up(first), "status 410; given up: x");
        assert_eq!(given_up("status 410"), "status 410");
    }
}
