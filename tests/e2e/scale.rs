//! Workers scale with the backlog, and back.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    cluster::{Cluster, Log, name},
    load::{Accepted, Api, burst},
};

/// Posts of a burst.
const POSTS: usize = 2_000;
/// Time limit for the first added worker to be there.
const UP_LIMIT: Duration = Duration::from_mins(2);
/// Time limit for the workers to become as few as before.
const DOWN_LIMIT: Duration = Duration::from_mins(5);
/// Interval of readings.
const INTERVAL: Duration = Duration::from_millis(250);

/// The replicas that a Deployment asks for.
async fn wanted(cluster: &Cluster, deployment: &str) -> u64 {
    let object = cluster.get("deployment", deployment).await;
    let object = object.unwrap_or_else(|| panic!("no deployment {deployment}"));
    object["spec"]["replicas"].as_u64().unwrap_or(0)
}

/// The only Deployment of a component.
async fn deployment(cluster: &Cluster, component: &str) -> String {
    let all = cluster.list("deployments", &cluster.labels(component)).await;
    assert_eq!(all.len(), 1, "one Deployment of {component}");
    name(&all[0]).to_owned()
}

/// Waits for a number of replicas. Panics after the limit.
async fn wait(
    cluster: &Cluster,
    deployment: &str,
    limit: Duration,
    what: &str,
    holds: impl Fn(u64) -> bool,
) -> u64 {
    let end = Instant::now() + limit;
    loop {
        let replicas = wanted(cluster, deployment).await;
        if holds(replicas) {
            return replicas;
        }
        if Instant::now() > end {
            let object = cluster.kubectl(&["describe", "scaledobject,hpa"]).await;
            panic!(
                "{deployment} has {replicas} replicas after {limit:?}, wanted {what}:\n{}",
                object.stdout
            );
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// A burst makes the workers of a component more, and its end makes them as few as before.
pub(crate) async fn up_and_down(
    cluster: &Cluster,
    log: Log,
    api: &Api,
    accepted: &Arc<Accepted>,
    component: &str,
    minimum: u64,
    signal: &'static str,
) {
    let deployment = deployment(cluster, component).await;
    wait(cluster, &deployment, DOWN_LIMIT, "the minimum", |n| n == minimum).await;
    let started = Instant::now();
    let bursting = {
        let (api, accepted) = (api.clone(), Arc::clone(accepted));
        tokio::spawn(async move { burst(&api, &accepted, signal, POSTS).await })
    };
    let first = minimum.max(1) + 1;
    let grown = wait(cluster, &deployment, UP_LIMIT, "more", |n| n >= first).await;
    log.print(format_args!(
        "signal {signal}: {deployment} went from {minimum} to {grown} replicas {:.1} s after the begin of the burst",
        started.elapsed().as_secs_f64()
    ));
    bursting.await.expect("all posts of the burst are accepted");
    let mut most = grown;
    let end = Instant::now() + DOWN_LIMIT;
    loop {
        let replicas = wanted(cluster, &deployment).await;
        most = most.max(replicas);
        if replicas == minimum {
            break;
        }
        assert!(
            Instant::now() < end,
            "{deployment} still has {replicas} replicas after {DOWN_LIMIT:?}"
        );
        tokio::time::sleep(INTERVAL).await;
    }
    log.print(format_args!(
        "signal {signal}: {deployment} had up to {most} replicas, and {minimum} again after {:.0} s",
        started.elapsed().as_secs_f64()
    ));
}
