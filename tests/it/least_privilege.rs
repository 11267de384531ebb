//! Roles that are users of nats-server of their own, with the permissions that `herald topology permissions` prints.

use std::{collections::BTreeMap, time::Duration};

use async_nats::{ConnectOptions, Event};
use futures::StreamExt as _;
use harness::{Output, Process, free_port, run, until, until_some};
use herald_local_nats::Config as NatsConfig;
use herald_mesh::{Mesh, NatsUser};
use herald_push_sink::{InjectedFailure, Running};
use http::StatusCode;
use nkeys::KeyPair;
use tokio::{net::TcpStream, sync::mpsc};

use crate::{
    HERALD,
    serve_cluster::{LIMIT, NOT_SERVING, World, follow_with_device, health, until_delivered},
    surface::http_get,
    user_data::{
        cluster::erase,
        late::{complete, message, publish},
    },
};

/// A NATS server whose users are those that Herald prints, and their keys.
struct Restricted {
    world: World,
    keys: BTreeMap<&'static str, KeyPair>,
}

impl Restricted {
    /// Starts the servers; `None` on a machine without them. `extra`: further configuration of nats-server.
    async fn start(extra: &str) -> Option<Self> {
        let printed = run(HERALD, &["topology", "permissions"], &[]).await;
        assert_eq!(printed.code, 0, "{printed:?}");
        let keys: BTreeMap<_, _> = NatsUser::ALL
            .map(|user| (user.as_str(), KeyPair::new_user()))
            .into();
        let mut users = printed.stdout;
        for user in NatsUser::ALL {
            let variable = format!("${}\n", user.key_variable());
            assert_eq!(users.matches(&variable).count(), 1, "{users}");
            users = users.replace(&variable, &format!("\"{}\"\n", keys[user.as_str()].public_key()));
        }
        let nats = NatsConfig {
            extra: format!("{users}{extra}"),
            ..NatsConfig::default()
        };
        let world = World::start_with(nats).await?;
        Some(Self { world, keys })
    }

    fn seed(&self, user: &str) -> String {
        self.keys[user].seed().unwrap()
    }

    /// The environment of a process of one role.
    fn variables(&self, role: &str) -> Vec<(String, String)> {
        let mut variables = self.world.variables();
        for (name, value) in [
            ("HERALD_NATS__NKEY_SEED", self.seed(role)),
            ("HERALD_NATS__TOPOLOGY", "verify".into()),
            // The minimum, so that the post of an author with more followers has several slices.
            ("HERALD_FANOUT__SLICE_RECIPIENTS_MAX", "1024".into()),
        ] {
            variables.push((name.to_owned(), value));
        }
        variables
    }

    async fn serve(&self, role: &str, arguments: &[&str]) -> Process {
        Process::start(HERALD, role, arguments, &self.variables(role)).await
    }

    /// A connection as the user of a role.
    async fn mesh(&self, role: &str) -> Mesh {
        let user: NatsUser = NatsUser::ALL
            .into_iter()
            .find(|user| user.as_str() == role)
            .unwrap();
        let config = herald_mesh::Config {
            urls: vec![self.world.nats.client_url()],
            inbox_prefix: user.inbox_prefix(),
            auth: herald_mesh::Auth::NKey(self.seed(role)),
            ..herald_mesh::Config::default()
        };
        Mesh::connect(&config).await.unwrap()
    }

    /// Runs `herald topology` as its user.
    async fn topology(&self, action: &str) -> Output {
        let (url, seed) = (self.world.nats.client_url(), self.seed("topology"));
        let variables = [("HERALD_NATS__URL", &*url), ("HERALD_NATS__NKEY_SEED", &*seed)];
        run(HERALD, &["topology", action], &variables).await
    }

    /// The lines of the server's log about what it has refused.
    fn violations(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.world.nats.log_path()).unwrap();
        let refused = log.lines().filter(|line| line.contains("Violation"));
        refused.map(Into::into).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_work_with_users_of_their_own() {
    let Some(restricted) = Restricted::start("").await else {
        return;
    };
    deliver_fail_redrive_and_audit(&restricted).await;
    a_gateway_may_read_what_the_doctor_does(&restricted).await;
    only_what_a_role_does_is_allowed(&restricted).await;
}

async fn a_gateway_may_read_what_the_doctor_does(restricted: &Restricted) {
    let before = restricted.violations();
    let variables = restricted.variables("gateway");
    let variables: Vec<_> = variables
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let done = run(HERALD, &["doctor", "--output", "json"], &variables).await;
    let report: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    let has = |key: &str, text: &str| report[key].to_string().contains(text);
    assert!(!has("findings", "unreadable"), "{report:#}");
    // The store was compared, which reads messages.
    assert!(!has("not_checked", "stream-lost-tail"), "{report:#}");
    assert_eq!(restricted.violations(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_work_with_the_second_format_of_acknowledgements() {
    let Some(restricted) = Restricted::start("feature_flags { js_ack_fc_v2: true }\n").await else {
        return;
    };
    deliver_fail_redrive_and_audit(&restricted).await;
}

async fn deliver_fail_redrive_and_audit(restricted: &Restricted) {
    // A process that comes before the streams waits for them, and says so.
    let [grpc, http] = [free_port(), free_port()].map(|port| format!("127.0.0.1:{port}"));
    let early_arguments = ["--grpc", &*grpc, "--http", &*http];
    let early = restricted.serve("graph", &early_arguments);
    let tables = async {
        until("the process says what it waits for", LIMIT, || async {
            TcpStream::connect(&http).await.is_ok()
                && http_get(&http, "/readyz")
                    .await
                    .contains("stream POSTS does not exist")
        })
        .await;
        assert!(http_get(&http, "/healthz").await.starts_with("HTTP/1.1 200"));
        assert_eq!(health(&format!("http://{grpc}"), "graph").await, Ok(NOT_SERVING));
        let missing = restricted.topology("verify").await;
        assert_eq!(missing.code, 1, "{missing:?}");
        assert!(
            missing.stdout.contains("stream LATER does not exist"),
            "{missing:?}"
        );
        for action in ["apply", "verify"] {
            let done = restricted.topology(action).await;
            assert_eq!(done.code, 0, "{action}: {done:?}");
        }
    };
    let (graph, ()) = tokio::join!(early, tables);

    let (analytics, deadletter) = tokio::join!(
        restricted.serve("analytics", &[]),
        restricted.serve("deadletter", &[])
    );
    let to = |role: &str, process: &Process| format!("{role}={}", process.url());
    let to_graph = to("graph", &graph);
    let (to_analytics, to_deadletter) = (to("analytics", &analytics), to("deadletter", &deadletter));
    let peers = [
        "--peer",
        &*to_graph,
        "--peer",
        &*to_analytics,
        "--peer",
        &*to_deadletter,
    ];
    let (gateway, archive, fanout, timeline, push) = tokio::join!(
        restricted.serve("gateway", &peers),
        restricted.serve("archive", &[]),
        restricted.serve("fanout", &peers[..2]),
        restricted.serve("timeline", &[]),
        restricted.serve("push", &[]),
    );

    let sink = Running::start().await.unwrap();
    for user in ["ann", "bob", "cid", "dan", "eve"] {
        follow_with_device(&gateway, &sink, user, "107").await;
    }
    // Ann's device asks for a retry, so her push waits in the delay queue.
    let unavailable = InjectedFailure {
        status: StatusCode::SERVICE_UNAVAILABLE,
        retry_after: Some(Duration::from_secs(1)),
        times: Some(1),
    };
    sink.fail("ann", unavailable);
    for (post, lane) in [("1", "normal"), ("2", "low"), ("3", "high")] {
        let posted = gateway
            .cli(&["post", "--author", "107", "--text", "hello", "--lane", lane])
            .await;
        assert_eq!(posted["post_id"].to_string(), post, "{posted}");
        until_delivered(&gateway, post, 5).await;
    }
    sink.wait_for(15).await;
    // A new follower gets the posts before the follow.
    gateway.cli(&["follow", "fay", "107"]).await;
    until("the backfill is on the timeline", LIMIT, || async {
        let shown = gateway.cli(&["timeline", "fay"]).await;
        shown["entries"]
            .as_array()
            .is_some_and(|entries| entries.len() == 3)
    })
    .await;

    // A refused push becomes a dead letter, and its redrive is sent.
    let refuse = InjectedFailure {
        status: StatusCode::BAD_REQUEST,
        retry_after: None,
        times: None,
    };
    sink.fail("bob", refuse);
    gateway
        .cli(&["post", "--author", "107", "--text", "refused"])
        .await;
    let dead_letter = until_some("the dead letter is listed", LIMIT, || async {
        let listed = gateway.cli(&["dlq", "list", "--state", "open"]).await;
        let listed = listed["dead_letters"].as_array().unwrap();
        Some(listed.first()?["dead_letter_id"].to_string())
    })
    .await;
    gateway.cli(&["dlq", "show", &dead_letter]).await;
    sink.recover("bob");
    let redriven = gateway.cli(&["dlq", "redrive", &dead_letter]).await;
    assert_eq!(redriven["resolved_count"], 1, "{redriven}");
    until_delivered_pushes(&gateway, "4", 5).await;

    // An author with several slices of followers.
    let dir = tempfile::tempdir().unwrap();
    let edges = dir.path().join("edges.txt");
    let lines: Vec<_> = (0..1_500).map(|follower| format!("many{follower} 200")).collect();
    std::fs::write(&edges, lines.join("\n")).unwrap();
    gateway.cli(&["import", "follows", edges.to_str().unwrap()]).await;
    gateway
        .cli(&["post", "--author", "200", "--text", "to many"])
        .await;
    until("the post is on all timelines", LIMIT, || async {
        let delivery = gateway.cli(&["delivery", "5"]).await;
        delivery["channels"]["timeline"]["delivered_count"].as_u64() == Some(1_500)
    })
    .await;

    gateway.cli(&["delete", "3", "--author", "107"]).await;
    let mesh = restricted.mesh("gateway").await;
    let like = message(&mesh, 5).await;
    erase(&gateway, "200").await;
    publish(&mesh, &like, "late").await;
    let erasures = complete(async || gateway.cli(&["user", "erasures"]).await, 2).await;
    assert_eq!(erasures[0]["counts"]["message_count"], 1, "{erasures:?}");
    gateway.cli(&["prefs", "set", "eve", "--mute", "107"]).await;
    let lag = gateway.cli(&["lag"]).await;
    assert_eq!(lag["streams"].as_array().map(Vec::len), Some(9), "{lag}");
    until("analytics has counted the posts", LIMIT, || async {
        let variables = [("HERALD_SERVER", gateway.url())];
        let variables = variables.each_ref().map(|(name, value)| (*name, value.as_str()));
        run(HERALD, &["stats", "1", "--output", "json"], &variables)
            .await
            .code
            == 0
    })
    .await;
    until("the audit finds nothing", LIMIT, || async {
        let server = ("HERALD_OPERATOR_SERVER", &*gateway.operator_url());
        let audit = run(HERALD, &["audit", "--repair"], &[server]).await;
        audit.code == 0
    })
    .await;

    for mut process in [
        gateway, archive, graph, fanout, timeline, push, analytics, deadletter,
    ] {
        assert_eq!(
            process.stop().await,
            0,
            "{:?}: {}",
            process.roles(),
            process.log()
        );
        assert!(
            !process.log().to_lowercase().contains("violation"),
            "{:?}: {}",
            process.roles(),
            process.log()
        );
    }
    assert_eq!(restricted.violations(), Vec::<String>::new());
}

/// Waits until the pushes of a post are sent.
async fn until_delivered_pushes(gateway: &Process, post: &str, count: u64) {
    until("the pushes are sent", LIMIT, || async {
        let delivery = gateway.cli(&["delivery", post]).await;
        delivery["channels"]["push"]["delivered_count"].as_u64() == Some(count)
    })
    .await;
}

/// What the role `timeline` may not do is refused, and changes nothing.
async fn only_what_a_role_does_is_allowed(restricted: &Restricted) {
    let (refusals, mut refused) = mpsc::unbounded_channel();
    let client = ConnectOptions::with_nkey(restricted.seed("timeline"))
        .custom_inbox_prefix(NatsUser::Timeline.inbox_prefix())
        .event_callback(move |event| {
            if let Event::ServerError(error) = event {
                let _ = refusals.send(error.to_string());
            }
            std::future::ready(())
        })
        .connect(restricted.world.nats.client_url())
        .await
        .unwrap();
    for subject in [
        "post.v1.created.low",
        "push.v1.other",
        "dlq.v1.TIMELINE.timeline-low",
        "redrive.v1.timeline",
        "$JS.API.CONSUMER.MSG.NEXT.PUSH.push-low",
        "$JS.API.CONSUMER.MSG.NEXT.POSTS.archive",
        "$JS.API.CONSUMER.CREATE.PUSH.mine",
        "$JS.API.CONSUMER.DELETE.TIMELINE.timeline-low",
        "$JS.API.STREAM.CREATE.MINE",
        "$JS.API.STREAM.DELETE.TIMELINE",
        "$JS.API.STREAM.PURGE.TIMELINE",
        "$JS.API.STREAM.MSG.GET.POSTS",
        "$JS.API.DIRECT.GET.PUSH",
        "$JS.ACK.PUSH.push-low.1.1.1.1790230470084404000.0",
        "$JS.ACK._.hash.PUSH.push-low.1.1.1.1790230470084404000.0",
        "$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.PUSH.push-low",
    ] {
        client
            .publish_with_reply(subject, client.new_inbox(), "".into())
            .await
            .unwrap();
        let refusal = tokio::time::timeout(LIMIT, refused.recv())
            .await
            .unwrap()
            .unwrap();
        assert!(
            refusal
                .to_lowercase()
                .contains("permissions violation for publish")
                && refusal.to_lowercase().contains(&subject.to_lowercase()),
            "{subject}: {refusal}"
        );
    }
    for subject in [
        "_INBOX_gateway.>",
        "_INBOX.>",
        "post.v1.>",
        "live.v1.timeline",
        ">",
    ] {
        let _subscriber = client.subscribe(subject).await.unwrap();
        let refusal = tokio::time::timeout(LIMIT, refused.recv())
            .await
            .unwrap()
            .unwrap();
        assert!(
            refusal
                .to_lowercase()
                .contains("permissions violation for subscription"),
            "{subject}: {refusal}"
        );
    }
    // What it does itself is allowed.
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.unwrap();
    client
        .publish_with_reply("$JS.API.STREAM.INFO.TIMELINE", inbox, "".into())
        .await
        .unwrap();
    assert!(answers.next().await.is_some());
    let unchanged = restricted.topology("verify").await;
    assert_eq!(unchanged.code, 0, "{unchanged:?}");
    assert!(
        restricted.violations().len() >= 20,
        "{:?}",
        restricted.violations()
    );
}

#[tokio::test]
async fn nats_server_reads_the_printed_users_with_their_variables() {
    let printed = run(HERALD, &["topology", "permissions"], &[]).await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("nats.conf");
    std::fs::write(&file, printed.stdout).unwrap();
    let server = herald_local_nats::Binary::locate(herald_local_nats::Locate::default())
        .await
        .unwrap();
    let check = async |variables: &[(String, String)]| {
        let variables: Vec<_> = variables
            .iter()
            .map(|(name, value)| (&**name, &**value))
            .collect();
        run(
            server.path().to_str().unwrap(),
            &["-t", "-c", file.to_str().unwrap()],
            &variables,
        )
        .await
    };
    let keys = NatsUser::ALL.map(|user| (user.key_variable(), KeyPair::new_user().public_key()));
    let good = check(&keys).await;
    assert_eq!(good.code, 0, "{good:?}");
    // A user without a key is refused, not ignored.
    let bad = check(&keys[1..]).await;
    assert_ne!(bad.code, 0, "{bad:?}");
}
