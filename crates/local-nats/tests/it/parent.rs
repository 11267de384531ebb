//! A server whose parent is killed. The parent is a second process of this test binary.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use herald_local_nats::{Config, Server};
use tempfile::TempDir;

const DIR: &str = "HERALD_TEST_PARENT_DIR";
const DIES_WITH_PARENT: &str = "HERALD_TEST_DIES_WITH_PARENT";
const PID_PREFIX: &str = "the server's pid is ";

/// Not a test: the parent process of the tests below.
#[tokio::test]
#[ignore = "the parent in the tests of this module"]
async fn parent() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let dies_with_parent = std::env::var_os(DIES_WITH_PARENT).is_some();
    let server = Server::start(Config {
        dies_with_parent,
        ..Config::in_dir(dir)
    })
    .await
    .unwrap();
    println!("\n{PID_PREFIX}{}", server.pid());
    // The test kills this process; the timeout ends it if the test dies first.
    let _ = tokio::time::timeout(Duration::from_mins(1), server.exited()).await;
}

fn start_parent(dir: &Path, dies_with_parent: bool) -> (Child, u32) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "parent::parent", "--ignored", "--nocapture"])
        .env(DIR, dir);
    if dies_with_parent {
        command.env(DIES_WITH_PARENT, "1");
    }
    let mut parent = command.stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(parent.stdout.take().unwrap()).lines();
    let pid = lines
        .map(Result::unwrap)
        .find_map(|line| line.strip_prefix(PID_PREFIX)?.parse().ok());
    (parent, pid.expect("the parent starts its server"))
}

/// Whether the process exists and is not a zombie.
fn is_running(pid: u32) -> bool {
    let ps = Command::new("ps")
        .args(["-o", "stat=", "-p", &pid.to_string()])
        .output()
        .unwrap();
    let stat = String::from_utf8(ps.stdout).unwrap();
    !stat.trim().is_empty() && !stat.trim().starts_with('Z')
}

#[tokio::test]
async fn the_next_start_stops_a_leftover_server() {
    let dir = TempDir::new().unwrap();
    let (mut parent, left) = start_parent(dir.path(), false);
    parent.kill().unwrap();
    parent.wait().unwrap();
    assert!(is_running(left));

    let server = Server::start(Config::in_dir(dir.path())).await.unwrap();
    assert!(!is_running(left));
    assert!(is_running(server.pid()));
}

#[tokio::test]
async fn a_leftover_server_of_a_renamed_directory_is_stopped() {
    let dir = TempDir::new().unwrap();
    let (before, after) = (dir.path().join("before"), dir.path().join("after"));
    let (mut parent, left) = start_parent(&before, false);
    parent.kill().unwrap();
    parent.wait().unwrap();
    std::fs::rename(&before, &after).unwrap();
    let _server = Server::start(Config::in_dir(&after)).await.unwrap();
    assert!(!is_running(left));
}

/// The copy has the pid file of the original, and its path is the end, or the beginning, of the path of the original.
#[tokio::test]
async fn the_server_of_a_copied_directory_is_not_stopped() {
    let root = TempDir::new().unwrap();
    let root = root.path().canonicalize().unwrap();
    let copy = root.join("copy");
    let end = root.join(copy.strip_prefix("/").unwrap());
    let beginning = root.join("copy-of");
    for original in [end, beginning] {
        let server = Server::start(Config::in_dir(&original)).await.unwrap();
        let copied = std::process::Command::new("cp")
            .args(["-r".as_ref(), original.as_os_str(), copy.as_os_str()])
            .status();
        assert!(copied.unwrap().success());
        let of_copy = Server::start(Config::in_dir(&copy)).await.unwrap();
        assert!(is_running(server.pid()), "{original:?}");
        assert!(is_running(of_copy.pid()));
        drop(of_copy);
        std::fs::remove_dir_all(&copy).unwrap();
    }
}

#[tokio::test]
async fn a_reused_pid_is_not_signalled() {
    let dir = TempDir::new().unwrap();
    let mut other = Command::new("sleep").arg("60").spawn().unwrap();
    std::fs::write(dir.path().join("nats-server.pid"), other.id().to_string()).unwrap();
    let server = Server::start(Config::in_dir(dir.path())).await.unwrap();
    assert!(is_running(server.pid()));
    assert_eq!(other.try_wait().unwrap(), None);
    other.kill().unwrap();
    other.wait().unwrap();
}

#[test]
fn a_server_dies_with_its_parent_if_setpriv_supports_it() {
    let supported = cfg!(target_os = "linux")
        && Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "true"])
            .status()
            .is_ok_and(|status| status.success());
    if !supported {
        println!("skipped: setpriv does not support --pdeathsig on this machine");
        return;
    }
    let dir = TempDir::new().unwrap();
    let (mut parent, server) = start_parent(dir.path(), true);
    assert!(is_running(server));
    parent.kill().unwrap();
    parent.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while is_running(server) {
        assert!(Instant::now() < deadline, "the server outlives its parent");
    }
}
