//! Dead letters: each must be explained by something that the suite did, what was done must have led to one, and what can be
//! mended is mended by a redrive.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use herald_proto::v1::{self, dead_letter_service_client::DeadLetterServiceClient};
use tonic::{Status, transport::Channel};

use crate::{workload::Journal, world::World};

/// For all that was refused to be delivered after all.
const REDRIVE_LIMIT: Duration = Duration::from_mins(1);
const INTERVAL: Duration = Duration::from_millis(300);

/// Redrives what was given up and isn't poison, until all of it is delivered. Dead letters that are missing yet come while it
/// waits: it must be called when nothing else is left to do.
pub(super) async fn redrive(world: &World, journal: &Journal) -> Vec<String> {
    let mut client = client(world);
    let started = Instant::now();
    loop {
        let left = match list(&mut client).await {
            Ok(dead_letters) => mendable(&dead_letters, journal),
            Err(status) => return vec![format!("{status:?}")],
        };
        if left.is_empty() {
            return Vec::new();
        }
        if started.elapsed() > REDRIVE_LIMIT {
            return left
                .into_iter()
                .map(|dead_letter| describe(&dead_letter))
                .collect();
        }
        let open = left
            .iter()
            .filter(|dead_letter| dead_letter.state() == v1::DeadLetterState::Open);
        let dead_letter_ids: Vec<u64> = open
            .map(|dead_letter| dead_letter.dead_letter_id)
            .take(1_000)
            .collect();
        if !dead_letter_ids.is_empty() {
            let selection = v1::DeadLetterSelection {
                dead_letter_ids,
                ..Default::default()
            };
            // One that was begun under the faults may send them at this very moment; then these are looked at again.
            match client.redrive_dead_letters(request(selection)).await {
                Ok(progress) => {
                    let mut progress = progress.into_inner();
                    while let Ok(Some(_)) = progress.message().await {}
                }
                Err(status) => world.log.say(format!("redrive: {}", status.message())),
            }
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Begins to redrive all that is open, poison too, and goes away.
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

/// What is wrong with the dead letters there are, and how many these are.
pub(super) async fn judge(world: &World, journal: &Journal) -> Result<(Vec<String>, usize), Status> {
    let dead_letters = list(&mut client(world)).await?;
    let mut wrong = Vec::new();
    let mut of_message = BTreeMap::<(&str, u64), Vec<&str>>::new();
    for dead_letter in &dead_letters {
        let consumers = of_message
            .entry((&dead_letter.stream, dead_letter.sequence))
            .or_default();
        if consumers.contains(&dead_letter.consumer.as_str()) {
            wrong.push(format!(
                "there is another dead letter of {}",
                describe(dead_letter)
            ));
        }
        consumers.push(&dead_letter.consumer);
        let poison = journal.is_poison(&dead_letter.stream, dead_letter.sequence);
        let failed = dead_letter.kind == "push" && journal.provider_failures() > 0;
        if !poison && !failed {
            wrong.push(format!("nothing explains {}", describe(dead_letter)));
        }
        if poison && dead_letter.state() == v1::DeadLetterState::Resolved {
            wrong.push(format!("nobody can have delivered {}", describe(dead_letter)));
        }
    }
    for (stream, sequence) in journal.poison() {
        let readers = if stream == "POSTS" { 3 } else { 1 };
        let consumers = of_message.get(&(stream.as_str(), sequence)).map_or(0, Vec::len);
        if consumers != readers {
            wrong.push(format!(
                "poison {sequence} of {stream} has {consumers} dead letters, {readers} consumers read it"
            ));
        }
    }
    Ok((wrong, dead_letters.len()))
}

fn mendable(dead_letters: &[v1::DeadLetter], journal: &Journal) -> Vec<v1::DeadLetter> {
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
        // Poison fails again, and that may stop nothing.
        failures_max: Some(0),
        ..Default::default()
    }
}

fn client(world: &World) -> DeadLetterServiceClient<Channel> {
    DeadLetterServiceClient::new(world.clients().channel)
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
