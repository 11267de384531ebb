//! Pure decisions: what an advisory says, which failures are equal, how many letters to have under way, and which travel
//! together.

pub(crate) mod advisory;
pub(crate) mod fingerprint;
pub(crate) mod pace;
pub(crate) mod parcel;
