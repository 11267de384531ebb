//! A mesh whose connections all use TLS, with client certificates between the roles, and the change of all certificates.

use std::{
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use futures::join;
use harness::{Process, run, run_json, until};
use herald_proto::v1::{SubmitPostRequest, post_service_client::PostServiceClient};
use herald_runtime::tls::{ClientFiles, ClientTls};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use crate::{HERALD, serve_tls::World};

const LIMIT: Duration = Duration::from_mins(1);
/// Pause between two posts of the load.
const PAUSE: Duration = Duration::from_millis(50);
/// Entries of a timeline.
const ENTRIES_MAX: usize = 800;
/// What a process logs when it has read new files.
const RELOADED: &str = "new TLS files are in use";

/// The processes of a mesh, and the environment of its clients.
struct Mesh {
    /// Graph, analytics and deadletter.
    called: Process,
    gateway: Process,
    workers: Process,
    variables: Vec<(String, String)>,
}

fn https(url: &str) -> String {
    url.replace("http://", "https://")
}

/// The environment of all processes: TLS on all ports, client certificates between the roles.
fn variables(world: &World) -> Vec<(String, String)> {
    let text = |path: &Path| path.display().to_string();
    let certificates = &world.certificates;
    let authority = certificates.authority();
    let mut variables = world.variables(&authority, &authority, &authority);
    let files = [
        ("TLS__CERT_FILE", certificates.certificate()),
        ("TLS__KEY_FILE", certificates.key()),
        ("INTERNAL_TLS__CERT_FILE", certificates.certificate()),
        ("INTERNAL_TLS__KEY_FILE", certificates.key()),
        ("INTERNAL_TLS__CA_FILE", authority.clone()),
        ("INTERNAL_TLS__CLIENT_CA_FILE", authority),
        ("NATS__TLS__CERT_FILE", certificates.certificate()),
        ("NATS__TLS__KEY_FILE", certificates.key()),
    ];
    variables.extend(files.map(|(name, path)| (format!("HERALD_{name}"), text(&path))));
    variables
}

impl Mesh {
    async fn start(world: &World) -> Self {
        let variables = variables(world);
        let called = Process::start(HERALD, "graph,analytics,deadletter", &[], &variables).await;
        let peer = https(&called.url());
        let peers = ["graph", "analytics", "deadletter"].map(|role| format!("{role}={peer}"));
        let arguments = peers.each_ref().map(|peer| ["--peer", peer]).concat();
        let gateway = Process::start(HERALD, "gateway", &arguments, &variables).await;
        let roles = "archive,fanout,timeline,push";
        let workers = Process::start(HERALD, roles, &arguments[..2], &variables).await;
        Self {
            called,
            gateway,
            workers,
            variables,
        }
    }

    fn processes(&self) -> [&Process; 3] {
        [&self.called, &self.gateway, &self.workers]
    }

    async fn cli(&self, world: &World, arguments: &[&str]) -> Value {
        let mut all = arguments.to_vec();
        all.extend(["--output", "json"]);
        let variables = [
            ("HERALD_SERVER", &*https(&self.gateway.url())),
            ("HERALD_OPERATOR_SERVER", &*https(&self.gateway.operator_url())),
            (
                "HERALD_CA_FILE",
                &*world.certificates.authority().display().to_string(),
            ),
        ];
        run_json(HERALD, &all, &variables).await
    }

    /// Waits until the timeline of `ann` has this number of posts.
    async fn until_delivered(&self, world: &World, posts: usize) {
        until("the posts are on the timeline", LIMIT, || async {
            let shown = self.cli(world, &["timeline", "ann", "--all"]).await;
            shown["entries"]
                .as_array()
                .is_some_and(|entries| entries.len() == posts.min(ENTRIES_MAX))
        })
        .await;
    }

    /// Changes files, and waits until every process has read them again: the called processes for their port, the gateway for
    /// its calls and for `gateway_ports`, the workers for their calls.
    async fn reload(&self, gateway_ports: usize, change: impl FnOnce()) {
        let count = |process: &Process| process.log().matches(RELOADED).count();
        let before = self.processes().map(count);
        change();
        until("all processes use the new files", LIMIT, || async {
            let now = self.processes().map(count);
            let more = [1, 1 + gateway_ports, 1];
            (0..3).all(|n| now[n] >= before[n] + more[n])
        })
        .await;
    }
}

/// The TLS of a client, that follows its files.
fn client_tls(world: &World) -> ClientTls {
    ClientTls::open(&ClientFiles {
        authorities: Some(world.certificates.authority()),
        identity: None,
    })
    .unwrap()
}

/// A connection to a port by the name `localhost`, whose address the certificates have.
async fn connect(url: &str, tls: &ClientTls) -> Result<Channel, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(https(url)).unwrap();
    tls.apply(endpoint, "localhost").unwrap().connect().await
}

async fn post(channel: &Channel) -> Result<(), tonic::Status> {
    let request = SubmitPostRequest {
        author_id: "107".into(),
        text: "hello".into(),
        ..SubmitPostRequest::default()
    };
    let posted = timeout(
        LIMIT,
        PostServiceClient::new(channel.clone()).submit_post(request),
    )
    .await;
    posted.expect("the call ends").map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mesh_over_tls_goes_on_while_all_certificates_change() {
    let Some(mut world) = World::start().await else {
        return;
    };
    let mesh = Mesh::start(&world).await;
    mesh.cli(&world, &["follow", "ann", "107"]).await;
    let tls = client_tls(&world);
    let (posts, done) = (AtomicUsize::new(0), CancellationToken::new());
    let open = connect(&mesh.gateway.url(), &tls).await.unwrap();
    let load = async {
        while !done.is_cancelled() {
            // By a connection that stays, and by a new one each time.
            post(&open).await.unwrap();
            let new = connect(&mesh.gateway.url(), &tls).await.unwrap();
            post(&new).await.unwrap();
            posts.fetch_add(2, Ordering::Relaxed);
            sleep(PAUSE).await;
        }
    };
    let change = async {
        let mut read = tls.changes();
        // The ports of the gateway know no authority: their clients have no certificates.
        mesh.reload(0, || world.certificates.add_authority()).await;
        assert!(read.next().await);
        mesh.reload(2, || world.certificates.certify()).await;
        renew_servers(&world).await;
        mesh.reload(0, || world.certificates.drop_old_authority()).await;
        assert!(read.next().await);
        let before = posts.load(Ordering::Relaxed);
        until("posts are accepted with the new certificates", LIMIT, || async {
            posts.load(Ordering::Relaxed) >= before + 20
        })
        .await;
        done.cancel();
        world
    };
    let ((), mut world) = join!(load, change);
    let posted = posts.load(Ordering::Relaxed);
    mesh.until_delivered(&world, posted).await;
    for process in mesh.processes() {
        let log = process.log();
        assert!(!log.contains(" ERROR "), "{log}");
    }

    // A new process, and one that must connect to NATS again, know the new authority alone.
    let mut late = Process::start(HERALD, "timeline", &[], &mesh.variables).await;
    world.nats.restart().await.unwrap();
    until("posts are accepted after a restart of NATS", LIMIT, || async {
        post(&open).await.is_ok()
    })
    .await;
    mesh.until_delivered(&world, posted + 1).await;
    assert_eq!(late.stop().await, 0, "{}", late.log());
}

/// Lets PostgreSQL, Redis and NATS read the new certificate.
async fn renew_servers(world: &World) {
    world.certificates.write_to(&world.postgres.dir().join("data"));
    world
        .postgres
        .run_in("herald", "SELECT pg_reload_conf()")
        .await
        .unwrap();
    let certificates = &world.certificates;
    let (certificate, key) = (certificates.certificate(), certificates.key());
    let (certificate, key) = (certificate.to_str().unwrap(), key.to_str().unwrap());
    let set = ["CONFIG", "SET", "tls-cert-file", certificate, "tls-key-file", key];
    world.redis.command(&set).await.unwrap();
    let nats = Pid::from_raw(i32::try_from(world.nats.pid()).unwrap()).unwrap();
    kill_process(nats, Signal::HUP).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn internal_ports_refuse_callers_without_a_certificate_and_commands_say_what_is_wrong() {
    let Some(world) = World::start().await else { return };
    let mesh = Mesh::start(&world).await;
    let (url, internal) = (mesh.gateway.url(), https(&mesh.called.url()));
    let secure = https(&url);
    let text = |path: &Path| path.display().to_string();
    let authority = text(&world.certificates.authority());
    let other = text(&world.certificates.other());
    let (certificate, key) = (world.certificates.certificate(), world.certificates.key());
    let (certificate, key) = (text(&certificate), text(&key));
    let nats = world
        .nats
        .client_url()
        .replace("nats://", "https://")
        .replace("tls://", "https://");
    let http = format!("https://{}", mesh.gateway.http());
    for (arguments, message, hint) in [
        (
            vec!["--server", &*secure],
            "an authority that is not accepted here",
            "--ca-file",
        ),
        (
            vec!["--server", &secure, "--ca-file", &other],
            "an authority that is not accepted here",
            "--ca-file",
        ),
        (vec!["--server", &url], "requires TLS", "use https://127.0.0.1:"),
        (
            vec!["--server", &nats, "--ca-file", &authority],
            "is a NATS server, not Herald's gRPC port",
            "give its address with --server",
        ),
        (
            vec!["--server", &http, "--ca-file", &authority],
            "is Herald's HTTP port (health and metrics)",
            "give its address with --server",
        ),
        // The port between the roles accepts nobody without a certificate.
        (
            vec!["--server", &internal, "--ca-file", &authority],
            "the server requires a certificate of its callers",
            "--cert-file",
        ),
    ] {
        let mut all = vec!["timeline", "ann"];
        all.extend(&arguments);
        let done = run(HERALD, &all, &[]).await;
        assert_eq!(done.code, 3, "{arguments:?}: {done:?}");
        assert!(
            done.stderr.contains(message) && done.stderr.contains(hint),
            "{arguments:?}: {}",
            done.stderr
        );
    }
    // With a certificate it answers, and has no such service.
    let all = [
        "timeline",
        "ann",
        "--server",
        &internal,
        "--ca-file",
        &authority,
        "--cert-file",
        &certificate,
        "--key-file",
        &key,
    ];
    let done = run(HERALD, &all, &[]).await;
    assert!(done.stderr.contains("no such method"), "{done:?}");
    // The readiness and the metrics are plain.
    assert!(crate::serve_cluster::is_ready(&mesh.gateway).await);
}
