//! Output of received pushes, for `herald push-sink` and `herald up --demo`, and removal of the receiver's devices.

use futures::{StreamExt, stream};
use herald_cli::{
    client::Client,
    failure::{Failure, printable},
    output::{Output, Show, counted},
};
use herald_proto::v1::{Device, UnregisterDeviceRequest};
use herald_push_sink::Entry;
use serde::Serialize;
use tokio::sync::broadcast::{Receiver, error::RecvError};

/// Concurrent registrations or removals of devices.
pub(crate) const REGISTRATIONS_MAX: usize = 32;

/// A received push.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename = "push")]
pub(crate) struct Received {
    #[serde(flatten)]
    entry: Entry,
}

impl From<Entry> for Received {
    fn from(entry: Entry) -> Self {
        Self { entry }
    }
}

impl Show for Received {
    fn text(&self) -> String {
        let entry = &self.entry;
        format!(
            "push of post {} to {} after {:.0} ms, by {}{}: {}",
            entry.post_id,
            printable(&entry.recipient_id),
            entry.latency.as_secs_f64() * 1e3,
            printable(&entry.author_id),
            if entry.duplicate { " (duplicate)" } else { "" },
            console::truncate_str(&printable(&entry.text), 40, "…"),
        )
    }
}

/// Prints each push as it comes. Returns when the sink is dropped.
pub(crate) async fn print(pushes: &mut Receiver<Entry>, output: Output) -> Result<(), Failure> {
    loop {
        match pushes.recv().await {
            Ok(entry) => output.show(&Received::from(entry))?,
            Err(RecvError::Lagged(skipped)) => output.note(&format!(
                "output too slow: {} not printed",
                counted(skipped, "push", "pushes")
            )),
            Err(RecvError::Closed) => return Ok(()),
        }
    }
}

/// Removes devices. Tries all of them; the error names those that remain.
pub(crate) async fn remove_devices(devices: Vec<Device>, client: &Client) -> Result<(), Failure> {
    let remove = |device: Device| async move {
        let request = client.request(UnregisterDeviceRequest {
            user_id: device.user_id.clone(),
            device_id: device.device_id.clone(),
        });
        let removed = client.devices().unregister_device(request).await;
        removed.map_err(|status| (device, Failure::from(status)))
    };
    let failed: Vec<_> = stream::iter(devices)
        .map(remove)
        .buffer_unordered(REGISTRATIONS_MAX)
        .filter_map(|removed| async { removed.err() })
        .collect()
        .await;
    let count = failed.len() as u64;
    match failed.into_iter().next() {
        None => Ok(()),
        Some((device, failure)) => {
            let left = counted(count, "device was", "devices were");
            let command = format!(
                "herald device remove {} {}",
                herald_cli::output::shell_quoted(&device.user_id),
                herald_cli::output::shell_quoted(&device.device_id)
            );
            Err(failure
                .during(&format!("{left} not removed"))
                .hint(format!("remove each with `herald device remove`: {command}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_push_is_one_line_with_post_recipient_and_latency() {
        let text = Received::from(Entry {
            kind: herald_push_sink::Kind::Webhook,
            name: "1".into(),
            post_id: 17,
            author_id: "107".into(),
            recipient_id: "a\u{202e}b".into(),
            text: "two\nlines".into(),
            accepted_time: jiff::Timestamp::UNIX_EPOCH,
            received_time: jiff::Timestamp::UNIX_EPOCH,
            latency: Duration::from_micros(12_300),
            duplicate: false,
            message_id: String::new(),
            ttl_seconds: None,
            urgency: None,
        })
        .text();
        assert_eq!(
            text,
            r"push of post 17 to a\u{202e}b after 12 ms, by 107: two lines"
        );
    }
}
