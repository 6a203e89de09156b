//! Two clients whose requests are well-formed, one of each protocol: what they were told of each increment, and whether
//! each of their requests was answered once, RESP's in their order.

use std::collections::{BTreeMap, VecDeque};

use pycounter_engine::error_code::{Effect, ErrorCode};
use pycounter_engine::wire::msgpack_rpc as rpc;

use crate::replies::{Reply, Value};

/// What an increment's client knows of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Counted,
    /// Nothing was applied.
    Nothing,
    Unknown,
}

/// An increment of a counter that no other one is about, by a delta that no other one has.
#[derive(Debug)]
pub struct Operation {
    pub key: Vec<u8>,
    pub delta: i64,
    pub end: Option<End>,
}

/// What a request is answered with.
#[derive(Debug, Clone)]
enum Expected {
    Increment(usize),
    /// By item; those without a number are refused.
    Increments(Vec<Option<usize>>),
    /// The counters of these increments, and whether each was counted before.
    Read(Vec<(usize, bool)>),
    /// One read, not as an array.
    ReadOne(usize, bool),
    /// RESP: this line.
    Line(String),
    /// As many replies in one array.
    Transaction(Vec<Expected>),
    Anything,
}

/// All increments, and the requests that were not answered.
#[derive(Default)]
pub struct Checked {
    pub operations: Vec<Operation>,
    rpc: BTreeMap<u32, Expected>,
    msgid: u32,
    resp: VecDeque<Expected>,
    /// A shard has lost what it had acknowledged, or was replaced.
    pub is_any_lost: bool,
}

impl Checked {
    fn operation(&mut self) -> usize {
        let number = self.operations.len();
        let key = format!("checked {number}").into_bytes();
        self.operations.push(Operation { key, delta: number as i64 + 1, end: None });
        number
    }

    /// An increment whose client hears nothing of it.
    pub fn was_taken(&mut self, key: &[u8]) {
        if let Some(operation) = self.operations.iter_mut().find(|operation| operation.key == key) {
            assert_eq!(operation.end, None, "the host keeps what a client was told of");
            operation.end = Some(End::Nothing);
        }
    }

    /// What its requests were owed is dropped.
    pub fn forget(&mut self, is_rpc: bool) {
        if is_rpc { self.rpc.clear() } else { self.resp.clear() }
    }

    pub fn is_owed(&self) -> bool {
        !self.rpc.is_empty() || !self.resp.is_empty()
    }

    // --- requests ----------------------------------------------------------------------------------------------------

    /// A MessagePack-RPC request of this kind.
    pub fn rpc_request(&mut self, kind: u8) -> Vec<u8> {
        let read = |checked: &Self, back: usize| {
            let number = checked.operations.len().checked_sub(back + 1)?;
            Some((number, checked.operations[number].end == Some(End::Counted)))
        };
        let (method, expected, params): (&str, Expected, Vec<u8>) = match kind % 10 {
            0..=3 => {
                let number = self.operation();
                let params = self.incr_params(number, kind % 10 + (kind / 10) % 2 * 4);
                ("incr", Expected::Increment(number), params)
            }
            4 => {
                let numbers = [Some(self.operation()), Some(self.operation()), None, Some(self.operation())];
                ("incr_many", Expected::Increments(numbers.to_vec()), self.many_params(&numbers, kind))
            }
            5 => {
                let number = self.operation();
                let mut notification = Vec::new();
                rpc::write_array_len(&mut notification, 3);
                rpc::write_u64(&mut notification, 2);
                rpc::write_str(&mut notification, "incr");
                notification.extend(self.incr_params(number, 0));
                return notification;
            }
            6 | 7 => match read(self, usize::from(kind / 10)) {
                Some((number, is_counted)) => {
                    let params = self.read_params(&[number], kind);
                    ("get", Expected::ReadOne(number, is_counted), params)
                }
                None => ("ping", Expected::Anything, vec![0x90]),
            },
            8 => {
                let back = usize::from(kind / 10);
                let found: Vec<_> = [back, back + 1].into_iter().filter_map(|back| read(self, back)).collect();
                let numbers: Vec<usize> = found.iter().map(|&(number, _)| number).collect();
                ("get_many", Expected::Read(found), self.read_params(&numbers, kind))
            }
            _ => (["stats", "top", "health"][usize::from(kind) % 3], Expected::Anything, vec![0x90]),
        };
        let mut request = Vec::new();
        rpc::write_array_len(&mut request, 4);
        rpc::write_u64(&mut request, 0);
        rpc::write_u64(&mut request, u64::from(self.msgid));
        rpc::write_str(&mut request, method);
        request.extend(if method == "top" { vec![0x91, 5] } else { params });
        self.rpc.insert(self.msgid, expected);
        self.msgid += 1;
        request
    }

    fn incr_params(&self, number: usize, how: u8) -> Vec<u8> {
        let Operation { key, delta, .. } = &self.operations[number];
        let mut params = Vec::new();
        let with_options = how > 0;
        rpc::write_array_len(&mut params, 2 + usize::from(with_options));
        rpc::write_bin(&mut params, key);
        rpc::write_i64(&mut params, *delta);
        if with_options {
            let (with_id, with_born, detail) = (how & 1 != 0, how & 2 != 0, how & 4 != 0);
            rpc::write_map_len(&mut params, usize::from(with_id) + usize::from(with_id && with_born) + 2);
            if with_id {
                rpc::write_str(&mut params, "id");
                rpc::write_bin(&mut params, key);
            }
            if with_id && with_born {
                rpc::write_str(&mut params, "born");
                rpc::write_u64(&mut params, 1000);
            }
            rpc::write_str(&mut params, "level");
            rpc::write_str(&mut params, if with_born { "applied" } else { "durable" });
            rpc::write_str(&mut params, "detail");
            rpc::write_bool(&mut params, detail);
        }
        params
    }

    /// Of each second one with an id.
    fn many_params(&self, numbers: &[Option<usize>], kind: u8) -> Vec<u8> {
        let mut params = Vec::new();
        rpc::write_array_len(&mut params, 1);
        rpc::write_array_len(&mut params, numbers.len());
        for (place, number) in numbers.iter().enumerate() {
            let with_id = (place + usize::from(kind) / 10) % 2 == 1;
            rpc::write_array_len(&mut params, 2 + usize::from(with_id && number.is_some()));
            match number {
                Some(number) => {
                    let Operation { key, delta, .. } = &self.operations[*number];
                    rpc::write_bin(&mut params, key);
                    rpc::write_i64(&mut params, *delta);
                    if with_id {
                        rpc::write_bin(&mut params, key);
                    }
                }
                None => {
                    rpc::write_bin(&mut params, b"");
                    rpc::write_i64(&mut params, 1);
                }
            }
        }
        params
    }

    fn read_params(&self, numbers: &[usize], kind: u8) -> Vec<u8> {
        let mut params = Vec::new();
        rpc::write_array_len(&mut params, 2);
        if kind % 10 == 8 {
            rpc::write_array_len(&mut params, numbers.len());
        }
        for &number in numbers {
            rpc::write_bin(&mut params, &self.operations[number].key);
        }
        rpc::write_map_len(&mut params, 1);
        match (kind % 10, kind / 10 % 3) {
            (6, 0) => {
                rpc::write_str(&mut params, "level");
                rpc::write_str(&mut params, "applied");
            }
            (_, 1) => {
                rpc::write_str(&mut params, "or_nil");
                rpc::write_bool(&mut params, true);
            }
            _ => {
                rpc::write_str(&mut params, "accuracy");
                rpc::write_str(&mut params, "cached");
            }
        }
        params
    }

    /// RESP commands of this kind.
    pub fn resp_request(&mut self, kind: u8) -> String {
        let back = usize::from(kind / 8);
        let last = self.operations.len().checked_sub(back + 1);
        let read = |checked: &Self, number: usize| (number, checked.operations[number].end == Some(End::Counted));
        let name = |number: usize| format!("\"checked {number}\"");
        let (text, expected) = match (kind % 8, last) {
            (0 | 1, _) => {
                let number = self.operation();
                (format!("INCRBY {} {}", name(number), number + 1), Expected::Increment(number))
            }
            (2, _) => {
                let number = self.operation();
                let text = format!("MULTI\r\nINCRBY {} {}\r\nECHO m{number}\r\nEXEC", name(number), number + 1);
                self.resp.extend(["+OK", "+QUEUED", "+QUEUED"].map(|line| Expected::Line(line.into())));
                let parts = vec![Expected::Increment(number), Expected::Line(format!("m{number}"))];
                (text, Expected::Transaction(parts))
            }
            (3, Some(number)) => {
                let (number, is_counted) = read(self, number);
                (format!("GET {}", name(number)), Expected::ReadOne(number, is_counted))
            }
            (4, Some(number)) => {
                let found = [read(self, number), read(self, number / 2)];
                (format!("MGET {} {}", name(number), name(number / 2)), Expected::Read(found.to_vec()))
            }
            (5, _) => (format!("SET x {kind}"), Expected::Anything),
            (6, _) => ("HELLO 3".to_owned(), Expected::Anything),
            _ => (format!("ECHO m{back}"), Expected::Line(format!("m{back}"))),
        };
        self.resp.push_back(expected);
        text + "\r\n"
    }

    /// The first request where a token is needed.
    pub fn resp_token(&mut self, token: &str) -> String {
        self.resp.push_back(Expected::Line("+OK".into()));
        format!("AUTH {token}\r\n")
    }

    pub fn rpc_token(&mut self, token: &[u8]) -> Vec<u8> {
        let mut request = Vec::new();
        rpc::write_array_len(&mut request, 4);
        rpc::write_u64(&mut request, 0);
        rpc::write_u64(&mut request, u64::from(self.msgid));
        rpc::write_str(&mut request, "hello");
        rpc::write_array_len(&mut request, 1);
        rpc::write_map_len(&mut request, 1);
        rpc::write_str(&mut request, "token");
        rpc::write_bin(&mut request, token);
        self.rpc.insert(self.msgid, Expected::Anything);
        self.msgid += 1;
        request
    }

    // --- replies -----------------------------------------------------------------------------------------------------

    /// A reply came to the client of MessagePack-RPC.
    pub fn rpc_reply(&mut self, reply: &Reply, values: bool) {
        let msgid = reply.msgid.expect("a reply has a msgid");
        let expected = self.rpc.remove(&msgid).unwrap_or_else(|| panic!("{msgid} was not asked, or is answered twice"));
        if values {
            self.check(&expected, &reply.value);
        }
    }

    /// A reply came to the client of RESP.
    pub fn resp_reply(&mut self, reply: &Reply, values: bool) {
        let Some(expected) = self.resp.pop_front() else {
            // A connection that brings too much is told so, and ended.
            return assert!(reply.value == Value::Error(ErrorCode::Overloaded), "{reply:?} to nothing");
        };
        if values || matches!(expected, Expected::Line(_)) {
            self.check(&expected, &reply.value);
        }
    }

    fn check(&mut self, expected: &Expected, value: &Value) {
        match (expected, value) {
            (Expected::Increment(number), value) => self.told(*number, value),
            (Expected::Increments(numbers), Value::Array(values)) => {
                assert_eq!(numbers.len(), values.len());
                for (number, value) in numbers.iter().zip(values) {
                    match number {
                        Some(number) => self.told(*number, value),
                        None => assert!(matches!(value, Value::Error(ErrorCode::BadKey)), "{value:?}"),
                    }
                }
            }
            (Expected::Transaction(parts), Value::Array(values)) => {
                assert_eq!(parts.len(), values.len());
                parts.iter().zip(values).for_each(|(part, value)| self.check(part, value));
            }
            (Expected::ReadOne(number, was_counted), value) => self.read(*number, *was_counted, value),
            (Expected::Read(numbers), Value::Array(values)) => {
                assert_eq!(numbers.len(), values.len());
                numbers.iter().zip(values).for_each(|((number, was), value)| self.read(*number, *was, value));
            }
            (Expected::Line(_), Value::Error(ErrorCode::Overloaded)) => {}
            (Expected::Line(line), value) => {
                assert!(matches!(value, Value::Text(text) if text == line), "{value:?} instead of {line}");
            }
            // Refused as a whole.
            (Expected::Increments(numbers), error @ Value::Error(_)) => {
                numbers.iter().flatten().for_each(|&number| self.told(number, error));
            }
            (Expected::Transaction(parts), error @ Value::Error(_)) => {
                parts.iter().for_each(|part| self.check(part, error));
            }
            (Expected::Anything, _) | (Expected::Read(_), Value::Error(_)) => {}
            (expected, value) => panic!("{value:?} answers {expected:?}"),
        }
    }

    fn told(&mut self, number: usize, value: &Value) {
        let operation = &mut self.operations[number];
        let end = match value {
            Value::Error(code) if code.effect() == Effect::Nothing => End::Nothing,
            Value::Error(_) => End::Unknown,
            Value::Int(value) => {
                assert_eq!(*value, operation.delta, "increment {number} has another value");
                End::Counted
            }
            other => panic!("increment {number} gave {other:?}"),
        };
        assert_eq!(operation.end.replace(end), None, "increment {number} was told twice");
    }

    fn read(&mut self, number: usize, was_counted: bool, value: &Value) {
        let operation = &self.operations[number];
        match value {
            Value::Int(value) if *value == operation.delta => {}
            Value::Int(0) | Value::Nil => {
                assert!(!was_counted || self.is_any_lost, "a read does not see increment {number}, told before it");
            }
            Value::Error(_) => {}
            other => panic!("a read of increment {number} gave {other:?}"),
        }
    }
}
