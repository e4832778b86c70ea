//! Addresses on the loopback network, and the sockets bound to them.
//!
//! Every (instance, called service) has an address of its own in 127.64.0.0/10, so that a call's destination
//! says who is meant and the declared port can be used as it is. Holds: an address is given to one service of
//! one instance at a time in this agent, and was free on the host when it was given. Does not: serve.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;

use socket2::{Domain, Socket, Type};

/// Connections the kernel keeps for a proxy that is being replaced.
const BACKLOG: i32 = 4096;

const FIRST: u32 = u32::from_be_bytes([127, 64, 0, 0]);
const SIZE: u32 = 1 << 22;

/// How a socket is prepared for its engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Bound and listening: the descriptor is handed to the proxy.
    Listen,
    /// Bound only, so that nobody else takes the address: the engine binds it again with SO_REUSEPORT.
    Reserve,
}

/// Binds `address`; port 0 takes an ephemeral one. Returns the socket and what it is bound to.
///
/// # Errors
/// The address is in use or not of this host, or the port needs a privilege.
pub fn bind(address: SocketAddr, mode: Mode) -> io::Result<(OwnedFd, SocketAddr)> {
    let plain = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    plain.set_reuse_address(true)?;
    if mode == Mode::Listen {
        plain.bind(&address.into())?;
        plain.listen(BACKLOG)?;
        plain.set_nonblocking(true)?;
        let bound = local(&plain)?;
        return Ok((plain.into(), bound));
    }
    // SO_REUSEPORT would let two agents of one user share an address without noticing. So look first without it,
    // with SO_REUSEADDR off: then a socket that is bound but not listening counts as in use as well.
    plain.set_reuse_address(false)?;
    plain.bind(&address.into())?;
    let bound = local(&plain)?;
    drop(plain);
    Ok((reserve(bound)?, bound))
}

fn reserve(address: SocketAddr) -> io::Result<OwnedFd> {
    let reserved = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    reserved.set_reuse_address(true)?;
    reserved.set_reuse_port(true)?;
    reserved.bind(&address.into())?;
    Ok(reserved.into())
}

/// Binds what an earlier agent had bound; an engine that binds by itself may serve there.
///
/// # Errors
/// As [`bind`].
pub fn bind_again(address: SocketAddr, mode: Mode) -> io::Result<OwnedFd> {
    match mode {
        Mode::Listen => bind(address, mode).map(|(fd, _)| fd),
        Mode::Reserve => reserve(address),
    }
}

/// Binds the first free port of `range`, looking from its `seed`-th on.
///
/// # Errors
/// As [`bind`]; [`io::ErrorKind::AddrInUse`] if none is free.
pub fn bind_in(
    ip: IpAddr,
    range: &RangeInclusive<u16>,
    seed: u64,
    mode: Mode,
) -> io::Result<(OwnedFd, SocketAddr)> {
    let skip = seed.checked_rem(range.len() as u64).and_then(|skip| usize::try_from(skip).ok()).unwrap_or(0);
    for port in range.clone().cycle().skip(skip).take(range.len()) {
        match bind((ip, port).into(), mode) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            outcome => return outcome,
        }
    }
    Err(io::ErrorKind::AddrInUse.into())
}

fn local(socket: &Socket) -> io::Result<SocketAddr> {
    socket.local_addr()?.as_socket().ok_or_else(|| io::Error::other("not an IP socket"))
}

/// What a person can do about a failed [`bind`] of `address`.
pub fn explain(address: SocketAddr, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied if address.port() < 1024 => format!(
            "port {port} needs a privilege: run `sysctl net.ipv4.ip_unprivileged_port_start={port}` as root, or \
             declare a port from 1024",
            port = address.port()
        ),
        io::ErrorKind::AddrInUse => format!("{address} is in use by another process"),
        io::ErrorKind::AddrNotAvailable => format!("{} is not an address of this host", address.ip()),
        _ => format!("{address} cannot be bound: {error}"),
    }
}

/// The loopback addresses of one agent.
#[derive(Debug)]
pub struct Addresses {
    used: BTreeSet<Ipv4Addr>,
    next: u32,
}

impl Addresses {
    /// Starts looking at the `seed`-th address. Agents on one host should start at different places.
    pub fn new(seed: u64) -> Self {
        Self { used: BTreeSet::new(), next: (seed % u64::from(SIZE)) as u32 }
    }

    /// Takes the next address nobody here uses and that `try_bind` accepts; `preferred` is tried first.
    /// `try_bind` answers `None` if the address is taken. Gives up after 4,096 taken ones.
    pub fn allocate<T>(
        &mut self,
        preferred: Option<Ipv4Addr>,
        mut try_bind: impl FnMut(Ipv4Addr) -> Option<T>,
    ) -> Option<(Ipv4Addr, T)> {
        let start = self.next;
        let walk = (0..4096_u32).map(|n| Ipv4Addr::from(FIRST + (start + n) % SIZE));
        for address in preferred.filter(is_ours).into_iter().chain(walk) {
            // .0 and .255 look like networks and broadcasts to people and to some resolvers.
            if matches!(address.octets()[3], 0 | 255) || self.used.contains(&address) {
                continue;
            }
            if let Some(bound) = try_bind(address) {
                self.used.insert(address);
                if Some(address) != preferred {
                    self.next = (u32::from(address) - FIRST + 1) % SIZE;
                }
                return Some((address, bound));
            }
        }
        None
    }

    /// Takes an address that was given by an earlier agent.
    pub fn take(&mut self, address: Ipv4Addr) {
        self.used.insert(address);
    }

    /// Gives an address back.
    pub fn release(&mut self, address: Ipv4Addr) {
        self.used.remove(&address);
    }
}

fn is_ours(address: &Ipv4Addr) -> bool {
    (FIRST..FIRST + SIZE).contains(&u32::from(*address))
}

/// The address of this host on the route to `server`, without sending anything.
///
/// # Errors
/// There is no route.
pub fn route_to(server: SocketAddr) -> io::Result<IpAddr> {
    let any: SocketAddr = if server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
    let socket = std::net::UdpSocket::bind(any)?;
    socket.connect(server)?;
    Ok(socket.local_addr()?.ip())
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn addresses_are_distinct_ours_and_reused_after_release() {
        let mut addresses = Addresses::new(u64::from(SIZE) - 3);
        let mut seen = BTreeSet::new();
        for _ in 0..600 {
            let (address, ()) = addresses.allocate(None, |_| Some(())).unwrap();
            assert!(is_ours(&address) && !matches!(address.octets()[3], 0 | 255), "{address}");
            assert!(seen.insert(address), "{address} twice");
        }
        let some = *seen.iter().next().unwrap();
        let (other, ()) = addresses.allocate(Some(some), |_| Some(())).unwrap();
        assert_ne!(other, some, "still in use");
        addresses.release(some);
        assert_eq!(addresses.allocate(Some(some), |_| Some(())).unwrap().0, some);
        assert_eq!(
            addresses.allocate(Some(Ipv4Addr::new(10, 0, 0, 1)), |_| Some(())).map(|a| is_ours(&a.0)),
            Some(true)
        );
        assert!(addresses.allocate(None, |_| None::<()>).is_none(), "bounded");
    }

    #[test]
    fn an_address_another_process_uses_is_passed_over() {
        for mode in [Mode::Listen, Mode::Reserve] {
            let mut first = Addresses::new(77_000);
            let mut second = Addresses::new(77_000);
            let mut ports = (0_u16, 0_u16);
            let (one, held) = first
                .allocate(None, |ip| bind((ip, 0).into(), mode).ok().inspect(|(_, a)| ports.0 = a.port()))
                .unwrap();
            let (two, _also) = second
                .allocate(None, |ip| {
                    bind((ip, ports.0).into(), mode).ok().inspect(|(_, a)| ports.1 = a.port())
                })
                .unwrap();
            assert_eq!(ports.0, ports.1);
            assert_ne!(one, two, "{mode:?}");
            drop(held);
        }
    }

    #[test]
    fn a_listening_socket_takes_connections_before_anybody_accepts() {
        let (_fd, address) = bind(([127, 0, 0, 1], 0).into(), Mode::Listen).unwrap();
        TcpStream::connect(address).unwrap();
        let (_reserved, address) = bind(([127, 0, 0, 1], 0).into(), Mode::Reserve).unwrap();
        assert_eq!(TcpStream::connect(address).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn a_range_of_ports_is_used_up_and_not_left() {
        for mode in [Mode::Listen, Mode::Reserve] {
            let held = bind(([127, 0, 0, 1], 0).into(), mode).unwrap();
            let port = held.1.port().min(u16::MAX - 3);
            let range = port..=port + 3;
            let mut bound = Vec::new();
            let refused = loop {
                match bind_in(IpAddr::from([127, 0, 0, 1]), &range, bound.len() as u64 * 3, mode) {
                    Ok(one) => bound.push(one),
                    Err(error) => break error,
                }
            };
            assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
            let ports: BTreeSet<u16> = bound.iter().map(|(_, address)| address.port()).collect();
            assert!(ports.len() == bound.len() && ports.iter().all(|port| range.contains(port)), "{ports:?}");
            assert!(!ports.contains(&held.1.port()), "{mode:?}");
        }
    }

    #[test]
    fn failures_say_what_to_do() {
        let privileged: SocketAddr = ([127, 64, 0, 1], 80).into();
        let text = explain(privileged, &io::ErrorKind::PermissionDenied.into());
        assert!(text.contains("net.ipv4.ip_unprivileged_port_start=80"), "{text}");
        let (_fd, taken) = bind(([127, 0, 0, 1], 0).into(), Mode::Listen).unwrap();
        let error = bind(taken, Mode::Listen).unwrap_err();
        assert_eq!(explain(taken, &error), format!("{taken} is in use by another process"));
        assert_eq!(route_to(([127, 0, 0, 1], 7601).into()).unwrap(), IpAddr::from([127, 0, 0, 1]));
    }
}
