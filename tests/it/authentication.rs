//! Authentication of a running mesh: who may call what, and what happens while keys change.

mod calls;
mod matrix;
mod open_streams;

use std::time::Duration;

use harness::{Herald, Options, Process, run, until, until_some};
use herald_local_issuer::{Issuer, Kind, SigningKey};
use herald_proto::Method;
use serde_json::Value;
use tonic::Code;

use crate::{
    HERALD,
    serve_cluster::{LIMIT, World},
    surface::http_get,
};
use calls::{Answer, Target, framed_post};

const ROOT_KEY: &str = "hk_root_of_the_tests_0123456789abcdefghij";
const AUDIENCE: &str = "herald";
/// The promise: how soon a revocation is effective in every gateway.
const REVOCATION_LIMIT: Duration = Duration::from_secs(10);

/// The environment of a process with authentication; with tokens of an issuer.
fn variables(issuer: Option<&Issuer>) -> Vec<(String, String)> {
    let mut variables = vec![
        ("AUTH__ENABLED", "true".to_owned()),
        ("AUTH__ROOT_KEY", ROOT_KEY.into()),
    ];
    if let Some(issuer) = issuer {
        variables.extend([
            ("AUTH__JWT__ISSUER", issuer.name()),
            ("AUTH__JWT__AUDIENCE", AUDIENCE.into()),
            ("AUTH__JWT__JWKS_URL", issuer.jwks_url()),
            ("AUTH__JWT__ALGORITHMS", "[RS256, ES256, EdDSA]".into()),
        ]);
    }
    let named = variables.into_iter();
    named
        .map(|(name, value)| (format!("HERALD_{name}"), value))
        .collect()
}

/// Runs `herald key` with the root key and returns its JSON output.
async fn key_command(operator_url: &str, arguments: &[&str]) -> Value {
    let mut all = vec!["key"];
    all.extend(arguments);
    all.extend(["--output", "json"]);
    let variables = [
        ("HERALD_OPERATOR_SERVER", operator_url),
        ("HERALD_TOKEN", ROOT_KEY),
    ];
    harness::run_json(HERALD, &all, &variables).await
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key]
        .as_str()
        .unwrap_or_else(|| panic!("{key} is missing in {value}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn up_makes_a_root_key_for_the_first_api_key() {
    let options = Options {
        arguments: vec!["--auth".into()],
        ..Options::default()
    };
    let mut herald = Herald::start(HERALD, options).await;
    let target = Target::of(&herald).await;
    let refused = target.call(Method::SubmitPost, &[], framed_post("ann")).await;
    assert_eq!(refused.reason, "CREDENTIALS_MISSING", "{refused:?}");

    let file = herald.data_dir().join("root-key");
    let root_key = std::fs::read_to_string(&file).unwrap();
    let file = file.to_str().unwrap();
    let (url, operator_url) = (herald.url(), herald.operator_url());
    let herald_as = async |token: (&str, &str), arguments: &[&str]| {
        let servers = [
            ("HERALD_SERVER", &*url),
            ("HERALD_OPERATOR_SERVER", &*operator_url),
            token,
        ];
        run(HERALD, arguments, &servers).await
    };
    let arguments = [
        "key",
        "create",
        "web",
        "--scopes",
        "post,read",
        "--expires",
        "1h",
        "--output",
        "json",
    ];
    let created = herald_as(("HERALD_TOKEN_FILE", file), &arguments).await;
    assert_eq!(created.code, 0, "{created:?}");
    let created: Value = serde_json::from_str(&created.stdout).unwrap();
    let (token, id) = (text(&created, "token"), text(&created, "key_id"));

    let post = ["post", "--author", "ann", "--text", "hi"];
    let posted = herald_as(("HERALD_TOKEN", token), &post).await;
    assert_eq!(posted.code, 0, "{posted:?}");
    let refused = herald_as(("HERALD_TOKEN", token), &["follow", "bob", "ann"]).await;
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("the scope `graph`"), "{refused:?}");
    // A key can't make one that may do more.
    let operator = key_command_as_file(&herald_as, file, "operate").await;
    let more = ["key", "create", "more", "--scopes", "operate,post"];
    let refused = herald_as(("HERALD_TOKEN", &operator), &more).await;
    let reason = "a key gives only scopes that it has, and this one lacks `post`";
    assert!(refused.stderr.contains(reason), "{refused:?}");

    let revoked = herald_as(("HERALD_TOKEN_FILE", file), &["key", "revoke", id]).await;
    assert_eq!(revoked.code, 0, "{revoked:?}");
    let refused = herald_as(("HERALD_TOKEN", token), &post).await;
    assert!(
        refused.stderr.contains("--token-file"),
        "the hint says what to do: {refused:?}"
    );
    let listed = herald_as(("HERALD_TOKEN_FILE", file), &["key", "list", "--output", "json"]).await;
    let listed: Value = serde_json::from_str(&listed.stdout).unwrap();
    let states: Vec<_> = listed["keys"]
        .as_array()
        .unwrap()
        .iter()
        .map(|key| (text(key, "name"), text(key, "state")))
        .collect();
    assert_eq!(states, [("web", "revoked"), ("ops", "valid")]);

    // Neither key is in the log, and both live on after a restart.
    assert!(
        !herald.log().contains(root_key.trim()) && !herald.log().contains(token),
        "{}",
        herald.log()
    );
    assert_eq!(herald.stop().await, 0, "{}", herald.log());
    herald.restart().await;
    assert_eq!(std::fs::read_to_string(file).unwrap(), root_key);
    let target = Target::of(&herald).await;
    let list = target.call_as(Method::ListKeys, root_key.trim()).await;
    assert_eq!(list.code, Code::Ok, "{list:?}");
    let still = target.call_as(Method::SubmitPost, token).await;
    assert_eq!(still.reason, "CREDENTIALS_INVALID", "{still:?}");
    let metrics = http_get(herald.http(), "/metrics").await;
    let line = "herald_gateway_calls_refused_total{reason=\"credentials_invalid\"} 1";
    assert!(metrics.contains(line), "{metrics}");
}

/// Creates a key with one scope and returns it.
async fn key_command_as_file(
    herald_as: &impl AsyncFn((&str, &str), &[&str]) -> harness::Output,
    file: &str,
    scope: &str,
) -> String {
    let arguments = ["key", "create", "ops", "--scopes", scope, "--output", "json"];
    let created = herald_as(("HERALD_TOKEN_FILE", file), &arguments).await;
    let created: Value = serde_json::from_str(&created.stdout).unwrap();
    text(&created, "token").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_follow_the_keys_of_their_issuer() {
    let (old, new) = (
        SigningKey::generate("k1", Kind::Rs256),
        SigningKey::generate("k2", Kind::Es256),
    );
    let issuer = Issuer::start(&[&old]).await;
    let options = Options {
        variables: variables(Some(&issuer)),
        ..Options::default()
    };
    let herald = Herald::start(HERALD, options).await;
    let target = Target::of(&herald).await;
    let claims = issuer.claims(AUDIENCE, "ann", "post");
    let submit = async |key: &SigningKey| {
        let authorization = format!("Bearer {}", key.token(&claims));
        target
            .call(Method::SubmitPost, &[authorization], framed_post("ann"))
            .await
    };
    let accepted = submit(&old).await;
    assert_eq!(accepted.code, Code::Ok, "{accepted:?}");
    assert_eq!(submit(&new).await.reason, "CREDENTIALS_INVALID");

    issuer.set_keys(&[&old, &new]);
    until("the new key is taken", LIMIT, || async {
        submit(&new).await.code == Code::Ok
    })
    .await;
    assert_eq!(submit(&old).await.code, Code::Ok);
    // The old key is gone. An unknown key makes the gateway read the keys again.
    issuer.set_keys(&[&new]);
    let unknown = SigningKey::generate("k3", Kind::EdDsa);
    until("the old key is refused", LIMIT, || async {
        assert_eq!(submit(&unknown).await.reason, "CREDENTIALS_INVALID");
        submit(&old).await.reason == "CREDENTIALS_INVALID"
    })
    .await;
    issuer.go_away();
    assert_eq!(submit(&new).await.code, Code::Ok);
}

/// A gateway with its peers, on the stores of a world.
async fn serve(world: &World) -> Process {
    let mut all = world.variables();
    all.extend(variables(None));
    Process::start(HERALD, "gateway,graph,analytics,deadletter,archive", &[], &all).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_is_effective_in_every_gateway() {
    let Some(world) = World::start().await else { return };
    let first = serve(&world).await;
    let second = serve(&world).await;
    let other = Target::connect(&second.url(), &second.operator_url()).await;
    let created = key_command(&first.operator_url(), &["create", "ci", "--scopes", "read"]).await;
    let (token, id) = (text(&created, "token"), text(&created, "key_id"));
    until("the other gateway knows the key", REVOCATION_LIMIT, || async {
        other.call_as(Method::ListPosts, token).await.reason != "CREDENTIALS_INVALID"
    })
    .await;
    key_command(&first.operator_url(), &["revoke", id]).await;
    // At once where it was revoked.
    let here = Target::connect(&first.url(), &first.operator_url()).await;
    assert_eq!(
        here.call_as(Method::ListPosts, token).await.reason,
        "CREDENTIALS_INVALID"
    );
    until("the other gateway refuses the key", REVOCATION_LIMIT, || async {
        other.call_as(Method::ListPosts, token).await.reason == "CREDENTIALS_INVALID"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_store_the_known_keys_and_the_root_key_stay_valid() {
    let Some(world) = World::start().await else { return };
    let workers = Process::start(
        HERALD,
        "graph,analytics,deadletter,archive",
        &[],
        &world.variables(),
    )
    .await;
    // Without the store, only a process with the gateway alone starts.
    let serve = async || {
        let peers = ["graph", "analytics", "deadletter"].map(|role| format!("{role}={}", workers.url()));
        let peers: Vec<&str> = peers.iter().flat_map(|peer| ["--peer", peer]).collect();
        let mut all = world.variables();
        all.extend(variables(None));
        Process::start(HERALD, "gateway", &peers, &all).await
    };
    let mut gateway = serve().await;
    let created = key_command(&gateway.operator_url(), &["create", "ci", "--scopes", "post"]).await;
    let token = text(&created, "token");
    let submit = async |target: &Target, token: &str| {
        let authorization = format!("Bearer {token}");
        target
            .call(Method::SubmitPost, &[authorization], framed_post("ann"))
            .await
    };
    let target = Target::connect(&gateway.url(), &gateway.operator_url()).await;
    assert_eq!(submit(&target, token).await.code, Code::Ok);

    world.postgres.stop().await.unwrap();
    until("the gateway can't read the keys", LIMIT, || async {
        gateway.log().contains("can't read the API keys")
    })
    .await;
    assert_eq!(submit(&target, token).await.code, Code::Ok);
    assert_eq!(gateway.stop().await, 0, "{}", gateway.log());

    // A gateway that has never read the keys can't tell a valid one. The root key needs no store.
    let gateway = serve().await;
    let target = Target::connect(&gateway.url(), &gateway.operator_url()).await;
    let unknown = submit(&target, token).await;
    assert_eq!(
        (unknown.code, unknown.reason.as_str()),
        (Code::Unavailable, "AUTHENTICATION_UNAVAILABLE")
    );
    assert_eq!(submit(&target, ROOT_KEY).await.code, Code::Ok);
    world.postgres.restart().await.unwrap();
    let answer: Answer = until_some("the key is known again", LIMIT, || async {
        let answer = submit(&target, token).await;
        (answer.reason != "AUTHENTICATION_UNAVAILABLE").then_some(answer)
    })
    .await;
    assert_eq!(answer.code, Code::Ok, "{answer:?}");
}
