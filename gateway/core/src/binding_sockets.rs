//! Opens and closes the sockets of listeners that accept at what bindings name: ports of a range, or virtual addresses.
//! Each socket belongs to one worker, which hands connections over to the others. One that cannot be opened is named in
//! `status`, tried again, and costs no other.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use tokio::sync::watch;

use crate::config::Own;
use crate::config::settings::{Bind, Sockets};
use crate::snapshot::Bindings;

/// Sockets at once, if the descriptors allow as many.
const MOST: usize = 16_384;
/// At most one socket for this many descriptors.
const SHARE: u64 = 8;

/// A socket that a binding calls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BindingSocket {
    /// Index of the listener.
    pub listener: usize,
    /// Its address.
    pub address: SocketAddr,
}

/// The sockets of all listeners that bindings call for.
#[derive(Debug)]
pub struct BindingSockets {
    most: usize,
    wanted: watch::Sender<Arc<BTreeSet<BindingSocket>>>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// By port.
    open: HashMap<u16, Vec<BindingSocket>>,
    /// Why a socket is not open.
    refused: BTreeMap<BindingSocket, String>,
}

/// The sockets of one listener.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) open: usize,
    /// Each socket that is not open, and why.
    pub(crate) refused: Vec<(SocketAddr, String)>,
}

impl BindingSockets {
    /// With this many descriptors; none without such a listener.
    pub(crate) fn new(binds: &[Bind], descriptors: u64) -> BindingSockets {
        let has_any = binds.iter().any(|bind| bind.sockets.address().is_none());
        let most = usize::try_from(descriptors / SHARE).unwrap_or(usize::MAX).min(MOST);
        BindingSockets {
            most: if has_any { most } else { 0 },
            wanted: watch::Sender::default(),
            state: Mutex::default(),
        }
    }

    /// Returns the number of descriptors that they may use.
    pub(crate) fn most(&self) -> usize {
        self.most
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for the sockets that these bindings call for, and for no others.
    pub(crate) fn want(&self, binds: &[Bind], bindings: &Bindings) {
        if self.most == 0 {
            return;
        }
        let mut all: BTreeSet<BindingSocket> = BTreeSet::new();
        for (listener, bind) in binds.iter().enumerate() {
            let socket = |address| BindingSocket { listener, address };
            match &bind.sockets {
                Sockets::Address(_) | Sockets::Transparent(_) => {}
                Sockets::Ports(ip, range) => {
                    let ports = bindings.listener_ports().filter(|port| range.contains(*port));
                    all.extend(ports.map(|port| socket(SocketAddr::new(*ip, port))));
                }
                Sockets::Virtual => all.extend(bindings.sockets().map(socket)),
            }
        }
        let beyond: Vec<_> = all.iter().skip(self.most).copied().collect();
        let mut state = self.state();
        state.refused.retain(|socket, _| all.contains(socket));
        for socket in beyond {
            all.remove(&socket);
            let why = format!("only {} sockets may be open; raise LimitNOFILE", self.most);
            state.refused.insert(socket, why);
        }
        drop(state);
        self.wanted.send_if_modified(|known| {
            let is_news = **known != all;
            *known = Arc::new(all);
            is_news
        });
    }

    /// Returns the sockets that are asked for, and each change of them.
    pub(crate) fn wanted(&self) -> watch::Receiver<Arc<BTreeSet<BindingSocket>>> {
        self.wanted.subscribe()
    }

    pub(crate) fn opened(&self, socket: BindingSocket) {
        let mut state = self.state();
        if state.refused.remove(&socket).is_some() {
            tracing::info!(address = %socket.address, "the address can be listened on now");
        }
        state.open.entry(socket.address.port()).or_default().push(socket);
    }

    pub(crate) fn closed(&self, socket: BindingSocket) {
        if let Some(open) = self.state().open.get_mut(&socket.address.port()) {
            open.retain(|known| *known != socket);
        }
    }

    /// Records why a socket is not open.
    pub(crate) fn refused(&self, socket: BindingSocket, listener: &str, error: &io::Error) {
        let why = why(error);
        let before = self.state().refused.insert(socket, why.clone());
        if before.as_ref() != Some(&why) {
            tracing::warn!(listener, address = %socket.address, why, "cannot listen; trying again");
        }
    }

    /// Whether a connection to this address would reach one of the sockets.
    pub(crate) fn lead_to(&self, address: SocketAddr, binds: &[Bind]) -> bool {
        if self.most == 0 {
            return false;
        }
        let mut own = Own::default();
        for socket in self.state().open.get(&address.port()).into_iter().flatten() {
            let ipv6_only = binds.get(socket.listener).is_none_or(|bind| bind.ipv6_only);
            own.add(String::new(), socket.address, ipv6_only);
        }
        own.reached_by(address).is_some()
    }

    /// Returns what is open for a listener, and what is not.
    pub(crate) fn report(&self, listener: usize) -> Report {
        let state = self.state();
        let refused = state.refused.iter().filter(|(socket, _)| socket.listener == listener);
        Report {
            open: state.open.values().flatten().filter(|socket| socket.listener == listener).count(),
            refused: refused.map(|(socket, why)| (socket.address, why.clone())).collect(),
        }
    }
}

impl BindingSocket {
    /// Whether it is this worker's.
    pub(crate) fn belongs_to(&self, worker: usize, workers: usize) -> bool {
        let low = match self.address.ip() {
            IpAddr::V4(ip) => ip.octets().last().copied(),
            IpAddr::V6(ip) => ip.octets().last().copied(),
        };
        let number = usize::from(self.address.port()).wrapping_add(low.unwrap_or_default().into());
        number.checked_rem(workers) == Some(worker)
    }
}

fn why(error: &io::Error) -> String {
    let remedy = match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::ADDRINUSE) => "another socket has it; `ss -ltnp` shows whose",
        Some(Errno::ACCESS) => {
            "ports below net.ipv4.ip_unprivileged_port_start need CAP_NET_BIND_SERVICE; add it, or lower the limit"
        }
        Some(Errno::ADDRNOTAVAIL) => "this machine has no such address; add it to an interface, such as lo",
        Some(Errno::MFILE | Errno::NFILE) => "raise LimitNOFILE",
        _ => return error.to_string(),
    };
    format!("{error}: {remedy}")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config;
    use crate::snapshot::{Resolved, Snapshot};

    const FILE: &str = "
trust: { certificate: a, key: b, bundles: c }
listeners:
- { address: '127.0.0.1:0', side: outbound, mode: originate, ports: 20000-20009, identity: spiffe://e.x/a, certificate: a, key: b }
- { side: outbound, mode: originate, virtual_addresses: bind, identity: spiffe://e.x/a, sources: [127.0.0.0/8], certificate: a, key: b }
services: [{ host: db.example, port: 3306, identities: [spiffe://e.x/b] }, { host: web.example, port: 80, identities: [spiffe://e.x/b] }]
bindings:
- { host: db.example, addresses: [127.0.0.10, '::10'], ports: [{ port: 3306, listener_port: 20001 }] }
- { host: web.example, ports: [{ port: 80, listener_port: 30001 }] }
";

    fn sockets_with(most: u64) -> BindingSockets {
        let settings = config::parse(FILE, Path::new("gateway.yaml")).unwrap();
        let sockets = BindingSockets::new(&settings.fixed.binds, most * SHARE);
        let tables = Snapshot::compile(settings.live, &Resolved::new(), None, &|_| false);
        sockets.want(&settings.fixed.binds, &tables.bindings);
        sockets
    }

    #[test]
    fn binding_sockets_are_those_that_bindings_call_for() {
        let wanted = sockets_with(99).wanted().borrow().clone();
        let shown: Vec<_> =
            wanted.iter().map(|socket| format!("{} {}", socket.listener, socket.address)).collect();
        assert_eq!(shown, ["0 127.0.0.1:20001", "1 127.0.0.10:3306", "1 [::10]:3306"]);
        for workers in 1..4 {
            let owners = |socket: &BindingSocket| {
                (0..workers).filter(|worker| socket.belongs_to(*worker, workers)).count()
            };
            assert!(wanted.iter().all(|socket| owners(socket) == 1));
        }
    }

    #[test]
    fn binding_sockets_beyond_the_descriptors_are_named() {
        let sockets = sockets_with(2);
        assert_eq!(sockets.wanted().borrow().len(), 2);
        let refused = sockets.report(1).refused;
        assert_eq!(refused.len(), 1);
        assert!(refused[0].1.contains("only 2 sockets"), "{refused:?}");
    }
}
