//! Ids and limits at the ends of their ranges, which no row has: callers pass what clients and messages name.

use herald_model::{Channel, ChunkId, FollowVersion, PostId, UserKey, time::Timestamp};
use herald_store::{
    Archived, ChunkRef, Counted, DeadLetterFilter, DeadLetterId, ErrorKind, FollowAction, FollowChange,
    OperationId, OperationKind, Order,
};

use crate::{
    dead_letters::{begin, dead_letter},
    engine::Engine,
    sample::{AUTHOR, plan, post, set},
};

const LAST_USER: UserKey = UserKey(u32::MAX);

/// An id that is beyond those of rows, and the greatest one of the numbers that engines keep with a sign.
const BEYOND: [u64; 2] = [u64::MAX, i64::MAX as u64];

pub async fn ids_beyond_all_rows_are_absent<E: Engine>(engine: &mut E) {
    let stores = engine.stores();
    stores
        .posts
        .archive(&[Archived::Created(post(1, "r", Timestamp::now()))])
        .await
        .unwrap();
    let chunk = set([1, 2]);
    let planned = plan(PostId(1), 0, true, &[(Channel::Push, &chunk)]);
    stores.ledger.plan(planned).await.unwrap();
    stores.dead_letters.insert(&[dead_letter(1)]).await.unwrap();
    let operation = begin(&*stores.dead_letters, OperationKind::Discard, &[]).await;
    for id in BEYOND {
        let (of_post, of_chunk) = (PostId(id), ChunkId(id));
        assert_eq!(stores.posts.get(&[of_post]).await.unwrap(), [None]);
        assert_eq!(
            stores.posts.newest_by_author(AUTHOR, of_post, 9).await.unwrap(),
            [PostId(1)]
        );
        let ledger = &*stores.ledger;
        assert_eq!(
            ledger.outcome(of_post, Channel::Push, of_chunk).await.unwrap(),
            None
        );
        assert_eq!(ledger.counts(of_post).await.unwrap(), None);
        assert_eq!(ledger.audit(of_post).await.unwrap(), None);
        assert_eq!(ledger.posts(Some(of_post), 9).await.unwrap(), []);
        assert_eq!(
            ledger
                .recipients(of_post, Channel::Push, None, None, 9)
                .await
                .unwrap(),
            []
        );
        assert_eq!(
            ledger
                .recipients(PostId(1), Channel::Push, None, Some(LAST_USER), 9)
                .await
                .unwrap(),
            []
        );
        let totals = &*stores.totals;
        assert_eq!(totals.seen("EVENTS", &[id]).await.unwrap(), [false]);
        assert_eq!(totals.post_totals(of_post).await.unwrap(), None);
        let counted = ChunkRef {
            post: of_post,
            channel: Channel::Push,
            chunk: of_chunk,
        };
        assert_eq!(totals.counted(&[counted]).await.unwrap(), [Counted::default()]);
        let dead_letters = &*stores.dead_letters;
        let after = Some(DeadLetterId(id));
        assert_eq!(dead_letters.get(&[DeadLetterId(id)]).await.unwrap(), [None]);
        for (order, found) in [(Order::OldestFirst, 0), (Order::NewestFirst, 1)] {
            let page = dead_letters
                .scan(&DeadLetterFilter::default(), order, after, 9)
                .await;
            assert_eq!(page.unwrap().dead_letters.len(), found, "{order:?}");
        }
        let of_group = DeadLetterFilter {
            group: Some(id),
            post: Some(of_post),
            ..DeadLetterFilter::default()
        };
        assert_eq!(dead_letters.groups(&of_group).await.unwrap().dead_letters(), 0);
        assert_eq!(dead_letters.operation(OperationId(id)).await.unwrap(), None);
        let listed = dead_letters.operations(Some(OperationId(id)), 9).await.unwrap();
        assert_eq!(listed, std::slice::from_ref(&operation));
        let version = stores
            .follows
            .followers(AUTHOR, Some(FollowVersion(id)), None, 9)
            .await;
        assert_eq!(version.unwrap_err().kind(), ErrorKind::UnknownVersion);
    }
    assert_eq!(
        stores.users.ids(&[LAST_USER, UserKey(0)]).await.unwrap(),
        [None, None]
    );
    assert_eq!(stores.totals.hour_totals(0, u32::MAX).await.unwrap(), []);
    assert_eq!(stores.totals.hour_totals(5, 4).await.unwrap(), []);
}

pub async fn a_limit_of_any_size_lists_what_there_is<E: Engine>(engine: &mut E) {
    let stores = engine.stores();
    let follow = FollowChange {
        follower: LAST_USER,
        author: LAST_USER,
        action: FollowAction::Follow { notify: None },
    };
    stores.follows.apply(&[follow]).await.unwrap();
    stores
        .posts
        .archive(&[Archived::Created(post(1, "r", Timestamp::now()))])
        .await
        .unwrap();
    let chunk = set([1, u32::MAX]);
    let planned = plan(PostId(1), 0, true, &[(Channel::Push, &chunk)]);
    stores.ledger.plan(planned).await.unwrap();
    stores.dead_letters.insert(&[dead_letter(1)]).await.unwrap();
    begin(&*stores.dead_letters, OperationKind::Discard, &[]).await;
    let max = usize::MAX;
    let page = stores
        .follows
        .followers(LAST_USER, None, None, max)
        .await
        .unwrap();
    assert_eq!((page.last, page.complete), (Some(LAST_USER), true));
    let page = stores
        .follows
        .followers(LAST_USER, None, Some(LAST_USER), max)
        .await
        .unwrap();
    assert_eq!((page.last, page.complete), (None, true));
    assert_eq!(
        stores
            .follows
            .following(LAST_USER, None, max)
            .await
            .unwrap()
            .len(),
        1
    );
    assert_eq!(
        stores
            .follows
            .following(LAST_USER, Some(LAST_USER), max)
            .await
            .unwrap(),
        []
    );
    let newest = stores.posts.newest_by_author(AUTHOR, PostId(u64::MAX), max).await;
    assert_eq!(newest.unwrap(), [PostId(1)]);
    let ledger = &*stores.ledger;
    assert_eq!(ledger.posts(None, max).await.unwrap(), [PostId(1)]);
    let listed = ledger
        .recipients(PostId(1), Channel::Push, None, None, max)
        .await
        .unwrap();
    assert_eq!(
        listed.iter().map(|one| one.user.0).collect::<Vec<_>>(),
        [1, u32::MAX]
    );
    let page = stores
        .dead_letters
        .scan(&DeadLetterFilter::default(), Order::NewestFirst, None, max)
        .await
        .unwrap();
    assert_eq!((page.dead_letters.len(), page.next), (1, None));
    assert_eq!(stores.dead_letters.operations(None, max).await.unwrap().len(), 1);
}
