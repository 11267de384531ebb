//! The cluster behind `KUBECONFIG`, through `kubectl` and `helm`.

use std::{
    net::SocketAddr,
    process::Stdio,
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    process::{Child, Command},
};

/// Time limit of a probe that asks whether this machine reaches the addresses of services.
const PROBE_LIMIT: Duration = Duration::from_secs(2);

/// A namespace of a cluster, and the release in it.
#[derive(Debug, Clone)]
pub(crate) struct Cluster {
    pub(crate) namespace: String,
    pub(crate) release: String,
    pub(crate) helm: String,
}

/// What a command printed.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) ok: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs a program with its output captured.
pub(crate) async fn run(program: &str, arguments: &[&str]) -> Done {
    let done = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap_or_else(|error| panic!("can't start {program}: {error}; install it or add it to the PATH"));
    Done {
        ok: done.status.success(),
        stdout: String::from_utf8_lossy(&done.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&done.stderr).into_owned(),
    }
}

impl Done {
    /// The standard output. Panics if the command failed.
    pub(crate) fn expect(self, what: &str) -> String {
        assert!(self.ok, "could not {what}:\n{}{}", self.stdout, self.stderr);
        self.stdout
    }
}

impl Cluster {
    /// Runs kubectl in the namespace.
    pub(crate) async fn kubectl(&self, arguments: &[&str]) -> Done {
        let mut all = vec!["--namespace", &self.namespace];
        all.extend(arguments);
        run("kubectl", &all).await
    }

    /// Runs helm in the namespace.
    pub(crate) async fn helm(&self, arguments: &[&str]) -> Done {
        let mut all = vec!["--namespace", &self.namespace];
        all.extend(arguments);
        run(&self.helm, &all).await
    }

    /// Objects of a kind that have the labels.
    pub(crate) async fn list(&self, kind: &str, labels: &str) -> Vec<Value> {
        let text = self
            .kubectl(&["get", kind, "--selector", labels, "--output", "json"])
            .await
            .expect(&format!("list {kind}"));
        let mut list: Value = serde_json::from_str(&text).expect("kubectl prints JSON");
        match list["items"].take() {
            Value::Array(items) => items,
            other => panic!("kubectl printed no items: {other}"),
        }
    }

    /// An object by its name; `None` if there is none.
    pub(crate) async fn get(&self, kind: &str, name: &str) -> Option<Value> {
        let done = self
            .kubectl(&["get", kind, name, "--ignore-not-found", "--output", "json"])
            .await;
        let text = done.expect(&format!("read {kind}/{name}"));
        (!text.trim().is_empty()).then(|| serde_json::from_str(&text).expect("kubectl prints JSON"))
    }

    /// Creates or changes an object.
    pub(crate) async fn apply(&self, object: &Value) {
        let mut apply = Command::new("kubectl")
            .args(["--namespace", &self.namespace, "apply", "--filename", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("kubectl starts");
        let mut input = apply.stdin.take().expect("a pipe");
        input
            .write_all(object.to_string().as_bytes())
            .await
            .expect("kubectl reads its input");
        drop(input);
        let done = apply.wait_with_output().await.expect("kubectl ends");
        assert!(
            done.status.success(),
            "could not apply {object}: {}",
            String::from_utf8_lossy(&done.stderr)
        );
    }

    /// The labels of the pods of a component.
    pub(crate) fn labels(&self, component: &str) -> String {
        format!(
            "app.kubernetes.io/instance={},app.kubernetes.io/component={component}",
            self.release
        )
    }

    /// Number of ready pods of a component.
    pub(crate) async fn ready(&self, component: &str) -> usize {
        let pods = self.list("pods", &self.labels(component)).await;
        pods.iter().filter(|pod| is_ready(pod)).count()
    }

    /// Makes a port of a service reachable from this machine.
    pub(crate) async fn reach(&self, service: &str, port: u16) -> Reached {
        let object = self
            .get("service", service)
            .await
            .unwrap_or_else(|| panic!("no service {service}"));
        let direct = object["spec"]["clusterIP"]
            .as_str()
            .and_then(|ip| ip.parse().ok())
            .map(|ip| SocketAddr::new(ip, port));
        if let Some(address) = direct
            && let Ok(Ok(_)) = tokio::time::timeout(PROBE_LIMIT, TcpStream::connect(address)).await
        {
            return Reached {
                address,
                _forward: None,
            };
        }
        self.forward(&format!("service/{service}"), port).await
    }

    async fn forward(&self, target: &str, port: u16) -> Reached {
        let mut forward = Command::new("kubectl")
            .args([
                "--namespace",
                &self.namespace,
                "port-forward",
                target,
                &format!(":{port}"),
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("kubectl starts");
        let mut lines = BufReader::new(forward.stdout.take().expect("a pipe")).lines();
        // "Forwarding from 127.0.0.1:34567 -> 7700"
        let line = lines.next_line().await.expect("kubectl prints text");
        let line = line.unwrap_or_else(|| panic!("kubectl port-forward {target} ended at once"));
        let address = line
            .strip_prefix("Forwarding from ")
            .and_then(|rest| rest.split(" -> ").next())
            .and_then(|address| address.parse().ok())
            .unwrap_or_else(|| panic!("kubectl port-forward printed {line:?}"));
        // Reads on, so that kubectl does not stop at a full pipe.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Reached {
            address,
            _forward: Some(forward),
        }
    }
}

/// An address of a service.
#[derive(Debug)]
pub(crate) struct Reached {
    pub(crate) address: SocketAddr,
    /// Ends with this value.
    _forward: Option<Child>,
}

/// Whether a pod is ready and not being deleted.
pub(crate) fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    pod["metadata"]["deletionTimestamp"].is_null()
        && conditions.is_some_and(|all| {
            all.iter()
                .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
        })
}

/// The name of an object.
pub(crate) fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// Prints a step with the time since the start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Log(Instant);

impl Log {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    #[allow(clippy::print_stdout, reason = "the report of the run")]
    pub(crate) fn print(self, text: impl std::fmt::Display) {
        println!("[{:8.3}] {text}", self.0.elapsed().as_secs_f64());
    }
}
