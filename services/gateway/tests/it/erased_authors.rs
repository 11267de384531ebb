//! Posts of a user who was erased, and of a new user with the same id.

use herald_model::{UserId, time::Timestamp};
use herald_proto::v1;

use crate::harness::{World, submit};

const REQUEST: &str = "6b1e7f0c-1f5d-4a3e-9d55-0c7f6b1b2a10";

#[tokio::test(flavor = "multi_thread")]
async fn a_request_id_of_an_erased_user_is_free_for_a_new_user_with_the_same_id() {
    let world = World::start().await;
    let request = v1::SubmitPostRequest {
        request_id: REQUEST.into(),
        ..submit("107", "text")
    };
    let submit = async || {
        let submitted = world.posts().submit_post(request.clone()).await.unwrap();
        let submitted = submitted.into_inner();
        (submitted.post_id, submitted.duplicate)
    };
    assert_eq!(submit().await, (1, false));
    assert_eq!(submit().await, (1, true));
    let user = UserId::new("107").unwrap();
    let begun = world.stores.erasures.begin(&user, "ops", Timestamp::now()).await;
    assert!(begun.unwrap().is_some());
    // Within the broker's dedupe window.
    assert_eq!(submit().await, (2, false));
    assert_eq!(submit().await, (2, true));
    world.wait_until_archived().await;
    assert_eq!(submit().await, (2, true));
    world.stop().await.unwrap();
}
