//! Writes the nftables rules of `capture:`: one table of their own, which is replaced whole. What they do not send to the
//! gateway leaves this machine neither: TCP to a virtual address is reset, anything else to one is rejected.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use isthmus_core::config::settings::{Capture, Destination, Settings, Sockets};

/// The table.
pub(super) const TABLE: &str = "inet isthmus";

/// What captures the connections to virtual addresses.
#[derive(Debug)]
pub(super) struct Rules<'a> {
    capture: &'a Capture,
    families: Vec<Family>,
}

/// One family of addresses.
#[derive(Debug)]
struct Family {
    is_ipv4: bool,
    ranges: Vec<String>,
    /// The listener, and whether TPROXY sends connections there.
    listener: Option<(SocketAddr, bool)>,
    dns: Option<SocketAddr>,
}

/// Where connections are captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hook {
    /// Those of this machine.
    Output,
    /// Those of others that come through it.
    Prerouting,
}

impl<'a> Rules<'a> {
    /// The rules of these settings; none without `capture:`.
    pub(super) fn new(settings: &'a Settings) -> Option<Rules<'a>> {
        let capture = settings.live.capture.as_ref()?;
        let families = [true, false].map(|is_ipv4| Family {
            is_ipv4,
            ranges: capture
                .ranges
                .iter()
                .filter(|range| range.addr().is_ipv4() == is_ipv4)
                .map(ToString::to_string)
                .collect(),
            listener: listener(settings, is_ipv4),
            dns: capture.dns.iter().find(|server| server.is_ipv4() == is_ipv4).copied(),
        });
        Some(Rules { capture, families: families.into() })
    }

    /// Whether packets are marked and need routes.
    pub(super) fn has_tproxy(&self) -> bool {
        self.families.iter().any(|family| family.tproxy().is_some())
    }

    /// The commands that keep marked packets on this machine, each the arguments of `ip`: first those that may fail
    /// because there is nothing to remove.
    pub(super) fn routing(&self) -> (Vec<String>, Vec<String>) {
        let mark = self.capture.mark;
        let each = |command: &dyn Fn(&str, &str) -> String| {
            [("-4", "0.0.0.0/0"), ("-6", "::/0")].map(|(family, all)| command(family, all))
        };
        let removing = [
            each(&|family, _| format!("{family} rule del fwmark {mark} lookup {mark}")),
            each(&|family, _| format!("{family} route flush table {mark}")),
        ];
        let adding = [
            each(&|family, all| format!("{family} route replace local {all} dev lo table {mark}")),
            each(&|family, _| format!("{family} rule add fwmark {mark} lookup {mark}")),
        ];
        (removing.concat(), adding.concat())
    }

    /// The script for `nft -f`, which replaces the table at once.
    pub(super) fn script(&self) -> String {
        let mut script = removal();
        let mut line = |text: &str| {
            let _infallible = writeln!(script, "{text}");
        };
        line(&format!("table {TABLE} {{"));
        for family in self.families.iter().filter(|family| !family.ranges.is_empty()) {
            let (set, elements) = (family.set(), family.ranges.join(", "));
            let kind = if family.is_ipv4 { "ipv4_addr" } else { "ipv6_addr" };
            line(&format!("\tset {set} {{ type {kind}; flags interval; elements = {{ {elements} }}; }}"));
        }
        for hook in [Hook::Output, Hook::Prerouting] {
            self.translating(hook, &mut line);
            if self.has_tproxy() {
                self.marking(hook, &mut line);
            }
        }
        for hook in ["output", "forward"] {
            self.refusing(hook, &mut line);
        }
        line("}");
        script
    }

    /// Connections and queries whose destination is rewritten.
    fn translating(&self, hook: Hook, line: &mut impl FnMut(&str)) {
        let name = hook.name();
        line(&format!("\tchain {name} {{"));
        line(&format!("\t\ttype nat hook {name} priority -100; policy accept;"));
        self.exclude(hook, line);
        for family in &self.families {
            if let Some((listener, false)) = family.listener
                && !family.ranges.is_empty()
                && let Some(to) = hook.to(listener)
            {
                line(&format!("\t\t{} meta l4proto tcp {to}", family.is_virtual()));
            }
            if let Some(to) = family.dns.and_then(|server| hook.to(server)) {
                let family = if family.is_ipv4 { "ipv4" } else { "ipv6" };
                line(&format!("\t\tmeta nfproto {family} udp dport 53 {to}"));
                line(&format!("\t\tmeta nfproto {family} tcp dport 53 {to}"));
            }
        }
        line("\t}");
    }

    /// Connections that keep their destination, and are routed to this machine by a mark.
    fn marking(&self, hook: Hook, line: &mut impl FnMut(&str)) {
        let (name, mark) = (hook.name(), self.capture.mark);
        let kind = if hook == Hook::Output { "route" } else { "filter" };
        line(&format!("\tchain {name}_tproxy {{"));
        line(&format!("\t\ttype {kind} hook {name} priority -150; policy accept;"));
        self.exclude(hook, line);
        for family in &self.families {
            let Some(listener) = family.tproxy() else { continue };
            let marked = format!("\t\t{} meta l4proto tcp meta mark set {mark}", family.is_virtual());
            match hook {
                Hook::Output => line(&marked),
                Hook::Prerouting => {
                    let ip = if family.is_ipv4 { "ip" } else { "ip6" };
                    let to = match listener.ip() {
                        address if address.is_unspecified() => format!(":{}", listener.port()),
                        _ => listener.to_string(),
                    };
                    line(&format!("{marked} tproxy {ip} to {to} accept"));
                    // Without a socket of the listener the rule before does not apply.
                    line(&format!("\t\t{} meta l4proto tcp reject with tcp reset", family.is_virtual()));
                }
            }
        }
        line("\t}");
    }

    fn exclude(&self, hook: Hook, line: &mut impl FnMut(&str)) {
        let users: Vec<_> = self.capture.exclude_users.iter().map(|user| user_of(user)).collect();
        // Who sends what comes from elsewhere is not known.
        if hook == Hook::Output && !users.is_empty() {
            line(&format!("\t\tmeta skuid {{ {} }} return", users.join(", ")));
        }
    }

    /// What still has a virtual address as its destination was not captured.
    fn refusing(&self, hook: &str, line: &mut impl FnMut(&str)) {
        line(&format!("\tchain refuse_{hook} {{"));
        line(&format!("\t\ttype filter hook {hook} priority 0; policy accept;"));
        for family in self.families.iter().filter(|family| !family.ranges.is_empty()) {
            let is_virtual = family.is_virtual();
            if family.tproxy().is_some() && hook == "output" {
                line(&format!("\t\t{is_virtual} meta l4proto tcp meta mark {} accept", self.capture.mark));
            }
            line(&format!("\t\t{is_virtual} meta l4proto tcp reject with tcp reset"));
            line(&format!("\t\t{is_virtual} reject with icmpx type admin-prohibited"));
        }
        line("\t}");
    }
}

/// The script that removes the table, if there is one.
pub(super) fn removal() -> String {
    // `delete` fails without a table, so one is made before.
    format!("table {TABLE}\ndelete table {TABLE}\n")
}

/// nftables takes a number as it is, and a name in quotes.
fn user_of(user: &str) -> String {
    if user.bytes().all(|byte| byte.is_ascii_digit()) { user.to_owned() } else { format!("\"{user}\"") }
}

/// The first listener that takes captured connections of a family.
fn listener(settings: &Settings, is_ipv4: bool) -> Option<(SocketAddr, bool)> {
    let all = settings.fixed.binds.iter().zip(&settings.live.listeners);
    let mut taking = all.filter_map(|(bind, listener)| {
        let is_tproxy = match (&bind.sockets, &listener.originate.as_ref()?.to) {
            (Sockets::Transparent(_), Destination::Dialled) => true,
            (Sockets::Address(_), Destination::Redirected) => false,
            _ => return None,
        };
        Some((bind.accepts(is_ipv4)?, is_tproxy))
    });
    taking.next()
}

impl Family {
    fn set(&self) -> &'static str {
        if self.is_ipv4 { "virtual4" } else { "virtual6" }
    }

    fn is_virtual(&self) -> String {
        format!("{} daddr @{}", if self.is_ipv4 { "ip" } else { "ip6" }, self.set())
    }

    fn tproxy(&self) -> Option<SocketAddr> {
        self.listener
            .filter(|(_, is_tproxy)| *is_tproxy && !self.ranges.is_empty())
            .map(|(address, _)| address)
    }
}

impl Hook {
    fn name(self) -> &'static str {
        match self {
            Hook::Output => "output",
            Hook::Prerouting => "prerouting",
        }
    }

    /// The statement that sends a connection to an address; none where others cannot reach it.
    fn to(self, address: SocketAddr) -> Option<String> {
        match address.ip() {
            ip if ip.is_unspecified() => Some(format!("redirect to :{}", address.port())),
            ip if ip.is_loopback() && self == Hook::Prerouting => None,
            IpAddr::V4(_) => Some(format!("dnat ip to {address}")),
            IpAddr::V6(_) => Some(format!("dnat ip6 to {address}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use isthmus_core::config;

    use super::*;

    fn script(listeners: &str, capture: &str) -> String {
        let file = format!(
            "trust: {{ certificate: a, key: b, bundles: c }}\nlisteners:\n{listeners}\ncapture: {{ {capture} }}\n"
        );
        let settings = config::parse(&file, Path::new("gateway.yaml")).unwrap();
        Rules::new(&settings).unwrap().script()
    }

    fn listener(address: &str, how: &str) -> String {
        format!(
            "- {{ name: l{}, address: '{address}', side: outbound, mode: originate, original_destination: {how}, \
             ipv6_only: false, identity: spiffe://e.x/a, sources: ['::/0', 0.0.0.0/0], certificate: a, key: b }}",
            address.len()
        )
        .replace(if address.starts_with('[') { "" } else { "ipv6_only: false, " }, "")
    }

    #[test]
    fn capture_redirects_both_families_and_rejects_the_rest() {
        let script = script(
            &listener("[::]:15001", "redirect"),
            "ranges: [240.15.0.0/16, 'fd00:15::/64'], dns: ['127.0.0.1:15053', '[fd00::53]:53'], exclude_users: [isthmus, '65532']",
        );
        for line in [
            "set virtual4 { type ipv4_addr; flags interval; elements = { 240.15.0.0/16 }; }",
            "meta skuid { \"isthmus\", 65532 } return",
            "ip daddr @virtual4 meta l4proto tcp redirect to :15001",
            "ip6 daddr @virtual6 meta l4proto tcp redirect to :15001",
            "meta nfproto ipv4 udp dport 53 dnat ip to 127.0.0.1:15053",
            "meta nfproto ipv6 tcp dport 53 dnat ip6 to [fd00::53]:53",
            "ip daddr @virtual4 meta l4proto tcp reject with tcp reset",
            "ip6 daddr @virtual6 reject with icmpx type admin-prohibited",
        ] {
            assert!(script.lines().any(|written| written.trim() == line), "no {line} in\n{script}");
        }
        let (_, prerouting) = script.split_once("chain prerouting").unwrap();
        assert!(!prerouting.contains("127.0.0.1") && !prerouting.contains("skuid"), "{script}");
        assert!(!script.contains("tproxy"), "{script}");
        assert!(script.starts_with("table inet isthmus\ndelete table inet isthmus\ntable inet isthmus {\n"));
    }

    #[test]
    fn capture_marks_what_tproxy_takes() {
        let script = script(&listener("127.0.0.1:15001", "tproxy"), "ranges: [240.15.0.0/16], mark: 4711");
        for line in [
            "type route hook output priority -150; policy accept;",
            "ip daddr @virtual4 meta l4proto tcp meta mark set 4711",
            "ip daddr @virtual4 meta l4proto tcp meta mark set 4711 tproxy ip to 127.0.0.1:15001 accept",
            "ip daddr @virtual4 meta l4proto tcp meta mark 4711 accept",
        ] {
            assert!(script.lines().any(|written| written.trim() == line), "no {line} in\n{script}");
        }
        assert!(!script.contains("redirect") && !script.contains("virtual6"), "{script}");
    }
}
