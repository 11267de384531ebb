//! Connections to servers that require credentials or TLS.

use std::fs;
use std::path::{Path, PathBuf};

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use herald_local_nats::{Config as ServerConfig, Server};
use herald_mesh::{Auth, Config, ErrorKind, Mesh, Tls};
use nkeys::KeyPair;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa};
use serde_json::{Value, json};

/// Starts a server with further lines of configuration.
async fn server(extra: String) -> Server {
    let config = ServerConfig {
        extra,
        ..ServerConfig::default()
    };
    Server::start(config).await.unwrap()
}

async fn connect(server: &Server, auth: Auth) -> Result<Mesh, herald_mesh::Error> {
    let config = Config {
        auth,
        ..Config::at(server.client_url())
    };
    Mesh::connect(&config).await
}

/// The URL of a server with a user part.
fn with_user(server: &Server, user: &str) -> String {
    server.client_url().replace("nats://", &format!("nats://{user}@"))
}

#[tokio::test]
async fn a_user_and_a_password_are_sent() {
    let server = server("authorization { user: \"her@ld\", password: \"p:ss/word\" }\n".into()).await;
    let right = Auth::Password {
        user: "her@ld".into(),
        password: "p:ss/word".into(),
    };
    assert!(connect(&server, right.clone()).await.unwrap().is_connected());
    let url = with_user(&server, "her%40ld:p%3Ass%2Fword");
    let mesh = Mesh::connect(&Config::at(url.clone())).await.unwrap();
    mesh.flush().await.unwrap();

    let wrong = Auth::Password {
        user: "her@ld".into(),
        password: "hunter2".into(),
    };
    for auth in [wrong, Auth::Urls, Auth::Token("hunter2".into())] {
        let error = connect(&server, auth).await.unwrap_err();
        assert!(!format!("{error:?}{error}").contains("hunter2"), "{error:?}");
    }
    // Two kinds of credentials contradict each other.
    let both = Config {
        auth: right,
        ..Config::at(url)
    };
    assert_eq!(Mesh::connect(&both).await.unwrap_err().kind(), ErrorKind::Invalid);
}

#[tokio::test]
async fn a_token_is_sent() {
    let server = server("authorization { token: \"s3cret\" }\n".into()).await;
    connect(&server, Auth::Token("s3cret".into())).await.unwrap();
    let url = with_user(&server, "s3cret");
    Mesh::connect(&Config::at(url)).await.unwrap();
    connect(&server, Auth::Token("other".into())).await.unwrap_err();
}

#[tokio::test]
async fn an_nkey_signs_the_challenge() {
    let user = KeyPair::new_user();
    let public = user.public_key();
    let server = server(format!(
        "authorization {{ users: [ {{ nkey: \"{public}\" }} ] }}\n"
    ))
    .await;
    connect(&server, Auth::NKey(user.seed().unwrap())).await.unwrap();
    let other = KeyPair::new_user().seed().unwrap();
    connect(&server, Auth::NKey(other)).await.unwrap_err();
    connect(&server, Auth::NKey("not a seed".into()))
        .await
        .unwrap_err();
}

/// A JWT as nats-server expects it, signed by `issuer`.
fn jwt(issuer: &KeyPair, subject: &KeyPair, name: &str, nats: &Value) -> String {
    let header = json!({"typ": "JWT", "alg": "ed25519-nkey"});
    let claims = json!({
        "jti": name, "iat": 1_700_000_000, "iss": issuer.public_key(), "sub": subject.public_key(), "name": name,
        "nats": nats,
    });
    let encode = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", encode(&header), encode(&claims));
    let signature = issuer.sign(signed.as_bytes()).unwrap();
    format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
}

#[tokio::test]
async fn a_credentials_file_identifies_a_user() {
    let (operator, user) = (KeyPair::new_operator(), KeyPair::new_user());
    let (account, system) = (KeyPair::new_account(), KeyPair::new_account());
    let operator_jwt = jwt(
        &operator,
        &operator,
        "operator",
        &json!({"type": "operator", "version": 2}),
    );
    let unlimited = json!({
        "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1,
        "leaf": -1, "mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1,
    });
    let claims = json!({"type": "account", "version": 2, "limits": unlimited});
    let account_jwt = jwt(&operator, &account, "account", &claims);
    let system_jwt = jwt(
        &operator,
        &system,
        "system",
        &json!({"type": "account", "version": 2}),
    );
    let user_claims = json!({"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1});
    let credentials = |user: &KeyPair, jwt: &str| {
        format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n-----BEGIN USER NKEY SEED-----\n\
             {}\n------END USER NKEY SEED------\n",
            user.seed().unwrap()
        )
    };
    let server = server(format!(
        "operator: {operator_jwt}\nresolver: MEMORY\nsystem_account: {1}\n\
         resolver_preload: {{ {0}: {account_jwt}, {1}: {system_jwt} }}\n",
        account.public_key(),
        system.public_key(),
    ))
    .await;
    let right = credentials(&user, &jwt(&account, &user, "user", &user_claims));
    let mesh = connect(&server, Auth::Credentials(right)).await.unwrap();
    mesh.flush().await.unwrap();

    let stranger = KeyPair::new_account();
    let wrong = credentials(&user, &jwt(&stranger, &user, "user", &user_claims));
    connect(&server, Auth::Credentials(wrong)).await.unwrap_err();
    let error = connect(&server, Auth::Credentials("nothing".into()))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

/// A certificate authority, and PEM files of a certificate that it signed.
fn certificates(dir: &Path) -> (PathBuf, PathBuf, PathBuf) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate().unwrap()).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let certificate = CertificateParams::new(names)
        .unwrap()
        .signed_by(&key, &ca)
        .unwrap();
    let write = |name: &str, text: String| {
        let path = dir.join(name);
        fs::write(&path, text).unwrap();
        path
    };
    (
        write("ca.pem", ca.pem()),
        write("cert.pem", certificate.pem()),
        write("key.pem", key.serialize_pem()),
    )
}

#[tokio::test]
async fn tls_verifies_the_server_and_shows_a_client_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let (ca, certificate, key) = certificates(dir.path());
    let server = server(format!(
        "tls {{ cert_file: {certificate:?}, key_file: {key:?}, ca_file: {ca:?}, verify: true }}\n"
    ))
    .await;
    let connect = async |tls: Tls, url: String| {
        let config = Config {
            tls,
            ..Config::at(url)
        };
        Mesh::connect(&config).await
    };
    let right = Tls {
        required: true,
        ca_file: Some(ca.clone()),
        client: Some((certificate, key)),
    };
    let mesh = connect(right.clone(), server.client_url()).await.unwrap();
    mesh.flush().await.unwrap();
    let secure = server.client_url().replace("nats://", "tls://");
    connect(right.clone(), secure).await.unwrap();

    // The authority is unknown.
    let unknown = Tls {
        ca_file: None,
        ..right.clone()
    };
    connect(unknown, server.client_url()).await.unwrap_err();
    // The server asks for a client certificate.
    let anonymous = Tls {
        client: None,
        ..right.clone()
    };
    connect(anonymous, server.client_url()).await.unwrap_err();

    // A server without TLS is refused.
    let plain = Server::start(ServerConfig::default()).await.unwrap();
    connect(right, plain.client_url()).await.unwrap_err();
}

#[tokio::test]
async fn a_reconnect_reads_the_files_of_tls_again() {
    let dir = tempfile::tempdir().unwrap();
    let (ca, certificate, key) = certificates(dir.path());
    let mut server = server(format!(
        "tls {{ cert_file: {certificate:?}, key_file: {key:?}, ca_file: {ca:?}, verify: true }}\n"
    ))
    .await;
    let config = Config {
        tls: Tls {
            required: true,
            ca_file: Some(ca),
            client: Some((certificate, key)),
        },
        ..Config::at(server.client_url())
    };
    let mesh = Mesh::connect(&config).await.unwrap();
    mesh.flush().await.unwrap();
    // Another authority, and certificates of it in the same files.
    certificates(dir.path());
    server.restart().await.unwrap();
    let answers = async {
        while mesh.flush().await.is_err() || !mesh.is_connected() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let reconnected = tokio::time::timeout(std::time::Duration::from_secs(30), answers).await;
    reconnected
        .expect("the client accepts the new authority, and the server the new certificate of the client");
}
