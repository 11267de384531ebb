use herald_model::{Lane, PushContent, UserId};

use super::*;
use crate::{Posts, embedded::testing::Store};

const DAY: Duration = Duration::from_hours(24);
const AUTHOR: UserKey = UserKey(3);

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

fn ids(ids: impl IntoIterator<Item = u64>) -> Vec<PostId> {
    ids.into_iter().map(PostId).collect()
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
        archive.first_retained(PostId(0), Timestamp(0)).unwrap(),
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
        let found = archive.first_retained(PostId(0), Timestamp(moment)).unwrap().0;
        assert!(first.contains(&found), "since {moment}: {found}");
    }
    assert_eq!(
        archive.first_retained(PostId(8), Timestamp(0)).unwrap(),
        PostId(8)
    );
    assert_eq!(archive.last_accepted_at().unwrap(), Some(Timestamp(200)));
}

#[tokio::test]
async fn a_post_of_a_wrong_clock_is_no_older_than_those_before_it() {
    let store = Store::new();
    let archive = open(&store);
    // The clock of the gateway was behind for the posts 3 to 6, and ahead for the post 8.
    let times = [100, 110, 1, 2, 3, 4, 150, 999, 170, 180];
    let entries: Vec<_> = (1..)
        .zip(times)
        .map(|(id, at)| created(&post(id, &format!("request {id}"), Timestamp(at))))
        .collect();
    archive.archive(&entries).await.unwrap();
    for (moment, first) in [(100, 1), (105, 2), (111, 7), (151, 8), (900, 8), (1_000, 11)] {
        let found = archive.first_retained(PostId(0), Timestamp(moment)).unwrap();
        assert_eq!(found, PostId(first), "since {moment}");
    }
}

#[tokio::test]
async fn texts_that_were_deleted_before_there_was_an_index_are_indexed() {
    let store = Store::new();
    let archive = open(&store);
    let now = Timestamp::now();
    let posts: Vec<_> = (1..=3).map(|id| post(id, &format!("r{id}"), now)).collect();
    archive
        .archive(&posts.iter().map(created).collect::<Vec<_>>())
        .await
        .unwrap();
    let deletions = [1, 3, 9].map(|id| Archived::Deleted {
        post: PostId(id),
        at: now,
    });
    archive.archive(&deletions).await.unwrap();
    let tables = Arc::clone(&archive.tables);
    drop(archive);
    for rows in [&tables.deleted_texts, &tables.deleted_text_times, &tables.state] {
        assert!(!rows.is_empty().unwrap());
        for row in rows.iter() {
            rows.remove(row.key().unwrap()).unwrap();
        }
    }
    let archive = open(&store);
    assert_eq!(archive.of_author(AUTHOR, None, 10).await.unwrap(), ids(1..=3));
    assert_eq!(archive.trim_texts(now).await.unwrap(), 0);
    assert_eq!(archive.trim_texts(now.plus(DAY)).await.unwrap(), 2);
    assert_eq!(archive.of_author(AUTHOR, None, 10).await.unwrap(), ids([2]));
    for rows in [&tables.deleted_texts, &tables.deleted_text_times] {
        assert!(rows.is_empty().unwrap());
    }
    assert_eq!(archive.trim_texts(now.plus(DAY)).await.unwrap(), 0);
}

#[tokio::test]
async fn nothing_is_left_of_removed_posts() {
    let store = Store::new();
    let archive = open(&store);
    let now = Timestamp::now();
    // More than one commit removes.
    let posts: Vec<_> = (1..=5_000).map(|id| post(id, &format!("r{id}"), now)).collect();
    archive
        .archive(&posts.iter().map(created).collect::<Vec<_>>())
        .await
        .unwrap();
    let deleted = |post| Archived::Deleted {
        post: PostId(post),
        at: now,
    };
    archive.archive(&[1, 2, 4_000, 9_000].map(deleted)).await.unwrap();
    archive.erase_texts(&ids([2])).await.unwrap();
    let removed = archive.trim_posts(now.plus(DAY), now).await.unwrap();
    assert_eq!(removed, 4_999);
    let tables = &archive.tables;
    for rows in [
        &tables.posts,
        &tables.by_author,
        &tables.requests,
        &tables.request_times,
    ] {
        assert_eq!(rows.len().unwrap(), 1, "of the newest post");
    }
    for rows in [&tables.deleted_texts, &tables.deleted_text_times] {
        assert!(rows.is_empty().unwrap());
    }
    assert_eq!(tables.deletions.len().unwrap(), 1, "of a post that may come");
}
