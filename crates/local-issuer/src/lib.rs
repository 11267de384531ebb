//! An issuer of tokens (JWT) on loopback: it signs tokens, and serves the keys that verify them (JWKS). For tests.

#![allow(clippy::expect_used, reason = "tests fail at once when the issuer can't work")]

mod signing_key;

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};

pub use signing_key::{Kind, SigningKey};

/// A running issuer. It stops when it is dropped.
#[derive(Debug)]
pub struct Issuer {
    address: SocketAddr,
    state: Arc<Mutex<Served>>,
    serving: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Served {
    /// The JWKS; `None` while the issuer is away.
    keys: Option<String>,
    reads: u64,
}

impl Issuer {
    /// Starts an issuer with these keys on a free port of loopback.
    pub async fn start(keys: &[&SigningKey]) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("loopback has a free port");
        let address = listener.local_addr().expect("a bound listener has an address");
        let state = Arc::new(Mutex::new(Served {
            keys: Some(jwks(keys)),
            reads: 0,
        }));
        let app = Router::new().route("/keys", get(serve)).with_state(state.clone());
        let serving = tokio::spawn(async move {
            // Ends with the task.
            let _ = axum::serve(listener, app).await;
        });
        Self {
            address,
            state,
            serving,
        }
    }

    /// Its name, the claim `iss`.
    pub fn name(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where its keys are.
    pub fn jwks_url(&self) -> String {
        format!("{}/keys", self.name())
    }

    /// Replaces the keys.
    pub fn set_keys(&self, keys: &[&SigningKey]) {
        self.state.lock().keys = Some(jwks(keys));
    }

    /// Answers every read with an error, until the keys are set again.
    pub fn go_away(&self) {
        self.state.lock().keys = None;
    }

    /// How often the keys were read, also while the issuer was away.
    pub fn reads(&self) -> u64 {
        self.state.lock().reads
    }

    /// Valid claims: of this issuer, for this audience and user, with these scopes; they end in an hour.
    pub fn claims(&self, audience: &str, user: &str, scope: &str) -> Value {
        json!({"iss": self.name(), "aud": audience, "sub": user, "scope": scope, "exp": now() + 3_600})
    }
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// The JSON Web Key Set of keys.
pub fn jwks(keys: &[&SigningKey]) -> String {
    let keys: Vec<_> = keys.iter().map(|key| key.jwk()).collect();
    json!({ "keys": keys }).to_string()
}

/// The time, seconds since 1970.
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_secs().cast_signed()
}

async fn serve(State(state): State<Arc<Mutex<Served>>>) -> impl IntoResponse {
    let mut state = state.lock();
    state.reads += 1;
    match &state.keys {
        Some(keys) => ([(header::CONTENT_TYPE, "application/jwk-set+json")], keys.clone()).into_response(),
        None => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}
