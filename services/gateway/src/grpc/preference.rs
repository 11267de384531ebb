//! PreferenceService.

use std::{collections::BTreeSet, sync::Arc};

use herald_mesh::Mesh;
use herald_model::{UserId, UserKey};
use herald_proto::{
    mesh_v1,
    v1::{self, preference_service_server::PreferenceService},
};
use herald_rpc::{fields, fields::Violations, status};
use herald_store::{ErrorKind, MUTED_AUTHORS_MAX, Preferences, PreferencesChange, Users};
use prost::Message as _;
use tonic::{Request, Response, Status};

/// Paths of an update mask.
const PUSH_ENABLED: &str = "push_enabled";
const MUTED_AUTHOR_IDS: &str = "muted_author_ids";

/// Implements PreferenceService.
pub(crate) struct PreferenceApi {
    users: Arc<dyn Users>,
    preferences: Arc<dyn Preferences>,
    mesh: Mesh,
}

impl PreferenceApi {
    pub(crate) fn new(users: Arc<dyn Users>, preferences: Arc<dyn Preferences>, mesh: Mesh) -> Self {
        Self {
            users,
            preferences,
            mesh,
        }
    }

    /// Tells the user's watches that they changed their muted authors. Watches that miss it find hidden posts when they
    /// compare with the store.
    async fn publish_muting(&self, user: UserKey) {
        let live = mesh_v1::LiveUpdates {
            muting_user_keys: vec![user.0],
            ..Default::default()
        };
        if let Err(error) = self.mesh.publish_live(live.encode_to_vec().into()).await {
            tracing::debug!(%error, "changed preferences not published to watchers");
        }
    }

    async fn to_v1(&self, preferences: herald_model::Preferences) -> Result<v1::Preferences, Status> {
        let muted: Vec<_> = preferences.muted.into_iter().collect();
        let ids = self.users.ids(&muted).await.map_err(|e| status::from_store(&e))?;
        // A muted author who was erased is nobody: no call could name the placeholder to unmute it.
        let named = ids.into_iter().flatten().filter(|id| !id.is_placeholder());
        Ok(v1::Preferences {
            push_enabled: preferences.push_enabled,
            muted_author_ids: named.map(UserId::into_string).collect(),
        })
    }

    /// The muted authors of a user who were erased. A change of the preferences unmutes them, so that they don't count
    /// towards the most that a user can mute.
    async fn erased_muted(&self, user: UserKey) -> Result<Vec<UserKey>, herald_store::Error> {
        let preferences = self.preferences.of(&[user]).await?;
        let muted: Vec<_> = preferences.into_iter().flat_map(|of| of.muted).collect();
        let ids = self.users.ids(&muted).await?;
        let is_erased = |id: Option<UserId>| id.is_some_and(|id| id.is_placeholder());
        let with_ids = muted.into_iter().zip(ids);
        Ok(with_ids
            .filter_map(|(key, id)| is_erased(id).then_some(key))
            .collect())
    }
}

/// A validated change.
#[derive(Debug)]
struct Change {
    user: UserId,
    push_enabled: Option<bool>,
    /// Replaces all muted authors.
    muted: Option<Vec<UserId>>,
    mute: Vec<UserId>,
    unmute: Vec<UserId>,
}

fn parse(request: v1::UpdatePreferencesRequest) -> Result<Change, Status> {
    fn ids(field: &str, ids: Vec<String>, violations: &mut Violations) -> Vec<UserId> {
        if ids.len() > MUTED_AUTHORS_MAX {
            violations.add(
                field,
                format!(
                    "must contain at most {MUTED_AUTHORS_MAX} ids, contains {}",
                    ids.len()
                ),
            );
            return Vec::new();
        }
        let ids = ids.into_iter().enumerate();
        ids.filter_map(|(index, id)| violations.user_id(format!("{field}[{index}]"), id))
            .collect()
    }

    let mut violations = Violations::new();
    let mask = request.update_mask.unwrap_or_default();
    violations.check(
        "update_mask",
        request.preferences.is_none() || !mask.paths.is_empty(),
        "must be given with preferences",
    );
    violations.check(
        "preferences",
        request.preferences.is_some() || mask.paths.is_empty(),
        "must be given with update_mask",
    );
    for (index, path) in mask.paths.iter().enumerate() {
        violations.check(
            format!("update_mask.paths[{index}]"),
            matches!(path.as_str(), "*" | PUSH_ENABLED | MUTED_AUTHOR_IDS),
            format!("must be {PUSH_ENABLED}, {MUTED_AUTHOR_IDS} or *"),
        );
    }
    let is_set = |field: &str| mask.paths.iter().any(|path| path == field || path == "*");
    let values = request.preferences.unwrap_or_default();
    let replaced = is_set(MUTED_AUTHOR_IDS).then(|| {
        ids(
            "preferences.muted_author_ids",
            values.muted_author_ids,
            &mut violations,
        )
    });
    for (field, author_ids) in [
        ("mute_author_ids", &request.mute_author_ids),
        ("unmute_author_ids", &request.unmute_author_ids),
    ] {
        violations.check(
            field,
            replaced.is_none() || author_ids.is_empty(),
            "must be empty when update_mask has muted_author_ids",
        );
    }
    let push_enabled = is_set(PUSH_ENABLED).then_some(values.push_enabled);
    let user = violations.user_id("user_id", request.user_id);
    let mute = ids("mute_author_ids", request.mute_author_ids, &mut violations);
    let unmute = ids("unmute_author_ids", request.unmute_author_ids, &mut violations);
    let muted: BTreeSet<&UserId> = mute.iter().collect();
    for (index, id) in unmute.iter().enumerate() {
        violations.check(
            format!("unmute_author_ids[{index}]"),
            !muted.contains(id),
            "must not be in mute_author_ids too",
        );
    }
    violations.into_result()?;
    let user = user.ok_or_else(|| status::invalid(&[("user_id", "is not valid")]))?;
    Ok(Change {
        user,
        push_enabled,
        muted: replaced,
        mute,
        unmute,
    })
}

#[tonic::async_trait]
impl PreferenceService for PreferenceApi {
    async fn get_preferences(
        &self,
        request: Request<v1::GetPreferencesRequest>,
    ) -> Result<Response<v1::GetPreferencesResponse>, Status> {
        let user = fields::user_id("user_id", request.into_inner().user_id)?;
        let preferences = match super::find_user(&*self.users, user).await? {
            None => herald_model::Preferences::default(),
            Some(user) => {
                let all = self
                    .preferences
                    .of(&[user])
                    .await
                    .map_err(|e| status::from_store(&e))?;
                all.into_iter().next().unwrap_or_default()
            }
        };
        let preferences = Some(self.to_v1(preferences).await?);
        Ok(Response::new(v1::GetPreferencesResponse { preferences }))
    }

    async fn update_preferences(
        &self,
        request: Request<v1::UpdatePreferencesRequest>,
    ) -> Result<Response<v1::UpdatePreferencesResponse>, Status> {
        let requested = parse(request.into_inner())?;
        let users = &self.users;
        // One call for all ids needs one fsync. An unknown author can be muted too, so each id gets a key.
        let mut ids = vec![requested.user];
        let replaced = requested.muted.as_ref().map(Vec::len);
        ids.extend(requested.muted.unwrap_or_default());
        ids.extend(requested.mute);
        let keys = users.intern(&ids).await.map_err(|e| status::from_store(&e))?;
        let unmute = users
            .find(&requested.unmute)
            .await
            .map_err(|e| status::from_store(&e))?;
        let mut keys = keys.into_iter();
        let user = keys.next().ok_or_else(|| {
            status::internal(&herald_store::Error::new(
                ErrorKind::Corrupt,
                "the store returned no key for a user id",
            ))
        })?;
        // Nothing is left to unmute where all muted authors are replaced.
        let erased = match replaced {
            None => self
                .erased_muted(user)
                .await
                .map_err(|e| status::from_store(&e))?,
            Some(_) => Vec::new(),
        };
        let change = PreferencesChange {
            push_enabled: requested.push_enabled,
            muted: replaced.map(|count| keys.by_ref().take(count).collect()),
            mute: keys.collect(),
            unmute: unmute.into_iter().flatten().chain(erased).collect(),
        };
        let updated = self
            .preferences
            .update(user, &change)
            .await
            .map_err(|e| match e.kind() {
                ErrorKind::LimitExceeded => {
                    let message =
                        format!("a user can mute at most {MUTED_AUTHORS_MAX} authors; unmute one first");
                    status::quota("TOO_MANY_MUTED_AUTHORS", "muted_author_ids", message)
                }
                _ => status::from_store(&e),
            })?;
        if change.muted.is_some() || !change.mute.is_empty() {
            self.publish_muting(user).await;
        }
        let preferences = Some(self.to_v1(updated).await?);
        Ok(Response::new(v1::UpdatePreferencesResponse { preferences }))
    }
}
