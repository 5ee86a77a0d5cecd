//! The system calls that no crate wraps safely. The only `unsafe` code of the project, under 100
//! lines, so that it can be read in one sitting. Not a home for anything that rustix or socket2 offer.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Bytes that were written to this TCP socket and that its peer has not acknowledged yet (`SIOCOUTQ`).
///
/// # Errors
/// What the kernel answers: `ENOTTY` or `EINVAL` when this is no TCP socket, or one that listens.
pub fn unacknowledged(socket: impl AsFd) -> io::Result<u32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the descriptor is open for the length of the call (it is borrowed), and TIOCOUTQ, which
    // is SIOCOUTQ on Linux, writes exactly one c_int to the pointer it is given.
    let answer = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &mut bytes) };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(u32::try_from(bytes).unwrap_or(0))
}

/// Lets `connect` choose the port of a socket that was bound to an address with port 0
/// (`IP_BIND_ADDRESS_NO_PORT`): a port is then unique per destination and not per machine.
///
/// # Errors
/// What the kernel answers.
pub fn bind_address_no_port(socket: impl AsFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is borrowed, hence open; the pointer and the length describe one c_int
    // that lives until the call returns.
    let answer = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            libc::socklen_t::try_from(size_of_val(&on)).unwrap_or(0),
        )
    };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Gives memory that was freed back to the system. glibc keeps it otherwise: reading 50 000 services left
/// 242 MB resident where 60 were in use. Takes some milliseconds.
pub fn trim_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim has no precondition; it locks each arena while it walks it.
    unsafe {
        libc::malloc_trim(0);
    }
}
