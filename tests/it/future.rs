//! Ids and page tokens that the store doesn't have yet, such as those of another installation, are no internal errors.

use harness::{Clients, Herald, Options};
use herald_local_stores::{Postgres, PostgresOptions, Redis, RedisOptions, required};
use herald_proto::v1;
use herald_rpc::paging::{PageToken, identity};
use tonic::{Code, Status};

use crate::HERALD;

/// Beyond every id, and beyond what a database takes for a number.
const FUTURE: [u64; 3] = [1_000_000, i64::MAX as u64 + 1, u64::MAX];

/// Calls with an id or a cursor of the future, by name.
async fn calls(clients: &Clients, number: u64) -> Vec<(&'static str, Option<Status>)> {
    let token = |call: &str, identity| PageToken::encode_u64(call, identity, number);
    let of = |text: &str| identity([text.as_bytes()]);
    let (posts, deliveries, dead_letters) = (clients.posts(), clients.deliveries(), clients.dead_letters());
    let list_recipients = v1::ListRecipientsRequest {
        post_id: number,
        channel: v1::Channel::Push.into(),
        ..Default::default()
    };
    let list_posts = v1::ListPostsRequest {
        author_id: "bob".into(),
        page_token: token("ListPosts", of("bob")),
        ..Default::default()
    };
    let list_timeline = v1::ListTimelineRequest {
        user_id: "ann".into(),
        page_token: token("ListTimeline", of("ann")),
        ..Default::default()
    };
    let list_followers = v1::ListFollowersRequest {
        author_id: "bob".into(),
        page_token: token("ListFollowers", of("bob")),
        ..Default::default()
    };
    let list_following = v1::ListFollowingRequest {
        follower_id: "ann".into(),
        page_token: token("ListFollowing", of("ann")),
        ..Default::default()
    };
    let list_operations = v1::ListOperationsRequest {
        page_token: token("ListOperations", 0),
        ..Default::default()
    };
    let list_dead_letters = v1::ListDeadLettersRequest {
        page_token: token("ListDeadLetters", identity([&[][..], &[0]])),
        ..Default::default()
    };
    let list_undelivered = v1::ListUndeliveredRecipientsRequest {
        dead_letter_id: number,
        ..Default::default()
    };
    let explain = v1::ExplainDeliveryRequest {
        post_id: number,
        user_id: "ann".into(),
    };
    let batch = v1::BatchGetPostsRequest {
        post_ids: vec![number],
    };
    let delete = v1::DeletePostRequest {
        post_id: number,
        author_id: "bob".into(),
        ..Default::default()
    };
    macro_rules! call {
        ($client:expr, $method:ident, $request:expr) => {
            (
                stringify!($method),
                $client.clone().$method($request).await.err(),
            )
        };
    }
    vec![
        call!(posts, get_post, v1::GetPostRequest { post_id: number }),
        call!(posts, batch_get_posts, batch),
        call!(posts, delete_post, delete),
        call!(posts, list_posts, list_posts),
        call!(
            deliveries,
            get_delivery,
            v1::GetDeliveryRequest { post_id: number }
        ),
        call!(deliveries, list_recipients, list_recipients),
        call!(deliveries, explain_delivery, explain),
        call!(clients.timelines(), list_timeline, list_timeline),
        call!(clients.graph(), list_followers, list_followers),
        call!(clients.graph(), list_following, list_following),
        call!(dead_letters, list_operations, list_operations),
        call!(dead_letters, list_dead_letters, list_dead_letters),
        call!(dead_letters, list_undelivered_recipients, list_undelivered),
        call!(
            dead_letters,
            get_redrive,
            v1::GetRedriveRequest { redrive_id: number }
        ),
        call!(
            dead_letters,
            get_dead_letter,
            v1::GetDeadLetterRequest {
                dead_letter_id: number
            }
        ),
    ]
}

async fn check(options: Options) {
    let herald = Herald::start(HERALD, options).await;
    let clients = herald.clients().await;
    herald.cli(&["follow", "ann", "bob"]).await;
    for number in FUTURE {
        for (call, status) in calls(&clients, number).await {
            let code = status.as_ref().map_or(Code::Ok, Status::code);
            let expected = [Code::Ok, Code::NotFound, Code::InvalidArgument, Code::OutOfRange];
            assert!(expected.contains(&code), "{call} of {number}: {status:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_and_tokens_of_the_future_are_no_internal_errors_of_the_embedded_engine() {
    check(Options::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_and_tokens_of_the_future_are_no_internal_errors_of_the_cluster_engine() {
    let postgres = Postgres::start_with(PostgresOptions::default()).await;
    let Some(postgres) = required("PostgreSQL", postgres) else {
        return;
    };
    let redis = Redis::start(RedisOptions::default()).await;
    let Some(redis) = required("Redis", redis) else {
        return;
    };
    let database = postgres.database("herald").await.unwrap();
    let variables = vec![
        ("HERALD_STORE__URL".into(), database),
        ("HERALD_TIMELINES__URL".into(), redis.url()),
    ];
    check(Options {
        variables,
        ..Options::default()
    })
    .await;
}
