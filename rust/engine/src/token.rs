//! The tokens of which clients must send one first.

/// Compares with each token, in time that depends on lengths only. Without tokens everybody is let in.
#[must_use]
pub fn token_matches(tokens: &[Vec<u8>], offered: Option<&[u8]>) -> bool {
    let offered = offered.unwrap_or_default();
    // No short circuit: which of them it is takes the same time.
    tokens.iter().fold(tokens.is_empty(), |matches, token| is_same(token, offered) | matches)
}

fn is_same(token: &[u8], offered: &[u8]) -> bool {
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
        assert!(token_matches(&[], None) && token_matches(&[], Some(b"anything")));
        let secret = [b"secret".to_vec()];
        assert!(token_matches(&secret, Some(b"secret")));
        for wrong in [None, Some(&b""[..]), Some(b"secre"), Some(b"secrets"), Some(b"secreT"), Some(b"secretsecret")] {
            assert!(!token_matches(&secret, wrong), "{wrong:?}");
        }
    }

    #[test]
    fn each_of_several_tokens_matches() {
        let tokens = [b"new one".to_vec(), b"old".to_vec()];
        assert!(token_matches(&tokens, Some(b"new one")) && token_matches(&tokens, Some(b"old")));
        for wrong in [None, Some(&b""[..]), Some(b"new oneold"), Some(b"new one\nold"), Some(b"ol")] {
            assert!(!token_matches(&tokens, wrong), "{wrong:?}");
        }
    }
}
