//! A crash while everything is written: what was answered is there afterwards, and no write is there by half.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use herald_model::{Address, Channel, PostId, UserId, UserKey, time::Timestamp};
use herald_store::{
    Archived, Counts, DeadLetterId, ErrorKind, ExpectedRevision, FollowAction, FollowChange, Outcome,
    PreferencesChange, Result, Settlement, Stores, TotalsBatch,
};

use crate::{
    cluster::OnRedis,
    dead_letters::dead_letter,
    embedded::EmbeddedEngine,
    engine::Engine,
    sample::{lease, plan, post, set},
};

/// Set for the child process: the place of the store and the first number to write, separated by a space.
const TASK: &str = "HERALD_STORE_CRASH_WRITER";

/// What is written, and for how many answers of each the crash waits.
const KINDS: [&str; 9] = [
    "users", "follows", "post", "ledger", "device", "mute", "totals", "dead", "timeline",
];
const ANSWERS_MIN: usize = 12;

const FOLLOWED: UserKey = UserKey(1);
const MUTING: UserKey = UserKey(2);
const HOUR: u32 = 1_000;
const RECIPIENTS: u32 = 500;

fn user_ids(n: u64) -> [UserId; 2] {
    ["a", "b"].map(|name| UserId::new(format!("crash-{n}-{name}")).unwrap())
}

/// Writes the `n`th item of a kind.
async fn write(stores: &Stores, kind: &str, n: u64) -> Result<()> {
    let number = n as u32;
    match kind {
        "users" => stores.users.intern(&user_ids(n)).await.map(drop),
        "follows" => {
            let follow = |follower| FollowChange {
                follower: UserKey(follower),
                author: FOLLOWED,
                action: FollowAction::Follow { notify: Some(true) },
            };
            stores
                .follows
                .apply(&[follow(2 * number), follow(2 * number + 1)])
                .await
                .map(drop)
        }
        "post" => {
            let created = Archived::Created(post(n, &format!("r{n}"), Timestamp::now()));
            stores.posts.archive(&[created]).await
        }
        "ledger" => {
            let chunk = set([number, number + 1]);
            let chunks = [(Channel::Push, &chunk), (Channel::Timeline, &chunk)];
            stores.ledger.plan(plan(PostId(n), 0, true, &chunks)).await?;
            let lease = Duration::from_hours(1);
            let claimed = stores
                .ledger
                .claim(PostId(n), Channel::Push, chunk.chunk_id(), 0, lease)
                .await?;
            let settlement = Settlement {
                post: PostId(n),
                channel: Channel::Push,
                chunk: chunk.chunk_id(),
                base: ExpectedRevision::Revision(claimed),
                outcome: Outcome::Delivered { count: 2 },
                at: Timestamp(5),
                keep_claim: None,
            };
            stores.ledger.settle(&settlement).await.map(drop)
        }
        "device" => {
            let address = Address::Webhook {
                url: format!("https://a.example/{n}"),
                secret: vec![7; 32],
            };
            stores
                .devices
                .register(UserKey(number), address, Timestamp(1))
                .await
                .map(drop)
        }
        "mute" => {
            // One author each, in the place of the one before.
            let change = PreferencesChange {
                muted: Some(vec![UserKey(number), UserKey(number + 1)]),
                ..PreferencesChange::default()
            };
            stores.preferences.update(MUTING, &change).await.map(drop)
        }
        "totals" => {
            let counts = Counts {
                timeline_delivered: 2,
                ..Counts::default()
            };
            let batch = TotalsBatch {
                stream: "EVENTS".into(),
                sequences: vec![2 * n, 2 * n + 1],
                file: n.to_string(),
                hours: vec![(HOUR, counts)],
                ..TotalsBatch::default()
            };
            let owner = lease(stores, &format!("analytics/{n}")).await;
            stores.totals.intend(&batch.file, &owner).await?;
            stores.totals.commit(&batch).await
        }
        "dead" => stores.dead_letters.insert(&[dead_letter(n)]).await.map(drop),
        "timeline" => {
            let delivered = stores.timelines.deliver(PostId(n), set(1..=RECIPIENTS)).await?;
            delivered.durable.await
        }
        _ => unreachable!(),
    }
}

/// Writes items of each kind, from `first` on, until an error, and prints the number of each answered one.
async fn write_all<E: Engine>() {
    let Ok(task) = std::env::var(TASK) else { return };
    let (place, first) = task.rsplit_once(' ').unwrap();
    let first: u64 = first.parse().unwrap();
    let stores = E::open_at(place).await;
    let writers = KINDS.map(|kind| {
        let stores = stores.clone();
        tokio::spawn(async move {
            for n in first.. {
                if let Err(error) = write(&stores, kind, n).await {
                    assert_eq!(error.kind(), ErrorKind::Unavailable, "{kind}: {error:?}");
                    break;
                }
                let mut out = std::io::stdout().lock();
                // The parent may have closed the pipe already; it kills this process next.
                let _ = writeln!(out, "\nanswered {kind} {n}").and_then(|()| out.flush());
            }
        })
    });
    for writer in writers {
        // A panic was printed.
        let _ = writer.await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "the child process of the tests of a crash"]
async fn writer_on_embedded() {
    write_all::<EmbeddedEngine>().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "the child process of the tests of a crash"]
async fn writer_on_cluster() {
    write_all::<OnRedis>().await;
}

/// A child process that writes.
struct Writer {
    child: Child,
    lines: mpsc::Receiver<(String, u64)>,
}

impl Writer {
    fn start<E: Engine>(engine: &E, first: u64) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([E::WRITER, "--exact", "--ignored", "--nocapture"])
            .env(TASK, format!("{} {first}", engine.place()))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = mpsc::channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(std::result::Result::ok) {
                let answered = line
                    .strip_prefix("answered ")
                    .and_then(|rest| rest.split_once(' '));
                let answered = answered.and_then(|(kind, n)| Some((kind.to_owned(), n.parse().ok()?)));
                if answered.is_some_and(|answered| sender.send(answered).is_err()) {
                    break;
                }
            }
        });
        Self { child, lines }
    }

    /// Collects answers until there are enough of each kind.
    fn wait(&self, answered: &mut BTreeMap<String, BTreeSet<u64>>) {
        let mut left: BTreeMap<&str, usize> = KINDS.into_iter().map(|kind| (kind, ANSWERS_MIN)).collect();
        while !left.is_empty() {
            let line = self.lines.recv_timeout(Duration::from_mins(2));
            let (kind, n) =
                line.unwrap_or_else(|error| panic!("the writer stopped ({error}) before {left:?}"));
            if let Some(count) = left.get_mut(&kind[..]) {
                *count -= 1;
                if *count == 0 {
                    left.remove(&kind[..]);
                }
            }
            answered.entry(kind).or_default().insert(n);
        }
    }

    /// Kills the child process and collects the rest of the answers.
    fn kill(mut self, answered: &mut BTreeMap<String, BTreeSet<u64>>) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        for (kind, n) in &self.lines {
            answered.entry(kind).or_default().insert(n);
        }
    }
}

pub async fn what_was_answered_survives_a_kill<E: Engine>(engine: &mut E) {
    let mut answered = BTreeMap::new();
    for first in [1, 1_000_001] {
        engine.hand_over().await;
        let writer = Writer::start(engine, first);
        writer.wait(&mut answered);
        engine.kill_servers().await;
        writer.kill(&mut answered);
        engine.recover().await;
        check(&engine.stores(), &answered).await;
    }
}

/// The numbers that can have been written: the answered ones, and one that was not answered any more for each crash.
fn candidates(answered: &BTreeSet<u64>) -> BTreeSet<u64> {
    answered.iter().flat_map(|n| [*n, n + 1]).collect()
}

async fn check(stores: &Stores, answered: &BTreeMap<String, BTreeSet<u64>>) {
    // Users: all or nothing, and dense.
    let mut found = 0;
    for n in candidates(&answered["users"]) {
        let keys = stores.users.find(&user_ids(n)).await.unwrap();
        assert_eq!(keys[0].is_some(), keys[1].is_some(), "users {n}");
        assert!(
            keys[0].is_some() || !answered["users"].contains(&n),
            "users {n} are lost"
        );
        found += keys.into_iter().flatten().count() as u32;
    }
    assert_eq!(stores.users.last_key().await.unwrap(), Some(UserKey(found)));

    // Follows: two for each version.
    let count = stores.follows.count(FOLLOWED).await.unwrap();
    assert_eq!(
        (count.followers, count.notify),
        (2 * count.version.0, 2 * count.version.0)
    );
    let page = stores
        .follows
        .followers(FOLLOWED, Some(count.version), None, 10_000_000)
        .await
        .unwrap();
    assert_eq!(u64::from(page.followers.len()), count.followers);
    let followers: BTreeSet<_> = page.followers.iter().map(|key| u64::from(key.0)).collect();
    for n in &answered["follows"] {
        assert!(
            followers.contains(&(2 * n)) && followers.contains(&(2 * n + 1)),
            "follows {n} are lost"
        );
    }

    for n in &answered["post"] {
        let read = stores.posts.get(&[PostId(*n)]).await.unwrap().remove(0);
        assert_eq!(read.map(|post| post.text), Some(format!("the text of {n}")));
        let by_request = stores
            .posts
            .find_by_request(crate::sample::AUTHOR, &format!("r{n}"))
            .await
            .unwrap();
        assert_eq!(by_request, Some(PostId(*n)));
    }

    for n in candidates(&answered["ledger"]) {
        let Some(audited) = stores.ledger.audit(PostId(n)).await.unwrap() else {
            assert!(!answered["ledger"].contains(&n), "the plan of post {n} is lost");
            continue;
        };
        assert_eq!(
            (
                audited.slices.len(),
                audited.chunks.len(),
                audited.unplanned.len()
            ),
            (1, 2, 0)
        );
        let counts = stores.ledger.counts(PostId(n)).await.unwrap().unwrap();
        assert!(
            counts.push.delivered == 2 || !answered["ledger"].contains(&n),
            "the outcome of post {n} is lost"
        );
    }

    for n in &answered["device"] {
        let devices = stores.devices.of(&[UserKey(*n as u32)]).await.unwrap().remove(0);
        assert_eq!(devices.len(), 1, "the device of user {n} is lost");
    }

    let muted = stores.preferences.of(&[MUTING]).await.unwrap().remove(0).muted;
    let muted: Vec<_> = muted.into_iter().map(|key| u64::from(key.0)).collect();
    assert!(
        muted.len() == 2 && muted[1] == muted[0] + 1,
        "half of a change: {muted:?}"
    );
    assert!(
        muted[0] >= *answered["mute"].last().unwrap(),
        "the last mute is lost"
    );

    // Totals: what is counted is what is seen.
    let mut seen = 0;
    for n in candidates(&answered["totals"]) {
        let both = stores.totals.seen("EVENTS", &[2 * n, 2 * n + 1]).await.unwrap();
        assert_eq!(both[0], both[1], "totals {n}");
        assert!(
            both[0] || !answered["totals"].contains(&n),
            "the file {n} is lost"
        );
        seen += i64::from(both[0]) * 2;
    }
    let hours = stores.totals.hour_totals(HOUR, HOUR + 1).await.unwrap();
    assert_eq!(hours[0].1.timeline_delivered, seen);

    let ids: Vec<_> = answered["dead"].iter().copied().map(DeadLetterId).collect();
    let read = stores.dead_letters.get(&ids).await.unwrap();
    assert!(read.iter().all(Option::is_some), "a dead letter is lost");

    let users: Vec<_> = (1..=RECIPIENTS).map(UserKey).collect();
    let delivered = &answered["timeline"];
    for entries in stores.timelines.read(&users).await.unwrap() {
        let shown: BTreeSet<_> = entries.posts.into_iter().map(|post| post.0).collect();
        // The newest 800 of those that were delivered.
        let oldest = shown.first().copied().filter(|_| shown.len() >= 800).unwrap_or(0);
        let lost = delivered
            .iter()
            .find(|post| **post >= oldest && !shown.contains(post));
        assert_eq!(lost, None, "a delivery is lost");
    }
}
