//! Groups equal failures: the same kind of consumer, the same cause, and the same normalized reason.
//!
//! A normalized reason has no values that differ from message to message, such as counts and ids.

use herald_store::Cause;
use xxhash_rust::xxh3::Xxh3;

/// Replaces a number or an id.
const PLACEHOLDER: char = '#';

/// Characters of a reason that are normalized; the rest is cut off.
const CHARS_MAX: usize = 512;

/// Start of the part of a reason that names hosts and devices.
const HOSTS: &str = " (hosts \"";

/// Words before a status code of three digits, which is kept: `status 503` and `status 429` are different failures.
const CODE_WORDS: [&str; 3] = ["status", "code", "http"];

/// Hashes the kind of consumer, the cause and the normalized reason to a group id.
pub(crate) fn group(kind: &str, cause: Cause, reason: &str) -> u64 {
    let mut hash = Xxh3::new();
    for part in [kind, &format!("{cause:?}"), reason] {
        hash.update(&(part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    hash.digest()
}

/// Lowercases a reason and replaces counts, ids, attempts and quoted text. Idempotent.
pub(crate) fn normalize(reason: &str) -> String {
    // The hosts and devices of failed pushes are the last part of a reason. The part may be cut off at its end.
    let reason = reason.split(HOSTS).next().unwrap_or_default();
    let mut reason: String = reason.chars().take(CHARS_MAX).collect();
    reason.make_ascii_lowercase();
    let mut text = String::with_capacity(reason.len());
    let mut last_word = String::new();
    let mut rest = &reason[..];
    while let Some(c) = rest.chars().next() {
        if is_word(c) {
            let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
            let (word, after) = rest.split_at(end);
            let after_code_word = CODE_WORDS.contains(&last_word.as_str());
            push_word(&mut text, word, after_code_word);
            word.clone_into(&mut last_word);
            rest = after;
        } else if let Some(after) = strip_quoted(rest) {
            text.push_str("\"…\"");
            last_word.clear();
            rest = after;
        } else {
            let space = c.is_whitespace() || c.is_control();
            match (space, text.chars().next_back()) {
                (true, None | Some(' ')) => {}
                (true, _) => text.push(' '),
                (false, _) => {
                    text.push(c);
                    last_word.clear();
                }
            }
            rest = &rest[c.len_utf8()..];
        }
    }
    // Numbers such as 1.5 and addresses such as 10.0.0.1 are one number.
    while text.contains("#.#") {
        text = text.replace("#.#", "#");
    }
    // Lower case and single spaces may have made one.
    let text = text.split(HOSTS).next().unwrap_or_default();
    strip_attempts(text).into()
}

/// Removes a suffix such as `(attempt 3 of 3)`, which only the reason of the last attempt has.
fn strip_attempts(mut reason: &str) -> &str {
    loop {
        reason = reason.trim_end();
        match reason.rfind("(attempt ") {
            Some(at) if reason.ends_with(')') && !reason[at..reason.len() - 1].contains(')') => {
                reason = &reason[..at];
            }
            _ => return reason,
        }
    }
}

/// The rest of `text` after a quoted string at its start; `None` if `text` doesn't start with one.
fn strip_quoted(text: &str) -> Option<&str> {
    let inner = text.strip_prefix('"')?;
    let end = inner.find('"')?;
    (end > 0).then(|| &inner[end + 1..])
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '-'
}

fn push_word(text: &mut String, word: &str, after_code_word: bool) {
    let all_digits = word.bytes().all(|b| b.is_ascii_digit());
    if after_code_word && all_digits && word.len() == 3 {
        text.push_str(word);
    } else if is_id(word) {
        text.push(PLACEHOLDER);
    } else {
        let mut in_number = false;
        for c in word.chars() {
            match (c.is_ascii_digit(), in_number) {
                (true, false) => text.push(PLACEHOLDER),
                (true, true) => {}
                (false, _) => text.push(c),
            }
            in_number = c.is_ascii_digit();
        }
    }
}

/// Whether a word is a hash, a UUID or a trace id: eight or more hexadecimal digits, dashes allowed.
fn is_id(word: &str) -> bool {
    let digits = word.bytes().filter(|b| *b != b'-');
    word.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')
        && digits.clone().count() >= 8
        && digits.clone().any(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_that_differ_between_messages_are_replaced() {
        for (reason, expected) in [
            (
                "push failed: web_push status 429: 2, webhook timeout: 117",
                "push failed: web_push status 429: #, webhook timeout: #",
            ),
            (
                "push failed: webhook status 400: 2 (hosts \"a.example (2)\", devices \"7, 9\")",
                "push failed: webhook status 400: #",
            ),
            (
                "push failed: webhook status 400: 2 (hosts \"a.example (1), b.exam",
                "push failed: webhook status 400: #",
            ),
            (
                "push is pending: webhook status 503: 1 (attempt 20 of 20)",
                "push is pending: webhook status 503: #",
            ),
            (
                "post 4711 of 550e8400-e29b-41d4-a716-446655440000 at 10.0.0.1:4222",
                "post # of # at #:#",
            ),
            (
                "chunk 00ff3c9a1b2d4e5f waited 1.5s and 2 s",
                "chunk # waited #s and # s",
            ),
            ("author_id \"Übermut 7\" is  odd", "author_id \"…\" is odd"),
            ("code 12, status 12345, http 404", "code #, status #, http 404"),
            ("Panic: index 3\n", "panic: index #"),
            ("", ""),
        ] {
            assert_eq!(normalize(reason), expected, "{reason}");
        }
    }

    #[test]
    fn kinds_and_causes_have_their_own_groups() {
        let push = group("push", Cause::Terminated, "x");
        assert_eq!(push, group("push", Cause::Terminated, "x"));
        assert_ne!(push, group("timeline", Cause::Terminated, "x"));
        assert_ne!(push, group("push", Cause::MaxDeliveries, "x"));
        assert_ne!(
            group("ab", Cause::Terminated, "c"),
            group("a", Cause::Terminated, "bc")
        );
    }

    proptest! {
        #[test]
        fn normalization_is_idempotent(reason in ".*|[a-f0-9#.\"( )-]{0,40}|(status|attempt|http|\\(attempt |[0-9]{1,4}|\\)| |\"|:|\\.){0,20}") {
            let once = normalize(&reason);
            prop_assert_eq!(normalize(&once), once);
        }

        #[test]
        fn numbers_ids_and_attempts_do_not_change_the_group(
            counts in prop::array::uniform2(any::<u64>()), id: u64, uuid in "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9]{12}",
            attempt in prop::option::of(any::<u32>()), status in 100..600_u32, other in 100..600_u32,
        ) {
            let text = |[a, b]: [u64; 2], id: u64, uuid: &str, attempt: Option<u32>, status: u32| {
                let end = attempt.map(|n| format!(" (attempt {n} of {n})")).unwrap_or_default();
                format!("push failed: webhook status {status}: {a}, chunk {id:016x}, key {uuid}, waited {b} ms{end}")
            };
            let plain = normalize(&text([1, 1], 0x0123_4567_89ab_cdef, "00000000-0000-0000-0000-000000000000", None, status));
            prop_assert_eq!(&normalize(&text(counts, id, &uuid, attempt, status)), &plain);
            prop_assert_eq!(normalize(&text(counts, id, &uuid, attempt, other)) == plain, other == status);
        }

        #[test]
        fn digits_remain_only_in_status_codes(reason in "[a-z0-9 :,_-]{0,80}") {
            let text = normalize(&reason);
            let mut words = text.split(|c: char| !is_word(c));
            let mut last = "";
            for word in &mut words {
                if word.bytes().any(|b| b.is_ascii_digit()) {
                    prop_assert!(word.len() == 3 && CODE_WORDS.contains(&last), "{} in {}", word, text);
                }
                last = word;
            }
        }
    }
}
