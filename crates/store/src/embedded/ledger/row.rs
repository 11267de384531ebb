//! How the ledger's rows lie on disk. Each value begins with the version of its layout; numbers in values are varints.

use herald_model::{Channel, ChunkId, DeviceId, PostId, Recipients, UserKey, time::Timestamp, varint};

use crate::{Error, ErrorKind, Outcome, PartialDelivery, RecordedOutcome, Result, SettledCounts};

/// The layout of all values but outcomes.
const VERSION: u8 = 1;

/// The layout of outcomes: they have a revision. Those of layout 1 have none, are read as revision 1, and say at their end
/// how much was told by events, which is of no more interest.
const OUTCOME_VERSION: u8 = 2;

const DELIVERED: u8 = 0;
const MIXED: u8 = 1;

/// What kind of row a key names. The small rows that counting reads come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// A planned slice.
    Slice = 0,
    /// What became of a chunk.
    Outcome = 1,
    /// A planned chunk.
    Chunk = 2,
    /// Whom a backfill has put the post on the timelines of.
    Backfill = 3,
}

impl Kind {
    /// The kind of row that a key names.
    pub(super) fn of(key: &[u8]) -> Result<Self> {
        [Self::Slice, Self::Outcome, Self::Chunk, Self::Backfill]
            .into_iter()
            .find(|kind| key.get(8) == Some(&(*kind as u8)))
            .ok_or_else(malformed)
    }
}

/// The front of the keys of one kind of row of a post.
pub(super) fn prefix(post: PostId, kind: Kind) -> [u8; 9] {
    let mut key = [kind as u8; 9];
    key[..8].copy_from_slice(&post.0.to_be_bytes());
    key
}

/// The front of the keys of one kind of row of a post and channel.
pub(super) fn channel_prefix(post: PostId, kind: Kind, channel: Channel) -> [u8; 10] {
    let mut key = [channel_byte(channel); 10];
    key[..9].copy_from_slice(&prefix(post, kind));
    key
}

/// The key of a slice.
pub(super) fn slice_key(post: PostId, slice: u32) -> [u8; 13] {
    let mut key = [0; 13];
    key[..9].copy_from_slice(&prefix(post, Kind::Slice));
    key[9..].copy_from_slice(&slice.to_be_bytes());
    key
}

/// The slice of a key made by [`slice_key`].
pub(super) fn read_slice_key(key: &[u8]) -> Result<u32> {
    let key: &[u8; 13] = key.try_into().map_err(|_| malformed())?;
    let (_, slice) = key.split_last_chunk::<4>().ok_or_else(malformed)?;
    Ok(u32::from_be_bytes(*slice))
}

/// The post of any key.
pub(super) fn read_post(key: &[u8]) -> Result<PostId> {
    let (post, _) = key.split_first_chunk::<8>().ok_or_else(malformed)?;
    Ok(PostId(u64::from_be_bytes(*post)))
}

/// The key of a chunk's row of a kind.
pub(super) fn chunk_key(post: PostId, kind: Kind, channel: Channel, chunk: ChunkId) -> [u8; 18] {
    let mut key = [0; 18];
    key[..10].copy_from_slice(&channel_prefix(post, kind, channel));
    key[10..].copy_from_slice(&chunk.0.to_be_bytes());
    key
}

/// The channel and chunk of a key made by [`chunk_key`].
pub(super) fn read_chunk_key(key: &[u8]) -> Result<(Channel, ChunkId)> {
    let key: &[u8; 18] = key.try_into().map_err(|_| malformed())?;
    let channel = Channel::ALL
        .into_iter()
        .find(|c| channel_byte(*c) == key[9])
        .ok_or_else(malformed)?;
    let (_, chunk) = key.split_last_chunk::<8>().ok_or_else(malformed)?;
    Ok((channel, ChunkId(u64::from_be_bytes(*chunk))))
}

fn channel_byte(channel: Channel) -> u8 {
    match channel {
        Channel::Timeline => 0,
        Channel::Push => 1,
    }
}

/// A planned slice: whether it is the last, and how many recipients it has on each channel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Slice {
    pub(super) last: bool,
    pub(super) timeline: u64,
    pub(super) push: u64,
}

impl Slice {
    pub(super) fn encode(self) -> Vec<u8> {
        let mut out = vec![VERSION, u8::from(self.last)];
        varint::write(&mut out, self.timeline);
        varint::write(&mut out, self.push);
        out
    }

    pub(super) fn decode(row: &[u8]) -> Result<Self> {
        let mut rest = Rest::new(row)?;
        Ok(Self {
            last: rest.byte()? != 0,
            timeline: rest.number()?,
            push: rest.number()?,
        })
    }
}

/// A planned chunk.
pub(super) fn encode_chunk(recipients: &Recipients) -> Vec<u8> {
    let mut out = Vec::with_capacity(recipients.as_bytes().len() + 8);
    out.push(VERSION);
    // Where the set ends, so that a reader who is past it needs to decode no more.
    varint::write(
        &mut out,
        recipients.iter().last().map_or(0, |last| u64::from(last.0)),
    );
    write_set(&mut out, recipients);
    out
}

/// A planned chunk's greatest recipient, and a view of the set.
pub(super) fn decode_chunk(row: &[u8]) -> Result<(UserKey, SetView<'_>)> {
    let mut rest = Rest::new(row)?;
    Ok((rest.user()?, rest.set_view()?))
}

/// What became of a chunk, as far as counting needs it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Head {
    /// How often it has changed; 0: nothing is recorded.
    pub(super) revision: u64,
    pub(super) counts: SettledCounts,
    /// When the first of the chunk was delivered and when the last.
    pub(super) delivered_at: Option<(Timestamp, Timestamp)>,
}

/// A revision of a chunk's outcome with the times of its first and last delivery.
pub(super) fn encode_outcome(
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
        partial,
    } = outcome
    {
        for set in [delivered, suppressed, expired, dead] {
            write_set(&mut out, set);
        }
        varint::write(&mut out, partial.len() as u64);
        for one in partial {
            varint::write(&mut out, u64::from(one.user.0));
            varint::write(&mut out, one.done.len() as u64);
            for device in &one.done {
                varint::write(&mut out, device.0);
            }
        }
    }
    out
}

/// The counts and times of an outcome; the sets aren't looked at.
pub(super) fn decode_head(row: &[u8]) -> Result<Head> {
    Rest(row).outcome_head().map(|(_, head)| head)
}

/// A whole outcome.
pub(super) fn decode_outcome(row: &[u8]) -> Result<RecordedOutcome> {
    let mut rest = Rest(row);
    let (kind, head) = rest.outcome_head()?;
    let outcome = match kind {
        DELIVERED => Ok(Outcome::Delivered {
            count: head.counts.delivered,
        }),
        MIXED => Ok(Outcome::Mixed {
            delivered: rest.set()?,
            suppressed: rest.set()?,
            expired: rest.set()?,
            dead: rest.set()?,
            partial: rest.partial()?,
        }),
        _ => Err(malformed()),
    }?;
    Ok(RecordedOutcome {
        revision: head.revision,
        outcome,
    })
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

/// The bytes of a set of users, not looked at yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct SetView<'a> {
    count: u32,
    bytes: &'a [u8],
}

impl SetView<'_> {
    /// The set.
    pub(super) fn decode(self) -> Result<Recipients> {
        Recipients::decode(self.bytes.to_vec().into(), self.count).map_err(|_| malformed())
    }
}

/// What is left to read of a value.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn new(row: &'a [u8]) -> Result<Self> {
        let mut rest = Self(row);
        if rest.byte()? != VERSION {
            return Err(malformed());
        }
        Ok(rest)
    }

    fn byte(&mut self) -> Result<u8> {
        let (first, after) = self.0.split_first().ok_or_else(malformed)?;
        self.0 = after;
        Ok(*first)
    }

    fn number(&mut self) -> Result<u64> {
        varint::read(&mut self.0).ok_or_else(malformed)
    }

    fn count(&mut self) -> Result<u32> {
        self.number()?.try_into().map_err(|_| malformed())
    }

    fn user(&mut self) -> Result<UserKey> {
        self.count().map(UserKey)
    }

    fn counts(&mut self) -> Result<SettledCounts> {
        Ok(SettledCounts {
            delivered: self.count()?,
            suppressed: self.count()?,
            expired: self.count()?,
            dead: self.count()?,
        })
    }

    /// What kind of outcome it is, and what counting needs.
    fn outcome_head(&mut self) -> Result<(u8, Head)> {
        let version = self.byte()?;
        let kind = self.byte()?;
        let revision = match version {
            VERSION => 1,
            OUTCOME_VERSION => self.number()?,
            _ => return Err(malformed()),
        };
        let counts = self.counts()?;
        let delivered_at = match self.byte()? {
            0 => None,
            _ => Some((
                Timestamp(self.number()?.cast_signed()),
                Timestamp(self.number()?.cast_signed()),
            )),
        };
        let head = Head {
            revision,
            counts,
            delivered_at,
        };
        Ok((kind, head))
    }

    fn set_view(&mut self) -> Result<SetView<'a>> {
        let count = self.count()?;
        let length = self.count()? as usize;
        let (bytes, after) = self.0.split_at_checked(length).ok_or_else(malformed)?;
        self.0 = after;
        Ok(SetView { count, bytes })
    }

    fn set(&mut self) -> Result<Recipients> {
        self.set_view()?.decode()
    }

    fn partial(&mut self) -> Result<Vec<PartialDelivery>> {
        let count = self.count()?;
        (0..count)
            .map(|_| {
                let user = self.user()?;
                let devices = self.count()?;
                let done = (0..devices)
                    .map(|_| self.number().map(DeviceId))
                    .collect::<Result<_>>()?;
                Ok(PartialDelivery { user, done })
            })
            .collect()
    }
}

fn malformed() -> Error {
    Error::new(ErrorKind::Corrupt, "a row of the ledger is malformed")
}
