//! Input for property tests of decoders: bytes that are nearly valid, as a torn write, a bad disk, another version or
//! an attacker makes them.
//!
//! Arbitrary bytes alone rarely get past the first field. Bytes made from a valid message reach the checks behind it.

use std::fmt::Debug;

use proptest::{collection::vec, prelude::*, sample::Index};

/// Maximum number of edits of one input.
const EDITS_MAX: usize = 4;
/// Maximum length of arbitrary bytes, and of those that an edit inserts.
const ARBITRARY_MAX: usize = 64;

/// One change of valid bytes.
#[derive(Debug, Clone)]
enum Edit {
    Truncate(Index),
    FlipBit(Index, u8),
    Replace(Index, u8),
    Insert(Index, Vec<u8>),
    /// Appends a copy of what follows a place.
    Repeat(Index),
    Remove(Index, Index),
}

impl Edit {
    fn apply(self, bytes: &mut Vec<u8>) {
        // A place from 0 to the length; one before the length is a byte.
        let place = |index: Index, bytes: &[u8]| index.index(bytes.len() + 1);
        match self {
            Self::Truncate(at) => bytes.truncate(place(at, bytes)),
            Self::FlipBit(at, bit) => {
                let at = place(at, bytes);
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << (bit % 8);
                }
            }
            Self::Replace(at, with) => {
                let at = place(at, bytes);
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = with;
                }
            }
            Self::Insert(at, more) => {
                let at = place(at, bytes);
                bytes.splice(at..at, more);
            }
            Self::Repeat(from) => bytes.extend_from_within(place(from, bytes)..),
            Self::Remove(one, other) => {
                let (one, other) = (place(one, bytes), place(other, bytes));
                bytes.drain(one.min(other)..one.max(other));
            }
        }
    }
}

fn edit() -> impl Strategy<Value = Edit> {
    let place = any::<Index>;
    prop_oneof![
        place().prop_map(Edit::Truncate),
        (place(), any::<u8>()).prop_map(|(at, bit)| Edit::FlipBit(at, bit)),
        (place(), any::<u8>()).prop_map(|(at, with)| Edit::Replace(at, with)),
        (place(), inserted()).prop_map(|(at, more)| Edit::Insert(at, more)),
        place().prop_map(Edit::Repeat),
        (place(), place()).prop_map(|(one, other)| Edit::Remove(one, other)),
    ]
}

/// Arbitrary bytes, or a number that claims far more than there is: as a varint of LEB128, or of fixed size.
fn inserted() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        vec(any::<u8>(), 0..ARBITRARY_MAX),
        Just(vec![0xff, 0xff, 0xff, 0xff, 0x0f]),
        Just([vec![0xff; 9], vec![0x01]].concat()),
        Just(vec![0xff; 8]),
        Just(vec![0x7f; 4]),
    ]
}

/// Valid bytes with up to four edits (truncations, flipped bits, insertions, repeated and removed parts), or arbitrary
/// bytes.
pub fn near(valid: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let edited = (valid, vec(edit(), 0..=EDITS_MAX)).prop_map(|(mut bytes, edits)| {
        for edit in edits {
            edit.apply(&mut bytes);
        }
        bytes
    });
    prop_oneof![8 => edited, 1 => vec(any::<u8>(), 0..ARBITRARY_MAX)]
}

/// One of these numbers or any other: those at which arithmetic overflows.
pub fn edges<T: Arbitrary + Clone + Debug + 'static>(edges: &[T]) -> impl Strategy<Value = T> + use<T> {
    prop_oneof![prop::sample::select(edges.to_vec()), any::<T>()]
}

/// A time in microseconds since 1970: one of the ends of the range, or any other.
pub fn micros() -> impl Strategy<Value = i64> {
    edges(&[i64::MIN, -1, 0, 1_790_230_470_084_404, i64::MAX])
}

/// A number of 32 bits: one of the ends of the range, or any other.
pub fn u32s() -> impl Strategy<Value = u32> {
    edges(&[0, 1, u32::MAX - 1, u32::MAX])
}

/// A number of 64 bits: one of the ends of the ranges of `i64` and `u64`, or any other.
pub fn u64s() -> impl Strategy<Value = u64> {
    edges(&[0, 1, i64::MAX as u64, i64::MAX as u64 + 1, u64::MAX])
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::test_runner::{Config, TestRunner};

    use super::*;

    #[test]
    fn inputs_are_valid_shorter_longer_and_changed_bytes() {
        let seen = Cell::new([0_u32; 4]);
        let mut runner = TestRunner::new_with_rng(
            Config::with_cases(500),
            proptest::test_runner::TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha),
        );
        let valid = vec![7; 20];
        let ran = runner.run(&near(Just(valid.clone())), |bytes| {
            let mut counts = seen.get();
            let kind = match bytes.len() {
                20 if bytes == valid => 0,
                20 => 1,
                0..20 => 2,
                _ => 3,
            };
            counts[kind] += 1;
            seen.set(counts);
            Ok(())
        });
        assert_eq!(ran, Ok(()));
        assert!(seen.get().iter().all(|count| *count > 20), "{:?}", seen.get());
    }
}
