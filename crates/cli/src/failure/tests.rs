use tonic_types::ErrorDetails;

use super::*;

#[test]
fn error_details_are_kept() {
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
    assert_eq!(json["error"]["retry_after_seconds"], 1.5);
}

#[test]
fn a_quota_in_which_time_makes_no_room_is_a_rejection_and_not_overload() {
    let quota = |retry_after: Option<Duration>| {
        let mut details = ErrorDetails::new();
        details
            .set_error_info("QUOTA_EXCEEDED", "herald.dev", std::collections::HashMap::new())
            .add_quota_failure_violation("author_id", "unfollow one first")
            .set_retry_info(retry_after);
        Failure::from(Status::with_error_details(
            Code::ResourceExhausted,
            "unfollow one first",
            details,
        ))
    };
    let lasting = quota(None);
    assert_eq!(lasting.kind(), Kind::Failed);
    assert!(!lasting.text().contains("retry"), "{}", lasting.text());
    let passing = quota(Some(Duration::from_hours(1)));
    assert_eq!(passing.kind(), Kind::Overloaded);
    assert!(passing.text().contains("retry later"), "{}", passing.text());
}

#[test]
fn a_long_wait_is_for_people_in_text_and_exact_in_json() {
    let mut details = ErrorDetails::new();
    details.set_retry_info(Some(Duration::from_millis(86_399_959)));
    let failure = Failure::from(Status::with_error_details(
        Code::ResourceExhausted,
        "the author has posted too much",
        details,
    ));
    assert!(
        failure.text().contains("retry after: 24 h\n"),
        "{}",
        failure.text()
    );
    assert!(
        failure.json().contains("\"retry_after_seconds\":86399.959"),
        "{}",
        failure.json()
    );
}

#[test]
fn json_leaves_out_what_is_not_known() {
    let json = Failure::failed("no").json();
    assert_eq!(
        json,
        "{\"error\":{\"kind\":\"failed\",\"exit_code\":1,\"message\":\"no\",\"fields\":[]}}\n"
    );
}

#[test]
fn a_call_at_the_wrong_port_is_explained() {
    let mut details = ErrorDetails::new();
    details.set_error_info("WRONG_PORT", "herald.dev", std::collections::HashMap::new());
    let refused = Status::with_error_details(Code::Unimplemented, "not here", details);
    assert!(Failure::from(refused).text().contains("--operator-server"));
    let unknown = Failure::from(Status::unimplemented("no such method"));
    assert!(unknown.text().contains("same version"));
}

#[test]
fn a_field_is_named_once() {
    let mut details = ErrorDetails::new();
    details
        .add_bad_request_violation("text", "must not be empty")
        .add_bad_request_violation("author_id", "is too long");
    let message = "text must not be empty; author_id is too long";
    let failure = Failure::from(Status::with_error_details(
        Code::InvalidArgument,
        message,
        details,
    ));
    assert_eq!(
        console::strip_ansi_codes(&failure.text()),
        format!("error: {message}\n")
    );
}

#[test]
fn a_message_keeps_its_lines() {
    let failure = Failure::failed("nats-server exited; last log lines:\nfirst\nsecond");
    assert_eq!(
        console::strip_ansi_codes(&failure.text()),
        "error: nats-server exited; last log lines:\n  first\n  second\n"
    );
}

#[test]
fn a_client_deadline_is_a_timeout() {
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
fn control_characters_are_replaced() {
    let failure = Failure::from(Status::internal("bad \u{1b}[31mred"));
    assert!(failure.text().contains(r"bad \u{1b}[31mred"));
}
