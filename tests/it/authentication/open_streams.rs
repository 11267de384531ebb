//! Streams that are open when their credential ends.

use futures::{StreamExt as _, stream};
use harness::{Herald, Options, until};
use herald_local_issuer::{Issuer, Kind, SigningKey, now};
use herald_proto::{
    Method,
    v1::{
        self, graph_service_client::GraphServiceClient, mesh_service_client::MeshServiceClient,
        post_service_client::PostServiceClient, timeline_service_client::TimelineServiceClient,
    },
};
use serde_json::json;
use tonic::{Code, Request, Status, Streaming, transport::Channel};
use tonic_types::StatusExt as _;

use super::{
    AUDIENCE, HERALD, LIMIT, REVOCATION_LIMIT, ROOT_KEY, World, calls::Target, key_command, serve, text,
    variables,
};

fn request<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let authorization = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", authorization);
    request
}

async fn connect(url: String) -> Channel {
    Channel::from_shared(url).unwrap().connect().await.unwrap()
}

async fn watch(channel: &Channel, token: &str) -> Streaming<v1::WatchTimelineResponse> {
    let watch = v1::WatchTimelineRequest {
        user_id: "ann".into(),
        ..Default::default()
    };
    let mut client = TimelineServiceClient::new(channel.clone());
    client
        .watch_timeline(request(token, watch))
        .await
        .unwrap()
        .into_inner()
}

/// How a stream ends.
async fn end<T>(mut stream: Streaming<T>) -> Result<(), Status> {
    while stream.message().await?.is_some() {}
    Ok(())
}

/// Waits for the end of a stream, which must be that of its credential.
async fn assert_ended(what: &str, end: impl Future<Output = Result<(), Status>>) {
    let ended = tokio::time::timeout(REVOCATION_LIMIT, end).await;
    let status = ended.unwrap_or_else(|_| panic!("{what} goes on")).unwrap_err();
    let reason = status.get_details_error_info().map(|info| info.reason);
    assert_eq!(
        (status.code(), reason.as_deref()),
        (Code::Unauthenticated, Some("CREDENTIALS_ENDED")),
        "{what}: {status:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_ends_the_open_streams_of_another_gateway() {
    let Some(world) = World::start().await else { return };
    let first = serve(&world).await;
    let second = serve(&world).await;
    let created = key_command(
        &first.operator_url(),
        &["create", "app", "--scopes", "post,read,graph,scale"],
    )
    .await;
    let (token, id) = (text(&created, "token").to_owned(), text(&created, "key_id"));
    let target = Target::connect(&second.url(), &second.operator_url()).await;
    until("the other gateway knows the key", REVOCATION_LIMIT, || async {
        target.call_as(Method::ListPosts, &token).await.reason != "CREDENTIALS_INVALID"
    })
    .await;
    let (public, operators) = (connect(second.url()).await, connect(second.operator_url()).await);

    let watching = watch(&public, &token).await;
    let of_root = watch(&public, ROOT_KEY).await;
    let lag = MeshServiceClient::new(operators)
        .watch_lag(request(&token, v1::WatchLagRequest::default()))
        .await
        .unwrap()
        .into_inner();
    let post = v1::SubmitPostsRequest {
        post: Some(v1::SubmitPostRequest {
            author_id: "bob".into(),
            text: "hi".into(),
            ..Default::default()
        }),
    };
    let posts = request(&token, stream::iter([post]).chain(stream::pending()));
    let mut client = PostServiceClient::new(public.clone());
    let reader = client.clone();
    let submitting = tokio::spawn(async move { client.submit_posts(posts).await.map(drop) });
    until("the post is accepted", LIMIT, || async {
        let question = v1::ListPostsRequest {
            author_id: "bob".into(),
            ..Default::default()
        };
        let answer = reader.clone().list_posts(request(ROOT_KEY, question)).await;
        answer.is_ok_and(|answer| !answer.into_inner().posts.is_empty())
    })
    .await;
    // The same, forwarded.
    let follows = v1::ImportFollowsRequest {
        follows: vec![v1::Follow {
            follower_id: "ann".into(),
            author_id: "bob".into(),
            ..Default::default()
        }],
    };
    let follows = request(&token, stream::iter([follows]).chain(stream::pending()));
    let mut graph = GraphServiceClient::new(public);
    let reader = graph.clone();
    let import = tokio::spawn(async move { graph.import_follows(follows).await.map(drop) });
    until("the follow is imported", LIMIT, || async {
        let question = v1::IsFollowingRequest {
            follower_id: "ann".into(),
            author_id: "bob".into(),
        };
        let answer = reader.clone().is_following(request(ROOT_KEY, question)).await;
        answer.is_ok_and(|answer| answer.into_inner().following)
    })
    .await;

    key_command(&first.operator_url(), &["revoke", id]).await;
    tokio::join!(
        assert_ended("WatchTimeline", end(watching)),
        assert_ended("WatchLag", end(lag)),
        assert_ended("SubmitPosts", async { submitting.await.unwrap() }),
        assert_ended("ImportFollows", async { import.await.unwrap() }),
    );
    // That of another key goes on.
    let open = tokio::time::timeout(std::time::Duration::from_secs(1), end(of_root)).await;
    assert!(open.is_err(), "{open:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_when_its_token_expires() {
    let key = SigningKey::generate("k1", Kind::Es256);
    let issuer = Issuer::start(&[&key]).await;
    let mut variables = variables(Some(&issuer));
    variables.push(("HERALD_AUTH__JWT__LEEWAY_SECONDS".into(), "0".into()));
    let options = Options {
        variables,
        ..Options::default()
    };
    let herald = Herald::start(HERALD, options).await;
    let channel = connect(herald.url()).await;
    let mut claims = issuer.claims(AUDIENCE, "ann", "read");
    let expires = now() + 5;
    claims["exp"] = json!(expires);
    let watching = watch(&channel, &key.token(&claims)).await;
    assert_ended("WatchTimeline", end(watching)).await;
    assert!(now() >= expires);
}
