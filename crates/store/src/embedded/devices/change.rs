//! Changes of one user's devices, as pure functions.

use herald_model::{
    Address, Device, DeviceId, Disabled, FailingStreak, PreviousSecret, Registration, UserKey,
    time::Timestamp,
};
use herald_push_endpoint::is_same_endpoint;

use crate::{DEVICES_PER_USER_MAX, Error, ErrorKind, Result, SECRET_OVERLAP};

/// A change of one user's devices.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    Register {
        address: Address,
        /// Whether a webhook that is already registered keeps its secret.
        keep_secret: bool,
        now: Timestamp,
    },
    RotateSecret {
        device: DeviceId,
        secret: Vec<u8>,
        previous_expires_at: Timestamp,
    },
    Enable(DeviceId),
    Unregister(DeviceId),
    UnregisterCurrent(Registration),
    UnregisterWebPush,
    /// Removes all devices, also those that can't be read.
    Erase,
    Disable(Registration, Disabled),
    RecordFailure(Registration, Timestamp),
    RecordSuccess(Registration),
    /// Writes the devices as they are, encrypted with the current key.
    Reseal,
}

/// What a [`Change`] did.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Applied {
    /// Number of devices that were added, changed or removed.
    pub(crate) changed: u64,
    /// The device of the change as it is now, or as it was before it was removed; `None` if there is no such device.
    pub(crate) device: Option<Device>,
}

impl Change {
    /// Registers a webhook; one that is already registered keeps its secret.
    pub(crate) fn register_webhook(url: String, new_secret: Vec<u8>, now: Timestamp) -> Self {
        Self::Register {
            address: Address::Webhook {
                url,
                secret: new_secret,
            },
            keep_secret: true,
            now,
        }
    }
}

impl Applied {
    /// The device of a [`Change::Register`].
    pub(crate) fn registered(self) -> Result<Device> {
        self.device
            .ok_or_else(|| Error::new(ErrorKind::Corrupt, "a registered device is missing"))
    }

    /// The device of the change if it is a webhook.
    pub(crate) fn webhook(self) -> Option<Device> {
        self.device
            .filter(|device| matches!(device.address, Address::Webhook { .. }))
    }
}

/// Whether a device gets Web Push.
pub(crate) fn is_web_push(device: &Device) -> bool {
    matches!(device.address, Address::WebPush { .. })
}

/// Applies a change to the devices of `user`. `last_id` is the greatest device id in use.
pub(crate) fn apply(
    change: Change,
    user: UserKey,
    devices: &mut Vec<Device>,
    last_id: &mut u64,
) -> Result<Applied> {
    let applied = match change {
        Change::Register {
            address,
            keep_secret,
            now,
        } => return register(user, devices, last_id, address, keep_secret, now),
        Change::RotateSecret {
            device,
            secret,
            previous_expires_at,
        } => update(
            devices,
            |d| d.id == device,
            |d| replace_secret(d, secret, previous_expires_at),
        ),
        Change::Enable(device) => update(devices, |d| d.id == device, renew),
        Change::Unregister(device) => remove(devices, |d| d.id == device),
        Change::UnregisterCurrent(current) => remove(devices, |d| d.registration() == current),
        Change::UnregisterWebPush => remove(devices, is_web_push),
        Change::Erase => remove(devices, |_| true),
        Change::Disable(current, disabled) => update(
            devices,
            |d| d.registration() == current && d.disabled.is_none(),
            |d| d.disabled = Some(disabled),
        ),
        Change::RecordFailure(current, now) => update(
            devices,
            |d| d.registration() == current,
            |d| d.failing = FailingStreak::with_failure(d.failing, now).or(d.failing),
        ),
        Change::RecordSuccess(current) => {
            update(devices, |d| d.registration() == current, |d| d.failing = None)
        }
        Change::Reseal => Applied {
            changed: devices.len() as u64,
            device: None,
        },
    };
    Ok(applied)
}

/// Adds a device, or renews the device with the same endpoint.
fn register(
    user: UserKey,
    devices: &mut Vec<Device>,
    last_id: &mut u64,
    address: Address,
    keep_secret: bool,
    now: Timestamp,
) -> Result<Applied> {
    let known = devices
        .iter_mut()
        .find(|d| is_same_endpoint(d.address.url(), address.url()));
    if let Some(device) = known {
        match (&mut device.address, address) {
            (Address::Webhook { url, .. }, Address::Webhook { url: canonical, .. }) if keep_secret => {
                *url = canonical;
            }
            (
                Address::Webhook { url, .. },
                Address::Webhook {
                    url: canonical,
                    secret,
                },
            ) => {
                *url = canonical;
                replace_secret(device, secret, now.plus(SECRET_OVERLAP));
            }
            (_, address) => {
                device.address = address;
                device.previous_secret = None;
            }
        }
        renew(device);
        return Ok(Applied {
            changed: 1,
            device: Some(device.clone()),
        });
    }
    if devices.len() >= DEVICES_PER_USER_MAX {
        return Err(Error::new(
            ErrorKind::LimitExceeded,
            format!("user {user} has {DEVICES_PER_USER_MAX} devices, the maximum: unregister one first"),
        ));
    }
    *last_id += 1;
    let device = Device::new(DeviceId(*last_id), user, address, now);
    devices.push(device.clone());
    Ok(Applied {
        changed: 1,
        device: Some(device),
    })
}

/// Starts a new generation of a device, enabled and without failures.
fn renew(device: &mut Device) {
    device.generation = device.generation.saturating_add(1);
    device.failing = None;
    device.disabled = None;
}

/// Replaces the secret of a webhook, and keeps the one before it until a time.
fn replace_secret(device: &mut Device, new: Vec<u8>, previous_expires_at: Timestamp) {
    if let Address::Webhook { secret, .. } = &mut device.address
        && *secret != new
    {
        device.previous_secret = Some(PreviousSecret {
            secret: std::mem::replace(secret, new),
            expires_at: previous_expires_at,
        });
    }
}

/// Changes the device that `is_target` selects.
fn update(
    devices: &mut [Device],
    is_target: impl Fn(&Device) -> bool,
    change: impl FnOnce(&mut Device),
) -> Applied {
    let Some(device) = devices.iter_mut().find(|device| is_target(device)) else {
        return Applied::default();
    };
    let before = device.clone();
    change(device);
    Applied {
        changed: u64::from(*device != before),
        device: Some(device.clone()),
    }
}

/// Removes the devices that `is_target` selects.
fn remove(devices: &mut Vec<Device>, is_target: impl Fn(&Device) -> bool) -> Applied {
    let before = devices.len();
    let device = devices.iter().find(|device| is_target(device)).cloned();
    devices.retain(|device| !is_target(device));
    Applied {
        changed: (before - devices.len()) as u64,
        device,
    }
}
