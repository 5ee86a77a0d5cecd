//! Two network namespaces joined by a veth pair, and threads that enter one. Only with root.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::process::Command;
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Two namespaces; they vanish with this.
#[derive(Debug)]
pub struct Pair {
    /// Where the gateway is: 10.77.0.1, and 10.77.0.3 to 10.77.0.5.
    pub near: String,
    /// Where the endpoint is: 10.77.0.2.
    pub far: String,
}

/// The near end.
pub const NEAR: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The far end.
pub const FAR: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);

impl Pair {
    /// Makes them, or says why it cannot.
    pub fn new() -> Result<Pair, String> {
        let own = std::process::id();
        let pair = Pair { near: format!("isthmus-n{own}"), far: format!("isthmus-f{own}") };
        let (near, far) = (&pair.near, &pair.far);
        ip(&format!("netns add {near}"))?;
        ip(&format!("netns add {far}"))?;
        ip(&format!("-n {near} link add veth0 type veth peer name veth0 netns {far}"))?;
        for extra in [1, 3, 4, 5] {
            ip(&format!("-n {near} addr add 10.77.0.{extra}/24 dev veth0"))?;
        }
        ip(&format!("-n {far} addr add {FAR}/24 dev veth0"))?;
        for name in [near, far] {
            ip(&format!("-n {name} link set lo up"))?;
            ip(&format!("-n {name} link set veth0 up"))?;
        }
        Ok(pair)
    }

    /// Sets a kernel parameter of a namespace.
    pub fn set(&self, name: &str, parameter: &str, value: &str) {
        let path = format!("/proc/sys/{}", parameter.replace('.', "/"));
        let value = value.to_owned();
        inside(name, move || std::fs::write(path, value).unwrap());
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for name in [&self.near, &self.far] {
            let _gone = ip(&format!("netns delete {name}"));
        }
    }
}

/// Runs the `ip` command.
pub fn ip(arguments: &str) -> Result<(), String> {
    let output =
        Command::new("ip").args(arguments.split(' ')).output().map_err(|error| format!("ip: {error}"))?;
    let error = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("ip {arguments}: {}", error.trim())) }
}

/// Runs something on a thread inside a namespace. Sockets made there stay there.
pub fn inside<T: Send + 'static>(name: &str, run: impl FnOnce() -> T + Send + 'static) -> T {
    let file = File::open(format!("/run/netns/{name}")).unwrap();
    let thread = thread::spawn(move || {
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        run()
    });
    thread.join().unwrap()
}
