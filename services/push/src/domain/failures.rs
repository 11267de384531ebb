//! Failures of a chunk, summed up for its log line and its dead letter.

use std::{collections::BTreeMap, fmt::Write as _};

use herald_store::DeviceFailure;

/// Hosts that a summary names.
const HOSTS_MAX: usize = 3;

/// Devices that a summary names.
const DEVICES_MAX: usize = 5;

/// Failures of a chunk: how many for each reason, at which hosts, and the first devices.
#[derive(Debug, Default)]
pub(crate) struct FailureSummary {
    reasons: BTreeMap<String, u32>,
    hosts: BTreeMap<String, u32>,
    devices: Vec<u64>,
    /// The first error of a recipient that can't be read, and the number of these recipients.
    isolated: Option<(String, u32)>,
}

impl FailureSummary {
    /// Adds a failure.
    pub(crate) fn add(&mut self, failed: &DeviceFailure) {
        let Some(device) = failed.device else {
            let (_, count) = self
                .isolated
                .get_or_insert_with(|| (failed.failure.reason.clone(), 0));
            *count += 1;
            return;
        };
        *self.reasons.entry(failed.failure.reason.clone()).or_default() += 1;
        if !failed.failure.host.is_empty() {
            *self.hosts.entry(failed.failure.host.clone()).or_default() += 1;
        }
        if self.devices.len() < DEVICES_MAX {
            self.devices.push(device.0);
        }
    }

    /// Number of failed devices.
    pub(crate) fn count(&self) -> u32 {
        self.reasons.values().sum()
    }

    /// The failures by reason, such as `web_push status 429: 2`; `not attempted` if there are none. `all` is the number
    /// of recipients of the chunk.
    ///
    /// Dead letters are grouped by this text without its last part, the hosts and devices in parentheses.
    pub(crate) fn reason(&self, all: usize) -> String {
        let mut parts = Vec::new();
        if let Some((error, isolated)) = &self.isolated {
            parts.push(format!("{error} (for {isolated} of {all} recipients, isolated)"));
        }
        if !self.reasons.is_empty() {
            parts.push(self.reasons());
        }
        if parts.is_empty() {
            return "not attempted".into();
        }
        let mut text = parts.join(", ");
        if !self.devices.is_empty() {
            let (hosts, devices) = (self.hosts(), self.devices());
            // Writing to a `String` can't fail.
            let _ = write!(text, " (hosts \"{hosts}\", devices \"{devices}\")");
        }
        text
    }

    /// The reasons with their numbers of devices.
    pub(crate) fn reasons(&self) -> String {
        let reasons = self.reasons.iter();
        let texts: Vec<_> = reasons
            .map(|(reason, count)| format!("{reason}: {count}"))
            .collect();
        texts.join(", ")
    }

    /// The most frequent hosts with their numbers of failures.
    pub(crate) fn hosts(&self) -> String {
        let mut hosts: Vec<_> = self.hosts.iter().collect();
        hosts.sort_by_key(|(host, count)| (std::cmp::Reverse(**count), (*host).clone()));
        let mut text = String::new();
        for (host, count) in hosts.iter().take(HOSTS_MAX) {
            let comma = if text.is_empty() { "" } else { ", " };
            // Writing to a `String` can't fail.
            let _ = write!(text, "{comma}{host} ({count})");
        }
        if hosts.len() > HOSTS_MAX {
            let _ = write!(text, ", {} more", hosts.len() - HOSTS_MAX);
        }
        text
    }

    /// The ids of the first devices.
    pub(crate) fn devices(&self) -> String {
        let devices: Vec<_> = self.devices.iter().map(u64::to_string).collect();
        let more = if self.count() as usize > devices.len() {
            ", …"
        } else {
            ""
        };
        format!("{}{more}", devices.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use herald_model::DeviceId;
    use herald_store::PushFailure;

    use super::*;

    fn failed(device: Option<u64>, reason: &str, host: &str) -> DeviceFailure {
        DeviceFailure {
            device: device.map(DeviceId),
            failure: PushFailure::new(reason, host),
        }
    }

    #[test]
    fn a_reason_names_the_most_frequent_hosts_and_the_first_devices() {
        let mut summary = FailureSummary::default();
        assert_eq!(summary.reason(8), "not attempted");
        for device in 1..=4 {
            summary.add(&failed(Some(device), "webhook status 400", "b.example"));
        }
        for (device, host) in [(5, "a.example"), (6, "c.example"), (7, "d.example")] {
            summary.add(&failed(Some(device), "webhook timeout", host));
        }
        assert_eq!(
            summary.reason(8),
            "webhook status 400: 4, webhook timeout: 3 (hosts \"b.example (4), a.example (1), c.example (1), 1 more\", \
             devices \"1, 2, 3, 4, 5, …\")"
        );
        summary.add(&failed(None, "panic: malformed", ""));
        assert!(
            summary
                .reason(8)
                .starts_with("panic: malformed (for 1 of 8 recipients, isolated), webhook status 400: 4,")
        );
    }
}
