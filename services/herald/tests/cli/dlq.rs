//! `herald dlq`

use herald_proto::v1::*;
use serde_json::json;

use crate::{
    fake_dead_letters::redrive,
    run::{CommandResult, herald, herald_with_input},
    server::Server,
    terminal::Terminal,
};

#[tokio::test]
async fn dead_letters_are_listed_for_people_and_programs() {
    let server = Server::start().await;
    let text = herald(
        &server.url,
        &[
            "dlq",
            "list",
            "--author",
            "107",
            "--since",
            "1h",
            "--cause",
            "terminated",
        ],
    )
    .await
    .ok()
    .stdout;
    for part in [
        "DEAD LETTER",
        "push-normal",
        "webhook status 503",
        "--page-token NEXT",
    ] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
    assert!(!text.contains('\u{1b}'), "{text:?}");
    let asked: ListDeadLettersRequest = server.call();
    let filter = asked.filter.unwrap();
    assert_eq!(filter.state(), DeadLetterState::Open);
    assert_eq!(filter.cause(), DeadLetterCause::Terminated);
    assert_eq!(
        (&filter.author_id[..], filter.start_time.is_some()),
        ("107", true)
    );
    assert!(!asked.oldest_first);

    let pages = herald(
        &server.url,
        &["dlq", "list", "--state", "any", "--all", "-o", "json"],
    )
    .await
    .ok()
    .stdout;
    let pages: Vec<serde_json::Value> = pages
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(pages.len(), 2);
    let first = &pages[0]["dead_letters"][0];
    assert_eq!(first["dead_letter_id"], 17);
    assert_eq!(first["cause"], "terminated");
    assert_eq!(
        (&first["undelivered_count"], &first["trace_id"]),
        (&json!(2), &json!(null))
    );
    assert_eq!(first["last_failure_time"], "2026-01-31T08:00:02Z");
}

#[tokio::test]
async fn groups_and_one_dead_letter_are_shown() {
    let server = Server::start().await;
    let text = herald(&server.url, &["dlq", "groups"]).await.ok().stdout;
    for part in [
        "8c51a3f2b7d90e64",
        "1,234",
        "status 503: #",
        "1,234 dead letters in 1 group",
    ] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
    let text = herald(&server.url, &["dlq", "show", "17"]).await.ok().stdout;
    for part in [
        "dead letter 17: open",
        "9 of 107",
        "2 of 3 recipients",
        "undelivered: bob, and 1 more",
        "header: Herald-Type",
        r#"payload: {"postId":"9"}"#,
        "done: 3 resolved",
    ] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
    let json = herald(&server.url, &["dlq", "show", "17", "--undelivered", "-o", "json"])
        .await
        .ok()
        .json();
    assert_eq!(json["undelivered_user_ids"], json!(["bob", "cat"]));
    assert_eq!(json["payload_base64"], "cGF5bG9hZA==");
    assert_eq!(json["payload_json"]["postId"], "9");
}

#[tokio::test]
async fn a_redrive_prints_its_result_and_sends_its_actor() {
    let server = Server::start().await;
    server.add_redrive([
        redrive(DeadLetterOperationState::Running, 0, 0, 2),
        redrive(DeadLetterOperationState::Done, 3, 0, 0),
    ]);
    let text = herald(&server.url, &["dlq", "redrive", "17", "18", "--rate", "50"])
        .await
        .ok()
        .stdout;
    assert!(text.starts_with("redrive 4 done: 3 resolved"), "{text}");
    let asked: RedriveDeadLettersRequest = server.call();
    assert_eq!(asked.selection.unwrap().dead_letter_ids, [17, 18]);
    assert_eq!((asked.rate_max, asked.failures_max), (50, Some(100)));
    let actor = server.actors().remove(0);
    let (user, host) = actor.split_once('@').unwrap();
    assert!(!user.is_empty() && !host.is_empty(), "{actor}");

    // Failed dead letters are exit code 1, after the result is printed.
    server.add_redrive([redrive(DeadLetterOperationState::Stopped, 1, 2, 0)]);
    let done = herald(
        &server.url,
        &[
            "dlq",
            "redrive",
            "--group",
            "8c51a3f2b7d90e64",
            "--max-failures",
            "2",
            "-o",
            "json",
        ],
    )
    .await;
    assert_eq!(done.code, 1, "{done:?}");
    assert_eq!(done.json()["state"], "stopped");
    assert_eq!(done.json()["failed_count"], 2);
    assert!(
        done.error()["message"]
            .as_str()
            .unwrap()
            .contains("2 dead letters failed again")
    );

    // So is a redrive that an error stopped.
    server.add_redrive([Redrive {
        reason: "failed: the store failed: malformed".into(),
        ..redrive(DeadLetterOperationState::Stopped, 1, 0, 0)
    }]);
    let done = herald(&server.url, &["dlq", "redrive", "--all"]).await;
    assert_eq!(done.code, 1, "{done:?}");
    assert!(
        done.stdout.contains("(failed: the store failed: malformed)"),
        "{done:?}"
    );
    assert!(
        done.stderr.contains("redrive 4 stopped before its end"),
        "{done:?}"
    );

    // The connection breaks: the redrive continues on the server.
    server.add_redrive([redrive(DeadLetterOperationState::Running, 1, 0, 1)]);
    let done = herald(&server.url, &["dlq", "redrive", "--all"]).await;
    assert_eq!(done.code, 3, "{done:?}");
    assert!(
        done.stderr.contains("redrive 4 continues on the server"),
        "{done:?}"
    );

    server.add_redrive([redrive(DeadLetterOperationState::Unspecified, 0, 0, 0)]);
    let text = herald(&server.url, &["dlq", "redrive", "--all", "--dry-run"])
        .await
        .ok()
        .stdout;
    assert!(text.ends_with("3 dead letters would be redriven\n"), "{text}");
    let text = herald(&server.url, &["dlq", "cancel", "4"]).await.ok().stdout;
    assert!(
        text.contains("cancelled") && text.contains("stopped by ann@laptop"),
        "{text}"
    );
}

/// Runs a discard on a terminal and answers its question. Returns the `dry_run` of each call, and the command's result.
async fn discard_on_terminal(answer: &str, options: &[&str]) -> (Vec<bool>, CommandResult) {
    let server = Server::start().await;
    let arguments = [&["dlq", "discard", "17", "18"], options].concat();
    let mut terminal = Terminal::start(&server.url, &arguments);
    terminal
        .wait_for("Discard 2 dead letters? They can't be redriven any more. [y/N] ")
        .await;
    let before = server.calls::<DiscardDeadLettersRequest>();
    assert!(
        before.iter().all(|call| call.dry_run),
        "only dry runs before the answer: {before:?}"
    );
    terminal.type_text(answer);
    let done = terminal.end().await;
    let calls = server.calls::<DiscardDeadLettersRequest>();
    (calls.iter().map(|call| call.dry_run).collect(), done)
}

#[tokio::test]
async fn a_discard_on_a_terminal_asks_for_confirmation() {
    for answer in ["y\n", "Yes\n"] {
        let (calls, done) = discard_on_terminal(answer, &[]).await;
        let done = done.ok();
        assert_eq!(calls, [true, false], "{answer:?}");
        assert_eq!(done.stdout, "2 dead letters discarded\n");
        // The groups are printed before the question.
        let (group, question) = (done.stderr.find("8c51a3f2b7d90e64"), done.stderr.find("[y/N]"));
        assert!(group.is_some() && group < question, "{done:?}");
    }
    // Ctrl-D closes the input without an answer.
    for answer in ["n\n", "\n", "yeah\n", "\u{4}"] {
        let (calls, done) = discard_on_terminal(answer, &[]).await;
        assert_eq!((calls, done.code), (vec![true], 1), "{answer:?}: {done:?}");
        assert!(
            done.stderr.contains("nothing was discarded: not confirmed"),
            "{done:?}"
        );
        assert_eq!(done.stdout, "");
    }
    let (_, done) = discard_on_terminal("y\n", &["-o", "json"]).await;
    assert_eq!(done.ok().json(), json!({ "discarded_count": 2 }));
}

#[tokio::test]
async fn a_discard_without_a_terminal_needs_yes() {
    let server = Server::start().await;
    for refused in [
        herald(&server.url, &["dlq", "discard", "17"]).await,
        // Input from a pipe is not a confirmation.
        herald_with_input(&server.url, &["dlq", "discard", "17"], "y\n").await,
    ] {
        assert_eq!(refused.code, 2, "{refused:?}");
        assert!(
            refused
                .stderr
                .contains("discarding can't be undone: confirm it with --yes"),
            "{refused:?}"
        );
    }
    assert!(server.calls::<DiscardDeadLettersRequest>().is_empty());
    let text = herald(&server.url, &["dlq", "discard", "17", "18", "--yes"])
        .await
        .ok()
        .stdout;
    assert_eq!(text, "2 dead letters discarded\n");
    let text = herald(
        &server.url,
        &["dlq", "discard", "--cause", "unreadable", "--dry-run"],
    )
    .await
    .ok()
    .stdout;
    assert!(text.contains("2 dead letters would be discarded"), "{text}");
    let calls: Vec<_> = server
        .calls::<DiscardDeadLettersRequest>()
        .iter()
        .map(|call| call.dry_run)
        .collect();
    assert_eq!(calls, [false, true]);
}

#[tokio::test]
async fn a_redrive_tells_how_many_pushes_are_not_sent() {
    let server = Server::start().await;
    let expired = |state| Redrive {
        expired_count: 2,
        ..redrive(state, 3, 0, 0)
    };
    server.add_redrive([expired(DeadLetterOperationState::Unspecified)]);
    let text = herald(&server.url, &["dlq", "redrive", "--all", "--dry-run"])
        .await
        .ok()
        .stdout;
    for part in [
        "and 2 more groups",
        "3 dead letters would be redriven; the pushes of 2 dead letters have expired and would not be sent",
        "--push-ttl",
    ] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
    server.add_redrive([expired(DeadLetterOperationState::Done)]);
    let text = herald(&server.url, &["dlq", "redrive", "--all"])
        .await
        .ok()
        .stdout;
    assert!(
        text.starts_with(
            "redrive 4 done: 3 resolved; the pushes of 2 dead letters had expired and were not sent"
        ),
        "{text}"
    );
    server.add_redrive([redrive(DeadLetterOperationState::Done, 3, 0, 0)]);
    let arguments = ["dlq", "redrive", "--all", "--push-ttl", "90m", "-o", "json"];
    let json = herald(&server.url, &arguments).await.ok().json();
    assert_eq!(json["expired_count"], 0);
    let asked = server.calls::<RedriveDeadLettersRequest>();
    let push_ttl = asked.last().unwrap().push_ttl.unwrap();
    assert_eq!((push_ttl.seconds, push_ttl.nanos), (5_400, 0));
}

#[tokio::test]
async fn a_selection_without_open_dead_letters_is_told() {
    let server = Server::start().await;
    server.add_redrive([Redrive {
        selected_count: 0,
        ..redrive(DeadLetterOperationState::Done, 0, 0, 0)
    }]);
    let arguments = ["dlq", "redrive", "--group", "8c51a3f2b7d90e64"];
    let text = herald(&server.url, &arguments).await.ok().stdout;
    assert_eq!(
        text,
        "nothing to redrive: the selection has no open dead letters\n"
    );
    // A malformed group id is refused before the call.
    for command in ["redrive", "discard", "list", "groups"] {
        let refused = herald(&server.url, &["dlq", command, "--group", "zz"]).await;
        assert_eq!(refused.code, 2, "{refused:?}");
        assert!(
            refused.stderr.contains("`herald dlq groups` lists the groups"),
            "{refused:?}"
        );
    }
    assert!(server.calls::<DiscardDeadLettersRequest>().is_empty());
}

#[tokio::test]
async fn the_log_lists_operations() {
    let server = Server::start().await;
    let text = herald(&server.url, &["dlq", "log"]).await.ok().stdout;
    for part in [
        "ann@laptop",
        "stream PUSH",
        "done: 3 resolved",
        "--page-token NEXT",
    ] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
    let json = herald(&server.url, &["dlq", "log", "-o", "json"])
        .await
        .ok()
        .json();
    assert_eq!(json["operations"][0]["redrive"]["resolved_count"], 3);
    assert_eq!(json["operations"][0]["selection"], "stream PUSH");
}
