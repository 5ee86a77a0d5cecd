//! Decisions are compared with a naive model that reads the rules as text, in a small world where they often match.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::services::TlsMode;
use isthmus_certs::TrustDomain;

const DOMAINS: [&str; 2] = ["east.example", "west.example"];
const NAMESPACES: [&str; 3] = ["shop", "shopping", "db"];

pub(crate) fn domain() -> impl Strategy<Value = TrustDomain> {
    select(&DOMAINS[..]).prop_map(|name| TrustDomain::new(name).unwrap())
}

fn identity() -> impl Strategy<Value = SpiffeId> {
    (domain(), select(&NAMESPACES[..]), select(&["a", "b"][..]))
        .prop_map(|(domain, namespace, account)| SpiffeId::workload(&domain, namespace, account).unwrap())
}

fn pattern() -> impl Strategy<Value = IdPattern> {
    prop_oneof![
        identity().prop_map(IdPattern::Exactly),
        domain().prop_map(|domain| IdPattern::Below(domain.id())),
        (domain(), select(&NAMESPACES[..]))
            .prop_map(|(domain, name)| IdPattern::namespace(&domain, name).unwrap()),
    ]
}

fn rule() -> impl Strategy<Value = RuleSettings> {
    let callers = prop_oneof![
        Just(Callers::Any),
        vec(pattern(), 1..3).prop_map(Callers::Identities),
        vec(select(&NAMESPACES[..]).prop_map(str::to_owned), 1..3).prop_map(Callers::OwnNamespaces),
    ];
    let range =
        select(&["10.0.0.0/8", "10.1.0.0/16", "fd00::/8"][..]).prop_map(|range| range.parse().unwrap());
    let ports = vec(select(&[80_u16, 3306][..]), 0..2);
    (callers, vec(range, 0..2), ports, any::<bool>(), "[a-z]{1,3}").prop_map(
        |(callers, sources, ports, dry_run, name)| RuleSettings { name, callers, sources, ports, dry_run },
    )
}

fn rules() -> impl Strategy<Value = AccessRules> {
    (option::of(vec(rule(), 0..3)), vec(rule(), 0..2), prop::bool::weighted(0.2), any::<bool>())
        .prop_map(|(allow, deny, workspace, advisory)| AccessRules { allow, deny, workspace, advisory })
}

/// Everything that may apply to one service.
#[derive(Clone, Debug)]
pub(crate) struct World {
    service: AccessRules,
    namespace: AccessRules,
    workspace: AccessRules,
    cluster: AccessRules,
    members: Vec<(TrustDomain, String)>,
    tls: TlsMode,
}

pub(crate) fn world() -> impl Strategy<Value = World> {
    let scope = || prop_oneof![Just(AccessRules::default()), rules()];
    let members = vec((domain(), select(&NAMESPACES[..]).prop_map(str::to_owned)), 0..3);
    let tls = select(&[TlsMode::Passthrough, TlsMode::Terminate][..]);
    (scope(), scope(), scope(), scope(), members, tls).prop_map(
        |(service, namespace, workspace, cluster, members, tls)| World {
            service,
            namespace,
            workspace,
            cluster,
            members,
            tls,
        },
    )
}

#[derive(Clone, Debug)]
struct Person {
    identity: Option<SpiffeId>,
    source: IpAddr,
    port: u16,
}

fn source() -> impl Strategy<Value = IpAddr> {
    select(&["10.1.0.1", "10.2.0.1", "192.0.2.1", "fd00::1", "::ffff:10.1.0.1"][..])
        .prop_map(|source| source.parse().unwrap())
}

fn person() -> impl Strategy<Value = Person> {
    (option::weighted(0.8, identity()), source(), select(&[80_u16, 3306][..]))
        .prop_map(|(identity, source, port)| Person { identity, source, port })
}

impl Person {
    fn caller(&self) -> Caller<'_> {
        Caller { identity: self.identity.as_ref(), source: self.source, port: self.port }
    }
}

impl World {
    fn scopes(&self) -> [&AccessRules; 4] {
        [&self.service, &self.namespace, &self.workspace, &self.cluster]
    }

    fn scope_mut(&mut self, which: usize) -> &mut AccessRules {
        match which % 4 {
            0 => &mut self.service,
            1 => &mut self.namespace,
            2 => &mut self.workspace,
            _ => &mut self.cluster,
        }
    }

    pub(crate) fn access(&self) -> Result<Access, AccessError> {
        let own = TrustDomain::new(DOMAINS[0]).unwrap();
        let workspaces = [Workspace { name: "w", rules: Some(&self.workspace), members: &self.members }];
        let scopes = Scopes {
            own: Some(&own),
            cluster: Some(&self.cluster),
            workspaces: &workspaces,
            namespace: Some(("n", &self.namespace)),
            service: Some(&self.service),
        };
        scopes.access(self.tls)
    }

    /// Likewise, where rules that nobody could enforce are marked.
    pub(crate) fn enforceable(mut self) -> World {
        for which in 0..4 {
            let is_seen = self.tls == TlsMode::Terminate;
            let scope = self.scope_mut(which);
            scope.advisory |= scope.asks_for_identity() && !is_seen;
        }
        self
    }

    /// The verdict of the naive model.
    fn verdict(&self, person: &Person) -> Verdict {
        let real = |rules: &[RuleSettings]| -> Vec<RuleSettings> {
            rules.iter().filter(|rule| !rule.dry_run).cloned().collect()
        };
        if self.scopes().iter().any(|scope| real(&scope.deny).iter().any(|rule| matches(rule, person))) {
            return Verdict::Denied;
        }
        let mut refuses_others = self.tls == TlsMode::Terminate;
        for scope in self.scopes() {
            let allow = scope.allow.as_deref().unwrap_or_default();
            refuses_others |= scope.allow.as_ref().is_some_and(Vec::is_empty);
            let mut asks_for_identity = scope.workspace;
            for rule in real(allow) {
                if matches(&rule, person) {
                    return Verdict::Allowed;
                }
                asks_for_identity |= rule.callers != Callers::Any;
                refuses_others |= rule.callers == Callers::Any;
            }
            let member = |(domain, name): &(TrustDomain, String)| {
                starts(person, &format!("spiffe://{domain}/ns/{name}/"))
            };
            if scope.workspace && self.members.iter().any(member) {
                return Verdict::Allowed;
            }
            refuses_others |= asks_for_identity && !(scope.advisory && person.identity.is_none());
        }
        if refuses_others { Verdict::Denied } else { Verdict::Allowed }
    }
}

fn starts(person: &Person, prefix: &str) -> bool {
    person.identity.as_ref().is_some_and(|id| id.to_string().starts_with(prefix))
}

fn matches(rule: &RuleSettings, person: &Person) -> bool {
    let is_caller = match &rule.callers {
        Callers::Any => true,
        Callers::Identities(patterns) => {
            patterns.iter().any(|pattern| match pattern.to_string().strip_suffix('*') {
                Some(prefix) => starts(person, prefix),
                None => person.identity.as_ref().is_some_and(|id| id.to_string() == pattern.to_string()),
            })
        }
        Callers::OwnNamespaces(names) => {
            names.iter().any(|name| starts(person, &format!("spiffe://{}/ns/{name}/", DOMAINS[0])))
        }
    };
    let source = person.source.to_canonical();
    let is_source = rule.sources.is_empty() || rule.sources.iter().any(|range| range.contains(&source));
    is_caller && is_source && (rule.ports.is_empty() || rule.ports.contains(&person.port))
}

fn verdict(world: &World, person: &Person) -> Verdict {
    world.access().unwrap().decide(&person.caller()).verdict
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2_000) })]

    #[test]
    fn access_decides_as_the_model(world in world().prop_map(World::enforceable), person in person()) {
        let access = world.access().unwrap();
        let decision = access.decide(&person.caller());
        prop_assert_eq!(decision.verdict, world.verdict(&person), "{}", decision);
        let deny = world.scopes().into_iter().flat_map(|scope| &scope.deny);
        let allow = world.scopes().into_iter().flat_map(|scope| scope.allow.iter().flatten());
        let reported = deny.chain(allow).filter(|rule| rule.dry_run && matches(rule, &person)).count();
        prop_assert_eq!(decision.dry_run.len(), reported);
        let is_of_the_verdict = decision.rule.is_none_or(|rule| {
            let list = if decision.verdict == Verdict::Denied { &access.deny } else { &access.allow };
            !rule.dry_run && list.contains(rule)
        });
        prop_assert!(is_of_the_verdict, "{}", decision);
    }

    #[test]
    fn access_deny_always_wins_and_never_widens(
        world in world().prop_map(World::enforceable), person in person(), deny in rule(), which in 0_usize..4,
    ) {
        let before = verdict(&world, &person);
        let mut after = world;
        after.scope_mut(which).deny.push(deny.clone());
        let after = verdict(&after.enforceable(), &person);
        prop_assert!(after == Verdict::Denied || before == Verdict::Allowed);
        if matches(&deny, &person) && !deny.dry_run {
            prop_assert_eq!(after, Verdict::Denied);
        }
    }

    #[test]
    fn access_allow_never_narrows_for_what_it_matches(
        world in world().prop_map(World::enforceable), person in person(), allow in rule(), which in 0_usize..4,
    ) {
        let before = verdict(&world, &person);
        let mut after = world;
        let has_empty_list = after.scope_mut(which).allow.as_ref().is_some_and(Vec::is_empty);
        after.scope_mut(which).allow.get_or_insert_default().push(allow.clone());
        let after = verdict(&after.enforceable(), &person);
        if matches(&allow, &person) {
            prop_assert!(before == Verdict::Denied || after == Verdict::Allowed);
        }
        if allow.dry_run && !has_empty_list {
            prop_assert_eq!(before, after);
        }
    }

    #[test]
    fn access_order_of_rules_means_nothing(world in world().prop_map(World::enforceable), person in person()) {
        let access = world.access().unwrap();
        let mut reversed = access.clone();
        reversed.allow.reverse();
        reversed.deny.reverse();
        let (one, other) = (access.decide(&person.caller()), reversed.decide(&person.caller()));
        prop_assert_eq!(one.verdict, other.verdict);
        prop_assert_eq!(one.dry_run.len(), other.dry_run.len());
    }

    #[test]
    fn access_projected_for_a_domain_decides_the_same_about_its_callers(
        world in world().prop_map(World::enforceable), person in person(),
    ) {
        let access = world.access().unwrap();
        if let Some(id) = &person.identity {
            let domain = id.trust_domain().clone();
            let projected = access.for_domains(std::slice::from_ref(&domain));
            let (all, some) = (access.decide(&person.caller()), projected.decide(&person.caller()));
            prop_assert_eq!(all.verdict, some.verdict);
            prop_assert_eq!(all.rule.map(|rule| &rule.name), some.rule.map(|rule| &rule.name));
            prop_assert_eq!(all.dry_run.len(), some.dry_run.len());
            let mut identities = projected.rules().flat_map(|rule| &rule.identities);
            prop_assert!(identities.all(|pattern| *pattern.trust_domain() == domain));
        }
    }

    /// The owner's gateway sees another address of the caller, and an identity that passed through until there.
    #[test]
    fn access_that_is_refused_early_is_refused_by_its_owner(
        world in world().prop_map(World::enforceable), person in person(), source in source(),
        unseen in option::of(identity()),
    ) {
        let access = world.access().unwrap();
        let domain = TrustDomain::new(DOMAINS[1]).unwrap();
        let rules = access.for_domains(std::slice::from_ref(&domain)).without_sources();
        prop_assert!(rules.rules().all(|rule| rule.sources.is_empty()));
        let ends_tls = world.tls == TlsMode::Terminate;
        let early = RemoteAccess { rules, domain, ends_tls };
        if early.decide(&person.caller()).verdict == Verdict::Denied {
            let identity = person.identity.clone().or(unseen.filter(|_| ends_tls));
            let there = Person { identity, source, ..person };
            prop_assert_eq!(access.decide(&there.caller()).verdict, Verdict::Denied);
        }
    }

    /// A peer in the same network sees the same addresses, and may be the only gateway that is asked.
    #[test]
    fn access_of_a_peer_in_the_same_network_is_the_owners(
        world in world().prop_map(World::enforceable), person in person(),
    ) {
        let access = world.access().unwrap();
        let domain = TrustDomain::new(DOMAINS[1]).unwrap();
        let ends_tls = world.tls == TlsMode::Terminate;
        let is_known = person.identity.as_ref().map_or(!ends_tls, |id| *id.trust_domain() == domain);
        let rules = access.for_domains(std::slice::from_ref(&domain));
        let early = RemoteAccess { rules, domain, ends_tls };
        if is_known {
            let (here, there) = (early.decide(&person.caller()), access.decide(&person.caller()));
            prop_assert_eq!(here.verdict, there.verdict);
        }
    }

    #[test]
    fn access_by_identity_cannot_be_combined_where_nobody_sees_it(world in world()) {
        let is_unseen = |scope: &&AccessRules| scope.asks_for_identity() && !scope.advisory;
        let is_wrong = world.tls == TlsMode::Passthrough && world.scopes().iter().any(is_unseen);
        prop_assert_eq!(matches!(world.access(), Err(AccessError::Unseen(_))), is_wrong);
    }
}

#[test]
fn access_that_is_open_restricts_nobody() {
    assert!(!Access::open().restricts());
    assert!(Access::closed().restricts());
    let nobody = Caller { identity: None, source: "192.0.2.1".parse().unwrap(), port: 1 };
    assert_eq!(Access::open().decide(&nobody).to_string(), "allowed: no rule denies it");
    assert_eq!(Access::closed().decide(&nobody).to_string(), "denied: no rule allows it");
    let rule = Rule {
        scope: RuleScope::Namespace("shop".to_owned()),
        name: "deny[0]".to_owned(),
        identities: Vec::new(),
        sources: vec!["192.0.2.0/24".parse().unwrap()],
        ports: Vec::new(),
        dry_run: false,
    };
    let access = Access { deny: vec![rule], ..Access::open() };
    assert!(access.restricts());
    assert_eq!(access.decide(&nobody).to_string(), "denied by namespace shop rule deny[0]");
}

#[test]
fn access_of_all_scopes_is_limited() {
    let own = TrustDomain::new("east.example").unwrap();
    let members: Vec<_> = (0..=MAX_IDENTITIES).map(|name| (own.clone(), format!("n{name}"))).collect();
    let rules = AccessRules { workspace: true, ..AccessRules::default() };
    let workspaces =
        |count: usize| [Workspace { name: "w", rules: Some(&rules), members: &members[..count] }];
    let access = |count: usize| {
        let workspaces = workspaces(count);
        let scopes = Scopes {
            own: Some(&own),
            cluster: None,
            workspaces: &workspaces,
            namespace: None,
            service: None,
        };
        scopes.access(TlsMode::Terminate)
    };
    assert_eq!(access(MAX_IDENTITIES).unwrap().allow[0].identities.len(), MAX_IDENTITIES);
    assert!(access(MAX_IDENTITIES + 1).unwrap_err().to_string().contains("has 1025 identities"));
    let closed = access(0).unwrap();
    assert_eq!((closed.unmatched, closed.allow.len()), (Unmatched::Denied, 0));
}
