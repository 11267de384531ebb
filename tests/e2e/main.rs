//! The chart on a real cluster: `cargo xtask e2e`.
//!
//! Installs Herald with its bundled dependencies, posts from outside, and checks that every post is on every timeline
//! once and every owed push is sent, while workers scale, pods are replaced and pods are deleted.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails at the first unexpected error"
)]

mod cluster;
mod faults;
mod load;
mod policies;
mod scale;
mod sink;
mod traces;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use clap::Parser;

use self::{
    cluster::{Cluster, Log, run},
    load::{Accepted, Api, Load},
};

/// Time limit of an installation, also on a slow machine.
const INSTALL_LIMIT: &str = "6m";
/// Time limit for the deliveries of the load to be complete.
const SETTLE_LIMIT: Duration = Duration::from_mins(3);
/// Posts after the last fault.
const POSTS_AFTER_FAULTS: usize = 50;
/// Pause of each author between two posts.
const PAUSE: Duration = Duration::from_millis(400);

/// Test the chart on the cluster of KUBECONFIG
///
/// Makes a namespace, and removes it at the end unless --keep is given. The image must be in the cluster or in a
/// registry that it reaches.
#[derive(Debug, Parser)]
#[command(name = "e2e")]
struct Args {
    /// Image of Herald, REGISTRY/REPOSITORY:TAG
    #[arg(long, env = "E2E_IMAGE")]
    image: Option<String>,
    /// More values for the chart, such as the images of the dependencies in a cluster without a registry
    #[arg(long, value_name = "FILE", env = "E2E_VALUES", value_delimiter = ',')]
    values: Vec<PathBuf>,
    /// Namespace, made anew
    #[arg(long, default_value = "herald-e2e")]
    namespace: String,
    /// The helm to use
    #[arg(long, default_value = "helm", env = "E2E_HELM")]
    helm: String,
    /// Leave out the scaling of workers
    #[arg(long)]
    without_scaling: bool,
    /// Leave the release in the cluster
    #[arg(long)]
    keep: bool,
    /// What `cargo test` passes; ignored
    #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

#[tokio::main]
async fn main() {
    let args = Args::parse();
    let log = Log::start();
    let Some(image) = args.image.clone() else {
        log.print("left out: E2E_IMAGE names no image of Herald; `cargo xtask e2e` makes one and runs this");
        return;
    };
    let cluster = Cluster {
        namespace: args.namespace.clone(),
        release: "herald".into(),
        helm: args.helm.clone(),
    };
    let versions = run(&cluster.helm, &["version", "--short"])
        .await
        .expect("run helm");
    log.print(format_args!("helm {}", versions.trim()));
    make_namespace(&cluster).await;
    let test = Test {
        cluster,
        log,
        chart: chart(),
        values: values(&args.values),
        image,
        scales: !args.without_scaling,
    };
    test.run().await;
    if !args.keep {
        let namespace = &args.namespace;
        run(
            "kubectl",
            &["delete", "namespace", namespace, "--wait=true", "--timeout=3m"],
        )
        .await
        .expect("delete the namespace");
    }
    log.print("all passed");
}

/// The chart of this checkout.
fn chart() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../helm/herald");
    path.to_str().expect("a readable path").to_owned()
}

/// The values of the test, then those of the command line.
fn values(more: &[PathBuf]) -> Vec<String> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/values.yaml");
    std::iter::once(&own)
        .chain(more)
        .map(|path| path.to_str().expect("a readable path").to_owned())
        .collect()
}

async fn make_namespace(cluster: &Cluster) {
    let namespace = &cluster.namespace;
    run(
        "kubectl",
        &[
            "delete",
            "namespace",
            namespace,
            "--ignore-not-found",
            "--timeout=3m",
        ],
    )
    .await
    .expect("delete the namespace of an earlier run");
    run("kubectl", &["create", "namespace", namespace])
        .await
        .expect("create the namespace");
    let restricted = "pod-security.kubernetes.io/enforce=restricted";
    run("kubectl", &["label", "namespace", namespace, restricted])
        .await
        .expect("restrict the pods of the namespace");
}

struct Test {
    cluster: Cluster,
    log: Log,
    chart: String,
    values: Vec<String>,
    image: String,
    scales: bool,
}

impl Test {
    async fn run(&self) {
        let (cluster, log) = (&self.cluster, self.log);
        let started = Instant::now();
        self.helm("install", &[]).await;
        log.print(format_args!(
            "ready {:.1} s after the begin of helm install",
            started.elapsed().as_secs_f64()
        ));
        self.test_release().await;

        let gateway = cluster.reach("herald-gateway", 7700).await;
        let api = Api::new(gateway.address);
        let accepted = Arc::new(Accepted::default());
        api.import_follows().await;
        sink::start(cluster, &self.image).await;

        if self.scales {
            scale::up_and_down(cluster, log, &api, &accepted, "timeline", 0, "pending").await;
            self.helm("upgrade", &["--set=autoscaling.signal=slo"]).await;
            log.print("upgraded to signal slo");
            scale::up_and_down(cluster, log, &api, &accepted, "timeline", 0, "slo").await;
            self.check(&api, &accepted).await;
        }

        let under_load = Arc::new(Accepted::default());
        under_load.posts.lock().clone_from(&accepted.posts.lock());
        let before = under_load.len();
        let load = Load::start(&api, &under_load, "load", PAUSE);
        self.helm(
            "upgrade",
            &[
                "--set=autoscaling.signal=slo",
                "--set-string=pods.podAnnotations.round=2",
            ],
        )
        .await;
        log.print("replaced all pods of Herald under load");
        faults::delete_a_pod_of_each(cluster, log).await;
        // The load goes on until all have recovered.
        faults::all_ready(cluster).await;
        let (so_far, more) = (under_load.len(), POSTS_AFTER_FAULTS);
        harness::until("posts are accepted after the faults", SETTLE_LIMIT, || async {
            under_load.len() >= so_far + more
        })
        .await;
        load.stop().await;
        log.print(format_args!(
            "{} posts under load, {} attempts were repeated, the longest post took {:.1} s",
            under_load.len() - before,
            under_load.failed_attempts.load(Ordering::Relaxed),
            under_load.longest().as_secs_f64()
        ));
        let trace = traces::one_trace_across_pods(cluster, log, &api).await;
        under_load.posts.lock().insert(trace, 0);
        self.check(&api, &under_load).await;
        log.print(format_args!(
            "from the answer to a post until a timeline showed it: p50 {:?}, p99 {:?}",
            under_load.visible(50),
            under_load.visible(99)
        ));

        policies::hold(cluster, log).await;
        self.uninstall().await;
        self.helm("install", &[]).await;
        let gateway = cluster.reach("herald-gateway", 7700).await;
        let api = Api::new(gateway.address);
        let wrong = load::wrong_timelines(&api, &under_load).await;
        assert!(wrong.is_empty(), "after another install: {wrong:?}");
        log.print("installed again: all timelines are as before");
        self.uninstall().await;
    }

    /// Runs `helm install` or `helm upgrade` and waits until the release is ready.
    async fn helm(&self, action: &str, more: &[&str]) {
        let (repository, tag) = self.image.rsplit_once(':').expect("the image has a tag");
        let (registry, repository) = repository.split_once('/').expect("the image has a registry");
        let image = [
            format!("--set-string=image.registry={registry}"),
            format!("--set-string=image.repository={repository}"),
            format!("--set-string=image.tag={tag}"),
        ];
        let mut arguments = vec![
            action,
            &self.cluster.release,
            &self.chart,
            "--wait",
            "--timeout",
            INSTALL_LIMIT,
        ];
        for file in &self.values {
            arguments.extend(["--values", file]);
        }
        arguments.extend(image.iter().map(String::as_str));
        arguments.extend(more);
        let done = self.cluster.helm(&arguments).await;
        if !done.ok {
            let pods = self.cluster.kubectl(&["get", "pods,jobs,events"]).await;
            panic!(
                "helm {action} failed: {}{}\n{}",
                done.stdout, done.stderr, pods.stdout
            );
        }
    }

    /// Runs the test that the chart brings along.
    async fn test_release(&self) {
        let done = self
            .cluster
            .helm(&["test", &self.cluster.release, "--logs", "--timeout", "3m"])
            .await;
        let output = done.expect("run helm test");
        self.log.print(format_args!("helm test:\n{}", output.trim()));
    }

    /// Waits until every accepted post is on every timeline once and every owed push has arrived; then audits.
    async fn check(&self, api: &Api, accepted: &Accepted) {
        let end = Instant::now() + SETTLE_LIMIT;
        loop {
            let wrong = load::wrong_timelines(api, accepted).await;
            if wrong.is_empty() {
                break;
            }
            assert!(
                Instant::now() < end,
                "{} timelines are wrong after {SETTLE_LIMIT:?}: {:?}",
                wrong.len(),
                &wrong[..wrong.len().min(5)]
            );
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let received = sink::all_received(&self.cluster, accepted).await;
        self.log.print(format_args!(
            "{} posts are on all timelines once; {} pushes arrived, {} of them again; push p50 {:?}, p99 {:?}",
            accepted.len(),
            received.len(),
            received.repeated(),
            received.latency(50),
            received.latency(99)
        ));
        self.audit().await;
    }

    /// `herald audit` in a pod of the gateway.
    async fn audit(&self) {
        let end = Instant::now() + SETTLE_LIMIT;
        loop {
            let audit = ["exec", "deployment/herald-gateway", "--", "/herald", "audit"];
            let done = self.cluster.kubectl(&audit).await;
            if done.ok {
                self.log.print(format_args!("audit:\n{}", done.stdout.trim()));
                return;
            }
            assert!(
                Instant::now() < end,
                "the audit finds differences: {}{}",
                done.stdout,
                done.stderr
            );
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    }

    /// Uninstalls, and asserts that only volumes, made Secrets and the pod of the last `helm test` are left.
    async fn uninstall(&self) {
        let cluster = &self.cluster;
        cluster
            .helm(&["uninstall", &cluster.release, "--wait", "--timeout", "3m"])
            .await
            .expect("uninstall the release");
        let selector = format!("app.kubernetes.io/instance={}", cluster.release);
        let kinds = run(
            "kubectl",
            &[
                "api-resources",
                "--namespaced",
                "--verbs=list,delete",
                "--output=name",
            ],
        )
        .await
        .expect("list the kinds of objects");
        let left = |kinds: String| {
            let selector = selector.clone();
            async move {
                let done = cluster
                    .kubectl(&["get", &kinds, "--selector", &selector, "--output=name"])
                    .await;
                done.stdout.lines().map(ToOwned::to_owned).collect::<Vec<_>>()
            }
        };
        let test = format!("pod/{}-test", cluster.release);
        let may_stay = |object: &String| {
            object.starts_with("secret/") || object.starts_with("persistentvolumeclaim/") || *object == test
        };
        let kinds = kinds.lines().collect::<Vec<_>>().join(",");
        harness::until("nothing else is left", SETTLE_LIMIT, || async {
            left(kinds.clone()).await.iter().all(may_stay)
        })
        .await;
        self.log
            .print(format_args!("uninstalled; left are {:?}", left(kinds).await));
    }
}
