//! Pure decisions: how an advisory is parsed, how failures are grouped, how fast a redrive runs.

pub(crate) mod advisory;
pub(crate) mod fingerprint;
pub(crate) mod throttle;
