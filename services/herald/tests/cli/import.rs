//! `herald import follows`

use std::{collections::HashSet, fmt::Write, process::Stdio, time::Duration};

use herald_proto::v1::{Follow, ImportFollowsRequest};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::AsyncWriteExt as _;
use tonic::Status;

use crate::{
    run::{LIMIT, command, herald, herald_with_input},
    server::Server,
    terminal::Terminal,
};

fn follows(server: &Server) -> Vec<Follow> {
    server
        .calls::<ImportFollowsRequest>()
        .into_iter()
        .flat_map(|request| request.follows)
        .collect()
}

#[tokio::test]
async fn valid_lines_are_imported_and_invalid_ones_reported() {
    let server = Server::start().await;
    // The server rejects the follow with index 3, which is on line 7.
    server.reject_follow(3, "author_id", "is not welcome");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(
        file.path(),
        "# who follows whom\n1 2\n\n2 3\nonly-one\n3\t4\n4 5\n6 6\n",
    )
    .unwrap();
    let path = file.path().to_str().unwrap();

    let done = herald(&server.url, &["import", "follows", path, "--output", "json"]).await;
    assert_eq!(done.code, 1, "{done:?}");
    let summary = done.json();
    assert_eq!(
        (
            &summary["line_count"],
            &summary["imported_count"],
            &summary["unchanged_count"],
            &summary["failed_count"]
        ),
        (&8.into(), &3.into(), &0.into(), &3.into())
    );
    let failures: Vec<(u64, &str)> = summary["failures"]
        .as_array()
        .unwrap()
        .iter()
        .map(|failure| {
            (
                failure["line"].as_u64().unwrap(),
                failure["reason"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        failures,
        [
            (5, "has one user id, needs two"),
            (7, "is not welcome"),
            (8, "a user can't follow themselves")
        ]
    );
    assert!(summary["follows_per_second"].as_f64().unwrap() > 0.0);
    let pairs: Vec<(String, String)> = follows(&server)
        .into_iter()
        .map(|follow| (follow.follower_id, follow.author_id))
        .collect();
    assert_eq!(
        pairs,
        [("1", "2"), ("2", "3"), ("3", "4"), ("4", "5")].map(|(a, b)| (a.into(), b.into()))
    );

    let text = herald(&server.url, &["import", "follows", path]).await;
    assert!(
        text.stdout.contains("line 5: has one user id, needs two\n"),
        "{text:?}"
    );
    assert!(
        text.stdout
            .contains("4 follows imported from 8 lines, 0 unchanged, 2 rejected"),
        "{text:?}"
    );
}

#[tokio::test]
async fn text_output_has_the_first_invalid_lines() {
    let server = Server::start().await;
    let input = format!("{}{}", "1 2\n".repeat(50), "x\n".repeat(1_500));
    let done = herald_with_input(&server.url, &["import", "follows", "-"], &input).await;
    assert_eq!(done.code, 1);
    assert_eq!(done.stdout.matches("\nline ").count() + 1, 20, "{}", done.stdout);
    assert!(done.stdout.contains("… and 1,480 more"), "{}", done.stdout);
    let json = herald_with_input(&server.url, &["import", "follows", "-", "-o", "json"], &input).await;
    assert_eq!(json.json()["failures"].as_array().unwrap().len(), 1_000);
    assert_eq!(json.json()["failed_count"], 1_500);
}

#[tokio::test]
async fn a_file_of_something_else_is_refused() {
    let server = Server::start().await;
    let readme = "# Herald\nDelivers posts to followers.\n\nRun it:\nherald up\n1 2\nThat is all there is.\n";
    let done = herald_with_input(&server.url, &["import", "follows", "-"], readme).await;
    assert_eq!(done.code, 2, "{done:?}");
    for part in [
        "nothing was imported",
        "3 of its first 5 lines are invalid",
        "line 2: ",
    ] {
        assert!(done.stderr.contains(part), "{part}: {done:?}");
    }
    assert_eq!(follows(&server), []);
}

#[tokio::test]
async fn mutual_imports_both_directions_and_a_share_gets_pushes() {
    let server = Server::start().await;
    let mut input = String::new();
    for number in 1..=6_000 {
        writeln!(input, "0 {number}").unwrap();
    }
    let arguments = [
        "import", "follows", "-", "--mutual", "--notify", "10%", "-o", "json",
    ];
    let done = herald_with_input(&server.url, &arguments, &input).await.ok();
    assert_eq!(done.json()["imported_count"], 12_000);
    let batches: Vec<ImportFollowsRequest> = server.calls();
    assert!(
        batches.iter().all(|batch| batch.follows.len() <= 5_001),
        "batches are bounded"
    );
    let pairs: HashSet<(String, String)> = follows(&server)
        .into_iter()
        .map(|follow| (follow.follower_id, follow.author_id))
        .collect();
    assert_eq!(pairs.len(), 12_000);
    assert!(pairs.contains(&("6000".into(), "0".into())) && pairs.contains(&("0".into(), "6000".into())));
    let notified = follows(&server)
        .iter()
        .filter(|follow| follow.notify == Some(true))
        .count();
    assert!((1_000..1_400).contains(&notified), "{notified}");
}

#[tokio::test]
async fn lines_are_found_across_calls() {
    let server = Server::start().await;
    let mut input = String::from("# a comment\n");
    for number in 1..=600_000 {
        writeln!(input, "0 {number}").unwrap();
    }
    // Indexes start at 0 in each call of 5,000 follows. One call has the only rejection, whichever comes first.
    server.reject_follow(3_456, "author_id", "is not welcome");
    let done = herald_with_input(&server.url, &["import", "follows", "-", "-o", "json"], &input).await;
    let summary = done.json();
    assert_eq!(summary["imported_count"], 599_999);
    let line = summary["failures"][0]["line"].as_u64().unwrap();
    assert_eq!(line % 5_000, 3_458, "{line}");
}

#[tokio::test]
async fn an_interrupted_import_has_a_hint() {
    let server = Server::start().await;
    server.fail([Status::unavailable("the server goes away")]);
    let done = herald_with_input(&server.url, &["import", "follows", "-"], "1 2\n").await;
    assert_eq!(done.code, 3, "{done:?}");
    assert!(
        done.stderr.contains("interrupted") && done.stderr.contains("run the import again"),
        "{done:?}"
    );
}

async fn wait_for_calls(server: &Server, count: usize) {
    let received = async {
        while server.calls::<ImportFollowsRequest>().len() < count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, received)
        .await
        .expect("the calls come");
}

/// Keeps standard input open, so that the import doesn't end by itself.
async fn interrupt_import(server: &Server, lines: u32, calls: usize) -> (i32, String) {
    let mut command = command(&server.url, &["import", "follows", "-"]);
    let mut child = command
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = String::new();
    for number in 1..=lines {
        writeln!(input, "0 {number}").unwrap();
    }
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).await.unwrap();
    wait_for_calls(server, calls).await;
    let pid = Pid::from_raw(child.id().unwrap().cast_signed()).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    let ended = tokio::time::timeout(LIMIT, child.wait_with_output()).await;
    let ended = ended.expect("Ctrl-C ends the import").unwrap();
    drop(stdin);
    (
        ended.status.code().unwrap_or(-1),
        String::from_utf8(ended.stderr).unwrap(),
    )
}

#[tokio::test]
async fn ctrl_c_tells_which_lines_are_durable_and_that_the_import_can_be_repeated() {
    let server = Server::start().await;
    // The fifth call begins after the answer to the first one was counted.
    let (code, stderr) = interrupt_import(&server, 25_000, 5).await;
    assert_eq!(code, 130, "{stderr}");
    assert!(stderr.contains("stopped by a signal"), "{stderr}");
    let (_, line) = stderr.split_once("all lines up to line ").expect(&stderr);
    let line: u32 = line
        .chars()
        .filter(|c| *c != ',')
        .map_while(|c| c.to_digit(10))
        .fold(0, |number, digit| 10 * number + digit);
    assert!(
        (5_000..=25_000).contains(&line) && line.is_multiple_of(5_000),
        "{stderr}"
    );
    assert!(stderr.contains("safe to run the import again"), "{stderr}");
}

#[tokio::test]
async fn lines_without_an_answer_do_not_count_as_imported() {
    let server = Server::start().await;
    server.hold_imports(true);
    let (code, stderr) = interrupt_import(&server, 25_000, 4).await;
    assert_eq!(code, 130, "{stderr}");
    assert!(stderr.contains("no line is known to be imported"), "{stderr}");
}

#[tokio::test]
async fn the_progress_bar_shows_what_is_durable() {
    let server = Server::start().await;
    server.hold_imports(true);
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut lines = String::new();
    for number in 1..=10_000 {
        writeln!(lines, "0 {number}").unwrap();
    }
    std::fs::write(file.path(), lines).unwrap();
    let mut terminal = Terminal::start(&server.url, &["import", "follows", file.path().to_str().unwrap()]);
    wait_for_calls(&server, 2).await;
    assert!(!terminal.screen().contains("follows"), "{}", terminal.screen());
    server.hold_imports(false);
    terminal.wait_for("5,000 follows imported").await;
    let done = terminal.end().await.ok();
    assert!(
        done.stdout.contains("10,000 follows imported from 10,000 lines"),
        "{done:?}"
    );
}

#[tokio::test]
async fn without_notify_a_line_says_nothing_about_pushes() {
    let server = Server::start().await;
    for (notify, expected) in [
        (None, None),
        (Some("none"), Some(false)),
        (Some("all"), Some(true)),
    ] {
        let mut arguments = vec!["import", "follows", "-"];
        arguments.extend(notify.map(|_| "--notify"));
        arguments.extend(notify);
        herald_with_input(&server.url, &arguments, "1 2\n").await.ok();
        assert_eq!(follows(&server).pop().unwrap().notify, expected, "{notify:?}");
    }
}

#[tokio::test]
async fn a_missing_file_is_named() {
    let server = Server::start().await;
    let done = herald(&server.url, &["import", "follows", "/nowhere/edges.txt"]).await;
    assert_eq!(done.code, 1);
    assert!(done.stderr.contains("/nowhere/edges.txt"), "{done:?}");
    assert_eq!(herald(&server.url, &["import", "follows", "/"]).await.code, 2);
}

#[tokio::test]
async fn an_empty_file_is_a_success() {
    let server = Server::start().await;
    let done = herald_with_input(&server.url, &["import", "follows", "-", "-o", "json"], "")
        .await
        .ok();
    assert_eq!(done.json()["line_count"], 0);
    assert_eq!(done.json()["failures"], serde_json::json!([]));
}

#[tokio::test]
async fn separators_and_quotes_are_not_part_of_an_id() {
    let server = Server::start().await;
    let input = "\u{feff}% a comment\n\"Follower\",\"Author\"\n1, 107\n2 ,107\n// a comment\n3; 107\n\"4\" \"107\"\n\u{feff}5\t107\n6,107,\n";
    let done = herald_with_input(&server.url, &["import", "follows", "-", "-o", "json"], input).await;
    assert_eq!(done.code, 1, "{done:?}");
    let summary = done.json();
    assert_eq!(summary["imported_count"], 5);
    assert_eq!(summary["header"]["line"], 2);
    assert_eq!(
        summary["header"]["columns"],
        serde_json::json!(["Follower", "Author"])
    );
    assert_eq!(summary["failures"][0]["line"], 9);
    assert_eq!(summary["failures"][0]["reason"], "ends with a separator");
    let mut pairs = follows(&server)
        .into_iter()
        .map(|follow| (follow.follower_id, follow.author_id));
    for follower in 1..=5 {
        assert_eq!(pairs.next(), Some((follower.to_string(), "107".into())));
    }
    assert_eq!(pairs.next(), None);

    let text = herald_with_input(
        &server.url,
        &["import", "follows", "-"],
        "author,follower\n107,1\n",
    )
    .await
    .ok();
    assert!(
        text.stdout
            .starts_with("line 1: header row author follower, skipped; the author is the first column\n"),
        "{text:?}"
    );
    let last = follows(&server).pop().unwrap();
    assert_eq!((last.follower_id.as_str(), last.author_id.as_str()), ("1", "107"));
}
