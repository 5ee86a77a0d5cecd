//! Reads a process's memory, descriptors, CPU time and sockets from /proc.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

/// A running process.
#[derive(Clone, Copy, Debug)]
pub struct Process(pub u32);

/// A row of `/proc/PID/net/tcp`.
#[derive(Clone, Debug)]
pub struct Socket {
    /// Local address.
    pub local: SocketAddr,
    /// Remote address.
    pub remote: SocketAddr,
    /// `TCP_ESTABLISHED` is 1, `TCP_TIME_WAIT` 6, `TCP_CLOSE_WAIT` 8, `TCP_LISTEN` 10.
    pub state: u8,
    /// Zero once no process holds the socket.
    pub inode: u64,
}

/// The state CLOSE-WAIT of [`Socket`].
pub const CLOSE_WAIT: u8 = 8;

impl Process {
    fn read(self, file: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{file}", self.0)).unwrap_or_default()
    }

    /// RSS in bytes.
    #[must_use]
    pub fn memory(self) -> u64 {
        self.status("VmRSS:")
    }

    /// Peak RSS in bytes.
    #[must_use]
    pub fn peak(self) -> u64 {
        self.status("VmHWM:")
    }

    fn status(self, field: &str) -> u64 {
        let status = self.read("status");
        let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("the process lives");
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// Bytes read from files and sockets so far.
    #[must_use]
    pub fn bytes_read(self) -> u64 {
        let io = self.read("io");
        let line = io.lines().find_map(|line| line.strip_prefix("rchar: ")).expect("the process lives");
        line.parse().unwrap()
    }

    /// Number of open descriptors.
    #[must_use]
    pub fn descriptors(self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.0)).map_or(0, Iterator::count)
    }

    /// Number of threads.
    #[must_use]
    pub fn threads(self) -> usize {
        fs::read_dir(format!("/proc/{}/task", self.0)).map_or(0, Iterator::count)
    }

    /// User and system CPU time so far.
    #[must_use]
    pub fn time(self) -> Duration {
        let stat = self.read("stat");
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        let ticks = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(ticks * 10)
    }

    /// The IPv4 sockets of the process.
    #[must_use]
    pub fn sockets(self) -> Vec<Socket> {
        let own: BTreeSet<u64> = fs::read_dir(format!("/proc/{}/fd", self.0))
            .into_iter()
            .flatten()
            .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
            .filter_map(|link| link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok())
            .collect();
        self.network().into_iter().filter(|socket| own.contains(&socket.inode)).collect()
    }

    /// All IPv4 sockets of its network namespace.
    #[must_use]
    pub fn network(self) -> Vec<Socket> {
        self.read("net/tcp").lines().skip(1).filter_map(row).collect()
    }

    /// Number of its sockets in this state.
    #[must_use]
    pub fn in_state(self, state: u8) -> usize {
        self.sockets().iter().filter(|socket| socket.state == state).count()
    }
}

fn row(line: &str) -> Option<Socket> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    Some(Socket {
        local: address(fields.get(1)?)?,
        remote: address(fields.get(2)?)?,
        state: u8::from_str_radix(fields.get(3)?, 16).ok()?,
        inode: fields.get(9)?.parse().ok()?,
    })
}

fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let ip = Ipv4Addr::from(u32::from_str_radix(ip, 16).ok()?.to_le_bytes());
    Some(SocketAddr::from((ip, u16::from_str_radix(port, 16).ok()?)))
}
