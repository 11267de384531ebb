//! Explains a broken call by what listens at the server's address: Herald's HTTP port, a NATS server, or another HTTP
//! server. At an `https://` address a probe asks why the connection is refused.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use herald_runtime::tls::{Cause, ClientFiles, probe};

use crate::{failure::Failure, port::Port};

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
    /// Requires TLS, and was called without it.
    Tls,
    OtherHttp,
}

/// Replaces the message of a failure whose cause is a wrong port; returns every other failure unchanged. `called` are
/// the ports that were called, and their addresses, `http://HOST:PORT` or `https://HOST:PORT`; `tls` are the files that
/// they were called with.
pub async fn explain(failure: Failure, called: &[(Port, &str)], tls: &ClientFiles) -> Failure {
    if !failure.is_no_grpc_answer() {
        return failure;
    }
    for (port, server) in called {
        let authority = match server.strip_prefix("https://") {
            None => server.trim_start_matches("http://"),
            Some(authority) => match probe_authority(tls, authority).await {
                // Not what was expected there.
                Some(Cause::Plaintext) => authority,
                Some(cause) => return failure.with_tls_cause(server, cause),
                None => continue,
            },
        };
        if let Some(listener) = identify(authority).await {
            return explained(failure, *port, server, listener);
        }
    }
    failure
}

async fn probe_authority(tls: &ClientFiles, authority: &str) -> Option<Cause> {
    let (host, port) = authority.rsplit_once(':')?;
    probe(tls, host, port.parse().ok()?).await
}

fn explained(failure: Failure, port: Port, server: &str, listener: Listener) -> Failure {
    let what = match listener {
        Listener::HeraldHttp => "Herald's HTTP port (health and metrics)",
        Listener::Nats => "a NATS server",
        Listener::OtherHttp => "an HTTP server",
        Listener::Tls => {
            let secure = server.replacen("http://", "https://", 1);
            return failure
                .with_message(format!("{server} requires TLS"))
                .hint(format!(
                    "use {secure} with {}; --ca-file or HERALD_CA_FILE names the file of its authority",
                    port.option()
                ));
        }
    };
    failure
        .with_message(format!("{server} is {what}, not Herald's {}", port.as_str()))
        .hint(format!(
            "give its address with {}; `herald up` prints it when it is ready, the default is {}",
            port.option(),
            port.default_address()
        ))
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
    } else if reply.contains("requires TLS") {
        Some(Listener::Tls)
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

    /// The `https://` address of a server that greets each caller as a NATS server does, without TLS.
    async fn nats_over_tls() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("https://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.write_all(b"INFO {\"server_id\":\"x\"}\r\n").await;
            }
        });
        address
    }

    async fn explained(server: &str) -> String {
        explained_of(&[(Port::Public, server)]).await
    }

    async fn explained_of(called: &[(Port, &str)]) -> String {
        let failure = Failure::from(Status::internal("h2 protocol error: http2 error"));
        let explained = explain(failure, called, &ClientFiles::default()).await;
        explained.message().to_owned()
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
        let tls = serve(
            "",
            "HTTP/1.1 400 Bad Request\r\n\r\nthis port requires TLS: use https://\n",
        )
        .await;
        assert_eq!(explained(&tls).await, format!("{tls} requires TLS"));
        let secure = nats_over_tls().await;
        assert_eq!(
            explained(&secure).await,
            format!("{secure} is a NATS server, not Herald's gRPC port")
        );
        let other = serve("", "HTTP/1.1 404 Not Found\r\n\r\n").await;
        assert!(explained(&other).await.contains("is an HTTP server"));
        let grpc = serve("", "HTTP/1.1 200 OK\r\ngrpc-status: 12\r\n\r\n").await;
        assert!(explained(&grpc).await.contains("h2 protocol error"));

        let (grpc, nats) = (
            serve("", "HTTP/1.1 200 OK\r\ngrpc-status: 12\r\n\r\n").await,
            serve("INFO {\"server_id\":\"x\"}\r\n", "").await,
        );
        assert_eq!(
            explained_of(&[(Port::Public, &grpc), (Port::Operators, &nats)]).await,
            format!("{nats} is a NATS server, not Herald's operator port")
        );
    }

    #[tokio::test]
    async fn an_answer_of_the_server_is_kept() {
        let failure = explain(
            Failure::from(Status::not_found("no such post")),
            &[(Port::Public, "http://127.0.0.1:1")],
            &ClientFiles::default(),
        )
        .await;
        assert_eq!(failure.message(), "no such post");
    }
}
