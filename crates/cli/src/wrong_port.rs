//! Explains a broken call by what listens at the server's address: Herald's HTTP port, a NATS server, or another HTTP
//! server.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::failure::Failure;

/// Limit for the connection and for each reply.
const LIMIT: Duration = Duration::from_secs(1);
/// Time in which a NATS server sends its greeting; an HTTP server waits for a request.
const GREETING_LIMIT: Duration = Duration::from_millis(200);
/// Largest part of a reply that is read, bytes.
const REPLY_BYTES_MAX: u64 = 16 << 10;

/// What listens at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Listener {
    HeraldHttp,
    Nats,
    OtherHttp,
}

/// Replaces the message of a failure whose cause is a wrong port; returns every other failure unchanged. `server` is
/// `http://HOST:PORT`.
pub async fn explain(failure: Failure, server: &str) -> Failure {
    if !failure.is_no_grpc_answer() {
        return failure;
    }
    let authority = server.trim_start_matches("http://");
    let Some(listener) = identify(authority).await else {
        return failure;
    };
    let what = match listener {
        Listener::HeraldHttp => "Herald's HTTP port (health and metrics)",
        Listener::Nats => "a NATS server",
        Listener::OtherHttp => "an HTTP server",
    };
    failure
        .with_message(format!("{server} is {what}, not Herald's gRPC port"))
        .hint(
            "give the gRPC address with --server or HERALD_SERVER; `herald up` prints it when it is ready, the default is \
             127.0.0.1:7700",
        )
}

async fn identify(authority: &str) -> Option<Listener> {
    let mut stream = timeout(LIMIT, TcpStream::connect(authority)).await.ok()?.ok()?;
    let mut greeting = [0; 5];
    if let Ok(read) = timeout(GREETING_LIMIT, stream.read_exact(&mut greeting)).await {
        return (read.is_ok() && &greeting == b"INFO ").then_some(Listener::Nats);
    }
    let request = format!("GET /readyz HTTP/1.1\r\nhost: {authority}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut reply = Vec::new();
    // A server that keeps the connection open ends this by the limit; what it has sent is in `reply`.
    let _ = timeout(LIMIT, stream.take(REPLY_BYTES_MAX).read_to_end(&mut reply)).await;
    let reply = String::from_utf8_lossy(&reply);
    if !reply.starts_with("HTTP/1.") {
        None
    } else if reply.contains("{\"name\":\"nats\",\"ready\":") {
        Some(Listener::HeraldHttp)
    } else if reply.to_ascii_lowercase().contains("grpc-status") {
        // A gRPC server, so the address is right.
        None
    } else {
        Some(Listener::OtherHttp)
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;
    use tonic::Status;

    use super::*;

    /// A server that sends `greeting`, reads a request if there is none, and then sends `reply`.
    async fn serve(greeting: &'static str, reply: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(greeting.as_bytes()).await.unwrap();
            if greeting.is_empty() {
                let _ = stream.read(&mut [0; 1_024]).await.unwrap();
            }
            stream.write_all(reply.as_bytes()).await.unwrap();
        });
        address
    }

    async fn explained(server: &str) -> String {
        let failure = Failure::from(Status::internal("h2 protocol error: http2 error"));
        explain(failure, server).await.message().to_owned()
    }

    #[tokio::test]
    async fn the_listener_at_a_wrong_port_is_named() {
        let nats = serve("INFO {\"server_id\":\"x\"}\r\n", "").await;
        assert_eq!(
            explained(&nats).await,
            format!("{nats} is a NATS server, not Herald's gRPC port")
        );
        let http = serve(
            "",
            "HTTP/1.1 503 Service Unavailable\r\n\r\n[{\"name\":\"shutdown\",\"ready\":true},{\"name\":\"nats\",\"ready\":false}]",
        )
        .await;
        assert!(explained(&http).await.contains("Herald's HTTP port"));
        let other = serve("", "HTTP/1.1 404 Not Found\r\n\r\n").await;
        assert!(explained(&other).await.contains("is an HTTP server"));
        let grpc = serve("", "HTTP/1.1 200 OK\r\ngrpc-status: 12\r\n\r\n").await;
        assert!(explained(&grpc).await.contains("h2 protocol error"));
    }

    #[tokio::test]
    async fn an_answer_of_the_server_is_kept() {
        let failure = explain(
            Failure::from(Status::not_found("no such post")),
            "http://127.0.0.1:1",
        )
        .await;
        assert_eq!(failure.message(), "no such post");
    }
}
