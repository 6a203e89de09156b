//! Redis's pattern language for `SCAN MATCH`: `*`, `?`, `[a-z]`, `[^a-z]` and `\`.
//!
//! Iterative: after a mismatch only the last `*` is tried again, one byte further. So the worst case is
//! pattern times key, never exponential.

/// Does the whole of `key` match `pattern`? Bytes, not characters, as in Redis.
#[must_use]
pub fn matches(pattern: &[u8], key: &[u8]) -> bool {
    let (mut pattern_rest, mut key_rest) = (pattern, key);
    // After the last `*`: the pattern behind it, and the key from where it was last tried.
    let mut retry: Option<(&[u8], &[u8])> = None;
    loop {
        if let [b'*', after @ ..] = pattern_rest {
            if after.is_empty() {
                return true;
            }
            retry = Some((after, key_rest));
            pattern_rest = after;
            continue;
        }
        let step = match key_rest.split_first() {
            Some((&byte, rest)) => match_one(pattern_rest, byte).map(|after| (after, rest)),
            None if pattern_rest.is_empty() => return true,
            None => return false,
        };
        if let Some((after, rest)) = step {
            (pattern_rest, key_rest) = (after, rest);
            continue;
        }
        let Some((after, [_, tried_rest @ ..])) = retry else { return false };
        retry = Some((after, tried_rest));
        (pattern_rest, key_rest) = (after, tried_rest);
    }
}

/// How many steps a byte of a key may cost at the most, beside the pattern's length for the whole of it: behind the
/// first `*` everything may be tried again at each byte.
#[must_use]
pub fn steps_per_byte(pattern: &[u8]) -> usize {
    pattern.iter().position(|&byte| byte == b'*').map_or(0, |star| pattern.len() - star - 1)
}

/// If the first element of `pattern` matches `byte`, what comes after the element.
fn match_one(pattern: &[u8], byte: u8) -> Option<&[u8]> {
    match pattern {
        [b'?', after @ ..] => Some(after),
        [b'[', class @ ..] => match_class(class, byte),
        // A backslash at the very end stands for itself.
        [b'\\', literal, after @ ..] => (*literal == byte).then_some(after),
        [literal, after @ ..] => (*literal == byte).then_some(after),
        [] => None,
    }
}

/// As Redis does it: `]` ends the class even in first place, a missing one is taken as there, ranges may be reversed.
fn match_class(mut class: &[u8], byte: u8) -> Option<&[u8]> {
    let negated = class.first() == Some(&b'^');
    if negated {
        class = class.get(1..)?;
    }
    let mut found = false;
    loop {
        class = match class {
            [] => break,
            [b']', after @ ..] => {
                class = after;
                break;
            }
            [b'\\', literal, after @ ..] => {
                found |= *literal == byte;
                after
            }
            [from, b'-', to, after @ ..] => {
                found |= (*from.min(to)..=*from.max(to)).contains(&byte);
                after
            }
            [literal, after @ ..] => {
                found |= *literal == byte;
                after
            }
        };
    }
    (found != negated).then_some(class)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn patterns_match_as_in_redis() {
        let rows: &[(&str, &str, bool)] = &[
            ("", "", true),
            ("", "a", false),
            ("a", "", false),
            ("*", "", true),
            ("*", "anything", true),
            ("?", "", false),
            ("?", "a", true),
            ("?", "ab", false),
            ("h?llo", "hello", true),
            ("h*llo", "hllo", true),
            ("h*llo", "heeeello", true),
            ("h*llo", "heeeellx", false),
            ("h[ae]llo", "hello", true),
            ("h[ae]llo", "hillo", false),
            ("h[^e]llo", "hallo", true),
            ("h[^e]llo", "hello", false),
            ("h[a-b]llo", "hbllo", true),
            ("h[b-a]llo", "hallo", true),
            ("h[a-b]llo", "hcllo", false),
            ("a\\*b", "a*b", true),
            ("a\\*b", "axb", false),
            ("a\\", "a\\", true),
            ("a\\", "a", false),
            ("[\\]]", "]", true),
            ("\\*", "\\", false),
            ("\\?", "\\a", false),
            ("[a", "a", true),
            ("[a", "b", false),
            ("[]a]", "]", false),
            ("[", "a", false),
            ("[^", "a", true),
            ("[^]", "a", true),
            ("[a-", "-", true),
            ("*a*b*c*", "xxaxxbxxcxx", true),
            ("*a*b*c", "abcabd", false),
            ("**a", "bba", true),
            ("a**", "a", true),
            ("foo*bar", "foobarbar", true),
            ("[!a]", "!", true),
            ("user:*:hits", "user:17:hits", true),
            ("user:*:hits", "user:17:hit", false),
        ];
        for (pattern, key, expected) in rows {
            assert_eq!(matches(pattern.as_bytes(), key.as_bytes()), *expected, "{pattern:?} {key:?}");
        }
    }

    #[test]
    fn the_worst_pattern_stays_cheap() {
        // Exponential matching would not end within the age of the universe.
        let (pattern, key) = (b"*a".repeat(512), [b"a".repeat(500), b"b".to_vec(), b"a".repeat(500)].concat());
        let started = std::time::Instant::now();
        for _ in 0..10 {
            assert!(!matches(&[&pattern[..], b"c"].concat(), &key));
        }
        assert!(started.elapsed() < std::time::Duration::from_secs(2));
    }

    /// The textbook definition, exponential and obviously right.
    fn oracle(pattern: &[u8], key: &[u8]) -> bool {
        match (pattern, key) {
            ([b'*', after @ ..], _) => (0..=key.len()).any(|taken| oracle(after, &key[taken..])),
            ([], []) => true,
            (_, [byte, rest @ ..]) => match_one(pattern, *byte).is_some_and(|after| oracle(after, rest)),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn it_agrees_with_the_definition(pattern in "[ab*?\\[\\]^\\\\-]{0,10}", key in "[ab*-]{0,10}") {
            prop_assert_eq!(matches(pattern.as_bytes(), key.as_bytes()), oracle(pattern.as_bytes(), key.as_bytes()));
        }

        #[test]
        fn any_bytes_are_fine(pattern: Vec<u8>, key: Vec<u8>) {
            let _ = matches(&pattern, &key);
        }
    }
}
