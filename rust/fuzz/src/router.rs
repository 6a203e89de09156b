//! A coordinator's whole router between clients and shards: two clients that send any bytes, two whose requests are
//! well-formed, and two shards that answer, refuse, say nothing or say nonsense, over lines that break.
//!
//! Promises: no panic; memory within its bounds; each request is answered once, on RESP in order, and nobody waits for
//! ever; however the bytes are cut, clients and shards get the same; who has no token changes nothing. Where shards don't
//! lie, an increment is counted as its client was told: once, not at all, or once at most.

use pycounter_engine::error_code::ErrorCode;
use pycounter_engine::wire::request::Level;
use pycounter_engine::wire::scan::FrameLimits;

use crate::checked_client::{Checked, End};
use crate::fake_shard::Mood;
use crate::replies::{self, Value};
use crate::router_host::{Client, Host, Limits, SHARDS, TOKEN};

// The clients that send any bytes, and two whose requests are well-formed.
const ANY: usize = 2;
const RPC: usize = 2;
const RESP: usize = 3;
const CLIENTS: usize = 4;

// The settings, from the second byte.
const WITH_TOKEN: u8 = 1;
const DURABLE: u8 = 2;
const TIGHT: u8 = 4;
/// Shards may lie: what they say needn't be so.
const LYING: u8 = 8;
const CACHE: u8 = 16;

/// A script's steps, by the first byte's remainder; the rest of the byte says how.
#[derive(Clone, Copy)]
enum Step {
    SendFirst,
    SendSecond,
    Operate,
    Exchange,
    Line,
    Mood,
    Tick,
    Host,
}

const STEPS: [Step; 8] =
    [Step::SendFirst, Step::SendSecond, Step::Operate, Step::Exchange, Step::Line, Step::Mood, Step::Tick, Step::Host];

/// Refusals that leave nothing behind.
const REFUSALS: [ErrorCode; 8] = [
    ErrorCode::Overloaded,
    ErrorCode::ReadOnly,
    ErrorCode::TooLarge,
    ErrorCode::Unavailable,
    ErrorCode::Forbidden,
    ErrorCode::BadRequest,
    ErrorCode::Unauthenticated,
    ErrorCode::Storage,
];

/// The first byte says how what is sent is cut; the second is the settings, and the rest a script.
pub fn check(data: &[u8]) {
    let [piece, flags, script @ ..] = data else { return };
    let whole = run(*flags, script, usize::MAX);
    let pieces = run(*flags, script, usize::from(*piece) + 1);
    if let (Some(whole), Some(pieces)) = (whole, pieces)
        && flags & TIGHT == 0
    {
        assert!(whole == pieces, "cut differently, the same bytes come to something else");
    }
}

/// What each client received and each shard was sent. `None` if that depends on the cuts: on how much was heard of a shard
/// before it broke the protocol, or on which of the connections that had to wait went on first.
fn run(flags: u8, script: &[u8], piece_max: usize) -> Option<Vec<Vec<Vec<u8>>>> {
    let limits = Limits {
        level: if flags & DURABLE == 0 { Level::Applied } else { Level::Durable },
        with_token: flags & WITH_TOKEN != 0,
        is_tight: flags & TIGHT != 0,
        with_cache: flags & CACHE != 0,
    };
    let mut run =
        Run { host: Host::new(limits, CLIENTS, piece_max), flags, checked: Checked::default(), outcome: Vec::new() };
    let mut rest = script;
    while let Some((&step, after)) = rest.split_first() {
        rest = after;
        run.step(STEPS[usize::from(step) % STEPS.len()], step >> 3, &mut rest);
        run.hear();
        run.host.check_bounds();
    }
    run.settle();
    run.check_counts();
    run.check_replies(limits);
    run.end(script)
}

/// A router in the middle of a script.
struct Run {
    host: Host,
    flags: u8,
    checked: Checked,
    /// What came over connections that are no more, of the clients that send any bytes.
    outcome: Vec<Vec<Vec<u8>>>,
}

/// The bytes behind a byte that says how many.
fn take<'s>(script: &mut &'s [u8]) -> &'s [u8] {
    let Some((&count, rest)) = script.split_first() else { return &[] };
    let (taken, rest) = rest.split_at(rest.len().min(usize::from(count)));
    *script = rest;
    taken
}

fn next(script: &mut &[u8]) -> u8 {
    let Some((&byte, rest)) = script.split_first() else { return 0 };
    *script = rest;
    byte
}

/// Is this anywhere in what clients send?
fn knows(script: &[u8], word: &[u8]) -> bool {
    script.windows(word.len()).any(|window| window == word)
}

impl Run {
    fn step(&mut self, step: Step, how: u8, rest: &mut &[u8]) {
        let shard = usize::from(how) % SHARDS;
        match step {
            Step::SendFirst => self.send_any(0, take(rest)),
            Step::SendSecond => self.send_any(1, take(rest)),
            Step::Operate => {
                let kind = next(rest);
                self.operate(how & 1 == 0, kind);
            }
            Step::Exchange => self.host.exchange(how),
            Step::Line => match how >> 1 {
                0 => self.host.cut(shard, 0),
                1 => self.host.cut(shard, usize::MAX),
                2 => self.host.cut(shard, usize::from(next(rest))),
                3 | 4 => self.host.arrive(shard),
                5 => self.restart(shard, false, false),
                6 => self.restart(shard, true, false),
                7 => self.restart(shard, false, true),
                8 if self.flags & LYING != 0 => self.host.say(shard, take(rest)),
                _ => self.host.connect(shard),
            },
            Step::Mood => {
                let mood = match how >> 1 {
                    0 => Mood::Honest,
                    1 => Mood::Unknown { done: true },
                    2 => Mood::Unknown { done: false },
                    3 => Mood::Silent,
                    4 if self.flags & LYING != 0 => Mood::Forgetful,
                    4 => Mood::Honest,
                    5 | 6 if self.flags & LYING != 0 => Mood::Forged(take(rest).to_owned()),
                    5..=7 => Mood::Mangled(next(rest)),
                    refusal => Mood::Refuse(REFUSALS[usize::from(refusal) % REFUSALS.len()]),
                };
                self.host.lines[shard].shard.moods.push_back(mood);
            }
            Step::Tick => self.host.tick(1 << (how % 16)),
            Step::Host => {
                let who = usize::from(how) % CLIENTS;
                match how >> 2 {
                    0 => self.reconnect(who),
                    1 => self.host.finish(who % ANY),
                    2 => self.take_unserved(how & 1 != 0),
                    3..=5 => self.host.serve(next(rest)),
                    _ => {
                        let answer = next(rest);
                        self.host.answer(who, answer);
                    }
                }
            }
        }
    }

    /// Whatever it is, unless it names a counter or an id of the well-formed operations.
    fn send_any(&mut self, who: usize, bytes: &[u8]) {
        if !knows(&[&self.host.clients[who].sent[..], bytes].concat(), b"checked") {
            self.host.send(who, bytes);
        }
    }

    fn operate(&mut self, is_rpc: bool, kind: u8) {
        let who = if is_rpc { RPC } else { RESP };
        if self.host.clients[who].is_closed {
            self.reconnect(who);
        }
        let token = self.flags & WITH_TOKEN != 0 && self.host.clients[who].sent.is_empty();
        let mut bytes = Vec::new();
        if is_rpc {
            if token {
                bytes.extend(self.checked.rpc_token(TOKEN));
            }
            bytes.extend(self.checked.rpc_request(kind));
        } else {
            if token {
                bytes.extend(self.checked.resp_token("secret").into_bytes());
            }
            bytes.extend(self.checked.resp_request(kind).into_bytes());
        }
        self.host.send(who, &bytes);
    }

    /// What the well-formed clients have received is looked at.
    fn hear(&mut self) {
        let is_true = self.flags & LYING == 0;
        for who in [RPC, RESP] {
            let received = std::mem::take(&mut self.host.clients[who].received);
            let mut rest = &received[..];
            while let Some(reply) = replies::take(&mut rest) {
                if who == RPC {
                    self.checked.rpc_reply(&reply, is_true);
                } else {
                    self.checked.resp_reply(&reply, is_true);
                }
            }
            // Replies of a transaction leave one by one.
            self.host.clients[who].received = rest.to_vec();
            if self.host.clients[who].is_closed {
                assert!(self.flags & TIGHT != 0, "a connection whose requests are well-formed was ended");
                self.checked.forget(who == RPC);
            }
        }
    }

    fn reconnect(&mut self, who: usize) {
        if who < ANY {
            self.outcome.push(comparable(&self.host.clients[who]));
        } else {
            self.checked.forget(who == RPC);
        }
        self.host.reconnect(who);
    }

    fn restart(&mut self, shard: usize, loses: bool, is_another: bool) {
        self.checked.is_any_lost |= loses || is_another;
        self.host.restart(shard, loses, is_another);
    }

    fn take_unserved(&mut self, unsent: bool) {
        for (key, _) in self.host.router.take_unserved(unsent) {
            self.checked.was_taken(&key);
        }
    }

    fn settle(&mut self) {
        if self.flags & LYING != 0 {
            // What a liar has made of a session is over with it.
            (0..SHARDS).for_each(|shard| self.restart(shard, false, true));
        }
        self.host.settle();
        self.hear();
        assert!(!self.checked.is_owed(), "a request was never answered");
        let left = [RPC, RESP].map(|who| self.host.clients[who].received.len());
        assert!(left == [0; 2] || self.flags & TIGHT != 0, "half a reply");
        self.take_unserved(true);
    }

    /// Each increment counted as its client was told.
    fn check_counts(&self) {
        if self.flags & LYING != 0 {
            return;
        }
        let present = self.host.lines.iter().map(|line| &line.shard.state);
        let states: Vec<_> = present.chain(&self.host.replaced).collect();
        for operation in &self.checked.operations {
            let sum: i64 = states.iter().filter_map(|state| state.counters.get(&operation.key)).sum();
            let (times, rest) = (sum / operation.delta, sum % operation.delta);
            let allowed = match operation.end {
                Some(End::Nothing) => 0..=0,
                Some(End::Counted) if !self.checked.is_any_lost => 1..=1,
                _ => 0..=1,
            };
            assert!(rest == 0 && allowed.contains(&times), "counted {times} times: {operation:?}");
        }
    }

    /// Those who send any bytes get as many replies as they asked for.
    fn check_replies(&self, limits: Limits) {
        for client in &self.host.clients[..ANY] {
            let due = replies::due(&client.sent, FrameLimits { bytes_max: limits.frame_bytes_max() });
            let (mut rest, mut count) = (&client.received[..], 0);
            while replies::take(&mut rest).is_some() {
                count += 1;
            }
            let told = client.received.escape_ascii();
            // A transaction that is too much for all bounds ends in the middle.
            let is_cut = client.is_closed && self.flags & TIGHT != 0;
            assert!(rest.is_empty() || is_cut, "half a reply: {told}");
            // The one more says why the connection ends.
            let may_be_ended = client.is_closed && (!client.is_finished || self.flags & TIGHT != 0);
            let is_right = if may_be_ended { count <= due + 1 } else { count == due };
            assert!(is_right, "{count} replies to {due} requests {}: {told}", client.sent.escape_ascii());
        }
    }

    fn end(mut self, script: &[u8]) -> Option<Vec<Vec<Vec<u8>>>> {
        if self.flags & WITH_TOKEN != 0 && !knows(script, TOKEN) && self.checked.operations.is_empty() {
            assert_eq!(self.host.figure("increments"), 0, "counted without a token");
        }
        let mut outcome = std::mem::take(&mut self.outcome);
        outcome.extend(self.host.clients[..ANY].iter().map(comparable));
        outcome.extend(self.host.lines.iter().map(|line| vec![line.sent.clone()]));
        for client in &self.host.clients {
            self.host.router.disconnect(client.place);
        }
        assert_eq!((self.host.figure("connections"), self.host.figure("input_bytes")), (0, 0));
        (self.host.violations == 0 && !self.host.is_any_stalled).then_some(outcome)
    }
}

/// What was received over a connection, without figures. MessagePack's replies may overtake each other, so they come in
/// some order; RESP's, in theirs, line by line.
fn comparable(client: &Client) -> Vec<Vec<u8>> {
    let received = &client.received[..];
    if received.is_empty() {
        return Vec::new();
    }
    if received.first() == Some(&0x94) {
        let (mut found, mut rest) = (Vec::new(), received);
        loop {
            let before = rest;
            let Some(reply) = replies::take(&mut rest) else { break };
            // Bytes that can't become a request end a connection as soon as they come. Whether they are answered
            // depends on whether the msgid has come.
            let is_end = client.is_closed && reply.value == Value::Error(ErrorCode::BadRequest);
            if !is_end && reply.value != Value::Error(ErrorCode::TooLarge) {
                found.push(before[..before.len() - rest.len()].to_vec());
            }
        }
        found.sort();
        return found;
    }
    let is_figure = |line: &[u8]| {
        // Lengths of INFO, too.
        [&b"$"[..], b"=", b"pycounter_"].iter().any(|start| line.starts_with(start))
    };
    received.split(|&byte| byte == b'\n').filter(|line| !is_figure(line)).map(<[u8]>::to_vec).collect()
}

/// Where fuzzing begins: what the two protocols' own targets begin with, to a router, and scripts of what may go wrong,
/// under every setting by turns.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let (rpc, resp) = (crate::msgpack_rpc::seeds(), crate::resp::seeds());
    let pairs = rpc.into_iter().zip(resp.iter().cycle());
    // Their first byte was for their own target.
    let mut seeds: Vec<_> =
        pairs.enumerate().map(|(index, ((name, rpc), (_, resp)))| (name, seed(index, &rpc[1..], &resp[1..]))).collect();
    seeds.extend(troubles());
    seeds
}

const fn byte(step: Step, how: u8) -> u8 {
    step as u8 | how << 3
}

fn seed(index: usize, rpc: &[u8], resp: &[u8]) -> Vec<u8> {
    let mut seed = vec![0, (index % 32) as u8];
    // The reverse of `take`: what is longer takes several sends.
    for (step, bytes) in [(Step::SendFirst, rpc), (Step::SendSecond, resp)] {
        for part in bytes.chunks(200) {
            seed.push(byte(step, 0));
            seed.push(part.len() as u8);
            seed.extend_from_slice(part);
        }
    }
    for kind in 0..4 {
        seed.extend([byte(Step::Operate, kind), (index as u8).wrapping_mul(5).wrapping_add(kind)]);
    }
    seed.extend([byte(Step::Exchange, 0), byte(Step::Host, 24), index as u8, byte(Step::Tick, 6)]);
    seed
}

/// Increments and reads around something that goes wrong.
fn troubles() -> Vec<(&'static str, Vec<u8>)> {
    let operations = |kinds: std::ops::Range<u8>| -> Vec<u8> {
        kinds.flat_map(|kind| [byte(Step::Operate, u8::from(kind % 3 == 2)), kind]).collect()
    };
    let exchange = |how: u8| vec![byte(Step::Exchange, how)];
    let mood = |how: u8, kind: &[u8]| -> Vec<u8> {
        [how << 1, how << 1 | 1].into_iter().flat_map(|how| [&[byte(Step::Mood, how)], kind].concat()).collect()
    };
    let line = |how: u8| vec![byte(Step::Line, how << 1), byte(Step::Line, how << 1 | 1)];
    let wait = |how: u8| vec![byte(Step::Tick, how)];
    let serve = |how: u8| vec![byte(Step::Host, 12), how];
    let say = |bytes: &[u8]| [&[byte(Step::Line, 16), bytes.len() as u8], bytes].concat();
    let scripts: Vec<(&'static str, u8, Vec<Vec<u8>>)> = vec![
        ("cut-before", 0, vec![operations(0..20), line(0), line(9), exchange(0), exchange(0)]),
        ("cut-behind", 2, vec![operations(0..20), exchange(3), line(1), line(9), line(3), exchange(0), exchange(0)]),
        ("refused", 0, vec![mood(8, &[]), operations(0..20), exchange(0), wait(8), operations(20..40), exchange(0)]),
        (
            "refused-for-good",
            0,
            vec![mood(10, &[]), operations(0..9), exchange(0), operations(9..20), wait(8), exchange(0)],
        ),
        ("unknown", 2, vec![mood(1, &[]), operations(0..9), exchange(0), operations(9..20), wait(8), exchange(0)]),
        ("silent", 0, vec![mood(3, &[]), operations(0..20), exchange(0), wait(12), line(1), line(9), exchange(0)]),
        ("mangled", 2, vec![mood(7, &[5]), operations(0..20), exchange(0), line(9), exchange(0), exchange(0)]),
        ("nested", 0, vec![mood(7, &[6]), operations(4..6), exchange(0), operations(0..20), exchange(0)]),
        ("crash", 0, vec![operations(0..20), exchange(0), line(6), line(9), operations(20..30), exchange(0)]),
        ("another", 2, vec![operations(0..20), exchange(3), line(7), line(9), operations(20..30), exchange(0)]),
        (
            "forgetful",
            8,
            vec![operations(0..9), exchange(0), mood(4, &[]), operations(9..30), exchange(0), exchange(0)],
        ),
        ("diverted", 0, vec![line(0), operations(0..20), serve(18), exchange(0), operations(20..40), exchange(0)]),
        ("dead", 0, vec![serve(10), operations(0..20), exchange(0), vec![byte(Step::Host, 9)], serve(0)]),
        ("tight", 4, vec![operations(0..90), exchange(0), operations(0..90), exchange(4), exchange(8), exchange(0)]),
        (
            "lie",
            8,
            vec![
                mood(5, b"\x03\xc0\x91\x01"),
                operations(0..9),
                exchange(0),
                say(b"\x94\x01\x01\xc0\x05"),
                exchange(0),
            ],
        ),
    ];
    let seed =
        |(name, flags, parts): (&'static str, u8, Vec<Vec<u8>>)| (name, [vec![6, flags], parts.concat()].concat());
    scripts.into_iter().map(seed).collect()
}
