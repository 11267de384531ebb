//! RebuildTimelines.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use herald_model::{PostId, Recipients, UserId, UserKey};
use herald_proto::v1::{
    RebuildTimelinesRequest, RebuildTimelinesResponse, audit_service_client::AuditServiceClient,
};
use herald_store::{Delivered, Error, ErrorKind, Rebuilt, Result, TimelineEntries, TimelinePage, Timelines};
use tonic::{Code, Status};

use crate::{
    calls::reason,
    harness::{Harness, Running},
};

/// Timelines that record which of them are rebuilt.
struct Views {
    inner: Arc<dyn Timelines>,
    rebuilt: Mutex<Vec<UserKey>>,
    /// The user whose timeline can't be rebuilt.
    failing: Mutex<Option<UserKey>>,
}

#[async_trait]
impl Timelines for Views {
    async fn deliver(&self, post: PostId, recipients: Recipients) -> Result<Delivered> {
        self.inner.deliver(post, recipients).await
    }

    async fn is_intact(&self, losses: u64) -> Result<bool> {
        self.inner.is_intact(losses).await
    }

    async fn newest(&self, user: UserKey, before: Option<PostId>, limit: usize) -> Result<TimelinePage> {
        self.inner.newest(user, before, limit).await
    }

    async fn read(&self, users: &[UserKey]) -> Result<Vec<TimelineEntries>> {
        self.inner.read(users).await
    }

    async fn rebuild(&self, users: &[UserKey]) -> Result<Rebuilt> {
        if self
            .failing
            .lock()
            .unwrap()
            .is_some_and(|user| users.contains(&user))
        {
            return Err(Error::new(ErrorKind::Unavailable, "failed on purpose"));
        }
        self.rebuilt.lock().unwrap().extend(users);
        Ok(Rebuilt {
            timelines: users.len() as u64,
            entries: 2 * users.len() as u64,
        })
    }

    async fn erase(&self, user: UserKey) -> Result<u64> {
        self.inner.erase(user).await
    }
}

async fn rebuild(
    service: &Running,
    request: RebuildTimelinesRequest,
) -> std::result::Result<Vec<RebuildTimelinesResponse>, Status> {
    let mut client = AuditServiceClient::connect(service.address.clone())
        .await
        .unwrap();
    let mut stream = client.rebuild_timelines(request).await?.into_inner();
    let mut responses = Vec::new();
    while let Some(response) = stream.message().await? {
        responses.push(response);
    }
    Ok(responses)
}

fn users(numbers: std::ops::RangeInclusive<u32>) -> Vec<UserId> {
    numbers
        .map(|number| UserId::new(format!("user{number}")).unwrap())
        .collect()
}

/// A service with 300 users, whose keys are 1 to 300.
async fn start() -> (Harness, Arc<Views>, Running) {
    let mut harness = Harness::start().await;
    for user in users(1..=300) {
        harness.stores.users.intern(&[user]).await.unwrap();
    }
    let views = Arc::new(Views {
        inner: harness.stores.timelines.clone(),
        rebuilt: Mutex::default(),
        failing: Mutex::default(),
    });
    harness.stores.timelines = views.clone();
    let service = harness.run().await;
    (harness, views, service)
}

fn keys(range: std::ops::RangeInclusive<u32>) -> Vec<UserKey> {
    range.map(UserKey).collect()
}

fn take_sorted(views: &Views) -> Vec<UserKey> {
    let mut rebuilt = std::mem::take(&mut *views.rebuilt.lock().unwrap());
    rebuilt.sort_unstable();
    rebuilt
}

#[tokio::test(flavor = "multi_thread")]
async fn each_timeline_is_rebuilt_once() {
    let (_harness, views, service) = start().await;
    let responses = rebuild(&service, RebuildTimelinesRequest::default())
        .await
        .unwrap();
    let last = responses.last().unwrap();
    assert_eq!((last.user_count, last.user_count_total), (300, 300));
    assert_eq!((last.timeline_count, last.entry_count), (300, 600));
    assert_eq!((last.position, last.done), (300, true));
    assert!(responses.iter().rev().skip(1).all(|response| !response.done));
    assert_eq!(take_sorted(&views), keys(1..=300));

    let some = RebuildTimelinesRequest {
        user_ids: vec!["user7".into(), "user3".into(), "user7".into()],
        after: 0,
    };
    let responses = rebuild(&service, some).await.unwrap();
    let last = responses.last().unwrap();
    assert_eq!((last.user_count, last.position, last.done), (2, 0, true));
    assert_eq!(take_sorted(&views), [UserKey(3), UserKey(7)]);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_rebuild_continues_after_its_position() {
    let (_harness, views, service) = start().await;
    *views.failing.lock().unwrap() = Some(UserKey(200));
    let mut client = AuditServiceClient::connect(service.address.clone())
        .await
        .unwrap();
    let stream = client.rebuild_timelines(RebuildTimelinesRequest::default()).await;
    let mut stream = stream.unwrap().into_inner();
    let mut position = 0;
    let error = loop {
        match stream.message().await {
            Ok(Some(response)) => position = response.position,
            Ok(None) => panic!("the rebuild of a failing timeline succeeded"),
            Err(error) => break error,
        }
    };
    assert_eq!(error.code(), Code::Unavailable, "{error:?}");
    let last = u32::try_from(position).unwrap();
    assert!((1..200).contains(&last), "{position}");
    let done = take_sorted(&views);
    assert!(keys(1..=last).iter().all(|user| done.contains(user)), "{done:?}");

    *views.failing.lock().unwrap() = None;
    let rest = RebuildTimelinesRequest {
        after: position,
        ..RebuildTimelinesRequest::default()
    };
    let responses = rebuild(&service, rest).await.unwrap();
    assert!(responses.last().unwrap().done);
    assert_eq!(take_sorted(&views), keys(last + 1..=300));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn timelines_of_the_embedded_engine_are_complete_and_wrong_requests_are_refused() {
    let harness = Harness::start().await;
    harness.stores.users.intern(&users(1..=3)).await.unwrap();
    let service = harness.run().await;
    let responses = rebuild(&service, RebuildTimelinesRequest::default())
        .await
        .unwrap();
    let last = responses.last().unwrap();
    assert_eq!(
        (last.user_count, last.timeline_count, last.entry_count),
        (3, 0, 0)
    );
    assert!(last.done);

    let request = |user_ids: &[&str], after| RebuildTimelinesRequest {
        user_ids: user_ids.iter().map(ToString::to_string).collect(),
        after,
    };
    let unknown = rebuild(&service, request(&["user1", "nobody"], 0))
        .await
        .unwrap_err();
    assert_eq!(
        (unknown.code(), &reason(&unknown)[..]),
        (Code::NotFound, "USER_NOT_FOUND")
    );
    assert_eq!(unknown.message(), "there is no user nobody");
    for invalid in [request(&["user1"], 1), request(&[""], 0), request(&[], 1 << 40)] {
        let refused = rebuild(&service, invalid).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    }
    service.stop().await;
}
