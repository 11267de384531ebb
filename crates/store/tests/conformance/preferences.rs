//! Preferences of users.

use herald_model::{Preferences, UserKey};
use herald_store::{ErrorKind, MUTED_AUTHORS_MAX, PreferencesChange};

use crate::engine::Engine;

const USER: UserKey = UserKey(7);

pub async fn unset_fields_stay_and_changes_survive_a_restart<E: Engine>(engine: &mut E) {
    let preferences = engine.stores().preferences;
    assert_eq!(preferences.of(&[USER]).await.unwrap(), [Preferences::default()]);
    let mute = PreferencesChange {
        mute: vec![UserKey(3), UserKey(1)],
        ..PreferencesChange::default()
    };
    preferences.update(USER, &mute).await.unwrap();
    let off = PreferencesChange {
        push_enabled: Some(false),
        unmute: vec![UserKey(3)],
        ..PreferencesChange::default()
    };
    let after = Preferences {
        push_enabled: false,
        muted: [UserKey(1)].into(),
    };
    assert_eq!(preferences.update(USER, &off).await.unwrap(), after);
    let of = preferences.of(&[USER, UserKey(8), USER]).await.unwrap();
    assert_eq!(of, [after.clone(), Preferences::default(), after.clone()]);
    let replace = PreferencesChange {
        muted: Some(vec![UserKey(5), UserKey(6)]),
        mute: vec![UserKey(1)],
        unmute: vec![UserKey(5), UserKey(6)],
        ..PreferencesChange::default()
    };
    assert_eq!(preferences.update(USER, &replace).await.unwrap(), after);
    drop(preferences);
    engine.reopen().await;

    let preferences = engine.stores().preferences;
    assert_eq!(preferences.of(&[USER]).await.unwrap(), [after]);
    let on = PreferencesChange {
        push_enabled: Some(true),
        unmute: vec![UserKey(1)],
        ..PreferencesChange::default()
    };
    assert_eq!(
        preferences.update(USER, &on).await.unwrap(),
        Preferences::default()
    );
    assert_eq!(preferences.of(&[USER]).await.unwrap(), [Preferences::default()]);
}

pub async fn muting_above_the_limit_is_refused_and_changes_nothing<E: Engine>(engine: &mut E) {
    let preferences = engine.stores().preferences;
    let many = PreferencesChange {
        mute: (1..=MUTED_AUTHORS_MAX as u32).map(UserKey).collect(),
        ..PreferencesChange::default()
    };
    let full = preferences.update(USER, &many).await.unwrap();
    assert_eq!(full.muted.len(), MUTED_AUTHORS_MAX);
    let more = PreferencesChange {
        push_enabled: Some(false),
        mute: vec![UserKey(0)],
        ..PreferencesChange::default()
    };
    let refused = preferences.update(USER, &more).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::LimitExceeded);
    assert_eq!(preferences.of(&[USER]).await.unwrap(), [full]);
    let swap = PreferencesChange {
        mute: vec![UserKey(0)],
        unmute: vec![UserKey(1)],
        ..PreferencesChange::default()
    };
    let swapped = preferences.update(USER, &swap).await.unwrap();
    assert_eq!(swapped.muted.len(), MUTED_AUTHORS_MAX);
}

pub async fn concurrent_changes_are_all_applied<E: Engine>(engine: &mut E) {
    let both = [engine.stores().preferences, engine.peer().await.preferences];
    let changes = (0..100_u32).map(|n| {
        let preferences = &both[n as usize % 2];
        async move {
            let mute = PreferencesChange {
                mute: vec![UserKey(n)],
                ..PreferencesChange::default()
            };
            let after = preferences.update(USER, &mute).await.unwrap();
            assert!(after.muted.contains(&UserKey(n)));
        }
    });
    futures::future::join_all(changes).await;
    for preferences in &both {
        assert_eq!(preferences.of(&[USER]).await.unwrap()[0].muted.len(), 100);
    }
}
