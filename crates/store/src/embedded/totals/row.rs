//! Keys and values of the totals' rows.

use herald_model::{Channel, UserKey, varint};

use crate::{ChunkRef, Counted, Counts, Fence, PostTotals, SettledCounts};

/// Number of messages in a row of `totals_seen`, in both engines: a move copies the rows.
pub(crate) const PAGE: u64 = 4_096;

/// One row of `totals_seen`.
pub(super) type Bits = [u8; PAGE as usize / 8];

pub(super) fn page_key(stream: &str, sequence: u64) -> Vec<u8> {
    [stream.as_bytes(), &(sequence / PAGE).to_be_bytes()].concat()
}

pub(super) fn is_set(bits: &Bits, sequence: u64) -> bool {
    let at = (sequence % PAGE) as usize;
    bits[at / 8] & 1 << (at % 8) != 0
}

pub(super) fn set_bit(bits: &mut Bits, sequence: u64) {
    let at = (sequence % PAGE) as usize;
    bits[at / 8] |= 1 << (at % 8);
}

pub(super) fn chunk_key(chunk: ChunkRef) -> [u8; 17] {
    let mut key = [0; 17];
    key[..8].copy_from_slice(&chunk.post.0.to_be_bytes());
    key[8] = match chunk.channel {
        Channel::Timeline => 0,
        Channel::Push => 1,
    };
    key[9..].copy_from_slice(&chunk.chunk.0.to_be_bytes());
    key
}

pub(super) fn encode_owner(owner: &Fence) -> Vec<u8> {
    [&owner.token.to_be_bytes(), owner.name.as_bytes()].concat()
}

/// The writer of an announced file. Tokens are at least 1, so token 0, of a file without a writer, has ended.
pub(crate) fn decode_owner(bytes: &[u8]) -> Option<Fence> {
    let (token, name) = match bytes.split_first_chunk() {
        Some((token, name)) => (u64::from_be_bytes(*token), name),
        None if bytes.is_empty() => (0, bytes),
        None => return None,
    };
    let name = String::from_utf8(name.to_vec()).ok()?;
    Some(Fence { name, token })
}

pub(super) fn encode_chunk(counted: &Counted) -> Vec<u8> {
    let SettledCounts {
        delivered,
        suppressed,
        expired,
        dead,
    } = counted.counts;
    let mut bytes = Vec::with_capacity(12);
    varint::write(&mut bytes, counted.revision);
    for count in [delivered, suppressed, expired, dead] {
        varint::write(&mut bytes, count.into());
    }
    bytes
}

pub(crate) fn decode_chunk(mut bytes: &[u8]) -> Option<Counted> {
    let revision = varint::read(&mut bytes)?;
    let mut count = || varint::read(&mut bytes)?.try_into().ok();
    let counts = SettledCounts {
        delivered: count()?,
        suppressed: count()?,
        expired: count()?,
        dead: count()?,
    };
    Some(Counted { revision, counts })
}

pub(super) fn encode_counts(counts: &Counts) -> Vec<u8> {
    let Counts {
        posts,
        deleted_posts,
        timeline_delivered,
        timeline_dead,
        push_delivered,
        push_suppressed,
        push_expired,
        push_dead,
    } = *counts;
    let mut bytes = Vec::with_capacity(32);
    for count in [
        posts,
        deleted_posts,
        timeline_delivered,
        timeline_dead,
        push_delivered,
        push_suppressed,
        push_expired,
        push_dead,
    ] {
        varint::write(&mut bytes, count.cast_unsigned());
    }
    bytes
}

pub(crate) fn decode_counts(bytes: &mut &[u8]) -> Option<Counts> {
    let mut count = || varint::read(bytes).map(u64::cast_signed);
    Some(Counts {
        posts: count()?,
        deleted_posts: count()?,
        timeline_delivered: count()?,
        timeline_dead: count()?,
        push_delivered: count()?,
        push_suppressed: count()?,
        push_expired: count()?,
        push_dead: count()?,
    })
}

pub(super) fn encode_post(totals: &PostTotals) -> Vec<u8> {
    let mut bytes = encode_counts(&totals.counts);
    for part in [
        u64::from(totals.author.0),
        totals.timeline_latency_ms_max,
        totals.push_latency_ms_max,
    ] {
        varint::write(&mut bytes, part);
    }
    bytes
}

pub(crate) fn decode_post(mut bytes: &[u8]) -> Option<PostTotals> {
    let bytes = &mut bytes;
    Some(PostTotals {
        counts: decode_counts(bytes)?,
        author: UserKey(u32::try_from(varint::read(bytes)?).ok()?),
        timeline_latency_ms_max: varint::read(bytes)?,
        push_latency_ms_max: varint::read(bytes)?,
    })
}
