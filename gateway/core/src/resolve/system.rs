//! Reads `/etc/hosts` and `/etc/resolv.conf` as the C library does. Lines that cannot be used are logged once and
//! ignored; the rest is used. `lookup` queries the servers.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use isthmus_certs::input;
use isthmus_model::HostName;
use resolv_conf::{Config, ParseError, ScopedIp};

const HOSTS: &str = "/etc/hosts";
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Ad-blocking lists have several megabytes.
const MAX_FILE: u64 = 64 << 20;
/// The C library's limits.
const MAX_SERVERS: usize = 3;
const MAX_NDOTS: u32 = 15;
const MAX_TIMEOUT: u32 = 30;
const MAX_ATTEMPTS: u32 = 5;
/// Further flaws of one file are only counted.
const MAX_SHOWN: usize = 8;

/// Addresses by name.
pub(super) type Hosts = HashMap<HostName, Vec<IpAddr>>;

/// The contents of both files.
#[derive(Debug)]
pub(super) struct System {
    pub(super) hosts: Hosts,
    pub(super) servers: Servers,
}

/// The contents of `/etc/resolv.conf`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Servers {
    pub(super) addresses: Vec<IpAddr>,
    /// Search domains, in the order in which they are tried.
    pub(super) search: Vec<HostName>,
    /// Names with at least this many dots are tried as absolute names first.
    pub(super) ndots: usize,
    /// Time limit for one query to one server.
    pub(super) timeout: Duration,
    pub(super) attempts: usize,
    pub(super) edns0: bool,
    /// No AAAA queries.
    pub(super) no_aaaa: bool,
}

/// The unusable parts of one file: the first ones with their lines, counted from 1, and the number of others.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Flaws {
    shown: Vec<(usize, String)>,
    more: usize,
}

impl Flaws {
    fn add(&mut self, line: usize, what: impl FnOnce() -> String) {
        match self.shown.len() < MAX_SHOWN {
            true => self.shown.push((line, what())),
            false => self.more += 1,
        }
    }
}

impl fmt::Display for Flaws {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (line, what)) in self.shown.iter().enumerate() {
            let between = if place == 0 { "" } else { "; " };
            write!(f, "{between}line {line}: {what}")?;
        }
        if self.more > 0 { write!(f, "; {} more", self.more) } else { Ok(()) }
    }
}

/// Inode, length and change time of each file.
pub(super) type Versions = [Option<(u64, u64, i64, i64)>; 2];

/// Returns the current versions, to detect changes.
pub(super) fn versions() -> Versions {
    [RESOLV_CONF, HOSTS].map(|file| {
        let metadata = fs::metadata(file).ok()?;
        Some((metadata.ino(), metadata.len(), metadata.ctime(), metadata.ctime_nsec()))
    })
}

impl System {
    /// Reads both files. Without servers, the C library uses one on this machine.
    pub(super) fn read() -> System {
        System { hosts: read(HOSTS, hosts), servers: read(RESOLV_CONF, servers) }
    }
}

fn read<T>(file: &str, parse: impl Fn(&[u8]) -> (T, Flaws)) -> T {
    let content = input::read(Path::new(file), MAX_FILE).unwrap_or_else(|error| {
        if error.kind() != io::ErrorKind::NotFound {
            tracing::warn!(file, %error, "cannot read this file; resolving names without it");
        }
        Vec::new()
    });
    let (read, flaws) = parse(&content);
    if !flaws.shown.is_empty() {
        tracing::warn!(file, left_out = %flaws, "ignoring lines of this file that cannot be used");
    }
    read
}

/// Quotes a bounded, escaped text for the log.
fn quoted(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    format!("{:?}", text.trim().chars().take(64).collect::<String>())
}

/// Returns the lines of a file without comments, numbered from 1.
fn lines<'a>(content: &'a [u8], remark: &'a [u8]) -> impl Iterator<Item = (usize, &'a [u8])> {
    let content = content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(content);
    let lines = content.split(|byte| *byte == b'\n');
    let said = |line: &'a [u8]| line.split(|byte| remark.contains(byte)).next().unwrap_or_default();
    (1..).zip(lines.map(said))
}

fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty())
}

/// Parses `/etc/hosts`: an address and its names in each line.
pub(super) fn hosts(content: &[u8]) -> (Hosts, Flaws) {
    let (mut hosts, mut flaws) = (Hosts::new(), Flaws::default());
    for (line, text) in lines(content, b"#") {
        let mut words = words(text);
        let Some(address) = words.next() else { continue };
        let Some(ip) = str::from_utf8(address).ok().and_then(|address| address.parse::<IpAddr>().ok()) else {
            flaws.add(line, || format!("not an IP address: {}", quoted(address)));
            continue;
        };
        for name in words {
            match HostName::parse(name) {
                Ok(name) => hosts.entry(name).or_default().push(ip),
                Err(error) => flaws.add(line, || format!("not a host name: {}: {error}", quoted(name))),
            }
        }
    }
    (hosts, flaws)
}

/// Parses `/etc/resolv.conf`.
pub(super) fn servers(content: &[u8]) -> (Servers, Flaws) {
    // Comments may hold any bytes; elsewhere, invalid UTF-8 affects only its own word.
    let clean: Vec<_> = lines(content, b"#;").map(|(_, line)| String::from_utf8_lossy(line)).collect();
    let (config, errors) = Config::parse_with_errors(clean.join("\n").as_bytes());
    let text_of = |line: usize| clean.get(line).map(|text| quoted(text.as_bytes())).unwrap_or_default();
    let mut flaws = Flaws::default();
    for line in errors.iter().map(line_of) {
        flaws.add(line + 1, || text_of(line));
    }
    let search = search(&config, &clean, &mut flaws);
    let mut addresses = Vec::new();
    for server in &config.nameservers {
        match server {
            _ if addresses.len() == MAX_SERVERS => break,
            // A link-local address cannot be used without its interface.
            ScopedIp::V6(ip, Some(_)) if ip.is_unicast_link_local() => {
                let server = server.to_string();
                let line = clean.iter().position(|line| line.contains(&server)).unwrap_or_default();
                flaws.add(line + 1, || text_of(line));
            }
            server => addresses.push(IpAddr::from(server)),
        }
    }
    if addresses.is_empty() {
        addresses.push(Ipv4Addr::LOCALHOST.into());
    }
    let servers = Servers {
        addresses,
        search,
        ndots: config.ndots.min(MAX_NDOTS) as usize,
        timeout: Duration::from_secs(config.timeout.clamp(1, MAX_TIMEOUT).into()),
        attempts: config.attempts.clamp(1, MAX_ATTEMPTS) as usize,
        edns0: config.edns0,
        no_aaaa: config.no_aaaa,
    };
    flaws.shown.sort_unstable();
    (servers, flaws)
}

/// Returns the domains of the last `search` or `domain` line, or the domain of this machine's name.
fn search(config: &Config, lines: &[impl AsRef<str>], flaws: &mut Flaws) -> Vec<HostName> {
    let names_domains = |line: &str| matches!(line.split_whitespace().next(), Some("search" | "domain"));
    let Some(place) = lines.iter().rposition(|line| names_domains(line.as_ref())) else {
        let own = config.get_system_domain();
        return own.and_then(|domain| HostName::parse(domain).ok()).into_iter().collect();
    };
    let mut search = Vec::new();
    for domain in config.get_last_search_or_domain() {
        match HostName::parse(domain) {
            Ok(domain) => search.push(domain),
            // The root means the absolute name, which is tried anyway; DHCP clients write `--` for none.
            Err(_) if domain == "." || domain == "--" => {}
            Err(error) => {
                flaws.add(place + 1, || format!("search domain {}: {error}", quoted(domain.as_bytes())));
            }
        }
    }
    search
}

/// Returns the line of an error, counted from 0.
fn line_of(error: &ParseError) -> usize {
    match error {
        ParseError::InvalidUtf8(line, _)
        | ParseError::InvalidIp(line, _)
        | ParseError::InvalidValue(line)
        | ParseError::InvalidOptionValue(line)
        | ParseError::InvalidOption(line)
        | ParseError::InvalidDirective(line)
        | ParseError::ExtraData(line) => *line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn lines_of(flaws: &Flaws) -> Vec<usize> {
        flaws.shown.iter().map(|(line, _)| *line).collect()
    }

    #[test]
    fn hosts_file_in_latin1_skips_only_invalid_names() {
        let content = b"127.0.0.1 localhost\n10.0.0.1\tdb.internal DB # caf\xe9\n::1 localhost\n\
                        10.0.0.2 caf\xe9 ok.\n10.0.0.300 x\n\xff y\n\n# \xe9\n10.0.0.3";
        let (read, flaws) = hosts(content);
        assert_eq!(read.get("localhost"), Some(&ips(&["127.0.0.1", "::1"])));
        for (name, address) in [("db.internal", "10.0.0.1"), ("db", "10.0.0.1"), ("ok", "10.0.0.2")] {
            assert_eq!(read.get(name), Some(&ips(&[address])), "{name}");
        }
        assert_eq!(read.len(), 4);
        let said = flaws.to_string();
        assert_eq!(lines_of(&flaws), [4, 5, 6], "{said}");
        assert!(
            said.starts_with("line 4: not a host name: \"caf\u{fffd}\": ")
                && said.contains("line 5: not an IP address")
        );
        let many = "x\n".repeat(1_000);
        assert!(hosts(many.as_bytes()).1.to_string().ends_with("; 992 more"));
        let long = hosts("\u{1b}[2J".repeat(200).as_bytes()).1.to_string();
        assert!(
            long.len() < 1_000 && long.is_ascii() && !long.contains('\u{1b}'),
            "bounded and escaped: {long}"
        );
    }

    #[test]
    fn resolv_conf_with_an_odd_search_domain_keeps_the_rest() {
        for odd in [".lan", "<nil>", "~lan", "a..b", "caf\u{e9}"] {
            let text =
                format!("nameserver 127.0.0.2\nsearch old\nsearch {odd} lan. Sub.lan\noptions ndots:2");
            let (servers, flaws) = servers(text.as_bytes());
            assert_eq!(servers.addresses, ips(&["127.0.0.2"]), "{odd}");
            let search: Vec<_> = servers.search.iter().map(HostName::as_str).collect();
            assert_eq!((search, servers.ndots), (vec!["lan", "sub.lan"], 2), "{odd}");
            assert!(matches!(&flaws.shown[..], [(3, what)] if what.contains(odd)), "{flaws}");
        }
        let (alone, flaws) = servers(b"search .lan\nnameserver 127.0.0.2\n");
        assert_eq!(
            (alone.search.len(), alone.addresses, lines_of(&flaws)),
            (0, ips(&["127.0.0.2"]), vec![1])
        );
        assert_eq!(servers(b"search . --\nnameserver 10.0.0.1").1, Flaws::default());
    }

    #[test]
    fn resolv_conf_is_read_line_by_line() {
        let content =
            b"# caf\xe9\nnameserver 10.0.0.1 # caf\xe9\nnameserver 10.0.0.300\nnameserver fe80::1%eth0\n\
                        frob \xe9\noptions timeout:99 attempts:0 ndots:99 no-aaaa edns0 trust-ad\n\
                        nameserver ::1\nnameserver 10.0.0.3\nnameserver 10.0.0.4\n";
        let (read, flaws) = servers(content);
        assert_eq!(read.addresses, ips(&["10.0.0.1", "::1", "10.0.0.3"]), "three, as the C library takes");
        assert_eq!((read.timeout, read.attempts, read.ndots), (Duration::from_secs(30), 1, 15));
        assert!(read.no_aaaa && read.edns0);
        assert_eq!(lines_of(&flaws), [3, 4, 5], "{flaws}");
        let nothing = servers(b"").0;
        assert_eq!((nothing.addresses, nothing.ndots), (ips(&["127.0.0.1"]), 1), "as the C library does");
    }
}
