//! What befalls the link, its connection and its shard.

use super::*;

impl World {
    /// The connection ends. What is on its way to the shard may arrive in part, and late.
    pub(super) fn cut(&mut self) {
        let Some(mut connection) = self.connection.take() else { return };
        let arriving = self.a_part_of(connection.to_shard.len());
        connection.to_shard.truncate(arriving);
        self.late.push(connection);
        self.lose();
    }

    pub(super) fn lose(&mut self) {
        let Self { link, asked, era, .. } = self;
        link.lost(&mut |operation, outcome| tell(asked, operation, outcome, *era));
    }

    pub(super) fn deliver_late(&mut self) {
        if self.late.is_empty() {
            return;
        }
        let index = self.random.below(self.late.len());
        let mut connection = self.late.swap_remove(index);
        let length = self.a_part_of(connection.to_shard.len());
        self.carry(&mut connection, length);
        if connection.to_shard.is_empty() {
            self.shard.disconnect(connection.slot);
        } else {
            self.late.push(connection);
        }
    }

    /// Somebody between them answers the next request with a refusal: it never reaches the shard.
    pub(super) fn refuse_at_the_door(&mut self) {
        const REFUSALS: [ErrorCode; 4] =
            [ErrorCode::Overloaded, ErrorCode::ReadOnly, ErrorCode::TooLarge, ErrorCode::Unavailable];
        let code = REFUSALS[self.random.below(REFUSALS.len())];
        self.flush();
        let Some(connection) = &mut self.connection else { return };
        let bytes = connection.to_shard.make_contiguous();
        // Only if it begins with a whole request: the rest of one that was cut can't be told from it.
        let mut rest = &bytes[..];
        let Ok(Value::Array(frame)) = rmpv::decode::read_value(&mut rest) else { return };
        let [kind, msgid, method, _] = frame.as_slice() else { return };
        let (Some(0), Some(msgid), Some("apply" | "incr")) = (kind.as_u64(), msgid.as_u64(), method.as_str()) else {
            return;
        };
        let length = bytes.len() - rest.len();
        connection.to_shard.drain(..length);
        // Behind what the shard has said, which may have been cut.
        let mut reply = Vec::new();
        rpc::reply_error(&mut reply, u32::try_from(msgid).expect("it is one of the link's"), code, code.meaning());
        connection.to_link.extend(reply);
    }

    pub(super) fn fail_disk(&mut self) {
        self.files.set_faults(Faults { fail: (0, u64::MAX), dead_from: None });
        self.failing_until_ms = self.now_ms + self.random_below(300);
    }

    /// Its process ends, with the machine or alone, and another one recovers what is on disk.
    pub(super) fn restart(&mut self, power_fails: bool) {
        self.connection = None;
        self.late.clear();
        if power_fails {
            self.files.crash();
        } else {
            self.files.kill();
        }
        self.failing_until_ms = 0;
        self.shard = open(&self.files, &self.clock, self.era);
        self.lose();
    }

    /// Another shard takes its place, as after a restore: it knows none of the sessions and none of the ids.
    pub(super) fn replace(&mut self) {
        self.restart(true);
        let held = self.held();
        add(&mut self.held_before, &held);
        self.files.kill();
        self.era += 1;
        self.shard = open(&self.files, &self.clock, self.era);
    }
}
