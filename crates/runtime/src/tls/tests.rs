//! TLS against real servers, with certificates of authorities that the tests make.

mod callers;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Mutex as StdMutex;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    date_time_ymd,
};
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsConnector, rustls};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use super::*;
use crate::grpc::SharedPort;
use crate::peer::{Peer, Resolve, Urls};
use crate::route::Route;
use crate::rpc_metrics::ServerMetrics;

/// Limit of every wait.
const LIMIT: Duration = Duration::from_secs(20);

/// An authority, and the files of a server that it has certified for `localhost`.
pub(crate) struct Files {
    dir: TempDir,
    authority: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate and its key.
#[derive(Clone)]
struct Pair {
    certificate: String,
    key: String,
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let name = format!("authority {}", uuid::Uuid::new_v4());
    params.distinguished_name.push(DnType::CommonName, name);
    CertifiedIssuer::self_signed(params, key).unwrap()
}

fn pair_of(
    authority: &CertifiedIssuer<'static, KeyPair>,
    change: impl FnOnce(&mut CertificateParams),
) -> Pair {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    change(&mut params);
    Pair {
        certificate: params.signed_by(&key, authority).unwrap().pem(),
        key: key.serialize_pem(),
    }
}

impl Files {
    pub(crate) fn new() -> Self {
        let files = Self {
            dir: TempDir::new().unwrap(),
            authority: authority(),
        };
        files.write("ca.pem", &files.authority.pem());
        files.rotate();
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        std::fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    /// Writes a new certificate and key of the server. Returns the certificate.
    fn rotate(&self) -> CertificateDer<'static> {
        let pair = self.pair(|_| ());
        self.write("server.crt", &pair.certificate);
        self.write("server.key", &pair.key);
        CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap()
    }

    fn pair(&self, change: impl FnOnce(&mut CertificateParams)) -> Pair {
        pair_of(&self.authority, change)
    }

    fn server_files(&self, clients: Option<ClientCertificates>) -> ServerFiles {
        ServerFiles {
            certificate: self.path("server.crt"),
            key: self.path("server.key"),
            clients: clients.map(|clients| (self.path("ca.pem"), clients)),
        }
    }

    /// TLS of a server with these files.
    pub(crate) fn server(&self, clients: Option<ClientCertificates>) -> ServerTls {
        ServerTls::open(&self.server_files(clients), Protocols::Http2AndHttp1).unwrap()
    }

    /// Connects as a client that offers HTTP/2.
    pub(crate) async fn connect(
        &self,
        to: SocketAddr,
        shows: Option<&Path>,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        self.connect_with(to, &[b"h2"], shows).await
    }

    /// Connects as a client that shows the pair in `NAME.crt` and `NAME.key`.
    async fn connect_with(
        &self,
        to: SocketAddr,
        alpn: &[&[u8]],
        shows: Option<&Path>,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.authority.der().clone()).unwrap();
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(rustls::ALL_VERSIONS)
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match shows {
            None => config.with_no_client_auth(),
            Some(path) => {
                let certificate = CertificateDer::from_pem_file(path.with_extension("crt")).unwrap();
                let key = PrivateKeyDer::from_pem_file(path.with_extension("key")).unwrap();
                config.with_client_auth_cert(vec![certificate], key).unwrap()
            }
        };
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        let stream = TcpStream::connect(to).await?;
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    /// Writes a pair for clients. Returns the path without its extension.
    fn write_pair(&self, name: &str, pair: &Pair) -> PathBuf {
        self.write(&format!("{name}.crt"), &pair.certificate);
        self.write(&format!("{name}.key"), &pair.key);
        self.path(name)
    }
}

/// A server of health checks with TLS.
struct Running {
    address: SocketAddr,
    tls: ServerTls,
    stop: CancellationToken,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn start(tls: ServerTls) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let port = SharedPort::new(listener, ServerMetrics::default(), stop.clone()).with_tls(Some(tls.clone()));
    let (_, health) = tonic_health::server::health_reporter();
    tokio::spawn(port.serve(Routes::new(health)));
    Running { address, tls, stop }
}

async fn call(channel: Channel) -> Result<(), tonic::Status> {
    let mut client = HealthClient::new(channel);
    let called = timeout(LIMIT, client.check(HealthCheckRequest::default())).await;
    called.expect("a call ends in time").map(drop)
}

/// Repeats a step until it returns a value.
async fn until<T>(what: &str, mut step: impl AsyncFnMut() -> Option<T>) -> T {
    let reached = async {
        loop {
            if let Some(value) = step().await {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LIMIT, reached)
        .await
        .unwrap_or_else(|_| panic!("timeout: {what}"))
}

/// The certificate of the server.
fn shown(stream: &TlsStream<TcpStream>) -> CertificateDer<'static> {
    stream.get_ref().1.peer_certificates().unwrap()[0]
        .clone()
        .into_owned()
}

/// Reads what a server sends until it closes the connection.
async fn read_to_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut answer = Vec::new();
    let read = timeout(LIMIT, stream.read_to_end(&mut answer)).await;
    let _ = read.expect("the server closes the connection");
    answer
}

#[tokio::test]
async fn open_connections_go_on_with_the_old_certificate_and_new_ones_get_the_new_one() {
    let files = Files::new();
    let server = start(files.server(None)).await;
    let client = ClientTls::open(&ClientFiles {
        authorities: Some(files.path("ca.pem")),
        identity: None,
    });
    let endpoint = Endpoint::from_shared(format!("https://{}", server.address)).unwrap();
    let open = client
        .unwrap()
        .apply(endpoint, "localhost")
        .unwrap()
        .connect()
        .await
        .unwrap();
    call(open.clone()).await.unwrap();
    let new = files.rotate();
    until("the new certificate is served", async || {
        let stream = files.connect(server.address, None).await.unwrap();
        (shown(&stream) == new).then_some(())
    })
    .await;
    call(open).await.unwrap();
}

#[tokio::test]
async fn a_broken_file_keeps_the_old_certificate_and_is_logged() {
    let files = Files::new();
    let logged = Arc::new(StdMutex::new(Vec::new()));
    let writer = logged.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || Log(writer.clone()))
        .finish();
    let _guard = herald_test_subscriber::set_for_thread(subscriber);
    let log = || String::from_utf8(logged.lock().unwrap().clone()).unwrap();
    let first = {
        let server = start(files.server(None)).await;
        shown(&files.connect(server.address, None).await.unwrap())
    };
    let server = start(files.server(None)).await;
    for (name, text, message) in [
        ("server.crt", "nonsense", "cert_file has no certificate (PEM)"),
        ("server.key", "", "key_file has no private key (PEM)"),
        (
            "server.key",
            &*files.pair(|_| ()).key,
            "key_file must have the private key of the certificate in cert_file",
        ),
    ] {
        let good = std::fs::read_to_string(files.path(name)).unwrap();
        files.write(name, text);
        until(message, async || log().contains(message).then_some(())).await;
        let stream = files.connect(server.address, None).await.unwrap();
        assert_eq!(shown(&stream), first, "{message}");
        files.write(name, &good);
    }
    std::fs::remove_file(files.path("server.key")).unwrap();
    until("a missing file is logged", async || {
        log().contains("key_file can't be read").then_some(())
    })
    .await;
    let new = files.rotate();
    until("the new certificate is served", async || {
        let stream = files.connect(server.address, None).await.unwrap();
        (shown(&stream) == new).then_some(())
    })
    .await;
    assert_eq!(log().matches("key_file can't be read").count(), 1, "{}", log());
}

/// Takes log lines.
struct Log(Arc<StdMutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn clients_without_tls_are_told_so() {
    let server = start(Files::new().server(None)).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream
        .write_all(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
    stream.shutdown().await.unwrap();
    let answer = String::from_utf8(read_to_end(&mut stream).await).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(
        answer.ends_with("this port requires TLS: use https://\n"),
        "{answer}"
    );
    // A gRPC client shows the debug data of HTTP/2.
    let endpoint = Endpoint::from_shared(format!("http://{}", server.address)).unwrap();
    let refused = call(endpoint.connect_lazy()).await.unwrap_err();
    let shown = format!("{refused:?}");
    assert!(shown.contains("this port requires TLS: use https://"), "{shown}");
    // Neither TLS nor HTTP.
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"\0\x01\x02\x03").await.unwrap();
    assert_eq!(read_to_end(&mut stream).await, b"");
}

#[tokio::test]
async fn tls_1_1_is_refused() {
    let server = start(Files::new().server(None)).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    // ClientHello of version 3.2 with TLS_RSA_WITH_AES_128_CBC_SHA (RFC 4346, section 7.4.1.2), and one signature algorithm
    // (RFC 5246, section 7.4.1.4.1).
    let mut hello = vec![22, 3, 1, 0, 55, 1, 0, 0, 51, 3, 2];
    hello.extend_from_slice(&[7; 32]);
    hello.extend_from_slice(&[0, 0, 2, 0, 47, 1, 0, 0, 8, 0, 13, 0, 4, 0, 2, 4, 1]);
    stream.write_all(&hello).await.unwrap();
    let answer = read_to_end(&mut stream).await;
    // An alert record: fatal, protocol_version.
    assert_eq!((answer[0], &answer[5..]), (21, [2, 70].as_slice()), "{answer:?}");
}

#[tokio::test]
async fn a_port_offers_its_protocols() {
    let files = Files::new();
    let both = start(files.server(None)).await;
    let stream = files
        .connect_with(both.address, &[b"http/1.1"], None)
        .await
        .unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(b"http/1.1".as_slice()));
    let one = ServerTls::open(&files.server_files(None), Protocols::Http2).unwrap();
    let one = start(one).await;
    let stream = files
        .connect_with(one.address, &[b"http/1.1", b"h2"], None)
        .await
        .unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(b"h2".as_slice()));
    assert!(
        files
            .connect_with(one.address, &[b"http/1.1"], None)
            .await
            .is_err()
    );
}

#[tokio::test]
async fn a_probe_says_why_a_server_refuses_its_caller() {
    let (files, other) = (Files::new(), Files::new());
    let identity = |pair: PathBuf| Some((pair.with_extension("crt"), pair.with_extension("key")));
    let good = identity(files.write_pair("client", &files.pair(|_| ())));
    let foreign = identity(files.write_pair("foreign", &other.pair(|_| ())));
    let required = start(files.server(Some(ClientCertificates::Required))).await;
    let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let plain_port = plain.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut stream, _) = plain.accept().await.unwrap();
        stream.write_all(b"INFO {}\r\n").await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
    });
    let port = required.address.port();
    for (authorities, identity, port, expected) in [
        (&files, None, port, Some(Cause::CertificateRequired)),
        (&files, foreign, port, Some(Cause::CertificateRefused)),
        (&files, good.clone(), port, None),
        (&other, good, port, Some(Cause::UnknownAuthority)),
        (&files, None, plain_port, Some(Cause::Plaintext)),
    ] {
        let caller = ClientFiles {
            authorities: Some(authorities.path("ca.pem")),
            identity,
        };
        assert_eq!(probe(&caller, "localhost", port).await, expected, "{caller:?}");
    }
}

#[tokio::test]
async fn the_end_of_a_certificate_is_a_metric_and_follows_the_file() {
    let files = Files::new();
    let ending = |year| files.pair(|params| params.not_after = date_time_ymd(year, 1, 1));
    let write = |pair: &Pair| {
        files.write("server.crt", &pair.certificate);
        files.write("server.key", &pair.key);
    };
    write(&ending(2040));
    let (public, shared) = (files.server(None), herald_metrics::Shared::new());
    shared.register(|registry| register_certificates(registry, vec![("public", public)]));
    let sample = |end: &str| {
        let sample = format!("herald_tls_certificate_not_after_timestamp_seconds{{port=\"public\"}} {end}\n");
        shared.open_metrics().contains(&sample).then_some(())
    };
    assert!(sample("2208988800").is_some(), "{}", shared.open_metrics());
    // With an authority in the file that ends before.
    let (leaf, mut params) = (ending(2040), CertificateParams::new(Vec::new()).unwrap());
    params.not_after = date_time_ymd(2035, 1, 1);
    let authority = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
    write(&Pair {
        certificate: format!("{}{}", leaf.certificate, authority.pem()),
        key: leaf.key,
    });
    until("the end of the new file is shown", async || sample("2051222400")).await;
}
