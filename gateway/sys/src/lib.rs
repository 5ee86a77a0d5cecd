//! Wraps the system calls that no crate wraps safely. This is the only `unsafe` code of the project and stays under
//! 100 lines. Calls that rustix or socket2 offer do not belong here.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Returns the bytes written to this TCP socket that its peer has not acknowledged yet (`SIOCOUTQ`).
///
/// # Errors
/// The kernel's error: `ENOTTY` or `EINVAL` if this is not a connected TCP socket.
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
/// The kernel's error.
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

/// Returns freed memory to the system. glibc keeps it otherwise: reading 50 000 services left
/// 242 MB resident where 60 were in use. Takes some milliseconds.
pub fn trim_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim has no precondition; it locks each arena while it walks it.
    unsafe {
        libc::malloc_trim(0);
    }
}
