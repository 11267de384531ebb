//! Dead letters: each must have an injected fault as cause, each poison message must have its dead letters, and a
//! redrive must resolve all others.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use herald_proto::v1::{self, dead_letter_service_client::DeadLetterServiceClient};
use tonic::{Status, transport::Channel};

use crate::{workload::Journal, world::World};

/// Time limit for the redrive of all redrivable dead letters.
const REDRIVE_LIMIT: Duration = Duration::from_mins(1);
const INTERVAL: Duration = Duration::from_millis(300);

/// Result of the checker's redrive.
#[derive(Default)]
pub(super) struct Redriven {
    /// Dead letters that the redrive was asked for, counted in each round.
    pub(super) sent: usize,
    /// Dead letters that it didn't resolve.
    pub(super) left: Vec<String>,
}

/// Redrives all dead letters except poison until they are resolved. Call it after the mesh has drained, so that no new
/// dead letters appear.
pub(super) async fn redrive(world: &World, journal: &Journal) -> Redriven {
    let mut client = client(world);
    let started = Instant::now();
    let mut redriven = Redriven::default();
    loop {
        let left = match list(&mut client).await {
            Ok(dead_letters) => redrivable(&dead_letters, journal),
            Err(status) => {
                redriven.left = vec![format!("{status:?}")];
                return redriven;
            }
        };
        if left.is_empty() {
            return redriven;
        }
        if started.elapsed() > REDRIVE_LIMIT {
            redriven.left = left.iter().map(describe).collect();
            return redriven;
        }
        let open = left
            .iter()
            .filter(|dead_letter| dead_letter.state() == v1::DeadLetterState::Open);
        let dead_letter_ids: Vec<u64> = open
            .map(|dead_letter| dead_letter.dead_letter_id)
            .take(1_000)
            .collect();
        if !dead_letter_ids.is_empty() {
            redriven.sent += dead_letter_ids.len();
            let selection = v1::DeadLetterSelection {
                dead_letter_ids,
                ..Default::default()
            };
            // A redrive started by a fault may still send the same dead letters; the next round checks them again.
            match client.redrive_dead_letters(request(selection)).await {
                Ok(progress) => {
                    let mut progress = progress.into_inner();
                    while let Ok(Some(_)) = progress.message().await {}
                }
                Err(status) => world.log.print(format!("redrive failed: {}", status.message())),
            }
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Starts a redrive of all open dead letters, including poison, and doesn't wait for its end.
pub(crate) async fn redrive_all(world: &World) -> Result<(), Status> {
    let selection = v1::DeadLetterSelection {
        all: true,
        ..Default::default()
    };
    client(world)
        .redrive_dead_letters(request(selection))
        .await?
        .into_inner()
        .message()
        .await
        .map(drop)
}

/// Returns violations and the number of dead letters.
pub(super) async fn check(world: &World, journal: &Journal) -> Result<(Vec<String>, usize), Status> {
    let dead_letters = list(&mut client(world)).await?;
    let mut violations = Vec::new();
    let mut of_message = BTreeMap::<(&str, u64), Vec<&str>>::new();
    for dead_letter in &dead_letters {
        let consumers = of_message
            .entry((&dead_letter.stream, dead_letter.sequence))
            .or_default();
        if consumers.contains(&dead_letter.consumer.as_str()) {
            violations.push(format!("duplicate of {}", describe(dead_letter)));
        }
        consumers.push(&dead_letter.consumer);
        let poison = journal.is_poison(&dead_letter.stream, dead_letter.sequence);
        let failed = dead_letter.kind == "push" && journal.provider_failures() > 0;
        if !poison && !failed {
            violations.push(format!("no fault explains {}", describe(dead_letter)));
        }
        if poison && dead_letter.state() == v1::DeadLetterState::Resolved {
            violations.push(format!("poison can't be resolved: {}", describe(dead_letter)));
        }
    }
    for (stream, sequence) in journal.poison() {
        let readers = if stream == "POSTS" { 3 } else { 1 };
        let consumers = of_message.get(&(stream.as_str(), sequence)).map_or(0, Vec::len);
        if consumers != readers {
            violations.push(format!(
                "poison message {sequence} of {stream} has {consumers} dead letters, expected {readers}: one per consumer"
            ));
        }
    }
    Ok((violations, dead_letters.len()))
}

fn redrivable(dead_letters: &[v1::DeadLetter], journal: &Journal) -> Vec<v1::DeadLetter> {
    let done = |dead_letter: &v1::DeadLetter| {
        dead_letter.state() == v1::DeadLetterState::Resolved
            || journal.is_poison(&dead_letter.stream, dead_letter.sequence)
    };
    dead_letters
        .iter()
        .filter(|dead_letter| !done(dead_letter))
        .cloned()
        .collect()
}

async fn list(client: &mut DeadLetterServiceClient<Channel>) -> Result<Vec<v1::DeadLetter>, Status> {
    let mut dead_letters = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = v1::ListDeadLettersRequest {
            oldest_first: true,
            page_size: 1_000,
            page_token,
            ..Default::default()
        };
        let page = client.list_dead_letters(request).await?.into_inner();
        dead_letters.extend(page.dead_letters);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(dead_letters);
        }
    }
}

fn request(selection: v1::DeadLetterSelection) -> v1::RedriveDeadLettersRequest {
    v1::RedriveDeadLettersRequest {
        selection: Some(selection),
        // Poison fails again, which must not stop the redrive.
        failures_max: Some(0),
        ..Default::default()
    }
}

fn client(world: &World) -> DeadLetterServiceClient<Channel> {
    DeadLetterServiceClient::new(world.clients().operators)
}

fn describe(dead_letter: &v1::DeadLetter) -> String {
    format!(
        "dead letter {} ({:?}): {} {} of {}: {}",
        dead_letter.dead_letter_id,
        dead_letter.state(),
        dead_letter.stream,
        dead_letter.sequence,
        dead_letter.consumer,
        dead_letter.reason
    )
}
