//! Encoding of the ledger's rows. Each value begins with the version of its layout; numbers in values are varints.

mod details;

use herald_model::{Channel, ChunkId, FollowVersion, PostId, Recipients, UserKey, time::Timestamp, varint};

use crate::{Error, ErrorKind, Outcome, RecordedOutcome, Result, SettledCounts, SuppressedReason};

/// Layout version of all values except outcomes.
const VERSION: u8 = 1;

/// Layout version of outcomes.
const OUTCOME_VERSION: u8 = 2;

const DELIVERED: u8 = 0;
const MIXED: u8 = 1;

/// The kind of a row, as in its key. The small rows that counting reads sort first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum RowKind {
    /// A planned slice.
    Slice = 0,
    /// The outcome of a chunk.
    Outcome = 1,
    /// A planned chunk.
    Chunk = 2,
    /// Recipients to whose timelines a backfill added the post.
    Backfill = 3,
}

impl RowKind {
    /// The kind of the row with this key.
    pub(crate) fn of_key(key: &[u8]) -> Result<Self> {
        [Self::Slice, Self::Outcome, Self::Chunk, Self::Backfill]
            .into_iter()
            .find(|kind| key.get(8) == Some(&(*kind as u8)))
            .ok_or_else(malformed)
    }
}

/// The key prefix of a post's rows of one kind.
pub(crate) fn prefix(post: PostId, kind: RowKind) -> [u8; 9] {
    let mut key = [kind as u8; 9];
    key[..8].copy_from_slice(&post.0.to_be_bytes());
    key
}

/// The key prefix of a post's rows of one kind and channel.
pub(crate) fn channel_prefix(post: PostId, kind: RowKind, channel: Channel) -> [u8; 10] {
    let mut key = [channel_byte(channel); 10];
    key[..9].copy_from_slice(&prefix(post, kind));
    key
}

/// Encodes the key of a slice.
pub(crate) fn slice_key(post: PostId, slice: u32) -> [u8; 13] {
    let mut key = [0; 13];
    key[..9].copy_from_slice(&prefix(post, RowKind::Slice));
    key[9..].copy_from_slice(&slice.to_be_bytes());
    key
}

/// Decodes the slice of a key encoded by [`slice_key`].
pub(crate) fn read_slice_key(key: &[u8]) -> Result<u32> {
    let key: &[u8; 13] = key.try_into().map_err(|_| malformed())?;
    let (_, slice) = key.split_last_chunk::<4>().ok_or_else(malformed)?;
    Ok(u32::from_be_bytes(*slice))
}

/// Decodes the post of a key of any kind.
pub(crate) fn read_post(key: &[u8]) -> Result<PostId> {
    let (post, _) = key.split_first_chunk::<8>().ok_or_else(malformed)?;
    Ok(PostId(u64::from_be_bytes(*post)))
}

/// Encodes the key of a chunk's row of one kind.
pub(crate) fn chunk_key(post: PostId, kind: RowKind, channel: Channel, chunk: ChunkId) -> [u8; 18] {
    let mut key = [0; 18];
    key[..10].copy_from_slice(&channel_prefix(post, kind, channel));
    key[10..].copy_from_slice(&chunk.0.to_be_bytes());
    key
}

/// Decodes the channel and the chunk of a key encoded by [`chunk_key`].
pub(crate) fn read_chunk_key(key: &[u8]) -> Result<(Channel, ChunkId)> {
    let key: &[u8; 18] = key.try_into().map_err(|_| malformed())?;
    let (_, chunk) = key.split_last_chunk::<8>().ok_or_else(malformed)?;
    Ok((channel_of_byte(key[9])?, ChunkId(u64::from_be_bytes(*chunk))))
}

fn channel_of_byte(byte: u8) -> Result<Channel> {
    Channel::ALL
        .into_iter()
        .find(|channel| channel_byte(*channel) == byte)
        .ok_or_else(malformed)
}

fn channel_byte(channel: Channel) -> u8 {
    match channel {
        Channel::Timeline => 0,
        Channel::Push => 1,
    }
}

/// A planned slice: whether it is the last of its post, and the number of recipients by channel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Slice {
    pub(crate) last: bool,
    pub(crate) timeline: u64,
    pub(crate) push: u64,
}

/// The rest of a slice's row: what a retry publishes again. Rows of an older Herald don't have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pin {
    pub(crate) version: FollowVersion,
    /// `None` for the last slice.
    pub(crate) next_after: Option<UserKey>,
    /// The chunks, in the order of the plan.
    pub(crate) chunks: Vec<(Channel, ChunkId)>,
}

impl Slice {
    pub(crate) fn encode(self, pin: &Pin) -> Vec<u8> {
        let mut out = vec![VERSION, u8::from(self.last)];
        varint::write(&mut out, self.timeline);
        varint::write(&mut out, self.push);
        varint::write(&mut out, pin.version.0);
        varint::write(&mut out, pin.next_after.map_or(0, |user| u64::from(user.0)));
        varint::write(&mut out, pin.chunks.len() as u64);
        for (channel, chunk) in &pin.chunks {
            out.push(channel_byte(*channel));
            out.extend(chunk.0.to_be_bytes());
        }
        out
    }

    /// Decodes the pin; `None` in a row of an older Herald.
    pub(crate) fn decode_pin(row: &[u8]) -> Result<Option<Pin>> {
        let mut cursor = Cursor::new(row)?;
        let last = cursor.read_byte()? != 0;
        cursor.read_number()?;
        cursor.read_number()?;
        if cursor.0.is_empty() {
            return Ok(None);
        }
        let version = FollowVersion(cursor.read_number()?);
        let next_after = cursor.read_user()?;
        let count = cursor.read_count()?;
        let chunks = (0..count).map(|_| {
            let channel = channel_of_byte(cursor.read_byte()?)?;
            let (id, after) = cursor.0.split_first_chunk().ok_or_else(malformed)?;
            cursor.0 = after;
            Ok((channel, ChunkId(u64::from_be_bytes(*id))))
        });
        Ok(Some(Pin {
            version,
            chunks: chunks.collect::<Result<_>>()?,
            next_after: (!last).then_some(next_after),
        }))
    }

    pub(crate) fn decode(row: &[u8]) -> Result<Self> {
        let mut cursor = Cursor::new(row)?;
        Ok(Self {
            last: cursor.read_byte()? != 0,
            timeline: cursor.read_number()?,
            push: cursor.read_number()?,
        })
    }
}

/// Encodes a planned chunk.
pub(crate) fn encode_chunk(recipients: &Recipients) -> Vec<u8> {
    let mut out = Vec::with_capacity(recipients.as_bytes().len() + 8);
    out.push(VERSION);
    // The last recipient lets a reader that is past it skip decoding the set.
    varint::write(
        &mut out,
        recipients.iter().last().map_or(0, |last| u64::from(last.0)),
    );
    write_set(&mut out, recipients);
    out
}

/// Decodes a planned chunk: its last recipient, and its set of recipients without decoding the set.
pub(crate) fn decode_chunk(row: &[u8]) -> Result<(UserKey, SetView<'_>)> {
    let mut cursor = Cursor::new(row)?;
    Ok((cursor.read_user()?, cursor.read_set_view()?))
}

/// The part of an outcome that counting needs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct OutcomeHead {
    /// The revision of the outcome; 0 if no outcome is recorded.
    pub(crate) revision: u64,
    pub(crate) counts: SettledCounts,
    /// Times of the first and the last delivery of the chunk.
    pub(crate) delivered_at: Option<(Timestamp, Timestamp)>,
}

/// Encodes a revision of a chunk's outcome with the times of the first and the last delivery.
pub(crate) fn encode_outcome(
    revision: u64,
    outcome: &Outcome,
    delivered_at: Option<(Timestamp, Timestamp)>,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    let kind = if matches!(outcome, Outcome::Delivered { .. }) {
        DELIVERED
    } else {
        MIXED
    };
    out.extend([OUTCOME_VERSION, kind]);
    varint::write(&mut out, revision);
    write_counts(&mut out, outcome.counts());
    match delivered_at {
        None => out.push(0),
        Some((first, last)) => {
            out.push(1);
            varint::write(&mut out, first.0.cast_unsigned());
            varint::write(&mut out, last.0.cast_unsigned());
        }
    }
    if let Outcome::Mixed {
        delivered,
        suppressed,
        expired,
        dead,
        details,
    } = outcome
    {
        for set in [delivered, suppressed, expired, dead] {
            write_set(&mut out, set);
        }
        details::write(&mut out, details);
    }
    out
}

/// Decodes the head of an outcome without its sets.
pub(crate) fn decode_head(row: &[u8]) -> Result<OutcomeHead> {
    Cursor(row).read_outcome_head().map(|(_, head)| head)
}

/// Decodes a complete outcome.
pub(crate) fn decode_outcome(row: &[u8]) -> Result<RecordedOutcome> {
    let mut cursor = Cursor(row);
    let (kind, head) = cursor.read_outcome_head()?;
    let outcome = match kind {
        DELIVERED => Ok(Outcome::Delivered {
            count: head.counts.delivered,
        }),
        MIXED => Ok(Outcome::Mixed {
            delivered: cursor.read_set()?,
            suppressed: cursor.read_set()?,
            expired: cursor.read_set()?,
            dead: cursor.read_set()?,
            details: details::read(&mut cursor)?,
        }),
        _ => Err(malformed()),
    }?;
    Ok(RecordedOutcome {
        revision: head.revision,
        outcome,
    })
}

/// Reads why recipients of an outcome are suppressed.
pub(crate) fn read_suppressed(row: &[u8]) -> Result<Vec<(SuppressedReason, Recipients)>> {
    match decode_outcome(row)?.outcome {
        Outcome::Delivered { .. } => Ok(Vec::new()),
        Outcome::Mixed { details, .. } => Ok(details.suppressed),
    }
}

fn write_counts(out: &mut Vec<u8>, counts: SettledCounts) {
    for count in [counts.delivered, counts.suppressed, counts.expired, counts.dead] {
        varint::write(out, u64::from(count));
    }
}

fn write_set(out: &mut Vec<u8>, set: &Recipients) {
    varint::write(out, u64::from(set.len()));
    varint::write(out, set.as_bytes().len() as u64);
    out.extend_from_slice(set.as_bytes());
}

/// The encoded bytes of a set of users.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SetView<'a> {
    count: u32,
    bytes: &'a [u8],
}

impl SetView<'_> {
    /// The first user of the set, without decoding the rest; `None` for an empty set.
    pub(crate) fn first(self) -> Result<Option<UserKey>> {
        if self.count == 0 {
            return Ok(None);
        }
        Cursor(self.bytes).read_user().map(Some)
    }

    /// Decodes the set.
    pub(crate) fn decode(self) -> Result<Recipients> {
        Recipients::decode(self.bytes.to_vec().into(), self.count).map_err(|_| malformed())
    }
}

/// A cursor over the unread bytes of a value.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn new(row: &'a [u8]) -> Result<Self> {
        let mut cursor = Self(row);
        if cursor.read_byte()? != VERSION {
            return Err(malformed());
        }
        Ok(cursor)
    }

    fn read_byte(&mut self) -> Result<u8> {
        let (first, after) = self.0.split_first().ok_or_else(malformed)?;
        self.0 = after;
        Ok(*first)
    }

    fn read_number(&mut self) -> Result<u64> {
        varint::read(&mut self.0).ok_or_else(malformed)
    }

    fn read_count(&mut self) -> Result<u32> {
        self.read_number()?.try_into().map_err(|_| malformed())
    }

    fn read_user(&mut self) -> Result<UserKey> {
        self.read_count().map(UserKey)
    }

    fn read_counts(&mut self) -> Result<SettledCounts> {
        Ok(SettledCounts {
            delivered: self.read_count()?,
            suppressed: self.read_count()?,
            expired: self.read_count()?,
            dead: self.read_count()?,
        })
    }

    /// Reads the kind and the head of an outcome.
    fn read_outcome_head(&mut self) -> Result<(u8, OutcomeHead)> {
        if self.read_byte()? != OUTCOME_VERSION {
            return Err(malformed());
        }
        let kind = self.read_byte()?;
        let revision = self.read_number()?;
        let counts = self.read_counts()?;
        let delivered_at = match self.read_byte()? {
            0 => None,
            _ => Some((
                Timestamp(self.read_number()?.cast_signed()),
                Timestamp(self.read_number()?.cast_signed()),
            )),
        };
        let head = OutcomeHead {
            revision,
            counts,
            delivered_at,
        };
        Ok((kind, head))
    }

    fn read_set_view(&mut self) -> Result<SetView<'a>> {
        let count = self.read_count()?;
        let length = self.read_count()? as usize;
        let (bytes, after) = self.0.split_at_checked(length).ok_or_else(malformed)?;
        self.0 = after;
        Ok(SetView { count, bytes })
    }

    fn read_set(&mut self) -> Result<Recipients> {
        self.read_set_view()?.decode()
    }
}

pub(crate) fn malformed() -> Error {
    Error::new(ErrorKind::Corrupt, "a row of the ledger is malformed")
}
