//! Where the messages in a stream of requests begin and end.

/// Length of a message's prefix: a flag, and its size in four bytes.
const PREFIX: usize = 5;

/// Follows a stream of requests.
#[derive(Default)]
pub(super) struct Framing {
    prefix: [u8; PREFIX],
    /// Bytes of the current message that have come, its prefix included.
    received: usize,
    /// Size of the current message with its prefix; known once the prefix is complete.
    size: usize,
}

impl Framing {
    /// Takes more bytes of the stream. Returns how many there are of a message that is not complete.
    pub(super) fn push(&mut self, mut data: &[u8]) -> usize {
        while !data.is_empty() {
            if self.received < PREFIX {
                let count = data.len().min(PREFIX - self.received);
                self.prefix[self.received..self.received + count].copy_from_slice(&data[..count]);
                self.received += count;
                data = &data[count..];
                if self.received < PREFIX {
                    break;
                }
                let [_, size @ ..] = self.prefix;
                self.size = PREFIX + u32::from_be_bytes(size) as usize;
            } else {
                let count = data.len().min(self.size - self.received);
                self.received += count;
                data = &data[count..];
            }
            if self.received == self.size {
                self.received = 0;
                self.size = 0;
            }
        }
        self.received
    }

    /// Whether a message has begun and is not complete.
    pub(super) fn is_within_message(&self) -> bool {
        self.received > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_end_where_their_size_says() {
        // Messages of 0, 3 and 300 bytes.
        let mut stream = vec![0, 0, 0, 0, 0];
        stream.extend([0, 0, 0, 0, 3, 1, 2, 3]);
        stream.extend([0, 0, 0, 1, 44]);
        stream.extend([7; 300]);
        let ends = [5, 13, 318];
        for step in [1, 2, 3, 7, 400] {
            let mut framing = Framing::default();
            let mut at = 0;
            for part in stream.chunks(step) {
                at += part.len();
                let begin = ends.iter().rev().find(|end| **end <= at).unwrap_or(&0);
                assert_eq!(
                    framing.push(part),
                    at - begin,
                    "after {at} bytes in steps of {step}"
                );
                assert_eq!(framing.is_within_message(), at != *begin);
            }
        }
    }
}
