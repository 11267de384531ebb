//! Encoding of posts on disk.
//!
//! A *block* holds the posts of one group of users in one run: `varint(smallest post id)`, then for each user in
//! ascending order one byte (the user's index in the group), `varint(length of the user's posts in bytes)` and the post
//! ids in ascending order, delta-encoded: the first one relative to the block's smallest id. The length lets a reader
//! skip the posts of other users.
//!
//! A *merged row* holds one user's merged posts, newest first and delta-encoded, so reading the newest entries decodes
//! only these entries.

use herald_model::varint;

use super::pair;
use crate::{Error, ErrorKind, Result};

/// Appends the block of one group. `pairs` are the group's pairs in ascending order without duplicates.
pub(super) fn encode(pairs: &[u64], scratch: &mut Vec<u8>, out: &mut Vec<u8>) {
    let smallest = pairs.iter().map(|p| pair::post(*p)).min().unwrap_or(0);
    varint::write(out, smallest);
    for posts in pairs.chunk_by(|a, b| pair::user_in_group(*a) == pair::user_in_group(*b)) {
        scratch.clear();
        let mut last = smallest;
        for &one in posts {
            varint::write(scratch, pair::post(one) - last);
            last = pair::post(one);
        }
        out.push(pair::user_in_group(posts[0]));
        varint::write(out, scratch.len() as u64);
        out.extend_from_slice(scratch);
    }
}

/// Appends one user's posts to `out`, ascending.
pub(crate) fn decode_user_posts(block: &[u8], user_in_group: u8, out: &mut Vec<u64>) -> Result<()> {
    let mut rest = block;
    let smallest = read_number(&mut rest)?;
    while let Some((user, posts)) = next_user(&mut rest)? {
        if user == user_in_group {
            return read_posts(posts, smallest, |post| out.push(post));
        }
        if user > user_in_group {
            break;
        }
    }
    Ok(())
}

/// Appends all pairs of a block to `out`. Returns the users of the block as a bit set.
pub(crate) fn decode_pairs(block: &[u8], out: &mut Vec<u64>) -> Result<u64> {
    let mut rest = block;
    let mut users = 0;
    let smallest = read_number(&mut rest)?;
    while let Some((user, posts)) = next_user(&mut rest)? {
        users |= 1 << user;
        read_posts(posts, smallest, |post| out.push(pair::in_group(user, post)))?;
    }
    Ok(users)
}

/// Appends a merged row. `posts` must be strictly descending.
pub(crate) fn encode_merged(posts: impl IntoIterator<Item = u64>, out: &mut Vec<u8>) {
    let mut last = None;
    for post in posts {
        varint::write(out, last.map_or(post, |last: u64| last - post));
        last = Some(post);
    }
}

/// Decodes the posts of a merged row, newest first.
pub(crate) fn decode_merged(row: &[u8]) -> impl Iterator<Item = Result<u64>> {
    let mut rest = row;
    let mut last = None;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let post = read_number(&mut rest).and_then(|value| match last {
            None => Ok(value),
            Some(last) if value > 0 => u64::checked_sub(last, value).ok_or_else(malformed),
            Some(_) => Err(malformed()),
        });
        match &post {
            Ok(post) => last = Some(*post),
            Err(_) => rest = &[],
        }
        Some(post)
    })
}

fn next_user<'a>(rest: &mut &'a [u8]) -> Result<Option<(u8, &'a [u8])>> {
    let Some((&user, after)) = rest.split_first() else {
        return Ok(None);
    };
    *rest = after;
    if u32::from(user) >= 1 << pair::GROUP_BITS {
        return Err(malformed());
    }
    let length = usize::try_from(read_number(rest)?).map_err(|_| malformed())?;
    let (posts, after) = rest.split_at_checked(length).ok_or_else(malformed)?;
    *rest = after;
    Ok(Some((user, posts)))
}

fn read_posts(mut posts: &[u8], smallest: u64, mut each: impl FnMut(u64)) -> Result<()> {
    let mut last = smallest;
    while !posts.is_empty() {
        last = last.checked_add(read_number(&mut posts)?).ok_or_else(malformed)?;
        // The bits above would be those of the user in a pair.
        if last > pair::POST_MAX {
            return Err(malformed());
        }
        each(last);
    }
    Ok(())
}

fn read_number(rest: &mut &[u8]) -> Result<u64> {
    varint::read(rest).ok_or_else(malformed)
}

fn malformed() -> Error {
    Error::new(ErrorKind::Corrupt, "a row of the timelines is malformed")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_decoded_block_equals_the_encoded_pairs(
            pairs_in in prop::collection::btree_set((0_u8..64, 1_u64..1 << 50), 1..300),
        ) {
            let packed: Vec<u64> = pairs_in.iter().map(|(user, post)| pair::in_group(*user, *post)).collect();
            let mut block = Vec::new();
            encode(&packed, &mut Vec::new(), &mut block);
            let mut all = Vec::new();
            let users = decode_pairs(&block, &mut all).unwrap();
            prop_assert_eq!(&all, &packed);
            for user in 0..64 {
                let mut posts = Vec::new();
                decode_user_posts(&block, user, &mut posts).unwrap();
                let expected: Vec<u64> = pairs_in.iter().filter(|(u, _)| *u == user).map(|(_, p)| *p).collect();
                prop_assert_eq!(users >> user & 1 == 1, !expected.is_empty());
                prop_assert_eq!(posts, expected);
            }
        }

        #[test]
        fn a_decoded_merged_row_equals_the_encoded_posts(posts in prop::collection::btree_set(1_u64..1 << 50, 0..300)) {
            let posts: Vec<u64> = BTreeSet::into_iter(posts).rev().collect();
            let mut row = Vec::new();
            encode_merged(posts.iter().copied(), &mut row);
            prop_assert_eq!(decode_merged(&row).collect::<Result<Vec<_>>>().unwrap(), posts);
        }

        /// The posts of a damaged block are posts, of users of its group, and the same for each reader.
        #[test]
        fn bytes_near_a_block_are_read_or_refused(
            block in herald_fuzz::near(
                prop::collection::btree_set((0_u8..64, 1_u64..=pair::POST_MAX), 1..50).prop_map(|pairs| {
                    let pairs: Vec<u64> = pairs.into_iter().map(|(user, post)| pair::in_group(user, post)).collect();
                    let mut block = Vec::new();
                    encode(&pairs, &mut Vec::new(), &mut block);
                    block
                }),
            ),
        ) {
            let mut all = Vec::new();
            if let Ok(users) = decode_pairs(&block, &mut all) {
                prop_assert!(all.len() <= block.len());
                for one in all {
                    prop_assert!(users >> pair::user_in_group(one) & 1 == 1);
                }
            }
            let mut posts = Vec::new();
            if decode_user_posts(&block, 7, &mut posts).is_ok() {
                prop_assert!(posts.len() <= block.len() && posts.iter().all(|post| *post <= pair::POST_MAX));
            }
        }

        #[test]
        fn bytes_near_a_merged_row_are_descending_posts_or_refused(
            row in herald_fuzz::near(prop::collection::btree_set(1_u64..=pair::POST_MAX, 0..50).prop_map(|posts| {
                let mut row = Vec::new();
                encode_merged(posts.into_iter().rev(), &mut row);
                row
            })),
        ) {
            if let Ok(posts) = decode_merged(&row).collect::<Result<Vec<_>>>() {
                prop_assert!(posts.len() <= row.len() && posts.is_sorted_by(|a, b| a > b));
            }
        }

        #[test]
        fn decoding_arbitrary_bytes_does_not_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..64),
            user in any::<u8>(),
        ) {
            let _ = decode_pairs(&bytes, &mut Vec::new());
            let _ = decode_user_posts(&bytes, user, &mut Vec::new());
            let _ = decode_merged(&bytes).count();
        }
    }
}
