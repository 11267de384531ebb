//! Servers whose parent is killed. The parent is a second process of this test binary.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use herald_local_stores::{Postgres, Redis, RedisOptions, required};

const ASKED: &str = "HERALD_TEST_PARENT";
const PREFIX: &str = "started ";

/// Not a test: the parent process of the test below. One of its PostgreSQL servers is paused.
#[tokio::test]
#[ignore = "the parent in the test of this module"]
async fn parent() {
    if std::env::var_os(ASKED).is_none() {
        return;
    }
    let running = Postgres::start().await.unwrap();
    let paused = Postgres::start().await.unwrap();
    paused.pause().await.unwrap();
    let redis = Redis::start(RedisOptions::default()).await.unwrap();
    for (pid, dir) in [
        (running.pid(), running.dir()),
        (paused.pid(), paused.dir()),
        (redis.pid(), redis.dir()),
    ] {
        println!("\n{PREFIX}{pid} {}", dir.display());
    }
    println!("\n{PREFIX}0 /");
    // The test kills this process; the timeout ends it if the test dies first.
    tokio::time::sleep(Duration::from_mins(1)).await;
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
async fn servers_and_their_directories_go_with_their_parent() {
    let Some(probe) = required("a private PostgreSQL", Postgres::start().await) else {
        return;
    };
    drop(probe);
    let mut parent = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "parent::parent", "--ignored", "--nocapture"])
        .env(ASKED, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(parent.stdout.take().unwrap()).lines();
    let servers: Vec<(u32, PathBuf)> = lines
        .map(Result::unwrap)
        .filter_map(|line| {
            let (pid, dir) = line.strip_prefix(PREFIX)?.split_once(' ')?;
            Some((pid.parse().ok()?, PathBuf::from(dir)))
        })
        .take_while(|(pid, _)| *pid != 0)
        .collect();
    assert_eq!(servers.len(), 3);
    for (pid, dir) in &servers {
        assert!(is_running(*pid) && dir.is_dir());
    }
    parent.kill().unwrap();
    parent.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    for (pid, dir) in &servers {
        while is_running(*pid) || dir.exists() {
            assert!(Instant::now() < deadline, "{} outlives its parent", dir.display());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
