mod find;

use std::{collections::BTreeSet, time::Duration};

use herald_model::{Channel, ChunkId, Lane, PostId, UserKey};
use proptest::prelude::*;

use super::*;
use crate::{ActKind, Cause, DeadLetters, Origin, Payload, embedded::testing::Store};

const NOW: Micros = Micros(1_700_000_000_000_000);

fn open(store: &Store) -> LetterBook {
    LetterBook::open(store.database()).unwrap()
}

fn letter(id: u64) -> Letter {
    Letter {
        id: LetterId(id),
        origin: Origin {
            stream: "PUSH".into(),
            consumer: "push-normal".into(),
            sequence: 1_000 + id,
        },
        kind: "push".into(),
        original_sequence: 1_000 + id,
        subject: "push.v1.deliver.normal".into(),
        message_type: "herald.mesh.v1.PushChunk".into(),
        cause: Cause::Terminated,
        reason: format!("push gave up: webhook status 503: {id}"),
        group: 7,
        group_reason: "push gave up: webhook status 503".into(),
        attempts: 20,
        published_at: NOW.minus(Duration::from_mins(5)),
        first_failed_at: NOW.plus(Duration::from_secs(id)),
        last_failed_at: NOW.plus(Duration::from_secs(id)),
        stored_at: NOW.plus(Duration::from_secs(id)),
        post: Some(PostId(id)),
        author: Some(UserKey(3)),
        channel: Some(Channel::Push),
        chunk: Some(ChunkId(u64::MAX - id)),
        lane: Some(Lane::Normal),
        recipients: 12,
        trace_id: "4bf92f3577b34da6a3ce929d0e0e4736".into(),
        payload: Payload::Kept,
        payload_bytes: 100,
        state: LetterState::Open,
        round: 0,
        redrive: None,
        acts: Vec::new(),
        redrive_sequence: 0,
        updated_at: NOW,
    }
}

async fn fill(letters: &LetterBook, ids: std::ops::RangeInclusive<u64>) {
    let all: Vec<_> = ids.map(letter).collect();
    assert!(letters.insert(&all).await.unwrap().iter().all(|one| one.new));
}

fn act(kind: ActKind) -> NewAct {
    NewAct {
        kind,
        actor: "ops@host".into(),
        at: NOW,
        selection: bytes::Bytes::from_static(b"all of them"),
        excluded: 0,
        rate_max: 0,
        failures_max: 100,
        target: None,
    }
}

fn chosen(ids: impl IntoIterator<Item = u64>, round: u32) -> Vec<Chosen> {
    let chosen = |id| Chosen {
        id: LetterId(id),
        round,
    };
    ids.into_iter().map(chosen).collect()
}

fn failed_again(id: u64, round: u32) -> Reopening {
    Reopening {
        letter: LetterId(id),
        round,
        cause: Cause::MaxDeliveries,
        reason: "no words".into(),
        group: 8,
        group_reason: "no words".into(),
        failed_at: NOW.plus(Duration::from_hours(1)),
    }
}

async fn get(letters: &LetterBook, id: u64) -> Letter {
    letters.get(&[LetterId(id)]).await.unwrap().remove(0).unwrap()
}

async fn ids(letters: &LetterBook, filter: &LetterFilter, order: Order) -> Vec<u64> {
    let page = letters.scan(filter, order, None, 1_000_000).await.unwrap();
    assert_eq!(page.next, None);
    page.letters.iter().map(|letter| letter.id.0).collect()
}

#[tokio::test]
async fn a_message_has_one_letter_however_often_it_is_told_of() {
    let mut store = Store::new();
    let letters = open(&store);
    let again = Letter {
        origin: letter(1).origin,
        ..letter(3)
    };
    let inserted = letters
        .insert(&[letter(1), letter(2), again.clone()])
        .await
        .unwrap();
    let told: Vec<_> = inserted.iter().map(|one| (one.id.0, one.new)).collect();
    assert_eq!(told, [(1, true), (2, true), (1, false)]);
    drop(letters);
    store.reopen();
    let letters = open(&store);
    let inserted = letters.insert(&[again]).await.unwrap();
    assert_eq!((inserted[0].id.0, inserted[0].new), (1, false));
    assert_eq!(get(&letters, 1).await, letter(1));
    assert_eq!(letters.count(LetterState::Open).await.unwrap(), 2);
    assert_eq!(
        letters.get(&[LetterId(3), LetterId(2)]).await.unwrap(),
        [None, Some(letter(2))]
    );
}

#[tokio::test]
async fn a_redrive_goes_its_way_through_the_states_and_over_a_restart() {
    let mut store = Store::new();
    let letters = open(&store);
    fill(&letters, 1..=5).await;
    let begun = letters
        .begin(&act(ActKind::Redrive), &chosen(1..=5, 0))
        .await
        .unwrap();
    assert_eq!(
        (begun.id, begun.state, begun.frozen),
        (ActId(1), ActState::Running, 5)
    );
    let step = letters.claim(begun.id, 3, 40, NOW).await.unwrap();
    assert_eq!(step.letters.len(), 3);
    assert!(
        step.letters
            .iter()
            .all(|letter| letter.state == LetterState::Redriving
                && letter.round == 1
                && letter.redrive == Some(begun.id)
                && letter.acts == [begun.id])
    );
    letters
        .sent(begun.id, &[(chosen([1], 1)[0], 41), (chosen([2], 1)[0], 42)])
        .await
        .unwrap();

    drop(letters);
    store.reopen();
    let letters = open(&store);
    let running = letters.running().await.unwrap();
    assert_eq!(running.len(), 1);
    assert_eq!(
        (
            running[0].reached,
            running[0].redrive_after,
            running[0].in_flight()
        ),
        (3, 40, 3)
    );
    assert_eq!(running[0].what, act(ActKind::Redrive));
    assert_eq!(get(&letters, 2).await.redrive_sequence, 42);
    assert_eq!(get(&letters, 3).await.redrive_sequence, 0);

    // One is done, one fails, and each of it is told twice.
    for _ in 0..2 {
        letters.resolve(&chosen([1], 1), NOW).await.unwrap();
        letters.reopen(&failed_again(2, 1)).await.unwrap();
    }
    let now = letters.act(begun.id).await.unwrap().unwrap();
    assert_eq!((now.resolved, now.failed, now.in_flight()), (1, 1, 1));
    let failed = get(&letters, 2).await;
    assert_eq!(
        (failed.state, failed.round, failed.group),
        (LetterState::Open, 1, 8)
    );
    assert_eq!(failed.first_failed_at, letter(2).first_failed_at);
    assert!(failed.last_failed_at > failed.first_failed_at);

    // The third can't be sent; the rest is left when it stops.
    letters.reopen(&failed_again(3, 1)).await.unwrap();
    let now = letters.act(begun.id).await.unwrap().unwrap();
    assert_eq!((now.failed, now.in_flight()), (2, 0));
    assert_eq!(get(&letters, 3).await.state, LetterState::Open);
    let now = letters
        .finish(begun.id, ActState::Stopped, "1 failed again", NOW)
        .await
        .unwrap();
    assert!(now.is_over());
    let again = letters
        .finish(begun.id, ActState::Cancelled, "", NOW)
        .await
        .unwrap();
    assert_eq!(again.state, ActState::Stopped);
    assert!(
        letters
            .claim(begun.id, 10, 0, NOW)
            .await
            .unwrap()
            .letters
            .is_empty()
    );
    assert_eq!(letters.running().await.unwrap(), []);
    assert_eq!(get(&letters, 5).await, letter(5));
    let by_state = [
        letters.count(LetterState::Open).await.unwrap(),
        letters.count(LetterState::Resolved).await.unwrap(),
    ];
    assert_eq!(by_state, [4, 1]);

    // What was thought done and failed after all is open again, and the redrive says so.
    assert_eq!(letters.reopen(&failed_again(1, 1)).await.unwrap(), Reopened::Open);
    let now = letters.act(begun.id).await.unwrap().unwrap();
    assert_eq!((now.resolved, now.failed), (0, 3));
    assert_eq!(
        letters.reopen(&failed_again(9, 1)).await.unwrap(),
        Reopened::Unknown
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn redrives_of_the_same_letters_send_each_once() {
    let store = Store::new();
    let letters = Arc::new(open(&store));
    fill(&letters, 1..=3_000).await;
    let redrives = (0..4).map(|_| {
        let letters = Arc::clone(&letters);
        tokio::spawn(async move {
            let begun = letters
                .begin(&act(ActKind::Redrive), &chosen(1..=3_000, 0))
                .await
                .unwrap();
            let mut sent = Vec::new();
            loop {
                let step = letters.claim(begun.id, 700, 0, NOW).await.unwrap();
                sent.extend(step.letters.iter().map(|letter| letter.id.0));
                if step.act.reached == step.act.frozen {
                    assert_eq!(step.act.skipped + sent.len() as u64, 3_000);
                    return sent;
                }
            }
        })
    });
    let sent = futures::future::join_all(redrives).await;
    let sent: Vec<u64> = sent.into_iter().flat_map(|sent| sent.unwrap()).collect();
    assert_eq!(sent.len(), 3_000);
    assert_eq!(sent.iter().collect::<BTreeSet<_>>().len(), 3_000);
    // One that failed again since it was chosen is left to those who chose it as it is now.
    letters.reopen(&failed_again(1, 1)).await.unwrap();
    let late = letters
        .begin(&act(ActKind::Redrive), &chosen([1], 0))
        .await
        .unwrap();
    let step = letters.claim(late.id, 1, 0, NOW).await.unwrap();
    assert_eq!((step.letters.len(), step.act.skipped), (0, 1));
}

#[tokio::test]
async fn a_discard_takes_open_letters_and_leaves_a_record() {
    let mut store = Store::new();
    let letters = open(&store);
    fill(&letters, 1..=2_500).await;
    let redrive = letters
        .begin(&act(ActKind::Redrive), &chosen([2], 0))
        .await
        .unwrap();
    letters.claim(redrive.id, 1, 0, NOW).await.unwrap();
    let discard = letters
        .begin(&act(ActKind::Discard), &chosen(1..=2_400, 0))
        .await
        .unwrap();
    let mut steps = 0;
    let done = loop {
        let step = letters.discard(discard.id, 1_000, NOW).await.unwrap();
        steps += 1;
        if step.act.state == ActState::Done {
            break step.act;
        }
    };
    assert_eq!(
        (steps, done.acted(), done.skipped, done.is_over()),
        (3, 2_399, 1, true)
    );
    assert_eq!(letters.count(LetterState::Discarded).await.unwrap(), 2_399);
    assert_eq!(
        letters.reopen(&failed_again(1, 0)).await.unwrap(),
        Reopened::Known
    );
    let nothing = letters.begin(&act(ActKind::Discard), &[]).await.unwrap();
    assert!(nothing.is_over());

    drop(letters);
    store.reopen();
    let letters = open(&store);
    assert_eq!(letters.count(LetterState::Discarded).await.unwrap(), 2_399);
    let all: Vec<_> = letters
        .acts(None, 10)
        .await
        .unwrap()
        .iter()
        .map(|act| act.id.0)
        .collect();
    assert_eq!(all, [3, 2, 1]);
    let some = letters.acts(Some(ActId(3)), 1).await.unwrap();
    assert_eq!(
        (some[0].id, some[0].what.kind, &some[0].what.actor[..]),
        (ActId(2), ActKind::Discard, "ops@host")
    );
    // Ids go on.
    let next = letters
        .begin(&act(ActKind::Cancel), &chosen([], 0))
        .await
        .unwrap();
    assert_eq!(next.id, ActId(4));
}

#[tokio::test]
async fn what_is_old_is_forgotten_unless_it_is_under_way() {
    let store = Store::new();
    let letters = open(&store);
    fill(&letters, 1..=10).await;
    let redrive = letters
        .begin(&act(ActKind::Redrive), &chosen([2], 0))
        .await
        .unwrap();
    letters.claim(redrive.id, 1, 0, NOW).await.unwrap();
    letters.finish(redrive.id, ActState::Done, "", NOW).await.unwrap();
    let removed = letters.trim(letter(6).stored_at, NOW).await.unwrap();
    assert_eq!(removed, 4);
    assert_eq!(
        ids(&letters, &LetterFilter::default(), Order::OldestFirst).await,
        [2, 6, 7, 8, 9, 10]
    );
    assert_eq!(letters.count(LetterState::Open).await.unwrap(), 5);
    assert!(letters.act(redrive.id).await.unwrap().is_some());
    letters
        .trim(letter(6).stored_at, NOW.plus(Duration::from_secs(1)))
        .await
        .unwrap();
    assert!(letters.act(redrive.id).await.unwrap().is_none());
    // The message of a forgotten letter, should it be told of again, is news.
    assert!(letters.insert(&[letter(1)]).await.unwrap()[0].new);
}

proptest! {
    #[test]
    fn what_an_act_is_about_reads_back(letters in prop::collection::vec((any::<u64>(), any::<u32>()), 0..100)) {
        let letters: Vec<_> = letters.into_iter().map(|(id, round)| Chosen { id: LetterId(id), round }).collect();
        prop_assert_eq!(row::decode_frozen(&row::encode_frozen(&letters)).unwrap(), letters);
    }

    #[test]
    fn any_bytes_are_a_letter_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
        let _ = row::decode_letter(LetterId(1), &bytes);
        let _ = row::decode_act(ActId(1), &bytes);
        let _ = row::decode_frozen(&bytes);
    }
}
