//! Failures of commands: printed to standard error as text or JSON, and mapped to an exit code.

use std::{error::Error, io, process::ExitCode, time::Duration};

use herald_runtime::tls::Cause;
use serde::Serialize;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::port::Port;
pub use crate::printable::printable;
use crate::time::format_wait;

/// The kind of a failure. It determines the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The server rejected the request, or the command failed locally.
    Failed,
    /// The command line is invalid, or the server rejected a value as invalid.
    Usage,
    /// The server can't be reached or is unavailable.
    Unreachable,
    /// The post, device, user or dead letter doesn't exist.
    NotFound,
    /// The deadline or timeout passed.
    TimedOut,
    /// The server is overloaded and rejects new work.
    Overloaded,
    /// Ctrl-C or SIGTERM stopped the command before it was done.
    Interrupted,
    /// The reader closed standard output, as in `herald timeline 1 | head -1`. Not an error.
    OutputClosed,
}

impl Kind {
    /// The exit code, as documented by `herald --help`.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::OutputClosed => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Unreachable => 3,
            Self::NotFound => 4,
            Self::TimedOut => 5,
            Self::Overloaded => 6,
            Self::Interrupted => 130,
        }
    }
}

/// The failure of a command. `main` prints it once, with `Output::report`.
#[derive(Debug)]
pub struct Failure(Box<Details>);

#[derive(Debug)]
struct Details {
    kind: Kind,
    message: String,
    /// The gRPC status code of the response.
    code: Option<Code>,
    /// `google.rpc.ErrorInfo.reason`.
    reason: Option<String>,
    fields: Vec<Field>,
    retry_after: Option<Duration>,
    hint: Option<String>,
    /// No connection was established, so no request was sent.
    not_connected: bool,
    /// What answered doesn't speak gRPC, or the connection broke.
    no_grpc_answer: bool,
}

/// An invalid field of the request and the reason, as the server reported them.
#[derive(Debug, Clone, Serialize)]
struct Field {
    field: String,
    description: String,
}

impl Failure {
    /// Creates a failure. The message is lowercase and has no full stop.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self(Box::new(Details {
            kind,
            message: message.into(),
            code: None,
            reason: None,
            fields: Vec::new(),
            retry_after: None,
            hint: None,
            not_connected: false,
            no_grpc_answer: false,
        }))
    }

    /// A failure of kind `Failed`.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(Kind::Failed, message)
    }

    /// An invalid argument: a failure of kind `Usage`.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    /// An I/O error; `operation` names the operation that failed and its file or stream.
    pub fn io(operation: impl std::fmt::Display, source: &io::Error) -> Self {
        Self::failed(format!("{operation}: {source}"))
    }

    /// No connection to a port at `server` could be established.
    pub fn no_server(server: &str, port: Port, source: &(dyn Error + 'static)) -> Self {
        let reason = root_cause(source);
        let cause = Cause::of(source);
        let mut failure = match cause {
            Some(cause) => {
                let (what, hint) = tls_failure(cause);
                let message = format!("the TLS connection to {server} failed: {what} ({reason})");
                Self::new(Kind::Unreachable, message).hint(hint)
            }
            None => Self::new(
                Kind::Unreachable,
                format!("no Herald server at {server}: {reason}"),
            )
            .hint(format!(
                "start one with `herald up`, or set the address of its {} with {}",
                port.as_str(),
                port.option()
            )),
        };
        failure.0.not_connected = true;
        // Another server listens there, or the reason was lost with the connection.
        let is_unexplained = matches!(cause, None | Some(Cause::Plaintext));
        failure.0.no_grpc_answer = is_unexplained && server.starts_with("https://");
        failure
    }

    /// Adds a hint: what the user can do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Prefixes the message with the operation that failed.
    #[must_use]
    pub fn during(mut self, operation: &str) -> Self {
        self.0.message = format!("{operation}: {}", self.0.message);
        self
    }

    /// Gives it another kind, and so another exit code.
    #[must_use]
    pub fn with_kind(mut self, kind: Kind) -> Self {
        self.0.kind = kind;
        self
    }

    /// The kind of the failure.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// The message, without fields, reason and hint.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// Delay that the server requested before a retry (`google.rpc.RetryInfo`).
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// Whether no connection was established; the server then did nothing.
    pub fn is_not_connected(&self) -> bool {
        self.0.not_connected
    }

    /// Whether what answered doesn't speak gRPC, or the connection broke.
    pub(crate) fn is_no_grpc_answer(&self) -> bool {
        self.0.no_grpc_answer
    }

    /// Says that TLS is the cause.
    #[must_use]
    pub(crate) fn with_tls_cause(mut self, server: &str, cause: Cause) -> Self {
        let (what, hint) = tls_failure(cause);
        self.0.kind = Kind::Unreachable;
        self.with_message(format!("the TLS connection to {server} failed: {what}"))
            .hint(hint)
    }

    /// Replaces the message.
    #[must_use]
    pub(crate) fn with_message(mut self, message: impl Into<String>) -> Self {
        self.0.message = message.into();
        self
    }

    /// The exit code of the process.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.0.kind.exit_code())
    }

    /// The failure as text, several lines.
    pub(crate) fn text(&self) -> String {
        use std::fmt::Write as _;

        let details = &self.0;
        let style = |text: &str| console::style(text.to_owned()).for_stderr();
        let mut lines = details.message.lines().map(printable);
        let mut text = format!(
            "{} {}\n",
            style("error:").red().bold(),
            lines.next().unwrap_or_default()
        );
        for line in lines {
            let _ = writeln!(text, "  {line}");
        }
        // The message of most invalid requests names each field already.
        let named = |field: &Field| {
            details
                .message
                .contains(&format!("{} {}", field.field, field.description))
        };
        for Field { field, description } in details.fields.iter().filter(|field| !named(field)) {
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
            let _ = writeln!(text, "  retry after: {}", format_wait(after));
        }
        if let Some(hint) = &details.hint {
            let _ = writeln!(text, "{} {hint}", style("hint:").cyan());
        }
        text
    }

    /// The failure as one line with a JSON object. What is not known is left out.
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
            #[serde(skip_serializing_if = "Option::is_none")]
            code: Option<&'static str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            reason: Option<&'a str>,
            fields: &'a [Field],
            #[serde(skip_serializing_if = "Option::is_none")]
            retry_after_seconds: Option<f64>,
            #[serde(skip_serializing_if = "Option::is_none")]
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
        // Can't fail: the report has only strings and numbers.
        serde_json::to_string(&report)
            .map(|json| json + "\n")
            .unwrap_or_default()
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let kind = classify(&status);
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
        inner.no_grpc_answer = is_broken_transport(&status) || is_not_grpc(&status);
        inner.hint = hint_for(&status, kind).map(Into::into);
        if let Some(cause) = Cause::of(&status) {
            let (what, hint) = tls_failure(cause);
            inner.kind = Kind::Unreachable;
            inner.message = format!("the TLS connection failed: {what}");
            inner.hint = Some(hint.into());
            inner.no_grpc_answer = false;
        }
        failure
    }
}

/// Errors of `herald up` and other local work. The message is the error chain.
impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::failed(format!("{error:#}"))
    }
}

/// What is wrong with TLS, and what to do.
fn tls_failure(cause: Cause) -> (&'static str, &'static str) {
    match cause {
        Cause::UnknownAuthority => (
            "the server's certificate is of an authority that is not accepted here",
            "name the file of the server's authority with --ca-file or HERALD_CA_FILE; `herald up --tls` prints it when it \
             is ready",
        ),
        Cause::OtherName => (
            "the server's certificate is for another host name",
            "call the server by a name or address that its certificate has",
        ),
        Cause::Expired => (
            "the server's certificate has expired or is not valid yet",
            "renew the certificate of the server, or set the clock of this machine",
        ),
        Cause::Refused => (
            "the server's certificate is not accepted",
            "see the reason; the file of the server's authority is --ca-file or HERALD_CA_FILE",
        ),
        Cause::Plaintext => (
            "the server does not use TLS",
            "call it with http:// instead of https://",
        ),
        Cause::CertificateRequired => (
            "the server requires a certificate of its callers",
            "name its file with --cert-file or HERALD_CERT_FILE, and that of its key with --key-file or HERALD_KEY_FILE; or \
             this is a port between processes of Herald, which no command calls",
        ),
        Cause::CertificateRefused => (
            "the server does not accept the certificate of this command",
            "use a certificate of an authority that the server accepts, which has not expired: --cert-file and --key-file",
        ),
    }
}

fn classify(status: &Status) -> Kind {
    match status.code() {
        Code::InvalidArgument | Code::OutOfRange => Kind::Usage,
        Code::NotFound => Kind::NotFound,
        Code::DeadlineExceeded => Kind::TimedOut,
        // Tonic reports a deadline that passed on the client this way.
        Code::Cancelled if status.message() == "Timeout expired" => Kind::TimedOut,
        // A retry does not help: the caller has as much as an operator allows.
        Code::ResourceExhausted if is_lasting_quota(status) => Kind::Failed,
        Code::ResourceExhausted => Kind::Overloaded,
        Code::Unavailable => Kind::Unreachable,
        // Tonic reports a broken connection as Unknown or Internal, with the I/O error as its source.
        _ if is_broken_transport(status) => Kind::Unreachable,
        _ => Kind::Failed,
    }
}

/// Whether a quota is used up, and time alone makes no room.
fn is_lasting_quota(status: &Status) -> bool {
    let details = status.get_error_details();
    let retry_after = details.retry_info().and_then(|info| info.retry_delay);
    details.quota_failure().is_some() && retry_after.is_none()
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

/// Whether an HTTP server answered without a gRPC status, in the words of tonic.
fn is_not_grpc(status: &Status) -> bool {
    status.message().contains("grpc-status header missing")
        || status.message().contains("invalid content-type")
}

fn hint_for(status: &Status, kind: Kind) -> Option<&'static str> {
    let is_wrong_port = || {
        let info = status.get_details_error_info();
        info.is_some_and(|info| info.reason == "WRONG_PORT")
    };
    match (kind, status.code()) {
        (Kind::Unreachable, Code::Unavailable) => {
            Some("the server is unavailable; retry later, and check its /readyz and its log")
        }
        (Kind::Unreachable, _) => Some(
            "the connection broke, or this is not Herald's gRPC port (`herald up` prints its gRPC and HTTP \
             addresses when it is ready)",
        ),
        (Kind::Overloaded, _) => Some("nothing was accepted; retry later"),
        (Kind::TimedOut, _) => Some("increase the deadline with --rpc-timeout"),
        (_, Code::Unimplemented) if is_wrong_port() => Some(
            "--server or HERALD_SERVER is the address of the gRPC port, --operator-server or HERALD_OPERATOR_SERVER that \
             of the operator port; `herald up` prints both when it is ready",
        ),
        (_, Code::Unimplemented) => {
            Some("this server has no such method; use a Herald server of the same version as this program")
        }
        (_, Code::Unauthenticated) => Some(
            "set --token-file or HERALD_TOKEN_FILE to a file with an API key (`herald key create` makes one) or a token; \
             `herald up --auth` prints the file with its root key",
        ),
        (_, Code::Internal | Code::Unknown | Code::DataLoss) => Some("see the server's log"),
        _ => None,
    }
}

/// The name of a gRPC status code (google.rpc.Code).
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

/// The innermost cause, such as "connection refused".
fn root_cause(error: &(dyn Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

#[cfg(test)]
mod tests;
