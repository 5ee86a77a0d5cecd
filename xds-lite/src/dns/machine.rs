//! Whose address is this machine's.

use std::net::{IpAddr, Ipv6Addr, UdpSocket};

/// Any port: nothing is sent.
const PORT: u16 = 53;

/// Whether the machine has this address now. That it can be bound tells nothing where `ip_nonlocal_bind` is set; but from
/// an IPv4 address that is not this machine's nothing can be sent, and to an IPv6 address that is, the kernel sends from
/// the same one.
pub(super) fn has(ip: IpAddr) -> bool {
    let from = match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
    };
    let chosen = || {
        let socket = UdpSocket::bind((from, 0))?;
        socket.connect((ip, PORT))?;
        socket.local_addr()
    };
    let is_of_a_host = !ip.is_unspecified() && !ip.is_multicast();
    is_of_a_host && chosen().is_ok_and(|local| local.ip() == ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_has_its_own_addresses_alone() {
        assert!(has("127.0.0.1".parse().unwrap()) && has("127.9.9.9".parse().unwrap()));
        for other in ["192.0.2.1", "0.0.0.0", "::", "255.255.255.255", "2001:db8::1", "224.0.0.1", "ff02::1"]
        {
            assert!(!has(other.parse().unwrap()), "{other}");
        }
    }
}
