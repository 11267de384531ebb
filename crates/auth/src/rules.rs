//! What each method needs: the one table of permissions.

use herald_model::Scope;
use herald_proto::{Method, v1};
use prost::{DecodeError, Message};

/// What a method needs of its caller.
#[derive(Debug, Clone, Copy)]
pub enum Rule {
    /// A credential with this scope.
    Needs {
        /// The scope.
        scope: Scope,
        /// What a caller that acts for one user may ask.
        bound: Bound,
    },
    /// Calls between Herald's own processes. They never come through the gateway.
    Internal,
}

/// Whether a request, the bytes of a message, is about this user id and no other.
pub type IsOwn = fn(&[u8], &str) -> Result<bool, DecodeError>;

/// What a caller that acts for one user only may ask of a method.
#[derive(Debug, Clone, Copy)]
pub enum Bound {
    /// What concerns its own user.
    Own(IsOwn),
    /// Nothing.
    Refused,
}

/// Whether the path of a call is that of a health check, which needs no credential: load balancers have none.
pub fn is_health(path: &str) -> bool {
    path.starts_with("/grpc.health.v1.Health/")
}

/// The rule of a method. The match has no wildcard: a new method has a rule, or the build fails.
#[expect(
    clippy::match_same_arms,
    reason = "the arms are groups of methods, not of rules"
)]
pub fn rule(method: Method) -> Rule {
    match method {
        // Posts. Posts are read by id without their author, so a user's own token reads them from timelines and lists.
        Method::SubmitPost => own(Scope::Post, is_own::submit_post),
        Method::DeletePost => own(Scope::Post, is_own::delete_post),
        Method::SubmitPosts => for_all(Scope::Post),
        Method::ListPosts => own(Scope::Read, is_own::list_posts),
        Method::GetPost | Method::BatchGetPosts => for_all(Scope::Read),

        // Timelines.
        Method::ListTimeline => own(Scope::Read, is_own::list_timeline),
        Method::WatchTimeline => own(Scope::Read, is_own::watch_timeline),

        // Deliveries and statistics, which tell of other users.
        Method::GetDelivery
        | Method::ListRecipients
        | Method::ExplainDelivery
        | Method::GetPostStats
        | Method::GetTotals => for_all(Scope::Read),

        // Devices and preferences.
        Method::RegisterDevice => own(Scope::Devices, is_own::register_device),
        Method::EnableDevice => own(Scope::Devices, is_own::enable_device),
        Method::RotateWebhookSecret => own(Scope::Devices, is_own::rotate_webhook_secret),
        Method::UnregisterDevice => own(Scope::Devices, is_own::unregister_device),
        Method::ListDevices => own(Scope::Devices, is_own::list_devices),
        Method::GetPreferences => own(Scope::Devices, is_own::get_preferences),
        Method::UpdatePreferences => own(Scope::Devices, is_own::update_preferences),

        // The graph. A user reads its own followers and follows.
        Method::Follow => own(Scope::Graph, is_own::follow),
        Method::BatchFollow => own(Scope::Graph, is_own::batch_follow),
        Method::Unfollow => own(Scope::Graph, is_own::unfollow),
        Method::ImportFollows => for_all(Scope::Graph),
        Method::IsFollowing => own(Scope::Read, is_own::is_following),
        Method::ListFollowers => own(Scope::Read, is_own::list_followers),
        Method::ListFollowing => own(Scope::Read, is_own::list_following),
        Method::CountFollowers => own(Scope::Read, is_own::count_followers),

        // Operators.
        Method::ListDeadLetters
        | Method::ListGroups
        | Method::GetDeadLetter
        | Method::ListUndeliveredRecipients
        | Method::RedriveDeadLetters
        | Method::GetRedrive
        | Method::CancelRedrive
        | Method::DiscardDeadLetters
        | Method::RebuildTimelines
        | Method::CreateKey
        | Method::ListKeys
        | Method::RevokeKey
        | Method::ExportUser
        | Method::EraseUser => for_all(Scope::Operate),
        Method::RunAudit | Method::ListOperations | Method::ListErasures => for_all(Scope::Audit),
        Method::GetLag | Method::WatchLag => for_all(Scope::Scale),

        // Between processes: graph, the control socket of `herald up`, and KEDA's calls of the scaler.
        Method::ExportFollowers
        | Method::Backup
        | Method::CheckStreams
        | Method::RotateStorageKey
        | Method::IsActive
        | Method::StreamIsActive
        | Method::GetMetricSpec
        | Method::GetMetrics => Rule::Internal,
    }
}

const fn own(scope: Scope, is_own: IsOwn) -> Rule {
    Rule::Needs {
        scope,
        bound: Bound::Own(is_own),
    }
}

const fn for_all(scope: Scope) -> Rule {
    Rule::Needs {
        scope,
        bound: Bound::Refused,
    }
}

/// Whether a request is about one user. Requests are decoded as the service decodes them, so that a field that comes twice
/// means the same to both.
mod is_own {
    use super::{DecodeError, Message, v1};

    macro_rules! is_own {
        ($($name:ident: $request:ident, $user:ident;)*) => {$(
            pub(super) fn $name(request: &[u8], user: &str) -> Result<bool, DecodeError> {
                Ok(v1::$request::decode(request)?.$user == user)
            }
        )*};
    }

    is_own! {
        submit_post: SubmitPostRequest, author_id;
        // A request with `any_author` has no author_id.
        delete_post: DeletePostRequest, author_id;
        list_posts: ListPostsRequest, author_id;
        list_timeline: ListTimelineRequest, user_id;
        watch_timeline: WatchTimelineRequest, user_id;
        register_device: RegisterDeviceRequest, user_id;
        enable_device: EnableDeviceRequest, user_id;
        rotate_webhook_secret: RotateWebhookSecretRequest, user_id;
        unregister_device: UnregisterDeviceRequest, user_id;
        list_devices: ListDevicesRequest, user_id;
        get_preferences: GetPreferencesRequest, user_id;
        update_preferences: UpdatePreferencesRequest, user_id;
        unfollow: UnfollowRequest, follower_id;
        is_following: IsFollowingRequest, follower_id;
        list_followers: ListFollowersRequest, author_id;
        list_following: ListFollowingRequest, follower_id;
        count_followers: CountFollowersRequest, author_id;
    }

    pub(super) fn follow(request: &[u8], user: &str) -> Result<bool, DecodeError> {
        let follow = v1::FollowRequest::decode(request)?.follow;
        Ok(follow.is_some_and(|follow| follow.follower_id == user))
    }

    pub(super) fn batch_follow(request: &[u8], user: &str) -> Result<bool, DecodeError> {
        let follows = v1::BatchFollowRequest::decode(request)?.follows;
        Ok(!follows.is_empty() && follows.iter().all(|follow| follow.follower_id == user))
    }
}

#[cfg(test)]
mod tests {
    use herald_proto::{MethodKind, method_kind};
    use proptest::prelude::*;

    use super::*;

    fn own_methods() -> impl Iterator<Item = (Method, IsOwn)> {
        Method::ALL.into_iter().filter_map(|method| match rule(method) {
            Rule::Needs {
                bound: Bound::Own(is_own),
                ..
            } => Some((method, is_own)),
            _ => None,
        })
    }

    #[test]
    fn exactly_the_public_api_needs_a_scope() {
        for method in Method::ALL {
            let is_public = method_kind(method.path()).is_some();
            assert_eq!(
                matches!(rule(method), Rule::Needs { .. }),
                is_public,
                "{method:?}"
            );
        }
    }

    #[test]
    fn a_stream_of_requests_is_never_for_one_user() {
        for (method, _) in own_methods() {
            assert_ne!(
                method_kind(method.path()),
                Some(MethodKind::RequestStream),
                "{method:?}"
            );
        }
    }

    #[test]
    fn a_request_without_a_user_is_nobodys() {
        for (method, is_own) in own_methods() {
            assert_eq!(is_own(&[], "ann"), Ok(false), "{method:?}");
        }
    }

    #[test]
    fn the_user_of_a_request_is_found() {
        let follow = |follower: &str| v1::Follow {
            follower_id: follower.into(),
            author_id: "bob".into(),
            ..v1::Follow::default()
        };
        let one = |follower| {
            v1::FollowRequest {
                follow: Some(follow(follower)),
            }
            .encode_to_vec()
        };
        assert_eq!(is_own::follow(&one("ann"), "ann"), Ok(true));
        assert_eq!(is_own::follow(&one("bob"), "ann"), Ok(false));
        let many = |followers: &[&str]| {
            let follows = followers.iter().map(|follower| follow(follower)).collect();
            v1::BatchFollowRequest { follows }.encode_to_vec()
        };
        assert_eq!(is_own::batch_follow(&many(&["ann", "ann"]), "ann"), Ok(true));
        assert_eq!(is_own::batch_follow(&many(&["ann", "bob"]), "ann"), Ok(false));
        let delete = |author_id: &str, any_author| {
            let author_id = author_id.into();
            v1::DeletePostRequest {
                post_id: 1,
                author_id,
                any_author,
            }
            .encode_to_vec()
        };
        assert_eq!(is_own::delete_post(&delete("ann", false), "ann"), Ok(true));
        assert_eq!(is_own::delete_post(&delete("", true), "ann"), Ok(false));
        // A field that comes twice: the last one counts, as in the service.
        let mut twice = v1::ListTimelineRequest {
            user_id: "ann".into(),
            ..Default::default()
        }
        .encode_to_vec();
        twice.extend(
            v1::ListTimelineRequest {
                user_id: "bob".into(),
                ..Default::default()
            }
            .encode_to_vec(),
        );
        assert_eq!(is_own::list_timeline(&twice, "ann"), Ok(false));
        assert_eq!(is_own::list_timeline(&twice, "bob"), Ok(true));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_request_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            for (_, is_own) in own_methods() {
                prop_assert!(is_own(&bytes, "a user that no request has").is_ok_and(|own| !own) || is_own(&bytes, "").is_err());
            }
        }
    }
}
