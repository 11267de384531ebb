//! The start of `herald up`: what it refuses, with which words, and when it is ready.

use std::{
    net::{Ipv4Addr, TcpListener},
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use harness::{Herald, Options, Output, run, until};
use herald_proto::v1;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};

use crate::{HERALD, certificates::Certificates, surface::http_get};

const LIMIT: Duration = Duration::from_mins(1);

/// Runs `herald up` on free ports until it ends, with further arguments.
async fn up(data_dir: &Path, arguments: &[&str]) -> Output {
    let mut all = vec!["up", "--data-dir", data_dir.to_str().unwrap()];
    for (flag, free) in [
        ("--grpc", "127.0.0.1:0"),
        ("--operator-grpc", "127.0.0.1:0"),
        ("--http", "127.0.0.1:0"),
        ("--nats-port", "0"),
    ] {
        if !arguments.contains(&flag) {
            all.extend([flag, free]);
        }
    }
    all.extend(arguments);
    tokio::time::timeout(LIMIT, run(HERALD, &all, &[])).await.unwrap()
}

/// A running `herald up` with the events of its standard output.
struct Up {
    child: Child,
    events: Lines<BufReader<ChildStdout>>,
}

impl Up {
    fn start(data_dir: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let mut child = Command::new(HERALD)
            .args([
                "up",
                "--grpc",
                "127.0.0.1:0",
                "--operator-grpc",
                "127.0.0.1:0",
                "--http",
                "127.0.0.1:0",
                "--nats-port",
                "0",
            ])
            .args(["--output", "json", "--data-dir"])
            .arg(data_dir)
            .args(arguments)
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let events = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, events }
    }

    async fn event(&mut self) -> Value {
        let line = tokio::time::timeout(LIMIT, self.events.next_line())
            .await
            .unwrap();
        serde_json::from_str(&line.unwrap().expect("an event")).unwrap()
    }

    async fn interrupt(mut self) -> i32 {
        let pid = rustix::process::Pid::from_raw(self.child.id().unwrap().try_into().unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        let status = tokio::time::timeout(LIMIT, self.child.wait()).await.unwrap();
        status.unwrap().code().unwrap()
    }
}

#[tokio::test]
async fn a_port_in_use_is_one_sentence_with_its_flag() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let address = format!("127.0.0.1:{port}");
    for (flag, value) in [
        ("--nats-port", &port),
        ("--grpc", &address),
        ("--operator-grpc", &address),
        ("--http", &address),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let done = up(dir.path(), &[flag, value]).await;
        assert_eq!(done.code, 1, "{done:?}");
        let error = done.stderr.lines().last().unwrap();
        assert!(
            error.starts_with("error: ") && error.contains(&port) && error.contains(flag),
            "{done:?}"
        );
        // Neither the log of nats-server nor a text of Rust.
        assert!(
            !done.stderr.contains("[INF]") && !done.stderr.contains("os error"),
            "{done:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_server_does_not_claim_to_start_with_the_data() {
    let herald = Herald::start(HERALD, Options::default()).await;
    let done = up(&herald.data_dir(), &[]).await;
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.stderr.contains("is open in another process"), "{done:?}");
    assert!(!done.stderr.contains("starting with data"), "{done:?}");
}

#[tokio::test]
async fn a_server_without_disk_space_is_not_ready_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let variables = [("HERALD_STORE__DISK_FREE_MB_MIN", "10000000000")];
    let mut server = Up::start(dir.path(), &[], &variables);
    let event = server.event().await;
    assert_eq!(event["event"], "not_ready", "{event}");
    let checks = event["checks"].as_array().unwrap();
    assert_eq!(checks.len(), 1, "{event}");
    assert_eq!(checks[0]["name"], "disk");
    let reason = checks[0]["reason"].as_str().unwrap();
    assert!(
        reason.contains("20000000000 MiB are needed") && reason.contains("store.disk_free_mb_min"),
        "{reason}"
    );
    let readyz = http_get(event["http"].as_str().unwrap(), "/readyz").await;
    assert!(
        readyz.starts_with("HTTP/1.1 503") && readyz.contains("store.disk_free_mb_min"),
        "{readyz}"
    );
    let url = format!("http://{}", event["grpc"].as_str().unwrap());
    let post = run(
        HERALD,
        &["post", "--author", "1", "--text", "hi", "--retries", "0"],
        &[("HERALD_SERVER", &url)],
    )
    .await;
    assert_eq!(post.code, 6, "{post:?}");
    assert!(post.stderr.contains("store.disk_free_mb_min"), "{post:?}");
    assert_eq!(server.interrupt().await, 0);
}

#[tokio::test]
async fn config_check_refuses_what_can_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("herald.toml");
    let data_dir = dir.path().join("data");
    let check = async |toml: &str, command: &str| {
        std::fs::write(&file, toml).unwrap();
        let (file, data_dir) = (file.to_str().unwrap(), data_dir.to_str().unwrap());
        let arguments = match command {
            "check" => vec!["config", "check", "--config", file, "--data-dir", data_dir],
            _ => vec!["up", "--config", file, "--data-dir", data_dir],
        };
        run(HERALD, &arguments, &[]).await
    };
    assert_eq!(check("", "check").await.code, 0);
    for (toml, key) in [
        ("[push]\nvapid_private_key = '[hidden]'", "push.vapid_private_key"),
        ("[push]\nvapid_private_key = 'nonsense'", "push.vapid_private_key"),
        ("[push]\nca_file = '/nowhere/ca.pem'", "push.ca_file"),
        ("[nats]\nurl = 'nats://me:[hidden]@localhost'", "nats.url"),
        ("[nats]\nprogram = '/nowhere/nats-server'", "nats.program"),
        (
            "[topology.posts]\nbytes_max = 9223372036854775807\nage_seconds_max = 604800",
            "topology.*.bytes_max",
        ),
        ("[topology]\nreplicas = 2", "topology.replicas"),
        ("[store]\nledger_keep_days = 0", "store.ledger_keep_days"),
        ("[telemetry]\nlog = '=x='", "telemetry.log"),
    ] {
        let checked = check(toml, "check").await;
        assert_eq!(checked.code, 2, "{toml}: {checked:?}");
        assert!(checked.stderr.contains(key), "{toml}: {checked:?}");
        assert_eq!(checked.stderr.matches(key).count(), 1, "{toml}: {checked:?}");
        // The start refuses it with the same words.
        let started = check(toml, "up").await;
        assert_eq!((started.code, started.stderr), (2, checked.stderr), "{toml}");
    }
    assert!(!data_dir.exists());
    // An error about one value names the file.
    let out_of_bounds = check("[gateway]\nheartbeat_ms = 1", "check").await;
    let expected = format!(
        "error: gateway.heartbeat_ms in {}: must be 100 to 600000, is 1\n",
        file.display()
    );
    assert_eq!(out_of_bounds.stderr, expected);
}

#[tokio::test]
async fn bench_starts_its_server_with_the_configuration_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("herald.toml");
    std::fs::write(&file, "[gateway]\nheartbeat_ms = 1").unwrap();
    let file = file.to_str().unwrap();
    let arguments = [
        "bench",
        "--users",
        "10",
        "--authors",
        "1",
        "--followers",
        "1",
        "--posts",
        "1",
        "--config",
        file,
    ];
    let done = run(HERALD, &arguments, &[]).await;
    assert_eq!(done.code, 1, "{done:?}");
    assert!(
        done.stderr.contains(&format!("gateway.heartbeat_ms in {file}")),
        "{done:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_port_is_named() {
    let herald = Herald::start(HERALD, Options::default()).await;
    let http = format!("http://{}", herald.http());
    let nats = herald.nats_address().replace("nats://", "http://");
    for (server, what) in [(&http, "Herald's HTTP port"), (&nats, "a NATS server")] {
        let done = run(HERALD, &["delivery", "1"], &[("HERALD_SERVER", server)]).await;
        assert!(
            done.stderr.contains(&format!("{server} is {what}")) && done.stderr.contains("--server"),
            "{done:?}"
        );
        assert!(!done.stderr.contains("h2"), "{done:?}");
        let done = run(HERALD, &["dlq", "list"], &[("HERALD_OPERATOR_SERVER", server)]).await;
        let named = format!("{server} is {what}");
        for part in [&named, "not Herald's operator port", "--operator-server"] {
            assert!(done.stderr.contains(part), "{part}: {done:?}");
        }
    }
    // The two ports of a gateway, in place of each other.
    for (command, variable, server, port) in [
        (
            ["delivery", "1"],
            "HERALD_SERVER",
            herald.operator_url(),
            "the public port",
        ),
        (
            ["dlq", "list"],
            "HERALD_OPERATOR_SERVER",
            herald.url(),
            "the operator port",
        ),
    ] {
        let done = run(HERALD, &command, &[(variable, &server)]).await;
        assert_eq!(done.code, 1, "{done:?}");
        for part in ["WRONG_PORT", port, variable] {
            assert!(done.stderr.contains(part), "{part}: {done:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_shows_pushes_and_removes_its_device() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Up::start(dir.path(), &["--demo"], &[]);
    let ready = server.event().await;
    assert_eq!(ready["event"], "ready", "{ready}");
    let push = server.event().await;
    assert_eq!(
        (&push["event"], &push["kind"]),
        (&"push".into(), &"webhook".into())
    );
    assert!(push["latency_ms"].as_f64().unwrap() > 0.0, "{push}");
    let user = push["recipient_id"].as_str().unwrap().to_owned();
    assert_eq!(server.interrupt().await, 0);

    let mut again = Up::start(dir.path(), &[], &[]);
    let ready = again.event().await;
    let url = format!("http://{}", ready["grpc"].as_str().unwrap());
    let devices = harness::run_json(
        HERALD,
        &["device", "list", &user, "-o", "json"],
        &[("HERALD_SERVER", &url)],
    )
    .await;
    assert_eq!(devices["devices"], serde_json::json!([]), "{devices}");
    assert_eq!(again.interrupt().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_runs_over_tls_also_with_a_certificate_of_an_unknown_authority() {
    let certificates = Certificates::new();
    let [certificate, key, clients] = [
        certificates.certificate(),
        certificates.key(),
        certificates.authority(),
    ]
    .map(|file| file.display().to_string());
    let own = [
        ("HERALD_TLS__CERT_FILE", &*certificate),
        ("HERALD_TLS__KEY_FILE", &*key),
        // The certificate is one for clients, too.
        ("HERALD_TLS__CLIENT_CA_FILE", &*clients),
    ];
    for (arguments, variables) in [
        (&["--demo", "--tls", "--auth"] as &[_], &[] as &[_]),
        (&["--demo"], &own[..2]),
        (&["--demo"], &own),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut server = Up::start(dir.path(), arguments, variables);
        let ready = server.event().await;
        assert_eq!((&ready["event"], &ready["tls"]), (&"ready".into(), &true.into()));
        let push = server.event().await;
        assert_eq!(push["event"], "push", "{arguments:?} {variables:?}: {push}");
        assert_eq!(server.interrupt().await, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shutdown_does_not_wait_for_the_client_of_a_redrive() {
    const DEAD_LETTERS: u64 = 60;
    let mut herald = Herald::start(HERALD, Options::default()).await;
    let broker = herald.broker().await;
    let broker = async_nats::jetstream::new(broker);
    for _ in 0..DEAD_LETTERS {
        let published = broker.publish("timeline.v1.deliver.normal", "\u{7f}garbage".into());
        published.await.unwrap().await.unwrap();
    }
    let mut client = herald.clients().await.dead_letters();
    until("the messages are dead letters", LIMIT, || {
        let mut client = client.clone();
        async move {
            let groups = client.list_groups(v1::ListGroupsRequest::default()).await;
            groups.unwrap().into_inner().dead_letter_count == DEAD_LETTERS
        }
    })
    .await;
    // One dead letter per second: the redrive takes a minute.
    let request = v1::RedriveDeadLettersRequest {
        selection: Some(v1::DeadLetterSelection {
            all: true,
            ..Default::default()
        }),
        rate_max: 1,
        failures_max: Some(0),
        ..Default::default()
    };
    let mut redrive = client.redrive_dead_letters(request).await.unwrap().into_inner();
    let running = redrive.message().await.unwrap().unwrap().redrive.unwrap();
    assert_eq!(
        running.state(),
        v1::DeadLetterOperationState::Running,
        "{running:?}"
    );

    let started = Instant::now();
    let (code, status) = tokio::join!(herald.stop(), async {
        loop {
            if let Err(status) = redrive.message().await {
                break status;
            }
        }
    });
    assert_eq!(code, 0, "{}", herald.log());
    assert_eq!(status.code(), tonic::Code::Unavailable, "{status:?}");
    // `gateway.drain_ms` is 10 s.
    assert!(
        started.elapsed() < Duration::from_secs(9),
        "{:?}",
        started.elapsed()
    );
}

/// Any program of the machine can reach the port, so the broker takes only its user, whose password the owner of the
/// data directory can read.
#[tokio::test(flavor = "multi_thread")]
async fn the_broker_takes_only_its_user() {
    use std::os::unix::fs::PermissionsExt as _;

    let mut herald = Herald::start(HERALD, Options::default()).await;
    let refused = async |options: async_nats::ConnectOptions| {
        let error = options.connect(herald.nats_address()).await.unwrap_err();
        assert_eq!(error.kind(), async_nats::ConnectErrorKind::AuthorizationViolation);
    };
    refused(async_nats::ConnectOptions::new()).await;
    refused(async_nats::ConnectOptions::with_user_and_password(
        "herald".into(),
        "guess".into(),
    ))
    .await;
    herald.broker().await.flush().await.unwrap();
    let password = herald.nats();
    let password = password.split([':', '@']).nth(2).unwrap();
    assert!(!herald.log().contains(password), "the log shows the password");
    for file in ["nats-server.password", "nats-server.conf"] {
        let metadata = std::fs::metadata(herald.data_dir().join("nats").join(file)).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600, "{file}");
    }
    // Other programs that were given the password keep working after a restart.
    let before = herald.nats();
    assert_eq!(herald.stop().await, 0);
    herald.restart().await;
    assert_eq!(herald.nats(), before);
    // Commands that speak to NATS take it as they take the password of any other server.
    let file = herald.data_dir().join("nats/nats-server.password");
    let verified = run(
        HERALD,
        &["topology", "verify", "--nats-url", herald.nats_address()],
        &[
            ("HERALD_NATS__USER", "herald"),
            ("HERALD_NATS__PASSWORD_FILE", file.to_str().unwrap()),
        ],
    )
    .await;
    assert_eq!(verified.code, 0, "{verified:?}");
}
