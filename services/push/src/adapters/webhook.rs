//! Webhooks with the signature of Standard Webhooks.

use async_trait::async_trait;
use herald_model::Address;
use http::{HeaderMap, HeaderName, HeaderValue, header::CONTENT_TYPE};
use standardwebhooks::Webhook;

use super::{
    client::Request,
    sender::{Message, Sender},
};
use crate::domain::{Provider, Reason};

const ID: HeaderName = HeaderName::from_static(standardwebhooks::HEADER_WEBHOOK_ID);
const TIMESTAMP: HeaderName = HeaderName::from_static(standardwebhooks::HEADER_WEBHOOK_TIMESTAMP);
const SIGNATURE: HeaderName = HeaderName::from_static(standardwebhooks::HEADER_WEBHOOK_SIGNATURE);

/// Sends webhooks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Webhooks;

#[async_trait]
impl Sender for Webhooks {
    fn provider(&self) -> Provider {
        Provider::Webhook
    }

    async fn request(&self, message: Message<'_>) -> Result<Request, Reason> {
        let Address::Webhook { secret, .. } = &message.device.address else {
            return Err(Reason::Device);
        };
        let previous = message.device.previous_secret.as_ref();
        let previous = previous.filter(|previous| message.now < previous.expires_at);
        let body = message.push.json(message.recipient);
        // The same at every attempt, so that receivers can detect duplicates.
        let id = format!(
            "msg_{}_{}_{}",
            message.push.post, message.device.user, message.device.id.0
        );
        let seconds = message.now.0 / 1_000_000;
        // A receiver accepts the request if any of the signatures, separated by spaces, is valid.
        let mut signatures = Vec::new();
        for secret in [Some(secret), previous.map(|previous| &previous.secret)]
            .into_iter()
            .flatten()
        {
            let signature = Webhook::from_bytes(secret.clone())
                .and_then(|secret| secret.sign(&id, seconds, &body))
                .map_err(|_| Reason::Device)?;
            signatures.push(signature);
        }
        let value = |text: String| HeaderValue::try_from(text).map_err(|_| Reason::Device);
        let headers = HeaderMap::from_iter([
            (CONTENT_TYPE, HeaderValue::from_static("application/json")),
            (ID, value(id)?),
            (TIMESTAMP, HeaderValue::from(seconds)),
            (SIGNATURE, value(signatures.join(" "))?),
        ]);
        Ok(Request { headers, body })
    }
}

#[cfg(test)]
mod tests {
    use herald_model::{Device, DeviceId, PreviousSecret, UserId, UserKey, time::Timestamp};

    use url::Url;

    use super::*;
    use crate::adapters::payload::tests::push;

    fn webhook(secret: Vec<u8>) -> Device {
        let url = "https://hooks.example.com/1".into();
        Device::new(
            DeviceId(5),
            UserKey(9),
            Address::Webhook { url, secret },
            Timestamp(0),
        )
    }

    #[tokio::test]
    async fn a_replaced_secret_signs_too_until_it_expires() {
        let (old, new) = (b"the secret before".to_vec(), b"the secret now".to_vec());
        let expires_at = Timestamp::now().plus(std::time::Duration::from_mins(1));
        let device = Device {
            previous_secret: Some(PreviousSecret {
                secret: old.clone(),
                expires_at,
            }),
            ..webhook(new.clone())
        };
        let url = Url::parse(device.address.url()).unwrap();
        let (push, recipient) = (push("hi", vec![]), UserId::new("9").unwrap());
        let message = Message {
            push: &push,
            recipient: &recipient,
            device: &device,
            url: &url,
            now: Timestamp::now(),
        };
        let verifies = |secret: &Vec<u8>, request: &Request| {
            let webhook = Webhook::from_bytes(secret.clone()).unwrap();
            webhook.verify(&request.body, &request.headers).is_ok()
        };
        let during = Webhooks.request(message).await.unwrap();
        assert!(verifies(&new, &during) && verifies(&old, &during));
        let message = Message {
            now: expires_at,
            ..message
        };
        let after = Webhooks.request(message).await.unwrap();
        assert!(verifies(&new, &after) && !verifies(&old, &after));
    }

    #[tokio::test]
    async fn a_webhook_has_a_valid_signature_and_a_stable_id() {
        let secret = b"a secret of some length".to_vec();
        let device = webhook(secret.clone());
        let url = Url::parse(device.address.url()).unwrap();
        let push = push("hi", vec![]);
        let recipient = UserId::new("9").unwrap();
        let message = Message {
            push: &push,
            recipient: &recipient,
            device: &device,
            url: &url,
            now: Timestamp::now(),
        };
        let first = Webhooks.request(message).await.unwrap();
        Webhook::from_bytes(secret)
            .unwrap()
            .verify(&first.body, &first.headers)
            .unwrap();
        assert_eq!(first.headers[ID], "msg_7_9_5");
        let other = Webhook::from_bytes(b"another".to_vec()).unwrap();
        assert!(other.verify(&first.body, &first.headers).is_err());

        let later = message.now.plus(std::time::Duration::from_mins(1));
        let second = Webhooks
            .request(Message {
                now: later,
                ..message
            })
            .await
            .unwrap();
        assert_eq!(second.headers[ID], first.headers[ID]);
        assert_eq!(second.body, first.body);
        assert_ne!(second.headers[SIGNATURE], first.headers[SIGNATURE]);
    }
}
