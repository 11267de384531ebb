//! Processes whose ports other machines can reach.

use std::{
    collections::{BTreeSet, HashSet},
    net::Ipv4Addr,
    process::Stdio,
    time::Duration,
};

use harness::{Herald, Options, Output, Process, run, until};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
};

use crate::{HERALD, serve_cluster::World};

const LIMIT: Duration = Duration::from_secs(30);
const BROKER: (&str, &str) = ("HERALD_NATS__URL", "nats://127.0.0.1:1");

/// The settings of a gateway whose dependencies are elsewhere.
const DEPENDENCIES: [(&str, &str); 6] = [
    BROKER,
    ("HERALD_STORE__URL", "postgres://127.0.0.1:1/herald"),
    ("HERALD_TIMELINES__URL", "redis://127.0.0.1:1"),
    ("HERALD_PEERS__GRAPH", "http://127.0.0.1:1"),
    ("HERALD_PEERS__ANALYTICS", "http://127.0.0.1:1"),
    ("HERALD_PEERS__DEADLETTER", "http://127.0.0.1:1"),
];

async fn herald(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let done = tokio::time::timeout(LIMIT, run(HERALD, arguments, variables)).await;
    done.unwrap_or_else(|_| panic!("{arguments:?} does not end within {LIMIT:?}"))
}

fn assert_refused(done: &Output, key: &str, address: &str) {
    assert_eq!(done.code, 2, "{done:?}");
    let start = format!("error: {key} in the flags: must not be an address that other machines reach");
    assert!(done.stderr.contains(&start), "{done:?}");
    for part in [address, "--insecure-no-auth", "HERALD_INSECURE_NO_AUTH=true"] {
        assert!(done.stderr.contains(part), "{part}: {done:?}");
    }
}

/// The addresses at which a process listens.
fn listening(pid: u32) -> BTreeSet<String> {
    let sockets = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let sockets = sockets.filter_map(|file| std::fs::read_link(file.ok()?.path()).ok());
    let sockets: HashSet<String> = sockets
        .filter_map(|link| {
            let inode = link.to_str()?.strip_prefix("socket:[")?;
            Some(inode.strip_suffix(']')?.to_owned())
        })
        .collect();
    let table = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/net/{name}")).unwrap_or_default();
    let rows = [table("tcp"), table("tcp6")].concat();
    rows.lines()
        .filter_map(|row| {
            let fields: Vec<&str> = row.split_whitespace().collect();
            let (address, state, inode) = (*fields.get(1)?, *fields.get(3)?, *fields.get(9)?);
            (state == "0A" && sockets.contains(inode)).then(|| {
                let (ip, port) = address.split_once(':').unwrap();
                let port = u16::from_str_radix(port, 16).unwrap();
                match u32::from_str_radix(ip, 16) {
                    Ok(ip) => format!("{}:{port}", Ipv4Addr::from(ip.to_ne_bytes())),
                    Err(_) => format!("[{ip}]:{port}"),
                }
            })
        })
        .collect()
}

/// A port more would be one that any program of the machine can call, without the credentials of the others.
#[tokio::test(flavor = "multi_thread")]
async fn a_mesh_listens_at_its_three_ports_alone() {
    let herald = Herald::start(HERALD, Options::default()).await;
    let (url, operators) = (herald.url(), herald.operator_url());
    let address = |url: &str| url.strip_prefix("http://").unwrap().to_owned();
    let expected = BTreeSet::from([address(&url), address(&operators), herald.http().to_owned()]);
    assert_eq!(listening(herald.pid()), expected);
    // The roles behind them are called.
    herald.cli(&["follow", "ann", "bob"]).await;
    herald.cli(&["dlq", "list"]).await;
    herald.cli(&["stats"]).await;
    assert_eq!(listening(herald.pid()), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_other_machines_reach_needs_credentials() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let data = data.to_str().unwrap();
    for (flag, key) in [("--grpc", "grpc"), ("--operator-grpc", "operator_grpc")] {
        for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"] {
            let up = herald(&["up", "--data-dir", data, flag, address], &[]).await;
            assert_refused(&up, key, address);
            let serve = ["serve", "gateway", flag, address];
            assert_refused(&herald(&serve, &DEPENDENCIES).await, key, address);
            let check = ["config", "check", "--data-dir", data, flag, address];
            assert_refused(&herald(&check, &[]).await, key, address);
            let accepted = [&check[..], &["--insecure-no-auth"]].concat();
            assert_eq!(herald(&accepted, &[]).await.code, 0);
            let variable = [("HERALD_INSECURE_NO_AUTH", "true")];
            assert_eq!(herald(&check, &variable).await.code, 0);
        }
    }
    assert!(
        !dir.path().join("data").exists(),
        "a refused start changes nothing"
    );
    let internal = ["serve", "gateway,graph", "--internal-grpc", "[::]:0"];
    assert_refused(&herald(&internal, &DEPENDENCIES).await, "internal_grpc", "[::]:0");
    let scaler = ["serve", "scaler", "--grpc", "0.0.0.0:0"];
    assert_refused(&herald(&scaler, &[BROKER]).await, "grpc", "0.0.0.0:0");
    // Loopback needs none, of either family.
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let check = [
            "config",
            "check",
            "--data-dir",
            data,
            "--grpc",
            address,
            "--operator-grpc",
            address,
            "--internal-grpc",
            address,
        ];
        let done = herald(&check, &[]).await;
        assert_eq!(done.code, 0, "{done:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_on_loopback_says_that_it_is_open_to_local_programs() {
    let dir = tempfile::tempdir().unwrap();
    let mut up = Command::new(HERALD)
        .args(["up", "--nats-port", "0", "--data-dir"])
        .arg(dir.path().join("data"))
        .args(["--grpc", "127.0.0.1:0", "--operator-grpc", "127.0.0.1:0"])
        .args(["--http", "127.0.0.1:0"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(up.stderr.take().unwrap()).lines();
    let said = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains("every program of this machine can read and change everything") {
                return true;
            }
        }
        false
    };
    let said = tokio::time::timeout(LIMIT, said).await;
    assert!(said.expect("the output goes on"));
    up.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_accepted_exposure_is_in_the_log() {
    let Some(world) = World::start().await else { return };
    let exposed = [
        "--grpc",
        "0.0.0.0:0",
        "--operator-grpc",
        "0.0.0.0:0",
        "--insecure-no-auth",
    ];
    let all = "gateway,archive,graph,fanout,timeline,push,analytics,deadletter";
    let process: Process = world.serve(all, &exposed).await;
    until("the log names both ports", LIMIT, || async {
        let log = process.log();
        let lines = log
            .lines()
            .filter(|line| line.contains("calls from other machines need no credentials"));
        lines.count() == 2
    })
    .await;
    let log = process.log();
    let plain =
        |line: &&str| line.contains("calls from other machines are in plain text (grpc, operator_grpc)");
    assert_eq!(log.lines().filter(plain).count(), 1, "{log}");
}
