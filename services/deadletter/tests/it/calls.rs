//! Responses and refused requests of DeadLetterService.

use herald_proto::v1::{self, DeadLetterFilter, DeadLetterSelection, DeadLetterState};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::harness::{Client, Harness, dead_letters, get, in_state, list, redrive, select_all, select_ids};

/// The reason in the details of an error.
pub(crate) fn reason(status: &Status) -> String {
    status
        .get_details_error_info()
        .map(|info| info.reason)
        .unwrap_or_default()
}

fn field(status: &Status) -> String {
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let details = status.get_details_bad_request().unwrap();
    details.field_violations[0].field.clone()
}

async fn discard(client: &Client, selection: DeadLetterSelection, dry_run: bool) -> Result<u64, Status> {
    let request = v1::DiscardDeadLettersRequest {
        selection: Some(selection),
        dry_run,
    };
    let answer = client.clone().discard_dead_letters(request).await?;
    Ok(answer.into_inner().discarded_count)
}

fn filtered(filter: DeadLetterFilter) -> DeadLetterSelection {
    DeadLetterSelection {
        filter: Some(filter),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_selections_are_refused_and_change_nothing() {
    let harness = Harness::start().await;
    let service = harness.run().await;
    let client = &service.client;
    harness.create_dead_letters(client, 1..=4).await;
    redrive(client, select_ids([2]), None).await.unwrap();
    assert_eq!(discard(client, select_ids([3]), false).await.unwrap(), 1);
    let before = dead_letters(client, 4).await;

    let both = DeadLetterSelection {
        all: true,
        dead_letter_ids: vec![1],
        filter: None,
    };
    for (selection, expected) in [
        (DeadLetterSelection::default(), "selection"),
        (filtered(DeadLetterFilter::default()), "selection"),
        (both, "selection"),
        (select_ids([0]), "selection.dead_letter_ids"),
        (select_ids(1..=10_001), "selection.dead_letter_ids"),
        (
            filtered(DeadLetterFilter {
                state: DeadLetterState::Discarded.into(),
                ..Default::default()
            }),
            "selection.filter.state",
        ),
        (
            filtered(DeadLetterFilter {
                group_id: "xyz".into(),
                ..Default::default()
            }),
            "selection.filter.group_id",
        ),
        (
            filtered(DeadLetterFilter {
                cause: 99,
                ..Default::default()
            }),
            "selection.filter.cause",
        ),
    ] {
        let refused = redrive(client, selection.clone(), None).await.unwrap_err();
        assert_eq!(field(&refused), expected, "{selection:?}");
        let refused = discard(client, selection.clone(), false).await.unwrap_err();
        assert_eq!(field(&refused), expected, "{selection:?}");
    }
    for (selection, code, expected) in [
        (select_ids([1, 99, 100]), Code::NotFound, "DEAD_LETTER_NOT_FOUND"),
        (select_ids([1, 2]), Code::FailedPrecondition, "ALREADY_REDRIVEN"),
        (select_ids([1, 3]), Code::FailedPrecondition, "ALREADY_DISCARDED"),
        (
            filtered(DeadLetterFilter {
                group_id: "0000000000000001".into(),
                ..Default::default()
            }),
            Code::NotFound,
            "GROUP_NOT_FOUND",
        ),
    ] {
        for refused in [
            redrive(client, selection.clone(), None).await.unwrap_err(),
            discard(client, selection.clone(), false).await.unwrap_err(),
        ] {
            assert_eq!(
                (refused.code(), &reason(&refused)[..]),
                (code, expected),
                "{refused:?}"
            );
        }
    }
    let unknown = redrive(client, select_ids([1, 99, 100]), None).await.unwrap_err();
    assert_eq!(unknown.message(), "there is no dead letter 99, 100");
    assert_eq!(dead_letters(client, 4).await, before);
    assert_eq!(harness.redriven(), [(2, 1)]);

    let mut other = client.clone();
    let request = v1::RedriveDeadLettersRequest {
        selection: Some(select_all()),
        rate_max: 5_001,
        ..Default::default()
    };
    let refused = other.redrive_dead_letters(request).await.unwrap_err();
    assert_eq!(field(&refused), "rate_max");
    for (redrive_id, code) in [
        (0, Code::InvalidArgument),
        (2, Code::NotFound),
        (99, Code::NotFound),
    ] {
        let refused = other
            .get_redrive(v1::GetRedriveRequest { redrive_id })
            .await
            .unwrap_err();
        assert_eq!(refused.code(), code, "{redrive_id}");
        let refused = other
            .cancel_redrive(v1::CancelRedriveRequest { redrive_id })
            .await
            .unwrap_err();
        assert_eq!(refused.code(), code, "{redrive_id}");
    }
    for (dead_letter_id, code) in [(0, Code::InvalidArgument), (99, Code::NotFound)] {
        let refused = other
            .get_dead_letter(v1::GetDeadLetterRequest { dead_letter_id })
            .await
            .unwrap_err();
        assert_eq!(refused.code(), code);
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_stay_consistent_when_dead_letters_change() {
    let harness = Harness::start().await;
    let service = harness.run().await;
    let mut client = service.client.clone();
    harness.create_dead_letters(&client, 1..=7).await;
    let open = DeadLetterFilter {
        state: DeadLetterState::Open.into(),
        ..Default::default()
    };
    let request = |page_token: String, oldest_first| v1::ListDeadLettersRequest {
        filter: Some(open.clone()),
        oldest_first,
        page_size: 3,
        page_token,
    };
    let page_ids = |page: &v1::ListDeadLettersResponse| {
        page.dead_letters
            .iter()
            .map(|one| one.dead_letter_id)
            .collect::<Vec<_>>()
    };
    let first = client
        .list_dead_letters(request(String::new(), true))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(page_ids(&first), [1, 2, 3]);
    discard(&client, select_ids([3, 4]), false).await.unwrap();
    harness.create_dead_letters(&client, 8..=8).await;
    let second = client
        .list_dead_letters(request(first.next_page_token.clone(), true))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(page_ids(&second), [5, 6, 7]);
    let third = client
        .list_dead_letters(request(second.next_page_token, true))
        .await
        .unwrap()
        .into_inner();
    assert_eq!((page_ids(&third), &third.next_page_token[..]), (vec![8], ""));
    let newest = client
        .list_dead_letters(request(String::new(), false))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(page_ids(&newest), [8, 7, 6]);

    // A page token is valid for its filter and order only.
    for wrong in [
        request(first.next_page_token.clone(), false),
        request("nonsense".into(), true),
        v1::ListDeadLettersRequest {
            filter: None,
            ..request(first.next_page_token, true)
        },
    ] {
        let refused = client.list_dead_letters(wrong).await.unwrap_err();
        assert_eq!(field(&refused), "page_token");
    }
    let negative = v1::ListDeadLettersRequest {
        page_size: -1,
        ..Default::default()
    };
    assert_eq!(
        field(&client.list_dead_letters(negative).await.unwrap_err()),
        "page_size"
    );
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_filtered_and_grouped() {
    let harness = Harness::start().await;
    let service = harness.run().await;
    let client = &service.client;
    harness.create_dead_letters(client, 1..=5).await;
    harness.publish_advisory("PUSH", "push-low", 77, None).await;
    dead_letters(client, 6).await;
    let find = async |filter: DeadLetterFilter| -> Vec<u64> {
        let found = list(client, filter).await;
        found
            .into_iter()
            .map(|dead_letter| dead_letter.dead_letter_id)
            .collect()
    };
    let any = DeadLetterFilter::default;
    for (filter, expected) in [
        (
            DeadLetterFilter {
                consumer: "push-low".into(),
                ..any()
            },
            vec![6],
        ),
        (
            DeadLetterFilter {
                author_id: "author".into(),
                ..any()
            },
            vec![1, 2, 3, 4, 5],
        ),
        (
            DeadLetterFilter {
                author_id: "nobody".into(),
                ..any()
            },
            vec![],
        ),
        (
            DeadLetterFilter {
                reason: "STATUS 503: 4".into(),
                ..any()
            },
            vec![4],
        ),
        (
            DeadLetterFilter {
                cause: v1::DeadLetterCause::MaxDeliveries.into(),
                ..any()
            },
            vec![6],
        ),
        (
            DeadLetterFilter {
                start_time: Some(prost_types::Timestamp {
                    seconds: 1_769_846_400,
                    nanos: 3_000,
                }),
                end_time: Some(prost_types::Timestamp {
                    seconds: 1_769_846_400,
                    nanos: 5_000,
                }),
                ..any()
            },
            vec![3, 4],
        ),
    ] {
        assert_eq!(find(filter.clone()).await, expected, "{filter:?}");
    }

    let mut other = client.clone();
    let groups = other.list_groups(v1::ListGroupsRequest::default()).await;
    let groups = groups.unwrap().into_inner();
    assert_eq!((groups.group_count, groups.dead_letter_count), (2, 6));
    let group = &groups.groups[0];
    assert_eq!((group.dead_letter_count, group.example_dead_letter_id), (5, 5));
    assert_eq!(group.reason, "push failed: webhook status 503: #");
    let in_group = DeadLetterFilter {
        group_id: group.group_id.clone(),
        ..any()
    };
    let done = redrive(client, filtered(in_group), None).await.unwrap();
    assert_eq!(done.resolved_count, 5);
    assert_eq!(in_state(client, DeadLetterState::Open).await, [6]);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn discarded_dead_letters_are_kept_and_the_audit_log_names_the_actor() {
    let harness = Harness::start().await;
    let service = harness.run().await;
    let mut client = service.client.clone();
    harness.create_dead_letters(&client, 1..=4).await;
    assert_eq!(discard(&client, select_all(), true).await.unwrap(), 4);
    assert_eq!(in_state(&client, DeadLetterState::Open).await.len(), 4);

    let mut request = tonic::Request::new(v1::DiscardDeadLettersRequest {
        selection: Some(select_ids([1, 2])),
        dry_run: false,
    });
    request
        .metadata_mut()
        .insert("herald-actor", "ann@laptop".parse().unwrap());
    client.discard_dead_letters(request).await.unwrap();
    discard(&client, select_all(), false).await.unwrap();
    assert_eq!(in_state(&client, DeadLetterState::Discarded).await, [1, 2, 3, 4]);
    let error = redrive(&client, select_ids([1]), None).await.unwrap_err();
    assert_eq!(reason(&error), "ALREADY_DISCARDED");
    let shown = get(&client, 1).await;
    assert!(!shown.payload.is_empty());
    assert_eq!(shown.operations[0].actor, "ann@laptop");

    let audit_log_page = |page_token: String| v1::ListOperationsRequest {
        page_size: 1,
        page_token,
    };
    let last = client
        .list_operations(audit_log_page(String::new()))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(last.operations[0].actor, "unknown");
    assert!(last.operations[0].selection.as_ref().unwrap().all);
    let first = client
        .list_operations(audit_log_page(last.next_page_token))
        .await
        .unwrap()
        .into_inner();
    let operation = &first.operations[0];
    assert_eq!(operation.kind(), v1::DeadLetterOperationKind::Discard);
    assert_eq!((operation.selected_count, operation.discarded_count), (2, 2));
    assert_eq!(operation.selection.as_ref().unwrap().dead_letter_ids, [1, 2]);
    assert!(operation.create_time.is_some());
    assert_eq!(first.next_page_token, "");
    service.stop().await;
}
