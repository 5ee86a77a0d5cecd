//! Defines a service as connections see it: built from valid settings, and rebuilt when its names resolve differently.
//! Properties that many services have in common are shared.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use arc_swap::ArcSwapOption;
use ipnet::IpNet;
use isthmus_certs::SpiffeId;
use isthmus_health::matrix::Place;
use isthmus_model::access::Access;
use isthmus_model::traffic::Traffic;
use isthmus_model::{HostName, HostPattern};

use super::candidate::{Candidate, addresses};
use super::endpoint::{Endpoint, EndpointMeta, state};
use super::group::Group;
use super::loads::Loads;
use super::name::Name;
use super::ready_counts;
use super::shared::Shared;
use super::split::Split;
use crate::config::settings::{self, Balance, HealthCheck, Scope, ServiceTimeouts, Side, Target, TlsMode};
use crate::endpoint::ServiceState;

/// The addresses of endpoint host names.
pub type Resolved = HashMap<HostName, Vec<IpAddr>>;

/// One service. There may be a hundred thousand, so rare properties are stored separately.
#[derive(Debug)]
pub struct Service {
    /// Host name, or `*.suffix`.
    pub host: HostPattern,
    /// The port in `outbound_.PORT_._.HOST`.
    pub port: u16,
    /// Whether an address was ignored because it is this gateway's own.
    pub leads_back: bool,
    /// Rules for its connections.
    pub rules: Arc<Rules>,
    /// Resolved endpoints, including drained ones, sorted by group: by part of the split, the nearest first.
    pub endpoints: Box<[Endpoint]>,
    pub(super) nearest: Group,
    more: Option<Box<ServiceExtras>>,
    /// At the last count all endpoints were healthy and had their whole share, and there is no split.
    pub(super) is_even: AtomicBool,
    /// The result of the last count.
    pub(super) last_loads: ArcSwapOption<Loads>,
    /// State that survives table swaps.
    pub state: Arc<ServiceState>,
}

/// Rules that many services have in common.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Rules {
    /// Whether the bare host, the aliases and `INSTANCE.HOST` mean this port.
    pub default_port: bool,
    /// Whether it is exported to other clusters.
    pub exposed: bool,
    /// Condition: the client offers one of these protocols. Empty: no condition.
    pub alpn: Vec<String>,
    /// Condition: the client's address is in one of these. Empty: no condition.
    pub sources: Vec<IpNet>,
    /// How an endpoint is chosen.
    pub balance: Balance,
    /// Connections at once; none: no limit of its own.
    pub max_connections: Option<u32>,
    /// Send a PROXY v2 header with the client's address and the SNI.
    pub send_proxy: bool,
    /// Deadlines of its connections.
    pub timeouts: ServiceTimeouts,
    /// Which endpoints come first, and how many connections there may be.
    pub traffic: Arc<Traffic>,
    /// How the health of its endpoints is learned.
    pub health: HealthCheck,
}

/// Properties that few services have.
#[derive(Debug, Default, PartialEq, Eq)]
struct ServiceExtras {
    aliases: Box<[HostPattern]>,
    /// Endpoints with instance names, and gateways to named instances, resolved or not.
    instances: Box<[Arc<EndpointMeta>]>,
    /// Endpoint candidates, if the result may change: with name resolution, or with this gateway's own addresses.
    candidates: Box<[Candidate]>,
    further: Box<[Group]>,
    split: Option<Split>,
    door: Option<Door>,
    access: Option<Arc<Access>>,
    identities: Box<[SpiffeId]>,
}

/// Where the certificate of a service is from whose clients' TLS ends here.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Door {
    /// Files.
    Files,
    /// The agent issues it for this identity.
    Issued(SpiffeId),
}

/// Builds services.
pub(crate) struct ServiceBuilder<'a> {
    /// Resolved names; a name without an answer has no endpoint yet.
    pub(crate) resolved: &'a Resolved,
    /// Whether an address is this gateway's own: a route to it is a loop.
    pub(crate) is_own: &'a dyn Fn(SocketAddr) -> bool,
    /// Values shared between services.
    pub(crate) shared: &'a mut Shared,
}

impl ServiceBuilder<'_> {
    /// Builds a service; endpoint state is taken over from `before` by address.
    pub(crate) fn build(&mut self, settings: &settings::Service, before: Option<&Service>) -> Service {
        let candidate = |endpoint: &settings::Endpoint| Candidate {
            target: endpoint.address.clone(),
            weight: endpoint.weight,
            priority: endpoint.priority,
            part: endpoint.part,
            is_ready: endpoint.is_ready,
            traits: self.shared.traits(EndpointMeta {
                instance: endpoint.instance.clone(),
                aliases: endpoint.aliases.clone(),
                locality: endpoint.locality.clone(),
                labels: endpoint.labels.clone(),
                reach: endpoint.reach.clone(),
                access: endpoint.access.clone(),
            }),
        };
        let candidates: Vec<_> = settings.endpoints.iter().map(candidate).collect();
        let rules = self.shared.rules(Rules {
            default_port: settings.default_port,
            exposed: settings.exposed,
            alpn: settings.alpn.clone(),
            sources: settings.sources.clone(),
            balance: settings.balance,
            max_connections: settings.max_connections,
            send_proxy: settings.send_proxy,
            timeouts: settings.timeouts.clone(),
            traffic: settings.traffic.clone().unwrap_or_else(Traffic::unwritten),
            health: settings.health.as_deref().cloned().unwrap_or_default(),
        });
        let instances = candidates.iter().map(|candidate| &candidate.traits);
        let more = ServiceExtras {
            aliases: settings.aliases.clone().into(),
            instances: instances.filter(|traits| traits.has_names()).cloned().collect(),
            door: door(settings),
            access: access(settings),
            identities: settings.identities().into(),
            ..ServiceExtras::default()
        };
        self.resolve((settings.host.clone(), settings.port, rules), more, candidates, before)
    }

    /// Rebuilds a service with the current addresses of its names.
    pub(crate) fn rebuild(&mut self, service: &Service) -> Service {
        let more = service.more.as_deref();
        let lasting = ServiceExtras {
            aliases: service.aliases().into(),
            instances: more.map(|more| more.instances.clone()).unwrap_or_default(),
            door: more.and_then(|more| more.door.clone()),
            access: service.access().cloned(),
            identities: service.identities().into(),
            ..ServiceExtras::default()
        };
        let candidates = more.map(|more| more.candidates.to_vec()).unwrap_or_default();
        let name = (service.host.clone(), service.port, Arc::clone(&service.rules));
        self.resolve(name, lasting, candidates, Some(service))
    }

    fn resolve(
        &self,
        (host, port, rules): (HostPattern, u16, Arc<Rules>),
        mut more: ServiceExtras,
        candidates: Vec<Candidate>,
        before: Option<&Service>,
    ) -> Service {
        let mut endpoints: Vec<Endpoint> = Vec::with_capacity(candidates.len());
        let mut leads_back = false;
        for candidate in &candidates {
            for address in addresses(&candidate.target, self.resolved) {
                if !candidate.may_stand_at(address) {
                    let reach = &candidate.traits.reach;
                    tracing::warn!(service = %host, gateway = %candidate.target, %address, ?reach, "endpoint ignored: the peer gateway's name resolves outside its gatewayCIDRs; see imports[].gatewayCIDRs of the agent");
                } else if (self.is_own)(address) {
                    leads_back = true;
                    tracing::warn!(service = %host, %address, "endpoint ignored: it is this gateway itself");
                } else if !endpoints.iter().any(|known| known.address == address) {
                    let state = state(address, &rules.health, before);
                    if let Scope::RemoteGateway(beyond) = &candidate.traits.reach {
                        let (cluster, gateway) = (beyond.cluster.clone(), candidate.target.clone());
                        let place = Place { cluster, gateway, address };
                        state.follow_gateway(|| self.shared.gateways.state(place));
                    }
                    endpoints.push(Endpoint {
                        address,
                        weight: candidate.weight,
                        priority: candidate.priority,
                        part: candidate.part,
                        unit: 1,
                        is_ready: candidate.is_ready,
                        traits: Arc::clone(&candidate.traits),
                        state,
                    });
                }
            }
        }
        endpoints.sort_by_key(Endpoint::place);
        ready_counts::divide(&mut endpoints);
        let mut groups = Group::by_place(&endpoints);
        more.split = Split::new(&rules.traffic, &endpoints, &groups, before.and_then(Service::split));
        more.further = groups.split_off(groups.len().min(1)).into();
        let is_name = |candidate: &Candidate| matches!(candidate.target, Target::Name { .. });
        if leads_back || candidates.iter().any(is_name) {
            more.candidates = candidates.into();
        }
        Service {
            host,
            port,
            leads_back,
            rules,
            nearest: groups.pop().unwrap_or(Group::NOBODY),
            endpoints: endpoints.into(),
            more: (more != ServiceExtras::default()).then(|| Box::new(more)),
            is_even: AtomicBool::new(false),
            last_loads: ArcSwapOption::empty(),
            state: before.map(|service| Arc::clone(&service.state)).unwrap_or_default(),
        }
    }
}

fn door(settings: &settings::Service) -> Option<Door> {
    let issued = || settings.issued_identity().cloned().map_or(Door::Files, Door::Issued);
    (settings.tls_mode() == TlsMode::Terminate).then(issued)
}

/// The rules of a service. [`crate::config`] has refused those that cannot be enforced.
fn access(settings: &settings::Service) -> Option<Arc<Access>> {
    settings.enforced_access().unwrap_or_else(|_| Some(Arc::new(Access::closed())))
}

impl Service {
    /// Returns its name, `host:port`, for logs and labels.
    #[must_use]
    pub fn name(&self) -> Name<'_> {
        Name(self)
    }

    /// Returns its aliases.
    #[must_use]
    pub fn aliases(&self) -> &[HostPattern] {
        self.more.as_ref().map(|more| &more.aliases[..]).unwrap_or_default()
    }

    /// Whether its clients' TLS ends here.
    pub(crate) fn ends_tls(&self) -> bool {
        self.more.as_ref().is_some_and(|more| more.door.is_some())
    }

    /// Returns the identity whose certificate the agent issues for it, if its clients' TLS ends here.
    pub(crate) fn issued_identity(&self) -> Option<&SpiffeId> {
        match self.more.as_ref()?.door.as_ref()? {
            Door::Issued(identity) => Some(identity),
            Door::Files => None,
        }
    }

    /// Returns who may use it; none: everybody, unless its TLS ends here.
    pub(crate) fn access(&self) -> Option<&Arc<Access>> {
        self.more.as_ref().and_then(|more| more.access.as_ref())
    }

    /// Returns the identities that its servers may have; TLS can be begun to no others.
    pub(crate) fn identities(&self) -> &[SpiffeId] {
        self.more.as_ref().map(|more| &more.identities[..]).unwrap_or_default()
    }

    /// Returns the endpoints with instance names, and gateways to named instances.
    pub(crate) fn instances(&self) -> &[Arc<EndpointMeta>] {
        self.more.as_ref().map(|more| &more.instances[..]).unwrap_or_default()
    }

    /// Returns the aliases of its instances.
    pub(super) fn whole_names(&self) -> impl Iterator<Item = &HostName> {
        self.instances().iter().flat_map(|traits| {
            traits.aliases.iter().chain(traits.beyond().iter().flat_map(|named| &named.aliases))
        })
    }

    fn candidates(&self) -> &[Candidate] {
        self.more.as_ref().map(|more| &more.candidates[..]).unwrap_or_default()
    }

    /// Returns the host names used as endpoint addresses.
    pub(crate) fn targets(&self) -> impl Iterator<Item = &HostName> {
        self.candidates().iter().filter_map(|candidate| match &candidate.target {
            Target::Name { host, .. } => Some(host),
            Target::Address(_) => None,
        })
    }

    /// Returns the configured addresses of endpoints that receive no new connections.
    pub(crate) fn drained(&self) -> Vec<Target> {
        if self.may_change() {
            let drained = self.candidates().iter().filter(|candidate| candidate.weight == 0);
            return drained.map(|candidate| candidate.target.clone()).collect();
        }
        let drained = self.endpoints.iter().filter(|endpoint| endpoint.weight == 0);
        drained.map(|endpoint| Target::Address(endpoint.address)).collect()
    }

    /// Whether a rebuild may give another result with the same settings.
    pub(super) fn may_change(&self) -> bool {
        !self.candidates().is_empty()
    }

    /// Whether it equals another service, apart from its state.
    pub(super) fn is_as(&self, other: &Service) -> bool {
        let alike = |(one, other): (&Endpoint, &Endpoint)| {
            (one.address, one.weight, one.place()) == (other.address, other.weight, other.place())
                && (one.unit, one.is_ready, &one.traits) == (other.unit, other.is_ready, &other.traits)
        };
        (&self.host, self.port, self.leads_back) == (&other.host, other.port, other.leads_back)
            && self.rules == other.rules
            && self.more == other.more
            && self.endpoints.len() == other.endpoints.len()
            && self.endpoints.iter().zip(&other.endpoints).all(alike)
    }

    /// Returns its split, if it has one.
    pub(crate) fn split(&self) -> Option<&Split> {
        self.more.as_ref().and_then(|more| more.split.as_ref())
    }

    /// Returns the nearest group of the first part.
    pub(crate) fn nearest(&self) -> &Group {
        &self.nearest
    }

    /// Returns its endpoint groups by part and priority, the nearest first.
    pub(crate) fn groups(&self) -> impl Iterator<Item = &Group> {
        let further = self.more.as_ref().map(|more| &more.further[..]).unwrap_or_default();
        std::iter::once(&self.nearest).chain(further)
    }

    /// Returns the name of a matching instance that connections of this side may reach.
    pub(crate) fn instance(
        &self,
        side: Side,
        is_meant: impl Fn(&HostName, &[HostName]) -> bool,
    ) -> Option<&HostName> {
        self.instances().iter().find_map(|traits| match &traits.reach {
            Scope::RemoteGateway(_) if side == Side::Outbound => {
                let mut named = traits.beyond().iter();
                named.find(|named| is_meant(&named.name, &named.aliases)).map(|named| &named.name)
            }
            Scope::RemoteGateway(_) => None,
            Scope::Local | Scope::Exported { by_name: false } if side == Side::EastWest => None,
            Scope::Exported { .. } | Scope::Local => {
                traits.instance.as_ref().filter(|name| is_meant(name, &traits.aliases))
            }
        })
    }

    /// Whether an instance has this label, reachable or not.
    pub(crate) fn has_instance(&self, label: &str) -> bool {
        self.instances().iter().any(|traits| {
            let beyond = traits.beyond().iter().map(|named| &named.name);
            traits.instance.iter().chain(beyond).any(|name| name.as_str() == label)
        })
    }

    /// Returns a fixed name of this service; none if it only has patterns.
    pub(crate) fn own_name(&self) -> Option<&HostName> {
        std::iter::once(&self.host).chain(self.aliases()).find_map(|pattern| match pattern {
            HostPattern::Exact(name) => Some(name),
            HostPattern::Suffix(_) => None,
        })
    }
}

impl Rules {
    /// Specificity of its conditions: source first, then protocol.
    pub(super) fn specificity(&self) -> (bool, bool) {
        (!self.sources.is_empty(), !self.alpn.is_empty())
    }
}
