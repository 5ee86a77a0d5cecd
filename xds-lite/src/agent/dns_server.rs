//! The agent's DNS server: its sockets, its thread, and its table, which follows the names.

use std::sync::Arc;

use isthmus_dns::Table;
use isthmus_http::thread;
use isthmus_model::admin::agent::{DnsStatus, Upstream};
use tokio::sync::watch;

use super::config::{self, Settings};
use super::names::{NameRegistry, Names, table};
use super::{Error, blocking};
use crate::dns::{Answer, Limits, Server, Sockets};

/// A server that has bound its sockets and does not run yet.
pub(super) struct DnsServer {
    settings: Arc<Settings>,
    dns: config::Dns,
    sockets: Sockets,
    names: watch::Receiver<Arc<Names>>,
    table: watch::Sender<Arc<Table>>,
    server: Arc<Server>,
}

impl DnsServer {
    /// Binds the sockets. Names that are known are answered from the beginning.
    pub(super) fn bind(
        settings: &Arc<Settings>,
        dns: &config::Dns,
        names: &NameRegistry,
    ) -> Result<DnsServer, Error> {
        let bind = |cause| Error::Bind { address: dns.listen, cause };
        let sockets = Sockets::bind(dns.listen).map_err(bind)?;
        let names = names.subscribe();
        let first = table(&names.borrow(), settings.names.addresses, &dns.zones);
        let table = watch::Sender::new(Arc::new(first));
        let address = sockets.local_addr().map_err(bind)?;
        let server = Server::new(dns, address, table.subscribe(), Limits::default());
        let (settings, dns) = (Arc::clone(settings), dns.clone());
        Ok(DnsServer { settings, dns, sockets, names, table, server: Arc::new(server) })
    }

    pub(super) fn server(&self) -> Arc<Server> {
        Arc::clone(&self.server)
    }

    pub(super) fn sockets(&self) -> &Sockets {
        &self.sockets
    }

    /// Serves on a thread of its own, whatever the agent is busy with, until dropped.
    pub(super) async fn run(self) -> Result<(), Error> {
        let DnsServer { settings, dns, sockets, mut names, table, server } = self;
        let serving = thread::run("dns", move || async move { server.serve(sockets).await });
        let following = async {
            while names.changed().await.is_ok() {
                let (now, settings, zones) =
                    (Arc::clone(&names.borrow_and_update()), Arc::clone(&settings), dns.zones.clone());
                let build = move || super::names::table(&now, settings.names.addresses, &zones);
                table.send_replace(Arc::new(blocking(build).await));
            }
        };
        tokio::select! {
            served = serving => served.map_err(Error::Dns),
            () = following => Ok(()),
        }
    }
}

/// What status shows of a server.
pub(super) fn status(server: &Server) -> DnsStatus {
    let upstream = |(server, problem)| Upstream { server, problem };
    let count = |answer: Answer| (answer.name().to_owned(), server.stats().get(answer));
    DnsStatus {
        upstreams: server.upstreams().into_iter().map(upstream).collect(),
        forwarded: server.forwarded() as u64,
        connections: server.connections() as u64,
        questions: Answer::ALL.map(count).into(),
    }
}
