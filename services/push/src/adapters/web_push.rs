//! Web Push: RFC 8030 (request), RFC 8188 and 8291 (encryption), RFC 8292 (VAPID).

use std::time::Duration;

use async_trait::async_trait;
use herald_model::{Address, Lane};
use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE},
};
use web_push_native::{Auth, encrypt, p256::PublicKey};

use super::{
    Vapid,
    client::Request,
    sender::{Message, Sender},
};
use crate::domain::{Provider, Reason};

/// Limit of the JSON, bytes. A push service must accept messages of 4,096 bytes (RFC 8030 §7.2), of which the
/// encryption takes 103; some push services accept less.
const JSON_BYTES_MAX: usize = 3_500;

const TTL: HeaderName = HeaderName::from_static("ttl");
const TOPIC: HeaderName = HeaderName::from_static("topic");
const URGENCY: HeaderName = HeaderName::from_static("urgency");

/// Sends Web Push messages.
#[derive(Debug, Clone)]
pub(crate) struct WebPush {
    pub(crate) vapid: Vapid,
}

#[async_trait]
impl Sender for WebPush {
    fn provider(&self) -> Provider {
        Provider::WebPush
    }

    async fn request(&self, message: Message<'_>) -> Result<Request, Reason> {
        let Address::WebPush { p256dh, auth, .. } = &message.device.address else {
            return Err(Reason::Device);
        };
        let key = PublicKey::from_sec1_bytes(p256dh).map_err(|_| Reason::Device)?;
        let auth: [u8; 16] = auth[..].try_into().map_err(|_| Reason::Device)?;
        let json = message.push.json_within(message.recipient, JSON_BYTES_MAX);
        let body = encrypt(json, &key, &Auth::from(auth)).map_err(|_| Reason::Device)?;
        let topic = HeaderValue::try_from(message.push.topic()).map_err(|_| Reason::Device)?;
        let ttl = ttl_seconds(message.push.expires_at.since(message.now));
        let headers = HeaderMap::from_iter([
            (AUTHORIZATION, self.vapid.authorization(message.url, message.now)),
            (CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")),
            (CONTENT_ENCODING, HeaderValue::from_static("aes128gcm")),
            (TTL, HeaderValue::from(ttl)),
            (TOPIC, topic),
            (URGENCY, HeaderValue::from_static(urgency(message.push.lane))),
        ]);
        Ok(Request { headers, body })
    }
}

/// The `TTL` of a push, rounded up: 0 would have the push service drop the message unless the device is reachable now
/// (RFC 8030 §5.2).
fn ttl_seconds(remaining: Duration) -> u64 {
    remaining.as_secs() + u64::from(remaining.subsec_nanos() > 0)
}

fn urgency(lane: Lane) -> &'static str {
    match lane {
        Lane::High => "high",
        Lane::Normal => "normal",
        Lane::Low => "low",
    }
}

#[cfg(test)]
mod tests {
    use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD as BASE64URL};
    use herald_model::{Device, DeviceId, UserId, UserKey, time::Timestamp};
    use web_push_native::{
        decrypt,
        p256::{SecretKey, elliptic_curve::sec1::ToEncodedPoint},
    };

    use super::*;
    use crate::{Config, adapters::payload::tests::push};

    fn device(p256dh: Vec<u8>, auth: Vec<u8>) -> Device {
        let endpoint = "https://push.example.com/1".into();
        let address = Address::WebPush {
            endpoint,
            p256dh,
            auth,
        };
        Device::new(DeviceId(5), UserKey(9), address, Timestamp(0))
    }

    async fn request(device: &Device) -> Result<Request, Reason> {
        request_before_expiry(device, Duration::from_secs(90)).await
    }

    /// Makes the request of a push that expires after `remaining`.
    async fn request_before_expiry(device: &Device, remaining: Duration) -> Result<Request, Reason> {
        let directory = tempfile::tempdir().unwrap();
        let sender = WebPush {
            vapid: Vapid::load(&Config::default(), directory.path()).unwrap(),
        };
        let push = push("hi", vec![]);
        let url = device.address.url().parse().unwrap();
        let now = Timestamp(push.expires_at.0 - i64::try_from(remaining.as_micros()).unwrap());
        let recipient = UserId::new("9").unwrap();
        sender
            .request(Message {
                push: &push,
                recipient: &recipient,
                device,
                url: &url,
                now,
            })
            .await
    }

    #[tokio::test]
    async fn the_device_can_decrypt_the_message() {
        let secret = SecretKey::from_slice(&[7; 32]).unwrap();
        let point = secret.public_key().to_encoded_point(false).as_bytes().to_vec();
        let request = request(&device(point, vec![3; 16])).await.unwrap();
        let json = decrypt(request.body, &secret, &Auth::from([3; 16])).unwrap();
        assert_eq!(json, push("hi", vec![]).json(&UserId::new("9").unwrap()));
        assert_eq!(request.headers[TTL], "90");
        assert_eq!(request.headers[TOPIC], "post-7");
        assert_eq!(request.headers[URGENCY], "normal");
        assert_eq!(request.headers[CONTENT_ENCODING], "aes128gcm");
        assert!(
            request.headers[AUTHORIZATION]
                .to_str()
                .unwrap()
                .starts_with("vapid t=")
        );
    }

    #[tokio::test]
    async fn the_ttl_is_rounded_up() {
        let secret = SecretKey::from_slice(&[7; 32]).unwrap();
        let point = secret.public_key().to_encoded_point(false).as_bytes().to_vec();
        let device = device(point, vec![3; 16]);
        for (remaining_us, ttl) in [
            (0, "0"),
            (1, "1"),
            (999_999, "1"),
            (1_000_000, "1"),
            (1_000_001, "2"),
        ] {
            let remaining = Duration::from_micros(remaining_us);
            let request = request_before_expiry(&device, remaining).await.unwrap();
            assert_eq!(request.headers[TTL], ttl, "{remaining:?}");
        }
    }

    #[tokio::test]
    async fn invalid_keys_are_a_device_error() {
        assert_eq!(
            request(&device(vec![4; 65], vec![3; 16])).await.unwrap_err(),
            Reason::Device
        );
        let point = SecretKey::from_slice(&[7; 32])
            .unwrap()
            .public_key()
            .to_encoded_point(false);
        let device = device(point.as_bytes().to_vec(), vec![3; 15]);
        assert_eq!(request(&device).await.unwrap_err(), Reason::Device);
    }

    /// RFC 8291, appendix A.
    #[test]
    fn the_example_of_rfc_8291_is_decrypted() {
        let decode = |text| BASE64URL.decode(text).unwrap();
        let body = decode(
            "DGv6ra1nlYgDCS1FRnbzlwAAEABBBP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27mlmlMoZIIgDll6e3vCYLocInmYWAmS6TlzAC8wEqKK6PBru3jl7A_yl95bQpu6cVPTpK4Mqgkf1CXztLVBSt2Ks3oZwbuwXPXLWyouBWLVWGNWQexSgSxsj_Qulcy4a-fN",
        );
        let secret = SecretKey::from_slice(&decode("q1dXpw3UpT5VOmu_cf_v6ih07Aems3njxI-JWgLcM94")).unwrap();
        let auth: [u8; 16] = decode("BTBZMqHH6r4Tts7J_aSIgg").try_into().unwrap();
        let text = decrypt(body, &secret, &Auth::from(auth)).unwrap();
        assert_eq!(text, b"When I grow up, I want to be a watermelon");
    }
}
