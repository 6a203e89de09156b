//! A bare server of constant replies: its throughput is the load generator's own ceiling.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use rustix::event::{Timespec, epoll};

use super::ConstantReplies;

const CHECK_INTERVAL: Duration = Duration::from_millis(100);
const RECEIVE_BYTES: usize = 256 << 10;
/// The listener's token.
const LISTENER: u64 = u64::MAX;

/// Serves on the calling thread until `keep_going`, called about every 100 ms, returns false.
///
/// # Errors
///
/// The listener failed, or the system is out of descriptors.
pub fn serve_constant_replies(listener: &TcpListener, keep_going: &mut dyn FnMut() -> bool) -> io::Result<()> {
    let timeout = Timespec::try_from(CHECK_INTERVAL).map_err(io::Error::other)?;
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&poll, listener, epoll::EventData::new_u64(LISTENER), epoll::EventFlags::IN)?;
    let mut connections: Vec<Option<(TcpStream, ConstantReplies)>> = Vec::new();
    let mut events = Vec::with_capacity(256);
    let (mut received, mut replies) = (vec![0; RECEIVE_BYTES], Vec::new());
    while keep_going() {
        events.clear();
        match epoll::wait(&poll, rustix::buffer::spare_capacity(&mut events), Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in &events {
            if event.data.u64() == LISTENER {
                let (stream, _) = listener.accept()?;
                stream.set_nodelay(true)?;
                let place = epoll::EventData::new_u64(connections.len() as u64);
                epoll::add(&poll, &stream, place, epoll::EventFlags::IN)?;
                connections.push(Some((stream, ConstantReplies::default())));
                continue;
            }
            let Some(place) = usize::try_from(event.data.u64()).ok().and_then(|at| connections.get_mut(at)) else {
                continue;
            };
            let Some((stream, constant)) = place else { continue };
            replies.clear();
            if serve(stream, constant, &mut received, &mut replies).is_err() {
                *place = None;
            }
        }
    }
    Ok(())
}

/// Serves one chunk. The read doesn't block, because there is data. The write may, because clients read their replies.
fn serve(
    stream: &mut TcpStream,
    constant: &mut ConstantReplies,
    received: &mut [u8],
    replies: &mut Vec<u8>,
) -> io::Result<()> {
    let count = stream.read(received)?;
    if count == 0 {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    constant.feed(&received[..count], replies).map_err(io::Error::other)?;
    stream.write_all(replies)
}
