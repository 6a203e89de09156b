//! Why a request was refused before it reached a shard.

use std::borrow::Cow;

use crate::error_code::ErrorCode;

/// A code from the closed list and a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", code.name())]
pub struct RequestError {
    /// The code, for programs.
    pub code: ErrorCode,
    /// The text, for people. It quotes at most a few dozen bytes of the request.
    pub message: Cow<'static, str>,
}

impl RequestError {
    /// An error with its own text.
    #[must_use]
    pub const fn new(code: ErrorCode, message: &'static str) -> Self {
        Self { code, message: Cow::Borrowed(message) }
    }

    /// An error with its code's standard text.
    #[must_use]
    pub const fn of(code: ErrorCode) -> Self {
        Self::new(code, code.meaning())
    }

    /// An error that quotes part of the request, shortened and made printable.
    #[must_use]
    pub(crate) fn quoting(code: ErrorCode, before: &str, piece: &[u8]) -> Self {
        const PIECE_BYTES_MAX: usize = 40;
        let shown = piece.get(..PIECE_BYTES_MAX).unwrap_or(piece);
        let dots = if shown.len() < piece.len() { "..." } else { "" };
        Self { code, message: Cow::Owned(format!("{before} '{}{dots}'", shown.escape_ascii())) }
    }
}
