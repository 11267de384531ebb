//! Why a command failed: for people on standard error, for scripts as JSON and as an exit code.

use std::{error::Error, io, process::ExitCode, time::Duration};

use serde::Serialize;
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// What kind of failure it was; scripts see it as the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Refused by the server, or gone wrong here.
    Failed,
    /// The command line, or a value that the server calls invalid.
    Usage,
    /// No server there, or one that can't serve now.
    Unreachable,
    /// No such post, device or user.
    NotFound,
    /// Not done in the time given.
    TimedOut,
    /// The server takes no more at the moment.
    Overloaded,
    /// Whoever read our standard output has gone: `herald timeline 1 | head -1`. Not an error.
    OutputClosed,
}

impl Kind {
    /// As the help of `herald` documents it.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::OutputClosed => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Unreachable => 3,
            Self::NotFound => 4,
            Self::TimedOut => 5,
            Self::Overloaded => 6,
        }
    }
}

/// A command's failure. `main` reports it once, with `Output::report`.
#[derive(Debug)]
pub struct Failure(Box<Details>);

#[derive(Debug)]
struct Details {
    kind: Kind,
    message: String,
    /// The gRPC status code, when the server answered.
    code: Option<Code>,
    /// `ErrorInfo.reason`.
    reason: Option<String>,
    fields: Vec<Field>,
    retry_after: Option<Duration>,
    hint: Option<String>,
    /// Made by this program before the command did anything: it never reached a server.
    refused: bool,
}

/// A field that the server refused, and why.
#[derive(Debug, Clone, Serialize)]
struct Field {
    field: String,
    description: String,
}

impl Failure {
    /// A failure in words: lowercase, no full stop.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self(Box::new(Details {
            kind,
            message: message.into(),
            code: None,
            reason: None,
            fields: Vec::new(),
            retry_after: None,
            hint: None,
            refused: false,
        }))
    }

    /// Something went wrong on this side.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(Kind::Failed, message)
    }

    /// An argument makes no sense.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    /// A file or stream can't be read or written; `what` says which and what for.
    pub fn io(what: impl std::fmt::Display, source: &io::Error) -> Self {
        Self::failed(format!("{what}: {source}"))
    }

    /// No connection to `server`.
    pub fn no_server(server: &str, source: &(dyn Error + 'static)) -> Self {
        let mut failure = Self::new(
            Kind::Unreachable,
            format!("no Herald server at {server}: {}", root(source)),
        )
        .hint("start one with `herald up`, or name it with --server or HERALD_SERVER");
        failure.0.refused = true;
        failure
    }

    /// Says what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Puts words before the message, for what was being done.
    #[must_use]
    pub fn during(mut self, what: &str) -> Self {
        self.0.message = format!("{what}: {}", self.0.message);
        self
    }

    /// Its kind.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// The message, without fields, reason and hint.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// How long the server asked us to wait before the next try.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// Whether nobody listened when we connected, so that nothing can have been done.
    pub fn is_refused(&self) -> bool {
        self.0.refused
    }

    /// The exit code of the process.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.0.kind.exit_code())
    }

    /// The report for people.
    pub(crate) fn text(&self) -> String {
        use std::fmt::Write as _;

        let details = &self.0;
        let style = |text: &str| console::style(text.to_owned()).for_stderr();
        let mut text = format!(
            "{} {}\n",
            style("error:").red().bold(),
            printable(&details.message)
        );
        for Field { field, description } in &details.fields {
            let _ = writeln!(
                text,
                "  {}: {}",
                style(&printable(field)).bold(),
                printable(description)
            );
        }
        if let Some(reason) = &details.reason {
            let _ = writeln!(text, "  reason: {}", printable(reason));
        }
        if let Some(after) = details.retry_after {
            let _ = writeln!(text, "  try again in: {} s", after.as_secs_f64());
        }
        if let Some(hint) = &details.hint {
            let _ = writeln!(text, "{} {hint}", style("hint:").cyan());
        }
        text
    }

    /// The report for scripts: one JSON object.
    pub(crate) fn json(&self) -> String {
        #[derive(Serialize)]
        struct Report<'a> {
            error: Body<'a>,
        }
        #[derive(Serialize)]
        struct Body<'a> {
            kind: Kind,
            exit_code: u8,
            message: &'a str,
            code: Option<&'static str>,
            reason: Option<&'a str>,
            fields: &'a [Field],
            retry_after_seconds: Option<f64>,
            hint: Option<&'a str>,
        }
        let details = &self.0;
        let report = Report {
            error: Body {
                kind: details.kind,
                exit_code: details.kind.exit_code(),
                message: &details.message,
                code: details.code.map(code_name),
                reason: details.reason.as_deref(),
                fields: &details.fields,
                retry_after_seconds: details.retry_after.map(|after| after.as_secs_f64()),
                hint: details.hint.as_deref(),
            },
        };
        // Strings and numbers always serialize.
        serde_json::to_string(&report)
            .map(|json| json + "\n")
            .unwrap_or_default()
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let kind = kind_of(&status);
        let mut message = status.message().to_owned();
        if message.is_empty() {
            code_name(status.code()).clone_into(&mut message);
        }
        let mut failure = Self::new(kind, message);
        let inner = &mut failure.0;
        inner.code = Some(status.code());
        inner.reason = details
            .error_info()
            .map(|info| info.reason.clone())
            .filter(|reason| !reason.is_empty());
        inner.retry_after = details.retry_info().and_then(|info| info.retry_delay);
        let violations = details
            .bad_request()
            .map(|bad| bad.field_violations.as_slice())
            .unwrap_or_default();
        inner.fields = violations
            .iter()
            .map(|violation| Field {
                field: violation.field.clone(),
                description: violation.description.clone(),
            })
            .collect();
        let quotas = details
            .quota_failure()
            .map(|quota| quota.violations.as_slice())
            .unwrap_or_default();
        inner.fields.extend(quotas.iter().map(|violation| Field {
            field: violation.subject.clone(),
            description: violation.description.clone(),
        }));
        inner.hint = hint_for(&status, kind).map(Into::into);
        failure
    }
}

/// What `herald up` and the like fail with.
impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::failed(format!("{error:#}"))
    }
}

fn kind_of(status: &Status) -> Kind {
    match status.code() {
        Code::InvalidArgument | Code::OutOfRange => Kind::Usage,
        Code::NotFound => Kind::NotFound,
        Code::DeadlineExceeded => Kind::TimedOut,
        // Tonic's own name for a deadline that ran out on this side.
        Code::Cancelled if status.message() == "Timeout expired" => Kind::TimedOut,
        Code::ResourceExhausted => Kind::Overloaded,
        Code::Unavailable => Kind::Unreachable,
        // A connection that broke in the middle arrives as Unknown or Internal, with its cause.
        _ if is_broken_transport(status) => Kind::Unreachable,
        _ => Kind::Failed,
    }
}

fn is_broken_transport(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<tonic::transport::Error>() || error.is::<io::Error>() {
            return true;
        }
        source = error.source();
    }
    status.message().contains("h2 protocol error")
}

fn hint_for(status: &Status, kind: Kind) -> Option<&'static str> {
    match (kind, status.code()) {
        (Kind::Unreachable, Code::Unavailable) => {
            Some("the server can't serve this now; it recovers by itself when what it needs is back")
        }
        (Kind::Unreachable, _) => Some(
            "the connection broke, or this is not Herald's gRPC port (its http port is another one; `herald up` prints \
             both when it starts)",
        ),
        (Kind::Overloaded, _) => Some("nothing was accepted; try again later"),
        (Kind::TimedOut, _) => Some("give it longer with --rpc-timeout"),
        (_, Code::Unimplemented) => {
            Some("this server doesn't offer the call: is it a Herald server of this version?")
        }
        (_, Code::Internal | Code::Unknown | Code::DataLoss) => Some("the server's log says more"),
        _ => None,
    }
}

/// The name of a gRPC code as the specification writes it.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// The innermost cause, which is what a person wants to know ("connection refused").
fn root(error: &(dyn Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// Other people's words on a terminal: no escape sequences, no line breaks.
pub fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn a_rich_error_keeps_its_fields_reason_and_delay() {
        let mut details = ErrorDetails::new();
        details
            .set_error_info("STREAM_FULL", "herald.dev", std::collections::HashMap::new())
            .add_bad_request_violation("author_id", "must not be empty")
            .set_retry_info(Some(Duration::from_millis(1_500)));
        let failure = Failure::from(Status::with_error_details(
            Code::ResourceExhausted,
            "the stream is full",
            details,
        ));
        assert_eq!(failure.kind(), Kind::Overloaded);
        assert_eq!(failure.retry_after(), Some(Duration::from_millis(1_500)));
        let text = failure.text();
        for part in [
            "the stream is full",
            "author_id: must not be empty",
            "STREAM_FULL",
            "1.5 s",
            "hint:",
        ] {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
        let json: serde_json::Value = serde_json::from_str(&failure.json()).unwrap();
        assert_eq!(json["error"]["code"], "RESOURCE_EXHAUSTED");
        assert_eq!(json["error"]["exit_code"], 6);
        assert_eq!(json["error"]["fields"][0]["field"], "author_id");
    }

    #[test]
    fn a_deadline_on_this_side_is_a_timeout() {
        assert_eq!(
            Failure::from(Status::cancelled("Timeout expired")).kind(),
            Kind::TimedOut
        );
        assert_eq!(
            Failure::from(Status::cancelled("by somebody")).kind(),
            Kind::Failed
        );
    }

    #[test]
    fn escape_sequences_of_others_do_not_reach_the_terminal() {
        let failure = Failure::from(Status::internal("bad \u{1b}[31mred"));
        assert!(failure.text().contains("bad  [31mred"));
    }
}
