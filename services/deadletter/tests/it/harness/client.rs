//! Calls of the service, and conditions on their results.

use std::time::Duration;

use herald_model::time::Timestamp;
use herald_proto::v1::{self, dead_letter_service_client::DeadLetterServiceClient};
use tonic::transport::Channel as Connection;

pub(crate) type Client = DeadLetterServiceClient<Connection>;

/// Lists the dead letters that match, oldest first.
pub(crate) async fn list(client: &Client, filter: v1::DeadLetterFilter) -> Vec<v1::DeadLetter> {
    let request = v1::ListDeadLettersRequest {
        filter: Some(filter),
        oldest_first: true,
        page_size: 1_000,
        ..Default::default()
    };
    let answer = client.clone().list_dead_letters(request).await.unwrap();
    answer.into_inner().dead_letters
}

pub(crate) async fn list_all(client: &Client) -> Vec<v1::DeadLetter> {
    list(client, v1::DeadLetterFilter::default()).await
}

pub(crate) async fn in_state(client: &Client, state: v1::DeadLetterState) -> Vec<u64> {
    let filter = v1::DeadLetterFilter {
        state: state.into(),
        ..Default::default()
    };
    let dead_letters = list(client, filter).await;
    dead_letters
        .into_iter()
        .map(|dead_letter| dead_letter.dead_letter_id)
        .collect()
}

pub(crate) async fn total(client: &Client) -> u64 {
    total_of(client, v1::DeadLetterFilter::default()).await
}

/// The number of dead letters that match.
pub(crate) async fn total_of(client: &Client, filter: v1::DeadLetterFilter) -> u64 {
    let request = v1::ListGroupsRequest {
        filter: Some(filter),
        ..Default::default()
    };
    let groups = client.clone().list_groups(request).await;
    groups.unwrap().into_inner().dead_letter_count
}

pub(crate) async fn get(client: &Client, dead_letter_id: u64) -> v1::GetDeadLetterResponse {
    let request = v1::GetDeadLetterRequest { dead_letter_id };
    client
        .clone()
        .get_dead_letter(request)
        .await
        .unwrap()
        .into_inner()
}

/// Waits until there are `count` dead letters, and returns them, oldest first.
pub(crate) async fn dead_letters(client: &Client, count: usize) -> Vec<v1::DeadLetter> {
    until(async || list_all(client).await.len() >= count).await;
    let dead_letters = list_all(client).await;
    assert_eq!(dead_letters.len(), count, "{dead_letters:#?}");
    dead_letters
}

pub(crate) fn select_ids(dead_letter_ids: impl IntoIterator<Item = u64>) -> v1::DeadLetterSelection {
    v1::DeadLetterSelection {
        dead_letter_ids: dead_letter_ids.into_iter().collect(),
        ..Default::default()
    }
}

pub(crate) fn select_all() -> v1::DeadLetterSelection {
    v1::DeadLetterSelection {
        all: true,
        ..Default::default()
    }
}

/// Redrives dead letters, and returns the outcome of the redrive.
pub(crate) async fn redrive(
    client: &Client,
    selection: v1::DeadLetterSelection,
    failures_max: Option<u32>,
) -> Result<v1::Redrive, tonic::Status> {
    let request = v1::RedriveDeadLettersRequest {
        selection: Some(selection),
        failures_max,
        ..Default::default()
    };
    let mut request = tonic::Request::new(request);
    request
        .metadata_mut()
        .insert("herald-actor", "ops@host".parse().unwrap());
    let mut progress = client.clone().redrive_dead_letters(request).await?.into_inner();
    let mut last = None;
    while let Some(answer) = progress.message().await? {
        last = answer.redrive;
    }
    Ok(last.expect("an outcome"))
}

/// Starts a redrive of all dead letters without waiting for its end.
pub(crate) async fn begin_redrive(client: &Client) {
    let request = v1::RedriveDeadLettersRequest {
        selection: Some(select_all()),
        ..Default::default()
    };
    let progress = client.clone().redrive_dead_letters(request).await.unwrap();
    progress.into_inner().message().await.unwrap().unwrap();
}

/// Waits until the condition holds, at most 30 s.
pub(crate) async fn until(condition: impl AsyncFn() -> bool) {
    let deadline = Timestamp::now().plus(Duration::from_secs(30));
    let mut interval = tokio::time::interval(Duration::from_millis(5));
    while !condition().await {
        assert!(
            Timestamp::now() < deadline,
            "the condition doesn't hold within 30 s"
        );
        interval.tick().await;
    }
}
