//! Who may call, and whom a caller believes.

use super::*;

/// Whether the server accepts a client; in TLS 1.3 the client learns it from the first answer.
async fn is_accepted(files: &Files, server: &Running, shows: Option<&Path>) -> Result<(), String> {
    let mut stream = files
        .connect_with(server.address, &[b"h2"], shows)
        .await
        .map_err(|error| error.to_string())?;
    stream
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .await
        .map_err(|error| error.to_string())?;
    let read = timeout(LIMIT, stream.read_u8())
        .await
        .expect("the server answers");
    read.map(drop).map_err(|error| error.to_string())
}

#[tokio::test]
async fn client_certificates_are_verified() {
    let files = Files::new();
    let good = files.write_pair("good", &files.pair(|_| ()));
    let expired = files.pair(|params| {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
    });
    let expired = files.write_pair("expired", &expired);
    let other = files.write_pair("other", &pair_of(&authority(), |_| ()));
    for clients in [ClientCertificates::Optional, ClientCertificates::Required] {
        let server = start(files.server(Some(clients))).await;
        assert_eq!(is_accepted(&files, &server, Some(&good)).await, Ok(()));
        let refused = is_accepted(&files, &server, Some(&expired)).await.unwrap_err();
        assert!(refused.contains("CertificateExpired"), "{refused}");
        let refused = is_accepted(&files, &server, Some(&other)).await.unwrap_err();
        assert!(refused.contains("UnknownCA"), "{refused}");
        let missing = is_accepted(&files, &server, None).await;
        match clients {
            ClientCertificates::Optional => assert_eq!(missing, Ok(())),
            ClientCertificates::Required => {
                assert!(
                    missing.as_ref().unwrap_err().contains("CertificateRequired"),
                    "{missing:?}"
                );
            }
        }
    }
}

#[tokio::test]
async fn an_authority_that_is_taken_away_is_refused_at_the_next_connection() {
    let files = Files::new();
    let good = files.write_pair("good", &files.pair(|_| ()));
    let server = start(files.server(Some(ClientCertificates::Required))).await;
    assert_eq!(is_accepted(&files, &server, Some(&good)).await, Ok(()));
    files.write("ca.pem", &authority().pem());
    until("the authority is no longer accepted", async || {
        is_accepted(&files, &server, Some(&good)).await.err()
    })
    .await;
}

#[tokio::test]
async fn a_server_of_another_authority_or_name_is_refused() {
    let files = Files::new();
    let server = start(files.server(None)).await;
    let other = files.write("other.pem", &authority().pem());
    for (authorities, host, reason) in [
        (other, "localhost", "UnknownIssuer"),
        (
            files.path("ca.pem"),
            "elsewhere.test",
            "not valid for name \"elsewhere.test\"",
        ),
        (files.path("ca.pem"), "127.0.0.1", "not valid for name"),
    ] {
        let client = ClientTls::open(&ClientFiles {
            authorities: Some(authorities),
            identity: None,
        });
        let endpoint = Endpoint::from_shared(format!("https://{}", server.address)).unwrap();
        let connected = client.unwrap().apply(endpoint, host).unwrap().connect().await;
        let chain = crate::telemetry::error_chain(&connected.unwrap_err());
        assert!(chain.contains(reason), "{reason}: {chain}");
    }
}

/// A peer whose one address is that of the server.
fn follow(server: &Running, tls: ClientTls) -> (Peer, CancellationToken) {
    let address = server.address;
    let resolve: Resolve = Arc::new(move |_, _| Box::pin(async move { Ok(vec![address]) }));
    let stop = CancellationToken::new();
    let urls = Urls::parse("https://localhost:7700").unwrap();
    (Peer::follow(urls, "", resolve, Some(tls), stop.clone()), stop)
}

#[tokio::test]
async fn calls_to_a_peer_and_to_oneself_go_on_while_all_certificates_change() {
    let files = Files::new();
    let certify = |authority: &CertifiedIssuer<'static, KeyPair>| {
        let pair = pair_of(authority, |_| ());
        files.write_pair("server", &pair);
    };
    let server = start(files.server(Some(ClientCertificates::Required))).await;
    let identity = Some((files.path("server.crt"), files.path("server.key")));
    let client = ClientTls::open(&ClientFiles {
        authorities: Some(files.path("ca.pem")),
        identity: identity.clone(),
    });
    let client = client.unwrap();
    let to_self = ClientTls::to_self(&server.tls, identity).unwrap();
    let (mut client_changes, mut to_self_changes) = (client.changes(), to_self.changes());
    let (peer, _stop) = follow(&server, client);
    let endpoint = Endpoint::from_shared(format!("https://{}", server.address)).unwrap();
    let to_self = Route::to_tls(&endpoint, &to_self, "self.invalid").unwrap();
    let mut healthy = peer.healthy.clone();
    timeout(LIMIT, healthy.wait_for(|now| *now == 1))
        .await
        .unwrap()
        .unwrap();

    let done = CancellationToken::new();
    let calling = {
        let (done, routes) = (done.clone(), [peer.route.clone(), to_self.clone()]);
        tokio::spawn(async move {
            let mut calls = 0;
            while !done.is_cancelled() {
                for route in &routes {
                    call(route.own.clone()).await.unwrap();
                    call(route.calls.clone()).await.unwrap();
                    call(route.connect().await.unwrap()).await.unwrap();
                    calls += 3;
                }
            }
            calls
        })
    };
    // As a certificate manager does it: the new authority is accepted, then used, then the old one is taken away.
    let new = authority();
    files.write("ca.pem", &format!("{}{}", files.authority.pem(), new.pem()));
    assert!(client_changes.next().await);
    let new_client = files.write_pair("new", &pair_of(&new, |_| ()));
    until("the new authority is accepted", async || {
        is_accepted(&files, &server, Some(&new_client)).await.ok()
    })
    .await;
    certify(&new);
    until("the new certificate is served", async || {
        // The tests' client knows the old authority alone.
        files.connect(server.address, None).await.err()
    })
    .await;
    assert!(client_changes.next().await && to_self_changes.next().await);
    files.write("ca.pem", &new.pem());
    let old_client = files.write_pair("old", &files.pair(|_| ()));
    until("the old authority is refused", async || {
        is_accepted(&files, &server, Some(&old_client)).await.err()
    })
    .await;
    call(peer.route.connect().await.unwrap()).await.unwrap();
    call(to_self.connect().await.unwrap()).await.unwrap();
    done.cancel();
    let calls = calling.await.unwrap();
    assert!(calls > 0, "{calls}");
}

#[test]
fn settings_are_checked() {
    let files = Files::new();
    let mut config = TlsConfig::default();
    assert_eq!((config.validate(), config.check_files()), (Ok(()), Ok(())));
    assert!(config.server().is_none() && !config.requires_client_certificates());
    config.cert_file = Some(files.path("server.crt"));
    assert_eq!(
        config.validate(),
        Err("key_file must be set, because cert_file is".into())
    );
    config.key_file = Some(files.path("ca.pem"));
    let error = config.check_files().unwrap_err();
    assert_eq!((error.setting, error.kind), ("key_file", ErrorKind::NoKey));
    config.key_file = Some(files.path("server.key"));
    config.client_ca_file = Some(files.path("none.pem"));
    let error = config.check_files().unwrap_err();
    assert!(
        error.to_string().starts_with("client_ca_file can't be read: "),
        "{error}"
    );
    config.client_ca_file = Some(files.path("ca.pem"));
    assert_eq!(config.check_files(), Ok(()));
    assert!(config.requires_client_certificates());
    config.client_certificates = ClientCertificates::Optional;
    assert!(!config.requires_client_certificates());

    let internal = InternalTlsConfig {
        ca_file: Some(files.path("server.key")),
        ..InternalTlsConfig::default()
    };
    let error = internal.check_files().unwrap_err();
    assert_eq!((error.setting, error.kind), ("ca_file", ErrorKind::NoCertificate));
    let internal = InternalTlsConfig {
        client_ca_file: Some(files.path("ca.pem")),
        ..InternalTlsConfig::default()
    };
    let start = "client_ca_file must not be set without cert_file and key_file: ";
    let error = internal.validate().unwrap_err();
    assert!(error.starts_with(start) && !error.contains("--tls"), "{error}");
    config.cert_file = None;
    config.key_file = None;
    let error = config.validate().unwrap_err();
    assert!(
        error.starts_with(start) && error.ends_with("`herald up --tls` can't be combined with it"),
        "{error}"
    );
}
