//! The stored form of devices.

use herald_model::{
    Address, Device, DeviceId, Disabled, DisabledReason, FailingStreak, PreviousSecret, UserKey,
    time::Timestamp,
};
use prost::Message;

use crate::{
    Error, ErrorKind, Result,
    encryption::{Keyring, key_of},
};

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
    /// [`Contents`], encrypted; then there is no `address` and no `previous_secret`. Empty in a row that is not encrypted.
    #[prost(bytes = "vec", tag = "9")]
    sealed: Vec<u8>,
    /// Of an encrypted row: whether the device gets Web Push.
    #[prost(bool, tag = "10")]
    is_web_push: bool,
}

/// What is encrypted of a device.
#[derive(Clone, PartialEq, Message)]
struct Contents {
    #[prost(oneof = "Stored", tags = "3, 4")]
    address: Option<Stored>,
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
    /// The rows of devices, encrypted with the current key if there is one.
    pub(super) fn seal(devices: &[Device], keys: &Keyring) -> Result<Self> {
        let rows = devices.iter().map(|device| {
            let mut row = Row::from_device(device);
            row.seal(device.user, keys)?;
            Ok(row)
        });
        Ok(Self {
            devices: rows.collect::<Result<_>>()?,
        })
    }

    /// The devices of `user`.
    pub(super) fn open(self, user: UserKey, keys: &Keyring) -> Result<Vec<Device>> {
        let devices = self.devices.into_iter().map(|mut row| {
            row.open(user, keys)?;
            row.into_device(user).ok_or_else(|| undecodable(user))
        });
        devices.collect()
    }

    /// Whether all devices are encrypted with the current key; true without one.
    pub(super) fn are_sealed(&self, keys: &Keyring) -> bool {
        let Some(current) = keys.current() else {
            return true;
        };
        self.devices
            .iter()
            .all(|row| key_of(&row.sealed) == Some(current))
    }

    /// Removes the devices whose keys are lost. Returns their number.
    pub(super) fn remove_lost(&mut self, keys: &Keyring) -> u64 {
        let before = self.devices.len();
        self.devices.retain(|row| !keys.is_lost(&row.sealed));
        (before - self.devices.len()) as u64
    }

    pub(super) fn len(&self) -> u64 {
        self.devices.len() as u64
    }

    pub(super) fn is_empty(&self) -> bool {
        self.devices.is_empty()
    }

    /// Whether a device gets Web Push. Needs no key.
    pub(super) fn have_web_push(&self) -> bool {
        let is_web_push = |row: &Row| row.is_web_push || matches!(row.address, Some(Stored::WebPush(_)));
        self.devices.iter().any(is_web_push)
    }
}

impl Row {
    /// Encrypts what is secret, if there is a key.
    fn seal(&mut self, user: UserKey, keys: &Keyring) -> Result<()> {
        let contents = Contents {
            address: self.address.clone(),
            previous_secret: self.previous_secret.clone(),
        };
        let sealed = keys.seal(user, DeviceId(self.id), &contents.encode_to_vec())?;
        if let Some(sealed) = sealed {
            self.is_web_push = matches!(self.address, Some(Stored::WebPush(_)));
            self.sealed = sealed;
            self.address = None;
            self.previous_secret = None;
        }
        Ok(())
    }

    /// Decrypts what is encrypted.
    fn open(&mut self, user: UserKey, keys: &Keyring) -> Result<()> {
        if self.sealed.is_empty() {
            return Ok(());
        }
        let contents = keys.open(user, DeviceId(self.id), &self.sealed)?;
        let contents = Contents::decode(&contents[..]).map_err(|_| undecodable(user))?;
        self.address = contents.address;
        self.previous_secret = contents.previous_secret;
        Ok(())
    }

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
            sealed: Vec::new(),
            is_web_push: false,
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

/// The error of a row that can't be decoded.
pub(super) fn undecodable(user: UserKey) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!("can't decode the devices of user {user}"),
    )
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
