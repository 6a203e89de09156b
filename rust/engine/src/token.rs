//! The token that clients must send first.

/// Compares a token in time that depends on its length only. Without one everybody is let in.
#[must_use]
pub fn token_matches(token: Option<&[u8]>, offered: Option<&[u8]>) -> bool {
    let Some(token) = token else { return true };
    let offered = offered.unwrap_or_default();
    let mut difference = u8::from(offered.len() != token.len());
    for (index, &byte) in offered.iter().enumerate() {
        difference |= byte ^ token.get(index % token.len().max(1)).unwrap_or(&0);
    }
    std::hint::black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use super::token_matches;

    #[test]
    fn only_the_same_bytes_match() {
        assert!(token_matches(None, None) && token_matches(None, Some(b"anything")));
        assert!(token_matches(Some(b"secret"), Some(b"secret")));
        for wrong in [None, Some(&b""[..]), Some(b"secre"), Some(b"secrets"), Some(b"secreT"), Some(b"secretsecret")] {
            assert!(!token_matches(Some(b"secret"), wrong), "{wrong:?}");
        }
    }
}
