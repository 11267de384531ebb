//! LEB128 varints: seven bits per byte, least significant group first. Used for recipients in messages, rows of the
//! store and resume tokens.

/// Appends a number.
#[inline]
pub fn write(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Reads a number from the front of `rest` and removes it; `None` if it is truncated or larger than 64 bits.
#[inline]
pub fn read(rest: &mut &[u8]) -> Option<u64> {
    // Fast path: most numbers take one or two bytes.
    match **rest {
        [a, ref after @ ..] if a < 0x80 => {
            *rest = after;
            Some(u64::from(a))
        }
        [a, b, ref after @ ..] if b < 0x80 => {
            *rest = after;
            Some(u64::from(a & 0x7f) | u64::from(b) << 7)
        }
        _ => read_long(rest),
    }
}

fn read_long(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for (at, &byte) in rest.iter().take(10).enumerate() {
        let bits = u64::from(byte & 0x7f);
        if at == 9 && bits > 1 {
            return None;
        }
        value |= bits << (7 * at);
        if byte & 0x80 == 0 {
            *rest = &rest[at + 1..];
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn reading_reverses_writing(values in prop::collection::vec(any::<u64>(), 0..50), shift in 0_u32..64) {
            let mut bytes = Vec::new();
            for value in &values {
                write(&mut bytes, value >> shift);
            }
            let mut rest = &bytes[..];
            for value in &values {
                prop_assert_eq!(read(&mut rest), Some(value >> shift));
            }
            prop_assert!(rest.is_empty());
            prop_assert_eq!(read(&mut rest), None);
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..20)) {
            let mut rest = &bytes[..];
            while read(&mut rest).is_some() {}
        }
    }
}
