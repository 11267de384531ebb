//! Validation of a device's keys. [`herald_push_endpoint`] validates its endpoint.

use std::time::Duration;

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose::STANDARD},
};

/// Length of the authentication secret of a Web Push subscription (RFC 8291), bytes.
const AUTH_BYTES: usize = 16;
/// Length of an uncompressed P-256 point (SEC 1), bytes.
const POINT_BYTES: usize = 65;
/// Prefix of a webhook secret, as Standard Webhooks defines it.
pub(crate) const WEBHOOK_SECRET_PREFIX: &str = "whsec_";
/// Allowed lengths of a decoded webhook secret (Standard Webhooks), bytes.
const WEBHOOK_SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// Maximum time for which a replaced webhook secret signs too.
const OVERLAP_MAX: Duration = Duration::from_hours(7 * 24);

/// Browsers omit the padding; some libraries write it.
const BASE64URL: GeneralPurpose = GeneralPurpose::new(
    &alphabet::URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Decodes the public key of a Web Push subscription: base64url of an uncompressed point on P-256. With any other
/// key the encryption of each push would fail.
pub(crate) fn parse_p256dh(text: &str) -> Result<Vec<u8>, String> {
    let bytes = decode_base64url(text)?;
    // `from_sec1_bytes` also accepts compressed points, which RFC 8291 does not allow.
    if bytes.len() == POINT_BYTES && p256::PublicKey::from_sec1_bytes(&bytes).is_ok() {
        Ok(bytes)
    } else {
        Err(format!(
            "must be an uncompressed P-256 point of {POINT_BYTES} bytes"
        ))
    }
}

/// Decodes the authentication secret of a Web Push subscription: base64url of 16 bytes.
pub(crate) fn parse_web_push_auth(text: &str) -> Result<Vec<u8>, String> {
    let bytes = decode_base64url(text)?;
    if bytes.len() == AUTH_BYTES {
        Ok(bytes)
    } else {
        Err(format!("must be {AUTH_BYTES} bytes, is {}", bytes.len()))
    }
}

/// Decodes a webhook secret: `whsec_` and base64 of 24 to 64 bytes.
pub(crate) fn parse_webhook_secret(text: &str) -> Result<Vec<u8>, String> {
    let encoded = text
        .strip_prefix(WEBHOOK_SECRET_PREFIX)
        .ok_or_else(|| format!("must start with {WEBHOOK_SECRET_PREFIX}"))?;
    // The decoder's error is dropped because it contains a part of the secret.
    let bytes = STANDARD
        .decode(encoded)
        .map_err(|_| "must be base64 after its prefix".to_owned())?;
    if WEBHOOK_SECRET_BYTES.contains(&bytes.len()) {
        Ok(bytes)
    } else {
        Err(format!(
            "must be {} to {} bytes, is {}",
            WEBHOOK_SECRET_BYTES.start(),
            WEBHOOK_SECRET_BYTES.end(),
            bytes.len()
        ))
    }
}

/// Validates the time for which a replaced webhook secret signs too: 0 to 7 days.
pub(crate) fn parse_overlap(seconds: i64, nanos: i32) -> Result<Duration, &'static str> {
    let seconds = u64::try_from(seconds).ok();
    let nanos = u32::try_from(nanos).ok().filter(|nanos| *nanos < 1_000_000_000);
    seconds
        .zip(nanos)
        .map(|(seconds, nanos)| Duration::new(seconds, nanos))
        .filter(|overlap| *overlap <= OVERLAP_MAX)
        .ok_or("must be 0 to 7 days")
}

/// Whether the push service of an endpoint refuses VAPID tokens without a subject. `endpoint` is a canonical URL.
pub(crate) fn requires_vapid_subject(endpoint: &str) -> bool {
    let host = endpoint.split('/').nth(2).unwrap_or_default();
    let name = host.split(':').next().unwrap_or_default();
    name.strip_suffix("push.apple.com")
        .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

fn decode_base64url(text: &str) -> Result<Vec<u8>, String> {
    if text.is_empty() {
        return Err("must not be empty".into());
    }
    BASE64URL.decode(text).map_err(|_| "must be base64url".to_owned())
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use proptest::prelude::*;

    use super::*;

    /// The example of RFC 8291.
    const P256DH: &str =
        "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4";
    const AUTH: &str = "BTBZMqHH6r4Tts7J_aSIgg";

    #[test]
    fn web_push_keys_are_accepted_with_and_without_padding() {
        assert_eq!(parse_p256dh(P256DH).unwrap().len(), 65);
        assert_eq!(parse_p256dh(&format!("{P256DH}=")).unwrap().len(), 65);
        assert_eq!(parse_web_push_auth(AUTH).unwrap().len(), 16);
        assert_eq!(parse_web_push_auth(&format!("{AUTH}==")).unwrap().len(), 16);
    }

    #[test]
    fn a_public_key_is_a_point_on_the_curve() {
        let mut off_curve = vec![0x04];
        off_curve.extend([7; 64]);
        let mut compressed = vec![0x02];
        compressed.extend([7; 64]);
        for invalid in [
            String::new(),
            "no base64!".into(),
            URL_SAFE_NO_PAD.encode([4; 64]),
            URL_SAFE_NO_PAD.encode(off_curve),
            URL_SAFE_NO_PAD.encode(compressed),
        ] {
            assert!(parse_p256dh(&invalid).is_err(), "{invalid}");
        }
    }

    #[test]
    fn a_shared_secret_has_16_bytes() {
        for invalid in [
            String::new(),
            "$".into(),
            URL_SAFE_NO_PAD.encode([1; 15]),
            URL_SAFE_NO_PAD.encode([1; 17]),
        ] {
            assert!(parse_web_push_auth(&invalid).is_err(), "{invalid}");
        }
    }

    #[test]
    fn a_webhook_secret_is_24_to_64_bytes_after_its_prefix() {
        let secret = |length: usize| format!("whsec_{}", STANDARD.encode(vec![9; length]));
        assert_eq!(parse_webhook_secret(&secret(24)).unwrap().len(), 24);
        assert_eq!(parse_webhook_secret(&secret(64)).unwrap().len(), 64);
        for invalid in [
            secret(23),
            secret(65),
            STANDARD.encode([9; 24]),
            "whsec_%%%".into(),
            "whsec_".into(),
        ] {
            assert!(parse_webhook_secret(&invalid).is_err(), "{invalid}");
        }
    }

    #[test]
    fn an_overlap_is_0_to_7_days() {
        assert_eq!(parse_overlap(0, 0), Ok(Duration::ZERO));
        assert_eq!(parse_overlap(7 * 86_400, 0), Ok(OVERLAP_MAX));
        for (seconds, nanos) in [
            (-1, 0),
            (0, -1),
            (0, 1_000_000_000),
            (7 * 86_400, 1),
            (i64::MAX, 0),
        ] {
            assert!(parse_overlap(seconds, nanos).is_err(), "{seconds} s {nanos} ns");
        }
    }

    #[test]
    fn apples_push_service_requires_a_subject() {
        for (endpoint, required) in [
            ("https://web.push.apple.com/QGx", true),
            ("https://web.push.apple.com:8443/QGx", true),
            ("https://push.apple.com/", true),
            ("https://notpush.apple.com/", false),
            ("https://push.apple.com.example.org/", false),
            ("https://fcm.googleapis.com/web.push.apple.com", false),
        ] {
            assert_eq!(requires_vapid_subject(endpoint), required, "{endpoint}");
        }
    }

    proptest! {
        #[test]
        fn texts_near_keys_are_keys_or_refused(
            text in herald_fuzz::near(prop::sample::select(vec![
                P256DH.to_owned(), AUTH.to_owned(), format!("whsec_{}", STANDARD.encode([7; 32])),
            ]).prop_map(String::into_bytes)),
        ) {
            let text = String::from_utf8_lossy(&text);
            if let Ok(point) = parse_p256dh(&text) {
                prop_assert!(point.len() == POINT_BYTES && point[0] == 4);
            }
            if let Ok(auth) = parse_web_push_auth(&text) {
                prop_assert_eq!(auth.len(), AUTH_BYTES);
            }
            if let Ok(secret) = parse_webhook_secret(&text) {
                prop_assert!(WEBHOOK_SECRET_BYTES.contains(&secret.len()));
                prop_assert_eq!(format!("{WEBHOOK_SECRET_PREFIX}{}", STANDARD.encode(secret)), text);
            }
        }
    }
}
