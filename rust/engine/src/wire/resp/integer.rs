//! Integers as Redis reads them: no plus sign, no leading zero, no blank, no `-0`.

/// A signed integer of 64 bits in its only accepted form.
pub(super) fn parse_i64(text: &[u8]) -> Option<i64> {
    match text {
        [b'-', digits @ ..] => match parse_u64(digits)? {
            0 => None,
            magnitude => 0_i64.checked_sub_unsigned(magnitude),
        },
        digits => i64::try_from(parse_u64(digits)?).ok(),
    }
}

/// An unsigned integer of 64 bits in its only accepted form.
pub(super) fn parse_u64(text: &[u8]) -> Option<u64> {
    if let [b'0', _, ..] | [] = text {
        return None;
    }
    text.iter().try_fold(0_u64, |value, byte| {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        value.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_plain_form_is_an_integer() {
        for value in [0, 1, -1, 9, 10, -10, i64::MAX, i64::MIN, i64::MAX - 1, i64::MIN + 1] {
            assert_eq!(parse_i64(value.to_string().as_bytes()), Some(value));
        }
        assert_eq!(parse_u64(u64::MAX.to_string().as_bytes()), Some(u64::MAX));
        for wrong in [
            "",
            "-",
            "+1",
            "-0",
            "00",
            "01",
            "-01",
            " 1",
            "1 ",
            "1.0",
            "1e3",
            "0x1",
            "a",
            "9223372036854775808",
            "-9223372036854775809",
            "99999999999999999999",
            "184467440737095516160",
            "1\n",
            "--1",
        ] {
            assert_eq!(parse_i64(wrong.as_bytes()), None, "{wrong:?}");
        }
    }
}
