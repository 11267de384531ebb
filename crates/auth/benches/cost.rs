//! The cost of authentication: what a call with each kind of credential adds to it.
//!
//! `cargo bench -p herald-auth`.

#![allow(clippy::expect_used, reason = "a benchmark stops at its first failure")]

use std::{
    hint::black_box,
    path::Path,
    time::{Duration, Instant},
};

use herald_auth::{Authenticator, Config, JwtConfig, Metrics, NewApiKey};
use herald_local_issuer::{Kind, SigningKey, jwks, now};
use herald_model::{ApiKey, Scopes, time::Timestamp};
use herald_secret::Secret;
use http::{HeaderMap, HeaderValue, header::AUTHORIZATION};
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;
use tokio::runtime::Runtime;

const ROOT_KEY: &str = "correct-horse-battery-staple-0001";
const ISSUER: &str = "https://issuer.example";
const AUDIENCE: &str = "herald";
/// API keys that a gateway knows beside that of the call.
const OTHER_KEYS: usize = 1_000;
const CALLS: u32 = 100_000;
/// Calls whose token the gateway has not seen before.
const NEW_TOKENS: usize = 2_000;

fn main() {
    let runtime = Runtime::new().expect("a runtime starts");
    let signing_key = SigningKey::generate("key-1", Kind::Es256);
    let directory = tempfile::tempdir().expect("a temporary directory");
    let jwks_file = directory.path().join("jwks.json");
    std::fs::write(&jwks_file, jwks(&[&signing_key])).expect("a file is written");
    let authenticator = authenticator(&jwks_file);
    let key = NewApiKey::generate();
    let keys = (0..OTHER_KEYS).map(|_| NewApiKey::generate());
    let keys: Vec<_> = keys.map(|new| record(&new)).chain([record(&key)]).collect();
    authenticator.keyring().set(keys);
    let token = |number: usize| {
        let claims = json!({
            "iss": ISSUER, "aud": AUDIENCE, "sub": format!("user-{number}"), "scope": "post", "exp": now() + 3_600,
        });
        bearer(&signing_key.token(&claims))
    };
    runtime.block_on(async {
        tokio::select! {
            () = authenticator.run() => {}
            () = measure(&authenticator, &key, token) => {}
        }
    });
}

async fn measure(authenticator: &Authenticator, key: &NewApiKey, token: impl Fn(usize) -> HeaderMap) {
    let known = token(0);
    let deadline = Instant::now() + Duration::from_secs(10);
    while authenticator.authenticate(&known).await.is_err() {
        assert!(Instant::now() < deadline, "the issuer's keys were not read");
        tokio::task::yield_now().await;
    }
    for (credential, headers) in [
        ("root key", bearer(ROOT_KEY)),
        ("API key, one of 1,001", bearer(key.token.expose())),
        ("token that was seen before", known),
    ] {
        let began = processor_time();
        for _ in 0..CALLS {
            let caller = authenticator.authenticate(black_box(&headers)).await;
            black_box(caller.expect("the credential is valid"));
        }
        report(credential, processor_time().saturating_sub(began) / CALLS);
    }
    let tokens: Vec<_> = (1..=NEW_TOKENS).map(token).collect();
    let began = processor_time();
    for headers in &tokens {
        let caller = authenticator.authenticate(black_box(headers)).await;
        black_box(caller.expect("the credential is valid"));
    }
    report(
        "token that is new (ES256)",
        processor_time().saturating_sub(began) / NEW_TOKENS as u32,
    );
}

fn report(credential: &str, cost: Duration) {
    println!("{credential}: {:.2} us", cost.as_secs_f64() * 1e6);
}

fn authenticator(jwks_file: &Path) -> Authenticator {
    let config = Config {
        enabled: true,
        root_key: Secret::new(ROOT_KEY),
        jwt: JwtConfig {
            issuer: ISSUER.into(),
            audience: AUDIENCE.into(),
            jwks_file: Some(jwks_file.to_owned()),
            ..JwtConfig::default()
        },
    };
    config.validate().expect("the configuration is valid");
    Authenticator::new(&config, Metrics::default()).expect("authentication is set up")
}

fn record(new: &NewApiKey) -> ApiKey {
    ApiKey {
        id: new.id,
        name: "bench".into(),
        secret_hash: new.secret_hash,
        scopes: Scopes::all(),
        created_at: Timestamp(0),
        expires_at: None,
        revoked_at: None,
    }
}

fn bearer(credential: &str) -> HeaderMap {
    let value = HeaderValue::from_str(&format!("Bearer {credential}")).expect("a credential is ASCII");
    HeaderMap::from_iter([(AUTHORIZATION, value)])
}

/// Processor time of this thread: other programs of the machine don't count.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
