//! A whole shard, journal included: two clients that send any bytes, cut anywhere, between commits and restarts.
//!
//! Promises: no panic; memory within its bounds; however the bytes are cut, each client gets the same replies; nobody
//! waits for ever; who has no token changes nothing; between all that, well-formed operations do what they say, and
//! those with an id or a session do it once, over a restart too.

use pycounter_engine::wire::msgpack_rpc::{self as rpc, FrameScanner};
use pycounter_engine::wire::request::Level;
use pycounter_engine::wire::scan::{FrameLimits, Scan};

use crate::memory_files::MemoryFiles;
use crate::shard_host::{Host, Limits, TOKEN};

// The clients that send any bytes, and two whose requests are well-formed.
const ANY: usize = 2;
const RPC: usize = 2;
const RESP: usize = 3;
const CLIENTS: usize = 4;

// The settings, from the second byte.
const WITH_TOKEN: u8 = 1;
const DURABLE: u8 = 2;
const TIGHT_BUFFERS: u8 = 4;
const TIGHT_STATE: u8 = 8;

/// Counters that well-formed operations are about; others' requests name them too.
const KEYS: [&str; 4] = ["k", "key", "a", "hits"];

/// A script's steps, by the first byte's remainder.
#[derive(Clone, Copy)]
enum Step {
    SendFirst,
    SendSecond,
    Operate,
    Commit,
    Release,
    Tick,
    Reconnect,
    Finish,
}

const STEPS: [Step; 8] = [
    Step::SendFirst,
    Step::SendSecond,
    Step::Operate,
    Step::Commit,
    Step::Release,
    Step::Tick,
    Step::Reconnect,
    Step::Finish,
];

/// The first byte says how what is sent is cut; the second is the settings, and the rest a script.
pub fn check(data: &[u8]) {
    let [piece, flags, script @ ..] = data else { return };
    let whole = run(*flags, script, usize::MAX);
    let pieces = run(*flags, script, usize::from(*piece) + 1);
    if flags & TIGHT_BUFFERS == 0 {
        assert!(whole == pieces, "cut differently, the same bytes are answered differently");
    }
}

/// What was received over each connection, and all counters at the end.
fn run(flags: u8, script: &[u8], piece_max: usize) -> Vec<Vec<Vec<u8>>> {
    let files = MemoryFiles::default();
    let mut run = Run::open(&files, true, flags, piece_max);
    // Else somebody might use, or end, what is to be the host's own.
    let may_operate = !knows(script, b"checked");
    let mut rest = script;
    while let Some((&step, after)) = rest.split_first() {
        rest = after;
        let who = usize::from(step >> 3) % ANY;
        match STEPS[usize::from(step) % STEPS.len()] {
            Step::SendFirst => run.host.send(0, take(&mut rest)),
            Step::SendSecond => run.host.send(1, take(&mut rest)),
            Step::Operate => {
                let Some(([kind, delta], after)) = rest.split_first_chunk() else { break };
                rest = after;
                if may_operate {
                    run.operate(*kind, i64::from(*delta as i8), KEYS[usize::from(step >> 3) % KEYS.len()]);
                }
            }
            Step::Commit => run.host.commit(),
            Step::Release => run.host.release(),
            Step::Tick => run.host.tick(),
            Step::Reconnect => run.host.reconnect(who),
            Step::Finish => run.host.finish(who),
        }
    }
    run.host.settle(0..CLIENTS);
    if flags & WITH_TOKEN != 0 && !knows(script, TOKEN) && run.operations == 0 {
        assert_eq!(run.host.figure("changes"), 0, "changed without a token");
    }
    let counters = run.counters();
    let connections = run.host.clients[..ANY].iter().flat_map(|who| who.received_before.iter().chain([&who.received]));
    let mut outcome: Vec<_> = connections.map(|received| comparable(received)).collect();
    outcome.push(vec![counters.clone()]);
    let Run { host, once, .. } = run;
    host.stop();

    let mut again = Run::open(&files, false, flags, usize::MAX);
    assert!(again.counters() == counters, "a restart changed the counters");
    for (request, reply) in once {
        assert!(again.repeat(&request) == reply, "after a restart a repetition gets another result");
    }
    assert!(again.counters() == counters, "a repetition counted after a restart");
    again.host.stop();
    outcome
}

/// Is this anywhere in what clients send?
fn knows(script: &[u8], word: &[u8]) -> bool {
    script.windows(word.len()).any(|window| window == word)
}

/// The bytes behind a byte that says how many.
fn take<'s>(script: &mut &'s [u8]) -> &'s [u8] {
    let Some((&count, rest)) = script.split_first() else { return &[] };
    let (taken, rest) = rest.split_at(rest.len().min(usize::from(count)));
    *script = rest;
    taken
}

/// A shard in the middle of a script.
struct Run {
    host: Host,
    flags: u8,
    /// How many there were; they number ids.
    operations: u32,
    /// Of the session that `apply` uses.
    sequence: u64,
    /// Requests that were answered and must be answered so again.
    once: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Run {
    fn open(files: &MemoryFiles, is_new: bool, flags: u8, piece_max: usize) -> Self {
        let limits = Limits {
            level: if flags & DURABLE == 0 { Level::Applied } else { Level::Durable },
            token: (flags & WITH_TOKEN != 0).then(|| TOKEN.to_owned()),
            tight_buffers: flags & TIGHT_BUFFERS != 0,
            tight_state: flags & TIGHT_STATE != 0,
        };
        let host = Host::open(files, is_new, limits, CLIENTS, piece_max);
        Self { host, flags, operations: 0, sequence: 1, once: Vec::new() }
    }

    /// Asks as a client whose requests are well-formed, which may first have to sign in.
    fn ask(&mut self, who: usize, request: &[u8]) -> Vec<u8> {
        if self.host.clients[who].closed {
            self.host.reconnect(who);
        }
        if self.flags & WITH_TOKEN != 0 {
            let hello = request_of("hello", |out| {
                rpc::write_map_len(out, 1);
                rpc::write_str(out, "token");
                rpc::write_bin(out, TOKEN);
            });
            self.answer(who, if who == RPC { &hello } else { b"AUTH secret\r\n" });
        }
        self.answer(who, request)
    }

    fn answer(&mut self, who: usize, request: &[u8]) -> Vec<u8> {
        self.host.clients[who].received.clear();
        self.host.send(who, request);
        self.host.settle(who..who + 1);
        std::mem::take(&mut self.host.clients[who].received)
    }

    /// The counters, as `top` gives them.
    fn counters(&mut self) -> Vec<u8> {
        self.ask(RPC, &request_of("top", |out| rpc::write_u64(out, 65_536)))
    }

    fn value(&mut self, key: &str) -> Option<i64> {
        let reply = self.ask(RESP, format!("GET {key}\r\n").as_bytes());
        let reply = String::from_utf8(reply).unwrap();
        let lines: Vec<&str> = reply.split("\r\n").collect();
        match lines[..] {
            ["$-1", ""] => None,
            [_, value, ""] => Some(value.parse().unwrap()),
            _ => panic!("GET gave {reply:?}"),
        }
    }

    /// One operation, and what the counter must be afterwards.
    fn operate(&mut self, kind: u8, delta: i64, key: &str) {
        self.operations += 1;
        let before = self.value(key);
        let value = before.unwrap_or(0);
        let added = value.checked_add(delta);
        let (reply, expected, after) = match kind % 7 {
            0 => self.told(&format!("INCRBY {key} {delta}"), added.map(|sum| format!(":{sum}\r\n")), added),
            1 => {
                let set = if kind & 8 == 0 { delta } else { i64::MAX.wrapping_add(delta) };
                self.told(&format!("SET {key} {set}"), Some("+OK\r\n".into()), Some(set))
            }
            2 => {
                let taken =
                    before.map_or("$-1\r\n".into(), |value| format!("${}\r\n{value}\r\n", value.to_string().len()));
                self.told(&format!("GETDEL {key}"), Some(taken), None)
            }
            3 => {
                let lines = format!("MULTI\r\nINCRBY {key} {delta}\r\nDEL {key}\r\nINCR {key}\r\nEXEC");
                let added = added.map(|sum| format!("+OK\r\n{}*3\r\n:{sum}\r\n:1\r\n:1\r\n", "+QUEUED\r\n".repeat(3)));
                self.told(&lines, added, Some(1))
            }
            4 => self.once(with_id("incr", key, Some(delta), self.operations), added, added),
            5 => self.once(with_id("drain", key, None, self.operations), Some(value), before.map(|_| 0)),
            _ => return self.apply(key, delta, before),
        };
        let now = self.value(key);
        if reply == expected {
            assert_eq!(now, after, "{kind} {delta} on {before:?} left something else");
        } else {
            let reply = String::from_utf8_lossy(&reply);
            let may_be_full = self.flags & (TIGHT_STATE | TIGHT_BUFFERS) != 0;
            let refused = reply.contains("overflow") && added.is_none() || reply.contains("overloaded") && may_be_full;
            assert!(refused, "{kind} {delta} on {before:?} gave {reply}");
            assert!(
                now == before || kind % 7 == 3,
                "{kind} {delta} on {before:?} was refused, and changed it to {now:?}"
            );
        }
    }

    /// A RESP operation: what it gave, what it should, and what it should leave.
    fn told(&mut self, lines: &str, reply: Option<String>, after: Option<i64>) -> (Vec<u8>, Vec<u8>, Option<i64>) {
        let told = self.ask(RESP, format!("{lines}\r\n").as_bytes());
        (told, reply.unwrap_or_default().into_bytes(), after)
    }

    /// The same for an operation with an id, sent twice.
    fn once(&mut self, request: Vec<u8>, result: Option<i64>, after: Option<i64>) -> (Vec<u8>, Vec<u8>, Option<i64>) {
        let reply = self.remember(request);
        let mut expected = Vec::new();
        if let Some(result) = result {
            rpc::reply_int(&mut expected, MSGID, result);
        }
        (reply, expected, after)
    }

    /// A batch of a session, of two increments that sum up to `delta`, sent twice.
    fn apply(&mut self, key: &str, delta: i64, before: Option<i64>) {
        let request = request_of_many("apply", 4, |out| {
            rpc::write_bin(out, b"checked session!");
            rpc::write_u64(out, self.sequence);
            // Everything before is acknowledged.
            rpc::write_u64(out, self.sequence - 1);
            rpc::write_array_len(out, 2);
            for part in [delta, 0] {
                rpc::write_array_len(out, 2);
                rpc::write_key(out, key.as_bytes());
                rpc::write_i64(out, part);
            }
        });
        self.once.retain(|(request, _)| !request.windows(5).any(|window| window == b"apply"));
        let reply = self.remember(request);
        let now = self.value(key);
        if !is_result(&reply) {
            assert!(self.flags & (TIGHT_STATE | TIGHT_BUFFERS) != 0, "refused: {}", String::from_utf8_lossy(&reply));
            assert_eq!(now, before, "a refused batch changed something");
            return;
        }
        self.sequence += 2;
        match before.unwrap_or(0).checked_add(delta) {
            Some(sum) => assert_eq!(now, Some(sum)),
            None => assert_eq!(now, before),
        }
    }

    /// Sends a request twice, and remembers what it gave, to be sent once more after a restart.
    fn remember(&mut self, request: Vec<u8>) -> Vec<u8> {
        let reply = self.repeat(&request);
        if is_result(&reply) {
            assert!(self.repeat(&request) == reply, "a repetition got another result");
            self.once.push((request, reply.clone()));
        }
        reply
    }

    fn repeat(&mut self, request: &[u8]) -> Vec<u8> {
        let reply = self.ask(RPC, request);
        without_figures(&reply).to_vec()
    }
}

const MSGID: u32 = 7;

fn is_result(reply: &[u8]) -> bool {
    reply.get(3) == Some(&0xc0)
}

/// A request with one parameter.
fn request_of(method: &str, parameter: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    request_of_many(method, 1, parameter)
}

fn request_of_many(method: &str, count: usize, parameters: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    rpc::write_array_len(&mut out, 4);
    rpc::write_u64(&mut out, 0);
    rpc::write_u64(&mut out, u64::from(MSGID));
    rpc::write_str(&mut out, method);
    rpc::write_array_len(&mut out, count);
    parameters(&mut out);
    out
}

fn with_id(method: &str, key: &str, delta: Option<i64>, number: u32) -> Vec<u8> {
    request_of_many(method, 2 + usize::from(delta.is_some()), |out| {
        rpc::write_key(out, key.as_bytes());
        if let Some(delta) = delta {
            rpc::write_i64(out, delta);
        }
        rpc::write_map_len(out, 1);
        rpc::write_str(out, "id");
        rpc::write_str(out, &format!("checked operation {number}"));
    })
}

/// What was received over a connection, without the figures that differ from run to run. MessagePack's replies may overtake each
/// other, so they come in some order; RESP's, in theirs, line by line.
fn comparable(received: &[u8]) -> Vec<Vec<u8>> {
    if received.first() == Some(&0x94) {
        let mut replies = Vec::new();
        let mut rest = received;
        while let Ok(Scan::Complete(length)) = FrameScanner::default().scan(rest, FrameLimits { bytes_max: usize::MAX })
        {
            replies.push(without_figures(&rest[..length]).to_vec());
            rest = &rest[length..];
        }
        replies.sort();
        return replies;
    }
    let is_figure = |line: &[u8]| {
        // Lengths of INFO, too.
        [&b"$"[..], b"=", b"pycounter_", b"uptime_in_seconds:"].iter().any(|start| line.starts_with(start))
    };
    received.split(|&byte| byte == b'\n').filter(|line| !is_figure(line)).map(<[u8]>::to_vec).collect()
}

/// The reply up to what tells of times and commits.
fn without_figures(reply: &[u8]) -> &[u8] {
    let names: [&[u8]; 4] = [b"\xa4time", b"\xa9uptime_ms", b"\xa6commit", b"\xaecommit_durable"];
    // Each begins with a byte of its own, which is looked for first: it is rare.
    let is_figure = |&(at, byte): &(usize, &u8)| {
        (0xa4..=0xae).contains(byte) && names.iter().any(|name| reply[at..].starts_with(name))
    };
    reply.iter().enumerate().find(is_figure).map_or(reply, |(at, _)| &reply[..at])
}

/// Where fuzzing begins: what the two protocols' own targets begin with, to a shard, under every setting by turns.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let (rpc, resp) = (crate::msgpack_rpc::seeds(), crate::resp::seeds());
    let pairs = rpc.into_iter().zip(resp.iter().cycle());
    // Their first byte was for their own target.
    pairs.enumerate().map(|(index, ((name, rpc), (_, resp)))| (name, seed(index, &rpc[1..], &resp[1..]))).collect()
}

fn seed(index: usize, rpc: &[u8], resp: &[u8]) -> Vec<u8> {
    let flags = (index % 16) as u8;
    let mut seed = vec![0, flags];
    let mut step = |step: Step, bytes: &[u8]| {
        seed.push(step as u8 | (index as u8) << 3);
        seed.extend_from_slice(bytes);
    };
    // The reverse of `take`: what is longer takes several sends.
    let sends =
        |bytes: &[u8]| -> Vec<Vec<u8>> { bytes.chunks(255).map(|part| [&[part.len() as u8], part].concat()).collect() };
    // Some never send the token, and then nobody may change anything.
    let is_outsider = flags & WITH_TOKEN != 0 && index >= 16;
    if flags & WITH_TOKEN != 0 && !is_outsider {
        let hello = b"\x94\x00\x01\xa5hello\x91\x81\xa5token\xa6secret";
        sends(hello).iter().for_each(|part| step(Step::SendFirst, part));
        sends(b"AUTH secret\r\n").iter().for_each(|part| step(Step::SendSecond, part));
    }
    sends(rpc).iter().for_each(|part| step(Step::SendFirst, part));
    if !is_outsider {
        step(Step::Operate, &[index as u8, 5]);
    }
    sends(resp).iter().for_each(|part| step(Step::SendSecond, part));
    step(Step::Commit, &[]);
    sends(rpc).iter().for_each(|part| step(Step::SendFirst, part));
    step(Step::Release, &[]);
    if !is_outsider {
        step(Step::Operate, &[(index + 1) as u8, 0xff]);
    }
    step([Step::Tick, Step::Reconnect, Step::Finish][index % 3], &[]);
    sends(resp).iter().for_each(|part| step(Step::SendSecond, part));
    seed
}
