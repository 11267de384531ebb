//! Every method × every credential. A new method is called with all of them, without a change here; one that users may
//! call for themselves needs a request in [`request_of`].

use std::time::Duration;

use harness::{Herald, Options};
use herald_auth::{ApiKey, Bound, NewApiKey, Rule, Scope, Scopes, rule};
use herald_local_issuer::{Issuer, Kind, SigningKey, now};
use herald_model::time::Timestamp;
use herald_proto::{Method, v1};
use herald_store::embedded::{self, Embedded};
use serde_json::{Value, json};
use tonic::Code;

use super::{AUDIENCE, ROOT_KEY, calls::Target, variables};
use crate::HERALD;

/// Reasons with which authentication refuses a call.
const REASONS: [&str; 4] = [
    "CREDENTIALS_MISSING",
    "CREDENTIALS_INVALID",
    "SCOPE_MISSING",
    "USER_MISMATCH",
];

/// An API key and its record.
struct Key {
    token: String,
    record: ApiKey,
}

impl Key {
    fn new(name: &str, scopes: Scopes) -> Self {
        let new = NewApiKey::generate();
        let record = ApiKey {
            id: new.id,
            name: name.into(),
            secret_hash: new.secret_hash,
            scopes,
            created_at: Timestamp::now(),
            expires_at: None,
            revoked_at: None,
        };
        Self {
            token: new.token.expose().into(),
            record,
        }
    }

    /// With the scope alone.
    fn with(scope: Scope) -> Self {
        Self::new("right", [scope].into_iter().collect())
    }

    /// With all scopes but this one.
    fn without(scope: Scope) -> Self {
        Self::new(
            "wrong",
            Scope::ALL.into_iter().filter(|other| *other != scope).collect(),
        )
    }
}

/// The keys of the test, in the store.
struct Keys {
    with: Vec<(Scope, Key)>,
    without: Vec<(Scope, Key)>,
    expired: Key,
    revoked: Key,
}

impl Keys {
    fn new() -> Self {
        let mut expired = Key::new("expired", Scopes::all());
        expired.record.expires_at = Some(Timestamp::now().minus(Duration::from_secs(1)));
        let mut revoked = Key::new("revoked", Scopes::all());
        revoked.record.revoked_at = Some(Timestamp::now());
        Self {
            with: Scope::ALL.map(|scope| (scope, Key::with(scope))).into(),
            without: Scope::ALL.map(|scope| (scope, Key::without(scope))).into(),
            expired,
            revoked,
        }
    }

    fn find(keys: &[(Scope, Key)], scope: Scope) -> String {
        let (_, key) = keys.iter().find(|(of, _)| *of == scope).unwrap();
        format!("Bearer {}", key.token)
    }

    /// Writes the keys to the store of a mesh that is stopped.
    async fn write(&self, herald: &Herald) {
        let store = Embedded::open(&embedded::Config {
            data_dir: herald.data_dir(),
            ..embedded::Config::default()
        })
        .unwrap();
        let api_keys = store.stores().api_keys;
        let all = self.with.iter().chain(&self.without).map(|(_, key)| key);
        for key in all.chain([&self.expired, &self.revoked]) {
            api_keys.insert(&key.record, Timestamp::now()).await.unwrap();
        }
        store.close().unwrap();
    }
}

/// A request of a method that users may call for themselves; `None` for all other methods.
fn request_of(method: Method, user: &str) -> Option<Vec<u8>> {
    fn of(message: &impl prost::Message) -> Vec<u8> {
        message.encode_to_vec()
    }
    let id = user.to_owned();
    let follow = v1::Follow {
        follower_id: id.clone(),
        author_id: "eve".into(),
        ..Default::default()
    };
    Some(match method {
        Method::SubmitPost => of(&v1::SubmitPostRequest {
            author_id: id,
            text: "hi".into(),
            ..Default::default()
        }),
        Method::DeletePost => of(&v1::DeletePostRequest {
            author_id: id,
            post_id: 1,
            ..Default::default()
        }),
        Method::ListPosts => of(&v1::ListPostsRequest {
            author_id: id,
            ..Default::default()
        }),
        Method::ListTimeline => of(&v1::ListTimelineRequest {
            user_id: id,
            ..Default::default()
        }),
        Method::WatchTimeline => of(&v1::WatchTimelineRequest {
            user_id: id,
            snapshot_size: -1,
            ..Default::default()
        }),
        Method::RegisterDevice => of(&v1::RegisterDeviceRequest {
            user_id: id,
            ..Default::default()
        }),
        Method::EnableDevice => of(&v1::EnableDeviceRequest {
            user_id: id,
            ..Default::default()
        }),
        Method::RotateWebhookSecret => of(&v1::RotateWebhookSecretRequest {
            user_id: id,
            ..Default::default()
        }),
        Method::UnregisterDevice => of(&v1::UnregisterDeviceRequest {
            user_id: id,
            ..Default::default()
        }),
        Method::ListDevices => of(&v1::ListDevicesRequest { user_id: id }),
        Method::GetPreferences => of(&v1::GetPreferencesRequest { user_id: id }),
        Method::UpdatePreferences => of(&v1::UpdatePreferencesRequest {
            user_id: id,
            ..Default::default()
        }),
        Method::Follow => of(&v1::FollowRequest { follow: Some(follow) }),
        Method::BatchFollow => of(&v1::BatchFollowRequest {
            follows: vec![follow],
        }),
        Method::Unfollow => of(&v1::UnfollowRequest {
            follower_id: id,
            author_id: "eve".into(),
        }),
        Method::IsFollowing => of(&v1::IsFollowingRequest {
            follower_id: id,
            author_id: "eve".into(),
        }),
        Method::ListFollowers => of(&v1::ListFollowersRequest {
            author_id: id,
            ..Default::default()
        }),
        Method::ListFollowing => of(&v1::ListFollowingRequest {
            follower_id: id,
            ..Default::default()
        }),
        Method::CountFollowers => of(&v1::CountFollowersRequest { author_id: id }),
        _ => return None,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn every_method_with_every_credential() {
    let signing = SigningKey::generate("k1", Kind::Es256);
    let forger = SigningKey::generate("k1", Kind::Es256);
    let issuer = Issuer::start(&[&signing]).await;
    let options = Options {
        variables: variables(Some(&issuer)),
        ..Options::default()
    };
    let mut herald = Herald::start(HERALD, options).await;
    assert_eq!(herald.stop().await, 0, "{}", herald.log());
    let keys = Keys::new();
    keys.write(&herald).await;
    herald.restart().await;
    let target = Target::of(&herald).await;

    let bearer = |token: &str| vec![format!("Bearer {token}")];
    let all_scopes = "post read graph devices operate audit scale";
    let valid = issuer.claims(AUDIENCE, "ann", all_scopes);
    let changed = |name: &str, value: Value| {
        let mut claims = valid.clone();
        claims[name] = value;
        bearer(&signing.token(&claims))
    };
    // Credentials that no method takes.
    let invalid = [
        ("malformed", bearer("abc")),
        ("another scheme", vec![format!("Basic {ROOT_KEY}")]),
        ("half of a key", bearer(&keys.expired.token[..40])),
        ("another root key", bearer(&ROOT_KEY.to_uppercase())),
        (
            "two credentials",
            vec![format!("Bearer {ROOT_KEY}"), format!("Bearer {ROOT_KEY}")],
        ),
        ("unknown key", bearer(&Key::with(Scope::Post).token)),
        ("expired key", bearer(&keys.expired.token)),
        ("revoked key", bearer(&keys.revoked.token)),
        ("expired token", changed("exp", json!(now() - 120))),
        (
            "token that is not valid yet",
            changed("nbf", json!(now() + 3_600)),
        ),
        ("wrong audience", changed("aud", json!("other"))),
        ("wrong issuer", changed("iss", json!("https://other.example.org"))),
        ("token without a user", changed("sub", json!(""))),
        ("forged token", bearer(&forger.token(&valid))),
        (
            "unsigned token",
            bearer(&forger.token_with(&json!({"alg": "none"}), &valid)),
        ),
    ];
    let mut refused = 0;
    for method in Method::ALL {
        let empty = Vec::new;
        let missing = target.call(method, &[], empty()).await;
        assert_eq!(
            (missing.code, missing.reason.as_str()),
            (Code::Unauthenticated, "CREDENTIALS_MISSING"),
            "{method:?} without a credential"
        );
        for (what, authorization) in &invalid {
            let answer = target
                .call(
                    method,
                    authorization,
                    request_of(method, "ann").unwrap_or_default(),
                )
                .await;
            assert_eq!(
                (answer.code, answer.reason.as_str()),
                (Code::Unauthenticated, "CREDENTIALS_INVALID"),
                "{method:?}, {what}"
            );
            refused += 1;
        }
        let Rule::Needs { scope, bound } = rule(method) else {
            // Internal methods are for nobody, also not for those who may do everything.
            let answer = target.call_as(method, ROOT_KEY).await;
            assert_eq!(
                (answer.code, answer.reason.as_str()),
                (Code::PermissionDenied, "METHOD_INTERNAL"),
                "{method:?}"
            );
            continue;
        };
        let without = target
            .call(method, &[Keys::find(&keys.without, scope)], empty())
            .await;
        assert_eq!(
            (without.code, without.reason.as_str(), without.scope.as_str()),
            (Code::PermissionDenied, "SCOPE_MISSING", scope.as_str()),
            "{method:?} without its scope"
        );
        let request = || request_of(method, "bob").unwrap_or_default();
        for authorization in [Keys::find(&keys.with, scope), format!("Bearer {ROOT_KEY}")] {
            let answer = target.call(method, &[authorization], request()).await;
            assert!(passed(&answer.reason), "{method:?} with its scope: {answer:?}");
        }
        // Tokens of users.
        let token = |user: &str, scopes: &str| bearer(&signing.token(&issuer.claims(AUDIENCE, user, scopes)));
        let others: Vec<&str> = Scope::ALL
            .into_iter()
            .filter(|other| *other != scope)
            .map(Scope::as_str)
            .collect();
        let without = target
            .call(method, &token("ann", &others.join(" ")), request())
            .await;
        assert_eq!(without.reason, "SCOPE_MISSING", "{method:?}");
        let of_other = target
            .call(method, &token("ann", scope.as_str()), request())
            .await;
        let acts_for_all = matches!(scope, Scope::Operate | Scope::Audit);
        if acts_for_all {
            assert!(
                passed(&of_other.reason),
                "{method:?} with a token of an operator: {of_other:?}"
            );
        } else {
            assert_eq!(
                (of_other.code, of_other.reason.as_str()),
                (Code::PermissionDenied, "USER_MISMATCH"),
                "{method:?} of another user"
            );
        }
        let own = request_of(method, "ann");
        assert_eq!(
            matches!(bound, Bound::Own(_)),
            own.is_some(),
            "{method:?} has a request of a user in this test"
        );
        if let Some(own) = own {
            let answer = target.call(method, &token("ann", scope.as_str()), own).await;
            assert!(passed(&answer.reason), "{method:?} of the own user: {answer:?}");
        }
    }
    assert_eq!(refused, Method::ALL.len() * invalid.len());

    // Health is open, reflection isn't.
    let health = target
        .call_path("/grpc.health.v1.Health/Check", &[], Vec::new())
        .await;
    assert_eq!(health.code, Code::Ok);
    let reflection = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    let answer = target.call_path(reflection, &[], Vec::new()).await;
    assert_eq!(answer.reason, "CREDENTIALS_MISSING");
    let any = signing.token(&issuer.claims(AUDIENCE, "ann", ""));
    let answer = target.call_path(reflection, &bearer(&any), Vec::new()).await;
    assert!(passed(&answer.reason), "{answer:?}");
    assert_eq!(herald.stop().await, 0, "{}", herald.log());
}

/// Whether authentication let a call through.
fn passed(reason: &str) -> bool {
    !REASONS.contains(&reason) && reason != "AUTHENTICATION_UNAVAILABLE"
}
