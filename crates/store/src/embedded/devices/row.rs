//! The stored form of devices.

use herald_model::{
    Address, Device, DeviceId, Disabled, DisabledReason, FailingStreak, PreviousSecret, UserKey,
    time::Timestamp,
};
use prost::Message;

use crate::{Error, ErrorKind, Result};

/// The stored devices of a user, oldest first.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Rows {
    #[prost(message, repeated, tag = "1")]
    devices: Vec<Row>,
}

/// A stored device.
#[derive(Clone, PartialEq, Message)]
struct Row {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(int64, tag = "2")]
    registered_at: i64,
    #[prost(oneof = "Stored", tags = "3, 4")]
    address: Option<Stored>,
    /// 0 in rows that were written before there were generations.
    #[prost(uint32, tag = "5")]
    generation: u32,
    #[prost(message, optional, tag = "6")]
    failing: Option<Failing>,
    #[prost(message, optional, tag = "7")]
    disabled: Option<StoredDisabled>,
    #[prost(message, optional, tag = "8")]
    previous_secret: Option<StoredSecret>,
}

/// A stored address.
#[derive(Clone, PartialEq, prost::Oneof)]
enum Stored {
    #[prost(message, tag = "3")]
    WebPush(WebPush),
    #[prost(message, tag = "4")]
    Webhook(Webhook),
}

#[derive(Clone, PartialEq, Message)]
struct WebPush {
    #[prost(string, tag = "1")]
    endpoint: String,
    #[prost(bytes = "vec", tag = "2")]
    p256dh: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    auth: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct Webhook {
    #[prost(string, tag = "1")]
    url: String,
    #[prost(bytes = "vec", tag = "2")]
    secret: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct Failing {
    #[prost(int64, tag = "1")]
    since: i64,
    #[prost(uint32, tag = "2")]
    days: u32,
    #[prost(int64, tag = "3")]
    day_started_at: i64,
}

#[derive(Clone, PartialEq, Message)]
struct StoredDisabled {
    /// 1: gone; 2: failing.
    #[prost(uint32, tag = "1")]
    reason: u32,
    #[prost(int64, tag = "2")]
    at: i64,
}

#[derive(Clone, PartialEq, Message)]
struct StoredSecret {
    #[prost(bytes = "vec", tag = "1")]
    secret: Vec<u8>,
    #[prost(int64, tag = "2")]
    expires_at: i64,
}

impl Rows {
    pub(crate) fn from_devices(devices: &[Device]) -> Self {
        Self {
            devices: devices.iter().map(Row::from_device).collect(),
        }
    }

    /// The devices of `user`; `None` if a row is malformed.
    pub(crate) fn into_devices(self, user: UserKey) -> Option<Vec<Device>> {
        self.devices
            .into_iter()
            .map(|row| row.into_device(user))
            .collect()
    }
}

impl Row {
    fn from_device(device: &Device) -> Self {
        let address = match device.address.clone() {
            Address::WebPush {
                endpoint,
                p256dh,
                auth,
            } => Stored::WebPush(WebPush {
                endpoint,
                p256dh,
                auth,
            }),
            Address::Webhook { url, secret } => Stored::Webhook(Webhook { url, secret }),
        };
        Self {
            id: device.id.0,
            registered_at: device.registered_at.0,
            address: Some(address),
            generation: device.generation,
            failing: device.failing.map(|streak| Failing {
                since: streak.since.0,
                days: streak.days,
                day_started_at: streak.day_started_at.0,
            }),
            disabled: device.disabled.map(|disabled| StoredDisabled {
                reason: match disabled.reason {
                    DisabledReason::Gone => 1,
                    DisabledReason::Failing => 2,
                },
                at: disabled.at.0,
            }),
            previous_secret: device.previous_secret.clone().map(|previous| StoredSecret {
                secret: previous.secret,
                expires_at: previous.expires_at.0,
            }),
        }
    }

    fn into_device(self, user: UserKey) -> Option<Device> {
        let address = match self.address? {
            Stored::WebPush(WebPush {
                endpoint,
                p256dh,
                auth,
            }) => Address::WebPush {
                endpoint,
                p256dh,
                auth,
            },
            Stored::Webhook(Webhook { url, secret }) => Address::Webhook { url, secret },
        };
        let disabled = match self.disabled {
            None => None,
            Some(StoredDisabled { reason, at }) => Some(Disabled {
                reason: match reason {
                    1 => DisabledReason::Gone,
                    2 => DisabledReason::Failing,
                    _ => return None,
                },
                at: Timestamp(at),
            }),
        };
        Some(Device {
            id: DeviceId(self.id),
            user,
            address,
            registered_at: Timestamp(self.registered_at),
            generation: self.generation,
            failing: self.failing.map(|streak| FailingStreak {
                since: Timestamp(streak.since),
                days: streak.days,
                day_started_at: Timestamp(streak.day_started_at),
            }),
            disabled,
            previous_secret: self.previous_secret.map(|previous| PreviousSecret {
                secret: previous.secret,
                expires_at: Timestamp(previous.expires_at),
            }),
        })
    }
}

/// Decodes the row of `user`.
pub(crate) fn decode(user: UserKey, row: &[u8]) -> Result<Vec<Device>> {
    let devices = Rows::decode(row).ok().and_then(|rows| rows.into_devices(user));
    devices.ok_or_else(|| {
        Error::new(
            ErrorKind::Corrupt,
            format!("can't decode the devices of user {user}"),
        )
    })
}

/// Approximate memory of a device, bytes.
pub(super) fn memory_bytes(device: &Device) -> usize {
    let previous = device.previous_secret.as_ref();
    size_of::<Device>()
        + previous.map_or(0, |previous| previous.secret.len())
        + match &device.address {
            Address::WebPush {
                endpoint,
                p256dh,
                auth,
            } => endpoint.len() + p256dh.len() + auth.len(),
            Address::Webhook { url, secret } => url.len() + secret.len(),
        }
}
