//! A cluster: its adapter behind a real xDS server, endpoints with mTLS, and their clients.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use isthmus_ads::service::{Directory, Discovery};
use isthmus_ads::shared::Shared;
use isthmus_certs::{Peer, Server, SpiffeId};
use isthmus_envoy::export::Adapter;
use isthmus_model::HostPattern;
use isthmus_model::services::Balance;
use isthmus_model::slice::{Endpoint, Key, Offer, Order, Port, Slice, Tls};
use isthmus_proto::type_url::{CLUSTER, ENDPOINTS, LISTENER};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, ServerConnection, StreamOwned};
use tonic::Status;
use tonic::service::Routes;

use crate::common::{ANY, Agent, GATEWAY, World};

pub(crate) const SERVER: &str = "spiffe://east.example/ns/shop/sa/server";
const CALLER: &str = "spiffe://east.example/ns/shop/sa/caller";
const DEADLINE: Duration = Duration::from_secs(120);

/// Waits, and fails after two minutes.
#[track_caller]
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = std::time::Instant::now();
    while !condition() {
        assert!(begin.elapsed() < DEADLINE, "waited too long until {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// The tables, for gateways only.
pub(crate) struct Tables(pub(crate) Adapter);

impl Directory for Tables {
    fn view(&self, peer: &SpiffeId, type_url: &str) -> Result<Arc<Shared>, Status> {
        if peer.to_string() != GATEWAY {
            return Err(Status::permission_denied("only gateways are served"));
        }
        self.0.view(type_url).ok_or_else(|| Status::unimplemented("this type is not served"))
    }
}

impl Tables {
    pub(crate) fn new(slices: &[Slice]) -> Arc<Tables> {
        let adapter = Adapter::new("east".parse().unwrap(), vec!["g".to_owned()], ANY);
        adapter.change(slices);
        Arc::new(Tables(adapter))
    }

    pub(crate) fn change(&self, slices: &[Slice]) {
        self.0.change(slices);
    }

    /// A client follows all three types, and has accepted everything.
    pub(crate) fn are_taken(&self) -> bool {
        [CLUSTER, ENDPOINTS, LISTENER].iter().all(|type_url| {
            let shared = self.0.view(type_url).unwrap();
            !shared.all().is_empty() && shared.is_settled()
        })
    }

    pub(crate) fn serve(self: &Arc<Tables>, world: &World, at: SocketAddr) -> Agent {
        world.agent(Routes::new(Discovery::service(Arc::clone(self))), at)
    }
}

/// A service of the cluster, exported, at port 443, with these endpoints.
pub(crate) fn service(host: &str, endpoints: &[SocketAddr]) -> Slice {
    let endpoints = endpoints.iter().map(|address| Endpoint::new(address.to_string().parse().unwrap()));
    let port = Port {
        balance: Balance::RoundRobin,
        endpoints: endpoints.collect(),
        exported: true,
        ..Port::new(443, Tls::Mutual)
    };
    let offer = Offer::new("east-net", vec![port]);
    Slice { offer: Some(offer), ..withdrawn(host) }
}

pub(crate) fn withdrawn(host: &str) -> Slice {
    let key = Key { cluster: "east".parse().unwrap(), host: HostPattern::parse(host).unwrap() };
    Slice { key, order: Order { incarnation: 1, revision: 1 }, offer: None }
}

/// An application that requires a client certificate, sends its name, and closes; stopped on drop.
pub(crate) struct App {
    pub(crate) address: SocketAddr,
    stops: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl App {
    pub(crate) fn start(world: &World, name: &'static str) -> App {
        let allowed = Peer::Ids(vec![SpiffeId::parse(CALLER).unwrap()]);
        let tls = Server::new(world.trust(SERVER), allowed, &[]).unwrap().config();
        let listener = TcpListener::bind(ANY).unwrap();
        let address = listener.local_addr().unwrap();
        let stops = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stops);
        let thread = thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if stopping.load(Ordering::Relaxed) {
                    return;
                }
                stream.set_read_timeout(Some(DEADLINE)).unwrap();
                let mut tls = StreamOwned::new(ServerConnection::new(Arc::clone(&tls)).unwrap(), stream);
                // Envoy may connect for a client that is gone.
                let _sent = tls.write_all(name.as_bytes());
                tls.conn.send_close_notify();
                let _sent = tls.flush();
            }
        });
        App { address, stops, thread: Some(thread) }
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.stops.store(true, Ordering::Relaxed);
        let _woken = TcpStream::connect(self.address);
        let _ended = self.thread.take().unwrap().join();
    }
}

/// An address without a listener.
pub(crate) fn nobody() -> SocketAddr {
    TcpListener::bind(ANY).unwrap().local_addr().unwrap()
}

/// The application that answers for a name at a gateway, over end-to-end TLS.
pub(crate) fn ask(world: &World, gateway: SocketAddr, sni: &str) -> io::Result<String> {
    let name = ServerName::try_from(sni.to_owned()).unwrap();
    let client = ClientConnection::new(world.client(CALLER, SERVER).config(), name).unwrap();
    let stream = TcpStream::connect(gateway)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    let mut tls = StreamOwned::new(client, stream);
    let mut answer = String::new();
    tls.read_to_string(&mut answer)?;
    Ok(answer)
}
