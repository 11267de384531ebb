//! Rows that can't be decoded: a specific error, and nothing else is affected.

use herald_model::{Address, Channel, ChunkId, PostId, Recipients, UserKey, time::Timestamp};
use herald_store::{
    Archived, DeadLetterFilter, DeadLetterId, DeadLetterState, ErrorKind, ExpectedRevision, OperationKind,
    Order, Outcome, OutcomeDetails, PreferencesChange, Result, Settlement,
};

use crate::{
    dead_letters::{self, begin, claim, dead_letter, redrive_lease, versions},
    engine::Engine,
    sample::{AUTHOR, plan, post, set},
};

/// A row to damage.
#[derive(Debug, Clone, Copy)]
pub enum Row {
    /// The devices of a user.
    Devices(UserKey),
    /// The preferences of a user.
    Preferences(UserKey),
    /// The recipients of a planned push chunk.
    PushChunk(PostId, ChunkId),
    /// The outcome of a push chunk.
    PushOutcome(PostId, ChunkId),
    /// A post of the archive.
    Post(PostId),
    /// What a dead letter holds.
    DeadLetter(DeadLetterId),
}

/// What is written in the place of the row: no row of any engine starts so.
pub const GARBAGE: &[u8] = &[0xff, 0xff, 0xff];

const POST: PostId = PostId(7);

fn kind<T>(result: Result<T>) -> Option<ErrorKind> {
    result.err().map(|error| error.kind())
}

pub async fn damaged_devices_fail_only_their_user<E: Engine>(engine: &mut E) {
    let address = |n: u32| Address::Webhook {
        url: format!("https://a.example/{n}"),
        secret: vec![7; 32],
    };
    let users = [7, 8].map(UserKey);
    for user in users {
        engine
            .stores()
            .devices
            .register(user, address(1), Timestamp(1))
            .await
            .unwrap();
    }
    engine.damage(Row::Devices(users[0])).await;
    let devices = engine.stores().devices;
    let register = |user| devices.register(user, address(2), Timestamp(1));
    // In one batch, if the engine makes batches.
    let (damaged, good) = tokio::join!(register(users[0]), register(users[1]));
    assert_eq!(kind(damaged), Some(ErrorKind::Corrupt));
    good.unwrap();
    assert_eq!(kind(devices.of(&users[..1]).await), Some(ErrorKind::Corrupt));
    assert_eq!(devices.of(&users[1..]).await.unwrap()[0].len(), 2);
}

pub async fn damaged_preferences_fail_only_their_user<E: Engine>(engine: &mut E) {
    let users = [7, 8].map(UserKey);
    let mute = |author| PreferencesChange {
        mute: vec![UserKey(author)],
        ..PreferencesChange::default()
    };
    for user in users {
        engine.stores().preferences.update(user, &mute(1)).await.unwrap();
    }
    engine.damage(Row::Preferences(users[0])).await;
    let preferences = engine.stores().preferences;
    let change = mute(2);
    let update = |user| preferences.update(user, &change);
    // In one batch, if the engine makes batches.
    let (damaged, good) = tokio::join!(update(users[0]), update(users[1]));
    assert_eq!(kind(damaged), Some(ErrorKind::Corrupt));
    assert_eq!(good.unwrap().muted.len(), 2);
    assert_eq!(kind(preferences.of(&users[..1]).await), Some(ErrorKind::Corrupt));
    assert_eq!(preferences.of(&users[1..]).await.unwrap()[0].muted.len(), 2);
}

pub async fn damaged_devices_and_preferences_are_erased<E: Engine>(engine: &mut E) {
    let users @ [damaged, good] = [7, 8].map(UserKey);
    let web_push = || Address::WebPush {
        endpoint: "https://push.example/1".into(),
        p256dh: vec![7; 65],
        auth: vec![7; 16],
    };
    let webhook = || Address::Webhook {
        url: "https://a.example/1".into(),
        secret: vec![7; 32],
    };
    let mute = PreferencesChange {
        push_enabled: Some(false),
        mute: vec![UserKey(1)],
        ..PreferencesChange::default()
    };
    for user in users {
        let stores = engine.stores();
        for address in [web_push(), webhook()] {
            stores
                .devices
                .register(user, address, Timestamp(1))
                .await
                .unwrap();
        }
        stores.preferences.update(user, &mute).await.unwrap();
    }
    engine.damage(Row::Devices(damaged)).await;
    engine.damage(Row::Preferences(damaged)).await;
    let stores = engine.stores();
    let (devices, preferences) = (stores.devices.clone(), stores.preferences.clone());
    drop(stores);
    assert_eq!(kind(devices.of(&[damaged]).await), Some(ErrorKind::Corrupt));
    assert_eq!(kind(preferences.of(&[damaged]).await), Some(ErrorKind::Corrupt));

    // How many they were can't be read.
    for count in [1, 0] {
        assert_eq!(devices.erase(damaged).await.unwrap(), count);
        preferences.erase(damaged).await.unwrap();
    }
    let left = devices.of(&users).await.unwrap();
    assert_eq!([left[0].len(), left[1].len()], [0, 2]);
    let left = preferences.of(&users).await.unwrap();
    assert_eq!(left[0], herald_model::Preferences::default());
    assert_eq!((left[1].push_enabled, left[1].muted.len()), (false, 1));
    assert!(devices.has_web_push().await.unwrap());

    let again = devices.register(damaged, webhook(), Timestamp(2)).await.unwrap();
    assert_eq!(devices.of(&[damaged]).await.unwrap()[0], [again]);
    assert_eq!(devices.erase(good).await.unwrap(), 2);
    preferences.erase(good).await.unwrap();
    assert!(!devices.has_web_push().await.unwrap());
    drop((devices, preferences));
    engine.reopen().await;
    let stores = engine.stores();
    let left = stores.devices.of(&users).await.unwrap();
    assert_eq!([left[0].len(), left[1].len()], [1, 0]);
    let left = stores.preferences.of(&users).await.unwrap();
    assert_eq!(left, vec![herald_model::Preferences::default(); 2]);
}

fn settlement(chunk: &Recipients, base: u64, delivered: Recipients) -> Settlement {
    Settlement {
        post: POST,
        channel: Channel::Push,
        chunk: chunk.chunk_id(),
        base: ExpectedRevision::Revision(base),
        outcome: Outcome::Mixed {
            delivered,
            suppressed: set([]),
            expired: set([]),
            dead: set([]),
            details: OutcomeDetails::default(),
        },
        at: Timestamp(5),
        keep_claim: None,
    }
}

pub async fn a_damaged_outcome_fails_only_its_chunk<E: Engine>(engine: &mut E) {
    let chunks = [set(1..=4), set(5..=9)];
    {
        let ledger = engine.stores().ledger;
        let planned = [(Channel::Push, &chunks[0]), (Channel::Push, &chunks[1])];
        ledger.plan(plan(POST, 0, true, &planned)).await.unwrap();
        for (chunk, first) in chunks.iter().zip([1, 5]) {
            ledger.settle(&settlement(chunk, 0, set([first]))).await.unwrap();
        }
    }
    engine.damage(Row::PushOutcome(POST, chunks[0].chunk_id())).await;
    let ledger = engine.stores().ledger;
    let read = |chunk: &Recipients| ledger.outcome(POST, Channel::Push, chunk.chunk_id());
    assert_eq!(kind(read(&chunks[0]).await), Some(ErrorKind::Corrupt));
    let next = [
        settlement(&chunks[0], 1, set([1, 2])),
        settlement(&chunks[1], 1, set([5, 6])),
    ];
    let (_, good) = tokio::join!(ledger.settle(&next[0]), ledger.settle(&next[1]));
    assert_eq!(good.unwrap(), 2);
    assert_eq!(read(&chunks[1]).await.unwrap().unwrap().revision, 2);
}

pub async fn a_damaged_chunk_fails_only_its_plan<E: Engine>(engine: &mut E) {
    let chunk = set(1..=4);
    let other = PostId(POST.0 + 1);
    let plan_of = |post| plan(post, 0, true, &[(Channel::Push, &chunk)]);
    for post in [POST, other] {
        engine.stores().ledger.plan(plan_of(post)).await.unwrap();
    }
    engine.damage(Row::PushChunk(POST, chunk.chunk_id())).await;
    let ledger = engine.stores().ledger;
    let (damaged, good) = tokio::join!(ledger.plan(plan_of(POST)), ledger.plan(plan_of(other)));
    assert_eq!(kind(damaged), Some(ErrorKind::Corrupt));
    assert_eq!(good.unwrap(), plan_of(other));
    assert_eq!(kind(ledger.audit(POST).await), Some(ErrorKind::Corrupt));
    assert_eq!(ledger.audit(other).await.unwrap().unwrap().chunks.len(), 1);
    assert_eq!(ledger.posts(None, 10).await.unwrap(), [POST, other]);
}

pub async fn a_damaged_post_fails_only_its_readers<E: Engine>(engine: &mut E) {
    let created = |id: PostId| Archived::Created(post(id.0, &format!("r{id}"), Timestamp::now()));
    let (damaged, good, new) = (POST, PostId(POST.0 + 1), PostId(POST.0 + 2));
    engine
        .stores()
        .posts
        .archive(&[created(damaged), created(good)])
        .await
        .unwrap();
    engine.damage(Row::Post(damaged)).await;
    let posts = engine.stores().posts;
    assert_eq!(kind(posts.get(&[damaged]).await), Some(ErrorKind::Corrupt));
    assert!(posts.get(&[good]).await.unwrap()[0].is_some());
    // It stays what a request created, and other posts are archived.
    assert_eq!(
        posts
            .find_by_request(AUTHOR, &format!("r{damaged}"))
            .await
            .unwrap(),
        Some(damaged)
    );
    posts.archive(&[created(new)]).await.unwrap();
    assert!(posts.get(&[new]).await.unwrap()[0].is_some());
    assert_eq!(posts.last().await.unwrap(), Some(new));
    assert_eq!(
        posts.newest_by_author(AUTHOR, new, 9).await.unwrap(),
        [new, good, damaged]
    );
}

pub async fn a_damaged_post_is_erased_whole<E: Engine>(engine: &mut E) {
    let request = |id: PostId| format!("r{id}");
    let created = |id: PostId| Archived::Created(post(id.0, &request(id), Timestamp::now()));
    let (good, shown, deleted) = (PostId(6), POST, PostId(8));
    let all = [good, shown, deleted];
    let (deleted_at, at) = (Timestamp(5), Timestamp(9));
    let archive = [
        created(good),
        created(shown),
        created(deleted),
        Archived::Deleted {
            post: deleted,
            at: deleted_at,
        },
    ];
    engine.stores().posts.archive(&archive).await.unwrap();
    for damaged in [shown, deleted] {
        engine.damage(Row::Post(damaged)).await;
    }
    let posts = engine.stores().posts;
    assert_eq!(posts.of_author(AUTHOR, None, 9).await.unwrap(), all);
    let others = posts.erase_damaged(UserKey(AUTHOR.0 + 1), &all, at).await;
    assert_eq!(others.unwrap(), [], "they are posts of another author");
    assert_eq!(kind(posts.get(&[shown]).await), Some(ErrorKind::Corrupt));
    assert_eq!(posts.of_author(AUTHOR, None, 9).await.unwrap(), all);
    for changed in [vec![shown, deleted], Vec::new()] {
        let erased = posts.erase_damaged(AUTHOR, &all, at).await.unwrap();
        assert_eq!(erased, changed);
    }
    let read = posts.get(&all).await.unwrap();
    let read: Vec<_> = read.into_iter().map(Option::unwrap).collect();
    for (post, deleted_at) in read[1..].iter().zip([at, deleted_at]) {
        assert!(post.is_erased() && post.author == AUTHOR, "{post:?}");
        assert_eq!(post.deleted_at, Some(deleted_at));
    }
    assert!(!read[0].is_erased());
    assert_eq!(posts.newest_by_author(AUTHOR, deleted, 9).await.unwrap(), [good]);
    assert_eq!(posts.of_author(AUTHOR, None, 9).await.unwrap(), [good]);
    for (id, found) in [(good, Some(good)), (shown, None), (deleted, None)] {
        assert_eq!(posts.find_by_request(AUTHOR, &request(id)).await.unwrap(), found);
    }
    // What is left is like any erased post.
    posts.archive(&[created(shown)]).await.unwrap();
    assert!(
        posts.get(&[shown]).await.unwrap()[0]
            .as_ref()
            .unwrap()
            .is_erased()
    );
    assert_eq!(posts.erase_texts(&[shown, deleted]).await.unwrap(), 0);
}

pub async fn a_damaged_dead_letter_is_left_out_and_hinders_no_redrive<E: Engine>(engine: &mut E) {
    let all = [1, 2, 3];
    let letters = all.map(dead_letter);
    engine.stores().dead_letters.insert(&letters).await.unwrap();
    engine.damage(Row::DeadLetter(DeadLetterId(2))).await;
    let stores = engine.stores();
    let of = &*stores.dead_letters;
    assert_eq!(kind(of.get(&[DeadLetterId(2)]).await), Some(ErrorKind::Corrupt));
    let listed = dead_letters::ids(of, &DeadLetterFilter::default(), Order::OldestFirst, 1).await;
    assert_eq!(listed, [1, 3]);
    let fence = redrive_lease(&stores).await;
    let operation = begin(of, OperationKind::Redrive, &versions(all, 0)).await;
    let step = claim(&stores, operation.id, 9, Timestamp(9), &fence).await;
    let claimed: Vec<_> = step
        .dead_letters
        .iter()
        .map(|one| (one.id.0, one.state))
        .collect();
    assert_eq!(claimed, [1, 3].map(|id| (id, DeadLetterState::Redriving)));
    assert_eq!((step.operation.reached, step.operation.skipped), (3, 1));
}
