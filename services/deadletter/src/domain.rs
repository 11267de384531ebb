//! Pure decisions: what an advisory says, which failures are equal, how many dead letters to have under way.

pub(crate) mod advisory;
pub(crate) mod fingerprint;
pub(crate) mod pace;
