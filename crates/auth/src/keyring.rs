//! The API keys that a gateway knows.

use std::{collections::HashMap, fmt, sync::Arc};

use herald_model::{ApiKey, ApiKeyId, time::Timestamp};
use herald_secret::Secret;
use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;

use crate::{
    Authenticated, Denied, Lifetime, Principal,
    api_key::{ApiKeyToken, Hash, hash, is_equal},
};

/// The root key, and a snapshot of the keys of the store. Calls are checked against it without the store.
pub struct Keyring {
    root: Option<(Hash, Authenticated)>,
    /// `None` until the store has been read.
    keys: RwLock<Option<Arc<Snapshot>>>,
}

type Snapshot = HashMap<ApiKeyId, KnownKey>;

#[derive(Clone)]
struct KnownKey {
    key: ApiKey,
    principal: Arc<Principal>,
    /// Cancelled when a snapshot has another record of the key, or none.
    changed: Arc<CancellationToken>,
}

impl Keyring {
    pub(crate) fn new(root_key: &Secret) -> Self {
        let root = (!root_key.is_empty()).then(|| hash(root_key.expose().as_bytes()));
        Self {
            root: root.map(|hash| {
                let root = Authenticated {
                    principal: Arc::new(Principal::root()),
                    lifetime: Lifetime::default(),
                };
                (hash, root)
            }),
            keys: RwLock::default(),
        }
    }

    /// Replaces the snapshot. The [`Lifetime`] of a key that was revoked or is gone ends.
    pub fn set(&self, keys: Vec<ApiKey>) {
        let mut present = self.keys.write();
        let mut before = present.take().map(Arc::unwrap_or_clone).unwrap_or_default();
        let keys = keys.into_iter().map(|key| {
            let known = match before.remove(&key.id) {
                Some(known) if known.key == key => known,
                changed => {
                    if let Some(changed) = changed {
                        changed.changed.cancel();
                    }
                    KnownKey {
                        principal: Arc::new(Principal::of_key(&key)),
                        key,
                        changed: Arc::default(),
                    }
                }
            };
            (known.key.id, known)
        });
        *present = Some(Arc::new(keys.collect()));
        drop(present);
        for gone in before.into_values() {
            gone.changed.cancel();
        }
    }

    /// The caller with the root key.
    pub(crate) fn check_root(&self, credential: &str) -> Option<Authenticated> {
        let (root, authenticated) = self.root.as_ref()?;
        is_equal(root, &hash(credential.as_bytes())).then(|| authenticated.clone())
    }

    /// The caller with an API key.
    pub(crate) fn check(&self, token: &ApiKeyToken, now: Timestamp) -> Result<Authenticated, Denied> {
        let snapshot = self.keys.read().clone();
        let snapshot = snapshot.ok_or(Denied::Unavailable("the store"))?;
        match snapshot.get(&token.id) {
            Some(known) if token.has_secret(&known.key.secret_hash) && known.key.is_valid_at(now) => {
                Ok(Authenticated {
                    principal: known.principal.clone(),
                    lifetime: Lifetime::new(known.key.expires_at, known.changed.clone()),
                })
            }
            _ => Err(Denied::Invalid),
        }
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyring").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use herald_model::{Scope, Scopes};

    use super::*;
    use crate::NewApiKey;

    fn key(new: &NewApiKey, expires_at: Option<Timestamp>) -> ApiKey {
        ApiKey {
            id: new.id,
            name: "ci".into(),
            secret_hash: new.secret_hash,
            scopes: [Scope::Post].into_iter().collect(),
            created_at: Timestamp(0),
            expires_at,
            revoked_at: None,
        }
    }

    #[test]
    fn a_key_is_valid_until_it_expires_or_the_snapshot_changes() {
        let keyring = Keyring::new(&Secret::default());
        let new = NewApiKey::generate();
        let check = |now| {
            let token = ApiKeyToken::parse(new.token.expose()).unwrap();
            keyring
                .check(&token, Timestamp(now))
                .map(|caller| caller.principal.name.clone())
        };
        assert_eq!(check(0), Err(Denied::Unavailable("the store")));
        keyring.set(vec![key(&new, Some(Timestamp(10)))]);
        assert_eq!(check(9), Ok("ci".into()));
        assert_eq!(check(10), Err(Denied::Invalid));
        let mut revoked = key(&new, None);
        revoked.revoked_at = Some(Timestamp(20));
        keyring.set(vec![revoked]);
        assert_eq!(check(9), Err(Denied::Invalid));
        keyring.set(Vec::new());
        assert_eq!(check(9), Err(Denied::Invalid));
    }

    #[tokio::test(start_paused = true)]
    async fn a_lifetime_ends_with_its_key_alone() {
        let keyring = Keyring::new(&Secret::default());
        let (first, second) = (NewApiKey::generate(), NewApiKey::generate());
        let lifetime = |new: &NewApiKey| {
            let token = ApiKeyToken::parse(new.token.expose()).unwrap();
            keyring.check(&token, Timestamp(0)).unwrap().lifetime
        };
        let has_ended = |lifetime: &Lifetime| lifetime.clone().ended().now_or_never().is_some();
        let far = Timestamp::now().plus(std::time::Duration::from_hours(1));
        let all = vec![key(&first, Some(far)), key(&second, None)];
        keyring.set(all.clone());
        let (of_first, of_second) = (lifetime(&first), lifetime(&second));
        keyring.set(all);
        assert!(!has_ended(&of_first) && !has_ended(&of_second));
        // Revoked.
        let mut revoked = key(&second, None);
        revoked.revoked_at = Some(Timestamp(20));
        keyring.set(vec![revoked, key(&first, Some(far))]);
        assert!(!has_ended(&of_first) && has_ended(&of_second));
        // Gone.
        keyring.set(Vec::new());
        assert!(has_ended(&of_first));
        // Expired.
        let soon = Timestamp::now().plus(std::time::Duration::from_millis(20));
        keyring.set(vec![key(&first, Some(soon))]);
        let expiring = lifetime(&first);
        expiring.ended().await;
        assert!(Timestamp::now() >= soon);
    }

    #[test]
    fn the_id_of_a_key_with_the_secret_of_another_is_refused() {
        let keyring = Keyring::new(&Secret::default());
        let (mine, other) = (NewApiKey::generate(), NewApiKey::generate());
        keyring.set(vec![key(&mine, None), key(&other, None)]);
        let mixed = format!("{}{}", &mine.token.expose()[..20], &other.token.expose()[20..]);
        let token = ApiKeyToken::parse(&mixed).unwrap();
        let refused = keyring.check(&token, Timestamp(1));
        assert_eq!(refused.err(), Some(Denied::Invalid));
    }

    #[test]
    fn the_root_key_has_all_scopes() {
        let keyring = Keyring::new(&Secret::new("correct-horse-battery-staple-0001"));
        let root = keyring.check_root("correct-horse-battery-staple-0001").unwrap();
        let principal = root.principal;
        assert_eq!(
            (principal.name.as_str(), principal.scopes),
            ("root", Scopes::all())
        );
        assert!(root.lifetime.ended().now_or_never().is_none());
        assert!(keyring.check_root("correct-horse-battery-staple-0002").is_none());
        assert!(Keyring::new(&Secret::default()).check_root("").is_none());
    }
}
