//! Ids and texts with control, invisible and bidirectional characters are escaped in text output.

use tonic::Status;

use crate::{
    run::{StreamingCommand, herald},
    server::{Server, post},
};

/// Clears the screen, hides, and reverses what follows.
const HOSTILE: &str = "a\u{202e}b\u{2066}c\u{200b}d\u{feff}e\u{2028}f";
/// The same with escapes.
const ESCAPED: &str = r"a\u{202e}b\u{2066}c\u{200b}d\u{feff}e f";

fn assert_escaped(text: &str) {
    let bad = |c: char| {
        (c.is_control() && c != '\n')
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    assert!(!text.contains(bad), "{text:?}");
    assert!(text.contains(ESCAPED), "{text:?}");
}

#[tokio::test]
async fn ids_are_escaped() {
    let server = Server::start().await;
    for arguments in [
        &["follow", HOSTILE, "107"][..],
        &["unfollow", "107", HOSTILE],
        &["device", "add", HOSTILE, "--webhook", "https://example.com/hook"],
        &["device", "remove", "5", HOSTILE],
        &["prefs", "get", HOSTILE],
        &["post", "--author", "107", "--text", "hi", "--request-id", HOSTILE],
    ] {
        assert_escaped(&herald(&server.url, arguments).await.ok().stdout);
    }
    // JSON output is for programs and unchanged.
    let json = herald(&server.url, &["prefs", "get", HOSTILE, "-o", "json"])
        .await
        .ok();
    assert_eq!(json.json()["user_id"], HOSTILE);
}

#[tokio::test]
async fn posts_are_escaped() {
    let server = Server::start().await;
    let hostile = post(1, &format!("{HOSTILE}\u{1b}[2J"));
    server.add_page([hostile.clone()], "");
    let timeline = herald(&server.url, &["timeline", "1"]).await.ok().stdout;
    assert_escaped(&timeline);
    assert!(timeline.contains(r"\u{1b}[2J"), "{timeline}");

    server.add_watch([hostile], [], "token");
    let mut watch = StreamingCommand::start(&server.url, &["watch", "1"]);
    loop {
        let line = watch.line().await;
        if line.contains("u{202e}") {
            assert_escaped(&line);
            break;
        }
        assert!(!line.contains('\u{202e}'), "{line:?}");
    }
}

#[tokio::test]
async fn errors_are_escaped() {
    let server = Server::start().await;
    server.fail([Status::internal(HOSTILE)]);
    let failed = herald(&server.url, &["prefs", "get", "5"]).await;
    assert_eq!(failed.code, 1);
    assert_escaped(&failed.stderr);
}
