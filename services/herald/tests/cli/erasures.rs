//! `herald user erase` and `herald user erasures`.

use std::sync::atomic::Ordering;

use herald_proto::v1::{EraseUserRequest, ListErasuresRequest};

use crate::{
    run::{LIMIT, herald},
    server::Server,
    terminal::Terminal,
};

#[tokio::test]
async fn a_stopped_erasure_is_said_to_go_on() {
    let server = Server::start().await;
    let mut erase = Terminal::start(&server.url, &["user", "erase", "107", "--yes"]);
    erase.wait_for("erasure 7 goes on in the server").await;
    erase.interrupt().await;
    let done = erase.end().await;
    assert_eq!(done.code, 130, "{done:?}");
    for part in [
        "stopped by a signal; erasure 7 goes on in the server",
        "see `herald user erasures`",
    ] {
        assert!(done.stderr.contains(part), "{done:?}");
    }
}

#[tokio::test]
async fn an_erasure_that_is_stopped_before_its_record_says_where_to_look() {
    let server = Server::start().await;
    server.erasures().is_silent.store(true, Ordering::Relaxed);
    let erase = Terminal::start(&server.url, &["user", "erase", "107", "--yes"]);
    let called = async {
        while server.calls::<EraseUserRequest>().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LIMIT, called)
        .await
        .expect("the command calls the server");
    erase.interrupt().await;
    let done = erase.end().await;
    assert_eq!(done.code, 130, "{done:?}");
    assert!(
        done.stderr
            .contains("`herald user erasures` shows whether the erasure was recorded"),
        "{done:?}"
    );
}

#[tokio::test]
async fn the_next_page_of_erasures_is_named() {
    let server = Server::start().await;
    let first = herald(&server.url, &["user", "erasures", "--page-size", "1"])
        .await
        .ok();
    let line = first.stdout.lines().last().unwrap().to_owned();
    assert_eq!(line, "next page: herald user erasures --page-token more");
    let arguments: Vec<&str> = line.split(' ').skip(3).collect();
    let second = herald(&server.url, &arguments).await.ok();
    assert!(!second.stdout.contains("next page"), "{second:?}");
    let pages: Vec<_> = server.calls::<ListErasuresRequest>();
    assert_eq!((pages[0].page_size, pages[1].page_token.as_str()), (1, "more"));
}
