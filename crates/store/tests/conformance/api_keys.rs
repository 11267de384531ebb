//! API keys.

use herald_model::{ApiKey, ApiKeyId, Scope, Scopes, time::Timestamp};
use herald_store::{API_KEYS_MAX, ErrorKind};

use crate::engine::Engine;

const NOW: Timestamp = Timestamp(1_000_000);

fn key(id: u64, created_at: i64) -> ApiKey {
    ApiKey {
        id: ApiKeyId(id),
        name: format!("key-{}", id % 7),
        secret_hash: [id as u8; 32],
        scopes: [Scope::Post, Scope::Scale].into_iter().collect(),
        created_at: Timestamp(created_at),
        expires_at: None,
        revoked_at: None,
    }
}

pub async fn a_key_is_kept_until_it_is_revoked<E: Engine>(engine: &mut E) {
    let keys = engine.stores().api_keys;
    assert_eq!(keys.all().await.unwrap(), []);
    // Ids use all 64 bits.
    let (first, second) = (key(u64::MAX - 1, 10), key(3, 20));
    let expiring = ApiKey {
        expires_at: Some(Timestamp(99)),
        scopes: Scopes::all(),
        ..key(2, 5)
    };
    for key in [&first, &second, &expiring, &first] {
        keys.insert(key, NOW).await.unwrap();
    }
    let all = [expiring.clone(), first.clone(), second.clone()];
    assert_eq!(keys.all().await.unwrap(), all);
    let error = keys
        .insert(
            &ApiKey {
                name: "other".into(),
                ..second.clone()
            },
            NOW,
        )
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);

    let revoked = ApiKey {
        revoked_at: Some(NOW),
        ..first.clone()
    };
    assert_eq!(keys.revoke(first.id, NOW).await.unwrap(), Some(revoked.clone()));
    // The first time stays, and so does the revocation when the insert comes again.
    assert_eq!(
        keys.revoke(first.id, Timestamp(2_000_000)).await.unwrap(),
        Some(revoked.clone())
    );
    keys.insert(&first, NOW).await.unwrap();
    assert_eq!(keys.revoke(ApiKeyId(77), NOW).await.unwrap(), None);
    drop(keys);
    engine.reopen().await;
    let all = [expiring, revoked, second];
    assert_eq!(engine.stores().api_keys.all().await.unwrap(), all);
}

pub async fn only_ended_keys_make_room<E: Engine>(engine: &mut E) {
    let keys = engine.stores().api_keys;
    let count = API_KEYS_MAX as u64;
    for id in 0..count {
        let expires_at = match id {
            7 => Some(NOW),
            8 => Some(Timestamp(NOW.0 + 1)),
            _ => None,
        };
        keys.insert(
            &ApiKey {
                expires_at,
                ..key(id, 1)
            },
            Timestamp(0),
        )
        .await
        .unwrap();
    }
    keys.revoke(ApiKeyId(9), Timestamp(NOW.0 - 1)).await.unwrap();
    let has = |all: &[ApiKey], id| all.iter().any(|key| key.id == ApiKeyId(id));
    // The revoked key ended before the expired one.
    keys.insert(&key(count, 2), NOW).await.unwrap();
    let all = keys.all().await.unwrap();
    assert_eq!(all.len(), API_KEYS_MAX);
    assert!(!has(&all, 9) && has(&all, 7) && has(&all, count));
    keys.insert(&key(count + 1, 3), NOW).await.unwrap();
    assert!(!has(&keys.all().await.unwrap(), 7));
    let error = keys.insert(&key(count + 2, 4), NOW).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LimitExceeded);
    assert_eq!(keys.all().await.unwrap().len(), API_KEYS_MAX);
}

pub async fn inserts_at_one_time_are_all_kept<E: Engine>(engine: &mut E) {
    let keys = engine.stores().api_keys;
    let inserts = (0..32_u64).map(|id| {
        let keys = keys.clone();
        tokio::spawn(async move { keys.insert(&key(id, 1), NOW).await })
    });
    for insert in inserts.collect::<Vec<_>>() {
        insert.await.unwrap().unwrap();
    }
    assert_eq!(keys.all().await.unwrap().len(), 32);
}
