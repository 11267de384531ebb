//! Which letters travel together: those for the same consumers, as many as a batch takes. A large one gains nothing from
//! company, and goes by itself.

use herald_mesh::{BATCH_BYTES_MAX, BATCH_MESSAGES_MAX, consumers::Kind};

/// What a message's headers take, about.
const HEADERS_BYTES: usize = 512;

/// Puts letters together, in their order, by their kind and the bytes that they carry.
pub(crate) fn pack<T>(
    letters: impl IntoIterator<Item = T>,
    measure: impl Fn(&T) -> (Kind, usize),
) -> Vec<Vec<T>> {
    let mut packed = Vec::new();
    let mut open: Vec<(Kind, usize, Vec<T>)> = Vec::new();
    for letter in letters {
        let (kind, bytes) = measure(&letter);
        let bytes = bytes + HEADERS_BYTES;
        let place = open.iter().position(|(of, ..)| *of == kind).unwrap_or_else(|| {
            open.push((kind, 0, Vec::new()));
            open.len() - 1
        });
        let (_, size, parcel) = &mut open[place];
        if !parcel.is_empty() && (parcel.len() == BATCH_MESSAGES_MAX || *size + bytes > BATCH_BYTES_MAX) {
            packed.push(std::mem::take(parcel));
            *size = 0;
        }
        *size += bytes;
        parcel.push(letter);
    }
    packed.extend(open.into_iter().map(|(_, _, parcel)| parcel));
    packed
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn letters() -> impl Strategy<Value = Vec<(usize, Kind, usize)>> {
        let kind = (0..Kind::ALL.len()).prop_map(|n| Kind::ALL[n]);
        let bytes = prop_oneof![0..2_000_usize, 0..2 * BATCH_BYTES_MAX];
        prop::collection::vec((kind, bytes), 0..300).prop_map(|letters| {
            let numbered = letters.into_iter().enumerate();
            numbered.map(|(n, (kind, bytes))| (n, kind, bytes)).collect()
        })
    }

    proptest! {
        #[test]
        fn all_are_packed_in_order_and_no_parcel_is_too_large(letters in letters()) {
            let packed = pack(letters.clone(), |(_, kind, bytes)| (*kind, *bytes));
            for parcel in &packed {
                let size: usize = parcel.iter().map(|(.., bytes)| bytes + HEADERS_BYTES).sum();
                prop_assert!(parcel.len() == 1 || size <= BATCH_BYTES_MAX);
                prop_assert!((1..=BATCH_MESSAGES_MAX).contains(&parcel.len()));
                prop_assert!(parcel.iter().all(|(_, kind, _)| *kind == parcel[0].1));
            }
            for kind in Kind::ALL {
                let of_kind = |(_, of, _): &&(usize, Kind, usize)| *of == kind;
                let packed: Vec<_> = packed.iter().flatten().filter(of_kind).collect();
                let wanted: Vec<_> = letters.iter().filter(of_kind).collect();
                prop_assert_eq!(packed, wanted);
            }
        }
    }

    #[test]
    fn small_letters_of_one_kind_fill_batches() {
        let packed = pack(0..130, |_| (Kind::Push, 200));
        let sizes: Vec<_> = packed.iter().map(Vec::len).collect();
        assert_eq!(sizes, [64, 64, 2]);
    }
}
