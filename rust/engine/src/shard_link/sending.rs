//! What a link writes: greetings, batches and calls, in their order.

use super::batches::Batch;
use super::calls::Call;
use super::queue::Entry;
use super::session::RETIRED_MAX;
use super::{BATCH, HELLO, ShardLink, Stage};
use crate::wire::msgpack_rpc as rpc;
use crate::wire::request::{Level, SessionId};

impl<T> ShardLink<T> {
    /// Appends what may be written now. Once a turn of the loop, and after `feed` and `tick`.
    pub fn flush(&mut self, out: &mut Vec<u8>) {
        match self.stage {
            Stage::Down | Stage::Greeting(_) => {}
            Stage::Greet(session) => {
                self.stage = Stage::Greeting(session);
                self.write_hello(session, out);
            }
            Stage::Ready => {
                let was_idle = !self.is_waiting();
                let before = out.len();
                self.write_housekeeping(out);
                self.write_requests(out);
                if was_idle && out.len() > before {
                    self.heard_at_ms = self.now_ms;
                }
                self.check();
            }
        }
    }

    fn write_hello(&self, session: SessionId, out: &mut Vec<u8>) {
        out.extend_from_slice(&[0x94, 0x00]);
        rpc::write_u64(out, u64::from(HELLO));
        rpc::write_str(out, "hello");
        rpc::write_array_len(out, 1);
        let (token, shard) = (&self.settings.token, &self.settings.passage_to);
        rpc::write_map_len(out, 2 + usize::from(token.is_some()) + usize::from(shard.is_some()));
        rpc::write_str(out, "client");
        rpc::write_str(out, &self.settings.client);
        rpc::write_str(out, "session");
        rpc::write_bin(out, &session.0);
        if let Some(token) = token {
            rpc::write_str(out, "token");
            rpc::write_bin(out, token);
        }
        if let Some(shard) = shard {
            rpc::write_str(out, "shard");
            rpc::write_str(out, shard);
        }
    }

    /// Goodbyes to sessions that have ended, and the question for what is durable.
    fn write_housekeeping(&mut self, out: &mut Vec<u8>) {
        for session in self.session.ended.drain(..) {
            write_goodbye(session, out);
        }
        if self.barrier.is_none() && self.is_confirmation_due() {
            self.barrier = Some(self.session.acknowledged());
            self.confirming.iter_mut().for_each(|one| one.is_asked = true);
            self.write_hello(self.session.id, out);
        }
    }

    fn is_confirmation_due(&self) -> bool {
        if self.now_ms < self.confirm_not_before_ms {
            return false;
        }
        let many = self.session.unconfirmed_operations() >= self.settings.unconfirmed_operations_max / 2;
        !self.confirming.is_empty()
            || (self.session.is_unconfirmed()
                && (many || self.session.retired.len() >= RETIRED_MAX / 2 || self.now_ms >= self.confirm_at_ms))
    }

    /// Do increments wait for company?
    pub(super) fn is_holding(&self) -> bool {
        let all = self.settings.gather_operations_max;
        let full = |level| if level == Level::Durable { self.gather_full } else { all };
        self.settings.gather_ms > 0 && self.session.in_flight > 0 && self.queue.is_gathering(self.now_ms, full)
    }

    fn write_requests(&mut self, out: &mut Vec<u8>) {
        self.session.prepare(&mut self.queue);
        let is_full = self.session.unconfirmed_operations() >= self.settings.unconfirmed_operations_max;
        let is_paused = self.is_paused() || is_full;
        // After a pause one batch finds out whether the shard takes them again.
        let in_flight_max = if self.refusals > 0 { 1 } else { self.settings.batches_in_flight_max };
        // First what was sent before, in its old order.
        loop {
            let batch = self.session.again_order().filter(|_| !is_paused);
            let call = self.calls.again_order(self.now_ms);
            if let Some(batch) = batch
                && call.is_none_or(|call| batch < call)
            {
                if self.session.in_flight >= in_flight_max {
                    return;
                }
                self.write_batch_again(out);
            } else if call.is_some() {
                if let Some(call) = self.calls.take_again(self.now_ms) {
                    self.session.statistics.calls_resent += 1;
                    self.calls.launch(call, out);
                }
            } else {
                break;
            }
        }
        if is_paused || self.settings.calls_overtake {
            for call in self.queue.take_calls() {
                self.launch_call(call, out);
            }
        }
        loop {
            match self.queue.front() {
                Some(Entry::Batch(batch)) => {
                    let is_full = self.session.in_flight >= in_flight_max;
                    if is_paused || is_full || self.session.is_blocked(batch.count) || self.is_holding() {
                        return;
                    }
                }
                Some(Entry::Call(_)) => {}
                None => return,
            }
            match self.queue.pop_front() {
                Some(Entry::Batch(batch)) => self.launch_batch(batch, out),
                Some(Entry::Call(call)) => self.launch_call(call, out),
                None => return,
            }
        }
    }

    fn launch_call(&mut self, mut call: Call<T>, out: &mut Vec<u8>) {
        self.order += 1;
        call.order = self.order;
        self.calls.launch(call, out);
    }

    fn launch_batch(&mut self, mut batch: Batch<T>, out: &mut Vec<u8>) {
        self.order += 1;
        batch.order = self.order;
        let (session, acked) = (self.session.id, self.session.acked_through);
        if let Some((batch, serial)) = self.session.launch(batch, self.now_us) {
            write_batch(batch, session, acked, BATCH | serial, out);
        }
    }

    fn write_batch_again(&mut self, out: &mut Vec<u8>) {
        let (session, acked) = (self.session.id, self.session.acked_through);
        if let Some((batch, serial)) = self.session.launch_again(self.now_us) {
            write_batch(batch, session, acked, BATCH | serial, out);
        }
    }
}

/// `[0, msgid, "apply", [session, first_sequence, acked_through, items, level]]`
fn write_batch<T>(batch: &Batch<T>, session: SessionId, acked_through: u64, msgid: u32, out: &mut Vec<u8>) {
    out.reserve(batch.items.len() + 80);
    out.extend_from_slice(&[0x94, 0x00]);
    rpc::write_u64(out, u64::from(msgid));
    rpc::write_str(out, "apply");
    rpc::write_array_len(out, 5);
    rpc::write_bin(out, &session.0);
    rpc::write_u64(out, batch.first);
    rpc::write_u64(out, acked_through);
    rpc::write_array_len(out, batch.count);
    out.extend_from_slice(&batch.items);
    rpc::write_str(out, batch.level.name());
}

/// `[2, "bye", [session]]`
pub(super) fn write_goodbye(session: SessionId, out: &mut Vec<u8>) {
    out.extend_from_slice(&[0x93, 0x02]);
    rpc::write_str(out, "bye");
    rpc::write_array_len(out, 1);
    rpc::write_bin(out, &session.0);
}
