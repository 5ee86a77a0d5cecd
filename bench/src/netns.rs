//! Unnamed network namespaces: each is removed with its value, or with this process however it ends, so that
//! the next run starts clean. They are configured with the `ip` command.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

/// A namespace with its loopback interface up.
#[derive(Debug)]
pub(crate) struct Namespace(File);

impl Namespace {
    /// # Errors
    /// Without `CAP_NET_ADMIN` and `CAP_SYS_ADMIN`, or without the `ip` command.
    pub(crate) fn new() -> io::Result<Self> {
        let made = thread::scope(|scope| {
            scope.spawn(|| unshare().and_then(|()| File::open("/proc/thread-self/ns/net"))).join()
        });
        let file = made.map_err(|_| io::Error::other("the thread that made a namespace panicked"))?;
        let namespace = Self(file.map_err(|error| {
            io::Error::new(error.kind(), format!("cannot create a network namespace: {error}; run as root"))
        })?);
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// Runs a closure on a thread inside the namespace. Its sockets and processes stay in the namespace.
    pub(crate) fn inside<T: Send>(&self, run: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        thread::scope(|scope| {
            let thread = scope.spawn(|| self.enter().and_then(|()| run()));
            thread.join().map_err(|_| io::Error::other("a thread inside a namespace panicked"))?
        })
    }

    /// Moves the calling thread into the namespace permanently.
    pub(crate) fn enter(&self) -> io::Result<()> {
        Ok(move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))?)
    }

    /// Runs `ip` inside the namespace; arguments are split at spaces.
    pub(crate) fn ip(&self, arguments: &str) -> io::Result<()> {
        self.inside(|| {
            let mut command = Command::new("ip");
            command.args(arguments.split(' ')).stdin(Stdio::null());
            let output = command.output().map_err(|error| {
                io::Error::new(error.kind(), format!("cannot run ip: {error}; install iproute2"))
            })?;
            let message = String::from_utf8_lossy(&output.stderr);
            if output.status.success() {
                return Ok(());
            }
            Err(io::Error::other(format!("ip {arguments}: {}", message.trim())))
        })
    }

    /// Path of the namespace for other programs of this user, while this value lives.
    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()).into()
    }
}

#[expect(deprecated, reason = "what made it so concerns the sharing of descriptors, which stays as it is")]
fn unshare() -> io::Result<()> {
    Ok(rustix::thread::unshare(UnshareFlags::NEWNET)?)
}

/// For tests: the value, or `None` with a printed reason if the privilege is missing and not required.
#[cfg(test)]
pub(crate) fn or_skip<T>(made: io::Result<T>) -> Option<T> {
    made.map_err(|why| {
        assert!(std::env::var_os("ISTHMUS_REQUIRE_PEERS").is_none(), "{why}");
        println!("SKIPPED: {why}");
    })
    .ok()
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn namespace_pair_is_an_isolated_network() {
        let pair = Namespace::new().and_then(|near| Ok((near, Namespace::new()?)));
        let Some((near, far)) = or_skip(pair) else { return };
        near.ip(&format!("link add v type veth peer name v netns {}", far.path().display())).unwrap();
        near.ip("addr add 10.78.0.1/24 dev v").unwrap();
        far.ip("addr add 10.78.0.2/24 dev v").unwrap();
        near.ip("link set v up").unwrap();
        far.ip("link set v up").unwrap();
        let listener = far.inside(|| TcpListener::bind("10.78.0.2:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let mut client = near.inside(|| TcpStream::connect(address)).unwrap();
        client.write_all(b"x").unwrap();
        let mut byte = [0];
        listener.accept().unwrap().0.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
        assert!(near.inside(|| TcpListener::bind("10.78.0.2:0")).is_err(), "not an address of this one");
        assert!(near.ip("link set nothing up").unwrap_err().to_string().contains("nothing"));
    }
}
