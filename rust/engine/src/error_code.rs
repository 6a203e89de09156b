//! The closed list of error codes: what each means, whether a retry may help, whether nothing was applied.
//!
//! The only place where codes are listed: Python reads this table through the native module.

/// Declares the enum and its table in one go, so that no code can lack a row.
macro_rules! error_codes {
    ($($variant:ident = $number:literal, $name:literal, retry: $retry:literal, applied: $applied:ident, $meaning:literal;)*) => {
        /// A reason why a request, or one item of it, was not answered with a result.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        #[non_exhaustive]
        pub enum ErrorCode { $(#[doc = $meaning] $variant = $number,)* }

        impl ErrorCode {
            /// Every code, in the order of its number.
            pub const ALL: &'static [ErrorCode] = &[$(ErrorCode::$variant,)*];
            /// The word on the wire.
            pub const fn name(self) -> &'static str { match self { $(ErrorCode::$variant => $name,)* } }
            /// May the same request succeed later if it is sent again under the same id?
            pub const fn retryable(self) -> bool { match self { $(ErrorCode::$variant => $retry,)* } }
            /// What is certain about the effect.
            pub const fn effect(self) -> Effect { match self { $(ErrorCode::$variant => Effect::$applied,)* } }
            /// One sentence for people.
            pub const fn meaning(self) -> &'static str { match self { $(ErrorCode::$variant => $meaning,)* } }
            /// The code of this word on the wire.
            pub fn from_name(name: &str) -> Option<ErrorCode> { ErrorCode::ALL.iter().copied().find(|code| code.name() == name) }
            /// The code with this number, as stored in the journal.
            pub const fn from_number(number: u8) -> Option<ErrorCode> { match number { $($number => Some(ErrorCode::$variant),)* _ => None } }
        }
    };
}

/// What an error says about the effect of the refused attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// This attempt changed nothing.
    Nothing,
    /// An earlier attempt was applied; this one changed nothing.
    Before,
    /// It may or may not have been applied: retry under the same id, at the same shard.
    Unknown,
}

// Numbers are stored in the journal: never reuse one.
error_codes! {
    BadRequest = 1, "bad_request", retry: false, applied: Nothing, "the request is malformed";
    UnknownMethod = 2, "unknown_method", retry: false, applied: Nothing, "there is no such method";
    BadKey = 3, "bad_key", retry: false, applied: Nothing, "a key is a string of 1 to 1024 bytes";
    BadDelta = 4, "bad_delta", retry: false, applied: Nothing, "a delta is a signed 64-bit integer";
    Overflow = 5, "overflow", retry: false, applied: Nothing, "the value would leave the range of 64 bits";
    TooLarge = 6, "too_large", retry: false, applied: Nothing, "the request is over a size limit";
    Unauthenticated = 7, "unauthenticated", retry: false, applied: Nothing, "send the token first";
    Forbidden = 8, "forbidden", retry: false, applied: Nothing, "this is not allowed here";
    SessionUnknown = 9, "session_unknown", retry: false, applied: Nothing, "the shard does not know this session, or it has ended";
    SequenceGap = 10, "sequence_gap", retry: true, applied: Nothing, "operations before this one are missing; resend in order";
    AlreadySettled = 11, "already_settled", retry: false, applied: Before, "the client acknowledged this result before; it is no longer kept";
    IdReused = 12, "id_reused", retry: false, applied: Nothing, "this id belongs to another operation";
    IdExpired = 13, "id_expired", retry: false, applied: Unknown, "the id is older than the time for which results are kept";
    Overloaded = 14, "overloaded", retry: true, applied: Nothing, "a bound is reached; try again later";
    ReadOnly = 15, "read_only", retry: true, applied: Nothing, "the shard cannot write to its disk and takes no changes until it can";
    Storage = 16, "storage", retry: true, applied: Nothing, "the storage failed";
    Unavailable = 17, "unavailable", retry: true, applied: Nothing, "the shard cannot be reached";
    Deadline = 18, "deadline", retry: true, applied: Unknown, "the time for this request ran out";
    UnknownOutcome = 19, "unknown_outcome", retry: true, applied: Unknown, "it may or may not last: retry under the same id";
    WrongShard = 20, "wrong_shard", retry: false, applied: Nothing, "another shard has this identity or this key";
    Internal = 21, "internal", retry: false, applied: Unknown, "a bug in the server; please report it";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_are_unique_and_round_trip() {
        let mut names = std::collections::HashSet::new();
        for &code in ErrorCode::ALL {
            assert_eq!(ErrorCode::from_number(code as u8), Some(code));
            assert_eq!(ErrorCode::from_name(code.name()), Some(code));
            assert!(names.insert(code.name()));
        }
        assert_eq!(ErrorCode::ALL.len(), 21);
        assert_eq!(ErrorCode::from_number(0), None);
    }
}
