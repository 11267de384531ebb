//! Tests against real servers of the health service.

use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::service::Routes;
use tonic_health::server::HealthReporter;

use super::*;

const SERVICE: &str = "graph";
const LIMIT: Duration = Duration::from_secs(20);

/// A server that counts the health checks without a service name: those are the calls of the tests.
struct Server {
    address: SocketAddr,
    reporter: HealthReporter,
    calls: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Server {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (reporter, health) = tonic_health::server::health_reporter();
        reporter
            .set_service_status(SERVICE, tonic_health::ServingStatus::Serving)
            .await;
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = calls.clone();
        let health = tonic::service::interceptor::InterceptedService::new(health, move |request| {
            counted.fetch_add(1, Ordering::Relaxed);
            Ok(request)
        });
        let serving =
            crate::grpc::serve_routes(listener, None, Routes::new(health), CancellationToken::new());
        let task = tokio::spawn(async move { serving.await.unwrap() });
        Self {
            address,
            reporter,
            calls,
            task,
        }
    }

    /// The calls since the last time, health checks of the follower included.
    fn take_calls(&self) -> usize {
        self.calls.swap(0, Ordering::Relaxed)
    }
}

/// A peer whose addresses the test sets.
fn follow(addresses: &Arc<Mutex<Vec<SocketAddr>>>) -> (Peer, CancellationToken) {
    let addresses = addresses.clone();
    let resolve: Resolve = Arc::new(move |host, port| {
        assert_eq!((host.as_str(), port), ("graph.test", 7700));
        let addresses = addresses.lock().clone();
        Box::pin(async move {
            if addresses.is_empty() {
                Err(io::Error::other("no such name"))
            } else {
                Ok(addresses)
            }
        })
    });
    let stop = CancellationToken::new();
    let urls = Urls::parse("http://graph.test:7700").unwrap();
    (Peer::follow(urls, SERVICE, resolve, None, stop.clone()), stop)
}

async fn call(peer: &Peer) -> Result<(), tonic::Status> {
    let mut client = HealthClient::new(peer.route.own.clone());
    let answer = timeout(LIMIT, client.check(HealthCheckRequest::default())).await;
    answer.expect("a call ends in time").map(drop)
}

async fn until(peer: &Peer, healthy: usize) {
    let mut changes = peer.healthy.clone();
    let reached = timeout(LIMIT, changes.wait_for(|now| *now == healthy)).await;
    reached.expect("the health changes in time").unwrap();
}

#[test]
fn urls_are_checked() {
    for url in [
        "http://graph:7700",
        "http://127.0.0.1:1",
        "http://[::1]:7700/",
        "http://a:1, http://b:2",
        "https://graph:7700",
    ] {
        assert!(Urls::parse(url).is_ok(), "{url}");
    }
    for url in [
        "",
        "graph:7700",
        "ftp://graph:7700",
        "http://graph",
        "http://me:secret@graph:7700",
        "http://graph:7700/path",
        "http://a:1,",
    ] {
        assert!(Urls::parse(url).is_err(), "{url}");
    }
}

#[tokio::test]
async fn calls_follow_the_addresses_of_a_name() {
    let (one, two) = (Server::start().await, Server::start().await);
    let addresses = Arc::new(Mutex::new(vec![one.address, two.address]));
    let (peer, _stop) = follow(&addresses);
    until(&peer, 2).await;
    for _ in 0..40 {
        call(&peer).await.unwrap();
    }
    let (first, second) = (one.take_calls(), two.take_calls());
    assert!(first > 5 && second > 5, "both have calls: {first}, {second}");

    // A third address appears, and one process dies.
    let three = Server::start().await;
    *addresses.lock() = vec![one.address, two.address, three.address];
    one.task.abort();
    until(&peer, 1).await;
    until(&peer, 2).await;
    three.take_calls();
    for _ in 0..40 {
        call(&peer).await.unwrap();
    }
    assert!(three.take_calls() > 5);

    // An address that is removed from the name gets no calls, although it is healthy.
    *addresses.lock() = vec![three.address];
    until(&peer, 1).await;
    two.take_calls();
    for _ in 0..40 {
        call(&peer).await.unwrap();
    }
    assert_eq!(two.take_calls(), 0);
}

#[tokio::test]
async fn an_address_that_hangs_or_drains_gets_no_calls() {
    let good = Server::start().await;
    // Accepts connections and never answers, like a process that was stopped.
    let hanging = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addresses = Arc::new(Mutex::new(vec![good.address, hanging.local_addr().unwrap()]));
    let (peer, _stop) = follow(&addresses);
    until(&peer, 1).await;
    for _ in 0..40 {
        call(&peer).await.unwrap();
    }
    // A process that shuts down reports it before it refuses calls.
    good.reporter
        .set_service_status(SERVICE, tonic_health::ServingStatus::NotServing)
        .await;
    until(&peer, 0).await;
    // Without a healthy address all are tried.
    let results = join_all((0..8).map(|_| call(&peer))).await;
    assert!(results.iter().any(Result::is_ok), "{results:?}");
}

#[tokio::test]
async fn without_an_address_calls_fail_and_recover() {
    let addresses = Arc::new(Mutex::new(Vec::new()));
    let (peer, _stop) = follow(&addresses);
    let refused = call(&peer).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    let server = Server::start().await;
    addresses.lock().push(server.address);
    until(&peer, 1).await;
    call(&peer).await.unwrap();
    server.task.abort();
    until(&peer, 0).await;
    let refused = call(&peer).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
}

#[tokio::test]
async fn each_stream_has_a_connection_to_a_healthy_address() {
    let (one, two) = (Server::start().await, Server::start().await);
    let addresses = Arc::new(Mutex::new(vec![one.address, two.address]));
    let (peer, _stop) = follow(&addresses);
    until(&peer, 2).await;
    let open_and_call = async || {
        let channel = peer.route.connect().await.unwrap();
        let mut client = HealthClient::new(channel);
        let answer = timeout(LIMIT, client.check(HealthCheckRequest::default())).await;
        answer.expect("a call ends in time").unwrap();
    };
    call(&peer).await.unwrap();
    for _ in 0..10 {
        open_and_call().await;
    }
    let (first, second) = (one.take_calls(), two.take_calls());
    assert!(first > 3 && second > 3, "both have streams: {first}, {second}");
    // Also before the health check finds out that a process is gone.
    two.task.abort();
    for _ in 0..10 {
        open_and_call().await;
    }
    until(&peer, 1).await;
    open_and_call().await;
}
