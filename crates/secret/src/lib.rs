//! Settings that are never printed: `Debug` and `Serialize` hide them.

mod redact;
mod secret;

pub use redact::{is_placeholder, password};
pub use secret::{Secret, SecretUrl, with_secrets_exposed};
