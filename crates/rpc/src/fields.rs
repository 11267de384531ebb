//! Validates the fields of a request and reports all violations at once.

use std::fmt::Display;

use herald_model::UserId;
use tonic::Status;

use crate::status;

/// Maximum number of violations in one status.
const VIOLATIONS_MAX: usize = 64;

/// Collects the violations of a request, at most 64.
///
/// ```
/// use herald_rpc::fields::Violations;
///
/// let text = "";
/// let mut violations = Violations::new();
/// violations.check("text", !text.is_empty(), "must not be empty");
/// let author = violations.user_id("author_id", "107");
/// assert!(author.is_some());
/// assert!(violations.into_result().is_err());
/// ```
#[derive(Debug, Default)]
pub struct Violations {
    found: Vec<(String, String)>,
}

impl Violations {
    /// Starts without a violation.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a violation unless `ok`. The description continues the field's name: "must not be empty".
    pub fn check(&mut self, field: impl Into<String>, ok: bool, description: impl Display) -> &mut Self {
        if !ok {
            self.add(field, description);
        }
        self
    }

    /// Adds a violation.
    pub fn add(&mut self, field: impl Into<String>, description: impl Display) -> &mut Self {
        if self.found.len() < VIOLATIONS_MAX {
            self.found.push((field.into(), description.to_string()));
        }
        self
    }

    /// Returns the value of a result, or adds its error as a violation.
    pub fn take<T, E: Display>(&mut self, field: impl Into<String>, result: Result<T, E>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.add(field, error);
                None
            }
        }
    }

    /// Parses a user id, or adds a violation.
    pub fn user_id(&mut self, field: impl Into<String>, id: impl Into<String>) -> Option<UserId> {
        self.take(field, UserId::new(id))
    }

    /// Whether there is no violation.
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// The violations so far, `(field, description)`.
    pub fn found(&self) -> &[(String, String)] {
        &self.found
    }

    /// Returns INVALID_ARGUMENT with all violations if there is at least one.
    pub fn into_result(self) -> Result<(), Status> {
        if self.found.is_empty() {
            Ok(())
        } else {
            Err(status::invalid(&self.found))
        }
    }
}

/// Parses a user id; INVALID_ARGUMENT names the field.
pub fn user_id(field: &str, id: impl Into<String>) -> Result<UserId, Status> {
    UserId::new(id).map_err(|error| status::invalid(&[(field, error.to_string())]))
}

#[cfg(test)]
mod tests {
    use tonic_types::StatusExt as _;

    use super::*;

    #[test]
    fn every_violation_is_reported() {
        let mut violations = Violations::new();
        violations
            .check("text", false, "must not be empty")
            .check("links", true, "too many");
        assert!(violations.user_id("author_id", "a\nb").is_none());
        let status = violations.into_result().unwrap_err();
        let found = status.get_details_bad_request().unwrap().field_violations;
        let fields: Vec<_> = found.iter().map(|v| v.field.as_str()).collect();
        assert_eq!(fields, ["text", "author_id"]);
    }

    #[test]
    fn no_violation_is_no_error() {
        assert!(Violations::new().into_result().is_ok());
    }

    #[test]
    fn a_bad_user_id_names_its_field() {
        let status = user_id("follow.author_id", "").unwrap_err();
        assert_eq!(
            status.get_details_bad_request().unwrap().field_violations[0].field,
            "follow.author_id"
        );
    }
}
