//! Tokens against an issuer on loopback.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use futures::FutureExt as _;
use herald_local_issuer::{Issuer, Kind, SigningKey, jwks, now};
use herald_model::{Scope, UserId};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::{Algorithm, Principal, api_key::hash};

const AUDIENCE: &str = "herald";

fn config(issuer: &Issuer) -> JwtConfig {
    JwtConfig {
        issuer: issuer.name(),
        audience: AUDIENCE.into(),
        jwks_url: issuer.jwks_url(),
        algorithms: vec![Algorithm::RS256, Algorithm::ES256, Algorithm::EdDsa],
        ..JwtConfig::default()
    }
}

fn verifier(config: &JwtConfig) -> Verifier {
    Verifier::new(config, Metrics::default()).unwrap()
}

async fn verify(verifier: &Verifier, token: &str) -> Result<Arc<Principal>, Denied> {
    authenticate(verifier, token).await.map(|caller| caller.principal)
}

async fn authenticate(verifier: &Verifier, token: &str) -> Result<Authenticated, Denied> {
    verifier.verify(token, hash(token.as_bytes())).await
}

#[tokio::test]
async fn a_token_of_each_algorithm_is_its_user() {
    for kind in [Kind::Rs256, Kind::Es256, Kind::EdDsa] {
        let key = SigningKey::generate("k1", kind);
        let issuer = Issuer::start(&[&key]).await;
        let verifier = verifier(&config(&issuer));
        let token = key.token(&issuer.claims(AUDIENCE, "ann", "openid post read"));
        // The second time from memory.
        for _ in 0..2 {
            let principal = verify(&verifier, &token).await.unwrap();
            assert_eq!(principal.user, UserId::new("ann").ok(), "{kind:?}");
            assert_eq!(principal.scopes, [Scope::Post, Scope::Read].into_iter().collect());
        }
        assert_eq!(issuer.reads(), 1);
        // An algorithm that is not configured.
        let narrow = JwtConfig {
            algorithms: vec![Algorithm::ES384],
            ..config(&issuer)
        };
        assert_eq!(
            verify(&self::verifier(&narrow), &token).await,
            Err(Denied::Invalid)
        );
    }
}

#[tokio::test]
async fn wrong_claims_are_refused() {
    let key = SigningKey::generate("k1", Kind::Es256);
    let issuer = Issuer::start(&[&key]).await;
    let verifier = verifier(&config(&issuer));
    let valid = issuer.claims(AUDIENCE, "ann", "read");
    let with = |name: &str, value: Value| {
        let mut claims = valid.clone();
        claims[name] = value;
        key.token(&claims)
    };
    let without = |name: &str| {
        let mut claims = valid.clone();
        claims.as_object_mut().unwrap().remove(name);
        key.token(&claims)
    };
    // The leeway is 30 s; what the test takes is less than the rest.
    for token in [
        with("aud", json!(["other", AUDIENCE])),
        with("exp", json!(now() - 10)),
        with("nbf", json!(now() + 10)),
        with("exp", json!(now() as f64 + 0.5)),
    ] {
        assert!(verify(&verifier, &token).await.is_ok(), "{token}");
    }
    for (what, token) in [
        ("expired", with("exp", json!(now() - 31))),
        ("long expired", with("exp", json!(1))),
        ("an end that is no number", with("exp", json!("never"))),
        ("a negative end", with("exp", json!(-1))),
        ("no end", without("exp")),
        ("not yet valid", with("nbf", json!(now() + 120))),
        ("a begin that is no number", with("nbf", json!("later"))),
        ("wrong audience", with("aud", json!("other"))),
        ("wrong audiences", with("aud", json!(["other", "herald2"]))),
        ("no audience", without("aud")),
        ("empty audience", with("aud", json!([]))),
        ("wrong issuer", with("iss", json!("https://evil.example.org"))),
        ("no issuer", without("iss")),
        ("no user", without("sub")),
        ("invalid user", with("sub", json!(""))),
    ] {
        assert_eq!(verify(&verifier, &token).await, Err(Denied::Invalid), "{what}");
    }
}

#[tokio::test]
async fn a_token_that_expires_is_forgotten() {
    let key = SigningKey::generate("k1", Kind::Es256);
    let issuer = Issuer::start(&[&key]).await;
    let config = JwtConfig {
        leeway_seconds: 0,
        ..config(&issuer)
    };
    let verifier = verifier(&config);
    let mut claims = issuer.claims(AUDIENCE, "ann", "read");
    claims["exp"] = json!(now() + 2);
    let token = key.token(&claims);
    assert!(verify(&verifier, &token).await.is_ok());
    while verify(&verifier, &token).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(
            now() <= claims["exp"].as_i64().unwrap() + 1,
            "an expired token is accepted"
        );
    }
}

#[tokio::test]
async fn forged_signatures_are_refused() {
    let key = SigningKey::generate("k1", Kind::Rs256);
    let issuer = Issuer::start(&[&key]).await;
    let verifier = verifier(&config(&issuer));
    let claims = issuer.claims(AUDIENCE, "ann", "read operate");
    let token = key.token(&claims);
    assert!(verify(&verifier, &token).await.is_ok());

    let (message, signature) = token.rsplit_once('.').unwrap();
    let message_of = |header: Value| {
        let encode = |part: &Value| BASE64.encode(part.to_string());
        format!("{}.{}", encode(&header), encode(&claims))
    };
    // HMAC with the public key as its secret: the key as bytes, as a JWK, and its modulus.
    let hmac = |secret: &[u8]| {
        let message = message_of(json!({"typ": "JWT", "alg": "HS256", "kid": "k1"}));
        let secret = ::ring::hmac::Key::new(::ring::hmac::HMAC_SHA256, secret);
        let signature = ::ring::hmac::sign(&secret, message.as_bytes());
        format!("{message}.{}", BASE64.encode(signature))
    };
    let mut of_bob = claims.clone();
    of_bob["sub"] = "bob".into();
    let jwk = key.jwk();
    let modulus = jwk["n"].as_str().unwrap();
    let other = SigningKey::generate("k1", Kind::Es256);
    for forged in [
        hmac(jwk.to_string().as_bytes()),
        hmac(modulus.as_bytes()),
        hmac(&BASE64.decode(modulus).unwrap()),
        hmac(b""),
        format!("{}.", message_of(json!({"alg": "none"}))),
        format!("{}.", message_of(json!({"alg": "None", "kid": "k1"}))),
        format!("{}.{signature}", message_of(json!({"alg": "none", "kid": "k1"}))),
        format!("{message}."),
        format!("{message}.{}", BASE64.encode([0; 256])),
        // Another user with the signature of this one.
        format!("{}.{signature}", key.token(&of_bob).rsplit_once('.').unwrap().0),
        // The id of the key, and the signature of another one.
        other.token(&claims),
        other.token_with(&json!({"alg": "RS256", "kid": "k1"}), &claims),
        // A key in the header.
        other.token_with(&json!({"alg": "ES256", "kid": "k1", "jwk": other.jwk()}), &claims),
        // An extension that must be understood.
        key.token_with(
            &json!({"alg": "RS256", "kid": "k1", "crit": ["x"], "x": 1}),
            &claims,
        ),
    ] {
        assert_eq!(verify(&verifier, &forged).await, Err(Denied::Invalid), "{forged}");
    }
}

#[tokio::test]
async fn a_shared_secret_among_the_keys_verifies_nothing() {
    let key = SigningKey::generate("k1", Kind::Es256);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("keys.json");
    let mut set: Value = serde_json::from_str(&jwks(&[&key])).unwrap();
    let secret = json!({"kty": "oct", "kid": "s1", "alg": "HS256", "k": BASE64.encode("secret")});
    set["keys"].as_array_mut().unwrap().push(secret);
    std::fs::write(&file, set.to_string()).unwrap();
    let config = JwtConfig {
        issuer: "i".into(),
        audience: AUDIENCE.into(),
        jwks_file: Some(file),
        ..JwtConfig::default()
    };
    let verifier = verifier(&config);
    let claims = json!({"iss": "i", "aud": AUDIENCE, "sub": "ann", "exp": now() + 60});
    assert!(verify(&verifier, &key.token(&claims)).await.is_ok());
    let encode = |part: &Value| BASE64.encode(part.to_string());
    let message = format!(
        "{}.{}",
        encode(&json!({"alg": "HS256", "kid": "s1"})),
        encode(&claims)
    );
    let secret = ::ring::hmac::Key::new(::ring::hmac::HMAC_SHA256, b"secret");
    let signature = BASE64.encode(::ring::hmac::sign(&secret, message.as_bytes()));
    assert_eq!(
        verify(&verifier, &format!("{message}.{signature}")).await,
        Err(Denied::Invalid)
    );
}

#[tokio::test(start_paused = true)]
async fn keys_are_rotated_and_stay_while_the_issuer_is_away() {
    let (old, new) = (
        SigningKey::generate("k1", Kind::EdDsa),
        SigningKey::generate("k2", Kind::EdDsa),
    );
    let issuer = Issuer::start(&[&old]).await;
    let verifier = verifier(&config(&issuer));
    let claims = issuer.claims(AUDIENCE, "ann", "read");
    let (with_old, with_new) = (old.token(&claims), new.token(&claims));
    assert!(verify(&verifier, &with_old).await.is_ok());
    assert_eq!(issuer.reads(), 1);

    // Unknown keys make no reads until the shortest time between two has passed.
    issuer.set_keys(&[&old, &new]);
    for _ in 0..10 {
        assert_eq!(verify(&verifier, &with_new).await, Err(Denied::Invalid));
    }
    assert_eq!(issuer.reads(), 1);
    tokio::time::advance(REFRESH_INTERVAL_MIN).await;
    assert!(verify(&verifier, &with_new).await.is_ok());
    assert_eq!(issuer.reads(), 2);

    // A key that is gone: its tokens end with the next read, remembered ones too.
    let lifetime = async |token: &str| authenticate(&verifier, token).await.unwrap().lifetime;
    let has_ended = |lifetime: &Lifetime| lifetime.clone().ended().now_or_never().is_some();
    let (of_old, of_new) = (lifetime(&with_old).await, lifetime(&with_new).await);
    issuer.set_keys(&[&new]);
    assert!(verify(&verifier, &with_old).await.is_ok());
    assert!(!has_ended(&of_old));
    verifier.refresh(Duration::ZERO).await;
    assert!(has_ended(&of_old) && !has_ended(&of_new));
    assert_eq!(verify(&verifier, &with_old).await, Err(Denied::Invalid));
    assert!(verify(&verifier, &with_new).await.is_ok());

    issuer.go_away();
    verifier.refresh(Duration::ZERO).await;
    assert!(verify(&verifier, &with_new).await.is_ok());
}

#[tokio::test]
async fn tokens_can_not_be_checked_until_the_issuer_answers() {
    let key = SigningKey::generate("k1", Kind::Es256);
    let issuer = Issuer::start(&[&key]).await;
    issuer.go_away();
    let verifier = verifier(&config(&issuer));
    let token = key.token(&issuer.claims(AUDIENCE, "ann", "read"));
    assert_eq!(
        verify(&verifier, &token).await,
        Err(Denied::Unavailable("the issuer of tokens"))
    );
    issuer.set_keys(&[&key]);
    verifier.refresh(Duration::ZERO).await;
    assert!(verify(&verifier, &token).await.is_ok());
}

proptest! {
    #[test]
    fn any_text_is_refused(token in "\\PC{0,60}|[A-Za-z0-9_-]{0,40}\\.[A-Za-z0-9_-]{0,40}\\.[A-Za-z0-9_-]{0,40}") {
        prop_assert_eq!(refused_by(&token), Err(Denied::Invalid));
    }

    #[test]
    fn any_header_and_claims_are_refused(
        alg in "RS256|ES256|EdDSA|HS256|none|[A-Z0-9]{1,6}",
        kid in "k1|[a-z]{0,3}",
        claim in "\\PC{0,20}",
        signature in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let encode = |part: Value| BASE64.encode(part.to_string());
        let header = encode(json!({"alg": alg, "kid": kid}));
        let claims = encode(json!({"iss": claim, "aud": claim, "sub": claim, "exp": now() + 60}));
        prop_assert_eq!(refused_by(&format!("{header}.{claims}.{}", BASE64.encode(signature))), Err(Denied::Invalid));
    }
}

/// What a verifier with a key of each kind says.
fn refused_by(token: &str) -> Result<(), Denied> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let verifier = KNOWN.get_or_init(|| {
        let keys = [Kind::Rs256, Kind::Es256, Kind::EdDsa].map(|kind| SigningKey::generate("k1", kind));
        let config = JwtConfig {
            issuer: "i".into(),
            audience: AUDIENCE.into(),
            jwks_file: Some("/nowhere".into()),
            ..JwtConfig::default()
        };
        let verifier = Verifier::new(&config, Metrics::default()).unwrap();
        verifier.set_keys(jwks(&keys.each_ref()).as_bytes());
        verifier
    });
    runtime.block_on(verify(verifier, token)).map(|_| ())
}

static KNOWN: std::sync::OnceLock<Verifier> = std::sync::OnceLock::new();
