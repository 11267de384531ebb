//! Clients that do nothing, against a real server.

use bytes::Bytes;
use futures::FutureExt as _;
use h2::client::SendRequest;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinHandle;
use tonic::body::Body;
use tonic::service::Routes;
use tonic::transport::Server;

use super::*;

/// Limit of every wait.
const TIMEOUT: Duration = Duration::from_secs(20);
/// A time-out that a test waits for.
const SHORT: Duration = Duration::from_millis(600);
/// Size of the answer of `/large`.
const LARGE: usize = 2 << 20;

/// Something that an answer holds; counted while it lives.
struct Counted(Gauge);

impl Counted {
    fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

struct Running {
    address: SocketAddr,
    counts: Counts,
    /// Answers that aren't sent.
    held: Gauge,
    shutdown: CancellationToken,
    server: JoinHandle<()>,
}

/// A server that answers `/large` with many bytes, `/open` with few and no end, and anything else with few.
fn start(limits: Limits) -> Running {
    start_with(limits, None)
}

fn start_with(limits: Limits, tls: Option<ServerTls>) -> Running {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let listener = TcpListener::from_std(listener).unwrap();
    let (counts, held) = (Counts::default(), Gauge::default());
    let port = Port::new("test", limits, counts.clone());
    let counted = held.clone();
    let answer = move |request: axum::extract::Request| {
        let size = if request.uri().path() == "/large" {
            LARGE
        } else {
            2
        };
        let connection = request.extensions().get::<Connection>().unwrap();
        let body = Full::new(Bytes::from(vec![0; size])).map_err(|never| match never {});
        let body = if request.uri().path() == "/open" {
            let first = stream::iter([Ok::<_, tonic::Status>(http_body::Frame::data(
                Bytes::from_static(b"ok"),
            ))]);
            Body::new(http_body_util::StreamBody::new(first.chain(stream::pending())))
        } else {
            Body::new(body)
        };
        let body = Answer::body(body, connection, Some(Box::new(Counted::new(&counted))));
        std::future::ready(axum::response::Response::new(axum::body::Body::new(body)))
    };
    let routes = Routes::from(axum::Router::new().fallback(answer));
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    let server = tokio::spawn(async move {
        let serving = Server::builder()
            .accept_http1(true)
            .add_routes(routes)
            .serve_with_incoming_shutdown(port.incoming_tls(listener, tls), stop.clone().cancelled_owned());
        port.watch_while(&stop, serving).await.unwrap();
    });
    Running {
        address,
        counts,
        held,
        shutdown,
        server,
    }
}

fn limits() -> Limits {
    Limits {
        connections_max: 100,
        ..Limits::default()
    }
}

/// Connects with a window for `window` bytes of each answer.
async fn connect(address: SocketAddr, window: u32) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (client, connection) = h2::client::Builder::new()
        .initial_window_size(window)
        .initial_connection_window_size(1 << 30)
        .handshake(stream)
        .await
        .unwrap();
    tokio::spawn(connection);
    client
}

async fn get(client: &SendRequest<Bytes>, path: &str) -> h2::client::ResponseFuture {
    let request = Request::get(format!("http://test{path}")).body(()).unwrap();
    let mut client = client.clone().ready().await.unwrap();
    client.send_request(request, true).unwrap().0
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let holds = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(TIMEOUT, holds)
        .await
        .unwrap_or_else(|_| panic!("timeout: {what}"));
}

/// Waits until the server has closed a connection.
async fn read_to_end(stream: &mut TcpStream) {
    let read = tokio::time::timeout(TIMEOUT, stream.read_to_end(&mut Vec::new())).await;
    // A reset is an end too.
    let _ = read.expect("the server closes the connection");
}

#[tokio::test]
async fn a_client_that_sends_nothing_or_half_a_preface_is_closed() {
    let server = start(Limits {
        first_bytes_wait: SHORT,
        ..limits()
    });
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    let mut half = TcpStream::connect(server.address).await.unwrap();
    half.write_all(b"PRI * HTTP/2.0\r\n").await.unwrap();
    let client = connect(server.address, 1 << 20).await;
    read_to_end(&mut silent).await;
    read_to_end(&mut half).await;
    // A connection that is only idle stays.
    let response = get(&client, "/").await.await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(server.counts.closed.get(), 2);
    until("one connection is left", || server.counts.open.get() == 1).await;
}

#[tokio::test]
async fn a_client_that_does_not_finish_its_handshake_or_sends_no_request_after_it_is_closed() {
    let files = crate::tls::tests::Files::new();
    let limits = Limits {
        first_bytes_wait: SHORT,
        ..limits()
    };
    let server = start_with(limits, Some(files.server(None)));
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    let mut half = TcpStream::connect(server.address).await.unwrap();
    half.write_all(&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3])
        .await
        .unwrap();
    let mut finished = files.connect(server.address, None).await.unwrap();
    let stream = files.connect(server.address, None).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    read_to_end(&mut silent).await;
    read_to_end(&mut half).await;
    let ended = tokio::time::timeout(TIMEOUT, finished.read_to_end(&mut Vec::new())).await;
    let _ = ended.expect("the server closes the connection");
    // A connection that is only idle stays.
    let response = get(&client, "/").await.await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(server.counts.closed.get(), 3);
    assert_eq!(server.counts.handshakes_failed.get(), 0);
    until("one connection is left", || server.counts.open.get() == 1).await;
}

#[tokio::test]
async fn over_tls_a_client_that_reads_no_bytes_is_closed_and_unread_answers_end() {
    let files = crate::tls::tests::Files::new();
    let limits = Limits {
        write_wait: SHORT,
        answer_wait: SHORT,
        ..limits()
    };
    let server = start_with(limits, Some(files.server(None)));
    let stream = files.connect(server.address, None).await.unwrap();
    let (client, connection) = h2::client::Builder::new()
        .initial_window_size(0)
        .handshake::<_, Bytes>(stream)
        .await
        .unwrap();
    tokio::spawn(connection);
    let _unread = get(&client, "/large").await.await.unwrap();
    until("the answer is cut", || server.counts.answers_cut.get() == 1).await;
    let response = get(&client, "/").await.await;
    assert_eq!(response.unwrap().status(), StatusCode::OK);
    // More answers than fit into the buffers of the sockets, which nobody reads.
    let mut stream = files.connect(server.address, None).await.unwrap();
    let request = b"GET /large HTTP/1.1\r\nhost: test\r\n\r\n".repeat(20);
    stream.write_all(&request).await.unwrap();
    until("the connection is closed", || server.counts.closed.get() == 1).await;
    until("nothing is held", || server.held.get() == 0).await;
}

#[tokio::test]
async fn connections_above_the_limit_are_refused_and_can_be_made_again() {
    let server = start(Limits {
        connections_max: 6,
        ..limits()
    });
    // An address may have as many as are free then.
    let mut streams = Vec::new();
    for _ in 0..3 {
        streams.push(TcpStream::connect(server.address).await.unwrap());
    }
    until("all are open", || server.counts.open.get() == 3).await;
    let mut refused = TcpStream::connect(server.address).await.unwrap();
    read_to_end(&mut refused).await;
    assert_eq!(server.counts.refused.get(), 1);
    drop(streams);
    until("none is open", || server.counts.open.get() == 0).await;
    let client = connect(server.address, 1 << 20).await;
    assert_eq!(get(&client, "/").await.await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn an_unread_answer_ends_and_other_calls_of_its_connection_go_on() {
    let server = start(Limits {
        answer_wait: SHORT,
        ..limits()
    });
    let client = connect(server.address, 0).await;
    let mut unread = Vec::new();
    for _ in 0..20 {
        unread.push(get(&client, "/large").await.await.unwrap());
    }
    assert_eq!(server.held.get(), 20);
    until("all answers are cut", || server.counts.answers_cut.get() == 20).await;
    assert_eq!(server.held.get(), 0);
    assert_eq!((server.counts.open.get(), unread.len()), (1, 20));
    let response = get(&client, "/").await.await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
}

#[tokio::test]
async fn an_open_answer_whose_caller_has_read_all_goes_on() {
    let server = start(Limits {
        answer_wait: SHORT,
        ..limits()
    });
    let reader = connect(server.address, 1 << 20).await;
    let mut open = get(&reader, "/open").await.await.unwrap().into_body();
    assert_eq!(open.data().await.unwrap().unwrap(), "ok");
    let other = connect(server.address, 1).await;
    let _unread = get(&other, "/open").await.await.unwrap();
    let _later = get(&other, "/").await.await.unwrap();
    until("the unread answers are cut", || {
        server.counts.answers_cut.get() == 2
    })
    .await;
    // The one that is read is older than those.
    assert_eq!(server.held.get(), 1);
    assert!(open.data().now_or_never().is_none());
}

/// The server takes the rest of an answer as soon as it can send one byte of it.
#[tokio::test]
async fn a_small_answer_of_which_a_byte_is_read_ends() {
    let server = start(Limits {
        answer_wait: SHORT,
        ..limits()
    });
    let client = connect(server.address, 1).await;
    let mut unread = Vec::new();
    for _ in 0..20 {
        unread.push(get(&client, "/").await.await.unwrap());
    }
    until("all answers are cut", || server.counts.answers_cut.get() == 20).await;
    assert_eq!(server.held.get(), 0);
    assert_eq!((server.counts.open.get(), unread.len()), (1, 20));
}

#[tokio::test]
async fn an_answer_that_is_read_is_whole_and_frees_what_it_holds() {
    let server = start(limits());
    let client = connect(server.address, 1 << 16).await;
    let mut body = get(&client, "/large").await.await.unwrap().into_body();
    let mut size = 0;
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        size += data.len();
        body.flow_control().release_capacity(data.len()).unwrap();
    }
    assert_eq!(size, LARGE);
    until("nothing is held", || server.held.get() == 0).await;
    assert_eq!(server.counts.answers_cut.get(), 0);
}

#[tokio::test]
async fn a_client_that_reads_no_bytes_is_closed() {
    let server = start(Limits {
        write_wait: SHORT,
        ..limits()
    });
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    // More answers than fit into the buffers of the sockets.
    let request = b"GET /large HTTP/1.1\r\nhost: test\r\n\r\n".repeat(20);
    stream.write_all(&request).await.unwrap();
    until("the connection is closed", || server.counts.closed.get() == 1).await;
    until("nothing is held", || {
        server.held.get() == 0 && server.counts.open.get() == 0
    })
    .await;
}

#[tokio::test]
async fn a_client_that_does_not_read_does_not_delay_the_shutdown() {
    let server = start(limits());
    let client = connect(server.address, 0).await;
    let _unread = get(&client, "/large").await.await.unwrap();
    server.shutdown.cancel();
    let stopped = tokio::time::timeout(Duration::from_secs(4), server.server).await;
    stopped.expect("the server stops").unwrap();
}

#[tokio::test]
async fn answers_that_are_in_the_hands_of_the_client_hold_nothing() {
    let server = start(limits());
    let client = connect(server.address, 1 << 30).await;
    let mut answers = Vec::new();
    for _ in 0..30 {
        answers.push(get(&client, "/large").await.await.unwrap());
    }
    until("nothing is held", || server.held.get() == 0).await;
    assert_eq!(answers.len(), 30);
}

#[tokio::test]
async fn a_caller_who_reads_too_late_is_told() {
    let server = start(Limits {
        answer_wait: SHORT,
        ..limits()
    });
    let stream = TcpStream::connect(server.address).await.unwrap();
    let (client, mut connection) = h2::client::Builder::new()
        .initial_window_size(0)
        .handshake::<_, Bytes>(stream)
        .await
        .unwrap();
    let reads = CancellationToken::new();
    let begins = reads.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = &mut connection => {}
            () = begins.cancelled() => {}
        }
        connection.set_initial_window_size(1 << 20).unwrap();
        connection.await
    });
    let mut body = get(&client, "/large").await.await.unwrap().into_body();
    until("the answer is cut", || server.counts.answers_cut.get() == 1).await;
    reads.cancel();
    let mut size = 0;
    while let Some(data) = body.data().await {
        size += data.unwrap().len();
    }
    assert!(size < LARGE / 10, "{size}");
    let trailers = body.trailers().await.unwrap().unwrap();
    assert_eq!(trailers["grpc-status"], "8");
}
