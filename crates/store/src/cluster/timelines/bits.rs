//! A set of users as bits. User keys are dense, so it takes an eighth of a byte for each user there is.

use herald_model::UserKey;

/// A set of users.
#[derive(Debug, Clone, Default)]
pub(super) struct Bits {
    words: Vec<u64>,
    count: usize,
}

impl Bits {
    pub(super) fn contains(&self, user: UserKey) -> bool {
        let word = self.words.get((user.0 >> 6) as usize);
        word.is_some_and(|word| word >> (user.0 & 63) & 1 == 1)
    }

    /// Adds a user. Returns whether the set lacked it.
    pub(super) fn insert(&mut self, user: UserKey) -> bool {
        let index = (user.0 >> 6) as usize;
        if index >= self.words.len() {
            self.words.resize(index + 1, 0);
        }
        let mask = 1 << (user.0 & 63);
        let added = self.words[index] & mask == 0;
        self.words[index] |= mask;
        self.count += usize::from(added);
        added
    }

    pub(super) fn remove(&mut self, user: UserKey) {
        if self.contains(user) {
            self.words[(user.0 >> 6) as usize] &= !(1 << (user.0 & 63));
            self.count -= 1;
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_holds_what_was_inserted_and_not_removed() {
        let mut bits = Bits::default();
        assert!(bits.is_empty() && !bits.contains(UserKey(5)));
        assert!(bits.insert(UserKey(64)));
        assert!(!bits.insert(UserKey(64)));
        assert!(bits.insert(UserKey(1_000_000)));
        assert!(bits.contains(UserKey(64)) && !bits.contains(UserKey(65)) && !bits.contains(UserKey(0)));
        bits.remove(UserKey(64));
        bits.remove(UserKey(64));
        assert!(!bits.contains(UserKey(64)) && !bits.is_empty());
        bits.remove(UserKey(1_000_000));
        assert!(bits.is_empty());
    }
}
