//! What is remembered of each operation, and what an answer may say of it.

use pycounter_engine::error_code::{Effect, ErrorCode};
use pycounter_engine::shard_link::Outcome;
use pycounter_engine::wire::request::Level;

use super::delta_of;

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Increment(Level),
    IncrementWithId,
    IncrementOnce,
    /// Of the counter of this operation, which must hold so much.
    Read {
        of: usize,
        expected: Option<i64>,
    },
    /// Of what is durable: whether all that was acknowledged before is.
    Confirmation,
    Unknown,
}

/// What was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Counted(Level),
    NotCounted,
    Open,
    Done,
    /// Taken back before it was sent.
    Taken,
    /// An increment that was sent, and whose time ran out: it is settled later.
    Late,
}

/// An operation, and what became of it.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    pub kind: Kind,
    pub end: Option<End>,
    /// The shard at the time of the question, then of the answer: it may be replaced by another one.
    pub era: usize,
}

/// An operation was told, once.
pub fn end(asked: &mut [Asked], operation: usize, end: End, era: usize) {
    let before = asked[operation].end.replace(end);
    assert_eq!(before, None, "operation {operation} was told twice");
    asked[operation].era = era;
}

/// The link tells an operation.
pub fn tell(asked: &mut [Asked], operation: usize, outcome: Outcome<'_>, era: usize) {
    let kind = asked[operation].kind;
    let of_code = |code: ErrorCode| match code.effect() {
        Effect::Nothing => End::NotCounted,
        Effect::Before | Effect::Unknown => End::Open,
    };
    let told = match outcome {
        Outcome::Value { value, level, .. } => {
            assert_eq!(value, delta_of(operation), "{kind:?}");
            let Kind::Increment(wanted) = kind else { panic!("{kind:?} has a value") };
            assert!(level >= wanted);
            End::Counted(level)
        }
        Outcome::Reply(bytes) | Outcome::ReplyAgain(bytes) => {
            let value = rmpv::decode::read_value(&mut &bytes[..]).expect("a value").as_i64().unwrap_or_default();
            match kind {
                Kind::IncrementWithId | Kind::IncrementOnce => {
                    assert_eq!(value, delta_of(operation), "{kind:?}");
                    End::Counted(Level::Durable)
                }
                Kind::Read { of, expected } => {
                    assert!(value == 0 || value == delta_of(of));
                    let is_right = |expected| expected == value || (value == 0 && era != asked[operation].era);
                    assert!(expected.is_none_or(is_right), "{kind:?} gave {value}");
                    End::Done
                }
                Kind::Confirmation => {
                    assert_eq!(bytes, b"\xc0");
                    End::Done
                }
                Kind::Increment(_) | Kind::Unknown => panic!("{kind:?} has a reply"),
            }
        }
        Outcome::Error { code, message } => {
            assert!(code != ErrorCode::Internal && code != ErrorCode::IdReused, "{kind:?}: {outcome:?}");
            assert_ne!(message, ErrorCode::AlreadySettled.meaning(), "it was acknowledged before it was told");
            match kind {
                Kind::Increment(_) if code == ErrorCode::Deadline => End::Late,
                _ => of_code(code),
            }
        }
        Outcome::ErrorText(text) => {
            let name = text.split(':').next().unwrap_or_default();
            of_code(ErrorCode::from_name(name).expect("the shard knows its codes"))
        }
    };
    end(asked, operation, told, era);
}
