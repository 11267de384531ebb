//! Posts and request ids.

use std::time::Duration;

use herald_model::{Post, PostId, PushContent, UserId, UserKey, time::Timestamp};
use herald_store::{Archived, Posts};

use crate::{
    engine::Engine,
    sample::{AUTHOR, post},
};

const LAST: PostId = PostId(u64::MAX);

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

pub async fn posts_are_read_as_archived_also_after_a_restart<E: Engine>(engine: &mut E) {
    let archive = engine.stores().posts;
    archive.capacity().await.unwrap();
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
    // Redelivered, also with other content.
    let changed = Post {
        text: "another text".into(),
        ..posts[8].clone()
    };
    archive
        .archive(&[created(&posts[7]), created(&changed)])
        .await
        .unwrap();
    archive.archive(&[]).await.unwrap();

    let mut archive = archive;
    for restart in [false, true] {
        if restart {
            drop(archive);
            engine.reopen().await;
            archive = engine.stores().posts;
        }
        let read = archive.get(&ids(0..=301)).await.unwrap();
        assert_eq!((&read[0], &read[301]), (&None, &None));
        assert!(read[1..301].iter().flatten().eq(&posts));
        let newest =
            async |author, up_to, limit| archive.newest_by_author(author, up_to, limit).await.unwrap();
        assert_eq!(newest(AUTHOR, LAST, 5).await, ids([300, 299, 298, 297, 296]));
        assert_eq!(newest(AUTHOR, PostId(200), 2).await, ids([200, 199]));
        assert_eq!(newest(UserKey(2), LAST, 5).await, []);
        assert_eq!(newest(UserKey(4), LAST, 5).await, []);
        let by_request = archive.find_by_request(AUTHOR, "request 44").await.unwrap();
        assert_eq!(by_request, Some(PostId(44)));
        let of_other = archive.find_by_request(UserKey(4), "request 44").await.unwrap();
        assert_eq!(of_other, None);
        assert_eq!(archive.last().await.unwrap(), Some(PostId(300)));
    }
}

pub async fn a_deletion_is_visible_at_once_and_can_precede_its_post<E: Engine>(engine: &mut E) {
    let archive = engine.stores().posts;
    let now = Timestamp::now();
    archive.archive(&[deleted(2, 20)]).await.unwrap();
    assert_eq!(archive.last().await.unwrap(), None);
    assert_eq!(archive.get(&ids([2])).await.unwrap(), [None]);
    let first: Vec<_> = (1..=5).map(|id| created(&post(id, "", now))).collect();
    archive.archive(&first).await.unwrap();
    assert_eq!(
        archive.newest_by_author(AUTHOR, LAST, 10).await.unwrap(),
        ids([5, 4, 3, 1])
    );
    // Fills a cache, if there is one.
    let before = archive.get(&ids([4])).await.unwrap().remove(0).unwrap();
    assert_eq!(before.deleted_at, None);
    archive.archive(&[deleted(4, 40), deleted(4, 41)]).await.unwrap();
    // Post and deletion in one call, and a redelivered post.
    let mixed = [
        created(&post(6, "", now)),
        deleted(6, 60),
        created(&post(4, "", now)),
    ];
    archive.archive(&mixed).await.unwrap();
    archive.archive(&[deleted(6, 61)]).await.unwrap();
    archive
        .archive(&[deleted(7, 70), created(&post(7, "", now))])
        .await
        .unwrap();

    let check = async |archive: &dyn Posts| {
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
    };
    check(&*archive).await;
    check(&*engine.peer().await.posts).await;
    drop(archive);
    engine.reopen().await;
    check(&*engine.stores().posts).await;
}

pub async fn a_request_id_stands_for_its_first_post<E: Engine>(engine: &mut E) {
    let archive = engine.stores().posts;
    let now = Timestamp::now();
    let find = async |request: &str| {
        archive
            .find_by_request(AUTHOR, request)
            .await
            .unwrap()
            .map(|id| id.0)
    };
    archive.archive(&[created(&post(20, "r", now))]).await.unwrap();
    archive.archive(&[created(&post(21, "r", now))]).await.unwrap();
    assert_eq!(find("r").await, Some(20));
    // The smallest id wins, even if it is archived later.
    archive
        .archive(&[created(&post(11, "r", now)), created(&post(10, "r", now))])
        .await
        .unwrap();
    assert_eq!(find("r").await, Some(10));
    // Request ids differ by their bytes.
    archive
        .archive(&[created(&post(30, "R", now)), created(&post(31, "r ", now))])
        .await
        .unwrap();
    assert_eq!(
        (find("r").await, find("R").await, find("r ").await),
        (Some(10), Some(30), Some(31))
    );
    assert_eq!(find("").await, None);
    let other = Post {
        author: UserKey(9),
        ..post(40, "r", now)
    };
    archive.archive(&[created(&other)]).await.unwrap();
    assert_eq!(find("r").await, Some(10));
    assert_eq!(
        archive.find_by_request(UserKey(9), "r").await.unwrap(),
        Some(PostId(40))
    );
}

pub async fn a_request_id_past_its_retention_stands_for_no_post<E: Engine>(engine: &mut E) {
    let stores = engine.stores();
    let (archive, now) = (&stores.posts, Timestamp::now());
    let find = async |request: &str| {
        archive
            .find_by_request(AUTHOR, request)
            .await
            .unwrap()
            .map(|id| id.0)
    };
    let hours_ago = |hours| now.minus(Duration::from_hours(hours));
    archive
        .archive(&[created(&post(1, "old", hours_ago(25)))])
        .await
        .unwrap();
    archive
        .archive(&[created(&post(2, "young", hours_ago(23)))])
        .await
        .unwrap();
    assert_eq!((find("old").await, find("young").await), (None, Some(2)));
    // The request id of an old post stands for a new one; a redelivered old message does not change that.
    archive.archive(&[created(&post(3, "old", now))]).await.unwrap();
    archive
        .archive(&[created(&post(1, "old", hours_ago(25)))])
        .await
        .unwrap();
    assert_eq!(find("old").await, Some(3));

    stores.retention.trim(now).await.unwrap();
    assert_eq!((find("old").await, find("young").await), (Some(3), Some(2)));
    let kept = archive.get(&ids([1])).await.unwrap().remove(0).unwrap();
    assert_eq!(kept.request_id, "old");
}

pub async fn concurrent_archives_of_a_post_store_it_once<E: Engine>(engine: &mut E) {
    let both = [engine.stores().posts, engine.peer().await.posts];
    let now = Timestamp::now();
    let calls = (0..12_u64).map(|n| {
        let archive = both[n as usize % 2].clone();
        tokio::spawn(async move {
            // Overlapping batches in different orders, each with deletions.
            let mut entries: Vec<_> = (1..=40)
                .map(|id| created(&post(id, &format!("r{}", id / 2), now)))
                .collect();
            entries.push(deleted(7, 70));
            entries.rotate_left(3 * n as usize);
            archive.archive(&entries).await.unwrap();
        })
    });
    for call in futures::future::join_all(calls).await {
        call.unwrap();
    }
    for archive in &both {
        let read = archive.get(&ids(1..=40)).await.unwrap();
        assert!(read.iter().all(Option::is_some));
        assert_eq!(
            archive.newest_by_author(AUTHOR, LAST, 100).await.unwrap().len(),
            39
        );
        for id in 1..20 {
            let found = archive.find_by_request(AUTHOR, &format!("r{id}")).await.unwrap();
            assert_eq!(found, Some(PostId(2 * id)));
        }
    }
}

pub async fn big_posts_are_kept<E: Engine>(engine: &mut E) {
    let archive = engine.stores().posts;
    let now = Timestamp::now();
    let big = Post {
        text: "ä\u{1f469}\u{0}\t\u{1}'\\".repeat(20_000),
        links: (0..100)
            .map(|n| format!("https://{n}.example/{}", "l".repeat(2_000)))
            .collect(),
        media_urls: (0..100)
            .map(|n| format!("https://{n}.example/{}", "m".repeat(2_000)))
            .collect(),
        request_id: "q".repeat(1_024),
        ..post(1 << 55, "", now)
    };
    let empty = Post {
        text: String::new(),
        links: Vec::new(),
        media_urls: Vec::new(),
        push: herald_model::PushContent::default(),
        ..post(2, "x", now)
    };
    archive.archive(&[created(&big), created(&empty)]).await.unwrap();
    drop(archive);
    engine.reopen().await;
    let archive = engine.stores().posts;
    let read = archive.get(&[big.id, empty.id]).await.unwrap();
    assert!(read == [Some(big.clone()), Some(empty)]);
    assert_eq!(
        archive.find_by_request(AUTHOR, &big.request_id).await.unwrap(),
        Some(big.id)
    );
    assert_eq!(archive.last().await.unwrap(), Some(big.id));
}

pub async fn the_newest_posts_of_an_author_are_found_in_any_order_of_arrival<E: Engine>(engine: &mut E) {
    let archive = engine.stores().posts;
    let now = Timestamp::now();
    let others = |id| Post {
        author: UserKey(1 + id as u32 % 5),
        ..post(id, &format!("r{id}"), now)
    };
    for id in [5, 105, 55, 15, 95, 3, 4, 100, 1, 10, 45] {
        archive.archive(&[created(&others(id))]).await.unwrap();
    }
    let author = UserKey(1);
    let mut found = Vec::new();
    let mut up_to = LAST;
    // Page by page, as a backfill reads them.
    loop {
        let page = archive.newest_by_author(author, up_to, 2).await.unwrap();
        let Some(last) = page.last() else { break };
        up_to = PostId(last.0 - 1);
        found.extend(page);
    }
    assert_eq!(found, ids([105, 100, 95, 55, 45, 15, 10, 5]));
}

pub async fn posts_are_listed_in_pages_and_found_by_time<E: Engine>(engine: &mut E) {
    let archive = engine.stores().posts;
    assert_eq!(archive.list(None, 9).await.unwrap(), []);
    assert_eq!(archive.first_since(Timestamp(0)).await.unwrap(), PostId(1));
    let now = Timestamp::now();
    let at = |id: u64| now.plus(Duration::from_secs(id));
    // Ids are left out where a stream began anew.
    let entries = [1, 2, 5, 2_000_000].map(|id| created(&post(id, &format!("request {id}"), at(id))));
    archive.archive(&entries).await.unwrap();
    // A deletion that came before its post is no post; a deleted post is one.
    archive.archive(&[deleted(2, 7), deleted(9, 7)]).await.unwrap();
    let first = archive.list(None, 3).await.unwrap();
    assert_eq!(first, ids([1, 2, 5]));
    assert_eq!(
        archive.list(first.last().copied(), 3).await.unwrap(),
        ids([2_000_000])
    );
    assert_eq!(archive.list(Some(LAST), 3).await.unwrap(), []);
    assert_eq!(archive.first_since(at(2)).await.unwrap(), PostId(2));
    assert_eq!(
        archive.first_since(at(2_000_001)).await.unwrap(),
        PostId(2_000_001)
    );
}

pub async fn texts_of_deleted_posts_are_removed_and_no_others<E: Engine>(engine: &mut E) {
    let archive = engine.stores().posts;
    let now = Timestamp::now();
    let at = now.minus(Duration::from_hours(1));
    let posts: Vec<_> = (1..=5).map(|id| post(id, &format!("r{id}"), at)).collect();
    let of_another = Post {
        author: UserKey(4),
        ..post(6, "r6", at)
    };
    // The deletion of the post 3 comes before it.
    archive
        .archive(&[deleted(3, now.0), deleted(9, now.0)])
        .await
        .unwrap();
    archive
        .archive(&posts.iter().chain([&of_another]).map(created).collect::<Vec<_>>())
        .await
        .unwrap();
    archive
        .archive(&[deleted(2, now.0 + 1), deleted(6, now.0)])
        .await
        .unwrap();
    let of_author = async |posts: &dyn Posts, after: Option<u64>, limit| {
        let listed = posts.of_author(AUTHOR, after.map(PostId), limit).await;
        listed.unwrap().into_iter().map(|post| post.0).collect::<Vec<_>>()
    };
    assert_eq!(of_author(&*archive, None, 10).await, [1, 2, 3, 4, 5]);
    assert_eq!(of_author(&*archive, None, 2).await, [1, 2]);
    assert_eq!(of_author(&*archive, Some(2), 2).await, [3, 4]);
    assert_eq!(of_author(&*archive, Some(5), 10).await, [0; 0]);
    // Cached.
    archive.get(&ids(1..=6)).await.unwrap();

    let erased = archive.erase_texts(&ids([2, 3, 4, 3, 9, 77])).await.unwrap();
    assert_eq!(erased, 2);
    let mut archive = archive;
    for restart in [false, true] {
        if restart {
            drop(archive);
            engine.reopen().await;
            archive = engine.stores().posts;
        }
        let found = archive.get(&ids(1..=6)).await.unwrap();
        for (id, deleted_at) in [(2_u64, now.0 + 1), (3, now.0)] {
            let left = Post {
                author_id: UserId::new(Post::ERASED_AUTHOR).unwrap(),
                request_id: String::new(),
                text: String::new(),
                links: Vec::new(),
                media_urls: Vec::new(),
                push_ttl: Duration::ZERO,
                push: PushContent::default(),
                deleted_at: Some(Timestamp(deleted_at)),
                ..posts[id as usize - 1].clone()
            };
            assert!(left.is_erased());
            assert_eq!(found[id as usize - 1], Some(left));
            let request = archive.find_by_request(AUTHOR, &format!("r{id}")).await;
            assert_eq!(request.unwrap(), None);
        }
        for id in [1, 4, 5_usize] {
            assert_eq!(found[id - 1].as_ref(), Some(&posts[id - 1]));
            let request = archive.find_by_request(AUTHOR, &format!("r{id}")).await;
            assert_eq!(request.unwrap(), Some(PostId(id as u64)));
        }
        assert_eq!(found[5].as_ref().unwrap().text, of_another.text);
        assert_eq!(of_author(&*archive, None, 10).await, [1, 4, 5]);
        assert_eq!(
            archive.newest_by_author(AUTHOR, LAST, 10).await.unwrap(),
            ids([5, 4, 1])
        );
        assert_eq!(archive.list(None, 10).await.unwrap(), ids(1..=6));
        assert_eq!(archive.erase_texts(&ids([2, 3])).await.unwrap(), 0);
        // Redelivered.
        archive
            .archive(&[created(&posts[1]), deleted(2, now.0 + 9)])
            .await
            .unwrap();
    }
    // A request id that stands for another post stays.
    let again = post(20, "again", at);
    let other = post(21, "again", at);
    archive
        .archive(&[created(&again), created(&other), deleted(21, now.0)])
        .await
        .unwrap();
    assert_eq!(archive.erase_texts(&ids([21])).await.unwrap(), 1);
    assert_eq!(
        archive.find_by_request(AUTHOR, "again").await.unwrap(),
        Some(PostId(20))
    );
}

pub async fn many_texts_of_an_author_are_listed_and_removed<E: Engine>(engine: &mut E) {
    let archive = engine.stores().posts;
    let now = Timestamp::now();
    let posts: Vec<_> = (1..=5_000_u64)
        .map(|id| post(id, &format!("r{id}"), now))
        .collect();
    for posts in posts.chunks(1_000) {
        let mut entries: Vec<_> = posts.iter().map(created).collect();
        entries.extend(
            posts
                .iter()
                .filter(|post| post.id.0 % 2 == 0)
                .map(|post| deleted(post.id.0, now.0)),
        );
        archive.archive(&entries).await.unwrap();
    }
    let mut listed = Vec::new();
    loop {
        let page = archive
            .of_author(AUTHOR, listed.last().copied(), 999)
            .await
            .unwrap();
        listed.extend(&page);
        if page.len() < 999 {
            break;
        }
    }
    assert_eq!(listed, ids(1..=5_000));
    assert_eq!(archive.erase_texts(&listed).await.unwrap(), 2_500);
    let left = archive.of_author(AUTHOR, None, 5_000).await.unwrap();
    assert_eq!(left, ids((1..=5_000).step_by(2)));
}
