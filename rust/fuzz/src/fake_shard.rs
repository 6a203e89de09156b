//! A shard as far as a coordinator can tell: it counts, keeps sessions and ids, and answers in the mood that it is told.

use std::collections::{BTreeMap, VecDeque};

use pycounter_engine::error_code::ErrorCode;
use pycounter_engine::wire::msgpack_rpc::{self as rpc, FrameScanner, Parsed};
use pycounter_engine::wire::request::{Item, Level, Request, SessionId};
use pycounter_engine::wire::scan::{FrameLimits, Scan};

/// What becomes of the next request.
pub enum Mood {
    Honest,
    /// Nothing is done, and the shard says so.
    Refuse(ErrorCode),
    /// It says that it doesn't know whether it was done.
    Unknown {
        done: bool,
    },
    /// It is done, and the reply never comes.
    Silent,
    /// It is done, and what comes isn't a reply to it.
    Mangled(u8),
    /// It forgets all sessions, long before it may, and then goes on.
    Forgetful,
    /// Any bytes stand where error and result should.
    Forged(Vec<u8>),
}

/// What is asked once and answered always in the same way.
type Outcome = Result<i64, ErrorCode>;

#[derive(Clone, Default)]
struct Session {
    last: u64,
    is_over: bool,
    /// By number: key, delta, and what came of it.
    items: BTreeMap<u64, (Vec<u8>, i64, Outcome)>,
}

/// What is on its disk, or will be.
#[derive(Clone, Default)]
pub struct State {
    pub counters: BTreeMap<Vec<u8>, i64>,
    sessions: BTreeMap<SessionId, Session>,
    ids: BTreeMap<Vec<u8>, (Vec<u8>, i64, Outcome)>,
}

/// The shard.
pub struct FakeShard {
    pub state: State,
    durable: State,
    pub identity: u32,
    epoch: u64,
    time_ms: u64,
    pub moods: VecDeque<Mood>,
    level: Level,
    token: Option<&'static [u8]>,
}

impl State {
    fn add(&mut self, key: &[u8], delta: i64) -> Outcome {
        let value = self.counters.get(key).copied().unwrap_or(0);
        let sum = value.checked_add(delta).ok_or(ErrorCode::Overflow)?;
        self.counters.insert(key.to_vec(), sum);
        Ok(sum)
    }

    fn add_once(&mut self, id: &[u8], key: &[u8], delta: i64) -> Outcome {
        self.once(id, key, delta, |state| state.add(key, delta))
    }

    fn delete_once(&mut self, id: &[u8], key: &[u8]) -> Outcome {
        self.once(id, key, 0, |state| Ok(state.counters.remove(key).unwrap_or(0)))
    }

    fn once(&mut self, id: &[u8], key: &[u8], delta: i64, change: impl FnOnce(&mut Self) -> Outcome) -> Outcome {
        if let Some((kept_key, kept_delta, outcome)) = self.ids.get(id) {
            return if (kept_key.as_slice(), *kept_delta) == (key, delta) {
                *outcome
            } else {
                Err(ErrorCode::IdReused)
            };
        }
        let outcome = change(self);
        self.ids.insert(id.to_vec(), (key.to_vec(), delta, outcome));
        outcome
    }

    /// A session's batch, by the rules of a shard.
    fn apply(&mut self, id: SessionId, first: u64, acked: u64, items: &[Item<'_>]) -> Result<Vec<Outcome>, ErrorCode> {
        let known = self.sessions.get(&id).filter(|session| !session.is_over);
        let last = known.map_or(0, |session| session.last);
        if known.is_none() && (first > 1 || self.sessions.contains_key(&id)) {
            return Err(ErrorCode::SessionUnknown);
        }
        if first > last + 1 {
            return Err(ErrorCode::SequenceGap);
        }
        let mut session = self.sessions.remove(&id).unwrap_or_default();
        let mut outcomes = Vec::new();
        for (number, item) in (first..).zip(items) {
            if number > session.last {
                let outcome = self.add(item.key, item.delta);
                session.items.insert(number, (item.key.to_vec(), item.delta, outcome));
                session.last = number;
            }
            outcomes.push(match session.items.get(&number) {
                Some((key, delta, outcome)) => {
                    assert_eq!((key.as_slice(), *delta), (item.key, item.delta), "a number is used for two operations");
                    *outcome
                }
                None => Err(ErrorCode::AlreadySettled),
            });
        }
        assert!(acked < first, "acknowledged before it is sent");
        session.items.retain(|&number, _| number > acked);
        self.sessions.insert(id, session);
        Ok(outcomes)
    }
}

impl FakeShard {
    pub fn new(identity: u32, level: Level, token: Option<&'static [u8]>) -> Self {
        let (state, durable) = (State::default(), State::default());
        Self { state, durable, identity, epoch: 1, time_ms: 1, moods: VecDeque::new(), level, token }
    }

    /// Its process ends, and another one goes on. With `loses`, what wasn't on disk is gone.
    pub fn restart(&mut self, loses: bool) {
        self.epoch += 1;
        if loses {
            self.state = self.durable.clone();
        }
        self.durable = self.state.clone();
        self.moods.clear();
    }

    /// Takes whole requests from the start of `sent`, and gives a reply to each, if one comes.
    pub fn take(&mut self, sent: &mut Vec<u8>) -> Vec<Vec<u8>> {
        let (mut replies, mut position) = (Vec::new(), 0);
        let limits = FrameLimits { bytes_max: usize::MAX };
        while let Ok(Scan::Complete(length)) = FrameScanner::default().scan(&sent[position..], limits) {
            replies.extend(self.serve(&sent[position..position + length]));
            position += length;
        }
        sent.drain(..position);
        replies
    }

    fn serve(&mut self, frame: &[u8]) -> Option<Vec<u8>> {
        let (msgid, request) = match rpc::parse(frame) {
            Parsed::Request { msgid, request: Ok(request) } => (msgid, request),
            Parsed::Notification { request: Ok(Request::Bye { session }), .. } => {
                let session = self.state.sessions.entry(session).or_default();
                (session.is_over, session.items) = (true, BTreeMap::new());
                return None;
            }
            other => panic!("the router sent {other:?}"),
        };
        self.time_ms += 1;
        let mood = self.moods.pop_front().unwrap_or(Mood::Honest);
        let mut reply = Vec::new();
        match mood {
            Mood::Refuse(code) => rpc::reply_error(&mut reply, msgid, code, code.meaning()),
            Mood::Unknown { done } => {
                if done {
                    self.answer(&request, msgid, &mut Vec::new());
                }
                rpc::reply_error(&mut reply, msgid, ErrorCode::UnknownOutcome, "perhaps");
            }
            Mood::Silent => {
                self.answer(&request, msgid, &mut reply);
                return None;
            }
            Mood::Mangled(how) => {
                self.answer(&request, msgid, &mut reply);
                reply = mangled(reply, &request, msgid, how);
            }
            Mood::Forged(bytes) => {
                rpc::write_array_len(&mut reply, 4);
                rpc::write_u64(&mut reply, 1);
                rpc::write_u64(&mut reply, u64::from(msgid));
                reply.extend(bytes);
            }
            Mood::Forgetful => {
                for session in self.state.sessions.values_mut() {
                    (session.is_over, session.items) = (true, BTreeMap::new());
                }
                self.answer(&request, msgid, &mut reply);
            }
            Mood::Honest => self.answer(&request, msgid, &mut reply),
        }
        Some(reply)
    }

    fn answer(&mut self, request: &Request<'_>, msgid: u32, out: &mut Vec<u8>) {
        let is_lasting = match request {
            Request::Apply { level, .. } => level.unwrap_or(self.level) == Level::Durable,
            _ => true,
        };
        match request {
            Request::Hello { token, session, .. } => {
                assert_eq!(*token, self.token, "the router forgot the token");
                self.write_hello(msgid, *session, out);
            }
            Request::Apply { session, first_sequence, acked_through, items, level } => {
                assert!(items.iter().all(|item| item.error.is_none()) && !items.is_empty());
                match self.state.apply(*session, *first_sequence, *acked_through, items) {
                    Err(code) => rpc::reply_error(out, msgid, code, code.meaning()),
                    Ok(outcomes) => {
                        rpc::reply_begin(out, msgid);
                        rpc::write_map_len(out, 3);
                        rpc::write_str(out, "results");
                        write_outcomes(out, &outcomes);
                        rpc::write_str(out, "level");
                        rpc::write_str(out, level.unwrap_or(self.level).name());
                        rpc::write_str(out, "commit");
                        rpc::write_u64(out, 7);
                    }
                }
            }
            Request::Incr { key, delta, options } => {
                let outcome = self.state.add_once(options.id.expect("without an id it is a batch's"), key, *delta);
                match outcome {
                    Err(code) => rpc::reply_error(out, msgid, code, code.meaning()),
                    Ok(value) => rpc::reply_int(out, msgid, value),
                }
            }
            Request::IncrMany { items, .. } => {
                let outcomes: Vec<Outcome> = items
                    .iter()
                    .map(|item| self.state.add_once(item.id.expect("it has an id"), item.key, item.delta))
                    .collect();
                rpc::reply_begin(out, msgid);
                write_outcomes(out, &outcomes);
            }
            Request::DeleteMany { items, options } => {
                let delete = |item: &Item<'_>| self.state.delete_once(item.id.expect("it has an id"), item.key);
                let outcomes: Vec<Outcome> = items.iter().map(delete).collect();
                rpc::reply_begin(out, msgid);
                rpc::write_map_len(out, 3);
                rpc::write_str(out, "values");
                write_outcomes(out, &outcomes);
                rpc::write_str(out, "level");
                rpc::write_str(out, options.level.unwrap_or(self.level).name());
                rpc::write_str(out, "commit");
                rpc::write_u64(out, 7);
            }
            Request::Stats => {
                rpc::reply_begin(out, msgid);
                rpc::write_map_len(out, 2);
                rpc::write_str(out, "counters");
                rpc::write_u64(out, self.state.counters.len() as u64);
                rpc::write_str(out, "counters_foreign");
                rpc::write_u64(out, 0);
            }
            Request::Get { key, options } => {
                rpc::reply_begin(out, msgid);
                self.write_value(key, options.or_nil, out);
            }
            Request::GetMany { keys, options } => {
                rpc::reply_begin(out, msgid);
                rpc::write_array_len(out, keys.len());
                keys.iter().for_each(|key| self.write_value(key, options.or_nil, out));
            }
            other => panic!("the router asked for {other:?}"),
        }
        if is_lasting {
            self.durable = self.state.clone();
        }
    }

    fn write_hello(&self, msgid: u32, session: Option<SessionId>, out: &mut Vec<u8>) {
        rpc::reply_begin(out, msgid);
        rpc::write_map_len(out, 4);
        rpc::write_str(out, "identity");
        rpc::write_str(out, &format!("{:032x}", self.identity));
        rpc::write_str(out, "epoch");
        rpc::write_u64(out, self.epoch);
        rpc::write_str(out, "time");
        rpc::write_u64(out, self.time_ms);
        rpc::write_str(out, "last_sequence");
        let known = session.and_then(|session| self.state.sessions.get(&session)).filter(|session| !session.is_over);
        match known {
            Some(session) => rpc::write_u64(out, session.last),
            None => rpc::write_nil(out),
        }
    }

    fn write_value(&self, key: &[u8], or_nil: bool, out: &mut Vec<u8>) {
        match self.state.counters.get(key) {
            Some(value) => rpc::write_i64(out, *value),
            None if or_nil => rpc::write_nil(out),
            None => rpc::write_i64(out, 0),
        }
    }
}

fn write_outcomes(out: &mut Vec<u8>, outcomes: &[Outcome]) {
    rpc::write_array_len(out, outcomes.len());
    for outcome in outcomes {
        match outcome {
            Ok(value) => rpc::write_i64(out, *value),
            Err(code) => rpc::write_error(out, *code, code.meaning()),
        }
    }
}

/// What a broken shard, or line, may make of a reply. Nothing of it can be taken for a reply to what was asked.
fn mangled(reply: Vec<u8>, request: &Request<'_>, msgid: u32, how: u8) -> Vec<u8> {
    let mut out = Vec::new();
    match how % 7 {
        0 => rpc::reply_int(&mut out, msgid ^ 0x2000_0000, 1),
        1 => out.push(0xc1),
        2 => {
            out.extend_from_slice(&reply[..reply.len() / 2]);
            out.extend([0xc1; 2048]);
        }
        3 => out = [&reply[..], &reply].concat(),
        4 => {
            rpc::reply_begin(&mut out, msgid);
            out.extend([0xdd, 0xff, 0xff, 0xff, 0xff]);
        }
        5 => {
            rpc::reply_begin(&mut out, msgid);
            rpc::write_map_len(&mut out, 1);
            rpc::write_str(&mut out, "results");
            rpc::write_array_len(&mut out, 0);
        }
        _ => {
            // As many as were asked for, but each is an array: what is inside of one is no other's.
            let count = match request {
                Request::Apply { items, .. } | Request::IncrMany { items, .. } | Request::DeleteMany { items, .. } => {
                    items.len()
                }
                Request::GetMany { keys, .. } => keys.len(),
                _ => 1,
            };
            rpc::reply_begin(&mut out, msgid);
            rpc::write_array_len(&mut out, count);
            for place in (0..count).rev() {
                rpc::write_array_len(&mut out, place);
                (0..place).for_each(|_| rpc::write_i64(&mut out, -1));
            }
        }
    }
    out
}
