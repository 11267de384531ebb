//! Page sizes and opaque page tokens, as AIP-158 wants them.
//!
//! A token is base64url of a version, the call's name (hashed), the identity of the request (hashed), the cursor and a
//! checksum. It keeps honest callers from mistakes; it is no secret and no proof, so a cursor is checked like any input.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tonic::Status;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::status;

/// The longest token that is looked at, bytes.
pub const TOKEN_BYTES_MAX: usize = 1_024;

const VERSION: u8 = 1;
/// Version, call, identity.
const HEAD: usize = 1 + 4 + 8;
const CHECKSUM: usize = 4;

/// Hashes what a page token is bound to: the caller and every field of the request that changes what is listed, but not
/// the page size. The order of the parts counts.
pub fn identity<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u64 {
    let mut hash = Xxh3::new();
    for part in parts {
        hash.update(&(part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.digest()
}

/// Page tokens.
#[derive(Debug, Clone, Copy)]
pub struct PageToken;

impl PageToken {
    /// Makes the token of the page that starts at a cursor. `call` is the method's name, `identity` from [`identity`].
    pub fn encode(call: &str, identity: u64, cursor: &[u8]) -> String {
        let mut bytes = Vec::with_capacity(HEAD + cursor.len() + CHECKSUM);
        bytes.push(VERSION);
        bytes.extend(call_hash(call).to_be_bytes());
        bytes.extend(identity.to_be_bytes());
        bytes.extend(cursor);
        bytes.extend(checksum(&bytes).to_be_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads a token's cursor; `None` for the empty token of a first page.
    ///
    /// INVALID_ARGUMENT on `page_token` when it is no token, or one of another call or another request.
    pub fn decode(call: &str, identity: u64, token: &str) -> Result<Option<Vec<u8>>, Status> {
        if token.is_empty() {
            return Ok(None);
        }
        let refuse = |why: &str| Err(refused(why));
        if token.len() > TOKEN_BYTES_MAX {
            return refuse("is not a page token");
        }
        let Ok(bytes) = URL_SAFE_NO_PAD.decode(token) else {
            return refuse("is not a page token");
        };
        let Some((content, sum)) = bytes.split_last_chunk::<CHECKSUM>() else {
            return refuse("is not a page token");
        };
        if u32::from_be_bytes(*sum) != checksum(content) || content.len() < HEAD || content[0] != VERSION {
            return refuse("is not a page token");
        }
        if content[1..5] != call_hash(call).to_be_bytes() {
            return refuse("is from another call");
        }
        if content[5..HEAD] != identity.to_be_bytes() {
            return refuse("is from another request: keep all fields but page_size");
        }
        Ok(Some(content[HEAD..].to_vec()))
    }

    /// Reads a token whose cursor is a big-endian `u64`, as [`encode_u64`](Self::encode_u64) makes it.
    pub fn decode_u64(call: &str, identity: u64, token: &str) -> Result<Option<u64>, Status> {
        match Self::decode(call, identity, token)? {
            None => Ok(None),
            Some(cursor) => match <[u8; 8]>::try_from(cursor.as_slice()) {
                Ok(cursor) => Ok(Some(u64::from_be_bytes(cursor))),
                Err(_) => Err(refused("is not a page token")),
            },
        }
    }

    /// Makes a token whose cursor is a number.
    pub fn encode_u64(call: &str, identity: u64, cursor: u64) -> String {
        Self::encode(call, identity, &cursor.to_be_bytes())
    }
}

/// The size of a page: 0 asks for the default, more than the maximum is the maximum, a negative one is refused.
pub fn page_size(requested: i32, default: usize, max: usize) -> Result<usize, Status> {
    match usize::try_from(requested) {
        Err(_) => Err(status::invalid(&[("page_size", "must not be negative")])),
        Ok(0) => Ok(default.min(max)),
        Ok(size) => Ok(size.min(max)),
    }
}

fn refused(why: &str) -> Status {
    status::invalid(&[("page_token", why)])
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

    fn is_refused(result: Result<Option<Vec<u8>>, Status>) -> bool {
        let status = result.unwrap_err();
        status.code() == Code::InvalidArgument
            && status.get_details_bad_request().unwrap().field_violations[0].field == "page_token"
    }

    proptest! {
        #[test]
        fn decoding_gives_the_cursor(call in "[A-Za-z]{1,20}", user: Vec<u8>, cursor in prop::collection::vec(any::<u8>(), 0..64)) {
            let identity = identity([&user[..]]);
            let token = PageToken::encode(&call, identity, &cursor);
            prop_assert_eq!(PageToken::decode(&call, identity, &token).unwrap(), Some(cursor));
        }

        #[test]
        fn any_string_is_refused_or_the_first_page(token in ".*") {
            match PageToken::decode("ListTimeline", 7, &token) {
                Ok(cursor) => prop_assert!(cursor.is_none() && token.is_empty()),
                Err(_) => prop_assert!(is_refused(PageToken::decode("ListTimeline", 7, &token))),
            }
        }

        #[test]
        fn any_bytes_as_a_token_are_refused(bytes in prop::collection::vec(any::<u8>(), 1..80)) {
            prop_assert!(is_refused(PageToken::decode("ListTimeline", 7, &URL_SAFE_NO_PAD.encode(bytes))));
        }

        #[test]
        fn a_changed_token_is_refused(cursor: u64, at in 0_usize..25, bit in 0_u8..8) {
            let token = PageToken::encode_u64("ListTimeline", 7, cursor);
            let mut bytes = URL_SAFE_NO_PAD.decode(token).unwrap();
            bytes[at] ^= 1 << bit;
            prop_assert!(is_refused(PageToken::decode("ListTimeline", 7, &URL_SAFE_NO_PAD.encode(bytes))));
        }

        #[test]
        fn a_page_size_is_within_bounds_or_refused(requested: i32) {
            match page_size(requested, 100, 1_000) {
                Ok(size) => prop_assert!(requested >= 0 && (1..=1_000).contains(&size)),
                Err(_) => prop_assert!(requested < 0),
            }
        }
    }

    #[test]
    fn a_token_of_another_call_or_user_is_refused() {
        let ann = identity([&b"ann"[..]]);
        let bob = identity([&b"bob"[..]]);
        let token = PageToken::encode_u64("ListFollowers", ann, 7);
        assert_eq!(
            PageToken::decode_u64("ListFollowers", ann, &token).unwrap(),
            Some(7)
        );
        assert!(is_refused(PageToken::decode("ListFollowing", ann, &token)));
        assert!(is_refused(PageToken::decode("ListFollowers", bob, &token)));
    }

    #[test]
    fn parts_of_an_identity_do_not_run_together() {
        assert_ne!(identity([&b"ab"[..], b"c"]), identity([&b"a"[..], b"bc"]));
    }

    #[test]
    fn a_page_size_of_zero_is_the_default() {
        assert_eq!(page_size(0, 100, 1_000).unwrap(), 100);
        assert_eq!(page_size(5_000, 100, 1_000).unwrap(), 1_000);
    }
}
