use herald_model::{Lane, PushContent, UserId};

use super::*;
use crate::{Posts, embedded::testing::Store};

const DAY: Duration = Duration::from_hours(24);
const AUTHOR: UserKey = UserKey(3);
const LAST: PostId = PostId(u64::MAX);

fn open(store: &Store) -> EmbeddedPosts {
    EmbeddedPosts::open(store.database(), DAY, 1 << 20).unwrap()
}

fn post(id: u64, request_id: &str, accepted_at: Timestamp) -> Post {
    Post {
        id: PostId(id),
        author: AUTHOR,
        author_id: UserId::new("author").unwrap(),
        request_id: request_id.into(),
        text: format!("the text of {id}"),
        links: vec!["https://a".into(), "https://b".into()],
        media_urls: vec!["https://c".into()],
        lane: Lane::ALL[id as usize % 3],
        accepted_at,
        push_ttl: Duration::from_hours(1),
        push: PushContent {
            title: "title".into(),
            collapse_key: "key".into(),
            data: [("k".into(), "v".into())].into(),
        },
        deleted_at: None,
    }
}

fn created(post: &Post) -> Archived {
    Archived::Created(post.clone())
}

fn deleted(id: u64, at: i64) -> Archived {
    Archived::Deleted {
        post: PostId(id),
        at: Timestamp(at),
    }
}

fn ids(ids: impl IntoIterator<Item = u64>) -> Vec<PostId> {
    ids.into_iter().map(PostId).collect()
}

#[tokio::test]
async fn posts_are_read_as_archived_also_after_a_restart() {
    let mut store = Store::new();
    let archive = open(&store);
    assert_eq!(archive.last().await.unwrap(), None);
    let now = Timestamp::now();
    let posts: Vec<_> = (1..=300)
        .map(|id| post(id, &format!("request {id}"), now))
        .collect();
    for part in posts.chunks(256) {
        archive
            .archive(&part.iter().map(created).collect::<Vec<_>>())
            .await
            .unwrap();
    }
    // Redelivered.
    archive.archive(&[created(&posts[7])]).await.unwrap();

    let mut archive = archive;
    for restart in [false, true] {
        if restart {
            drop(archive);
            store.reopen();
            archive = open(&store);
        }
        let read = archive.get(&ids(0..=301)).await.unwrap();
        assert_eq!((&read[0], &read[301]), (&None, &None));
        assert!(read[1..301].iter().flatten().eq(&posts));
        assert_eq!(
            archive.newest_by_author(AUTHOR, LAST, 5).await.unwrap(),
            ids([300, 299, 298, 297, 296])
        );
        assert_eq!(
            archive.newest_by_author(AUTHOR, PostId(200), 2).await.unwrap(),
            ids([200, 199])
        );
        assert_eq!(archive.newest_by_author(UserKey(2), LAST, 5).await.unwrap(), []);
        assert_eq!(archive.newest_by_author(UserKey(4), LAST, 5).await.unwrap(), []);
        assert_eq!(
            archive.find_by_request(AUTHOR, "request 44").await.unwrap(),
            Some(PostId(44))
        );
        assert_eq!(
            archive.find_by_request(UserKey(4), "request 44").await.unwrap(),
            None
        );
        assert_eq!(archive.last().await.unwrap(), Some(PostId(300)));
    }
}

#[tokio::test]
async fn a_deletion_is_visible_at_once_and_can_precede_its_post() {
    let mut store = Store::new();
    let archive = open(&store);
    let now = Timestamp::now();
    archive.archive(&[deleted(2, 20)]).await.unwrap();
    assert_eq!(archive.last().await.unwrap(), None);
    archive
        .archive(&(1..=5).map(|id| created(&post(id, "", now))).collect::<Vec<_>>())
        .await
        .unwrap();
    assert_eq!(
        archive.newest_by_author(AUTHOR, LAST, 10).await.unwrap(),
        ids([5, 4, 3, 1])
    );
    // Fills the cache.
    assert_eq!(
        archive.get(&ids([4])).await.unwrap()[0]
            .as_ref()
            .unwrap()
            .deleted_at,
        None
    );
    archive.archive(&[deleted(4, 40), deleted(4, 41)]).await.unwrap();
    // Post and deletion in one call, and a redelivered post.
    archive
        .archive(&[
            created(&post(6, "", now)),
            deleted(6, 60),
            created(&post(4, "", now)),
        ])
        .await
        .unwrap();
    archive.archive(&[deleted(6, 61)]).await.unwrap();
    archive
        .archive(&[deleted(7, 70), created(&post(7, "", now))])
        .await
        .unwrap();

    for _ in 0..2 {
        let archive = open(&store);
        let read = archive.get(&ids([2, 3, 4, 6, 7])).await.unwrap();
        let times: Vec<_> = read
            .into_iter()
            .map(|post| post.unwrap().deleted_at.map(|at| at.0))
            .collect();
        assert_eq!(times, [Some(20), None, Some(40), Some(60), Some(70)]);
        assert_eq!(
            archive.newest_by_author(AUTHOR, LAST, 10).await.unwrap(),
            ids([5, 3, 1])
        );
    }
    drop(archive);
    store.reopen();
    assert_eq!(
        open(&store).newest_by_author(AUTHOR, LAST, 2).await.unwrap(),
        ids([5, 3])
    );
}

#[tokio::test]
async fn a_request_id_stands_for_its_first_post_within_the_retention() {
    let store = Store::new();
    let archive = open(&store);
    let start = Timestamp::now();
    let find = |now| {
        archive
            .of_request_at(AUTHOR, "r", now)
            .unwrap()
            .map(|post| post.0)
    };
    archive.archive(&[created(&post(20, "r", start))]).await.unwrap();
    archive
        .archive(&[created(&post(21, "r", start.plus(DAY / 2)))])
        .await
        .unwrap();
    assert_eq!(find(start), Some(20));
    // The smallest id wins, even if it is archived later.
    archive
        .archive(&[created(&post(10, "r", start)), created(&post(11, "r", start))])
        .await
        .unwrap();
    assert_eq!(find(start.plus(DAY)), Some(10));
    assert_eq!(find(start.plus(DAY + Duration::from_micros(1))), None);

    // After the retention the request id stands for a new post; a redelivered old message does not change that.
    let next = start.plus(DAY * 2);
    archive.archive(&[created(&post(30, "r", next))]).await.unwrap();
    archive.archive(&[created(&post(9, "r", start))]).await.unwrap();
    assert_eq!(find(next), Some(30));

    // Only request ids past their retention are removed.
    assert_eq!(archive.trim(start.plus(DAY)).await.unwrap(), 0);
    assert!(archive.trim(next).await.unwrap() > 0);
    assert_eq!(find(next), Some(30));
    archive.trim(next.plus(DAY * 2)).await.unwrap();
    assert!(archive.tables.requests.is_empty().unwrap());
    assert!(archive.tables.request_times.is_empty().unwrap());
    assert_eq!(
        archive.get(&ids([30])).await.unwrap()[0]
            .as_ref()
            .unwrap()
            .request_id,
        "r"
    );
}

#[tokio::test]
async fn two_posts_of_one_request_in_one_call_count_as_the_first() {
    let store = Store::new();
    let archive = open(&store);
    let now = Timestamp::now();
    archive
        .archive(&[created(&post(5, "r", now)), created(&post(4, "r", now))])
        .await
        .unwrap();
    assert_eq!(
        archive.find_by_request(AUTHOR, "r").await.unwrap(),
        Some(PostId(4))
    );
}

#[tokio::test]
async fn first_since_finds_the_first_post_from_a_time_on() {
    let store = Store::new();
    let archive = open(&store);
    assert_eq!(
        archive.first_since(Timestamp(0)).unwrap(),
        PostId(1),
        "of an empty archive"
    );
    // Ids with gaps: posts that are not archived yet, or never will be.
    let entries: Vec<_> = [2, 3, 7, 8, 20]
        .into_iter()
        .map(|id| {
            created(&post(
                id,
                &format!("request {id}"),
                Timestamp(id.cast_signed() * 10),
            ))
        })
        .collect();
    archive.archive(&entries).await.unwrap();
    for (moment, first) in [
        (0, 1..=2),
        (20, 1..=2),
        (21, 3..=3),
        (31, 4..=7),
        (75, 8..=8),
        (81, 9..=20),
        (200, 9..=20),
        (201, 21..=21),
    ] {
        let found = archive.first_since(Timestamp(moment)).unwrap().0;
        assert!(first.contains(&found), "since {moment}: {found}");
    }
}
