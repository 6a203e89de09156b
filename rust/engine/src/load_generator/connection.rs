//! One connection: a batch of requests out, its replies in, the next batch.

use std::io::{self, ErrorKind, Read, Write};
use std::mem;
use std::net::TcpStream;
use std::time::Instant;

use super::replies::{Answer, NoReply, Reply, ReplyReader};
use super::requests::Requests;
use super::{Operation, Run, Workload};

/// Initial size of the receive buffer; a longer reply makes it grow.
const RECEIVE_BYTES: usize = 64 << 10;
/// Longest reply accepted.
const REPLY_BYTES_MAX: usize = 64 << 20;

pub(super) struct Connection {
    stream: TcpStream,
    requests: Requests,
    reader: ReplyReader,
    /// Operations in a full batch of requests.
    depth: usize,
    /// The length of this batch in bytes, and how many bytes have been sent.
    batch_len: usize,
    sent: usize,
    /// When the batch was started.
    began: Instant,
    /// Which of its requests have been answered.
    answered: Vec<bool>,
    requests_left: usize,
    operations_left: usize,
    received: Vec<u8>,
    /// The unread bytes in `received`.
    filled: usize,
    is_session: bool,
    is_open: bool,
}

impl Connection {
    pub(super) fn new(stream: TcpStream, workload: &Workload) -> io::Result<Self> {
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        Ok(Self {
            stream,
            requests: Requests::new(workload, random),
            reader: ReplyReader::new(workload.protocol, workload.operation),
            depth: workload.pipeline * workload.batch(),
            batch_len: 0,
            sent: 0,
            began: Instant::now(),
            answered: vec![false; workload.pipeline],
            requests_left: 0,
            operations_left: 0,
            received: vec![0; RECEIVE_BYTES],
            filled: 0,
            is_session: matches!(workload.operation, Operation::Apply { .. }),
            is_open: true,
        })
    }

    /// Operations that were sent and not answered.
    pub(super) fn in_flight(&self) -> usize {
        self.operations_left
    }

    /// Whether more replies are due.
    pub(super) fn is_waiting(&self) -> bool {
        self.is_open && self.requests_left > 0
    }

    /// Sends the next batch, if there is one.
    pub(super) fn begin(&mut self, run: &mut Run) {
        let operations = run.take(self.depth);
        if operations == 0 {
            return;
        }
        self.batch_len = self.requests.fill(operations, &mut run.keys);
        self.requests_left = self.requests.requests();
        self.operations_left = operations;
        self.answered[..self.requests_left].fill(false);
        self.sent = 0;
        self.began = Instant::now();
        self.send(run);
    }

    /// Sends and reads as much as possible without blocking. `ends`: the server has closed the connection, or will send no
    /// more.
    pub(super) fn advance(&mut self, run: &mut Run, ends: bool) {
        self.send(run);
        while self.is_waiting() {
            if self.filled == self.received.len() {
                if self.filled >= REPLY_BYTES_MAX {
                    return self.close(run, "a reply of more than 64 MiB");
                }
                self.received.resize(2 * self.filled, 0);
            }
            let room = self.received.len() - self.filled;
            match self.stream.read(&mut self.received[self.filled..]) {
                Ok(0) => return self.close(run, "the server closed the connection"),
                Ok(count) => {
                    self.filled += count;
                    self.read_replies(run);
                    // A short read: the socket is empty. It will report new data, but not its end a second time.
                    if count < room && !ends {
                        return;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return self.close(run, &error.to_string()),
            }
        }
    }

    fn send(&mut self, run: &mut Run) {
        while self.is_open && self.sent < self.batch_len {
            match self.stream.write(&self.requests.bytes()[self.sent..self.batch_len]) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => self.close(run, &error.to_string()),
            }
        }
    }

    fn read_replies(&mut self, run: &mut Run) {
        // Taken out so that a reply can borrow from it while its request is settled.
        let mut received = mem::take(&mut self.received);
        let (mut at, before) = (0, self.operations_left);
        let mut outcome = Ok(());
        while self.requests_left > 0 && outcome.is_ok() {
            match self.reader.read(&received[at..self.filled]) {
                Ok(None) => break,
                Ok(Some(reply)) => {
                    at += reply.len;
                    outcome = self.settle(&reply, run);
                }
                Err(NoReply) => outcome = Err("what the server sent is no reply"),
            }
        }
        if self.operations_left < before {
            run.record(Instant::now(), self.began, before - self.operations_left);
        }
        received.copy_within(at..self.filled, 0);
        self.filled -= at;
        self.received = received;
        if self.requests_left == 0 && self.filled > 0 && outcome.is_ok() {
            outcome = Err("more replies than requests");
        }
        match outcome {
            Err(reason) => self.close(run, reason),
            Ok(()) if self.requests_left == 0 => self.begin(run),
            Ok(()) => {}
        }
    }

    /// Counts the operations that a reply answers. An error ends the connection.
    fn settle(&mut self, reply: &Reply<'_>, run: &mut Run) -> Result<(), &'static str> {
        let place = match reply.msgid {
            Some(msgid) => self.requests.place_of(msgid).ok_or("a reply to no request")?,
            None => self.requests.requests() - self.requests_left,
        };
        if mem::replace(&mut self.answered[place], true) {
            return Err("a second reply to one request");
        }
        let operations = self.requests.operations_of(place);
        self.requests_left -= 1;
        self.operations_left -= operations;
        match reply.answer {
            Answer::Given { right, wrong } if right + wrong == operations => {
                run.report.operations += right as u64;
                if wrong > 0 {
                    run.count_errors(wrong, || "a value that can't be".to_owned());
                }
            }
            Answer::Given { .. } => run.count_errors(operations, || "not as many results as increments".to_owned()),
            Answer::Refused(text) => {
                run.count_errors(operations, || String::from_utf8_lossy(text).into_owned());
                if self.is_session {
                    return Err("a session can't go on after a refused batch");
                }
            }
        }
        Ok(())
    }

    fn close(&mut self, run: &mut Run, reason: &str) {
        self.is_open = false;
        run.note(|| reason.to_owned());
    }
}
