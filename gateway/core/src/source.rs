//! Who counts as one source: an IPv4 address or an IPv6 /64, within which hosts choose addresses freely.

use std::net::IpAddr;

/// The source that an address belongs to, as a number of its own.
pub(crate) fn source_of(address: IpAddr) -> u64 {
    match address.to_canonical() {
        // Distinct from every IPv6 network in use: 0::/8 is not assigned.
        IpAddr::V4(ip) => u64::from(ip.to_bits()) | 1 << 32,
        IpAddr::V6(ip) => u64::try_from(ip.to_bits() >> 64).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_is_an_ipv4_address_or_an_ipv6_network() {
        let of = |text: &str| source_of(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }
}
