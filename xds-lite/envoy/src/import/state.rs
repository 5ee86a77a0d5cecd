//! Holds the accepted resources of another control plane, and derives the services from them. A refused resource leaves
//! the last accepted one of its name in use.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::assignment::{self, Assignment};
use super::cluster::{self, Endpoints, Upstream};
use super::filters::Forward;
use super::listener::{self, Route, Routes};
use super::matching::Name;
use super::weights::{self, Part};
use super::{MOST_RESOURCES, listed, quoted};
use isthmus_ads::client::{Refused, Resource, Update};
use isthmus_model::services::{Service, ServiceTimeouts};
use isthmus_proto::type_url::{CLUSTER, ENDPOINTS, LISTENER};

/// The accepted resources.
#[derive(Debug)]
pub struct State {
    /// The port of the gateway's Listener.
    port: u16,
    /// The Listener of that port: its name and routes.
    listener: Option<(String, BTreeMap<Name, Route>)>,
    upstreams: HashMap<String, Upstream>,
    /// By the name in the clusters.
    assignments: HashMap<String, Assignment>,
    /// Names of the assignments that clusters use.
    wanted: BTreeSet<String>,
    /// Types that have been received.
    heard: HashSet<String>,
    /// The last services: an unchanged one is the same `Arc`.
    services: HashMap<Name, Arc<Service>>,
}

impl State {
    /// An empty state. The Listener with this port is the gateway's; others are ignored.
    #[must_use]
    pub fn new(port: u16) -> State {
        State {
            port,
            listener: None,
            upstreams: HashMap::new(),
            assignments: HashMap::new(),
            wanted: BTreeSet::new(),
            heard: HashSet::new(),
            services: HashMap::new(),
        }
    }

    /// Applies an update: removals first. A refusal names the refused parts of a resource; its other parts are applied.
    pub fn apply(&mut self, update: &Update) -> Vec<Refused> {
        self.heard.insert(update.type_url.clone());
        for name in &update.removed {
            self.remove(&update.type_url, name);
        }
        let mut refused = Vec::new();
        for resource in &update.resources {
            if let Err(why) = self.accept(&update.type_url, resource) {
                refused.push(Refused { name: resource.name.clone(), why });
            }
        }
        if update.type_url == CLUSTER {
            self.want();
        }
        refused
    }

    /// The assignments to subscribe to; of other types all resources are.
    #[must_use]
    pub fn names(&self, type_url: &str) -> Option<&BTreeSet<String>> {
        (type_url == ENDPOINTS).then_some(&self.wanted)
    }

    /// Whether everything that the Listener's routes need has been received: before that, a service with endpoints would
    /// seem to have none.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.heard.contains(LISTENER)
            && self.heard.contains(CLUSTER)
            && self.forwards().flat_map(|forward| &forward.clusters).all(|(cluster, _)| {
                match self.upstreams.get(cluster).map(|upstream| &upstream.endpoints) {
                    Some(Endpoints::Discovered(name)) => self.assignments.contains_key(name),
                    Some(Endpoints::Written(_)) | None => true,
                }
            })
    }

    /// The services, in the order of their names.
    pub fn services(&mut self) -> Vec<Arc<Service>> {
        let mut services = Vec::new();
        let mut kept = HashMap::new();
        for (name, route) in self.listener.iter().flat_map(|(_, routes)| routes) {
            let made = self.service(name, route);
            let service = match self.services.remove(name).filter(|before| **before == made) {
                Some(before) => before,
                None => Arc::new(made),
            };
            kept.insert(name.clone(), Arc::clone(&service));
            services.push(service);
        }
        self.services = kept;
        services
    }

    fn forwards(&self) -> impl Iterator<Item = &Forward> {
        let routes = self.listener.iter().flat_map(|(_, routes)| routes.values());
        routes.filter_map(|route| match route {
            Route::To { forward, .. } => Some(forward),
            Route::Nowhere => None,
        })
    }

    fn accept(&mut self, type_url: &str, resource: &Resource) -> Result<(), String> {
        match type_url {
            LISTENER => self.take_listener(resource),
            CLUSTER => {
                let upstream = cluster::read(&resource.name, &resource.bytes)?;
                if self.upstreams.len() >= MOST_RESOURCES && !self.upstreams.contains_key(&resource.name) {
                    return Err(format!("there are more than {MOST_RESOURCES} clusters"));
                }
                self.upstreams.insert(resource.name.clone(), upstream);
                Ok(())
            }
            ENDPOINTS if self.wanted.contains(&resource.name) => self.take_assignment(resource),
            // No longer used.
            _ => Ok(()),
        }
    }

    fn take_listener(&mut self, resource: &Resource) -> Result<(), String> {
        let read = listener::read(&resource.name, &resource.bytes, self.port)?;
        let name = &resource.name;
        match (read, &self.listener) {
            (Some(_), Some((other, _))) if other != name => {
                Err(format!("has the port {} of Listener {}; remove one of them", self.port, quoted(other)))
            }
            (Some(Routes { routes, refused }), _) => {
                self.listener = Some((name.clone(), routes));
                if refused.is_empty() { Ok(()) } else { Err(listed(&refused)) }
            }
            (None, _) => {
                self.remove(LISTENER, name);
                Ok(())
            }
        }
    }

    fn take_assignment(&mut self, resource: &Resource) -> Result<(), String> {
        match assignment::read(&resource.name, &resource.bytes) {
            Ok((assignment, refused)) => {
                self.assignments.insert(resource.name.clone(), assignment);
                if refused.is_empty() { Ok(()) } else { Err(listed(&refused)) }
            }
            Err(why) => {
                self.assignments.entry(resource.name.clone()).or_default();
                Err(why)
            }
        }
    }

    fn remove(&mut self, type_url: &str, name: &str) {
        match type_url {
            LISTENER => _ = self.listener.take_if(|(listener, _)| listener == name),
            CLUSTER => _ = self.upstreams.remove(name),
            // Its endpoints stay, as in Envoy; an assignment never received counts as empty.
            ENDPOINTS if self.wanted.contains(name) => {
                _ = self.assignments.entry(name.to_owned()).or_default()
            }
            _ => {}
        }
    }

    /// Updates the assignments to subscribe to after clusters have changed.
    fn want(&mut self) {
        let used = self.upstreams.values().filter_map(|upstream| match &upstream.endpoints {
            Endpoints::Discovered(name) => Some(name.clone()),
            Endpoints::Written(_) => None,
        });
        self.wanted = used.collect();
        self.assignments.retain(|name, _| self.wanted.contains(name));
    }

    fn assignment<'a>(&'a self, upstream: &'a Upstream) -> Option<&'a Assignment> {
        match &upstream.endpoints {
            Endpoints::Discovered(name) => self.assignments.get(name),
            Endpoints::Written(assignment) => Some(assignment),
        }
    }

    fn service(&self, name: &Name, route: &Route) -> Service {
        let general = ServiceTimeouts::default();
        let nowhere = Service {
            host: name.host.clone(),
            port: name.port,
            default_port: name.port == 0,
            aliases: Vec::new(),
            alpn: Vec::new(),
            sources: Vec::new(),
            balance: Default::default(),
            max_connections: None,
            send_proxy: false,
            traffic: None,
            timeouts: general.clone(),
            health: None,
            endpoints: Vec::new(),
            // The Listener serves other networks, which may know a name without a route, too.
            exposed: true,
            about: None,
            tls: None,
        };
        let Route::To { alpn, sources, forward } = route else { return nowhere };
        let present = || {
            forward.clusters.iter().filter_map(|(name, weight)| Some((self.upstreams.get(name)?, *weight)))
        };
        let Some((first, _)) = present().next() else {
            return Service { alpn: alpn.clone(), sources: sources.clone(), ..nowhere };
        };
        let is_one = forward.clusters.len() == 1;
        let parts: Vec<Part<'_>> = present()
            .filter(|(_, weight)| *weight > 0)
            .filter_map(|(upstream, weight)| {
                let assignment = self.assignment(upstream)?;
                Some(Part {
                    assignment,
                    by_locality: upstream.by_locality,
                    share: (!is_one).then_some(weight),
                })
            })
            .collect();
        let limits = present().map(|(upstream, _)| upstream.max_connections);
        let connect = present().map(|(upstream, _)| upstream.connect).max().unwrap_or(general.connect);
        Service {
            alpn: alpn.clone(),
            sources: sources.clone(),
            balance: first.balance,
            max_connections: limits.reduce(|one, other| Some(one?.saturating_add(other?))).flatten(),
            timeouts: ServiceTimeouts {
                connect,
                connect_total: general.connect_total.max(connect),
                idle: forward.idle.unwrap_or(general.idle),
                max_duration: forward.max_duration,
                ..general
            },
            endpoints: weights::endpoints(&parts),
            ..nowhere
        }
    }
}
