//! Network namespaces: two joined by a veth pair, or several by a bridge, and threads inside them. Requires
//! root.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A namespace; dropping it removes it and all of its links.
#[derive(Debug)]
pub struct Namespace(String);

impl Namespace {
    /// Creates a namespace with a unique name, or returns the error.
    pub fn new() -> Result<Namespace, String> {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let name = format!("isthmus-{}-{}", std::process::id(), MADE.fetch_add(1, Relaxed));
        ip(&format!("netns add {name}"))?;
        let namespace = Namespace(name);
        ip(&format!("-n {} link set lo up", namespace.0))?;
        Ok(namespace)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _gone = ip(&format!("netns delete {}", self.0));
    }
}

/// Two namespaces joined by a veth pair, until dropped.
#[derive(Debug)]
pub struct Pair {
    /// The gateway's namespace: 10.77.0.1, and 10.77.0.3 to 10.77.0.5.
    pub near: String,
    /// The endpoint's namespace: 10.77.0.2.
    pub far: String,
    _both: [Namespace; 2],
}

/// Namespaces joined by a bridge, until dropped.
#[derive(Debug)]
pub struct Star {
    bridge: Namespace,
    legs: Vec<Namespace>,
}

/// Address of the near end.
pub const NEAR: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// Address of the far end.
pub const FAR: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);

impl Pair {
    /// Creates the pair, or returns the error.
    pub fn new() -> Result<Pair, String> {
        let both = [Namespace::new()?, Namespace::new()?];
        let [near, far] = [both[0].name().to_owned(), both[1].name().to_owned()];
        ip(&format!("-n {near} link add veth0 type veth peer name veth0 netns {far}"))?;
        for extra in [1, 3, 4, 5] {
            ip(&format!("-n {near} addr add 10.77.0.{extra}/24 dev veth0"))?;
        }
        ip(&format!("-n {far} addr add {FAR}/24 dev veth0"))?;
        for name in [&near, &far] {
            ip(&format!("-n {name} link set veth0 up"))?;
        }
        Ok(Pair { near, far, _both: both })
    }

    /// Sets a kernel parameter of a namespace.
    pub fn set(&self, name: &str, parameter: &str, value: &str) {
        let path = format!("/proc/sys/{}", parameter.replace('.', "/"));
        let value = value.to_owned();
        inside(name, move || std::fs::write(path, value).unwrap());
    }
}

impl Star {
    /// Creates a star with this many legs, or returns the error.
    pub fn new(legs: usize) -> Result<Star, String> {
        let bridge = Namespace::new()?;
        let hub = bridge.name();
        ip(&format!("-n {hub} link add hub type bridge"))?;
        ip(&format!("-n {hub} link set hub up"))?;
        let legs: Result<Vec<_>, String> = (1..=legs)
            .map(|number| {
                let leg = Namespace::new()?;
                let name = leg.name();
                ip(&format!("-n {hub} link add leg{number} type veth peer name veth0 netns {name}"))?;
                ip(&format!("-n {hub} link set leg{number} master hub up"))?;
                ip(&format!("-n {name} link set veth0 up"))?;
                Ok(leg)
            })
            .collect();
        let star = Star { legs: legs?, bridge };
        for leg in 1..=star.legs.len() {
            star.adopt(leg, Star::address(leg))?;
        }
        Ok(star)
    }

    /// The first address of a leg; legs are numbered from 1.
    #[must_use]
    pub fn address(leg: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, 78, leg as u8, 1)
    }

    /// The namespace of a leg.
    #[must_use]
    pub fn leg(&self, leg: usize) -> &str {
        self.legs[leg - 1].name()
    }

    /// Adds an address to a leg.
    pub fn adopt(&self, leg: usize, address: Ipv4Addr) -> Result<(), String> {
        ip(&format!("-n {} addr add {address}/16 dev veth0", self.leg(leg)))
    }

    /// Disconnects a leg.
    pub fn cut(&self, leg: usize) -> Result<(), String> {
        ip(&format!("-n {} link set leg{leg} down", self.bridge.name()))
    }

    /// Reconnects a leg.
    pub fn mend(&self, leg: usize) -> Result<(), String> {
        ip(&format!("-n {} link set leg{leg} up", self.bridge.name()))
    }

    /// Moves the address of a disconnected leg to another leg, and updates all neighbour tables.
    pub fn usurp(&self, leg: usize, of: usize) -> Result<(), String> {
        self.cut(of)?;
        self.adopt(leg, Star::address(of))?;
        self.look_around()
    }

    /// Reverts [`Star::usurp`].
    pub fn restore(&self, leg: usize, of: usize) -> Result<(), String> {
        ip(&format!("-n {} addr del {}/16 dev veth0", self.leg(leg), Star::address(of)))?;
        self.mend(of)?;
        self.look_around()
    }

    /// Flushes all neighbour tables.
    fn look_around(&self) -> Result<(), String> {
        self.legs.iter().try_for_each(|leg| ip(&format!("-n {} neigh flush all", leg.name())))
    }
}

/// Runs the `ip` command.
pub fn ip(arguments: &str) -> Result<(), String> {
    let output =
        Command::new("ip").args(arguments.split(' ')).output().map_err(|error| format!("ip: {error}"))?;
    let error = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("ip {arguments}: {}", error.trim())) }
}

/// Runs a closure on a thread inside a namespace. Its sockets stay in the namespace.
pub fn inside<T: Send + 'static>(name: &str, run: impl FnOnce() -> T + Send + 'static) -> T {
    let file = File::open(format!("/run/netns/{name}")).unwrap();
    let thread = thread::spawn(move || {
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        run()
    });
    thread.join().unwrap()
}
