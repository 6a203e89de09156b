//! Parses a whole frame into a method and its parameters, or an error.

use xxhash_rust::xxh3::xxh3_64;

use super::reader::{Reader, Truncated, Value};
use crate::error_code::ErrorCode;
use crate::limits::{
    BACKUP_PATH_BYTES_MAX, HELLO_TEXT_BYTES_MAX, KEY_BYTES_MAX, OPERATION_ID_BYTES_MAX, REQUEST_ITEMS_MAX,
    SCAN_COUNT_DEFAULT, TOP_COUNT_DEFAULT,
};
use crate::wire::request::{
    Accuracy, ChangeOptions, Item, Level, ReadFrom, ReadOptions, Request, SessionId, TailRequest, key_is_valid,
};
use crate::wire::request_error::RequestError;

/// The result of parsing a frame.
#[derive(Debug, Clone, PartialEq)]
pub enum Parsed<'a> {
    /// A request, to be answered under its msgid.
    Request {
        /// Echoed in the reply.
        msgid: u32,
        /// The request, or the error to answer.
        request: Result<Request<'a>, RequestError>,
    },
    /// A notification: execute it and never answer. Errors, such as an unknown method, are ignored.
    Notification {
        /// The method's name as sent.
        method: &'a [u8],
        /// The request, or the error.
        request: Result<Request<'a>, RequestError>,
    },
    /// No message that a client may send. Answer the error if there is a msgid, otherwise close.
    Invalid {
        /// Present if the frame started like a request.
        msgid: Option<u32>,
        /// What is wrong.
        error: RequestError,
    },
}

/// The msgid of the request that starts in `buf`, for answering a frame that the scanner refused.
#[must_use]
pub fn request_msgid(buf: &[u8]) -> Option<u32> {
    let mut reader = Reader::new(buf);
    let (Value::Array(_), Value::Unsigned(0)) = (reader.read().ok()?, reader.read().ok()?) else { return None };
    msgid(reader.read().ok()?)
}

/// The method and encoded params of a request or notification, for forwarding it unchanged.
#[must_use]
pub fn call_of(frame: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut reader = Reader::new(frame);
    let Value::Array(size) = reader.read().ok()? else { return None };
    reader.skip(u64::from(size == 4) + 1).ok()?;
    let Value::Text(method) = reader.read().ok()? else { return None };
    Some((method, reader.rest()))
}

/// Parses one whole frame, as measured by a scanner. Any other bytes give an error, never a panic.
#[must_use]
pub fn parse(frame: &[u8]) -> Parsed<'_> {
    parse_message(frame).unwrap_or_else(|Truncated| invalid(None, "the frame is not whole"))
}

fn parse_message(frame: &[u8]) -> Result<Parsed<'_>, Truncated> {
    let mut reader = Reader::new(frame);
    let Value::Array(size) = reader.read()? else { return Ok(invalid(None, "a message is an array")) };
    if size == 0 {
        return Ok(invalid(None, "a message is an array of 3 or 4"));
    }
    match (reader.read()?, size) {
        (Value::Unsigned(0), 4) => {
            let Some(msgid) = msgid(reader.read_whole()?) else {
                return Ok(invalid(None, "a msgid is an unsigned integer of 32 bits"));
            };
            let Value::Text(method) = reader.read_whole()? else {
                return Ok(invalid(Some(msgid), "a method is a string"));
            };
            let request = parse_call(method, reader);
            Ok(Parsed::Request { msgid, request })
        }
        (Value::Unsigned(2), 3) => {
            let Value::Text(method) = reader.read_whole()? else {
                return Ok(invalid(None, "a method is a string"));
            };
            let request = parse_call(method, reader);
            Ok(Parsed::Notification { method, request })
        }
        (Value::Unsigned(0), _) => {
            let msgid = if size > 1 { msgid(reader.read_whole()?) } else { None };
            Ok(invalid(msgid, "a request is [0, msgid, method, params]"))
        }
        // Answering an answer could go on for ever.
        (Value::Unsigned(1), _) => Ok(invalid(None, "a client sends no responses")),
        (Value::Unsigned(2), _) => Ok(invalid(None, "a notification is [2, method, params]")),
        _ => Ok(invalid(None, "a message begins with 0 or 2")),
    }
}

const fn invalid(msgid: Option<u32>, message: &'static str) -> Parsed<'static> {
    Parsed::Invalid { msgid, error: bad_request(message) }
}

fn msgid(value: Value<'_>) -> Option<u32> {
    match value {
        Value::Unsigned(value) => u32::try_from(value).ok(),
        _ => None,
    }
}

const fn bad_request(message: &'static str) -> RequestError {
    RequestError::new(ErrorCode::BadRequest, message)
}

const TOO_MANY_ITEMS: RequestError = RequestError::new(ErrorCode::TooLarge, "a request carries at most 65536 items");

impl From<Truncated> for RequestError {
    fn from(_: Truncated) -> Self {
        bad_request("the frame is not whole")
    }
}

fn parse_call<'a>(method: &[u8], mut reader: Reader<'a>) -> Result<Request<'a>, RequestError> {
    let Value::Array(left) = reader.read()? else { return Err(bad_request("params is an array")) };
    let mut params = Params { reader, left };
    let request = parse_method(method, &mut params)?;
    if params.left > 0 {
        return Err(bad_request("there are too many params"));
    }
    if !params.reader.rest().is_empty() {
        return Err(bad_request("there are bytes after the message"));
    }
    Ok(request)
}

fn parse_method<'a>(method: &[u8], params: &mut Params<'a>) -> Result<Request<'a>, RequestError> {
    Ok(match method {
        b"incr" => incr(params)?,
        b"incr_many" => {
            Request::IncrMany { items: params.items(ItemShape::WithId)?, options: params.change_options(MANY_OPTIONS)? }
        }
        b"delete_many" => {
            Request::DeleteMany { items: params.removals()?, options: params.change_options(MANY_OPTIONS | DETAIL)? }
        }
        b"apply" => apply(params)?,
        b"get" => Request::Get { key: params.key()?, options: params.read_options()? },
        b"get_many" => Request::GetMany { keys: params.keys()?, options: params.read_options()? },
        b"total" => Request::Total { key: params.key()?, options: params.read_options()? },
        b"total_many" => Request::TotalMany { keys: params.keys()?, options: params.read_options()? },
        b"drain" => Request::Drain { key: params.key()?, options: params.change_options(CHANGE_OPTIONS)? },
        b"delete" => Request::Delete { key: params.key()?, options: params.change_options(CHANGE_OPTIONS)? },
        b"delete_all" => Request::DeleteAll { options: params.change_options(CHANGE_OPTIONS)? },
        b"scan" | b"scan_foreign" => Request::Scan {
            cursor: params.optional_unsigned("a cursor is an unsigned integer")?.unwrap_or(0),
            count: params.count(SCAN_COUNT_DEFAULT)?,
            prefix: params.prefix()?,
            foreign: method == b"scan_foreign",
        },
        b"top" => Request::Top { n: params.count(TOP_COUNT_DEFAULT)?, prefix: params.prefix()? },
        b"hello" => hello(params)?,
        b"bye" => Request::Bye { session: session(params.required("bye takes the session")?)? },
        b"ping" => Request::Ping,
        b"stats" => Request::Stats,
        b"health" => Request::Health { foreign_from: numbers(params, ["foreign_from"])?[0] },
        b"topology" => Request::Topology,
        b"watch_topology" => {
            Request::WatchTopology { known: params.optional_unsigned("a version is an unsigned integer")?.unwrap_or(0) }
        }
        b"tail" => Request::Tail(tail(params)?),
        b"backup" => Request::Backup { directory: params.directory()? },
        _ => return Err(RequestError::quoting(ErrorCode::UnknownMethod, "there is no method", method)),
    })
}

fn incr<'a>(params: &mut Params<'a>) -> Result<Request<'a>, RequestError> {
    let key = params.key()?;
    let (delta, options) = match params.next_value()? {
        None | Some(Value::Nil) => (1, params.change_options(CHANGE_OPTIONS)?),
        // Options are always the last param, so the delta before them may be omitted.
        Some(Value::Map(pairs)) => (1, params.options(pairs, CHANGE_OPTIONS)?.change()),
        Some(value) => {
            let delta = delta(value).ok_or(RequestError::of(ErrorCode::BadDelta))?;
            (delta, params.change_options(CHANGE_OPTIONS)?)
        }
    };
    Ok(Request::Incr { key, delta, options })
}

fn apply<'a>(params: &mut Params<'a>) -> Result<Request<'a>, RequestError> {
    let session = session(params.required("apply takes the session first")?)?;
    let first_sequence = params.unsigned("a sequence is an unsigned integer from 1")?;
    let acked_through = params.unsigned("acked_through is an unsigned integer")?;
    let items = params.items(ItemShape::Plain)?;
    let level = match params.next_value()? {
        None => None,
        Some(value) => level(value)?,
    };
    if first_sequence == 0 || first_sequence.checked_add(items.len() as u64).is_none() {
        return Err(bad_request("a sequence is an unsigned integer from 1"));
    }
    Ok(Request::Apply { session, first_sequence, acked_through, items, level })
}

fn hello<'a>(params: &mut Params<'a>) -> Result<Request<'a>, RequestError> {
    let (mut token, mut client, mut session_id, mut shard) = (None, None, None, None);
    let pairs = match params.next_value()? {
        None | Some(Value::Nil) => 0,
        Some(Value::Map(pairs)) => pairs,
        Some(_) => return Err(bad_request("hello takes a map")),
    };
    let mut seen = 0_u8;
    for _ in 0..pairs {
        let name = params.name()?;
        let value = params.reader.read_whole()?;
        let bit = match name {
            b"token" => 1,
            b"client" => 2,
            b"session" => 4,
            b"shard" => 8,
            _ => return Err(RequestError::quoting(ErrorCode::BadRequest, "hello knows no field", name)),
        };
        if seen & bit != 0 {
            return Err(RequestError::quoting(ErrorCode::BadRequest, "given twice:", name));
        }
        seen |= bit;
        match (bit, value) {
            (_, Value::Nil) => {}
            (4, value) => session_id = Some(session(value)?),
            (_, Value::Text(text)) if text.len() > HELLO_TEXT_BYTES_MAX => {
                return Err(RequestError::of(ErrorCode::TooLarge));
            }
            (1, Value::Text(text)) => token = Some(text),
            (8, Value::Text(text)) => shard = Some(text),
            (_, Value::Text(text)) => client = Some(text),
            _ => return Err(RequestError::quoting(ErrorCode::BadRequest, "this is a string:", name)),
        }
    }
    Ok(Request::Hello { token, client, session: session_id, shard })
}

/// Options whose values are all unsigned integers, by name.
fn numbers<const N: usize>(params: &mut Params<'_>, names: [&str; N]) -> Result<[Option<u64>; N], RequestError> {
    let mut found = [None; N];
    let pairs = match params.next_value()? {
        None | Some(Value::Nil) => 0,
        Some(Value::Map(pairs)) => pairs,
        Some(_) => return Err(bad_request("options are a map")),
    };
    let mut seen = [false; N];
    for _ in 0..pairs {
        let name = params.name()?;
        let Some(place) = names.iter().position(|known| known.as_bytes() == name) else {
            return Err(RequestError::quoting(ErrorCode::BadRequest, "there is no such option here:", name));
        };
        if std::mem::replace(&mut seen[place], true) {
            return Err(RequestError::quoting(ErrorCode::BadRequest, "given twice:", name));
        }
        found[place] = match params.reader.read_whole()? {
            Value::Nil => None,
            Value::Unsigned(number) => Some(number),
            _ => return Err(RequestError::quoting(ErrorCode::BadRequest, "this is an unsigned integer:", name)),
        };
    }
    Ok(found)
}

const NO_IDENTITY: RequestError = bad_request("an identity is 32 hexadecimal digits");

fn identity(text: &[u8]) -> Option<u128> {
    let is_hex = text.len() == 32 && text.iter().all(u8::is_ascii_hexdigit);
    u128::from_str_radix(std::str::from_utf8(text).ok().filter(|_| is_hex)?, 16).ok()
}

fn tail(params: &mut Params<'_>) -> Result<TailRequest, RequestError> {
    let after = params.optional_unsigned("a commit is an unsigned integer")?.unwrap_or(0);
    let epoch = params.optional_unsigned("an epoch is an unsigned integer")?.unwrap_or(0);
    let identity = match params.next_value()? {
        None | Some(Value::Nil) => None,
        Some(Value::Text(text)) => Some(identity(text).ok_or(NO_IDENTITY)?),
        Some(_) => return Err(NO_IDENTITY),
    };
    let [hash, index, fold, page, wait_ms] = numbers(params, ["hash", "index", "fold", "page", "wait_ms"])?;
    let index = u32::try_from(index.unwrap_or(0)).map_err(|_| bad_request("an index has 32 bits"))?;
    Ok(TailRequest {
        identity,
        after,
        epoch,
        hash: hash.unwrap_or(0),
        index,
        page: fold.map(|fold| (fold, page.unwrap_or(0))),
        wait_ms: wait_ms.unwrap_or(0),
    })
}

fn session(value: Value<'_>) -> Result<SessionId, RequestError> {
    match value {
        Value::Text(bytes) => bytes.try_into().ok().map(SessionId),
        _ => None,
    }
    .ok_or(bad_request("a session is 16 bytes"))
}

fn delta(value: Value<'_>) -> Option<i64> {
    match value {
        Value::Unsigned(value) => i64::try_from(value).ok(),
        Value::Negative(value) => Some(value),
        _ => None,
    }
}

fn level(value: Value<'_>) -> Result<Option<Level>, RequestError> {
    match value {
        Value::Nil => Ok(None),
        Value::Text(b"applied") => Ok(Some(Level::Applied)),
        Value::Text(b"durable") => Ok(Some(Level::Durable)),
        _ => Err(bad_request("level is \"applied\" or \"durable\"")),
    }
}

fn operation_id(value: Value<'_>) -> Result<Option<&[u8]>, RequestError> {
    match value {
        Value::Nil => Ok(None),
        Value::Text(id) if (1..=OPERATION_ID_BYTES_MAX).contains(&id.len()) => Ok(Some(id)),
        _ => Err(bad_request("an id is a string of 1 to 64 bytes")),
    }
}

/// The allowed shapes of an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ItemShape {
    /// `[key, delta]`
    Plain,
    /// `[key, delta]` or `[key, delta, id]`
    WithId,
}

/// One bit for each option: which are allowed, and which were seen.
const ID: u8 = 1;
const BORN: u8 = 2;
const LEVEL: u8 = 4;
const DETAIL: u8 = 8;
const ACCURACY: u8 = 16;
const MIN_COMMIT: u8 = 32;
const CHANGE_OPTIONS: u8 = ID | BORN | LEVEL | DETAIL;
/// Items carry their own ids, and each of `incr_many` is answered with a bare value or an error.
const MANY_OPTIONS: u8 = BORN | LEVEL;
const OR_NIL: u8 = 64;
const READ_FROM: u8 = 128;
const READ_OPTIONS: u8 = ACCURACY | MIN_COMMIT | LEVEL | OR_NIL | READ_FROM;

#[derive(Debug, Default)]
struct Options<'a> {
    id: Option<&'a [u8]>,
    born: Option<u64>,
    level: Option<Level>,
    detail: bool,
    min_commit: Option<u64>,
    accuracy: Accuracy,
    or_nil: bool,
    read_from: ReadFrom,
}

impl<'a> Options<'a> {
    const fn change(self) -> ChangeOptions<'a> {
        ChangeOptions { id: self.id, born: self.born, level: self.level, detail: self.detail }
    }

    fn set(&mut self, option: u8, value: Value<'a>) -> Result<(), RequestError> {
        match (option, value) {
            (_, Value::Nil) => {}
            (ID, value) => self.id = operation_id(value)?,
            (LEVEL, value) => self.level = level(value)?,
            (BORN, Value::Unsigned(born)) => self.born = Some(born),
            (MIN_COMMIT, Value::Unsigned(commit)) => self.min_commit = Some(commit),
            (DETAIL, Value::Bool(detail)) => self.detail = detail,
            (OR_NIL, Value::Bool(or_nil)) => self.or_nil = or_nil,
            (ACCURACY, Value::Text(b"cached")) => self.accuracy = Accuracy::Cached,
            (ACCURACY, Value::Text(b"recent")) => self.accuracy = Accuracy::Recent,
            (ACCURACY, Value::Text(b"exact")) => self.accuracy = Accuracy::Exact,
            (READ_FROM, Value::Text(b"primary")) => self.read_from = ReadFrom::Primary,
            (READ_FROM, Value::Text(b"replica")) => self.read_from = ReadFrom::Replica,
            (READ_FROM, Value::Text(b"any")) => self.read_from = ReadFrom::Any,
            (READ_FROM, _) => return Err(bad_request("read_from is \"primary\", \"replica\" or \"any\"")),
            (BORN, _) => return Err(bad_request("born is an unsigned integer")),
            (MIN_COMMIT, _) => return Err(bad_request("min_commit is an unsigned integer")),
            (DETAIL, _) => return Err(bad_request("detail is true or false")),
            (OR_NIL, _) => return Err(bad_request("or_nil is true or false")),
            _ => return Err(bad_request("accuracy is \"cached\", \"recent\" or \"exact\"")),
        }
        Ok(())
    }
}

/// The params not read yet.
struct Params<'a> {
    reader: Reader<'a>,
    left: usize,
}

impl<'a> Params<'a> {
    /// The next param; the elements of `Array` and `Map` come next. `None`: no more params.
    fn next_value(&mut self) -> Result<Option<Value<'a>>, RequestError> {
        let Some(left) = self.left.checked_sub(1) else { return Ok(None) };
        self.left = left;
        Ok(Some(self.reader.read()?))
    }

    fn required(&mut self, otherwise: &'static str) -> Result<Value<'a>, RequestError> {
        self.next_value()?.ok_or(bad_request(otherwise))
    }

    fn unsigned(&mut self, otherwise: &'static str) -> Result<u64, RequestError> {
        match self.required(otherwise)? {
            Value::Unsigned(value) => Ok(value),
            _ => Err(bad_request(otherwise)),
        }
    }

    fn optional_unsigned(&mut self, otherwise: &'static str) -> Result<Option<u64>, RequestError> {
        match self.next_value()? {
            None | Some(Value::Nil) => Ok(None),
            Some(Value::Unsigned(value)) => Ok(Some(value)),
            Some(_) => Err(bad_request(otherwise)),
        }
    }

    fn count(&mut self, default: usize) -> Result<usize, RequestError> {
        match self.optional_unsigned("a count is an unsigned integer from 1")? {
            None => Ok(default),
            Some(0) => Err(bad_request("a count is an unsigned integer from 1")),
            Some(count) => {
                usize::try_from(count).ok().filter(|&count| count <= REQUEST_ITEMS_MAX).ok_or(TOO_MANY_ITEMS)
            }
        }
    }

    fn key(&mut self) -> Result<&'a [u8], RequestError> {
        valid_key(self.required("the key is missing")?).ok_or(RequestError::of(ErrorCode::BadKey))
    }

    fn prefix(&mut self) -> Result<&'a [u8], RequestError> {
        match self.next_value()? {
            None | Some(Value::Nil) => Ok(b""),
            Some(Value::Text(prefix)) if prefix.len() <= KEY_BYTES_MAX => Ok(prefix),
            Some(_) => Err(bad_request("a prefix is a string of at most 1024 bytes")),
        }
    }

    fn directory(&mut self) -> Result<&'a str, RequestError> {
        const WRONG: RequestError =
            bad_request("backup takes a directory: an absolute path of at most 4096 bytes in UTF-8");
        let Value::Text(path) = self.required("backup takes a directory")? else { return Err(WRONG) };
        if path.first() != Some(&b'/') || path.len() > BACKUP_PATH_BYTES_MAX || path.contains(&0) {
            return Err(WRONG);
        }
        std::str::from_utf8(path).map_err(|_| WRONG)
    }

    /// The count of an array param, checked against the frame's length (`bytes_min` for each element).
    fn array(&mut self, bytes_min: usize, otherwise: &'static str) -> Result<(usize, usize), RequestError> {
        let Value::Array(count) = self.required(otherwise)? else { return Err(bad_request(otherwise)) };
        if count > REQUEST_ITEMS_MAX {
            return Err(TOO_MANY_ITEMS);
        }
        Ok((count, count.min(self.reader.rest().len() / bytes_min)))
    }

    fn keys(&mut self) -> Result<Vec<&'a [u8]>, RequestError> {
        const KEY_BYTES_ENCODED_MIN: usize = 2;
        let (count, capacity) = self.array(KEY_BYTES_ENCODED_MIN, "the first param is an array of keys")?;
        let mut keys = Vec::with_capacity(capacity);
        for _ in 0..count {
            keys.push(valid_key(self.reader.read()?).ok_or(RequestError::of(ErrorCode::BadKey))?);
        }
        Ok(keys)
    }

    /// A bad key or delta fails only its item; a bad shape or id fails the request.
    fn items(&mut self, shape: ItemShape) -> Result<Vec<Item<'a>>, RequestError> {
        const ITEM_BYTES_ENCODED_MIN: usize = 3;
        let (count, capacity) = self.array(ITEM_BYTES_ENCODED_MIN, "increments are an array of arrays")?;
        let mut items = Vec::with_capacity(capacity);
        for _ in 0..count {
            items.push(self.item(shape)?);
        }
        Ok(items)
    }

    /// Counters to delete. A bad key fails only its item; a bad shape or id fails the request.
    fn removals(&mut self) -> Result<Vec<Item<'a>>, RequestError> {
        const KEY_BYTES_ENCODED_MIN: usize = 1;
        let (count, capacity) = self.array(KEY_BYTES_ENCODED_MIN, "the first param is an array of keys")?;
        let mut items = Vec::with_capacity(capacity);
        for _ in 0..count {
            let (key, id) = match self.reader.read()? {
                Value::Array(2) => {
                    let key = self.reader.read_whole()?;
                    (valid_key(key), operation_id(self.reader.read_whole()?)?)
                }
                Value::Array(_) | Value::Map(_) => return Err(bad_request("a counter to delete is key or [key, id]")),
                key => (valid_key(key), None),
            };
            let error = if key.is_none() { Some(ErrorCode::BadKey) } else { None };
            items.push(Item { key: key.unwrap_or_default(), delta: 0, id, error, raw_hash: 0 });
        }
        Ok(items)
    }

    fn item(&mut self, shape: ItemShape) -> Result<Item<'a>, RequestError> {
        let start = self.reader.rest();
        let size = match (self.reader.read()?, shape) {
            (Value::Array(2), _) => 2,
            (Value::Array(3), ItemShape::WithId) => 3,
            (_, ItemShape::WithId) => return Err(bad_request("an increment is [key, delta] or [key, delta, id]")),
            (_, ItemShape::Plain) => return Err(bad_request("an increment is [key, delta]")),
        };
        let key = valid_key(self.reader.read_whole()?);
        let delta = delta(self.reader.read_whole()?);
        let id = if size == 3 { operation_id(self.reader.read_whole()?)? } else { None };
        let (key, delta, error) = match (key, delta) {
            (Some(key), Some(delta)) => return Ok(Item { key, delta, id, error: None, raw_hash: 0 }),
            (None, _) => (&b""[..], 0, ErrorCode::BadKey),
            (_, None) => (&b""[..], 0, ErrorCode::BadDelta),
        };
        let raw = start.get(..start.len() - self.reader.rest().len()).unwrap_or(start);
        Ok(Item { key, delta, id, error: Some(error), raw_hash: xxh3_64(raw).max(1) })
    }

    fn change_options(&mut self, allowed: u8) -> Result<ChangeOptions<'a>, RequestError> {
        Ok(self.last_options(allowed)?.change())
    }

    fn read_options(&mut self) -> Result<ReadOptions, RequestError> {
        let options = self.last_options(READ_OPTIONS)?;
        let Options { level, min_commit, accuracy, or_nil, read_from, .. } = options;
        Ok(ReadOptions { level, min_commit, accuracy, or_nil, read_from })
    }

    fn last_options(&mut self, allowed: u8) -> Result<Options<'a>, RequestError> {
        match self.next_value()? {
            None | Some(Value::Nil) => Ok(Options::default()),
            Some(Value::Map(pairs)) => self.options(pairs, allowed),
            Some(_) => Err(bad_request("options are a map")),
        }
    }

    /// Refuses unknown names, so that typos aren't silently ignored.
    fn options(&mut self, pairs: usize, allowed: u8) -> Result<Options<'a>, RequestError> {
        let mut options = Options::default();
        let mut seen = 0_u8;
        for _ in 0..pairs {
            let name = self.name()?;
            let option = match name {
                b"id" => ID,
                b"born" => BORN,
                b"level" => LEVEL,
                b"detail" => DETAIL,
                b"accuracy" => ACCURACY,
                b"min_commit" => MIN_COMMIT,
                b"or_nil" => OR_NIL,
                b"read_from" => READ_FROM,
                _ => 0,
            };
            if option & allowed == 0 {
                return Err(RequestError::quoting(ErrorCode::BadRequest, "there is no such option here:", name));
            }
            if option & seen != 0 {
                return Err(RequestError::quoting(ErrorCode::BadRequest, "given twice:", name));
            }
            seen |= option;
            options.set(option, self.reader.read_whole()?)?;
        }
        Ok(options)
    }

    fn name(&mut self) -> Result<&'a [u8], RequestError> {
        match self.reader.read()? {
            Value::Text(name) => Ok(name),
            _ => Err(bad_request("a name of an option is a string")),
        }
    }
}

fn valid_key(value: Value<'_>) -> Option<&[u8]> {
    match value {
        Value::Text(key) if key_is_valid(key) => Some(key),
        _ => None,
    }
}
