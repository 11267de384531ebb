//! Output of commands: JSON for programs (`Serialize`), text for people ([`Show::text`]).

use std::io::{self, Write as _};

use clap::ValueEnum;
use herald_model::{Channel, DeliveryState, Lane};
use herald_proto::v1;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::{Serialize, Serializer, ser::SerializeMap};

use crate::failure::{Failure, Kind, printable};
pub use crate::table::{Size, Table};

/// The format of results and errors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people: tables, relative times, colours on a terminal
    #[default]
    Text,
    /// For programs: one JSON object, or one object per line for streams
    Json,
}

/// A result that can be printed as text and as JSON.
pub trait Show: Serialize {
    /// The text for people, without a line break at the end.
    fn text(&self) -> String;
}

/// Prints results to standard output, notes and errors to standard error. A pipe then receives results only.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    format: Format,
}

impl Output {
    /// Creates an output with this format.
    pub const fn new(format: Format) -> Self {
        Self { format }
    }

    /// Whether the format is JSON.
    pub fn is_json(self) -> bool {
        self.format == Format::Json
    }

    /// Prints one result: as text, or as one line of JSON.
    pub fn show<T: Show>(self, result: &T) -> Result<(), Failure> {
        let mut text = match self.format {
            Format::Text => result.text(),
            Format::Json => serde_json::to_string(result).map_err(|error| {
                Failure::failed(format!("the result can't be serialized as JSON: {error}"))
            })?,
        };
        text.push('\n');
        Self::write(&text)
    }

    /// Writes text to standard output and flushes it.
    pub fn write(text: &str) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        stdout
            .write_all(text.as_bytes())
            .and_then(|()| stdout.flush())
            .map_err(|error| match error.kind() {
                io::ErrorKind::BrokenPipe => Failure::new(Kind::OutputClosed, "standard output was closed"),
                _ => Failure::io("standard output", &error),
            })
    }

    /// Prints a note to standard error. With JSON output notes are skipped.
    pub fn note(self, text: &str) {
        if !self.is_json() {
            // A note is optional: a closed standard error doesn't stop the command.
            let _ = writeln!(io::stderr(), "{text}");
        }
    }

    /// Prints a failure to standard error, as text or as one JSON object.
    pub fn report(self, failure: &Failure) {
        if failure.kind() == Kind::OutputClosed {
            return;
        }
        let report = match self.format {
            Format::Text => failure.text(),
            Format::Json => failure.json(),
        };
        // A closed standard error leaves nowhere to report to.
        let _ = io::stderr().write_all(report.as_bytes());
    }

    /// Creates a progress bar on standard error; hidden for JSON output and without a terminal. `template` has
    /// indicatif's syntax.
    pub fn progress_bar(self, length: Option<u64>, template: &str) -> ProgressBar {
        let target = if self.is_json() {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr()
        };
        let bar = ProgressBar::with_draw_target(length, target);
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar
    }
}

/// Formats `1234567` as `1,234,567`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Formats a count with its noun: `1 follow`, `2 follows`.
pub fn counted(number: u64, one: &str, many: &str) -> String {
    format!("{} {}", count(number), if number == 1 { one } else { many })
}

/// Formats a size in B, kB, MB, GB or TB (powers of 1,000).
pub fn bytes(number: u64) -> String {
    let mut value = number as f64;
    let mut unit = "B";
    for next in ["kB", "MB", "GB", "TB"] {
        if value < 1_000.0 {
            break;
        }
        value /= 1_000.0;
        unit = next;
    }
    if unit == "B" {
        format!("{number} B")
    } else {
        format!("{value:.1} {unit}")
    }
}

/// The printed name of a lane of the API.
pub fn lane_name(lane: i32) -> &'static str {
    match v1::Lane::try_from(lane) {
        Ok(v1::Lane::High) => Lane::High.as_str(),
        Ok(v1::Lane::Low) => Lane::Low.as_str(),
        // Every service treats an unspecified lane as normal.
        _ => Lane::Normal.as_str(),
    }
}

/// The number of a lane in the API.
pub fn lane_number(lane: Lane) -> i32 {
    let lane = match lane {
        Lane::High => v1::Lane::High,
        Lane::Normal => v1::Lane::Normal,
        Lane::Low => v1::Lane::Low,
    };
    lane.into()
}

/// The printed name of a channel of the API.
pub fn channel_name(channel: i32) -> &'static str {
    match v1::Channel::try_from(channel) {
        Ok(v1::Channel::Timeline) => Channel::Timeline.as_str(),
        Ok(v1::Channel::Push) => Channel::Push.as_str(),
        _ => "unknown",
    }
}

/// The printed name of a delivery state of the API.
pub fn state_name(state: i32) -> &'static str {
    match v1::DeliveryState::try_from(state) {
        Ok(v1::DeliveryState::Pending) => DeliveryState::Pending.as_str(),
        Ok(v1::DeliveryState::Delivered) => DeliveryState::Delivered.as_str(),
        Ok(v1::DeliveryState::Suppressed) => DeliveryState::Suppressed.as_str(),
        Ok(v1::DeliveryState::Expired) => DeliveryState::Expired.as_str(),
        Ok(v1::DeliveryState::Dead) => DeliveryState::Dead.as_str(),
        _ => "unknown",
    }
}

/// The printed name of the reason of a suppressed delivery; `None` if it has none.
pub const fn suppressed_reason_name(reason: v1::SuppressedReason) -> Option<&'static str> {
    Some(match reason {
        v1::SuppressedReason::Unspecified => return None,
        v1::SuppressedReason::NoDevice => "no_device",
        v1::SuppressedReason::Muted => "muted",
        v1::SuppressedReason::PushOff => "push_off",
        v1::SuppressedReason::PostDeleted => "post_deleted",
        v1::SuppressedReason::DeviceGone => "device_gone",
        v1::SuppressedReason::DeviceDisabled => "device_disabled",
        v1::SuppressedReason::UnknownUser => "unknown_user",
        v1::SuppressedReason::Inactive => "inactive",
        v1::SuppressedReason::Drowning => "drowning",
    })
}

/// Quotes a word for a POSIX shell.
pub fn shell_quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.@:/+,=".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", printable(word).replace('\'', r"'\''"))
    }
}

/// Serializes pairs as a JSON object; the keys keep their order.
pub fn as_map<S: Serializer, V: Serialize>(
    pairs: &[(&'static str, V)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(pairs.len()))?;
    for (key, value) in pairs {
        map.serialize_entry(key, value)?;
    }
    map.end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_formatted() {
        assert_eq!(
            [0, 12, 123, 1_234, 123_456, 1_234_567].map(count),
            ["0", "12", "123", "1,234", "123,456", "1,234,567"]
        );
        assert_eq!(counted(1, "line", "lines"), "1 line");
        assert_eq!(
            [0, 999, 1_500, 2_000_000].map(bytes),
            ["0 B", "999 B", "1.5 kB", "2.0 MB"]
        );
    }

    #[test]
    fn words_are_quoted_for_a_shell() {
        assert_eq!(
            ["107", "a b", "it's", ""].map(shell_quoted),
            ["107", "'a b'", r"'it'\''s'", "''"]
        );
    }
}
