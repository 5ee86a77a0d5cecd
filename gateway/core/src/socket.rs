//! Opens sockets with the gateway's options and classifies kernel errors. Nothing here blocks.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use crate::config::settings::{Bind, Sockets, Tcp};

/// Milliseconds since this process started, for deadlines that outlive a task.
pub type Millis = u64;

/// Returns the current time in [`Millis`].
#[must_use]
pub fn now() -> Millis {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed().as_millis().try_into().unwrap_or(Millis::MAX)
}

/// Opens a listening socket. Accepted connections inherit its options on Linux, which saves five system calls per
/// connection. Several workers listen on an address that is bound at start; one that a binding names has one socket,
/// and needs no interface that has it.
///
/// # Errors
/// The kernel's error, usually that the address is in use or not local.
pub fn listen(bind: &Bind, address: SocketAddr, tcp: &Tcp) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(bind.ipv6_only)?;
    }
    match bind.sockets {
        Sockets::Address(_) => socket.set_reuse_port(true)?,
        Sockets::Transparent(_) => {
            socket.set_reuse_port(true)?;
            be_transparent(&socket, address)?;
        }
        Sockets::Ports(..) => {}
        Sockets::Virtual if address.is_ipv4() => socket.set_freebind_v4(true)?,
        Sockets::Virtual => socket.set_freebind_v6(true)?,
    }
    set_buffers(&socket, tcp)?;
    socket.set_tcp_nodelay(tcp.nodelay)?;
    keep_alive(&socket, tcp)?;
    socket.bind(&address.into())?;
    socket.listen(i32::try_from(bind.backlog).unwrap_or(i32::MAX))?;
    Ok(socket.into())
}

/// Lets a listening socket accept connections to addresses that are not this machine's. For both families: an IPv6
/// socket may accept IPv4.
fn be_transparent(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    if address.is_ipv6() {
        socket.set_ip_transparent_v6(true)?;
    }
    socket.set_ip_transparent_v4(true)
}

/// Returns the address that a client dialled before netfilter redirected its connection to this socket; none if it
/// did not.
pub(crate) fn original_destination(socket: impl AsFd, local: SocketAddr) -> Option<SocketAddr> {
    let socket = SockRef::from(&socket);
    // An IPv6 socket may have an IPv4 connection.
    let original = match canonical(local) {
        SocketAddr::V4(_) => socket.original_dst_v4(),
        SocketAddr::V6(_) => socket.original_dst_v6(),
    };
    // Without a record of connection tracking, nothing has redirected it.
    let original = original.ok().and_then(|address| address.as_socket()).map(canonical);
    original.filter(|original| *original != canonical(local))
}

/// Fails if the address is already in use: reuse-port sockets would silently share connections with another process of
/// the same user.
pub(crate) fn check_free(bind: &Bind, address: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(bind.ipv6_only)?;
    }
    socket.bind(&address.into())
}

/// Opens a socket for connecting to an endpoint. Keepalive is set later: it takes four system calls, and most
/// connections end before it matters.
pub(crate) fn upstream(to: SocketAddr, from: Option<IpAddr>, tcp: &Tcp) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    set_buffers(&socket, tcp)?;
    if tcp.nodelay {
        socket.set_tcp_nodelay(true)?;
    }
    if let Some(from) = from {
        isthmus_sys::bind_address_no_port(&socket)?;
        socket.bind(&SocketAddr::new(from, 0).into())?;
    }
    Ok(socket)
}

fn set_buffers(socket: &Socket, tcp: &Tcp) -> io::Result<()> {
    if let Some(size) = tcp.receive_buffer {
        socket.set_recv_buffer_size(size)?;
    }
    if let Some(size) = tcp.send_buffer {
        socket.set_send_buffer_size(size)?;
    }
    Ok(())
}

/// Enables TCP keepalive as configured.
pub(crate) fn keep_alive<'s>(socket: impl Into<SockRef<'s>>, tcp: &Tcp) -> io::Result<()> {
    let Some(idle) = tcp.keepalive_idle else { return Ok(()) };
    let keepalive = TcpKeepalive::new()
        .with_time(idle)
        .with_interval(tcp.keepalive_interval)
        .with_retries(tcp.keepalive_probes);
    socket.into().set_tcp_keepalive(&keepalive)
}

/// Likewise for a connection's server, which is served without it, too.
pub(crate) fn keep_alive_or_say<'s>(socket: impl Into<SockRef<'s>>, tcp: &Tcp, conn: u64) {
    if let Err(error) = keep_alive(socket, tcp) {
        tracing::debug!(conn, %error, "cannot set keepalive");
    }
}

/// Makes the next close send a reset.
pub fn reset_on_close(socket: impl AsFd) {
    if let Err(error) = SockRef::from(&socket).set_linger(Some(Duration::ZERO)) {
        tracing::debug!(%error, "cannot set SO_LINGER");
    }
}

/// Whether a connection has failed (its peer reset it), even if that was not read yet.
pub(crate) fn has_failed(socket: impl AsFd) -> bool {
    let mut asked = [PollFd::new(&socket, PollFlags::empty())];
    poll(&mut asked, Some(&Timespec::default())).is_ok()
        && asked.iter().any(|answer| answer.revents().contains(PollFlags::ERR))
}

/// Whether this machine lacks a resource: no endpoint is at fault, and another would fail, too.
pub(crate) fn is_local_resource(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw_os_error),
        Some(Errno::MFILE | Errno::NFILE | Errno::ADDRNOTAVAIL | Errno::NOBUFS | Errno::NOMEM)
    )
}

/// Converts an IPv4-mapped address to IPv4, for comparing, logging and matching.
#[must_use]
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
