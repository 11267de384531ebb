//! Page sizes and opaque page tokens (AIP-158).
//!
//! A token is the base64url of a version, a hash of the call's name, a hash of the request's identity, the cursor and a
//! checksum. It detects mistakes, not forgery: validate the cursor like any input.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tonic::Status;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::status;

/// Maximum length of a token, bytes.
pub const TOKEN_BYTES_MAX: usize = 1_024;

const VERSION: u8 = 1;
/// Bytes of version, call and identity.
const HEAD: usize = 1 + 4 + 8;
const CHECKSUM: usize = 4;

/// Hashes the identity of a request: every field that changes the list, but not the page size. A page token is valid
/// for one identity only. The order of the parts matters.
pub fn identity<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u64 {
    let mut hash = Xxh3::new();
    for part in parts {
        hash.update(&(part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.digest()
}

/// Encodes and decodes page tokens.
#[derive(Debug, Clone, Copy)]
pub struct PageToken;

impl PageToken {
    /// Encodes the token of the page that starts at a cursor. `call` is the method's name, `identity` the result of
    /// [`identity`].
    pub fn encode(call: &str, identity: u64, cursor: &[u8]) -> String {
        let mut bytes = Vec::with_capacity(HEAD + cursor.len() + CHECKSUM);
        bytes.push(VERSION);
        bytes.extend(call_hash(call).to_be_bytes());
        bytes.extend(identity.to_be_bytes());
        bytes.extend(cursor);
        bytes.extend(checksum(&bytes).to_be_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Decodes a token's cursor; `None` for the empty token of the first page.
    ///
    /// # Errors
    /// INVALID_ARGUMENT on `page_token` when the token is malformed or belongs to another call or request.
    pub fn decode(call: &str, identity: u64, token: &str) -> Result<Option<Vec<u8>>, Status> {
        if token.is_empty() {
            return Ok(None);
        }
        let invalid = |description: &str| Err(invalid_token(description));
        if token.len() > TOKEN_BYTES_MAX {
            return invalid("is not a page token");
        }
        let Ok(bytes) = URL_SAFE_NO_PAD.decode(token) else {
            return invalid("is not a page token");
        };
        let Some((content, sum)) = bytes.split_last_chunk::<CHECKSUM>() else {
            return invalid("is not a page token");
        };
        if u32::from_be_bytes(*sum) != checksum(content) || content.len() < HEAD || content[0] != VERSION {
            return invalid("is not a page token");
        }
        if content[1..5] != call_hash(call).to_be_bytes() {
            return invalid("belongs to another call");
        }
        if content[5..HEAD] != identity.to_be_bytes() {
            return invalid("belongs to another request: repeat all fields except page_size");
        }
        Ok(Some(content[HEAD..].to_vec()))
    }

    /// Decodes a token of [`encode_u64`](Self::encode_u64); errors as [`decode`](Self::decode).
    pub fn decode_u64(call: &str, identity: u64, token: &str) -> Result<Option<u64>, Status> {
        match Self::decode(call, identity, token)? {
            None => Ok(None),
            Some(cursor) => match <[u8; 8]>::try_from(cursor.as_slice()) {
                Ok(cursor) => Ok(Some(u64::from_be_bytes(cursor))),
                Err(_) => Err(invalid_token("is not a page token")),
            },
        }
    }

    /// Encodes a token whose cursor is a number, as a big-endian `u64`.
    pub fn encode_u64(call: &str, identity: u64, cursor: u64) -> String {
        Self::encode(call, identity, &cursor.to_be_bytes())
    }
}

/// Page size to use: 0 is `default`, more than `max` is `max`.
///
/// # Errors
/// INVALID_ARGUMENT on `page_size` for a negative size.
pub fn page_size(requested: i32, default: usize, max: usize) -> Result<usize, Status> {
    match usize::try_from(requested) {
        Err(_) => Err(status::invalid(&[("page_size", "must not be negative")])),
        Ok(0) => Ok(default.min(max)),
        Ok(size) => Ok(size.min(max)),
    }
}

fn invalid_token(description: &str) -> Status {
    status::invalid(&[("page_token", description)])
}

fn call_hash(call: &str) -> u32 {
    xxh3_64(call.as_bytes()) as u32
}

fn checksum(bytes: &[u8]) -> u32 {
    xxh3_64(bytes) as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tonic::Code;
    use tonic_types::StatusExt as _;

    use super::*;

    fn is_invalid(result: Result<Option<Vec<u8>>, Status>) -> bool {
        let status = result.unwrap_err();
        status.code() == Code::InvalidArgument
            && status.get_details_bad_request().unwrap().field_violations[0].field == "page_token"
    }

    proptest! {
        #[test]
        fn a_cursor_round_trips(call in "[A-Za-z]{1,20}", user: Vec<u8>, cursor in prop::collection::vec(any::<u8>(), 0..64)) {
            let identity = identity([&user[..]]);
            let token = PageToken::encode(&call, identity, &cursor);
            prop_assert_eq!(PageToken::decode(&call, identity, &token).unwrap(), Some(cursor));
        }

        #[test]
        fn any_string_is_invalid_or_the_first_page(token in ".*") {
            match PageToken::decode("ListTimeline", 7, &token) {
                Ok(cursor) => prop_assert!(cursor.is_none() && token.is_empty()),
                Err(_) => prop_assert!(is_invalid(PageToken::decode("ListTimeline", 7, &token))),
            }
        }

        #[test]
        fn any_bytes_are_an_invalid_token(bytes in prop::collection::vec(any::<u8>(), 1..80)) {
            prop_assert!(is_invalid(PageToken::decode("ListTimeline", 7, &URL_SAFE_NO_PAD.encode(bytes))));
        }

        /// Any text is refused, or is exactly the token of the cursor that it decodes to, of this call and this
        /// identity.
        #[test]
        fn a_token_near_a_valid_one_is_refused_or_is_what_was_encoded(
            text in herald_fuzz::near(prop::collection::vec(any::<u8>(), 0..40)
                .prop_map(|cursor| PageToken::encode("ListTimeline", 7, &cursor).into_bytes())),
        ) {
            let text = String::from_utf8_lossy(&text);
            if let Ok(Some(cursor)) = PageToken::decode("ListTimeline", 7, &text) {
                prop_assert_eq!(PageToken::encode("ListTimeline", 7, &cursor), text.clone());
            }
            if let Ok(Some(cursor)) = PageToken::decode_u64("ListTimeline", 7, &text) {
                prop_assert_eq!(PageToken::encode_u64("ListTimeline", 7, cursor), text);
            }
        }

        #[test]
        fn bytes_near_a_token_are_refused_or_are_what_was_encoded(
            bytes in herald_fuzz::near(prop::collection::vec(any::<u8>(), 0..40).prop_map(|cursor| {
                URL_SAFE_NO_PAD.decode(PageToken::encode("ListTimeline", 7, &cursor)).unwrap()
            })),
        ) {
            let token = URL_SAFE_NO_PAD.encode(bytes);
            if let Ok(Some(cursor)) = PageToken::decode("ListTimeline", 7, &token) {
                prop_assert_eq!(PageToken::encode("ListTimeline", 7, &cursor), token);
            }
        }

        #[test]
        fn a_token_of_another_call_or_identity_is_refused(
            (call, other) in ("[A-Za-z]{1,20}", "[A-Za-z]{1,20}").prop_filter("two calls", |(a, b)| a != b),
            (identity, stranger) in any::<(u64, u64)>().prop_filter("two identities", |(a, b)| a != b),
            cursor: u64,
        ) {
            let token = PageToken::encode_u64(&call, identity, cursor);
            prop_assert_eq!(PageToken::decode_u64(&call, identity, &token).unwrap(), Some(cursor));
            prop_assert!(is_invalid(PageToken::decode(&other, identity, &token)));
            prop_assert!(is_invalid(PageToken::decode(&call, stranger, &token)));
        }

        #[test]
        fn a_changed_token_is_invalid(cursor: u64, at in 0_usize..25, bit in 0_u8..8) {
            let token = PageToken::encode_u64("ListTimeline", 7, cursor);
            let mut bytes = URL_SAFE_NO_PAD.decode(token).unwrap();
            bytes[at] ^= 1 << bit;
            prop_assert!(is_invalid(PageToken::decode("ListTimeline", 7, &URL_SAFE_NO_PAD.encode(bytes))));
        }

        #[test]
        fn a_page_size_is_within_bounds_or_invalid(requested: i32) {
            match page_size(requested, 100, 1_000) {
                Ok(size) => prop_assert!(requested >= 0 && (1..=1_000).contains(&size)),
                Err(_) => prop_assert!(requested < 0),
            }
        }
    }

    #[test]
    fn a_token_of_another_call_or_user_is_invalid() {
        let ann = identity([&b"ann"[..]]);
        let bob = identity([&b"bob"[..]]);
        let token = PageToken::encode_u64("ListFollowers", ann, 7);
        assert_eq!(
            PageToken::decode_u64("ListFollowers", ann, &token).unwrap(),
            Some(7)
        );
        assert!(is_invalid(PageToken::decode("ListFollowing", ann, &token)));
        assert!(is_invalid(PageToken::decode("ListFollowers", bob, &token)));
    }

    #[test]
    fn the_boundaries_of_identity_parts_matter() {
        assert_ne!(identity([&b"ab"[..], b"c"]), identity([&b"a"[..], b"bc"]));
    }

    #[test]
    fn a_page_size_of_zero_is_the_default() {
        assert_eq!(page_size(0, 100, 1_000).unwrap(), 100);
        assert_eq!(page_size(5_000, 100, 1_000).unwrap(), 1_000);
    }
}
