//! What the kernel knows of the other end of a TCP connection.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

/// What was sent, and what came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acknowledged {
    /// Something was given to the kernel that the peer has not acknowledged.
    pub outstanding: bool,
    /// It was sent more than once, or the peer was asked for room, and nothing was heard since.
    pub asked_again: bool,
    /// Since the peer acknowledged anything, be it the same again.
    pub silence: Duration,
}

/// Asks for it. One system call.
///
/// # Errors
/// No TCP socket.
pub fn acknowledged(socket: &impl AsFd) -> io::Result<Acknowledged> {
    // SAFETY: plain numbers, of which every value is valid, zero included.
    #[allow(unsafe_code)]
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).unwrap_or_default();
    // SAFETY: the kernel writes at most `length` bytes, the size of the value; what an older one does not write stays zero.
    #[allow(unsafe_code)]
    let outcome = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    if outcome != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Acknowledged {
        outstanding: info.tcpi_unacked > 0 || info.tcpi_notsent_bytes > 0,
        asked_again: info.tcpi_retransmits > 0 || info.tcpi_probes > 0,
        silence: Duration::from_millis(info.tcpi_last_ack_recv.into()),
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn what_is_read_or_kept_by_the_peer_is_acknowledged_and_what_finds_no_room_is_outstanding() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut other, _) = listener.accept().unwrap();
        one.write_all(b"there").unwrap();
        other.read_exact(&mut [0; 5]).unwrap();
        let known = acknowledged(&one).unwrap();
        assert!(!known.asked_again, "{known:?}");

        one.set_nonblocking(true).unwrap();
        while one.write(&[0; 65536]).is_ok() {}
        assert!(acknowledged(&one).unwrap().outstanding);
    }

    #[test]
    fn other_sockets_are_refused() {
        let (one, _other) = UnixStream::pair().unwrap();
        assert!(acknowledged(&one).is_err());
    }
}
