//! Tells the cluster's own gateways what leads to its names, who calls, and whose certificates they may have: each name's
//! virtual addresses and allotted ports, and the callers and gateways of the file. No other cluster is ever told. What is allotted is in `names`.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use isthmus_ads::shared::Shared;
use isthmus_model::binding::{
    Binding, BoundPort, CALLERS, Callers, Granted, LocalBinding, MAX_PORTS, is_granted_name, resource_name,
};
use isthmus_model::host::HostName;
use tokio::sync::watch;
use tokio::time::sleep;

use super::names::{Name, Names};

/// Names are allotted within this time of the slices that have them.
const ALLOTTED: Duration = Duration::from_secs(2);

/// The published bindings.
pub(super) struct LocalBindings {
    pub(super) for_gateways: Arc<Shared>,
    /// All names are known: one that is not published is gone.
    are_all_known: Arc<AtomicBool>,
}

impl LocalBindings {
    /// Publishes the callers and what gateways may have, and no names yet.
    pub(super) fn new(callers: &Callers, granted: Vec<Granted>) -> LocalBindings {
        let are_all_known: Arc<AtomicBool> = Arc::default();
        let known = Arc::clone(&are_all_known);
        let for_gateways = Arc::new(Shared::new(move |name| {
            name == CALLERS || is_granted_name(name) || known.load(Relaxed)
        }));
        let callers = (!callers.is_empty()).then(|| LocalBinding::Callers(callers.clone()));
        // An empty list, too: what a gateway was granted before is taken back.
        let of_file = callers.into_iter().chain(granted.into_iter().map(LocalBinding::Granted));
        for_gateways.change(|view| of_file.for_each(|one| _ = view.set(&one.name(), one.encode())));
        LocalBindings { for_gateways, are_all_known }
    }

    /// Publishes each change of the names. `all_known` completes once every cluster's slices are known.
    pub(super) async fn keep_publishing(
        &self,
        mut names: watch::Receiver<Arc<Names>>,
        all_known: impl Future<Output = ()>,
    ) {
        let mut published = HashMap::new();
        let mut settled = std::pin::pin!(async {
            all_known.await;
            sleep(ALLOTTED).await;
        });
        loop {
            let now = Arc::clone(&names.borrow_and_update());
            self.publish(&mut published, &now);
            let is_settled = self.are_all_known.load(Relaxed);
            tokio::select! {
                changed = names.changed() => if changed.is_err() { return std::future::pending().await },
                () = &mut settled, if !is_settled => {
                    self.are_all_known.store(true, Relaxed);
                    self.for_gateways.recheck();
                }
            }
        }
    }

    fn publish(&self, published: &mut HashMap<HostName, Arc<Name>>, names: &Names) {
        let is_known = |host: &HostName, name: &Arc<Name>| {
            published.get(host).is_some_and(|known| {
                Arc::ptr_eq(known, name) || (known.addresses, &known.ports) == (name.addresses, &name.ports)
            })
        };
        let news: Vec<_> = names.names.iter().filter(|(host, name)| !is_known(host, name)).collect();
        let gone: Vec<_> =
            published.keys().filter(|host| !names.names.contains_key(*host)).cloned().collect();
        if news.is_empty() && gone.is_empty() {
            return;
        }
        let encoded: Vec<_> = news.iter().map(|(host, name)| binding(host, name)).collect();
        self.for_gateways.change(|view| {
            for binding in &encoded {
                view.set(&binding.name(), binding.encode());
            }
            for host in &gone {
                view.remove(&resource_name(host));
            }
        });
        published.extend(news.into_iter().map(|(host, name)| (host.clone(), Arc::clone(name))));
        gone.iter().for_each(|host| _ = published.remove(host));
    }
}

fn binding(host: &HostName, name: &Name) -> LocalBinding {
    if name.ports.len() > MAX_PORTS {
        tracing::error!(%host, ports = name.ports.len(), "applications without TLS reach only the first {MAX_PORTS} ports of the host; split it");
    }
    let ports = name.ports.iter().take(MAX_PORTS);
    let ports = ports.map(|port| BoundPort { port: port.port, listener_port: port.listener_port });
    LocalBinding::Name(Binding { host: host.clone(), addresses: name.addresses, ports: ports.collect() })
}

#[cfg(test)]
mod tests {
    use isthmus_model::binding::Caller;
    use isthmus_model::virtual_address::NameAddresses;

    use super::*;
    use crate::agent::names::NamePort;

    fn names(all: &[(&str, u8)]) -> Arc<Names> {
        let one = |(host, last): &(&str, u8)| {
            let addresses = NameAddresses { v4: Some([240, 15, 0, *last].into()), v6: None };
            let ports = vec![NamePort { port: 80, listener_port: Some(20_000 + u16::from(*last)) }];
            let name = Name { aliases: Vec::new(), addresses, ports, is_own: true };
            (HostName::parse(host).unwrap(), Arc::new(name))
        };
        Arc::new(Names { names: all.iter().map(one).collect(), ..Names::default() })
    }

    fn published(bindings: &LocalBindings) -> Vec<String> {
        let view = bindings.for_gateways.view();
        let mut all: Vec<_> = view
            .iter()
            .map(|(name, resource)| match LocalBinding::decode(name, &resource.bytes).unwrap() {
                LocalBinding::Name(binding) => format!("{name} {}", binding.addresses.v4.unwrap()),
                LocalBinding::Callers(callers) => format!("{name} {}", callers.len()),
                LocalBinding::Granted(granted) => format!("{name} {}", granted.identities().len()),
            })
            .collect();
        all.sort();
        all
    }

    async fn until(bindings: &LocalBindings, expected: &[&str]) {
        while published(bindings) != expected {
            bindings.for_gateways.moved().changed().await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn local_bindings_follow_names_and_forget_none_before_all_are_known() {
        let identity = isthmus_certs::SpiffeId::parse("spiffe://east.example/a").unwrap();
        let sources = vec!["10.0.0.0/8".parse().unwrap()];
        let callers = Callers::new(vec![Caller { sources, identity }]).unwrap();
        let bindings = LocalBindings::new(&callers, Vec::new());
        let (change, names_of) = watch::channel(names(&[("a.example", 1)]));
        let (all_known, known) = tokio::sync::oneshot::channel::<()>();
        let publishing = bindings.keep_publishing(names_of, async { _ = known.await });
        let checking = async {
            until(&bindings, &["callers 1", "name/a.example 240.15.0.1"]).await;
            change.send_replace(names(&[("a.example", 1), ("b.example", 2)]));
            until(&bindings, &["callers 1", "name/a.example 240.15.0.1", "name/b.example 240.15.0.2"]).await;
            change.send_replace(names(&[("b.example", 3)]));
            until(&bindings, &["callers 1", "name/b.example 240.15.0.3"]).await;
            assert!(!bindings.are_all_known.load(Relaxed));
            all_known.send(()).unwrap();
            sleep(2 * ALLOTTED).await;
            assert!(bindings.are_all_known.load(Relaxed));
        };
        tokio::select! {
            () = publishing => {}
            () = checking => {}
        }
    }
}
