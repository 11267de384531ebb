//! Reads of users that nobody has named in a write: they make no user.

use std::time::Duration;

use harness::{Clients, Herald, Options};
use herald_proto::v1::{self, watch_timeline_response::Event};
use tonic::{Code, Status};

use crate::HERALD;

const LIMIT: Duration = Duration::from_secs(30);

/// Whether something has made the user.
async fn exists(clients: &Clients, user: &str) -> bool {
    let request = v1::ExportUserRequest { user_id: user.into() };
    let answer = async {
        let mut records = clients.user_data().export_user(request).await?.into_inner();
        records.message().await
    };
    match answer.await {
        Ok(_) => true,
        Err(status) if status.code() == Code::NotFound => false,
        Err(status) => panic!("{status:?}"),
    }
}

/// Calls each read that takes the id of a user; a missing post or user is an answer.
async fn read_all(clients: &Clients, post_id: u64, user: impl Fn(&str) -> String) {
    async fn answered<T>(call: &str, answer: impl Future<Output = Result<T, Status>>) {
        match tokio::time::timeout(LIMIT, answer).await.expect("an answer") {
            Err(status) if status.code() != Code::NotFound => panic!("{call}: {status:?}"),
            _ => {}
        }
    }
    macro_rules! read {
        ($client:ident.$method:ident($request:ident { $($field:ident: $value:expr),* $(,)? })) => {{
            #[allow(clippy::needless_update, reason = "some requests have no other field")]
            let request = v1::$request { $($field: $value,)* ..Default::default() };
            answered(stringify!($method), clients.$client().$method(request)).await;
        }};
    }
    read!(timelines.list_timeline(ListTimelineRequest {
        user_id: user("list_timeline")
    }));
    read!(posts.list_posts(ListPostsRequest {
        author_id: user("list_posts")
    }));
    read!(devices.list_devices(ListDevicesRequest {
        user_id: user("list_devices")
    }));
    read!(preferences.get_preferences(GetPreferencesRequest {
        user_id: user("get_preferences")
    }));
    read!(graph.is_following(IsFollowingRequest {
        follower_id: user("follower"),
        author_id: user("author")
    }));
    read!(graph.list_followers(ListFollowersRequest {
        author_id: user("list_followers")
    }));
    read!(graph.list_following(ListFollowingRequest {
        follower_id: user("list_following")
    }));
    read!(graph.count_followers(CountFollowersRequest {
        author_id: user("count_followers")
    }));
    read!(deliveries.explain_delivery(ExplainDeliveryRequest {
        post_id: post_id,
        user_id: user("explain_delivery")
    }));
    let filter = Some(v1::DeadLetterFilter {
        author_id: user("filter"),
        ..Default::default()
    });
    read!(dead_letters.list_dead_letters(ListDeadLettersRequest {
        filter: filter.clone()
    }));
    read!(dead_letters.list_groups(ListGroupsRequest { filter: filter }));
    let exported = v1::ExportUserRequest {
        user_id: user("export_user"),
    };
    let export = async {
        clients
            .user_data()
            .export_user(exported)
            .await?
            .into_inner()
            .message()
            .await
    };
    answered("export_user", export).await;
    let watched = v1::WatchTimelineRequest {
        user_id: user("watch_timeline"),
        ..Default::default()
    };
    let watch = async {
        clients
            .timelines()
            .watch_timeline(watched)
            .await?
            .into_inner()
            .message()
            .await
    };
    answered("watch_timeline", watch).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_makes_no_user() {
    let herald = Herald::start(HERALD, Options::default()).await;
    let clients = herald.clients().await;
    herald.cli(&["follow", "ann", "bob"]).await;
    let posted = herald.cli(&["post", "--author", "bob", "--text", "hi"]).await;
    assert!(exists(&clients, "ann").await && exists(&clients, "bob").await);

    let named = std::sync::Mutex::new(Vec::new());
    let user = |call: &str| {
        let id = format!("nobody-{call}");
        named.lock().unwrap().push(id.clone());
        id
    };
    read_all(&clients, posted["post_id"].as_u64().unwrap(), user).await;
    let named = named.into_inner().unwrap();
    assert!(named.len() >= 13, "{named:?}");
    for id in named {
        assert!(!exists(&clients, &id).await, "a read made {id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_begins_before_its_user_shows_the_first_post() {
    let herald = Herald::start(HERALD, Options::default()).await;
    let clients = herald.clients().await;
    let request = v1::WatchTimelineRequest {
        user_id: "newcomer".into(),
        ..Default::default()
    };
    let mut watch = clients
        .timelines()
        .watch_timeline(request)
        .await
        .unwrap()
        .into_inner();
    let first = watch.message().await.unwrap().unwrap();
    assert!(
        matches!(&first.event, Some(Event::Snapshot(snapshot)) if snapshot.entries.is_empty()),
        "{first:?}"
    );
    assert!(!exists(&clients, "newcomer").await);

    herald.cli(&["follow", "newcomer", "bob"]).await;
    let posted = herald
        .cli(&["post", "--author", "bob", "--text", "welcome"])
        .await;
    let shown = async {
        loop {
            match watch.message().await.unwrap().expect("the watch goes on").event {
                Some(Event::Entry(entry)) => break entry.post.unwrap().post_id,
                Some(Event::Heartbeat(_)) => {}
                other => panic!("{other:?}"),
            }
        }
    };
    let shown = tokio::time::timeout(LIMIT, shown)
        .await
        .expect("the post is shown");
    assert_eq!(posted["post_id"], shown);
}
