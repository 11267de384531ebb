//! Accounts, totals and dead letters.

use herald_model::{
    Address, ApiKey, ApiKeyId, Channel, ChunkId, Disabled, DisabledReason, Lane, PostId, Registration, Scope,
    UserKey, time::Timestamp,
};
use herald_store::{
    Cause, ChunkRef, Counted, Counts, DeadLetter, DeadLetterId, DeadLetterState, DeadLetterVersion,
    MessageRef, NewOperation, OperationKind, Payload, PostTotals, PreferencesChange, SettledCounts, Stores,
    TotalsBatch,
};

use crate::DAY;

pub(crate) async fn fill_accounts(stores: &Stores) {
    let at = Timestamp(1_000);
    let web_push = Address::WebPush {
        endpoint: "https://push.example/1".into(),
        p256dh: vec![1; 65],
        auth: vec![2; 16],
    };
    let devices = &stores.devices;
    let first = devices.register(UserKey(7), web_push, at).await.unwrap();
    let disabled = Disabled {
        reason: DisabledReason::Gone,
        at,
    };
    let registration = Registration {
        user: UserKey(7),
        device: first.id,
        generation: first.generation,
    };
    devices.record_failure(registration, at).await.unwrap();
    devices.disable(registration, disabled).await.unwrap();
    let hook = devices
        .register_webhook(UserKey(8), "https://hook.example/a".into(), vec![3; 32], at)
        .await
        .unwrap();
    devices
        .rotate_secret(UserKey(8), hook.id, vec![4; 32], Timestamp::now().plus(DAY))
        .await
        .unwrap();
    // The greatest id belongs to no device any more.
    let gone = devices
        .register_webhook(UserKey(9), "https://hook.example/b".into(), vec![3; 32], at)
        .await
        .unwrap();
    devices.unregister(UserKey(9), gone.id).await.unwrap();
    devices.set_vapid_key(&[9; 65]).await.unwrap();
    let change = PreferencesChange {
        push_enabled: Some(false),
        mute: vec![UserKey(3), UserKey(5)],
        ..PreferencesChange::default()
    };
    stores.preferences.update(UserKey(11), &change).await.unwrap();
    for (id, expires_at) in [(u64::MAX - 3, None), (5, Some(Timestamp(9)))] {
        let key = ApiKey {
            id: ApiKeyId(id),
            name: "ci".into(),
            secret_hash: [8; 32],
            scopes: [Scope::Post].into_iter().collect(),
            created_at: at,
            expires_at,
            revoked_at: None,
        };
        stores.api_keys.insert(&key, at).await.unwrap();
    }
    stores.api_keys.revoke(ApiKeyId(5), at).await.unwrap();
}

pub(crate) async fn fill_totals(stores: &Stores) {
    let lease = stores
        .leases
        .acquire("analytics", "a", DAY)
        .await
        .unwrap()
        .unwrap();
    let counts = Counts {
        posts: 1,
        timeline_delivered: 240,
        push_dead: -1,
        ..Counts::default()
    };
    let batch = TotalsBatch {
        stream: "EVENTS".into(),
        sequences: vec![1, 30, 5_000],
        file: "a.parquet".into(),
        posts: vec![(
            PostId(30),
            PostTotals {
                author: UserKey(3),
                counts,
                timeline_latency_ms_max: 12,
                push_latency_ms_max: 34,
            },
        )],
        hours: vec![(100, counts), (480_000, counts)],
        chunks: vec![(
            ChunkRef {
                post: PostId(30),
                channel: Channel::Timeline,
                chunk: ChunkId(u64::MAX - 5),
            },
            Counted {
                revision: 2,
                counts: SettledCounts {
                    delivered: 5,
                    ..SettledCounts::default()
                },
            },
        )],
    };
    stores.totals.intend("a.parquet", &lease).await.unwrap();
    stores.totals.commit(&batch).await.unwrap();
    stores.totals.intend("left over.parquet", &lease).await.unwrap();
}

fn dead_letter(id: u64) -> DeadLetter {
    let at = Timestamp::now();
    DeadLetter {
        id: DeadLetterId(id),
        origin: MessageRef {
            stream: "PUSH".into(),
            consumer: "push-normal".into(),
            sequence: 1_000 + id,
        },
        kind: "push".into(),
        original_sequence: 1_000 + id,
        subject: "push.v1.deliver.normal".into(),
        message_type: "herald.mesh.v1.PushChunk".into(),
        cause: Cause::Terminated,
        reason: format!("Push failed: webhook status 503: {id}"),
        group: u64::MAX - id % 3,
        group_reason: "push failed: webhook status 503".into(),
        attempts: 20,
        published_at: at,
        first_failed_at: at,
        last_failed_at: at,
        stored_at: at,
        post: (id != 4).then_some(PostId(id)),
        author: (id != 4).then_some(UserKey(3)),
        channel: (id != 4).then_some(Channel::Push),
        chunk: (id != 4).then_some(ChunkId(u64::MAX - id)),
        lane: Some(Lane::Normal),
        recipients: 12,
        trace_id: "4bf92f3577b34da6a3ce929d0e0e4736".into(),
        payload: Payload::Kept,
        payload_bytes: 100,
        state: DeadLetterState::Open,
        round: 0,
        redrive: None,
        operations: Vec::new(),
        redrive_sequence: 0,
        updated_at: at,
        pushes_expire_at: (id != 4).then_some(at),
    }
}

pub(crate) async fn fill_dead_letters(stores: &Stores) {
    let dead_letters = &stores.dead_letters;
    let all: Vec<_> = (1..=8).map(dead_letter).collect();
    dead_letters.insert(&all).await.unwrap();
    let version = |id: u64, round: u32| DeadLetterVersion {
        id: DeadLetterId(id),
        round,
    };
    let request = |kind| NewOperation {
        kind,
        actor: "operator".into(),
        at: Timestamp::now(),
        selection: vec![1, 0, 255].into(),
        excluded: 2,
        rate_max: 10,
        failures_max: 3,
        push_ttl: Some(DAY),
        target: None,
    };
    let lease = stores.leases.acquire("redrive", "a", DAY).await.unwrap().unwrap();
    let selected: Vec<_> = (1..=4).map(|id| version(id, 0)).collect();
    let redrive = dead_letters
        .begin(&request(OperationKind::Redrive), &selected)
        .await
        .unwrap();
    dead_letters
        .claim(redrive.id, 2, 77, Timestamp::now(), &lease)
        .await
        .unwrap();
    dead_letters
        .sent(redrive.id, &[(version(1, 1), 88)])
        .await
        .unwrap();
    dead_letters
        .resolve(&[version(1, 1)], Timestamp::now())
        .await
        .unwrap();
    let discard = dead_letters
        .begin(&request(OperationKind::Discard), &[version(6, 0)])
        .await
        .unwrap();
    dead_letters
        .discard(discard.id, 10, Timestamp::now())
        .await
        .unwrap();
}
