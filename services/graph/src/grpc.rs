//! GraphService.

mod export;
mod import;

use herald_model::UserKey;
use herald_proto::v1::{self, graph_service_server::GraphService};
use herald_rpc::{
    fields::Violations,
    paging::{self, PageToken},
    status,
};
use herald_store::{Error, ErrorKind, FollowAction, FollowChange};
use tonic::{Request, Response, Status, Streaming};

use crate::{
    domain::{self, Violation},
    graph::Graph,
};

const PAGE_SIZE_DEFAULT: usize = 100;
const PAGE_SIZE_MAX: usize = 1_000;
/// Maximum number of follows in one BatchFollow call.
const BATCH_FOLLOWS_MAX: usize = 1_000;

fn violation_to_status(violation: &Violation, prefix: &str) -> Status {
    status::invalid(&[(
        format!("{prefix}{}", violation.field).as_str(),
        violation.description.as_str(),
    )])
}

/// Page tokens of one user's list. The cursor is the last key of the page.
struct PageTokens {
    call: &'static str,
    user: u64,
}

impl PageTokens {
    fn new(call: &'static str, user_id: &str) -> Self {
        Self {
            call,
            user: paging::identity([user_id.as_bytes()]),
        }
    }

    fn decode(&self, token: &str) -> Result<Option<UserKey>, Status> {
        let cursor = PageToken::decode_u64(self.call, self.user, token)?;
        cursor
            .map(|key| {
                u32::try_from(key)
                    .map(UserKey)
                    .map_err(|_| status::invalid(&[("page_token", "is not a page token")]))
            })
            .transpose()
    }

    fn encode(&self, last: UserKey) -> String {
        PageToken::encode_u64(self.call, self.user, last.0.into())
    }
}

#[tonic::async_trait]
impl GraphService for Graph {
    async fn follow(
        &self,
        request: Request<v1::FollowRequest>,
    ) -> Result<Response<v1::FollowResponse>, Status> {
        self.pace.note_live();
        let follow = request
            .into_inner()
            .follow
            .ok_or_else(|| status::invalid(&[("follow", "must be given")]))?;
        let follow = domain::parse_follow(follow).map_err(|v| violation_to_status(&v, "follow."))?;
        let keys = self
            .users
            .intern(&[follow.follower, follow.author])
            .await
            .map_err(|e| status::from_store(&e))?;
        let &[follower, author] = keys.as_slice() else {
            let error = Error::new(
                ErrorKind::Corrupt,
                "the store did not return one key for each user id",
            );
            return Err(status::internal(&error));
        };
        let effects = self
            .apply(
                &[FollowChange {
                    follower,
                    author,
                    action: FollowAction::Follow {
                        notify: follow.notify,
                    },
                }],
                |_| "follow.follower_id".into(),
            )
            .await?;
        herald_failpoints::point!("graph.followed");
        self.request_backfills([(author, follower)]).await?;
        Ok(Response::new(v1::FollowResponse {
            changed: effects.iter().any(|effect| effect.changed),
            notify: effects.iter().any(|effect| effect.notify),
        }))
    }

    async fn batch_follow(
        &self,
        request: Request<v1::BatchFollowRequest>,
    ) -> Result<Response<v1::BatchFollowResponse>, Status> {
        let follows = request.into_inner().follows;
        let mut violations = Violations::new();
        violations.check(
            "follows",
            (1..=BATCH_FOLLOWS_MAX).contains(&follows.len()),
            format!(
                "must contain 1 to {BATCH_FOLLOWS_MAX} follows, contains {}",
                follows.len()
            ),
        );
        let mut valid = Vec::with_capacity(follows.len().min(BATCH_FOLLOWS_MAX));
        for (index, follow) in follows.into_iter().take(BATCH_FOLLOWS_MAX).enumerate() {
            match domain::parse_follow(follow) {
                Ok(follow) => valid.push(follow),
                Err(violation) => {
                    let field = format!("follows[{index}].{}", violation.field);
                    violations.add(field, violation.description);
                }
            }
        }
        violations.into_result()?;
        let effects = import::apply_follows(self, &valid).await?;
        let changed_count = effects.iter().filter(|effect| effect.changed).count() as u64;
        Ok(Response::new(v1::BatchFollowResponse {
            changed_count,
            unchanged_count: effects.len() as u64 - changed_count,
        }))
    }

    async fn unfollow(
        &self,
        request: Request<v1::UnfollowRequest>,
    ) -> Result<Response<v1::UnfollowResponse>, Status> {
        self.pace.note_live();
        let request = request.into_inner();
        let (follower, author) = domain::parse_pair(request.follower_id, request.author_id)
            .map_err(|v| violation_to_status(&v, ""))?;
        let keys = self
            .users
            .find(&[follower, author])
            .await
            .map_err(|e| status::from_store(&e))?;
        // A user without a key has no follows.
        let &[Some(follower), Some(author)] = keys.as_slice() else {
            return Ok(Response::new(v1::UnfollowResponse { changed: false }));
        };
        let effects = self
            .apply(
                &[FollowChange {
                    follower,
                    author,
                    action: FollowAction::Unfollow,
                }],
                |_| "follower_id".into(),
            )
            .await?;
        Ok(Response::new(v1::UnfollowResponse {
            changed: effects.iter().any(|effect| effect.changed),
        }))
    }

    async fn is_following(
        &self,
        request: Request<v1::IsFollowingRequest>,
    ) -> Result<Response<v1::IsFollowingResponse>, Status> {
        let request = request.into_inner();
        let follower = self.find_key("follower_id", request.follower_id).await?;
        let author = self.find_key("author_id", request.author_id).await?;
        let (Some(follower), Some(author)) = (follower, author) else {
            return Ok(Response::new(v1::IsFollowingResponse::default()));
        };
        // The first author from this one on. Keys start at 1.
        let after = UserKey(author.0.saturating_sub(1));
        let following = self.follows.following(follower, Some(after), 1).await;
        let following = following.map_err(|e| status::from_store(&e))?;
        let follow = following.into_iter().find(|follow| follow.author == author);
        Ok(Response::new(v1::IsFollowingResponse {
            following: follow.is_some(),
            notify: follow.is_some_and(|follow| follow.notify),
        }))
    }

    async fn list_followers(
        &self,
        request: Request<v1::ListFollowersRequest>,
    ) -> Result<Response<v1::ListFollowersResponse>, Status> {
        let request = request.into_inner();
        let limit = paging::page_size(request.page_size, PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)?;
        let author = self.find_key("author_id", request.author_id.clone()).await?;
        let tokens = PageTokens::new("ListFollowers", &request.author_id);
        let after = tokens.decode(&request.page_token)?;
        let Some(author) = author else {
            return Ok(Response::new(v1::ListFollowersResponse::default()));
        };
        let page = self
            .follows
            .followers(author, None, after, limit)
            .await
            .map_err(|e| status::from_store(&e))?;
        let keys: Vec<_> = page.followers.iter().collect();
        let follows = self
            .find_ids(&keys)
            .await?
            .into_iter()
            .zip(&keys)
            .map(|(follower_id, key)| v1::Follow {
                follower_id,
                author_id: request.author_id.clone(),
                notify: Some(page.notify.contains(*key)),
            })
            .collect();
        let next_page_token = match page.last {
            Some(last) if !page.complete => tokens.encode(last),
            _ => String::new(),
        };
        Ok(Response::new(v1::ListFollowersResponse {
            follows,
            next_page_token,
        }))
    }

    async fn list_following(
        &self,
        request: Request<v1::ListFollowingRequest>,
    ) -> Result<Response<v1::ListFollowingResponse>, Status> {
        let request = request.into_inner();
        let limit = paging::page_size(request.page_size, PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)?;
        let follower = self.find_key("follower_id", request.follower_id.clone()).await?;
        let tokens = PageTokens::new("ListFollowing", &request.follower_id);
        let after = tokens.decode(&request.page_token)?;
        let Some(follower) = follower else {
            return Ok(Response::new(v1::ListFollowingResponse::default()));
        };
        // One extra follow shows whether there is a next page.
        let mut following = self
            .follows
            .following(follower, after, limit + 1)
            .await
            .map_err(|e| status::from_store(&e))?;
        let more = following.len() > limit;
        following.truncate(limit);
        let next_page_token = match following.last() {
            Some(last) if more => tokens.encode(last.author),
            _ => String::new(),
        };
        let authors: Vec<_> = following.iter().map(|f| f.author).collect();
        let follows = self
            .find_ids(&authors)
            .await?
            .into_iter()
            .zip(following)
            .map(|(author_id, follow)| v1::Follow {
                follower_id: request.follower_id.clone(),
                author_id,
                notify: Some(follow.notify),
            })
            .collect();
        Ok(Response::new(v1::ListFollowingResponse {
            follows,
            next_page_token,
        }))
    }

    async fn count_followers(
        &self,
        request: Request<v1::CountFollowersRequest>,
    ) -> Result<Response<v1::CountFollowersResponse>, Status> {
        let Some(author) = self.find_key("author_id", request.into_inner().author_id).await? else {
            return Ok(Response::new(v1::CountFollowersResponse::default()));
        };
        let count = self
            .follows
            .count(author)
            .await
            .map_err(|e| status::from_store(&e))?;
        Ok(Response::new(v1::CountFollowersResponse {
            follower_count: count.followers,
            notify_count: count.notify,
        }))
    }

    async fn import_follows(
        &self,
        request: Request<Streaming<v1::ImportFollowsRequest>>,
    ) -> Result<Response<v1::ImportFollowsResponse>, Status> {
        import::import(self, request.into_inner())
            .await
            .map(Response::new)
    }
}
