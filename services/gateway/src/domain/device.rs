//! What a device's keys must be. Its endpoint is checked by [`herald_push_endpoint`].

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose::STANDARD},
};

/// The length of a Web Push subscription's shared secret, bytes.
const AUTH_BYTES: usize = 16;
/// The length of an uncompressed P-256 point, bytes.
const POINT_BYTES: usize = 65;
/// What a webhook's secret starts with, as Standard Webhooks says.
pub(crate) const WEBHOOK_SECRET_PREFIX: &str = "whsec_";
/// The lengths of a webhook's secret, bytes.
const WEBHOOK_SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// Browsers leave the padding out, some libraries write it.
const BASE64URL: GeneralPurpose = GeneralPurpose::new(
    &alphabet::URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Checks a browser's public key: an uncompressed point on P-256. Anything else would fail at each push.
pub(crate) fn p256dh(text: &str) -> Result<Vec<u8>, String> {
    let bytes = base64url(text)?;
    // SEC 1 also has compressed points; browsers send the uncompressed form only.
    if bytes.len() == POINT_BYTES && p256::PublicKey::from_sec1_bytes(&bytes).is_ok() {
        Ok(bytes)
    } else {
        Err(format!(
            "must be an uncompressed P-256 point of {POINT_BYTES} bytes"
        ))
    }
}

/// Checks a browser's shared secret.
pub(crate) fn web_push_auth(text: &str) -> Result<Vec<u8>, String> {
    let bytes = base64url(text)?;
    if bytes.len() == AUTH_BYTES {
        Ok(bytes)
    } else {
        Err(format!("must be {AUTH_BYTES} bytes, is {}", bytes.len()))
    }
}

/// Checks a webhook's secret.
pub(crate) fn webhook_secret(text: &str) -> Result<Vec<u8>, String> {
    let coded = text
        .strip_prefix(WEBHOOK_SECRET_PREFIX)
        .ok_or_else(|| format!("must start with {WEBHOOK_SECRET_PREFIX}"))?;
    // The decoder's error would tell a part of the secret.
    let bytes = STANDARD
        .decode(coded)
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

fn base64url(text: &str) -> Result<Vec<u8>, String> {
    if text.is_empty() {
        return Err("must not be empty".into());
    }
    BASE64URL.decode(text).map_err(|_| "must be base64url".to_owned())
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    use super::*;

    /// The example of RFC 8291.
    const P256DH: &str =
        "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4";
    const AUTH: &str = "BTBZMqHH6r4Tts7J_aSIgg";

    #[test]
    fn web_push_keys_are_taken_with_and_without_padding() {
        assert_eq!(p256dh(P256DH).unwrap().len(), 65);
        assert_eq!(p256dh(&format!("{P256DH}=")).unwrap().len(), 65);
        assert_eq!(web_push_auth(AUTH).unwrap().len(), 16);
        assert_eq!(web_push_auth(&format!("{AUTH}==")).unwrap().len(), 16);
    }

    #[test]
    fn a_public_key_is_a_point_on_the_curve() {
        let mut off_curve = vec![0x04];
        off_curve.extend([7; 64]);
        let mut compressed = vec![0x02];
        compressed.extend([7; 64]);
        for bad in [
            String::new(),
            "no base64!".into(),
            URL_SAFE_NO_PAD.encode([4; 64]),
            URL_SAFE_NO_PAD.encode(off_curve),
            URL_SAFE_NO_PAD.encode(compressed),
        ] {
            assert!(p256dh(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_shared_secret_has_16_bytes() {
        for bad in [
            String::new(),
            "$".into(),
            URL_SAFE_NO_PAD.encode([1; 15]),
            URL_SAFE_NO_PAD.encode([1; 17]),
        ] {
            assert!(web_push_auth(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_webhook_secret_is_24_to_64_bytes_behind_its_prefix() {
        let secret = |length: usize| format!("whsec_{}", STANDARD.encode(vec![9; length]));
        assert_eq!(webhook_secret(&secret(24)).unwrap().len(), 24);
        assert_eq!(webhook_secret(&secret(64)).unwrap().len(), 64);
        for bad in [
            secret(23),
            secret(65),
            STANDARD.encode([9; 24]),
            "whsec_%%%".into(),
            "whsec_".into(),
        ] {
            assert!(webhook_secret(&bad).is_err(), "{bad}");
        }
    }
}
