//! Recognizes the gateway's own listening addresses, so that no endpoint leads back to it. Used for the file and for
//! every resolved address; virtual addresses and other gateways are not covered.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};

/// The addresses the gateway listens on. Look-ups cache which addresses are local: create a new value when the
/// machine's addresses may have changed.
#[derive(Debug, Default)]
pub struct Own {
    /// Sockets by port.
    sockets: HashMap<u16, Vec<Socket>>,
    local: HashMap<IpAddr, bool>,
}

#[derive(Clone, Debug)]
struct Socket {
    what: String,
    address: SocketAddr,
    ipv6_only: bool,
}

impl Own {
    /// Adds one address; `what` is for messages, such as `listener east-west`. Port 0 is ignored: add the bound
    /// address instead.
    pub fn add(&mut self, what: String, address: SocketAddr, ipv6_only: bool) {
        if address.port() != 0 {
            self.sockets.entry(address.port()).or_default().push(Socket { what, address, ipv6_only });
        }
    }

    /// Returns the own address that a connection to `target` would reach.
    pub fn reached_by(&mut self, target: SocketAddr) -> Option<&str> {
        let Own { sockets, local } = self;
        let mut same_port = sockets.get(&target.port())?.iter();
        same_port.find(|socket| socket.reached_by(target, local)).map(|socket| socket.what.as_str())
    }
}

impl Socket {
    fn reached_by(&self, target: SocketAddr, local: &mut HashMap<IpAddr, bool>) -> bool {
        let (own, ip) = (self.address.ip(), target.ip());
        // Connecting to 0.0.0.0 or [::] is connecting to loopback.
        own == ip
            || (own.is_unspecified() && self.hears(ip) && is_local(target, local))
            || (ip.is_unspecified() && own.is_loopback() && own.is_ipv4() == ip.is_ipv4())
    }

    /// Whether a socket on the unspecified address accepts connections to the family of `ip`.
    fn hears(&self, ip: IpAddr) -> bool {
        self.address.is_ipv4() == ip.is_ipv4() || (self.address.is_ipv6() && !self.ipv6_only)
    }
}

fn is_local(target: SocketAddr, known: &mut HashMap<IpAddr, bool>) -> bool {
    let ip = target.ip();
    if ip.is_loopback() || ip.is_unspecified() {
        return true;
    }
    // Only a local address can be bound, so binding asks the kernel without listing interfaces.
    *known.entry(ip).or_insert_with(|| {
        let mut any_port = target;
        any_port.set_port(0);
        UdpSocket::bind(any_port).is_ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reached(own: &str, ipv6_only: bool, target: &str) -> bool {
        let mut all = Own::default();
        all.add("listener".to_owned(), own.parse().unwrap(), ipv6_only);
        all.reached_by(target.parse().unwrap()).is_some()
    }

    #[test]
    fn own_matches_only_what_the_socket_receives() {
        assert!(reached("10.9.8.7:443", true, "10.9.8.7:443"));
        assert!(!reached("10.9.8.7:443", true, "10.9.8.7:444"));
        assert!(reached("0.0.0.0:443", true, "127.0.0.1:443"));
        assert!(reached("0.0.0.0:443", true, "127.1.2.3:443"));
        assert!(reached("0.0.0.0:443", true, "0.0.0.0:443"));
        assert!(reached("127.0.0.1:443", true, "0.0.0.0:443"));
        assert!(!reached("127.0.0.1:443", true, "127.0.0.2:443"));
        assert!(!reached("0.0.0.0:443", true, "192.0.2.1:443"), "documentation range: not this machine's");
        assert!(!reached("0.0.0.0:443", true, "[::1]:443"));
        assert!(!reached("[::]:443", true, "127.0.0.1:443"));
        assert!(reached("[::]:443", false, "127.0.0.1:443"));
        assert!(reached("[::]:443", true, "[::1]:443"));
        assert!(!reached("0.0.0.0:0", true, "127.0.0.1:0"));
    }
}
