//! Sends one push to one device.

use std::{
    pin::pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use herald_model::{Address, Device, UserId, time::Timestamp};
use herald_push_endpoint::{Policy, check_parsed};
use url::Url;

use super::{
    Push, Vapid,
    admission::{Admission, NotAdmitted},
    client::{Client, ProviderError},
    request_spans::{Ended, RequestSpans},
    sender::{Message, Sender},
    web_push::WebPush,
    webhook::Webhooks,
};
use crate::{
    Config, Error, Metrics,
    claim::Claim,
    domain::{Provider, Reason, Sent, Verdict, busy_delay},
};

/// The part of a chunk in its sends.
pub(crate) struct Turn {
    /// Its claim.
    pub(crate) claim: Arc<Claim>,
    /// Longest wait for a busy host that isn't fast; `None` if the chunk has nowhere else to wait.
    pub(crate) host_wait: Option<Duration>,
    /// Share of the chunk, 0 to 1, in [`busy_delay`].
    pub(crate) busy_share: f64,
    /// The spans of its requests.
    pub(crate) requests: RequestSpans,
}

/// Sends pushes to devices.
pub(crate) struct Dispatcher {
    slow_response: Duration,
    client: Client,
    admission: Admission,
    endpoints: Policy,
    web_push: WebPush,
    webhooks: Webhooks,
    metrics: Metrics,
}

impl Dispatcher {
    pub(crate) fn new(config: &Config, vapid: Vapid, metrics: Metrics) -> Result<Self, Error> {
        Ok(Self {
            slow_response: config.slow_response(),
            client: Client::new(config)?,
            admission: Admission::new(config),
            endpoints: config.endpoints,
            web_push: WebPush { vapid },
            webhooks: Webhooks,
            metrics,
        })
    }

    /// Shows the circuit breakers in the metrics.
    pub(crate) fn show_breakers(&self) {
        self.metrics.show_breakers(self.admission.breakers());
    }

    /// Sends a push to a device once admission control permits it, if the claim of its chunk still lasts then. While
    /// the host is busy, the push leaves the chunk after [`Turn::host_wait`].
    pub(crate) async fn send(
        &self,
        push: &Push,
        recipient: &UserId,
        device: &Device,
        turn: &Turn,
    ) -> Verdict {
        let sender = self.sender(&device.address);
        let provider = sender.provider();
        let verdict = self.attempt_send(sender, push, recipient, device, turn).await;
        self.metrics.record_send(provider, verdict);
        if verdict == Verdict::Accepted {
            self.metrics
                .observe_accepted(push.lane, Timestamp::now().since(push.accepted_at));
        }
        verdict
    }

    /// The verdict about a device, with its provider and host.
    pub(crate) fn describe(&self, device: &Device, verdict: Verdict) -> Sent {
        Sent {
            device: device.id,
            provider: self.provider(device),
            host: host(device),
            verdict,
        }
    }

    /// The provider that delivers pushes to a device.
    pub(crate) fn provider(&self, device: &Device) -> Provider {
        self.sender(&device.address).provider()
    }

    fn sender(&self, address: &Address) -> &dyn Sender {
        match address {
            Address::WebPush { .. } => &self.web_push,
            Address::Webhook { .. } => &self.webhooks,
        }
    }

    async fn attempt_send(
        &self,
        sender: &dyn Sender,
        push: &Push,
        recipient: &UserId,
        device: &Device,
        turn: &Turn,
    ) -> Verdict {
        // Checked again because the device may have been registered under another policy, and because the resolver does
        // not see a literal IP address.
        let refused = Verdict::Refused(Reason::Endpoint);
        let Ok(url) = Url::parse(device.address.url()) else {
            return refused;
        };
        if check_parsed(&url, self.endpoints).is_err() {
            return refused;
        }
        let origin = url.origin().ascii_serialization();
        let admitted = self.admission.acquire(push.lane, &origin, turn.host_wait).await;
        let mut permit = match admitted {
            Ok(permit) => permit,
            Err(NotAdmitted::Open(wait)) => {
                return Verdict::Retry {
                    reason: Reason::Breaker,
                    after: Some(wait),
                };
            }
            Err(NotAdmitted::Busy) => {
                let now = Timestamp::now();
                let (age, left) = (now.since(push.accepted_at), push.expires_at.since(now));
                return Verdict::Retry {
                    reason: Reason::Busy,
                    after: Some(busy_delay(age, left, turn.busy_share)),
                };
            }
        };
        // The permit may have taken long.
        let now = Timestamp::now();
        if push.is_deleted() {
            return Verdict::Deleted;
        }
        if now >= push.expires_at {
            return Verdict::Expired;
        }
        let message = Message {
            push,
            recipient,
            device,
            url: &url,
            now,
        };
        let request = match sender.request(message).await {
            Ok(request) => request,
            Err(reason) => return Verdict::Refused(reason),
        };
        if !turn.claim.lasts() {
            return Verdict::Unclaimed;
        }
        let timer = self.metrics.start_request(sender.provider());
        let started = SystemTime::now();
        let mut responding = pin!(self.client.post(url.clone(), request));
        let response = tokio::select! {
            response = &mut responding => response,
            () = tokio::time::sleep(self.slow_response) => {
                permit.report_slow();
                responding.await
            }
        };
        drop(timer);
        turn.requests.record(&Ended {
            provider: sender.provider(),
            url: &url,
            started,
            response: match response {
                Ok(response) => Ok(response.status),
                Err(ProviderError::Transient(reason) | ProviderError::Permanent(reason)) => Err(reason),
            },
        });
        let is_response = response.is_ok();
        let verdict = match response {
            Ok(response) => sender.verdict(response),
            Err(ProviderError::Transient(reason)) => Verdict::Retry { reason, after: None },
            Err(ProviderError::Permanent(reason)) => Verdict::Refused(reason),
        };
        permit.report(&verdict, is_response);
        verdict
    }
}

/// The host of a device's endpoint, with the port unless it is the default; empty if the endpoint is malformed. For logs
/// and the ledger: the path can be a secret.
pub(crate) fn host(device: &Device) -> String {
    let url = Url::parse(device.address.url()).ok();
    let host = |url: Url| {
        let host = url.host_str()?;
        Some(match url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        })
    };
    url.and_then(host).unwrap_or_default()
}
